//! Owns the process of one plugin: sends calls, keeps deadlines, restarts after a crash.
//!
//! ```text
//!            first load                    frame | deadline
//!  (start) ------------> Running --------------------------------+
//!                          ^  |  socket closed, call not answered  |
//!   next call, not before  |  v  in time, answer of another shape  |
//!   the back-off is over   Down <----------------------------------+
//! ```
//! One task owns everything here; others send it commands.

use crate::asks::Asks;
use crate::calls::ProcessCalls;
use crate::manifest::{Limits, PluginKind};
use crate::process::{Failure, Launch, Link};
use crate::protocol::{Frame, FromProcess, ToProcess};
use crate::services::HostServices;
use crate::storage::StoragePlugin;
use crate::{CallLimits, Monitor, PluginError, PluginErrorKind, PluginInfo, Powers, Storage};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use units::RequestId;

/// Calls that wait for the task.
const COMMANDS_MAX: usize = 256;
/// How much later than the process this side ends a call: the process ends a component's call by
/// itself and goes on, while this side has to end the process.
const GRACE: Duration = Duration::from_millis(1000);
/// A process that lived this long has earned a fresh start.
const HEALTHY: Duration = Duration::from_secs(60);
/// The second restart in a row waits this long, each further one twice as long.
const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(10);

/// What a call ended with: its result in JSON, or why there is none.
pub(crate) type Outcome = Result<Vec<u8>, Failure>;

/// One call on its way.
pub(crate) struct Call {
    pub(crate) method: &'static str,
    pub(crate) parameters: Vec<u8>,
    pub(crate) request_id: RequestId,
    pub(crate) deadline: Instant,
    pub(crate) reply: oneshot::Sender<Outcome>,
}

pub(crate) enum Command {
    Call(Call),
    Stop(oneshot::Sender<()>),
}

/// The task that owns a plugin's process. Dropping it ends both.
pub(crate) struct Supervisor {
    plugin: String,
    kind: PluginKind,
    timeout: Duration,
    interfaces: Arc<[String]>,
    commands: mpsc::Sender<Command>,
    monitor: Arc<OnceLock<Monitor>>,
    process_id: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Starts the process and, once its artifact is loaded, the task.
    pub(crate) async fn start(
        launch: Launch,
        limits: Limits,
        may_message: bool,
        services: Arc<dyn HostServices>,
    ) -> Result<Self, PluginError> {
        let plugin = launch.hello.plugin.clone();
        let kind = launch.hello.kind;
        let error = |(kind, message): Failure| PluginError {
            kind,
            plugin: plugin.clone(),
            operation: "load".to_owned(),
            message,
        };
        let link = launch.start(services.clone()).await.map_err(error)?;
        let interfaces: Arc<[String]> = link.interfaces.clone().into();
        for needed in needed_interfaces(kind) {
            if !interfaces.iter().any(|found| found == needed) {
                let message = format!("it does not export {needed}, as a {kind:?} plugin must");
                return Err(error((
                    PluginErrorKind::Incompatible,
                    message.to_lowercase(),
                )));
            }
        }
        let timeout = limits.call_timeout();
        let (commands, waiting) = mpsc::channel(COMMANDS_MAX);
        let process_id = Arc::new(AtomicU32::new(0));
        let monitor = Arc::new(OnceLock::new());
        let asks = Asks::new(
            &plugin,
            &limits,
            may_message,
            services.clone(),
            monitor.clone(),
        );
        let mut owner = Owner {
            launch,
            services,
            asks,
            link: None,
            pending: BTreeMap::new(),
            next_id: 0,
            started: Instant::now(),
            not_before: Instant::now(),
            crashes: 0,
            process_id: process_id.clone(),
        };
        owner.adopt(link);
        let task = tokio::spawn(owner.run(waiting));
        Ok(Self {
            plugin,
            kind,
            timeout,
            interfaces,
            commands,
            monitor,
            process_id,
            task,
        })
    }

    /// Returns the carrier that makes calls through this task.
    pub(crate) fn calls(&self) -> ProcessCalls {
        ProcessCalls {
            plugin: self.plugin.clone(),
            timeout: self.timeout,
            powers: self.powers(),
            commands: self.commands.clone(),
        }
    }

    /// Asks the plugin who it is, with the checks of the handle, and compares its version.
    pub(crate) async fn checked_info(
        &self,
        limits: &CallLimits,
        version: &str,
    ) -> Result<PluginInfo, PluginError> {
        let storage = Storage::new(Arc::new(self.calls()), limits.clone());
        let info = storage.query().await?;
        if info.version != version {
            return Err(PluginError {
                kind: PluginErrorKind::Incompatible,
                plugin: self.plugin.clone(),
                operation: "load".to_owned(),
                message: format!(
                    "it is version {}, the manifest says {version}",
                    info.version
                ),
            });
        }
        Ok(info)
    }

    /// Returns what the exports say.
    pub(crate) fn powers(&self) -> Powers {
        let has = |name: &str| self.interfaces.iter().any(|interface| interface == name);
        Powers {
            containers: has("containers"),
            snapshots: has("snapshots"),
        }
    }

    /// Says whose event queue takes the timers that the plugin sets.
    pub(crate) fn deliver_timers_to(&self, monitor: Monitor) {
        debug_assert_eq!(self.kind, PluginKind::Monitor);
        // Set once, by the only caller.
        let _ = self.monitor.set(monitor);
    }

    pub(crate) fn process_id(&self) -> Option<u32> {
        Some(self.process_id.load(Ordering::Relaxed)).filter(|id| *id != 0)
    }

    /// Ends the process in good order.
    pub(crate) async fn stop(mut self) {
        let (done, stopped) = oneshot::channel();
        if self.commands.send(Command::Stop(done)).await.is_ok() {
            // An error means that the task is gone, which is what was wanted.
            let _ = stopped.await;
        }
        let _ = (&mut self.task).await;
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn needed_interfaces(kind: PluginKind) -> &'static [&'static str] {
    match kind {
        PluginKind::Storage => &["query", "sr", "containers"],
        PluginKind::Monitor => &["query", "monitor"],
    }
}

struct Pending {
    method: &'static str,
    request_id: RequestId,
    deadline: Instant,
    reply: oneshot::Sender<Outcome>,
}

struct Owner {
    launch: Launch,
    services: Arc<dyn HostServices>,
    asks: Asks,
    link: Option<Link>,
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
    started: Instant,
    not_before: Instant,
    crashes: u32,
    process_id: Arc<AtomicU32>,
}

impl Owner {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let wake = self.next_wake();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Call(call)) => self.call(call).await,
                    Some(Command::Stop(done)) => {
                        self.stop().await;
                        let _ = done.send(());
                        return;
                    }
                    None => return self.stop().await,
                },
                frame = next_frame(&mut self.link) => self.frame(frame).await,
                () = tokio::time::sleep_until(wake) => self.deadlines().await,
            }
        }
    }

    fn adopt(&mut self, link: Link) {
        self.process_id
            .store(link.process_id().unwrap_or(0), Ordering::Relaxed);
        self.link = Some(link);
        self.started = Instant::now();
    }

    fn next_wake(&self) -> Instant {
        let deadline = self.pending.values().map(|pending| pending.deadline).min();
        deadline.unwrap_or_else(|| Instant::now() + HEALTHY)
    }

    /// Sends one call, starting the process first if there is none.
    async fn call(&mut self, call: Call) {
        let Call {
            method,
            parameters,
            request_id,
            deadline,
            reply,
        } = call;
        if reply.is_closed() {
            return;
        }
        if let Err(failure) = self.ensure_running(deadline).await {
            let _ = reply.send(Err(failure));
            return;
        }
        let Some(link) = &self.link else { return };
        self.next_id += 1;
        let id = self.next_id;
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
        let head = ToProcess::Call {
            id,
            request_id: request_id.clone(),
            method: method.to_owned(),
            timeout_ms,
        };
        match link.send(&head, &parameters) {
            Ok(true) => {
                let deadline = deadline + GRACE;
                self.pending.insert(
                    id,
                    Pending {
                        method,
                        request_id,
                        deadline,
                        reply,
                    },
                );
            }
            Ok(false) => {
                let _ = reply.send(Err((PluginErrorKind::Busy, "it reads no calls".to_owned())));
            }
            Err(error) => {
                let _ = reply.send(Err((PluginErrorKind::Invalid, error.to_string())));
            }
        }
    }

    async fn ensure_running(&mut self, deadline: Instant) -> Result<(), Failure> {
        if self.link.is_some() {
            return Ok(());
        }
        if self.not_before > deadline {
            let wait = self
                .not_before
                .saturating_duration_since(Instant::now())
                .as_millis();
            let message = format!("it ended {} times, next start in {wait} ms", self.crashes);
            return Err((PluginErrorKind::Crashed, message));
        }
        tokio::time::sleep_until(self.not_before).await;
        let name = &self.launch.hello.plugin;
        match self.launch.start(self.services.clone()).await {
            Ok(link) => {
                tracing::info!(
                    plugin = name,
                    process = link.process_id(),
                    "plugin restarted"
                );
                self.adopt(link);
                Ok(())
            }
            Err(failure) => {
                self.count_crash();
                Err(failure)
            }
        }
    }

    async fn frame(&mut self, frame: Option<io::Result<Frame<FromProcess>>>) {
        match frame {
            None => self.ended().await,
            Some(Err(error)) => self.kill(PluginErrorKind::Incompatible, &error.to_string()),
            Some(Ok(Frame { head, body })) => match head {
                FromProcess::Done { id } => self.finish(id, Ok(body)),
                FromProcess::Broke { id, kind, message } => self.finish(id, Err((kind, message))),
                FromProcess::Ask { id, call, method } => {
                    let Some(link) = &self.link else { return };
                    let request_id = self.pending.get(&call).map(|call| &call.request_id);
                    self.asks
                        .serve(id, request_id, &method, &body, link.sender());
                }
                FromProcess::Log { call, level, line } => {
                    let request_id = self.pending.get(&call).map(|call| &call.request_id);
                    self.asks.log(request_id, level, &line);
                }
                FromProcess::Ready { .. } | FromProcess::Failed { .. } => {
                    self.kill(
                        PluginErrorKind::Incompatible,
                        "it said twice that it is ready",
                    );
                }
            },
        }
    }

    fn finish(&mut self, id: u64, outcome: Outcome) {
        // Unknown ids are answers of calls that nobody waits for; a caller may be gone as well.
        if let Some(pending) = self.pending.remove(&id) {
            let _ = pending.reply.send(outcome);
        }
    }

    /// The process closed its socket.
    async fn ended(&mut self) {
        let Some(link) = self.link.take() else { return };
        let epitaph = link.epitaph().await;
        self.down(PluginErrorKind::Crashed, &epitaph);
    }

    fn kill(&mut self, kind: PluginErrorKind, why: &str) {
        if let Some(mut link) = self.link.take() {
            link.kill();
            self.down(kind, why);
        }
    }

    /// Fails what is pending and sets the back-off.
    fn down(&mut self, kind: PluginErrorKind, why: &str) {
        let name = &self.launch.hello.plugin;
        let calls = self.pending.len();
        tracing::warn!(plugin = name, calls, "plugin process is down: {why}");
        self.process_id.store(0, Ordering::Relaxed);
        self.count_crash();
        for pending in std::mem::take(&mut self.pending).into_values() {
            let _ = pending.reply.send(Err((kind, why.to_owned())));
        }
    }

    fn count_crash(&mut self) {
        let now = Instant::now();
        if now.saturating_duration_since(self.started) >= HEALTHY {
            self.crashes = 0;
        }
        self.crashes = self.crashes.saturating_add(1);
        self.not_before = now + back_off(self.crashes);
    }

    /// Ends the process if a call is not answered in time.
    async fn deadlines(&mut self) {
        let now = Instant::now();
        let late: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        let mut names = Vec::new();
        for id in late {
            if let Some(pending) = self.pending.remove(&id) {
                names.push(format!(
                    "{} of request {}",
                    pending.method, pending.request_id
                ));
                let message = "no answer before the deadline; its process was ended".to_owned();
                let _ = pending.reply.send(Err((PluginErrorKind::Timeout, message)));
            }
        }
        if !names.is_empty() {
            let why = format!("its process was ended: {} did not answer", names.join(", "));
            self.kill(PluginErrorKind::Crashed, &why);
        }
    }

    async fn stop(mut self) {
        if let Some(link) = self.link.take() {
            link.stop().await;
        }
        self.process_id.store(0, Ordering::Relaxed);
        for pending in std::mem::take(&mut self.pending).into_values() {
            let stopped = (
                PluginErrorKind::Crashed,
                "the plugin was stopped".to_owned(),
            );
            let _ = pending.reply.send(Err(stopped));
        }
    }
}

/// Waits for ever when there is no process.
async fn next_frame(link: &mut Option<Link>) -> Option<io::Result<Frame<FromProcess>>> {
    match link {
        Some(link) => link.frames.recv().await,
        None => std::future::pending().await,
    }
}

/// Time from a crash to the next start: none the first time.
fn back_off(crashes: u32) -> Duration {
    match crashes {
        0 | 1 => Duration::ZERO,
        more => BACK_OFF_MIN
            .saturating_mul(1 << (more - 2).min(16))
            .min(BACK_OFF_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_later_ones_wait_longer_up_to_a_limit() {
        let waits: Vec<u64> = (1..=10)
            .map(|crashes| back_off(crashes).as_millis() as u64)
            .collect();
        assert_eq!(
            waits,
            [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        assert_eq!(back_off(u32::MAX), BACK_OFF_MAX);
    }
}

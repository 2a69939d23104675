//! One QEMU process: its monitor and what its commands mean.

use crate::arguments::{block_node, device_id, device_of_id, disk_device, node_name};
use crate::process;
use crate::qmp::{Client, Message};
use crate::recording;
use crate::run_dir::Stored;
use hypervisor::{
    DeviceName, DiskConfig, Domain, DomainStat, DomainState, Error, ErrorKind, Event, EventKind,
    ShutdownReason, ShutdownRequest,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::broadcast;
use units::VmUuid;

/// How long QEMU may take to answer a command. Adding a disk connects to its server first.
const ANSWER: Duration = Duration::from_secs(30);
/// How long it may take when all domains are listed: one that is silent must not hold up the rest.
const LIST_ANSWER: Duration = Duration::from_secs(5);
/// How long to wait between looks at whether a guest has let a disk go.
const UNPLUG_POLL: Duration = Duration::from_millis(20);
/// How long an unplugged device may hold on to its block node.
const NODE_RELEASE: Duration = Duration::from_secs(5);
/// How long a process whose monitor closed may take to be gone.
const EXIT: Duration = Duration::from_secs(5);

/// A live QEMU process, created by this daemon or found.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) vm: VmUuid,
    pub(crate) dir: PathBuf,
    pub(crate) stored: Mutex<Stored>,
    client: tokio::sync::Mutex<Option<Arc<Client>>>,
    /// How the guest ended, once it has.
    ended: Mutex<Option<ShutdownReason>>,
    /// Set before the process is ended on purpose, or once its end was told.
    leaving: Mutex<bool>,
    events: broadcast::Sender<Event>,
}

impl Instance {
    pub(crate) fn new(
        vm: VmUuid,
        dir: PathBuf,
        stored: Stored,
        events: broadcast::Sender<Event>,
    ) -> Arc<Self> {
        Arc::new(Self {
            vm,
            dir,
            stored: Mutex::new(stored),
            client: tokio::sync::Mutex::default(),
            ended: Mutex::default(),
            leaving: Mutex::new(false),
            events,
        })
    }

    /// Connects the monitor. Fails at once if nothing listens.
    pub(crate) async fn connect(self: &Arc<Self>, limit: Duration) -> Result<(), Error> {
        let mut slot = self.client.lock().await;
        let weak = Arc::downgrade(self);
        let tell = move |message| hear(&weak, message);
        let client = Client::connect(&self.dir.join("qmp.sock"), limit, tell).await?;
        *slot = Some(Arc::new(client));
        Ok(())
    }

    async fn execute(&self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        let client = self.client.lock().await.clone();
        match client {
            Some(client) => client.execute(command, arguments, ANSWER).await,
            None => {
                let context = format!("the monitor of vm {} is not connected", self.vm);
                Err(Error::new(ErrorKind::Lost, context))
            }
        }
    }

    fn event(&self, kind: EventKind) {
        let domid = self.stored.lock().domid;
        // Nobody listening is no error: whoever comes later lists.
        let _ = self.events.send(Event {
            vm: self.vm,
            domid,
            kind,
        });
    }

    /// Tells once that the process is gone, unless it was ended on purpose.
    async fn tell_gone(self: Arc<Self>) {
        match process::ended_within(&self.dir, EXIT).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::error!(vm = %self.vm, "the monitor closed but the process lives");
                return;
            }
            Err(error) => tracing::warn!(vm = %self.vm, %error, "cannot see whether QEMU lives"),
        }
        let told = std::mem::replace(&mut *self.leaving.lock(), true);
        if !told {
            self.event(EventKind::Gone);
        }
    }

    pub(crate) fn is_leaving(&self) -> bool {
        *self.leaving.lock()
    }

    pub(crate) async fn state(&self) -> Result<DomainState, Error> {
        let status = self.execute("query-status", json!({})).await?;
        let status = status
            .get("status")
            .and_then(Value::as_str)
            .unwrap_or_default();
        Ok(match status {
            "running" => DomainState::Running,
            "shutdown" => DomainState::Shutdown(self.reason()),
            "guest-panicked" | "internal-error" => DomainState::Shutdown(ShutdownReason::Crash),
            _ => DomainState::Paused,
        })
    }

    /// A guest that ended for a reason nobody recorded is taken to have powered off: that starts
    /// nothing.
    fn reason(&self) -> ShutdownReason {
        let mut ended = self.ended.lock();
        let found = ended.or_else(|| recording::end_by_recording(&self.dir.join("events.log")));
        *ended.insert(found.unwrap_or(ShutdownReason::Poweroff))
    }

    fn silent(&self) -> Error {
        let context = format!("qemu of vm {} did not answer in {LIST_ANSWER:?}", self.vm);
        Error::new(ErrorKind::Timeout, context)
    }

    fn bad_state(&self, wish: &str, state: DomainState) -> Error {
        let context = format!(
            "cannot {wish} the domain of vm {}: it is {state:?}",
            self.vm
        );
        Error::new(ErrorKind::BadState, context)
    }

    pub(crate) async fn set_running(&self, run: bool) -> Result<(), Error> {
        let (command, wish) = if run {
            ("cont", "unpause")
        } else {
            ("stop", "pause")
        };
        let state = self.state().await?;
        if let DomainState::Shutdown(_) = state {
            return Err(self.bad_state(wish, state));
        }
        self.execute(command, json!({})).await.map(|_| ())
    }

    pub(crate) async fn request_shutdown(&self, request: ShutdownRequest) -> Result<(), Error> {
        let state = self.state().await?;
        match state {
            DomainState::Running => {}
            DomainState::Shutdown(_) => return Ok(()),
            DomainState::Paused => return Err(self.bad_state("ask the guest of", state)),
        }
        let key = |code: &str| json!({"type": "qcode", "data": code});
        let keys = ["ctrl", "alt", "delete"].map(key);
        let sent = match request {
            ShutdownRequest::Poweroff => self.execute("system_powerdown", json!({})).await,
            ShutdownRequest::Reboot => self.execute("send-key", json!({"keys": keys})).await,
        };
        sent.map(|_| ())
    }

    async fn plugged(&self) -> Result<BTreeSet<DeviceName>, Error> {
        let list = self
            .execute("qom-list", json!({"path": "/machine/peripheral"}))
            .await?;
        let names = list.as_array().into_iter().flatten();
        let names = names.filter_map(|entry| entry.get("name").and_then(Value::as_str));
        Ok(names.filter_map(device_of_id).collect())
    }

    fn store(&self, change: impl FnOnce(&mut Stored)) -> Result<(), Error> {
        let mut stored = self.stored.lock();
        change(&mut stored);
        stored.save(&self.dir)
    }

    pub(crate) async fn plug(&self, disk: &DiskConfig) -> Result<(), Error> {
        let device = disk_device(disk, false)?;
        if self.plugged().await?.contains(&disk.device) {
            let same = self.stored.lock().disks.get(&disk.device) == Some(disk);
            let taken = || {
                let context = format!("vm {} has another disk at {}", self.vm, disk.device);
                Error::new(ErrorKind::Exists, context)
            };
            return same.then_some(()).ok_or_else(taken);
        }
        self.store(|stored| _ = stored.disks.insert(disk.device, disk.clone()))?;
        self.remove_node(disk.device).await?;
        self.execute("blockdev-add", block_node(disk)).await?;
        let added = self.execute("device_add", device).await;
        if added.is_err() {
            self.remove_node(disk.device).await?;
        }
        added.map(|_| ())
    }

    /// Takes the block node away if it is there; its server sees the connection close. A device
    /// that has just been unplugged may hold its node for a moment longer.
    async fn remove_node(&self, device: DeviceName) -> Result<(), Error> {
        let name = node_name(device);
        let deadline = tokio::time::Instant::now() + NODE_RELEASE;
        loop {
            let nodes = self
                .execute("query-named-block-nodes", json!({"flat": true}))
                .await?;
            let mut nodes = nodes.as_array().into_iter().flatten();
            let named = |node: &Value| node.get("node-name").and_then(Value::as_str) == Some(&name);
            if !nodes.any(named) {
                return Ok(());
            }
            match self
                .execute("blockdev-del", json!({"node-name": name}))
                .await
            {
                Err(error)
                    if error.kind() != ErrorKind::Failed
                        || tokio::time::Instant::now() >= deadline =>
                {
                    return Err(error);
                }
                _ => tokio::time::sleep(UNPLUG_POLL).await,
            }
        }
    }

    pub(crate) async fn unplug(&self, device: DeviceName, limit: Duration) -> Result<(), Error> {
        let deadline = tokio::time::Instant::now() + limit;
        if self.plugged().await?.contains(&device) {
            let asked = self
                .execute("device_del", json!({"id": device_id(device)}))
                .await;
            // A second wish while the first is under way is refused; only the outcome counts.
            let words = asked
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            while self.plugged().await?.contains(&device) {
                if tokio::time::Instant::now() >= deadline {
                    let context = format!(
                        "the guest of vm {} did not let {device} go in {limit:?} {words}",
                        self.vm
                    );
                    return Err(Error::new(ErrorKind::Refused, context.trim().to_owned()));
                }
                tokio::time::sleep(UNPLUG_POLL).await;
            }
        }
        self.remove_node(device).await?;
        self.store(|stored| _ = stored.disks.remove(&device))
    }

    /// A process that does not answer is listed as running with all disks it may have: nobody may
    /// take anything from it until it is destroyed.
    pub(crate) async fn describe(&self) -> Domain {
        let asking = async { Ok((self.state().await?, self.plugged().await?)) };
        let answer = tokio::time::timeout(LIST_ANSWER, asking).await;
        let (state, disks) = answer
            .unwrap_or_else(|_| Err(self.silent()))
            .unwrap_or_else(|error| {
                tracing::warn!(vm = %self.vm, %error, "a domain is listed by its record");
                (
                    DomainState::Running,
                    self.stored.lock().disks.keys().copied().collect(),
                )
            });
        Domain {
            vm: self.vm,
            domid: self.stored.lock().domid,
            state,
            disks,
        }
    }

    pub(crate) async fn stat(&self) -> Result<DomainStat, Error> {
        let state = self.state().await?;
        let cpus = self.execute("query-cpus-fast", json!({})).await?;
        let threads = cpus.as_array().into_iter().flatten();
        let threads: BTreeSet<u64> = threads
            .filter_map(|cpu| cpu.get("thread-id").and_then(Value::as_u64))
            .collect();
        let memory = self.execute("query-memory-size-summary", json!({})).await?;
        let memory_bytes = memory
            .get("base-memory")
            .and_then(Value::as_u64)
            .unwrap_or(0);
        let stored = self.stored.lock();
        Ok(DomainStat {
            domid: stored.domid,
            state,
            cpu_time_ns: threads
                .iter()
                .map(|id| process::thread_time_ns(&self.dir, *id))
                .sum(),
            memory_bytes,
            vcpus: stored.config.vcpus,
        })
    }

    /// Ends the process: by its own `quit`, which finishes what its disks are doing, or if that
    /// takes too long by force.
    pub(crate) async fn quit(&self, limit: Duration) {
        *self.leaving.lock() = true;
        let quit = tokio::time::timeout(limit, self.execute("quit", json!({}))).await;
        if let Ok(Err(error)) = quit {
            tracing::debug!(vm = %self.vm, %error, "quit");
        }
    }

    pub(crate) fn cut_files(&self, limit_bytes: u64) {
        for name in ["console.log", "events.log"] {
            if let Err(error) = recording::cut(&self.dir.join(name), limit_bytes) {
                tracing::warn!(vm = %self.vm, %error, "a file grows");
            }
        }
    }
}

fn hear(instance: &Weak<Instance>, message: Message) {
    let Some(instance) = instance.upgrade() else {
        return;
    };
    match message {
        Message::Closed => {
            if !instance.is_leaving() {
                tokio::spawn(instance.tell_gone());
            }
        }
        Message::Event { name, data } => {
            let Some(reason) = recording::end_by_event(&name, &data) else {
                return;
            };
            let first = instance.ended.lock().replace(reason).is_none();
            if first {
                instance.event(EventKind::Shutdown(reason));
            }
        }
    }
}

//! What the rest of the daemon holds: a plugin with the checks that every caller wants, once.
//!
//! Before a call: arguments are validated, a permit is taken (at most `limits.calls` at once), the
//! deadline is the earlier of the caller's and the plugin's. After it: the answer is checked
//! against what the contract promises, so that a lie is an error here and not a surprise later.

use crate::storage::{
    Container, DeviceConfig, Location, PluginInfo, Powers, ProbeResult, SrHandle, SrStat,
    StoragePlugin,
};
use crate::{Event, MonitorPlugin, PluginError, PluginErrorKind, Request};
use async_trait::async_trait;
use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tracing::Instrument;
use units::{ContainerId, SrUuid};

/// Longest handle in bytes.
const HANDLE_BYTES_MAX: usize = 4096;
/// Most keys of a configuration, and longest key or value in bytes.
const CONFIG_KEYS_MAX: usize = 64;
const CONFIG_BYTES_MAX: usize = 4096;
/// Largest container: what a file offset can say.
const CAPACITY_BYTES_MAX: u64 = i64::MAX as u64;
/// How much later than the carrier the handle gives up: the carrier knows the better reason.
const GRACE: Duration = Duration::from_millis(2000);
/// Events that wait for a monitor.
const EVENTS_MAX: usize = 64;

/// Whose calls, and how far they may go.
#[derive(Debug, Clone)]
pub struct CallLimits {
    /// Name of the plugin in errors and logs.
    pub plugin: String,
    /// Longest time of one call.
    pub timeout: Duration,
    /// Calls at once.
    pub calls: u32,
    /// Directories below which its files may lie.
    pub roots: Vec<PathBuf>,
}

/// The part that both handles share.
struct Gate {
    limits: CallLimits,
    permits: Semaphore,
}

impl Gate {
    fn new(limits: CallLimits) -> Self {
        let permits = Semaphore::new(limits.calls.max(1) as usize);
        Self { limits, permits }
    }

    fn error(&self, kind: PluginErrorKind, operation: &str, message: String) -> PluginError {
        let plugin = self.limits.plugin.clone();
        PluginError {
            kind,
            plugin,
            operation: operation.to_owned(),
            message,
        }
    }

    fn invalid<T>(&self, operation: &str, message: String) -> Result<T, PluginError> {
        Err(self.error(PluginErrorKind::Invalid, operation, message))
    }

    fn lie<T>(&self, operation: &str, message: String) -> Result<T, PluginError> {
        Err(self.error(PluginErrorKind::Incompatible, operation, message))
    }

    /// Runs one call with permit, deadline and span.
    async fn run<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, PluginError>>,
    ) -> Result<T, PluginError> {
        let mut request = Request::current();
        let own = Instant::now() + self.limits.timeout;
        let deadline = request.deadline.map_or(own, |theirs| theirs.min(own));
        request.deadline = Some(deadline);
        let request_id = request.id.as_str();
        let plugin = self.limits.plugin.as_str();
        let span = tracing::debug_span!("plugin.call", plugin, operation, request_id);
        let late = |what: &str| {
            let timeout_ms = self.limits.timeout.as_millis();
            let message = format!("no {what} within {timeout_ms} ms or the caller's deadline");
            self.error(PluginErrorKind::Timeout, operation, message)
        };
        let permit = tokio::time::timeout_at(deadline.into(), self.permits.acquire());
        let Ok(Ok(_permit)) = permit.await else {
            return Err(late("free call"));
        };
        let call = request.scope(call.instrument(span.clone()));
        let result = tokio::time::timeout_at((deadline + GRACE).into(), call).await;
        let result = result.unwrap_or_else(|_| Err(late("answer")));
        span.in_scope(|| match &result {
            Ok(_) => tracing::debug!("done"),
            Err(error) => tracing::debug!(kind = ?error.kind, "{}", error.message),
        });
        result
    }
}

/// A storage plugin, checked. Cheap to clone.
#[derive(Clone)]
pub struct Storage {
    inner: Arc<dyn StoragePlugin>,
    gate: Arc<Gate>,
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Storage")
            .field(&self.gate.limits.plugin)
            .finish()
    }
}

impl Storage {
    /// Puts the checks in front of a carrier.
    pub fn new(inner: Arc<dyn StoragePlugin>, limits: CallLimits) -> Self {
        Self {
            inner,
            gate: Arc::new(Gate::new(limits)),
        }
    }

    /// Returns the plugin's name.
    pub fn plugin(&self) -> &str {
        &self.gate.limits.plugin
    }

    fn check_config(&self, operation: &str, config: &DeviceConfig) -> Result<(), PluginError> {
        if config.len() > CONFIG_KEYS_MAX {
            let len = config.len();
            return self
                .gate
                .invalid(operation, format!("device_config has {len} keys"));
        }
        let long = config
            .iter()
            .find(|(k, v)| k.len().max(v.len()) > CONFIG_BYTES_MAX);
        if let Some((key, _)) = long {
            let key: String = key.chars().take(64).collect();
            return self
                .gate
                .invalid(operation, format!("device_config:{key} is too long"));
        }
        Ok(())
    }

    fn check_capacity(&self, operation: &str, bytes: u64) -> Result<(), PluginError> {
        if bytes == 0 || bytes > CAPACITY_BYTES_MAX {
            return self
                .gate
                .invalid(operation, format!("capacity of {bytes} bytes"));
        }
        Ok(())
    }

    /// Checks that a container is the one that was asked for, and large enough.
    fn check_container(
        &self,
        operation: &str,
        found: Container,
        id: &ContainerId,
        capacity_bytes: u64,
    ) -> Result<Container, PluginError> {
        if found.id != *id {
            return self.gate.lie(
                operation,
                format!("asked for {id}, it answered {}", found.id),
            );
        }
        if found.capacity_bytes < capacity_bytes {
            let have = found.capacity_bytes;
            let message = format!("container {id}: asked for {capacity_bytes} bytes, got {have}");
            return self.gate.lie(operation, message);
        }
        Ok(found)
    }

    fn check_location(&self, operation: &str, found: Location) -> Result<Location, PluginError> {
        let (Location::File(path) | Location::BlockDevice(path)) = &found;
        let granted = self
            .gate
            .limits
            .roots
            .iter()
            .any(|root| path.starts_with(root));
        if !crate::manifest::is_plain_path(path) || !granted {
            let message = format!("{} is outside every granted directory", path.display());
            return self.gate.lie(operation, message);
        }
        Ok(found)
    }
}

#[async_trait]
impl StoragePlugin for Storage {
    fn powers(&self) -> Powers {
        self.inner.powers()
    }

    async fn query(&self) -> Result<PluginInfo, PluginError> {
        let info = self.gate.run("query.query", self.inner.query()).await?;
        if !crate::manifest::is_name(&info.driver, 32) {
            return self.gate.lie(
                "query.query",
                format!("driver {:?} is no name", info.driver),
            );
        }
        Ok(info)
    }

    async fn sr_probe(&self, config: &DeviceConfig) -> Result<Vec<ProbeResult>, PluginError> {
        self.check_config("sr.probe", config)?;
        self.gate.run("sr.probe", self.inner.sr_probe(config)).await
    }

    async fn sr_create(
        &self,
        sr: SrUuid,
        config: &DeviceConfig,
    ) -> Result<DeviceConfig, PluginError> {
        self.check_config("sr.create", config)?;
        let stored = self
            .gate
            .run("sr.create", self.inner.sr_create(sr, config))
            .await?;
        if self.check_config("sr.create", &stored).is_err() {
            return self.gate.lie(
                "sr.create",
                "the configuration it returned is too long".into(),
            );
        }
        Ok(stored)
    }

    async fn sr_attach(&self, sr: SrUuid, config: &DeviceConfig) -> Result<SrHandle, PluginError> {
        self.check_config("sr.attach", config)?;
        let handle = self
            .gate
            .run("sr.attach", self.inner.sr_attach(sr, config))
            .await?;
        if handle.0.len() > HANDLE_BYTES_MAX {
            let len = handle.0.len();
            return self
                .gate
                .lie("sr.attach", format!("the handle has {len} bytes"));
        }
        Ok(handle)
    }

    async fn sr_detach(&self, sr: &SrHandle) -> Result<(), PluginError> {
        self.gate.run("sr.detach", self.inner.sr_detach(sr)).await
    }

    async fn sr_destroy(&self, sr: &SrHandle) -> Result<(), PluginError> {
        self.gate.run("sr.destroy", self.inner.sr_destroy(sr)).await
    }

    async fn sr_stat(&self, sr: &SrHandle) -> Result<SrStat, PluginError> {
        let stat = self.gate.run("sr.stat", self.inner.sr_stat(sr)).await?;
        if stat.free_bytes > stat.total_bytes {
            let SrStat {
                free_bytes,
                total_bytes,
                ..
            } = stat;
            return self.gate.lie(
                "sr.stat",
                format!("{free_bytes} of {total_bytes} bytes free"),
            );
        }
        Ok(stat)
    }

    async fn container_list(&self, sr: &SrHandle) -> Result<Vec<Container>, PluginError> {
        let list = self
            .gate
            .run("containers.list", self.inner.container_list(sr))
            .await?;
        let mut seen = BTreeSet::new();
        if let Some(twice) = list.iter().find(|container| !seen.insert(&container.id)) {
            return self
                .gate
                .lie("containers.list", format!("{} is there twice", twice.id));
        }
        Ok(list)
    }

    async fn container_create(
        &self,
        sr: &SrHandle,
        id: &ContainerId,
        capacity_bytes: u64,
    ) -> Result<Container, PluginError> {
        const OP: &str = "containers.create";
        self.check_capacity(OP, capacity_bytes)?;
        let call = self.inner.container_create(sr, id, capacity_bytes);
        let found = self.gate.run(OP, call).await?;
        self.check_container(OP, found, id, capacity_bytes)
    }

    async fn container_remove(&self, sr: &SrHandle, id: &ContainerId) -> Result<(), PluginError> {
        self.gate
            .run("containers.remove", self.inner.container_remove(sr, id))
            .await
    }

    async fn container_rename(
        &self,
        sr: &SrHandle,
        from: &ContainerId,
        to: &ContainerId,
    ) -> Result<(), PluginError> {
        self.gate
            .run(
                "containers.rename",
                self.inner.container_rename(sr, from, to),
            )
            .await
    }

    async fn container_grow(
        &self,
        sr: &SrHandle,
        id: &ContainerId,
        capacity_bytes: u64,
    ) -> Result<Container, PluginError> {
        const OP: &str = "containers.grow";
        self.check_capacity(OP, capacity_bytes)?;
        let found = self
            .gate
            .run(OP, self.inner.container_grow(sr, id, capacity_bytes))
            .await?;
        self.check_container(OP, found, id, capacity_bytes)
    }

    async fn container_locate(
        &self,
        sr: &SrHandle,
        id: &ContainerId,
    ) -> Result<Location, PluginError> {
        const OP: &str = "containers.locate";
        let found = self
            .gate
            .run(OP, self.inner.container_locate(sr, id))
            .await?;
        self.check_location(OP, found)
    }
}

/// A monitor plugin, checked, with the queue of events that wait for it. Cheap to clone.
#[derive(Clone)]
pub struct Monitor {
    inner: Arc<dyn MonitorPlugin>,
    gate: Arc<Gate>,
    queue: mpsc::Sender<Event>,
    classes: Arc<[String]>,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Monitor")
            .field(&self.gate.limits.plugin)
            .finish()
    }
}

impl Monitor {
    /// Puts the checks in front of a carrier and starts the task that empties the queue; it ends
    /// when the last clone is dropped. `classes` are the object classes the plugin is told about.
    pub fn new(inner: Arc<dyn MonitorPlugin>, limits: CallLimits, classes: Vec<String>) -> Self {
        let gate = Arc::new(Gate::new(CallLimits { calls: 1, ..limits }));
        let (queue, waiting) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(deliver(inner.clone(), gate.clone(), waiting));
        Self {
            inner,
            gate,
            queue,
            classes: classes.into(),
        }
    }

    /// Returns the plugin's name.
    pub fn plugin(&self) -> &str {
        &self.gate.limits.plugin
    }

    /// Puts an event in the plugin's queue without waiting. Events of classes that it is not told
    /// about are left out; when the queue is full the event is dropped and logged.
    pub fn offer(&self, event: Event) {
        let Some(event) = self.fitting(event) else {
            return;
        };
        if self.queue.try_send(event).is_err() {
            tracing::warn!(
                plugin = self.plugin(),
                "event dropped: {EVENTS_MAX} are waiting"
            );
        }
    }

    /// Whether the plugin is told about changes of objects of this class. Ask before making the
    /// event: a record is not cheap to write down.
    pub fn wants(&self, class: &str) -> bool {
        self.classes.iter().any(|wanted| wanted == class)
    }

    /// Leaves out what the plugin is not granted and what JSON cannot say.
    fn fitting(&self, mut event: Event) -> Option<Event> {
        match &mut event {
            Event::Object { class, .. } if !self.wants(class) => return None,
            Event::Metrics { rows, .. } => rows.retain(|row| row.value.is_finite()),
            _ => {}
        }
        Some(event)
    }
}

async fn deliver(
    inner: Arc<dyn MonitorPlugin>,
    gate: Arc<Gate>,
    mut waiting: mpsc::Receiver<Event>,
) {
    while let Some(event) = waiting.recv().await {
        if let Err(error) = gate.run("monitor.handle", inner.handle(&event)).await {
            tracing::warn!(plugin = gate.limits.plugin, kind = ?error.kind, "{error}");
        }
    }
}

#[async_trait]
impl MonitorPlugin for Monitor {
    async fn handle(&self, event: &Event) -> Result<(), PluginError> {
        match self.fitting(event.clone()) {
            Some(event) => {
                self.gate
                    .run("monitor.handle", self.inner.handle(&event))
                    .await
            }
            None => Ok(()),
        }
    }
}

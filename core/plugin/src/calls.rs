//! The carrier: both traits over a plugin process. One line per operation; checks are the
//! handle's.

use crate::storage::{
    Container, DeviceConfig, Location, PluginInfo, Powers, ProbeResult, SrHandle, SrStat,
    StoragePlugin,
};
use crate::supervisor::{Call, Command};
use crate::{Event, MonitorPlugin, PluginError, PluginErrorKind, Request};
use async_trait::async_trait;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use units::{ContainerId, SrUuid};

/// Makes calls through a supervisor's task.
#[derive(Clone)]
pub(crate) struct ProcessCalls {
    pub(crate) plugin: String,
    pub(crate) timeout: Duration,
    pub(crate) powers: Powers,
    pub(crate) commands: mpsc::Sender<Command>,
}

/// How a plugin says no.
#[derive(Deserialize)]
struct Refusal {
    kind: PluginErrorKind,
    message: String,
}

/// Longest error text that is taken from a plugin.
const MESSAGE_CHARS_MAX: usize = 2048;

impl ProcessCalls {
    async fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        parameters: Value,
    ) -> Result<T, PluginError> {
        let error = |kind, message: String| PluginError {
            kind,
            plugin: self.plugin.clone(),
            operation: method.to_owned(),
            message: message.chars().take(MESSAGE_CHARS_MAX).collect(),
        };
        let request = Request::current();
        let deadline = request
            .deadline
            .map_or_else(|| Instant::now() + self.timeout, Instant::from);
        let (reply, outcome) = oneshot::channel();
        let parameters = parameters.to_string().into_bytes();
        let call = Call {
            method,
            parameters,
            request_id: request.id,
            deadline,
            reply,
        };
        let gone = || {
            error(
                PluginErrorKind::Crashed,
                "the plugin was stopped".to_owned(),
            )
        };
        self.commands
            .send(Command::Call(call))
            .await
            .map_err(|_| gone())?;
        let result = outcome
            .await
            .map_err(|_| gone())?
            .map_err(|(kind, message)| error(kind, message))?;
        match serde_json::from_slice::<Result<T, Refusal>>(&result) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(refusal)) if is_refusal(refusal.kind) => {
                Err(error(refusal.kind, refusal.message))
            }
            Ok(Err(refusal)) => {
                let message = format!("a plugin cannot answer {:?}", refusal.kind);
                Err(error(PluginErrorKind::Incompatible, message.to_lowercase()))
            }
            Err(parse) => {
                let message = format!("its answer is of another shape: {parse}");
                Err(error(PluginErrorKind::Incompatible, message))
            }
        }
    }
}

/// Whether a plugin may say this of itself; the others are for the host to say.
fn is_refusal(kind: PluginErrorKind) -> bool {
    use PluginErrorKind as Kind;
    !matches!(kind, Kind::Timeout | Kind::Crashed | Kind::Incompatible)
}

fn config_json(config: &DeviceConfig) -> Value {
    json!(config.iter().collect::<Vec<_>>())
}

/// A configuration as it comes back.
#[derive(Deserialize)]
struct Config(#[serde(with = "crate::storage::pairs")] DeviceConfig);

#[async_trait]
impl StoragePlugin for ProcessCalls {
    fn powers(&self) -> Powers {
        self.powers
    }

    async fn query(&self) -> Result<PluginInfo, PluginError> {
        self.call("query.query", json!({})).await
    }

    async fn sr_probe(&self, config: &DeviceConfig) -> Result<Vec<ProbeResult>, PluginError> {
        self.call("sr.probe", json!({ "config": config_json(config) }))
            .await
    }

    async fn sr_create(
        &self,
        sr: SrUuid,
        config: &DeviceConfig,
    ) -> Result<DeviceConfig, PluginError> {
        let parameters = json!({ "sr": sr, "config": config_json(config) });
        self.call("sr.create", parameters)
            .await
            .map(|Config(config)| config)
    }

    async fn sr_attach(&self, sr: SrUuid, config: &DeviceConfig) -> Result<SrHandle, PluginError> {
        self.call(
            "sr.attach",
            json!({ "sr": sr, "config": config_json(config) }),
        )
        .await
    }

    async fn sr_detach(&self, sr: &SrHandle) -> Result<(), PluginError> {
        self.call("sr.detach", json!({ "handle": sr })).await
    }

    async fn sr_destroy(&self, sr: &SrHandle) -> Result<(), PluginError> {
        self.call("sr.destroy", json!({ "handle": sr })).await
    }

    async fn sr_stat(&self, sr: &SrHandle) -> Result<SrStat, PluginError> {
        self.call("sr.stat", json!({ "handle": sr })).await
    }

    async fn container_list(&self, sr: &SrHandle) -> Result<Vec<Container>, PluginError> {
        self.call("containers.list", json!({ "handle": sr })).await
    }

    async fn container_create(
        &self,
        sr: &SrHandle,
        id: &ContainerId,
        capacity_bytes: u64,
    ) -> Result<Container, PluginError> {
        let parameters = json!({ "handle": sr, "id": id, "capacity_bytes": capacity_bytes });
        self.call("containers.create", parameters).await
    }

    async fn container_remove(&self, sr: &SrHandle, id: &ContainerId) -> Result<(), PluginError> {
        self.call("containers.remove", json!({ "handle": sr, "id": id }))
            .await
    }

    async fn container_rename(
        &self,
        sr: &SrHandle,
        from: &ContainerId,
        to: &ContainerId,
    ) -> Result<(), PluginError> {
        let parameters = json!({ "handle": sr, "source": from, "target": to });
        self.call("containers.rename", parameters).await
    }

    async fn container_grow(
        &self,
        sr: &SrHandle,
        id: &ContainerId,
        capacity_bytes: u64,
    ) -> Result<Container, PluginError> {
        let parameters = json!({ "handle": sr, "id": id, "capacity_bytes": capacity_bytes });
        self.call("containers.grow", parameters).await
    }

    async fn container_locate(
        &self,
        sr: &SrHandle,
        id: &ContainerId,
    ) -> Result<Location, PluginError> {
        self.call("containers.locate", json!({ "handle": sr, "id": id }))
            .await
    }
}

#[async_trait]
impl MonitorPlugin for ProcessCalls {
    async fn handle(&self, event: &Event) -> Result<(), PluginError> {
        self.call("monitor.handle", json!({ "event": event })).await
    }
}

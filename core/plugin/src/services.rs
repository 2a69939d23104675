//! What the daemon does for plugins: the part of `wit/v0/host.wit` that needs the daemon.

use crate::PluginErrorKind;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use units::RequestId;

/// How much a plugin's log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// For the plugin's author.
    Debug,
    /// A change of state.
    Info,
    /// Worth a look.
    Warn,
    /// Something failed.
    Error,
}

/// An alert that a plugin raises.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// E.g. `ALARM`: 1 to 64 characters of `A-Z 0-9 _`.
    pub name: String,
    /// 1 (data loss is near) to 5 (for information).
    pub priority: u8,
    /// XenAPI class of the object: `VM`, `Host`, `SR`, `Pool`, `VDI`.
    pub class: String,
    /// The object's uuid.
    pub uuid: String,
    /// At most 65536 bytes.
    pub body: String,
}

/// Why the daemon did not do what a plugin asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ServiceError {
    /// What the plugin may branch on; one of those that `wit` names.
    pub kind: PluginErrorKind,
    /// What happened.
    pub message: String,
}

impl ServiceError {
    /// Makes one.
    pub fn new(kind: PluginErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

/// Implemented by the daemon. Grants, rates and sizes are checked before these are called; each
/// call has ten seconds.
#[async_trait]
pub trait HostServices: Send + Sync + 'static {
    /// Creates a XenAPI message.
    ///
    /// # Errors
    ///
    /// `not-found` if there is no such object.
    async fn message_create(&self, plugin: &str, message: Message) -> Result<(), ServiceError>;

    /// Reads a value of the plugin's own store.
    async fn state_get(&self, plugin: &str, key: &str) -> Result<Option<String>, ServiceError>;

    /// Puts a value; durable when it returns.
    ///
    /// # Errors
    ///
    /// `no-space` if the plugin has [`STATE_KEYS_MAX`] keys and this would be another.
    async fn state_put(&self, plugin: &str, key: &str, value: String) -> Result<(), ServiceError>;

    /// Removes a value; one that is not there is a success.
    async fn state_delete(&self, plugin: &str, key: &str) -> Result<(), ServiceError>;

    /// Takes a line that the plugin logged or wrote to standard error.
    fn log(&self, plugin: &str, request: Option<&RequestId>, level: LogLevel, line: &str) {
        let request_id = request.map(RequestId::as_str);
        match level {
            LogLevel::Debug => tracing::debug!(plugin, request_id, "{line}"),
            LogLevel::Info => tracing::info!(plugin, request_id, "{line}"),
            LogLevel::Warn => tracing::warn!(plugin, request_id, "{line}"),
            LogLevel::Error => tracing::error!(plugin, request_id, "{line}"),
        }
    }
}

/// Keys that one plugin may keep.
pub const STATE_KEYS_MAX: usize = 1024;
/// Longest key in bytes.
pub const STATE_KEY_BYTES_MAX: usize = 256;
/// Longest value in bytes; also the longest message body and small file.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

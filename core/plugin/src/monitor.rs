//! The monitor plugin: watches metric rows, object changes and timers; emits messages.

use crate::PluginError;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// One data source's value at one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricRow {
    /// Class of the object it belongs to: `VM`, `SR`, `host`.
    pub class: String,
    /// The object's uuid.
    pub uuid: String,
    /// The data source, e.g. `vbd_xvda_write`; the names are those of xcp-rrdd.
    pub name: String,
    /// In SI units (bytes per second, seconds, a fraction of one); finite.
    pub value: f64,
}

/// What a monitor is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A step of the metrics stream.
    Metrics {
        /// Seconds since the Unix epoch.
        time_s: f64,
        /// Every row of this step.
        rows: Vec<MetricRow>,
    },
    /// An object of a class that the manifest names was added, changed or deleted.
    Object {
        /// XenAPI class.
        class: String,
        /// The object's uuid.
        uuid: String,
        /// `add`, `mod` or `del`.
        operation: String,
        /// The record as a JSON object; empty for `del`.
        record_json: String,
    },
    /// A timer that the plugin set has run out.
    Timer {
        /// The name it was set under.
        name: String,
    },
}

/// What a monitor plugin can do. It answers by host calls: messages, log, key-value state.
#[async_trait]
pub trait MonitorPlugin: Send + Sync {
    /// Hands over one event. State that must last goes to the host's key-value store.
    async fn handle(&self, event: &Event) -> Result<(), PluginError>;
}

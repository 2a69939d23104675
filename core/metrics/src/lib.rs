//! Data sources sampled on a fixed step, handed to whoever watches the stream.
//!
//! ```text
//!   Source::read ──> Reading (gauge or counter) ──> Derivation ──> Row (SI units) ──> Step
//!   data path, hypervisor, host                     rates from counters              watch channel
//! ```
//!
//! The stream carries only the newest step: a slow watcher misses steps, it never slows the host.
//! Round-robin archives and their wire formats will read the same stream.

#![forbid(unsafe_code)]

mod derive;
mod stream;

pub use derive::Derivation;
pub use stream::{Source, Stream, run};

use serde::{Deserialize, Serialize};

/// How the values of a data source turn into rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The value as it is.
    Gauge,
    /// A counter that only grows: the row is its growth per second. A counter that fell has been
    /// reset (its process is new), so its own value is the growth.
    Derive,
}

/// Which object a data source belongs to and what it is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// XenAPI class: `VM`, `SR` or `host`.
    pub class: &'static str,
    /// The object's uuid.
    pub uuid: String,
    /// Name of the data source; those that xcp-rrdd has are spelled as there (`vbd_xvda_write`).
    pub name: String,
}

/// What a source says at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Whose value it is.
    pub key: Key,
    /// How to turn it into a row.
    pub kind: Kind,
    /// In SI units: bytes, seconds, a fraction of one.
    pub value: f64,
}

/// One data source's value over one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Whose value it is.
    pub key: Key,
    /// In SI units; per second for counters.
    pub value: f64,
}

/// Every row of one step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// Seconds since the Unix epoch.
    pub time_s: f64,
    /// In order of their keys.
    pub rows: Vec<Row>,
}

//! What a plugin can do, the checked handles callers hold, and the supervisor of plugin processes.
//!
//! * [`StoragePlugin`] and [`MonitorPlugin`] are what a carrier implements. `wit/v0` is their
//!   source; each method's contract is written there too.
//! * [`Storage`] and [`Monitor`] are the only things the rest of the daemon holds: validation,
//!   permits, deadlines, spans and error context are written once, in them.
//! * [`PluginHost`] loads plugins. Nothing in this crate runs plugin code: that happens in a
//!   process `xylem-plugin` per plugin, which speaks [`protocol`] over its standard input.
//!
//! ```text
//!  Storage | Monitor      checks, permits, deadline, span         (any number of clones)
//!    └ ProcessCalls       the traits as messages
//!        └ Supervisor     one task: pending calls, deadlines, restart, back-off
//!            ├ Asks       host functions: grants, rates, sizes -> HostServices
//!            └ Link       one process: socket, standard error, end
//! ```
//!
//! | what breaks | the caller sees | and then |
//! |---|---|---|
//! | the plugin says no | its own kind and words | nothing |
//! | trap, panic, memory limit of a component | `crashed` | the instance is dropped |
//! | endless loop of a component | `timeout` | the instance is dropped |
//! | crash, abort, memory limit of a shared object | `crashed` | the process is restarted |
//! | endless loop of a shared object | `timeout` | the process is ended and restarted |
//! | an answer of another shape, a lie | `incompatible` | nothing |
//! | a frame of another shape | `incompatible` | the process is ended and restarted |

#![forbid(unsafe_code)]

mod artifact;
mod asks;
mod calls;
#[cfg(feature = "testing")]
pub mod conformance;
mod error;
mod handle;
mod host;
mod manifest;
mod monitor;
mod process;
pub mod protocol;
mod request;
mod services;
mod storage;
mod supervisor;

pub use error::{PluginError, PluginErrorKind};
pub use handle::{CallLimits, Monitor, Storage};
pub use host::{HostConfig, LoadedPlugin, PluginHost};
pub use manifest::{
    Digests, Grants, Identity, Limits, Manifest, ManifestError, PluginKind, Wishes,
    interface_is_served, is_plain_path,
};
pub use monitor::{Event, MetricRow, MonitorPlugin};
pub use protocol::Carrier;
pub use request::Request;
pub use services::{
    HostServices, LogLevel, Message, STATE_KEY_BYTES_MAX, STATE_KEYS_MAX, ServiceError,
    TEXT_BYTES_MAX,
};
pub use storage::{
    Capacity, Container, DeviceConfig, Location, PluginInfo, Powers, ProbeResult, SrHandle, SrStat,
    StoragePlugin,
};

//! What a plugin can do, the checked handle callers hold, and the supervisor of plugin processes.
//!
//! * [`StoragePlugin`] and [`MonitorPlugin`] are what a carrier implements (component, shared
//!   object, script). `wit/v0` is their source; each method's contract is written there too.
//! * [`Storage`] is the only thing the rest of the daemon holds: validation, permits, deadlines,
//!   spans and error context are written once, in it.
//! * Nothing in this crate runs plugin code: that happens in the process `xylem-plugin`.

#![forbid(unsafe_code)]

mod error;
mod monitor;
mod storage;

pub use error::{PluginError, PluginErrorKind};
pub use monitor::{Event, MetricRow, MonitorPlugin};
pub use storage::{
    Capacity, Container, DeviceConfig, Location, PluginInfo, Powers, ProbeResult, SrHandle, SrStat,
    StoragePlugin,
};

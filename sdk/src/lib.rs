//! Write a Xylem plugin: one trait, one macro, two targets.
//!
//! A plugin is a crate of type `cdylib` that implements [`storage::StorageManager`] or
//! [`monitor::Monitor`] and names its type to `export_plugin!` of the same module. The unchanged
//! source builds to a component (`cargo build --target wasm32-wasip2`) and to a shared object
//! (`cargo build`). Code is blocking; what the host offers is in [`host`], [`files`],
//! [`messages`] and [`timers`], each as far as `plugin.toml` and the administrator grant it.
//!
//! Contract: a call may come twice, a process may end between any two calls, and every call has a
//! deadline. Keep what must last in the storage itself or in [`host::state_put`].

#[doc(hidden)]
pub mod bindings;
mod config;
mod error;
pub mod monitor;
#[doc(hidden)]
#[cfg(not(target_arch = "wasm32"))]
pub mod native;
pub mod storage;

pub use bindings::host_services::xylem::plugin::types::{Error, ErrorKind, PluginInfo};
pub use bindings::host_services::xylem::plugin::{files, host, messages, timers};
pub use config::Config;

/// What plugin functions and host functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// Writes one line to the daemon's log: `log!(Warn, "{path} is {percent} % full")`.
#[macro_export]
macro_rules! log {
    ($level:ident, $($text:tt)*) => {
        $crate::host::log($crate::host::Level::$level, &::std::format!($($text)*))
    };
}

/// Makes a [`PluginInfo`] whose version is that of the crate it stands in.
#[macro_export]
macro_rules! plugin_info {
    (
        driver: $driver:expr,
        name: $name:expr,
        description: $description:expr,
        vendor: $vendor:expr,
        copyright: $copyright:expr,
        configuration: { $($key:literal: $meaning:literal),* $(,)? } $(,)?
    ) => {
        $crate::PluginInfo {
            driver: ::std::convert::Into::into($driver),
            name: ::std::convert::Into::into($name),
            description: ::std::convert::Into::into($description),
            vendor: ::std::convert::Into::into($vendor),
            copyright: ::std::convert::Into::into($copyright),
            version: ::std::convert::Into::into(::std::env!("CARGO_PKG_VERSION")),
            configuration: ::std::vec![
                $((::std::convert::Into::into($key), ::std::convert::Into::into($meaning))),*
            ],
        }
    };
}

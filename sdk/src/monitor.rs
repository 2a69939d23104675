//! Monitors: the trait, its types and `export_plugin!`.

use crate::Result;
use crate::bindings::monitor_plugin::exports::xylem::plugin as exports;
use std::marker::PhantomData;

pub use crate::bindings::monitor_plugin::exports::xylem::plugin::monitor::{
    Event, MetricRow, MetricsStep, ObjectChange, TimerEvent,
};
pub use crate::messages::Message;
pub use crate::{__export_monitor as export_plugin, PluginInfo, plugin_info};

/// An alert or another watcher: takes events, answers by host calls.
pub trait Monitor {
    /// Says who the plugin is, from constants: see [`plugin_info!`](crate::plugin_info).
    fn query() -> PluginInfo;

    /// Takes one event. Events come one at a time and in order.
    ///
    /// # Errors
    ///
    /// Any; the daemon logs it and goes on with the next event.
    fn handle(event: Event) -> Result<()>;
}

/// Carries a [`Monitor`] to the generated traits. For the macro only.
#[doc(hidden)]
pub struct Exported<T>(PhantomData<T>);

impl<T: Monitor> exports::query::Guest for Exported<T> {
    fn query() -> PluginInfo {
        T::query()
    }
}

impl<T: Monitor> exports::monitor::Guest for Exported<T> {
    fn handle(event: Event) -> Result<()> {
        T::handle(event)
    }
}

/// Makes a crate a monitor plugin: `export_plugin!(MyType)`, once.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_monitor {
    ($monitor:ty) => {
        $crate::__export_plugin!($monitor, monitor, monitor_plugin, __export_monitor_plugin);
    };
}

/// The one place that knows the target: exports of a component, or the symbol of a shared object.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_plugin {
    ($plugin:ty, $kind:ident, $world:ident, $export:ident) => {
        #[doc(hidden)]
        type __XylemExport = $crate::$kind::Exported<$plugin>;
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::$world::$export!(
            __XylemExport with_types_in $crate::bindings::$world
        );
        #[cfg(not(target_arch = "wasm32"))]
        #[doc(hidden)]
        #[unsafe(no_mangle)]
        pub static XYLEM_PLUGIN: $crate::native::Descriptor = $crate::native::Descriptor::new(
            $crate::bindings::$world::native::WORLD,
            $crate::bindings::$world::native::INTERFACES,
            ::std::env!("CARGO_PKG_NAME"),
            ::std::env!("CARGO_PKG_VERSION"),
            $crate::native::entry!($crate::bindings::$world::native::dispatch::<__XylemExport>),
        );
    };
}

//! The plugin to copy: an alert that says when a VM comes or goes.
//!
//! Copy this directory, give the package and `plugin.toml` the same new name and version, change
//! `handle`, then build it either way:
//!
//! ```sh
//! cargo build --release --target wasm32-wasip2   # a component
//! cargo build --release                          # a shared object
//! ```
//! For a storage manager implement `xylem_sdk::storage::StorageManager` instead; `plugins/sm-file`
//! shows one.

#![deny(unsafe_code)]

use xylem_sdk::monitor::*;
use xylem_sdk::{Result, messages};

struct Template;

impl Monitor for Template {
    fn query() -> PluginInfo {
        plugin_info! {
            driver: "plugin-template",
            name: "Template",
            description: "Says when a VM comes or goes",
            vendor: "Xylem",
            copyright: "MIT OR Apache-2.0",
            configuration: {},
        }
    }

    fn handle(event: Event) -> Result<()> {
        let Event::Object(change) = event else {
            return Ok(());
        };
        if change.operation == "mod" {
            return Ok(());
        }
        messages::create(&Message {
            name: "VM_CAME_OR_WENT".to_owned(),
            priority: 5,
            class: change.class,
            uuid: change.uuid,
            body: change.operation,
        })
    }
}

export_plugin!(Template);

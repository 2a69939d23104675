//! `SM`: the storage plugins that are loaded, one record each.

use crate::api::Api;
use crate::error::ApiError;
use database::{Ref, Value};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// What the core does for every plugin that keeps byte containers.
const FEATURES: [&str; 14] = [
    "SR_PROBE",
    "SR_UPDATE",
    "SR_SCAN",
    "VDI_CREATE",
    "VDI_DELETE",
    "VDI_ATTACH",
    "VDI_DETACH",
    "VDI_ACTIVATE",
    "VDI_DEACTIVATE",
    "VDI_CLONE",
    "VDI_SNAPSHOT",
    "VDI_RESIZE",
    "VDI_UPDATE",
    "VDI_REVERT",
];

impl Api {
    /// Says whether a plugin for this SR type is loaded.
    pub(crate) fn has_driver(&self, driver: &str) -> bool {
        self.services
            .drivers
            .iter()
            .any(|loaded| loaded.driver == driver)
    }

    /// Makes a record per loaded plugin and removes those of plugins that are gone.
    pub(crate) async fn make_drivers(&self) -> Result<(), ApiError> {
        self.write(|tx| {
            let known: BTreeMap<String, Ref> = tx
                .rows("SM")
                .filter_map(|row| {
                    Some((
                        row.get("type").as_str()?.to_owned(),
                        row.reference().clone(),
                    ))
                })
                .collect();
            let loaded: BTreeSet<_> = self
                .services
                .drivers
                .iter()
                .map(|driver| driver.driver.as_str())
                .collect();
            for (driver, reference) in &known {
                if !loaded.contains(driver.as_str()) {
                    tx.remove("SM", reference)?;
                }
            }
            for info in &self.services.drivers {
                let reference = known.get(&info.driver).cloned().unwrap_or_else(Ref::random);
                if !known.contains_key(&info.driver) {
                    let uuid = Value::String(Uuid::new_v4().to_string());
                    tx.create("SM", reference.clone(), [("uuid", uuid)])?;
                }
                for (field, value) in fields(info) {
                    tx.set("SM", &reference, field, value)?;
                }
            }
            Ok(())
        })
        .await
    }
}

fn fields(info: &plugin::PluginInfo) -> Vec<(&'static str, Value)> {
    let text = |text: &str| Value::from(text);
    let keys = info.configuration.iter();
    let keys = keys.map(|(key, help)| (key.clone(), Value::from(help.as_str())));
    let features = FEATURES
        .iter()
        .map(|name| ((*name).to_owned(), Value::Int(1)));
    vec![
        ("type", text(&info.driver)),
        ("name_label", text(&info.name)),
        ("name_description", text(&info.description)),
        ("vendor", text(&info.vendor)),
        ("copyright", text(&info.copyright)),
        ("version", text(&info.version)),
        ("required_api_version", text("2.0")),
        ("configuration", Value::Map(keys.collect())),
        (
            "capabilities",
            Value::Set(FEATURES.iter().map(|name| text(name)).collect()),
        ),
        ("features", Value::Map(features.collect())),
        (
            "supported_image_formats",
            Value::Set(vec![text("raw"), text("vhd")]),
        ),
    ]
}

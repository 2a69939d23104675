//! What plugins ask of the daemon: messages and their own key-value store.

use async_trait::async_trait;
use database::{Bucket, Database, Value};
use plugin::{HostServices, Message, PluginErrorKind, STATE_KEYS_MAX, ServiceError};
use std::sync::{Arc, OnceLock};
use xapi::{Api, Caller, Origin};

/// Serves plugins. Plugins are loaded before the API exists, as the API's storage needs them; a
/// message raised in between is refused as `busy`.
pub(crate) struct Services {
    state: Bucket<String>,
    api: OnceLock<Arc<Api>>,
}

impl Services {
    /// Keeps plugin state in `database`.
    pub(crate) fn new(database: &Database) -> Self {
        Self {
            state: database.bucket("plugin-state"),
            api: OnceLock::new(),
        }
    }

    /// From now on messages can be created. Called once.
    pub(crate) fn connect(&self, api: Arc<Api>) {
        drop(self.api.set(api));
    }
}

fn key_of(plugin: &str, key: &str) -> String {
    format!("{plugin}/{key}")
}

fn failed(error: impl std::fmt::Display) -> ServiceError {
    ServiceError::new(PluginErrorKind::Internal, error.to_string())
}

#[async_trait]
impl HostServices for Services {
    async fn message_create(&self, plugin: &str, message: Message) -> Result<(), ServiceError> {
        let Some(api) = self.api.get() else {
            return Err(ServiceError::new(
                PluginErrorKind::Busy,
                "the host is still starting",
            ));
        };
        tracing::info!(plugin, name = message.name, uuid = message.uuid, "message");
        let params = vec![
            Value::from(message.name),
            Value::Int(i64::from(message.priority)),
            Value::from(message.class),
            Value::from(message.uuid),
            Value::from(message.body),
        ];
        match api
            .call(&Caller::new(Origin::Internal), "message.create", params)
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if error.code() == "UUID_INVALID" => Err(ServiceError::new(
                PluginErrorKind::NotFound,
                error.to_string(),
            )),
            Err(error) => Err(failed(error)),
        }
    }

    async fn state_get(&self, plugin: &str, key: &str) -> Result<Option<String>, ServiceError> {
        self.state.get(&key_of(plugin, key)).map_err(failed)
    }

    async fn state_put(&self, plugin: &str, key: &str, value: String) -> Result<(), ServiceError> {
        let full = key_of(plugin, key);
        let is_new = self.state.get(&full).map_err(failed)?.is_none();
        if is_new {
            let prefix = key_of(plugin, "");
            let all = self.state.all().map_err(failed)?;
            if all.keys().filter(|key| key.starts_with(&prefix)).count() >= STATE_KEYS_MAX {
                let text = format!("the plugin has {STATE_KEYS_MAX} keys already");
                return Err(ServiceError::new(PluginErrorKind::NoSpace, text));
            }
        }
        self.state.put_async(&full, &value).await.map_err(failed)
    }

    async fn state_delete(&self, plugin: &str, key: &str) -> Result<(), ServiceError> {
        self.state
            .remove_async(&key_of(plugin, key))
            .await
            .map(drop)
            .map_err(failed)
    }
}

//! Loads plugins and hands out their handles.

use crate::manifest::{Grants, Manifest, PluginKind, is_name};
use crate::process::Launch;
use crate::protocol::{Carrier, Hello};
use crate::services::HostServices;
use crate::supervisor::Supervisor;
use crate::{
    CallLimits, Monitor, PluginError, PluginErrorKind, PluginInfo, Powers, Storage, artifact,
};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How plugin processes are run.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// The program `xylem-plugin`.
    pub binary: PathBuf,
    /// Where compiled components are kept; below it each plugin has a directory of its own. It
    /// must be writable by the daemon alone: what lies there is run.
    pub cache_dir: PathBuf,
    /// User and group that plugin processes run as; `None`: the daemon's own. Granted directories
    /// must then be writable by that user.
    pub run_as: Option<(u32, u32)>,
}

/// A plugin that was loaded.
#[derive(Debug, Clone)]
pub struct LoadedPlugin {
    /// Its name on this host: the manifest's, or the alias.
    pub name: String,
    /// What kind it is.
    pub kind: PluginKind,
    /// What its artifact is.
    pub carrier: Carrier,
    /// Name it serves under: of a storage plugin the SR type, or the alias.
    pub driver: String,
    /// What it says about itself.
    pub info: PluginInfo,
    /// Optional interfaces it has.
    pub powers: Powers,
    /// SHA-256 of the artifact, in hexadecimal.
    pub sha256: String,
}

enum Handle {
    Storage(Storage),
    Monitor(Monitor),
}

struct Entry {
    loaded: LoadedPlugin,
    handle: Handle,
    supervisor: Supervisor,
}

/// The plugins of this host. Dropping it ends their processes.
pub struct PluginHost {
    config: HostConfig,
    services: Arc<dyn HostServices>,
    entries: RwLock<BTreeMap<String, Entry>>,
}

impl PluginHost {
    /// Prepares to load plugins; checks that the program is there and makes the cache directory.
    ///
    /// # Errors
    ///
    /// `invalid` if there is no such program, `io` if the directory cannot be made.
    pub fn start(config: HostConfig, services: Arc<dyn HostServices>) -> Result<Self, PluginError> {
        let error = |kind, message| PluginError {
            kind,
            plugin: "host".to_owned(),
            operation: "start".to_owned(),
            message,
        };
        if !config.binary.is_file() {
            let message = format!("{} is no file", config.binary.display());
            return Err(error(PluginErrorKind::Invalid, message));
        }
        artifact::private_directory(&config.cache_dir, None).map_err(|source| {
            let message = format!("cannot make {}: {source}", config.cache_dir.display());
            error(PluginErrorKind::Io, message)
        })?;
        Ok(Self {
            config,
            services,
            entries: RwLock::default(),
        })
    }

    /// Loads one artifact (`.wasm`: a component, `.so`: a shared object), starts its process and
    /// asks it who it is.
    ///
    /// # Errors
    ///
    /// `exists` if a plugin of that name or for that driver is loaded, `invalid` for a manifest
    /// or grants that do not fit, `io`, `incompatible` if the artifact is not what the manifest
    /// says, `crashed` or `timeout` if it does not start.
    ///
    /// # Cancel safety
    ///
    /// A cancelled load leaves nothing behind.
    pub async fn load(
        &self,
        file: &Path,
        manifest: &Manifest,
        grants: &Grants,
    ) -> Result<LoadedPlugin, PluginError> {
        let name = grants
            .alias
            .clone()
            .unwrap_or_else(|| manifest.plugin.name.clone());
        let fail = |kind, message| PluginError {
            kind,
            plugin: name.clone(),
            operation: "load".to_owned(),
            message,
        };
        if !is_name(&name, 64) {
            return Err(fail(
                PluginErrorKind::Invalid,
                format!("alias {name:?} is no name"),
            ));
        }
        if self.entries.read().contains_key(&name) {
            return Err(fail(
                PluginErrorKind::Exists,
                "a plugin of this name is loaded".into(),
            ));
        }
        let settings = manifest
            .settings(grants)
            .map_err(|error| fail(PluginErrorKind::Invalid, error.to_string()))?;
        let artifact = artifact::read(file, manifest)
            .await
            .map_err(|(kind, message)| fail(kind, message))?;
        let roots = manifest.granted_files(grants);
        let cache_dir = self.config.cache_dir.join(&name);
        artifact::private_directory(&cache_dir, self.config.run_as).map_err(|error| {
            let message = format!("cannot make {}: {error}", cache_dir.display());
            fail(PluginErrorKind::Io, message)
        })?;
        let hello = Hello {
            plugin: name.clone(),
            package: manifest.plugin.name.clone(),
            version: manifest.plugin.version.clone(),
            kind: manifest.plugin.kind,
            carrier: artifact.carrier,
            roots: roots.clone(),
            settings,
            memory_bytes: u64::from(manifest.limits.memory_mib) << 20,
            calls: manifest.limits.calls,
            cache_dir: Some(cache_dir),
        };
        let launch = Launch {
            binary: self.config.binary.clone(),
            run_as: self.config.run_as,
            artifact: artifact.file,
            hello,
        };
        let may_message = manifest.grants.messages && grants.messages;
        let services = self.services.clone();
        let supervisor =
            Supervisor::start(launch, manifest.limits.clone(), may_message, services).await?;
        let limits = CallLimits {
            plugin: name.clone(),
            timeout: manifest.limits.call_timeout(),
            calls: manifest.limits.calls,
            roots,
        };
        let info = supervisor
            .checked_info(&limits, &manifest.plugin.version)
            .await?;
        let loaded = LoadedPlugin {
            name: name.clone(),
            kind: manifest.plugin.kind,
            carrier: artifact.carrier,
            driver: grants.alias.clone().unwrap_or_else(|| info.driver.clone()),
            info,
            powers: supervisor.powers(),
            sha256: artifact.sha256,
        };
        let handle = match manifest.plugin.kind {
            PluginKind::Storage => {
                Handle::Storage(Storage::new(Arc::new(supervisor.calls()), limits))
            }
            PluginKind::Monitor => {
                let classes = manifest.grants.objects.clone();
                let monitor = Monitor::new(Arc::new(supervisor.calls()), limits, classes);
                supervisor.deliver_timers_to(monitor.clone());
                Handle::Monitor(monitor)
            }
        };
        let mut entries = self.entries.write();
        let taken = entries
            .values()
            .any(|other| other.loaded.kind == loaded.kind && other.loaded.driver == loaded.driver);
        if taken || entries.contains_key(&name) {
            let message = format!("driver {} is served by another plugin", loaded.driver);
            return Err(fail(PluginErrorKind::Exists, message));
        }
        tracing::info!(
            plugin = name,
            driver = loaded.driver,
            carrier = ?loaded.carrier,
            sha256 = loaded.sha256,
            "plugin loaded"
        );
        entries.insert(
            name,
            Entry {
                loaded: loaded.clone(),
                handle,
                supervisor,
            },
        );
        Ok(loaded)
    }

    /// Returns the storage plugin that serves SRs of this type.
    pub fn storage(&self, driver: &str) -> Option<Storage> {
        let entries = self.entries.read();
        entries.values().find_map(|entry| match &entry.handle {
            Handle::Storage(storage) if entry.loaded.driver == driver => Some(storage.clone()),
            _ => None,
        })
    }

    /// Returns every monitor.
    pub fn monitors(&self) -> Vec<Monitor> {
        let entries = self.entries.read();
        let monitors = entries.values().filter_map(|entry| match &entry.handle {
            Handle::Monitor(monitor) => Some(monitor.clone()),
            Handle::Storage(_) => None,
        });
        monitors.collect()
    }

    /// Describes every loaded plugin, by name.
    pub fn loaded(&self) -> Vec<LoadedPlugin> {
        self.entries
            .read()
            .values()
            .map(|entry| entry.loaded.clone())
            .collect()
    }

    /// Returns the process id of a plugin, if its process runs at the moment.
    pub fn process_id(&self, name: &str) -> Option<u32> {
        self.entries.read().get(name)?.supervisor.process_id()
    }

    /// Ends every plugin process: each has two seconds to finish what it does.
    pub async fn shutdown(&self) {
        let entries = std::mem::take(&mut *self.entries.write());
        for entry in entries.into_values() {
            entry.supervisor.stop().await;
        }
    }
}

impl std::fmt::Debug for PluginHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PluginHost")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

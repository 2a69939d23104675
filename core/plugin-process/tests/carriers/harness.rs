//! A plugin host with services that remember, and the plugins that were built.

use async_trait::async_trait;
use parking_lot::Mutex;
use plugin::{
    Carrier, DeviceConfig, Grants, HostConfig, HostServices, LoadedPlugin, LogLevel, Manifest,
    Message, PluginError, PluginErrorKind, PluginHost, ServiceError, SrHandle, Storage,
    StoragePlugin,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use units::RequestId;

/// Both carriers; every case that can runs on each.
pub(crate) const CARRIERS: [Carrier; 2] = [Carrier::Component, Carrier::SharedObject];

/// What plugins asked of the daemon.
#[derive(Default)]
pub(crate) struct Services {
    pub(crate) messages: Mutex<Vec<Message>>,
    pub(crate) state: Mutex<BTreeMap<(String, String), String>>,
    pub(crate) lines: Mutex<Vec<(Option<RequestId>, String)>>,
}

#[async_trait]
impl HostServices for Services {
    async fn message_create(&self, _plugin: &str, message: Message) -> Result<(), ServiceError> {
        self.messages.lock().push(message);
        Ok(())
    }

    async fn state_get(&self, plugin: &str, key: &str) -> Result<Option<String>, ServiceError> {
        Ok(self
            .state
            .lock()
            .get(&(plugin.to_owned(), key.to_owned()))
            .cloned())
    }

    async fn state_put(&self, plugin: &str, key: &str, value: String) -> Result<(), ServiceError> {
        self.state
            .lock()
            .insert((plugin.to_owned(), key.to_owned()), value);
        Ok(())
    }

    async fn state_delete(&self, plugin: &str, key: &str) -> Result<(), ServiceError> {
        self.state
            .lock()
            .remove(&(plugin.to_owned(), key.to_owned()));
        Ok(())
    }

    fn log(&self, _plugin: &str, request: Option<&RequestId>, _level: LogLevel, line: &str) {
        self.lines.lock().push((request.cloned(), line.to_owned()));
    }
}

/// A host, a directory that is granted and everything else that a case needs.
pub(crate) struct Bench {
    pub(crate) host: PluginHost,
    pub(crate) services: Arc<Services>,
    pub(crate) granted: PathBuf,
    directory: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("xylem-plugin-")
            .tempdir()
            .unwrap();
        let granted = directory.path().join("granted");
        std::fs::create_dir(&granted).unwrap();
        let services = Arc::new(Services::default());
        let config = HostConfig {
            binary: env!("CARGO_BIN_EXE_xylem-plugin").into(),
            cache_dir: directory.path().join("cache"),
            run_as: None,
        };
        let host = PluginHost::start(config, services.clone()).unwrap();
        Self {
            host,
            services,
            granted,
            directory,
        }
    }

    /// A path beside the granted directory.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn grants(&self) -> Grants {
        Grants {
            files: vec![self.granted.clone()],
            messages: true,
            ..Grants::default()
        }
    }

    pub(crate) async fn load(
        &self,
        package: &str,
        carrier: Carrier,
    ) -> Result<LoadedPlugin, PluginError> {
        let file = artifact(package, carrier);
        self.host
            .load(&file, &manifest(package), &self.grants())
            .await
    }

    /// Loads the hostile storage plugin.
    pub(crate) async fn hostile(&self, carrier: Carrier) -> Hostile {
        let loaded = self.load("hostile-storage", carrier).await.unwrap();
        Hostile {
            storage: self.host.storage(&loaded.driver).unwrap(),
            carrier,
        }
    }

    /// Waits until a condition holds.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..500 {
            if condition(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not within ten seconds: {what}");
    }
}

/// The hostile storage plugin.
pub(crate) struct Hostile {
    pub(crate) storage: Storage,
    pub(crate) carrier: Carrier,
}

impl Hostile {
    /// Does what `mode` says; returns the plugin's words.
    pub(crate) async fn misbehave(
        &self,
        mode: &str,
        argument: &str,
    ) -> Result<String, PluginError> {
        let handle = SrHandle(format!("{mode} {argument}"));
        self.storage
            .sr_stat(&handle)
            .await
            .map(|stat| stat.health.unwrap_err())
    }

    /// Checks that a call ends in this error, and that the next one is served.
    pub(crate) async fn breaks(&self, mode: &str, kind: PluginErrorKind, word: &str) {
        let error = self.misbehave(mode, "").await.unwrap_err();
        let carrier = self.carrier;
        assert_eq!(error.kind, kind, "{mode} on {carrier:?}: {error}");
        assert!(
            error.to_string().contains(word),
            "{mode} on {carrier:?}: {error}"
        );
        assert_eq!(error.operation, "sr.stat");
        assert_eq!(
            self.misbehave("well", "").await.unwrap(),
            "well",
            "{mode} on {carrier:?}"
        );
    }
}

pub(crate) fn config(pairs: &[(&str, &str)]) -> DeviceConfig {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap()
        .to_path_buf()
}

/// Folder of a package below `plugins/` or `tests/fixtures/`; its artifacts have that name.
fn folder(package: &str) -> &str {
    if package == "plugin-template" {
        "template"
    } else {
        package
    }
}

/// The manifest of a package of `plugins/` or `tests/fixtures/`.
pub(crate) fn manifest(package: &str) -> Manifest {
    let file = ["plugins", "tests/fixtures"]
        .map(|area| tree().join(area).join(folder(package)).join("plugin.toml"))
        .into_iter()
        .find(|file| file.is_file());
    Manifest::read(&file.unwrap()).unwrap()
}

/// The artifact that `cargo xtask plugins` made of a package; fixtures lie in a folder below.
pub(crate) fn artifact(package: &str, carrier: Carrier) -> PathBuf {
    let name = folder(package).replace('-', "_");
    let file = match carrier {
        Carrier::Component => format!("{name}.wasm"),
        Carrier::SharedObject => format!("lib{name}.so"),
    };
    let beside_target = || {
        // target/debug/deps/this -> target/plugins
        let this = std::env::current_exe().unwrap();
        this.ancestors().nth(3).unwrap().join("plugins")
    };
    let plugins = std::env::var_os("XYLEM_PLUGINS_DIR").map_or_else(beside_target, PathBuf::from);
    let places = [plugins.join(&file), plugins.join("fixtures").join(&file)];
    places
        .into_iter()
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            let plugins = plugins.display();
            panic!("no {file} in {plugins}: run `cargo xtask plugins`, or set XYLEM_PLUGINS_DIR")
        })
}

//! The wiring: makes the parts of a host, introduces them to each other, and takes them down.
//!
//! ```text
//! start   database -> plugins -> storage (finds the data paths that run) -> hypervisor
//!         -> xenops (adopts the domains that run) -> API -> listeners -> metrics, monitors
//! stop    listeners, calls in flight -> metrics, monitors -> xenops -> plugins -> database
//! ```
//!
//! Start is also recovery: there is no other path after a crash, and nothing to do at a clean stop
//! that recovery could not do. Data paths and domains are not taken down.

use crate::config::{Backend, Child, Config, Plugin};
use crate::disks::StorageDisks;
use crate::services::Services;
use crate::sources::{DataPathSource, DomainSource, HostSource};
use crate::{merges, monitors, notify};
use anyhow::{Context, Result};
use database::Database;
use datapath::{Supervisor, SupervisorConfig};
use hypervisor::{Hypervisor, Simulator};
use plugin::{HostConfig, Manifest, PluginHost, PluginInfo, PluginKind, StoragePlugin};
use qemu::{Qemu, QemuConfig};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use storage::{DataPaths, Plugins, StorageConfig, StorageManager, Tapdisks};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use units::HostUuid;
use xapi::{Api, ApiConfig, HttpServer, Listener, Model, Role};
use xenops::{Xenops, XenopsConfig};

/// A host that runs.
pub(crate) struct Running {
    api: Arc<Api>,
    server: HttpServer,
    xenops: Xenops,
    plugins: Arc<PluginHost>,
    work: TaskTracker,
    stop: CancellationToken,
}

/// Storage plugins by SR type, as the storage manager asks for them.
struct LoadedPlugins(Arc<PluginHost>);

impl Plugins for LoadedPlugins {
    fn storage(&self, driver: &str) -> Option<Arc<dyn StoragePlugin>> {
        Some(Arc::new(self.0.storage(driver)?))
    }
}

/// Starts a host. What it had started ends with an error's return, except data paths and domains.
pub(crate) async fn start(config: Config) -> Result<Running> {
    make_directories(&config)?;
    let database = open_database(&config)?;
    let host_uuid = host_uuid(&database)?;
    let bin_dir = bin_dir(&config)?;

    let services = Arc::new(Services::new(&database));
    let plugins = Arc::new(start_plugins(&config, &bin_dir, services.clone()).await?);
    let data_paths: Arc<dyn DataPaths> = Arc::new(data_paths(&config, &bin_dir));
    let storage = StorageManager::open(
        StorageConfig {
            boot_id: boot_id()?,
        },
        &database,
        Arc::new(LoadedPlugins(plugins.clone())),
        data_paths.clone(),
    )
    .await
    .context("starting the storage manager")?;

    let hypervisor = open_hypervisor(&config).await?;
    let disks = Arc::new(StorageDisks(storage.clone()));
    let xenops = Xenops::open(XenopsConfig::default(), hypervisor, &database, disks)
        .await
        .context("starting the domain manager")?;

    let drivers = storage_drivers(&plugins);
    let below = xapi::Services {
        storage: storage.clone(),
        xenops: xenops.clone(),
        drivers,
    };
    let api = Api::open(database.clone(), api_config(&config, host_uuid), below).await?;
    make_administrator(&api, &config.paths.state_dir).await?;
    services.connect(api.clone());
    let server = HttpServer::serve(listeners(&config).await?, &api);

    let (work, stop) = (TaskTracker::new(), CancellationToken::new());
    let sources: Vec<Arc<dyn metrics::Source>> = vec![
        Arc::new(HostSource(host_uuid)),
        Arc::new(DomainSource(xenops.clone())),
        Arc::new(DataPathSource {
            storage: storage.clone(),
            data_paths,
        }),
    ];
    let stream = metrics::run(sources, config.metrics.step(), stop.clone());
    work.spawn(monitors::feed_metrics(plugins.clone(), stream));
    work.spawn(monitors::feed_objects(
        plugins.clone(),
        database,
        stop.clone(),
    ));
    work.spawn(merges::run(
        storage,
        api.clone(),
        config.storage.merge_after(),
        stop.clone(),
    ));
    tell_adoption(&work, &xenops);
    notify::notify("READY=1");
    Ok(Running {
        api,
        server,
        xenops,
        plugins,
        work,
        stop,
    })
}

impl Running {
    /// Stops in order; whether everything ended within `limit`.
    pub(crate) async fn stop(self, limit: Duration) -> bool {
        notify::notify("STOPPING=1");
        let drained = tokio::time::timeout(limit, async {
            self.api.drain().await;
            self.server.ended().await;
            self.stop.cancel();
            self.work.close();
            self.work.wait().await;
            self.xenops.close().await;
        })
        .await
        .is_ok();
        self.plugins.shutdown().await;
        drained
    }
}

fn make_directories(config: &Config) -> Result<()> {
    let paths = &config.paths;
    for dir in [&paths.state_dir, &paths.run_dir, &paths.log_dir] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("making {}", dir.display()))?;
    }
    if let Some(parent) = config.api.unix_socket.as_deref().and_then(Path::parent) {
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    }
    Ok(())
}

fn open_database(config: &Config) -> Result<Database> {
    let file = config.paths.state_dir.join("xylem.db");
    let schema = Model::shared().database_schema();
    Database::open(&file, schema).with_context(|| format!("opening {}", file.display()))
}

/// This host's uuid: made once, kept in the database.
fn host_uuid(database: &Database) -> Result<HostUuid> {
    let bucket = database.bucket::<HostUuid>("daemon");
    if let Some(uuid) = bucket.get("host-uuid")? {
        return Ok(uuid);
    }
    let uuid = HostUuid::random();
    bucket.put("host-uuid", &uuid)?;
    Ok(uuid)
}

fn boot_id() -> Result<String> {
    let file = "/proc/sys/kernel/random/boot_id";
    let id = fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
    Ok(id.trim().to_owned())
}

fn bin_dir(config: &Config) -> Result<PathBuf> {
    if let Some(dir) = &config.paths.bin_dir {
        return Ok(dir.clone());
    }
    let exe = std::env::current_exe().context("finding this program")?;
    Ok(exe.parent().map(Path::to_path_buf).unwrap_or_default())
}

fn run_as(child: &Child) -> Option<(u32, u32)> {
    child.run_as.map(|ids| (ids.uid, ids.gid))
}

/// Whom the data path becomes when nothing is said: it opens no file, so it needs to be nobody in
/// particular. A daemon that is not root cannot make it anybody else.
fn nobody() -> Option<(u32, u32)> {
    /// `nobody` and `nogroup` of Debian; the kernel's overflow uid.
    const NOBODY: u32 = 65_534;
    nix::unistd::geteuid().is_root().then_some((NOBODY, NOBODY))
}

/// Loads every plugin of the configuration. One that cannot be loaded is an error in the log, not
/// of the host: its SRs are unavailable, the others are not.
async fn start_plugins(
    config: &Config,
    bin_dir: &Path,
    services: Arc<Services>,
) -> Result<PluginHost> {
    let host_config = HostConfig {
        binary: bin_dir.join("xylem-plugin"),
        cache_dir: config.paths.state_dir.join("plugin-cache"),
        run_as: run_as(&config.plugin_process),
    };
    let plugins = PluginHost::start(host_config, services).context("starting the plugin host")?;
    for wanted in &config.plugin {
        if let Err(error) = load(&plugins, wanted).await {
            tracing::error!(path = %wanted.path.display(), "plugin not loaded: {error:#}");
        }
    }
    Ok(plugins)
}

async fn load(plugins: &PluginHost, wanted: &Plugin) -> Result<()> {
    let file = wanted
        .manifest
        .clone()
        .unwrap_or_else(|| manifest_beside(&wanted.path));
    let manifest = Manifest::read(&file).with_context(|| format!("in {}", file.display()))?;
    plugins
        .load(&wanted.path, &manifest, &wanted.grants)
        .await?;
    Ok(())
}

/// `sm_file.toml` for `sm_file.wasm` and for `libsm_file.so`.
fn manifest_beside(plugin: &Path) -> PathBuf {
    let stem = plugin
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    let is_library = plugin.extension().is_some_and(|suffix| suffix == "so");
    let name = stem
        .strip_prefix("lib")
        .filter(|_| is_library)
        .unwrap_or(stem);
    plugin.with_file_name(format!("{name}.toml"))
}

/// What becomes an `SM` record each: named as it serves, which an alias may have changed.
fn storage_drivers(plugins: &PluginHost) -> Vec<PluginInfo> {
    let loaded = plugins
        .loaded()
        .into_iter()
        .filter(|plugin| plugin.kind == PluginKind::Storage);
    loaded
        .map(|plugin| PluginInfo {
            driver: plugin.driver,
            ..plugin.info
        })
        .collect()
}

fn data_paths(config: &Config, bin_dir: &Path) -> Tapdisks {
    Tapdisks::new(Supervisor::new(SupervisorConfig {
        binary: bin_dir.join("xylem-tapdisk"),
        run_dir: config.paths.run_dir.join("tapdisk"),
        log_dir: config.paths.log_dir.clone(),
        run_as: run_as(&config.data_path).or_else(nobody),
    }))
}

async fn open_hypervisor(config: &Config) -> Result<Arc<dyn Hypervisor>> {
    let run_dir = &config.paths.run_dir;
    Ok(match config.hypervisor.backend {
        Backend::Qemu => {
            let opened = Qemu::open(QemuConfig::new(run_dir.join("qemu"))).await;
            Arc::new(opened.context("starting the hypervisor back end qemu")?)
        }
        Backend::Simulator => {
            let opened = Simulator::open(run_dir.join("simulator.json"));
            Arc::new(opened.context("starting the simulator")?)
        }
    })
}

fn api_config(config: &Config, host_uuid: HostUuid) -> ApiConfig {
    let address = config.api.https.iter().chain(&config.api.http).next();
    ApiConfig {
        host_uuid,
        hostname: config.host.name_label.clone(),
        address: address.map_or_else(
            || "127.0.0.1".to_owned(),
            |address| address.ip().to_string(),
        ),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        guest_kernel_dirs: config.hypervisor.guest_kernel_dirs.clone(),
    }
}

/// Gives root a password at the first start and leaves it where only root finds it.
async fn make_administrator(api: &Api, state_dir: &Path) -> Result<()> {
    if api.has_local_user("root")? {
        return Ok(());
    }
    let password = uuid::Uuid::new_v4().simple().to_string();
    let file = state_dir.join("initial-password");
    // The file first: a crash in between leaves a file that is written again, not a lost password.
    write_private(&file, &password).with_context(|| format!("writing {}", file.display()))?;
    api.set_local_password("root", &password, Role::PoolAdmin)
        .await?;
    tracing::info!(file = %file.display(), "root's first password was made");
    Ok(())
}

fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::File::options();
    let mut file = options
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(file)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

async fn listeners(config: &Config) -> Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for address in &config.api.http {
        let bound = Listener::tcp(*address).await;
        listeners.push(bound.with_context(|| format!("listening on http {address}"))?);
    }
    let names = [config.host.name_label.clone(), "localhost".to_owned()];
    for address in &config.api.https {
        let bound = Listener::tls(*address, &config.paths.state_dir, &names).await;
        listeners.push(bound.with_context(|| format!("listening on https {address}"))?);
    }
    if let Some(path) = &config.api.unix_socket {
        let bound = Listener::unix(path).await;
        listeners.push(bound.with_context(|| format!("listening on {}", path.display()))?);
    }
    Ok(listeners)
}

fn tell_adoption(work: &TaskTracker, xenops: &Xenops) {
    let xenops = xenops.clone();
    work.spawn(async move {
        let adoption = xenops.adopt().await;
        tracing::info!(?adoption, "domains that were there have been looked at");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_lies_beside_either_build_of_a_plugin() {
        for plugin in ["/p/sm_file.wasm", "/p/libsm_file.so"] {
            assert_eq!(
                manifest_beside(Path::new(plugin)),
                Path::new("/p/sm_file.toml")
            );
        }
        assert_eq!(
            manifest_beside(Path::new("/p/library.wasm")),
            Path::new("/p/library.toml")
        );
    }
}

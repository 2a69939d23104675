//! A whole host for tests: the real database, storage manager, domain manager and simulator over a
//! directory. Only what moves bytes is simulated: images are descriptions, nothing serves NBD.

mod images;

use crate::api::{Api, ApiConfig, Caller, Origin};
use crate::error::ApiError;
use crate::model::Model;
use crate::services::Services;
use async_trait::async_trait;
use database::{Database, Ref, Value};
use hypervisor::{NbdTarget, Simulator};
use images::Images;
use plugin::{
    Capacity, Container, DeviceConfig, Location, PluginError, PluginErrorKind, PluginInfo, Powers,
    ProbeResult, SrHandle, SrStat, StoragePlugin,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use storage::{Access, Plugins, StorageConfig, StorageManager};
use tempfile::TempDir;
use units::{ContainerId, HostUuid, SrUuid};
use xenops::{CallContext, DiskError, DiskRef, Disks, Xenops, XenopsConfig};

/// The SR type of [`Directory`].
pub(crate) const DRIVER: &str = "dir";

/// A storage plugin in this process: containers are files in a directory.
#[derive(Debug, Clone)]
struct Directory(PathBuf);

struct Drivers(Directory);

impl Plugins for Drivers {
    fn storage(&self, driver: &str) -> Option<Arc<dyn StoragePlugin>> {
        (driver == DRIVER).then(|| Arc::new(self.0.clone()) as Arc<dyn StoragePlugin>)
    }
}

impl Directory {
    fn file(&self, sr: &SrHandle, id: &ContainerId) -> PathBuf {
        self.0.join(&sr.0).join(id.as_str())
    }

    fn container(id: &ContainerId, file: &Path) -> Result<Container, PluginError> {
        let bytes = std::fs::metadata(file)
            .map_err(|error| failed("stat", &error))?
            .len();
        Ok(Container {
            id: id.clone(),
            capacity_bytes: bytes,
            used_bytes: bytes,
        })
    }
}

fn failed(operation: &str, error: &std::io::Error) -> PluginError {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => PluginErrorKind::NotFound,
        _ => PluginErrorKind::Io,
    };
    let (plugin, operation) = (DRIVER.to_owned(), operation.to_owned());
    PluginError {
        kind,
        plugin,
        operation,
        message: error.to_string(),
    }
}

fn describe() -> PluginInfo {
    PluginInfo {
        driver: DRIVER.to_owned(),
        name: "Directory".to_owned(),
        description: "Files in a directory".to_owned(),
        vendor: "test".to_owned(),
        copyright: "none".to_owned(),
        version: "1".to_owned(),
        configuration: vec![("broken".to_owned(), "refuses to attach".to_owned())],
    }
}

#[async_trait]
impl StoragePlugin for Directory {
    fn powers(&self) -> Powers {
        Powers {
            containers: true,
            ..Powers::default()
        }
    }

    async fn query(&self) -> Result<PluginInfo, PluginError> {
        Ok(describe())
    }

    async fn sr_probe(&self, config: &DeviceConfig) -> Result<Vec<ProbeResult>, PluginError> {
        Ok(vec![ProbeResult {
            configuration: config.clone(),
            complete: true,
            sr: None,
        }])
    }

    async fn sr_create(&self, sr: SrUuid, c: &DeviceConfig) -> Result<DeviceConfig, PluginError> {
        let made = std::fs::create_dir_all(self.0.join(sr.to_string()));
        made.map(|()| c.clone())
            .map_err(|error| failed("sr.create", &error))
    }

    async fn sr_attach(&self, sr: SrUuid, c: &DeviceConfig) -> Result<SrHandle, PluginError> {
        if c.contains_key("broken") {
            return Err(failed("sr.attach", &std::io::Error::other("it is broken")));
        }
        let there = std::fs::metadata(self.0.join(sr.to_string()));
        there
            .map(|_| SrHandle(sr.to_string()))
            .map_err(|error| failed("sr.attach", &error))
    }

    async fn sr_detach(&self, _: &SrHandle) -> Result<(), PluginError> {
        Ok(())
    }

    async fn sr_destroy(&self, sr: &SrHandle) -> Result<(), PluginError> {
        std::fs::remove_dir_all(self.0.join(&sr.0)).map_err(|error| failed("sr.destroy", &error))
    }

    async fn sr_stat(&self, _: &SrHandle) -> Result<SrStat, PluginError> {
        let (total_bytes, free_bytes) = (units::TIB, units::TIB / 2);
        Ok(SrStat {
            total_bytes,
            free_bytes,
            capacity: Capacity::Grows,
            health: Ok(()),
        })
    }

    async fn container_list(&self, sr: &SrHandle) -> Result<Vec<Container>, PluginError> {
        let listed = std::fs::read_dir(self.0.join(&sr.0));
        let listed = listed.map_err(|error| failed("list", &error))?;
        let named = listed
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
        named
            .map(|(id, path)| Self::container(&id, &path))
            .collect()
    }

    async fn container_create(
        &self,
        sr: &SrHandle,
        id: &ContainerId,
        _: u64,
    ) -> Result<Container, PluginError> {
        let file = self.file(sr, id);
        let made = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&file);
        made.map_err(|error| failed("create", &error))?;
        Self::container(id, &file)
    }

    async fn container_remove(&self, sr: &SrHandle, id: &ContainerId) -> Result<(), PluginError> {
        match std::fs::remove_file(self.file(sr, id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(failed("remove", &error))
            }
            _ => Ok(()),
        }
    }

    async fn container_rename(
        &self,
        sr: &SrHandle,
        from: &ContainerId,
        to: &ContainerId,
    ) -> Result<(), PluginError> {
        std::fs::rename(self.file(sr, from), self.file(sr, to))
            .map_err(|error| failed("rename", &error))
    }

    async fn container_grow(
        &self,
        sr: &SrHandle,
        id: &ContainerId,
        _: u64,
    ) -> Result<Container, PluginError> {
        Self::container(id, &self.file(sr, id))
    }

    async fn container_locate(
        &self,
        sr: &SrHandle,
        id: &ContainerId,
    ) -> Result<Location, PluginError> {
        Ok(Location::File(self.file(sr, id)))
    }
}

/// Gives simulated domains the disks of the storage manager.
struct StorageDisks(StorageManager);

fn context(call: &CallContext) -> storage::CallContext {
    storage::CallContext::new(call.request_id.clone())
}

#[async_trait]
impl Disks for StorageDisks {
    async fn attach(&self, call: &CallContext, disk: &DiskRef) -> Result<NbdTarget, DiskError> {
        let access = match disk.access {
            hypervisor::Access::ReadOnly => Access::ReadOnly,
            hypervisor::Access::ReadWrite => Access::ReadWrite,
        };
        let key = format!("vm-{}", disk.vm);
        let at = self
            .0
            .attach(&context(call), &disk.dp, disk.sr, disk.vdi, &key, access)
            .await?;
        Ok(NbdTarget {
            socket: at.nbd.socket,
            export: at.nbd.export,
        })
    }

    async fn activate(&self, call: &CallContext, disk: &DiskRef) -> Result<(), DiskError> {
        Ok(self
            .0
            .activate(&context(call), &disk.dp, disk.sr, disk.vdi)
            .await?)
    }

    async fn deactivate(&self, call: &CallContext, disk: &DiskRef) -> Result<(), DiskError> {
        Ok(self
            .0
            .deactivate(&context(call), &disk.dp, disk.sr, disk.vdi)
            .await?)
    }

    async fn detach(&self, call: &CallContext, disk: &DiskRef) -> Result<(), DiskError> {
        Ok(self
            .0
            .detach(&context(call), &disk.dp, disk.sr, disk.vdi)
            .await?)
    }
}

/// What outlives the daemon: the disk, the data paths, the hypervisor.
#[derive(Clone)]
pub(crate) struct World {
    dir: Arc<TempDir>,
    images: Images,
    pub(crate) simulator: Simulator,
    host_uuid: HostUuid,
}

/// A daemon's worth of interface.
pub(crate) struct Host {
    pub(crate) world: World,
    pub(crate) api: Arc<Api>,
    pub(crate) root: Caller,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            dir: Arc::new(tempfile::tempdir().unwrap()),
            images: Images::default(),
            simulator: Simulator::new(),
            host_uuid: HostUuid::random(),
        }
    }

    /// Starts a daemon in this world, as after a restart.
    pub(crate) async fn start(&self) -> Host {
        let schema = Model::shared().database_schema();
        let db = Database::open(self.dir.path().join("db"), schema).unwrap();
        let directory = Directory(self.dir.path().join("srs"));
        let storage = StorageManager::open(
            StorageConfig {
                boot_id: "boot".to_owned(),
            },
            &db,
            Arc::new(Drivers(directory)),
            Arc::new(self.images.clone()),
        )
        .await
        .unwrap();
        let disks = Arc::new(StorageDisks(storage.clone()));
        let simulator = Arc::new(self.simulator.clone());
        let xenops = Xenops::open(XenopsConfig::default(), simulator, &db, disks)
            .await
            .unwrap();
        let config = ApiConfig {
            host_uuid: self.host_uuid,
            hostname: "tester".to_owned(),
            address: "127.0.0.1".to_owned(),
            guest_kernel_dirs: vec!["/boot/guest".into()],
            version: "0.0.0".to_owned(),
        };
        let services = Services {
            storage,
            xenops,
            drivers: vec![describe()],
        };
        let api = Api::open(db, config, services).await.unwrap();
        let root = Caller::new(Origin::LocalRoot);
        let session = api.login_local_root(&root, "test").await.unwrap();
        Host {
            world: self.clone(),
            api,
            root: root.in_session(session),
        }
    }
}

impl Host {
    pub(crate) async fn new() -> Self {
        World::new().start().await
    }

    /// Ends the daemon in good order and starts another in the same world.
    pub(crate) async fn restart(self) -> Self {
        self.restart_while(|| {}).await
    }

    /// As [`Self::restart`], with something that happens while no daemon runs.
    pub(crate) async fn restart_while(self, happens: impl FnOnce()) -> Self {
        let world = self.world.clone();
        self.api.drain().await;
        self.api.services.xenops.close().await;
        let weak = Arc::downgrade(&self.api);
        drop(self);
        wait_for("the old daemon is gone", || weak.strong_count() == 0).await;
        happens();
        world.start().await
    }

    /// Sends a message as root.
    pub(crate) async fn call<const N: usize>(
        &self,
        method: &str,
        params: [Value; N],
    ) -> Result<Value, ApiError> {
        self.api.call(&self.root, method, params.to_vec()).await
    }

    /// Sends a message that must succeed.
    pub(crate) async fn ok<const N: usize>(&self, method: &str, params: [Value; N]) -> Value {
        self.call(method, params)
            .await
            .unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Sends a message that must fail, and answers code and parameters.
    pub(crate) async fn fails<const N: usize>(
        &self,
        method: &str,
        params: [Value; N],
    ) -> Vec<String> {
        match self.call(method, params).await {
            Ok(value) => panic!("{method} answered {value:?}"),
            Err(error) => error.to_list(),
        }
    }

    /// Reads a field of an object.
    pub(crate) fn get(&self, class: &str, object: &Value, field: &str) -> Value {
        let reference = object.as_ref().unwrap();
        let row = self.api.snapshot().row(class, reference);
        row.unwrap_or_else(|| panic!("{class} {reference} is gone"))
            .get(field)
    }

    /// The references of all objects of a class.
    pub(crate) fn all(&self, class: &str) -> Vec<Ref> {
        self.api
            .snapshot()
            .rows(class)
            .map(|row| row.reference().clone())
            .collect()
    }

    /// Makes an attached SR.
    pub(crate) async fn sr(&self, name: &str) -> Value {
        let host = Value::from(self.api.host());
        let params = [
            host,
            map([]),
            Value::Int(0),
            name.into(),
            "".into(),
            DRIVER.into(),
            "user".into(),
            false.into(),
            map([]),
        ];
        self.ok("SR.create", params).await
    }

    /// Makes a VDI of 4 MiB.
    pub(crate) async fn vdi(&self, sr: &Value, name: &str) -> Value {
        let record = map([
            ("name_label", name.into()),
            ("SR", sr.clone()),
            ("type", "user".into()),
            ("virtual_size", Value::Int(4 << 20)),
            ("other_config", map([("key", "value".into())])),
        ]);
        self.ok("VDI.create", [record]).await
    }

    /// Makes a halted VM.
    pub(crate) async fn vm(&self, name: &str) -> Value {
        let memory = || Value::Int(64 << 20);
        let record = map([
            ("name_label", name.into()),
            ("VCPUs_max", Value::Int(2)),
            ("VCPUs_at_startup", Value::Int(1)),
            ("memory_static_min", memory()),
            ("memory_dynamic_min", memory()),
            ("memory_dynamic_max", memory()),
            ("memory_static_max", memory()),
            ("actions_after_shutdown", "destroy".into()),
            ("actions_after_reboot", "restart".into()),
            ("actions_after_crash", "destroy".into()),
            ("affinity", Ref::null().into()),
        ]);
        self.ok("VM.create", [record]).await
    }

    /// Links a disk to a VM, read-write.
    pub(crate) async fn vbd(&self, vm: &Value, vdi: &Value) -> Value {
        self.ok(
            "VBD.create",
            [vbd_record(vm, vdi, "autodetect", "Disk", "RW")],
        )
        .await
    }
}

/// The record of a new link.
pub(crate) fn vbd_record(vm: &Value, vdi: &Value, device: &str, kind: &str, mode: &str) -> Value {
    map([
        ("VM", vm.clone()),
        ("VDI", vdi.clone()),
        ("userdevice", device.into()),
        ("type", kind.into()),
        ("mode", mode.into()),
        ("bootable", true.into()),
        ("empty", vdi.as_ref().is_none_or(Ref::is_null).into()),
    ])
}

/// A map with text keys.
pub(crate) fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Map(
        entries
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect::<BTreeMap<_, _>>(),
    )
}

/// Waits for a condition, for at most ten seconds.
pub(crate) async fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    waited.unwrap_or_else(|_| panic!("it did not happen: {what}"));
}

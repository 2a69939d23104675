//! The smallest storage plugin: containers are files in a directory. In process, so that these
//! tests need no plugin host.

use async_trait::async_trait;
use plugin::{
    Capacity, Container, DeviceConfig, Location, PluginError, PluginErrorKind, PluginInfo, Powers,
    ProbeResult, SrHandle, SrStat, StoragePlugin,
};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use storage::Plugins;
use units::{ContainerId, SrUuid};

/// SRs below one directory each, named by `device_config:location`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Directory;

impl Plugins for Directory {
    fn storage(&self, driver: &str) -> Option<Arc<dyn StoragePlugin>> {
        (driver == "directory").then(|| Arc::new(*self) as Arc<dyn StoragePlugin>)
    }
}

fn failed(operation: &str, e: &io::Error) -> PluginError {
    let kind = match e.kind() {
        io::ErrorKind::NotFound => PluginErrorKind::NotFound,
        io::ErrorKind::StorageFull => PluginErrorKind::NoSpace,
        _ => PluginErrorKind::Io,
    };
    let (plugin, operation) = ("directory".to_owned(), operation.to_owned());
    PluginError {
        kind,
        plugin,
        operation,
        message: e.to_string(),
    }
}

fn unsupported(operation: &str) -> PluginError {
    failed(operation, &io::Error::from(io::ErrorKind::Unsupported))
}

fn path(sr: &SrHandle, id: &ContainerId) -> PathBuf {
    PathBuf::from(&sr.0).join(id.as_str())
}

fn describe(sr: &SrHandle, id: &ContainerId) -> io::Result<Container> {
    let meta = std::fs::metadata(path(sr, id))?;
    let used_bytes = meta.blocks() * 512;
    Ok(Container {
        id: id.clone(),
        capacity_bytes: meta.len(),
        used_bytes,
    })
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
        Err(unsupported("query"))
    }

    async fn sr_probe(&self, _: &DeviceConfig) -> Result<Vec<ProbeResult>, PluginError> {
        Ok(Vec::new())
    }

    async fn sr_create(
        &self,
        _: SrUuid,
        config: &DeviceConfig,
    ) -> Result<DeviceConfig, PluginError> {
        std::fs::create_dir_all(&config["location"]).map_err(|e| failed("sr.create", &e))?;
        Ok(config.clone())
    }

    async fn sr_attach(&self, _: SrUuid, config: &DeviceConfig) -> Result<SrHandle, PluginError> {
        std::fs::read_dir(&config["location"]).map_err(|e| failed("sr.attach", &e))?;
        Ok(SrHandle(config["location"].clone()))
    }

    async fn sr_detach(&self, _: &SrHandle) -> Result<(), PluginError> {
        Ok(())
    }

    async fn sr_destroy(&self, sr: &SrHandle) -> Result<(), PluginError> {
        std::fs::remove_dir_all(&sr.0).map_err(|e| failed("sr.destroy", &e))
    }

    async fn sr_stat(&self, _: &SrHandle) -> Result<SrStat, PluginError> {
        let (total_bytes, free_bytes) = (1 << 40, 1 << 40);
        Ok(SrStat {
            total_bytes,
            free_bytes,
            capacity: Capacity::Grows,
            health: Ok(()),
        })
    }

    async fn container_list(&self, sr: &SrHandle) -> Result<Vec<Container>, PluginError> {
        let list = || {
            let ids = std::fs::read_dir(&sr.0)?.map(|entry| {
                let name = entry?.file_name().into_string().unwrap_or_default();
                name.parse().map_err(io::Error::other)
            });
            ids.map(|id| describe(sr, &id?)).collect::<io::Result<_>>()
        };
        list().map_err(|e| failed("containers.list", &e))
    }

    async fn container_create(
        &self,
        sr: &SrHandle,
        id: &ContainerId,
        _: u64,
    ) -> Result<Container, PluginError> {
        let create = || {
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path(sr, id))?;
            File::open(&sr.0)?.sync_all()?;
            describe(sr, id)
        };
        create().map_err(|e| failed("containers.create", &e))
    }

    async fn container_remove(&self, sr: &SrHandle, id: &ContainerId) -> Result<(), PluginError> {
        match std::fs::remove_file(path(sr, id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("containers.remove", &e)),
            _ => Ok(()),
        }
    }

    async fn container_rename(
        &self,
        _: &SrHandle,
        _: &ContainerId,
        _: &ContainerId,
    ) -> Result<(), PluginError> {
        Err(unsupported("containers.rename"))
    }

    async fn container_grow(
        &self,
        _: &SrHandle,
        _: &ContainerId,
        _: u64,
    ) -> Result<Container, PluginError> {
        Err(unsupported("containers.grow"))
    }

    async fn container_locate(
        &self,
        sr: &SrHandle,
        id: &ContainerId,
    ) -> Result<Location, PluginError> {
        describe(sr, id).map_err(|e| failed("containers.locate", &e))?;
        Ok(Location::File(path(sr, id)))
    }
}

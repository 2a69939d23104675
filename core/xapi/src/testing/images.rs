//! Data-path processes that only know what images there are. They move no bytes.

use async_trait::async_trait;
use datapath::protocol::ParentRef;
use datapath::{Access, DiskState, Error, ErrorKind, Extent, Format, ImageInfo, NewImage};
use parking_lot::Mutex;
use plugin::Location;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use storage::{DataPaths, Layer, NbdEndpoint};
use units::{DpId, RequestId};
use uuid::Uuid;

#[derive(Debug, Clone)]
struct Open {
    chain: Vec<PathBuf>,
    access: Access,
}

#[derive(Debug, Default)]
struct State {
    images: BTreeMap<PathBuf, ImageInfo>,
    processes: BTreeMap<String, BTreeMap<DpId, Open>>,
}

/// The data paths of a host; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Images(Arc<Mutex<State>>);

fn path(at: &Location) -> PathBuf {
    match at {
        Location::File(path) | Location::BlockDevice(path) => path.clone(),
    }
}

fn missing(what: impl std::fmt::Debug) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no {what:?}"))
}

impl State {
    fn image(&self, at: &PathBuf) -> Result<&ImageInfo, Error> {
        self.images.get(at).ok_or_else(|| missing(at))
    }

    fn disk(&mut self, process: &str, disk: &DpId) -> Result<&mut Open, Error> {
        let disks = self.processes.get_mut(process);
        disks
            .and_then(|disks| disks.get_mut(disk))
            .ok_or_else(|| missing(disk))
    }

    fn describe(&self, disk: &DpId, open: &Open) -> Result<DiskState, Error> {
        let layers = open.chain.iter().map(|at| self.image(at));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        Ok(DiskState {
            disk: disk.clone(),
            virtual_bytes: layers.first().map_or(0, |leaf| leaf.virtual_bytes),
            layers: layers.iter().map(|layer| layer.uuid).collect(),
            access: open.access,
            serving: Some(disk.to_string()),
            vhost_user: false,
            poisoned: None,
            stats: Default::default(),
            settings: Default::default(),
            paused: None,
            log: None,
            mirror: None,
        })
    }
}

#[async_trait]
impl DataPaths for Images {
    async fn running(&self) -> Result<Vec<String>, Error> {
        Ok(self.0.lock().processes.keys().cloned().collect())
    }

    async fn disks(&self, _: &RequestId, process: &str) -> Result<Option<Vec<DiskState>>, Error> {
        let state = self.0.lock();
        let Some(disks) = state.processes.get(process) else {
            return Ok(None);
        };
        disks
            .iter()
            .map(|(disk, open)| state.describe(disk, open))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    async fn open(
        &self,
        _: &RequestId,
        process: &str,
        disk: &DpId,
        chain: &[Layer],
        _: Extent,
        access: Access,
    ) -> Result<DiskState, Error> {
        assert!(chain.iter().all(|layer| layer.format == Format::Vhd));
        let open = Open {
            chain: chain.iter().map(|layer| path(&layer.location)).collect(),
            access,
        };
        let mut state = self.0.lock();
        let described = state.describe(disk, &open)?;
        state
            .processes
            .entry(process.to_owned())
            .or_default()
            .insert(disk.clone(), open);
        Ok(described)
    }

    async fn close(&self, _: &RequestId, process: &str, disk: &DpId) -> Result<(), Error> {
        let mut state = self.0.lock();
        if let Some(disks) = state.processes.get_mut(process) {
            disks.remove(disk);
            if disks.is_empty() {
                state.processes.remove(process);
            }
        }
        Ok(())
    }

    async fn snapshot(
        &self,
        _: &RequestId,
        process: &str,
        disk: &DpId,
        leaf: Uuid,
        container: &Location,
    ) -> Result<DiskState, Error> {
        let mut state = self.0.lock();
        let new = path(container);
        if state.image(&new)?.uuid != leaf {
            return Err(Error::new(ErrorKind::Chain, "another leaf"));
        }
        let open = state.disk(process, disk)?;
        if open.chain.first() != Some(&new) {
            open.chain.insert(0, new);
        }
        let open = open.clone();
        state.describe(disk, &open)
    }

    async fn resize(
        &self,
        _: &RequestId,
        process: &str,
        disk: &DpId,
        virtual_bytes: u64,
    ) -> Result<DiskState, Error> {
        let mut state = self.0.lock();
        let open = state.disk(process, disk)?.clone();
        if let Some(leaf) = open
            .chain
            .first()
            .and_then(|leaf| state.images.get_mut(leaf))
        {
            leaf.virtual_bytes = virtual_bytes;
        }
        state.describe(disk, &open)
    }

    fn endpoint(&self, disk: &DpId) -> Result<NbdEndpoint, Error> {
        Ok(NbdEndpoint {
            socket: "/nowhere/nbd.sock".into(),
            export: disk.to_string(),
        })
    }

    async fn image_create(
        &self,
        _: &RequestId,
        _: &str,
        container: &Location,
        image: NewImage,
        _: Option<&Location>,
    ) -> Result<ImageInfo, Error> {
        let info = ImageInfo {
            uuid: image.uuid,
            parent_uuid: image.parent.as_ref().map(|parent| parent.uuid),
            parent_name: image.parent.map(|parent| parent.name),
            virtual_bytes: image.virtual_bytes.next_multiple_of(2 << 20),
            resize_max_bytes: image.resize_max_bytes,
            allocated_blocks: 0,
            hidden: false,
            clean: true,
        };
        self.0.lock().images.insert(path(container), info.clone());
        Ok(info)
    }

    async fn image_query(
        &self,
        _: &RequestId,
        _: &str,
        container: &Location,
        _: Extent,
    ) -> Result<ImageInfo, Error> {
        self.0.lock().image(&path(container)).cloned()
    }

    async fn image_resize(
        &self,
        _: &RequestId,
        _: &str,
        container: &Location,
        virtual_bytes: u64,
        _: Extent,
    ) -> Result<ImageInfo, Error> {
        let mut state = self.0.lock();
        let at = path(container);
        let image = state.images.get_mut(&at).ok_or_else(|| missing(&at))?;
        image.virtual_bytes = virtual_bytes;
        Ok(image.clone())
    }

    async fn image_reparent(
        &self,
        _: &RequestId,
        _: &str,
        _: &Location,
        _: ParentRef,
        _: &Location,
        _: Extent,
    ) -> Result<(), Error> {
        Err(not_merged())
    }

    async fn merge(
        &self,
        _: &RequestId,
        _: &str,
        _: &[Layer],
        _: Extent,
        _: &(dyn Fn(f64) + Send + Sync),
    ) -> Result<(), Error> {
        Err(not_merged())
    }

    async fn merge_stop(&self, _: &RequestId, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn mirror_start(
        &self,
        _: &RequestId,
        _: &str,
        _: &DpId,
        _: &[Layer],
        _: Extent,
    ) -> Result<(), Error> {
        Err(not_merged())
    }

    async fn mirror_wait(
        &self,
        _: &RequestId,
        _: &str,
        _: &DpId,
        _: &(dyn Fn(f64) + Send + Sync),
    ) -> Result<(), Error> {
        Err(not_merged())
    }

    async fn mirror_prepare(&self, _: &RequestId, _: &str, _: &DpId) -> Result<(), Error> {
        Err(not_merged())
    }

    async fn mirror_switch(&self, _: &RequestId, _: &str, _: &DpId) -> Result<(), Error> {
        Err(not_merged())
    }

    async fn mirror_stop(&self, _: &RequestId, _: &str, _: &DpId) -> Result<(), Error> {
        Ok(())
    }

    async fn relink(
        &self,
        _: &RequestId,
        _: &str,
        _: &DpId,
        _: Uuid,
        _: &Layer,
        _: Option<ParentRef>,
    ) -> Result<(), Error> {
        Err(not_merged())
    }

    async fn exit(&self, _: &RequestId, process: &str) -> Result<(), Error> {
        self.0.lock().processes.remove(process);
        Ok(())
    }

    async fn copy(
        &self,
        _: &NbdEndpoint,
        _: &NbdEndpoint,
        _: u64,
        progress: &(dyn Fn(f64) + Send + Sync),
    ) -> Result<(), Error> {
        progress(1.0);
        Ok(())
    }
}

/// Nobody merges layers below the API's tests; storage has its own model for that.
fn not_merged() -> Error {
    Error::new(ErrorKind::Unsupported, "these images are not merged")
}

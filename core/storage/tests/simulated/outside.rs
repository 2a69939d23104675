//! The traits of the outside, on the [`World`].

use crate::world::{Bytes, Image, OpenDisk, Outside, Place, handle_sr, place};
use async_trait::async_trait;
use datapath::protocol::ParentRef;
use datapath::{Access, DiskState, Error, ErrorKind, Extent, ImageInfo, NewImage};
use plugin::{
    Capacity, Container, DeviceConfig, Location, PluginError, PluginErrorKind, PluginInfo, Powers,
    ProbeResult, SrHandle, SrStat, StoragePlugin,
};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use storage::{DataPaths, Layer, MetaFiles, NbdEndpoint, Plugins};
use units::{ContainerId, DpId, RequestId, SrUuid};
use uuid::Uuid;

impl Plugins for Outside {
    fn storage(&self, driver: &str) -> Option<Arc<dyn StoragePlugin>> {
        (driver == "sim").then(|| Arc::new(self.clone()) as Arc<dyn StoragePlugin>)
    }
}

fn said(kind: PluginErrorKind, operation: &str, message: impl Into<String>) -> PluginError {
    let (plugin, operation) = ("sim".to_owned(), operation.to_owned());
    PluginError {
        kind,
        plugin,
        operation,
        message: message.into(),
    }
}

impl Outside {
    /// One plugin call: a point, the effect, a point.
    async fn plugin_call<T>(
        &self,
        operation: &str,
        sr: SrUuid,
        effect: impl FnOnce(&Self) -> Result<T, PluginError>,
    ) -> Result<T, PluginError> {
        let failed = || said(PluginErrorKind::Io, operation, "made to fail");
        let hung = self.world.state.lock().hung == Some(sr);
        if hung {
            std::future::pending::<()>().await;
        }
        if self.point().await {
            return Err(failed());
        }
        let result = effect(self)?;
        if self.point().await {
            Err(failed())
        } else {
            Ok(result)
        }
    }

    fn attached(&self, operation: &str, handle: &SrHandle) -> Result<SrUuid, PluginError> {
        let sr = handle_sr(handle);
        match self.world.state.lock().attached.get(&sr) {
            Some(true) => Ok(sr),
            _ => Err(said(
                PluginErrorKind::NotFound,
                operation,
                "the SR is not attached",
            )),
        }
    }
}

#[async_trait]
impl StoragePlugin for Outside {
    fn powers(&self) -> Powers {
        Powers {
            containers: true,
            ..Powers::default()
        }
    }

    async fn query(&self) -> Result<PluginInfo, PluginError> {
        Err(said(
            PluginErrorKind::Unsupported,
            "query",
            "not asked here",
        ))
    }

    async fn sr_probe(&self, _: &DeviceConfig) -> Result<Vec<ProbeResult>, PluginError> {
        Ok(Vec::new())
    }

    async fn sr_create(
        &self,
        sr: SrUuid,
        config: &DeviceConfig,
    ) -> Result<DeviceConfig, PluginError> {
        self.plugin_call("sr.create", sr, |outside| {
            outside
                .world
                .state
                .lock()
                .attached
                .entry(sr)
                .or_insert(false);
            Ok(config.clone())
        })
        .await
    }

    async fn sr_attach(&self, sr: SrUuid, _: &DeviceConfig) -> Result<SrHandle, PluginError> {
        self.plugin_call("sr.attach", sr, |outside| {
            match outside.world.state.lock().attached.get_mut(&sr) {
                Some(attached) => *attached = true,
                None => return Err(said(PluginErrorKind::NotFound, "sr.attach", "no such SR")),
            }
            Ok(SrHandle(format!("handle-{sr}")))
        })
        .await
    }

    async fn sr_detach(&self, handle: &SrHandle) -> Result<(), PluginError> {
        let sr = handle_sr(handle);
        self.plugin_call("sr.detach", sr, |outside| {
            let mut state = outside.world.state.lock();
            if let Some(attached) = state.attached.get_mut(&sr) {
                *attached = false;
            }
            let disks = state.processes.values().flat_map(|disks| disks.iter());
            let used = disks
                .filter(|(_, open)| open.chain.iter().any(|(s, _)| *s == sr))
                .count();
            if used > 0 {
                state.violation(format!("SR {sr} is detached under {used} disks"));
            }
            Ok(())
        })
        .await
    }

    async fn sr_destroy(&self, handle: &SrHandle) -> Result<(), PluginError> {
        let sr = self.attached("sr.destroy", handle)?;
        self.plugin_call("sr.destroy", sr, |outside| {
            outside
                .world
                .state
                .lock()
                .containers
                .retain(|(s, _), _| *s != sr);
            Ok(())
        })
        .await
    }

    async fn sr_stat(&self, handle: &SrHandle) -> Result<SrStat, PluginError> {
        let sr = self.attached("sr.stat", handle)?;
        self.plugin_call("sr.stat", sr, |outside| {
            let capacity = match outside.world.state.lock().extent() {
                Extent::Reserved => Capacity::Reserved,
                Extent::Grows => Capacity::Grows,
            };
            let (total_bytes, free_bytes) = (1 << 40, 1 << 39);
            Ok(SrStat {
                total_bytes,
                free_bytes,
                capacity,
                health: Ok(()),
            })
        })
        .await
    }

    async fn container_list(&self, handle: &SrHandle) -> Result<Vec<Container>, PluginError> {
        let sr = self.attached("containers.list", handle)?;
        self.plugin_call("containers.list", sr, |outside| {
            let ids = outside.world.containers(sr).into_iter();
            Ok(ids
                .map(|id| Container {
                    id,
                    capacity_bytes: 1 << 30,
                    used_bytes: 4096,
                })
                .collect())
        })
        .await
    }

    async fn container_create(
        &self,
        handle: &SrHandle,
        id: &ContainerId,
        capacity_bytes: u64,
    ) -> Result<Container, PluginError> {
        let sr = self.attached("containers.create", handle)?;
        self.plugin_call("containers.create", sr, |outside| {
            let mut state = outside.world.state.lock();
            let empty = || Bytes::Plain(BTreeMap::new());
            state
                .containers
                .entry((sr, id.clone()))
                .or_insert_with(empty);
            Ok(Container {
                id: id.clone(),
                capacity_bytes,
                used_bytes: 0,
            })
        })
        .await
    }

    async fn container_remove(
        &self,
        handle: &SrHandle,
        id: &ContainerId,
    ) -> Result<(), PluginError> {
        let sr = self.attached("containers.remove", handle)?;
        self.plugin_call("containers.remove", sr, |outside| {
            let mut state = outside.world.state.lock();
            let removed = (sr, id.clone());
            let users = state.users(&removed);
            if !users.is_empty() {
                state.violation(format!("{id} is removed under {users:?}"));
            }
            let stands_on = |(place, bytes): &(&Place, &Bytes)| {
                let Bytes::Image(image) = bytes else {
                    return false;
                };
                place.0 == sr
                    && image
                        .parent
                        .as_ref()
                        .is_some_and(|(name, _)| name == id.as_str())
            };
            if let Some((child, _)) = state.containers.iter().find(stands_on) {
                let what = format!("{id} is removed before its child {child:?}");
                state.violation(what);
            }
            state.containers.remove(&removed);
            Ok(())
        })
        .await
    }

    async fn container_rename(
        &self,
        _: &SrHandle,
        _: &ContainerId,
        _: &ContainerId,
    ) -> Result<(), PluginError> {
        Err(said(
            PluginErrorKind::Unsupported,
            "containers.rename",
            "nothing here renames",
        ))
    }

    async fn container_grow(
        &self,
        handle: &SrHandle,
        id: &ContainerId,
        capacity_bytes: u64,
    ) -> Result<Container, PluginError> {
        let sr = self.attached("containers.grow", handle)?;
        self.plugin_call("containers.grow", sr, |outside| {
            let mut state = outside.world.state.lock();
            if !state.reserved {
                state.violation(format!("{id} is grown though it grows by itself"));
            }
            state.capacities.insert((sr, id.clone()), capacity_bytes);
            Ok(Container {
                id: id.clone(),
                capacity_bytes,
                used_bytes: 0,
            })
        })
        .await
    }

    async fn container_locate(
        &self,
        handle: &SrHandle,
        id: &ContainerId,
    ) -> Result<Location, PluginError> {
        let sr = self.attached("containers.locate", handle)?;
        self.plugin_call("containers.locate", sr, |outside| {
            if !outside
                .world
                .state
                .lock()
                .containers
                .contains_key(&(sr, id.clone()))
            {
                return Err(said(
                    PluginErrorKind::NotFound,
                    "containers.locate",
                    id.as_str(),
                ));
            }
            Ok(Location::File(format!("/sim/{sr}/{id}").into()))
        })
        .await
    }
}

impl Outside {
    /// One call of a data path: a point, the effect, a point. A call that fails after its effect
    /// leaves its outcome unknown.
    pub(crate) async fn data_path_call<T>(
        &self,
        effect: impl FnOnce(&Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.point().await {
            return Err(Error::new(ErrorKind::Io, "made to fail"));
        }
        let result = effect(self)?;
        if self.point().await {
            return Err(Error::new(ErrorKind::Gone, "made to give no answer"));
        }
        Ok(result)
    }

    pub(crate) fn image(&self, at: &Place) -> Result<Image, Error> {
        match self.world.state.lock().containers.get(at) {
            Some(Bytes::Image(image)) => Ok(image.clone()),
            Some(Bytes::Plain(_)) => Err(Error::new(ErrorKind::Corrupt, format!("{at:?}: no VHD"))),
            None => Err(Error::new(ErrorKind::Io, format!("{at:?} is not there"))),
        }
    }

    fn disk_state(&self, disk: &DpId, open: &OpenDisk) -> Result<DiskState, Error> {
        let images: Vec<_> = open
            .chain
            .iter()
            .map(|at| self.image(at))
            .collect::<Result<_, _>>()?;
        Ok(DiskState {
            disk: disk.clone(),
            layers: images.iter().map(|image| image.uuid).collect(),
            virtual_bytes: images.first().map_or(0, |image| image.virtual_bytes),
            access: open.access,
            serving: Some(disk.to_string()),
            vhost_user: false,
            poisoned: None,
            stats: datapath::protocol::DiskStats::default(),
            settings: datapath::DiskSettings::default(),
            paused: None,
            log: None,
            mirror: None,
        })
    }

    pub(crate) fn open_disk(&self, process: &str, disk: &DpId) -> Result<OpenDisk, Error> {
        let state = self.world.state.lock();
        let found = state
            .processes
            .get(process)
            .and_then(|disks| disks.get(disk));
        found
            .cloned()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no disk {disk}")))
    }

    pub(crate) fn check_chain(&self, chain: &[Place]) -> Result<(), Error> {
        for (above, below) in chain.iter().zip(chain.iter().skip(1)) {
            let (child, parent) = (self.image(above)?, self.image(below)?);
            if child.parent.map(|(_, uuid)| uuid) != Some(parent.uuid) {
                let message = format!("{above:?} does not stand on {below:?}");
                return Err(Error::new(ErrorKind::Chain, message));
            }
        }
        match chain.last().map(|at| self.image(at)).transpose()? {
            Some(Image { parent: None, .. }) => Ok(()),
            _ => Err(Error::new(ErrorKind::Chain, "the chain does not end")),
        }
    }

    fn describe(image: &Image) -> ImageInfo {
        ImageInfo {
            uuid: image.uuid,
            parent_uuid: image.parent.as_ref().map(|(_, uuid)| *uuid),
            parent_name: image.parent.as_ref().map(|(name, _)| name.clone()),
            virtual_bytes: image.virtual_bytes,
            resize_max_bytes: 1 << 40,
            allocated_blocks: 0,
            hidden: false,
            clean: true,
        }
    }
}

fn places(layers: &[Layer]) -> Vec<Place> {
    layers.iter().map(|layer| place(&layer.location)).collect()
}

#[async_trait]
impl DataPaths for Outside {
    async fn running(&self) -> Result<Vec<String>, Error> {
        self.data_path_call(|outside| {
            Ok(outside
                .world
                .state
                .lock()
                .processes
                .keys()
                .cloned()
                .collect())
        })
        .await
    }

    async fn disks(&self, _: &RequestId, process: &str) -> Result<Option<Vec<DiskState>>, Error> {
        self.data_path_call(|outside| {
            let disks = outside.world.state.lock().processes.get(process).cloned();
            let Some(disks) = disks else { return Ok(None) };
            disks
                .iter()
                .map(|(disk, open)| outside.disk_state(disk, open))
                .collect::<Result<_, _>>()
                .map(Some)
        })
        .await
    }

    async fn open(
        &self,
        _: &RequestId,
        process: &str,
        disk: &DpId,
        chain: &[Layer],
        extent: Extent,
        access: Access,
    ) -> Result<DiskState, Error> {
        assert_eq!(extent, self.world.state.lock().extent());
        let chain: Vec<_> = chain.iter().map(|layer| place(&layer.location)).collect();
        self.data_path_call(|outside| {
            outside.check_chain(&chain)?;
            let opened = OpenDisk {
                chain: chain.clone(),
                access,
            };
            if let Ok(there) = outside.open_disk(process, disk) {
                if there != opened {
                    return Err(Error::new(ErrorKind::Busy, "open with another chain"));
                }
                return outside.disk_state(disk, &there);
            }
            let mut state = outside.world.state.lock();
            for (depth, at) in chain.iter().enumerate() {
                let writes = depth == 0 && access == Access::ReadWrite;
                state.check_opened_beside_merges(disk, &chain, depth, writes);
                for (other, other_writes) in state.disk_users(at) {
                    if writes || other_writes {
                        let what = format!("{disk} and {other} share {at:?} and one writes it");
                        state.violation(what);
                    }
                }
            }
            let disks = state.processes.entry(process.to_owned()).or_default();
            disks.insert(disk.clone(), opened.clone());
            drop(state);
            outside.disk_state(disk, &opened)
        })
        .await
    }

    async fn close(&self, _: &RequestId, process: &str, disk: &DpId) -> Result<(), Error> {
        self.data_path_call(|outside| {
            let mut state = outside.world.state.lock();
            state.mirrors.remove(disk);
            if let Some(disks) = state.processes.get_mut(process) {
                disks.remove(disk);
                if disks.is_empty() {
                    state.processes.remove(process);
                }
            }
            Ok(())
        })
        .await
    }

    async fn snapshot(
        &self,
        _: &RequestId,
        process: &str,
        disk: &DpId,
        leaf: Uuid,
        container: &Location,
    ) -> Result<DiskState, Error> {
        let new = place(container);
        self.data_path_call(|outside| {
            let mut open = outside.open_disk(process, disk)?;
            if outside.image(&open.chain[0])?.uuid == leaf {
                return outside.disk_state(disk, &open);
            }
            if outside.world.state.lock().refuses_snapshots {
                return Err(Error::new(ErrorKind::Io, "cannot read the new leaf"));
            }
            let image = outside.image(&new)?;
            let below = outside.image(&open.chain[0])?.uuid;
            if image.uuid != leaf || image.parent.as_ref().map(|(_, uuid)| *uuid) != Some(below) {
                return Err(Error::new(
                    ErrorKind::Chain,
                    "not a child of the present leaf",
                ));
            }
            if outside.world.state.lock().late_snapshots {
                let asked = (process.to_owned(), disk.clone(), new.clone());
                outside.world.state.lock().on_the_way.push(asked);
                return Err(Error::new(ErrorKind::Gone, "no answer in time"));
            }
            open.chain.insert(0, new.clone());
            let mut state = outside.world.state.lock();
            let disks = state.processes.entry(process.to_owned()).or_default();
            disks.insert(disk.clone(), open.clone());
            drop(state);
            outside.disk_state(disk, &open)
        })
        .await
    }

    async fn resize(
        &self,
        _: &RequestId,
        process: &str,
        disk: &DpId,
        virtual_bytes: u64,
    ) -> Result<DiskState, Error> {
        self.data_path_call(|outside| {
            let open = outside.open_disk(process, disk)?;
            if let Some(Bytes::Image(image)) = outside
                .world
                .state
                .lock()
                .containers
                .get_mut(&open.chain[0])
            {
                image.virtual_bytes = virtual_bytes;
            }
            outside.disk_state(disk, &open)
        })
        .await
    }

    fn endpoint(&self, disk: &DpId) -> Result<NbdEndpoint, Error> {
        let socket = format!("/sim/nbd/{disk}.sock").into();
        Ok(NbdEndpoint {
            socket,
            export: disk.to_string(),
        })
    }

    async fn image_create(
        &self,
        _: &RequestId,
        _: &str,
        container: &Location,
        image: NewImage,
        parent: Option<&Location>,
    ) -> Result<ImageInfo, Error> {
        let at = place(container);
        self.data_path_call(|outside| {
            if let Some(parent) = parent {
                let named = image.parent.as_ref().expect("a parent has a name");
                assert_eq!(named.name, place(parent).1.as_str());
                assert_eq!(named.uuid, outside.image(&place(parent))?.uuid);
            }
            let made = Image {
                uuid: image.uuid,
                parent: image
                    .parent
                    .as_ref()
                    .map(|parent| (parent.name.clone(), parent.uuid)),
                virtual_bytes: image.virtual_bytes,
                data: Default::default(),
            };
            let mut state = outside.world.state.lock();
            match state.containers.get_mut(&at) {
                Some(bytes @ Bytes::Plain(_)) => *bytes = Bytes::Image(made.clone()),
                other => {
                    let what = format!("an image is made in {other:?}");
                    state.violation(what);
                }
            }
            Ok(Self::describe(&made))
        })
        .await
    }

    async fn image_query(
        &self,
        _: &RequestId,
        _: &str,
        container: &Location,
        _: Extent,
    ) -> Result<ImageInfo, Error> {
        let at = place(container);
        self.data_path_call(|outside| outside.image(&at).map(|image| Self::describe(&image)))
            .await
    }

    async fn image_resize(
        &self,
        _: &RequestId,
        _: &str,
        container: &Location,
        virtual_bytes: u64,
        _: Extent,
    ) -> Result<ImageInfo, Error> {
        let at = place(container);
        self.data_path_call(|outside| {
            let mut state = outside.world.state.lock();
            let users = state.users(&at);
            if !users.is_empty() {
                state.violation(format!("{at:?} is resized under {users:?}"));
            }
            match state.containers.get_mut(&at) {
                Some(Bytes::Image(image)) => {
                    image.virtual_bytes = virtual_bytes;
                    Ok(Self::describe(image))
                }
                _ => Err(Error::new(ErrorKind::Corrupt, "no VHD")),
            }
        })
        .await
    }

    async fn image_reparent(
        &self,
        _: &RequestId,
        _: &str,
        container: &Location,
        parent: ParentRef,
        parent_at: &Location,
        _: Extent,
    ) -> Result<(), Error> {
        assert_eq!(parent.name, place(parent_at).1.as_str());
        self.do_reparent(place(container), parent).await
    }

    async fn merge(
        &self,
        _: &RequestId,
        process: &str,
        chain: &[Layer],
        _: Extent,
        progress: &(dyn Fn(f64) + Send + Sync),
    ) -> Result<(), Error> {
        progress(0.0);
        self.do_merge(process, places(chain)).await?;
        progress(1.0);
        Ok(())
    }

    async fn merge_stop(&self, _: &RequestId, process: &str) -> Result<(), Error> {
        self.data_path_call(|outside| {
            outside.world.state.lock().merges.remove(process);
            Ok(())
        })
        .await
    }

    async fn mirror_start(
        &self,
        _: &RequestId,
        process: &str,
        disk: &DpId,
        below: &[Layer],
        _: Extent,
    ) -> Result<(), Error> {
        self.do_mirror_start(process, disk, places(below)).await
    }

    async fn mirror_wait(
        &self,
        _: &RequestId,
        process: &str,
        disk: &DpId,
        progress: &(dyn Fn(f64) + Send + Sync),
    ) -> Result<(), Error> {
        progress(0.0);
        self.do_mirror_wait(process, disk).await
    }

    async fn mirror_prepare(&self, _: &RequestId, process: &str, disk: &DpId) -> Result<(), Error> {
        self.do_mirror_prepare(process, disk).await
    }

    async fn mirror_switch(&self, _: &RequestId, process: &str, disk: &DpId) -> Result<(), Error> {
        self.do_mirror_switch(process, disk).await
    }

    async fn mirror_stop(&self, _: &RequestId, _: &str, disk: &DpId) -> Result<(), Error> {
        self.data_path_call(|outside| {
            outside.world.state.lock().mirrors.remove(disk);
            Ok(())
        })
        .await
    }

    async fn relink(
        &self,
        _: &RequestId,
        process: &str,
        disk: &DpId,
        gone: Uuid,
        into: &Layer,
        parent: Option<ParentRef>,
    ) -> Result<(), Error> {
        let into = place(&into.location);
        self.do_relink(process, disk, gone, into, parent).await
    }

    async fn exit(&self, _: &RequestId, process: &str) -> Result<(), Error> {
        self.data_path_call(|outside| {
            let mut state = outside.world.state.lock();
            match state.processes.get(process) {
                Some(disks) if !disks.is_empty() => Err(Error::new(ErrorKind::Busy, "has disks")),
                _ => {
                    state.processes.remove(process);
                    Ok(())
                }
            }
        })
        .await
    }

    async fn copy(
        &self,
        from: &NbdEndpoint,
        to: &NbdEndpoint,
        bytes: u64,
        progress: &(dyn Fn(f64) + Send + Sync),
    ) -> Result<(), Error> {
        let vdi = |at: &NbdEndpoint| at.export.parse().expect("a disk is named as its VDI");
        let gone = || Error::new(ErrorKind::Gone, "nothing is served there");
        let content = self.world.guest_read(vdi(from)).ok_or_else(gone)?;
        assert!(bytes > 0);
        progress(0.0);
        let blocks = content.len().max(1);
        for (n, (block, value)) in content.into_iter().enumerate() {
            if self.point().await {
                return Err(Error::new(ErrorKind::Io, "made to fail"));
            }
            if !self.world.guest_write(vdi(to), block, value) {
                return Err(gone());
            }
            let done = f64::from(u32::try_from(n + 1).unwrap_or(u32::MAX));
            progress(done / f64::from(u32::try_from(blocks).unwrap_or(u32::MAX)));
            while self.world.state.lock().copies_wait {
                tokio::task::yield_now().await;
            }
        }
        if self.point().await {
            Err(gone())
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl MetaFiles for Outside {
    async fn read(&self, at: &Location, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let state = self.world.state.lock();
        let Some(Bytes::Plain(bytes)) = state.containers.get(&place(at)) else {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        };
        let mut read = bytes.get(&offset).cloned().unwrap_or_default();
        read.resize(length, 0);
        Ok(read)
    }

    /// Dying in the middle tears the write; failing keeps all of it and says nothing did.
    async fn write(&self, at: &Location, offset: u64, bytes: Vec<u8>) -> io::Result<()> {
        let place = place(at);
        let keep = |kept: usize| {
            let mut state = self.world.state.lock();
            let Some(Bytes::Plain(all)) = state.containers.get_mut(&place) else {
                return Err(io::Error::from(io::ErrorKind::NotFound));
            };
            let there = all.entry(offset).or_default();
            if there.len() < kept {
                there.resize(kept, 0);
            }
            there[..kept].copy_from_slice(&bytes[..kept]);
            Ok(())
        };
        if self.point().await {
            return Err(io::Error::other("made to fail"));
        }
        keep(bytes.len() / 2)?;
        if self.point().await {
            return Err(io::Error::other("made to fail half way"));
        }
        keep(bytes.len())?;
        if self.point().await {
            return Err(io::Error::other("made to fail after the effect"));
        }
        Ok(())
    }
}

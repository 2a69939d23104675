//! VDIs one at a time: create, destroy, stat, change, grow.

use crate::call::CallContext;
use crate::dp::refuse_if_a_vm_uses;
use crate::error::{Result, StorageError, StorageErrorKind};
use crate::geometry::{container_bytes, reach_bytes, virtual_bytes};
use crate::journal::{Intent, Work, image_uuid};
use crate::model::{Access, NewVdi, VdiInfo, VdiUpdate};
use crate::record::{Change, ImageRecord, VdiRecord};
use crate::state::{Host, Live, OpenDisk, disk_of};
use datapath::protocol::ParentRef;
use datapath::{Extent, Format, NewImage};
use units::{ContainerId, SrUuid, VdiUuid};
use uuid::Uuid;

impl Host {
    pub(crate) async fn vdi_create(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        new: NewVdi,
    ) -> Result<VdiInfo> {
        let size = virtual_bytes(new.virtual_bytes)?;
        let vdi = new.uuid.unwrap_or_else(VdiUuid::random);
        let live = self.shared(ctx, sr).await?;
        let _lock = self.vdi_locks.lock(vdi).await;
        self.settle_vdis(ctx, &live, &[vdi]).await?;
        if let Ok(there) = live.info(vdi) {
            let same = there.virtual_bytes == size && !there.is_a_snapshot;
            return if same {
                Ok(there)
            } else {
                Err(exists(sr, vdi))
            };
        }
        let leaf = fresh_container();
        let mut change = Change::default();
        change
            .images
            .insert(leaf.clone(), new_image(&leaf, size, None)?);
        change.vdis.insert(
            vdi,
            VdiRecord {
                fields: new.fields,
                leaf,
                snapshot: None,
            },
        );
        self.make(ctx, &live, change, None).await?;
        live.info(vdi)
    }

    pub(crate) async fn vdi_destroy(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
    ) -> Result<()> {
        let live = self.shared(ctx, sr).await?;
        let _lock = self.vdi_locks.lock(vdi).await;
        self.settle_vdis(ctx, &live, &[vdi]).await?;
        let dps = self.dps_of(vdi);
        refuse_if_a_vm_uses(&dps)?;
        for (dp, _) in &dps {
            self.drop_dp(ctx, Some(&live), dp).await?;
        }
        if live.record().vdis.contains_key(&vdi) {
            live.metadata
                .commit(|record| {
                    record.vdis.remove(&vdi);
                    Ok(())
                })
                .await?;
        }
        self.remove_doomed(&live).await;
        Ok(())
    }

    pub(crate) async fn vdi_stat(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
    ) -> Result<VdiInfo> {
        self.shared(ctx, sr).await?.info(vdi)
    }

    pub(crate) async fn vdi_update(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
        update: VdiUpdate,
    ) -> Result<VdiInfo> {
        let live = self.shared(ctx, sr).await?;
        let _lock = self.vdi_locks.lock(vdi).await;
        self.settle_vdis(ctx, &live, &[vdi]).await?;
        let writes = self
            .dps_of(vdi)
            .iter()
            .any(|(_, dp)| dp.state.access() == Access::ReadWrite);
        if update.read_only == Some(true) && writes {
            let context = format!("VDI {vdi} is attached read-write");
            return Err(StorageError::new(StorageErrorKind::VdiInUse, context));
        }
        live.metadata
            .commit(|record| {
                let sr = record.sr;
                let vdi = record
                    .vdis
                    .get_mut(&vdi)
                    .ok_or_else(|| StorageError::no_vdi(sr, vdi))?;
                set(&mut vdi.fields.name_label, update.name_label);
                set(&mut vdi.fields.name_description, update.name_description);
                set(&mut vdi.fields.sharable, update.sharable);
                set(&mut vdi.fields.read_only, update.read_only);
                set(&mut vdi.fields.sm_config, update.sm_config);
                set(&mut vdi.fields.tags, update.tags);
                Ok(())
            })
            .await?;
        live.info(vdi)
    }

    pub(crate) async fn vdi_resize(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
        bytes: u64,
    ) -> Result<VdiInfo> {
        let size = virtual_bytes(bytes)?;
        let live = self.shared(ctx, sr).await?;
        let _lock = self.vdi_locks.lock(vdi).await;
        self.settle_vdis(ctx, &live, &[vdi]).await?;
        self.retry_leaked(ctx, Some(&live), vdi).await;
        let info = live.info(vdi)?;
        if info.is_read_only() {
            let context = format!("VDI {vdi} takes no writes");
            return Err(StorageError::new(StorageErrorKind::ReadOnly, context));
        }
        if size < info.virtual_bytes {
            let context = format!("VDI {vdi} has {} bytes, not less", info.virtual_bytes);
            return Err(StorageError::new(StorageErrorKind::VdiSize, context));
        }
        if size == info.virtual_bytes {
            return Ok(info);
        }
        let open = self.ask_open(ctx, vdi).await?;
        if open
            .as_ref()
            .is_some_and(|open| open.access == Access::ReadOnly)
        {
            let context = format!("VDI {vdi} has readers, which cannot see it grow");
            return Err(StorageError::new(StorageErrorKind::VdiInUse, context));
        }
        let id = Uuid::new_v4();
        let work = Work::Grow {
            vdi,
            image: info.leaf.clone(),
        };
        self.intend(id, &Intent { sr, work }).await?;
        let grown = self.grow(ctx, &live, &info, open, size).await;
        match grown {
            Ok(()) => self.ended(id).await,
            Err(_) => self.give_up(ctx, &live, id).await,
        }
        grown?;
        live.info(vdi)
    }

    async fn grow(
        &self,
        ctx: &CallContext,
        live: &Live,
        info: &VdiInfo,
        open: Option<OpenDisk>,
        size: u64,
    ) -> Result<()> {
        let (vdi, leaf) = (info.vdi, &info.leaf);
        // A file grows as it is written; growing it ahead would move its end.
        if live.extent() == Extent::Reserved {
            let capacity = container_bytes(size, reach_bytes(size));
            let grown = live
                .plugin
                .container_grow(&live.handle, leaf, capacity)
                .await;
            grown.map_err(StorageError::plugin)?;
        }
        let request = &ctx.request_id;
        let grown = match open {
            Some(OpenDisk { process, .. }) => {
                let disk = disk_of(vdi);
                let grown = self.data_paths.resize(request, &process, &disk, size).await;
                grown.map(|state| state.virtual_bytes)
            }
            None => {
                let (at, process) = (live.locate(leaf).await?, live.image_process());
                let grown = self
                    .data_paths
                    .image_resize(request, &process, &at, size, live.extent())
                    .await;
                grown.map(|image| image.virtual_bytes)
            }
        };
        let what = || format!("cannot grow VDI {vdi} to {size} bytes");
        let virtual_bytes = grown.map_err(|e| StorageError::data_path(what(), e))?;
        live.metadata
            .commit(|record| {
                if let Some(image) = record.images.get_mut(leaf) {
                    image.virtual_bytes = virtual_bytes;
                }
                Ok(())
            })
            .await
    }

    /// Makes one container with an empty image in it.
    pub(crate) async fn make_image(
        &self,
        ctx: &CallContext,
        live: &Live,
        id: &ContainerId,
        image: &ImageRecord,
    ) -> Result<()> {
        let reach = reach_bytes(image.virtual_bytes);
        let capacity = container_bytes(image.virtual_bytes, reach);
        let made = live
            .plugin
            .container_create(&live.handle, id, capacity)
            .await;
        let made = made.map_err(StorageError::plugin)?;
        live.seen
            .lock()
            .used_bytes
            .insert(id.clone(), made.used_bytes);
        let at = live.locate(id).await?;
        let mut parent = None;
        let mut parent_at = None;
        if let Some(name) = &image.parent {
            let uuid = live
                .record()
                .images
                .get(name)
                .map_or_else(Uuid::nil, |image| image.uuid);
            parent = Some(ParentRef {
                name: name.to_string(),
                uuid,
                mtime_unix_s: 0,
            });
            parent_at = Some(live.locate(name).await?);
        }
        let new = NewImage {
            uuid: image.uuid,
            virtual_bytes: image.virtual_bytes,
            resize_max_bytes: reach,
            parent,
            extent: live.extent(),
        };
        let process = live.image_process();
        let created = self
            .data_paths
            .image_create(&ctx.request_id, &process, &at, new, parent_at.as_ref())
            .await;
        let what = || format!("cannot write an image into container {id}");
        created
            .map_err(|e| StorageError::data_path(what(), e))
            .map(drop)
    }
}

/// A name that was never used and never will be.
pub(crate) fn fresh_container() -> ContainerId {
    let name = format!("{}.vhd", Uuid::new_v4());
    name.parse()
        .expect("a uuid with a suffix is a valid container id")
}

pub(crate) fn new_image(
    id: &ContainerId,
    virtual_bytes: u64,
    parent: Option<&ContainerId>,
) -> Result<ImageRecord> {
    let uuid = image_uuid(id)?;
    Ok(ImageRecord {
        uuid,
        parent: parent.cloned(),
        virtual_bytes,
        format: Format::Vhd,
    })
}

pub(crate) fn exists(sr: SrUuid, vdi: VdiUuid) -> StorageError {
    let context = format!("SR {sr} has a VDI {vdi} already");
    StorageError::new(StorageErrorKind::VdiExists, context)
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

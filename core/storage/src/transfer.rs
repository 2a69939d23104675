//! Disks that the host itself reads or writes: export, import, copy, and taking in a VHD as it is.

use crate::call::{CallContext, Watch};
use crate::error::{Result, StorageError, StorageErrorKind};
use crate::geometry::virtual_bytes;
use crate::journal::{Intent, Scratch, Work};
use crate::manager::{ImportContainer, Transfer};
use crate::model::{Access, NewName, NewVdi, VdiInfo};
use crate::outside::Layer;
use crate::record::{Change, ImageRecord, VdiRecord};
use crate::state::{Host, Live, OpenDisk, disk_of};
use crate::tree::renamed;
use crate::vdi::{exists, fresh_container, new_image};
use datapath::{Extent, Format, ImageInfo};
use std::sync::Arc;
use units::{ContainerId, DpId, SrUuid, VdiUuid};
use uuid::Uuid;

/// Start of the ids of datapaths that end with this process.
const PREFIX: &str = "transfer/";

pub(crate) fn is_transfer(dp: &DpId) -> bool {
    dp.as_str().starts_with(PREFIX)
}

impl Host {
    pub(crate) async fn transfer_open(
        self: &Arc<Self>,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
        access: Access,
    ) -> Result<Transfer> {
        let id = Uuid::new_v4();
        let dp: DpId = format!("{PREFIX}{id}")
            .parse()
            .expect("a uuid makes a valid datapath id");
        let backend = self.attach(ctx, &dp, sr, vdi, &process(id), access).await?;
        let transfer = Transfer {
            nbd: backend.nbd,
            virtual_bytes: backend.virtual_bytes,
            dp: dp.clone(),
            host: Some(Arc::clone(self)),
        };
        match self.activate(ctx, &dp, sr, vdi).await {
            Ok(()) => Ok(transfer),
            Err(e) => {
                if let Err(e) = transfer.close(ctx).await {
                    tracing::warn!(%dp, error = %e, "a transfer that did not start stays attached");
                }
                Err(e)
            }
        }
    }

    pub(crate) async fn vdi_copy(
        self: &Arc<Self>,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
        to: SrUuid,
        name: NewName,
        watch: Watch,
    ) -> Result<VdiInfo> {
        let source = self.shared(ctx, sr).await?.info(vdi)?;
        let written = |(_, dp): &(DpId, _)| {
            let dp: &crate::state::DpRecord = dp;
            dp.state.is_activated() && dp.state.access() == Access::ReadWrite
        };
        if self.dps_of(vdi).iter().any(written) {
            let context = format!("VDI {vdi} is being written");
            return Err(StorageError::new(StorageErrorKind::VdiInUse, context));
        }
        let new = name.uuid.unwrap_or_else(VdiUuid::random);
        let _lock = self.vdi_locks.lock(new).await;
        let from = self.transfer_open(ctx, sr, vdi, Access::ReadOnly).await?;
        let copied = self
            .copy_into(ctx, &source, &from, to, new, name, &watch)
            .await;
        // The copy is what counts; a source that does not close is remembered as leaked.
        if let Err(e) = from.close(ctx).await {
            tracing::warn!(%vdi, error = %e, "the source of a copy does not close");
        }
        copied
    }

    async fn copy_into(
        self: &Arc<Self>,
        ctx: &CallContext,
        source: &VdiInfo,
        from: &Transfer,
        to: SrUuid,
        new: VdiUuid,
        name: NewName,
        watch: &Watch,
    ) -> Result<VdiInfo> {
        let id = Uuid::new_v4();
        let leaf = fresh_container();
        let disk = disk_of(new);
        let scratch = Scratch {
            process: process(id),
            disk: disk.clone(),
        };
        let image = new_image(&leaf, virtual_bytes(from.virtual_bytes)?, None)?;
        let copied = async {
            let live = self.shared(ctx, to).await?;
            if live.record().vdis.contains_key(&new) {
                return Err(exists(to, new));
            }
            self.intend(id, &scratch_intent(to, &leaf, Some(scratch.clone())))
                .await?;
            self.make_image(ctx, &live, &leaf, &image).await?;
            let endpoint = self.open_scratch(ctx, &live, &leaf, &scratch).await?;
            // The SR may be detached from here on; that closes the disk and the copy fails.
            drop(live);
            let copy =
                self.data_paths
                    .copy(&from.nbd, &endpoint, from.virtual_bytes, &*watch.progress);
            tokio::select! {
                biased;
                () = watch.cancel.cancelled() => return Err(StorageError::cancelled("the copy")),
                copied = copy => copied.map_err(|e| StorageError::data_path("the copy failed", e))?,
            }
            let live = self.shared(ctx, to).await?;
            let closed = self
                .data_paths
                .close(&ctx.request_id, &scratch.process, &disk)
                .await;
            closed.map_err(|e| StorageError::data_path("cannot close the copy", e))?;
            let mut fields = renamed(&source.fields, name);
            fields.read_only = false;
            let record = VdiRecord {
                fields,
                leaf: leaf.clone(),
                snapshot: None,
            };
            self.commit_new(&live, new, &leaf, image, record).await
        }
        .await;
        self.open_disks.lock().remove(&disk);
        self.conclude(ctx, to, id, copied).await
    }

    async fn open_scratch(
        &self,
        ctx: &CallContext,
        live: &Live,
        leaf: &ContainerId,
        scratch: &Scratch,
    ) -> Result<crate::model::NbdEndpoint> {
        let layer = Layer {
            location: live.locate(leaf).await?,
            format: Format::Vhd,
        };
        let Scratch { process, disk } = scratch;
        let opened = self
            .data_paths
            .open(
                &ctx.request_id,
                process,
                disk,
                &[layer],
                live.extent(),
                Access::ReadWrite,
            )
            .await;
        opened.map_err(|e| StorageError::data_path("cannot open the copy", e))?;
        let open = OpenDisk {
            process: process.clone(),
            access: Access::ReadWrite,
        };
        self.open_disks.lock().insert(disk.clone(), open);
        let endpoint = self.data_paths.endpoint(disk);
        endpoint.map_err(|e| StorageError::data_path("no place to serve at", e))
    }

    pub(crate) async fn import_container(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        size_bytes: u64,
    ) -> Result<ImportContainer> {
        let live = self.shared(ctx, sr).await?;
        if live.extent() == Extent::Reserved {
            let context = format!("containers of SR {sr} end where their capacity ends");
            return Err(StorageError::new(StorageErrorKind::Unsupported, context));
        }
        let container = fresh_container();
        let intent_id = crate::journal::image_uuid(&container)?;
        self.intend(intent_id, &scratch_intent(sr, &container, None))
            .await?;
        let made = async {
            let made = live
                .plugin
                .container_create(&live.handle, &container, size_bytes)
                .await;
            let capacity_bytes = made.map_err(StorageError::plugin)?.capacity_bytes;
            let location = live.locate(&container).await?;
            Ok(ImportContainer {
                sr,
                id: container.clone(),
                location,
                capacity_bytes,
            })
        }
        .await;
        if made.is_err() {
            self.give_up(ctx, &live, intent_id).await;
        }
        made
    }

    pub(crate) async fn adopt_image(
        &self,
        ctx: &CallContext,
        import: ImportContainer,
        new: NewVdi,
    ) -> Result<VdiInfo> {
        let intent_id = self.own_import(&import)?;
        let live = self.shared(ctx, import.sr).await?;
        let vdi = new.uuid.unwrap_or_else(VdiUuid::random);
        let _lock = self.vdi_locks.lock(vdi).await;
        if live.record().vdis.contains_key(&vdi) {
            return Err(exists(import.sr, vdi));
        }
        let process = live.image_process();
        let queried = self
            .data_paths
            .image_query(&ctx.request_id, &process, &import.location, live.extent())
            .await;
        let found = queried.map_err(|e| StorageError::data_path("no VHD was uploaded", e))?;
        check_adoptable(&found, &new)?;
        let image = ImageRecord {
            uuid: found.uuid,
            parent: None,
            virtual_bytes: found.virtual_bytes,
            format: Format::Vhd,
        };
        let record = VdiRecord {
            fields: new.fields,
            leaf: import.id.clone(),
            snapshot: None,
        };
        let adopted = self.commit_new(&live, vdi, &import.id, image, record).await;
        if adopted.is_ok() {
            self.ended(intent_id).await;
        }
        adopted
    }

    pub(crate) async fn import_abort(
        &self,
        ctx: &CallContext,
        import: &ImportContainer,
    ) -> Result<()> {
        let Ok(intent_id) = self.own_import(import) else {
            return Ok(());
        };
        let live = self.shared(ctx, import.sr).await?;
        self.give_up(ctx, &live, intent_id).await;
        Ok(())
    }

    /// The intent of an import that was begun and not ended.
    fn own_import(&self, import: &ImportContainer) -> Result<Uuid> {
        let id = crate::journal::image_uuid(&import.id)?;
        let intents = self.intents.lock();
        match intents
            .get(&id)
            .filter(|held| !held.left && held.intent.sr == import.sr)
        {
            Some(_) => Ok(id),
            None => {
                let context = format!("container {} is not being imported", import.id);
                Err(StorageError::new(StorageErrorKind::Invalid, context))
            }
        }
    }

    async fn commit_new(
        &self,
        live: &Live,
        vdi: VdiUuid,
        leaf: &ContainerId,
        image: ImageRecord,
        record: VdiRecord,
    ) -> Result<VdiInfo> {
        let mut change = Change::default();
        change.images.insert(leaf.clone(), image);
        change.vdis.insert(vdi, record);
        live.metadata.apply(&change).await?;
        live.info(vdi)
    }

    async fn conclude<T>(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        id: Uuid,
        result: Result<T>,
    ) -> Result<T> {
        if result.is_ok() {
            self.ended(id).await;
        } else if let Ok(live) = self.shared(ctx, sr).await {
            self.give_up(ctx, &live, id).await;
        } else if let Some(held) = self.intents.lock().get_mut(&id) {
            held.left = true;
        }
        result
    }
}

fn process(id: Uuid) -> String {
    format!("transfer-{id}")
}

fn scratch_intent(sr: SrUuid, container: &ContainerId, scratch: Option<Scratch>) -> Intent {
    let (created, change) = (vec![container.clone()], Change::default());
    Intent {
        sr,
        work: Work::Make {
            created,
            change,
            switching: None,
            scratch,
        },
    }
}

fn check_adoptable(found: &ImageInfo, new: &NewVdi) -> Result<()> {
    let problem = if let Some(parent) = found.parent_uuid {
        format!("the image stands on another, {parent}, which did not come with it")
    } else if new.virtual_bytes != 0 && found.virtual_bytes != new.virtual_bytes {
        format!(
            "the image has {} bytes, not {}",
            found.virtual_bytes, new.virtual_bytes
        )
    } else {
        return Ok(());
    };
    Err(StorageError::new(StorageErrorKind::ImageInvalid, problem))
}

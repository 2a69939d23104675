//! The life of an SR on this host: create, attach, scan, stat, detach, destroy.

use crate::call::CallContext;
use crate::dp::refuse_if_a_vm_uses;
use crate::error::{Result, StorageError, StorageErrorKind};
use crate::journal::{Scratch, Work};
use crate::metadata::{CAPACITY_BYTES, Metadata, container};
use crate::model::{SrInfo, SrScan};
use crate::record::{Seen, SrRecord};
use crate::state::{AttachedSr, Host, Live, Sr, SrState, image_process};
use parking_lot::Mutex;
use plugin::{DeviceConfig, ProbeResult, SrHandle, StoragePlugin};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::RwLock;
use units::{ContainerId, SrUuid};

impl Host {
    pub(crate) async fn sr_probe(
        &self,
        driver: &str,
        config: &DeviceConfig,
    ) -> Result<Vec<ProbeResult>> {
        self.plugin(driver)?
            .sr_probe(config)
            .await
            .map_err(StorageError::plugin)
    }

    pub(crate) async fn sr_create(
        &self,
        sr: SrUuid,
        driver: &str,
        config: &DeviceConfig,
        name_label: String,
        name_description: String,
    ) -> Result<DeviceConfig> {
        let plugin = self.plugin(driver)?;
        let _life = self.sr_locks.lock(sr).await;
        if self.srs.lock().contains_key(&sr) {
            let context = format!("SR {sr} is attached");
            return Err(StorageError::new(StorageErrorKind::SrAttached, context));
        }
        let config = plugin
            .sr_create(sr, config)
            .await
            .map_err(StorageError::plugin)?;
        let handle = plugin
            .sr_attach(sr, &config)
            .await
            .map_err(StorageError::plugin)?;
        let record = SrRecord::new(sr, name_label, name_description);
        let made = self.lay_out(&*plugin, &handle, record).await;
        plugin
            .sr_detach(&handle)
            .await
            .map_err(StorageError::plugin)?;
        made.map(|()| config)
    }

    async fn lay_out(
        &self,
        plugin: &dyn StoragePlugin,
        handle: &SrHandle,
        record: SrRecord,
    ) -> Result<()> {
        let id = container();
        let made = plugin.container_create(handle, &id, CAPACITY_BYTES).await;
        made.map_err(StorageError::plugin)?;
        let at = plugin
            .container_locate(handle, &id)
            .await
            .map_err(StorageError::plugin)?;
        let sr = record.sr;
        let found = Metadata::create(Arc::clone(&self.files), at, record)
            .await?
            .record();
        if !found.vdis.is_empty() {
            let context = format!("SR {sr} lies there with {} VDIs", found.vdis.len());
            return Err(StorageError::new(StorageErrorKind::SrNotEmpty, context));
        }
        Ok(())
    }

    pub(crate) async fn sr_attach(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        driver: &str,
        config: &DeviceConfig,
    ) -> Result<()> {
        let _life = self.sr_locks.lock(sr).await;
        let known = self.srs.lock().get(&sr).cloned();
        if let Some(known) = known {
            if known.attached.driver != driver || known.attached.config != *config {
                let context = format!("SR {sr} is attached with another configuration");
                return Err(StorageError::new(StorageErrorKind::SrAttached, context));
            }
            return self.shared(ctx, sr).await.map(drop);
        }
        let plugin = self.plugin(driver)?;
        let handle = plugin
            .sr_attach(sr, config)
            .await
            .map_err(StorageError::plugin)?;
        let attached = AttachedSr {
            driver: driver.to_owned(),
            config: config.clone(),
            boot_id: self.boot_id.clone(),
            handle: handle.clone(),
        };
        let live = match self.load(sr, &attached, Arc::clone(&plugin), &handle).await {
            Ok(live) => live,
            Err(e) => {
                if let Err(e) = plugin.sr_detach(&handle).await {
                    tracing::warn!(%sr, error = %e, "not detached after a failed attach");
                }
                return Err(e);
            }
        };
        self.settle_all(ctx, &live).await;
        let put = self.attached.put_async(&sr.to_string(), &attached).await;
        put.map_err(StorageError::records)?;
        let gate = Arc::new(RwLock::new(SrState::Live(Box::new(live))));
        self.srs.lock().insert(
            sr,
            Arc::new(Sr {
                uuid: sr,
                attached,
                plugin,
                gate,
            }),
        );
        Ok(())
    }

    /// Brings an SR back that was attached in an earlier life of this process. Guests may run on
    /// it, so a failure undoes nothing.
    pub(crate) async fn bring_up(&self, ctx: &CallContext, sr: &Sr) -> Result<Live> {
        let attached = sr.plugin.sr_attach(sr.uuid, &sr.attached.config).await;
        let handle = attached.map_err(StorageError::plugin)?;
        let live = self
            .load(sr.uuid, &sr.attached, Arc::clone(&sr.plugin), &handle)
            .await?;
        self.settle_all(ctx, &live).await;
        Ok(live)
    }

    /// Finishes or undoes whatever an earlier life left.
    async fn settle_all(&self, ctx: &CallContext, live: &Live) {
        self.settle_sr(ctx, live).await;
        self.remove_doomed(live).await;
        self.repeat_datapaths(ctx, live).await;
    }

    async fn load(
        &self,
        sr: SrUuid,
        attached: &AttachedSr,
        plugin: Arc<dyn StoragePlugin>,
        handle: &SrHandle,
    ) -> Result<Live> {
        let stat = plugin.sr_stat(handle).await.map_err(StorageError::plugin)?;
        let listed = plugin
            .container_list(handle)
            .await
            .map_err(StorageError::plugin)?;
        if !listed.iter().any(|c| c.id == container()) {
            return Err(no_metadata(sr));
        }
        let at = plugin.container_locate(handle, &container()).await;
        let at = at.map_err(StorageError::plugin)?;
        let live = Live {
            uuid: sr,
            driver: attached.driver.clone(),
            plugin,
            handle: handle.clone(),
            capacity: stat.capacity,
            metadata: Metadata::load(Arc::clone(&self.files), at, sr).await?,
            seen: Mutex::new(Seen::default()),
        };
        live.see(&listed, &BTreeSet::new());
        let missing = live.seen.lock().missing.len();
        if missing > 0 {
            tracing::error!(%sr, missing, "containers that records name are not there");
        }
        Ok(live)
    }

    pub(crate) async fn sr_detach(&self, ctx: &CallContext, sr: SrUuid) -> Result<()> {
        let _life = self.sr_locks.lock(sr).await;
        let Ok(found) = self.sr(sr) else {
            return Ok(());
        };
        let mut gate = Arc::clone(&found.gate).write_owned().await;
        self.drop_datapaths(ctx, sr, gate.live()).await?;
        if let Some(live) = gate.live() {
            self.settle_sr(ctx, live).await;
        }
        self.leave(ctx, &found, &mut gate).await
    }

    async fn drop_datapaths(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        live: Option<&Live>,
    ) -> Result<()> {
        let dps: Vec<_> = {
            let dps = self.dps.lock();
            let of_sr = dps.iter().filter(|(_, dp)| dp.sr == sr);
            of_sr.map(|(id, dp)| (id.clone(), dp.clone())).collect()
        };
        refuse_if_a_vm_uses(&dps)?;
        for (id, _) in &dps {
            self.drop_dp(ctx, live, id).await?;
        }
        if let Some(live) = live {
            self.end_merges(ctx, live).await?;
        }
        for Scratch { process, disk } in self.scratches_of(sr) {
            let closed = self
                .data_paths
                .close(&ctx.request_id, &process, &disk)
                .await;
            closed.map_err(|e| StorageError::data_path(format!("cannot close {disk}"), e))?;
        }
        Ok(())
    }

    /// Takes an SR down that nothing uses any more.
    async fn leave(&self, ctx: &CallContext, sr: &Sr, gate: &mut SrState) -> Result<()> {
        let handle = gate.live().map_or(&sr.attached.handle, |live| &live.handle);
        sr.plugin
            .sr_detach(handle)
            .await
            .map_err(StorageError::plugin)?;
        self.attached
            .remove_async(&sr.uuid.to_string())
            .await
            .map_err(StorageError::records)?;
        *gate = SrState::Detached;
        self.srs.lock().remove(&sr.uuid);
        let process = image_process(sr.uuid);
        if let Err(e) = self.data_paths.exit(&ctx.request_id, &process).await {
            tracing::warn!(process, error = %e, "an idle data path does not exit");
        }
        Ok(())
    }

    fn scratches_of(&self, sr: SrUuid) -> Vec<Scratch> {
        let intents = self.intents.lock();
        let of_sr = intents.values().filter(|held| held.intent.sr == sr);
        of_sr
            .filter_map(|held| match &held.intent.work {
                Work::Make { scratch, .. } => scratch.clone(),
                Work::Grow { .. } | Work::Merge { .. } => None,
            })
            .collect()
    }

    pub(crate) async fn sr_destroy(&self, ctx: &CallContext, sr: SrUuid) -> Result<()> {
        let _life = self.sr_locks.lock(sr).await;
        let found = self.sr(sr)?;
        let mut gate = self.alone(ctx, sr).await?;
        let live = gate.live().ok_or_else(|| StorageError::no_sr(sr))?;
        let vdis = live.record().vdis.len();
        if vdis > 0 {
            let context = format!("SR {sr} still has {vdis} VDIs");
            return Err(StorageError::new(StorageErrorKind::SrNotEmpty, context));
        }
        self.drop_datapaths(ctx, sr, Some(live)).await?;
        live.plugin
            .sr_destroy(&live.handle)
            .await
            .map_err(StorageError::plugin)?;
        self.leave(ctx, &found, &mut gate).await?;
        self.forget_intents(sr).await;
        Ok(())
    }

    pub(crate) async fn sr_forget(&self, sr: SrUuid) -> Result<()> {
        let _life = self.sr_locks.lock(sr).await;
        if self.srs.lock().contains_key(&sr) {
            let context = format!("SR {sr} is attached");
            return Err(StorageError::new(StorageErrorKind::SrAttached, context));
        }
        self.forget_intents(sr).await;
        Ok(())
    }

    async fn forget_intents(&self, sr: SrUuid) {
        let ids: Vec<_> = {
            let intents = self.intents.lock();
            intents
                .iter()
                .filter(|(_, h)| h.intent.sr == sr)
                .map(|(id, _)| *id)
                .collect()
        };
        for id in ids {
            self.ended(id).await;
        }
    }

    pub(crate) async fn sr_scan(&self, ctx: &CallContext, sr: SrUuid) -> Result<SrScan> {
        let gate = self.alone(ctx, sr).await?;
        let live = gate.live().ok_or_else(|| StorageError::no_sr(sr))?;
        self.settle_sr(ctx, live).await;
        self.remove_doomed(live).await;
        let listed = live
            .plugin
            .container_list(&live.handle)
            .await
            .map_err(StorageError::plugin)?;
        if !listed.iter().any(|c| c.id == container()) {
            return Err(no_metadata(sr));
        }
        let orphans = live.see(&listed, &self.ours(sr));
        let record = live.record();
        let (missing, all) = (live.seen.lock().missing.len(), record.images.len());
        if missing * 2 > all {
            let context = format!("SR {sr}: {missing} of {all} containers have vanished");
            return Err(StorageError::new(StorageErrorKind::SrVanished, context));
        }
        let vdis = record
            .vdis
            .keys()
            .map(|vdi| live.info(*vdi))
            .collect::<Result<_>>()?;
        Ok(SrScan {
            sr: live.stat().await?,
            vdis,
            orphans,
        })
    }

    /// Containers that operations under way have made.
    fn ours(&self, sr: SrUuid) -> BTreeSet<ContainerId> {
        let intents = self.intents.lock();
        let of_sr = intents.values().filter(|held| held.intent.sr == sr);
        of_sr
            .flat_map(|held| held.intent.created().to_vec())
            .collect()
    }

    pub(crate) async fn sr_stat(&self, ctx: &CallContext, sr: SrUuid) -> Result<SrInfo> {
        self.shared(ctx, sr).await?.stat().await
    }

    pub(crate) async fn sr_set_name(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        name_label: String,
        name_description: String,
    ) -> Result<()> {
        let live = self.shared(ctx, sr).await?;
        live.metadata
            .commit(|record| {
                record.name_label = name_label;
                record.name_description = name_description;
                Ok(())
            })
            .await
    }

    pub(crate) fn sr_list(&self) -> Vec<SrUuid> {
        self.srs.lock().keys().copied().collect()
    }
}

impl Live {
    async fn stat(&self) -> Result<SrInfo> {
        let stat = self
            .plugin
            .sr_stat(&self.handle)
            .await
            .map_err(StorageError::plugin)?;
        let record = self.record();
        let sizes = record
            .vdis
            .values()
            .filter_map(|vdi| record.images.get(&vdi.leaf));
        Ok(SrInfo {
            sr: self.uuid,
            driver: self.driver.clone(),
            name_label: record.name_label.clone(),
            name_description: record.name_description.clone(),
            total_bytes: stat.total_bytes,
            free_bytes: stat.free_bytes,
            virtual_bytes: sizes
                .map(|image| image.virtual_bytes)
                .fold(0, u64::saturating_add),
            capacity: stat.capacity,
            health: stat.health,
        })
    }
}

fn no_metadata(sr: SrUuid) -> StorageError {
    let context = format!("the storage of SR {sr} has no container {}", container());
    StorageError::new(StorageErrorKind::SrMetadata, context)
}

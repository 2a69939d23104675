//! What the storage manager holds in memory, and the records of this host it is rebuilt from.
//!
//! ```text
//! Host ── srs ──> Sr (gate: RwLock) ── Down ──bring up──> Live ──detach──> Detached
//!   ├─ dps          what callers asked for, persisted after the side effect
//!   ├─ open_disks   what data-path processes serve, learned from them
//!   └─ intents      operations begun and not ended, persisted before the first side effect
//! ```
//!
//! Order of locks: SR life (`sr_locks`), gate of the SR, VDI locks by uuid. The synchronous mutexes
//! are innermost and never held across an await.

use crate::automaton::{DpState, superstate};
use crate::call::CallContext;
use crate::error::{Result, StorageError, StorageErrorKind};
use crate::journal::Intent;
use crate::locks::KeyedLocks;
use crate::manager::StorageConfig;
use crate::merge::Wanted;
use crate::metadata::Metadata;
use crate::model::{Access, DpInfo, VdiInfo};
use crate::outside::{DataPaths, Layer, MetaFiles, Plugins};
use crate::record::{Seen, SrRecord};
use database::{Bucket, Database};
use datapath::{DiskState, Extent};
use parking_lot::Mutex;
use plugin::{Capacity, DeviceConfig, Location, SrHandle, StoragePlugin};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use units::{ContainerId, DpId, RequestId, SrUuid, VdiUuid};
use uuid::Uuid;

/// Everything.
pub(crate) struct Host {
    pub(crate) boot_id: String,
    pub(crate) plugins: Arc<dyn Plugins>,
    pub(crate) data_paths: Arc<dyn DataPaths>,
    pub(crate) files: Arc<dyn MetaFiles>,
    pub(crate) attached: Bucket<AttachedSr>,
    pub(crate) dp_records: Bucket<DpRecord>,
    pub(crate) journal: Bucket<Intent>,
    /// Held by whatever creates, attaches, detaches, destroys or forgets an SR.
    pub(crate) sr_locks: KeyedLocks<SrUuid>,
    pub(crate) vdi_locks: KeyedLocks<VdiUuid>,
    /// Held while an SR's layers are merged: one at a time.
    pub(crate) merging: KeyedLocks<SrUuid>,
    pub(crate) wanted: Wanted,
    pub(crate) srs: Mutex<BTreeMap<SrUuid, Arc<Sr>>>,
    pub(crate) dps: Mutex<BTreeMap<DpId, DpRecord>>,
    pub(crate) open_disks: Mutex<BTreeMap<DpId, OpenDisk>>,
    pub(crate) intents: Mutex<BTreeMap<Uuid, Held>>,
}

/// An SR that was attached, as this host remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AttachedSr {
    pub(crate) driver: String,
    pub(crate) config: DeviceConfig,
    pub(crate) boot_id: String,
    /// To detach with when the SR does not come up any more.
    pub(crate) handle: SrHandle,
}

/// A datapath, as this host remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DpRecord {
    pub(crate) sr: SrUuid,
    pub(crate) vdi: VdiUuid,
    pub(crate) vm_key: String,
    pub(crate) state: DpState,
    pub(crate) leaked: bool,
    pub(crate) boot_id: String,
}

/// A disk that a data-path process has open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpenDisk {
    pub(crate) process: String,
    pub(crate) access: Access,
}

/// An intent, and whether the operation that wrote it still runs.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) intent: Intent,
    pub(crate) left: bool,
}

/// An SR that is attached, or on its way to or from it.
pub(crate) struct Sr {
    pub(crate) uuid: SrUuid,
    pub(crate) attached: AttachedSr,
    pub(crate) plugin: Arc<dyn StoragePlugin>,
    pub(crate) gate: Arc<RwLock<SrState>>,
}

/// How far an SR is.
pub(crate) enum SrState {
    /// Remembered, not looked at since this process started.
    Down,
    /// In use.
    Live(Box<Live>),
    /// Gone; whoever waited for it is too late.
    Detached,
}

/// An SR in use. Calls on its VDIs share it; what changes all of it has it alone.
pub(crate) struct Live {
    pub(crate) uuid: SrUuid,
    pub(crate) driver: String,
    pub(crate) plugin: Arc<dyn StoragePlugin>,
    pub(crate) handle: SrHandle,
    pub(crate) capacity: Capacity,
    pub(crate) metadata: Metadata,
    pub(crate) seen: Mutex<Seen>,
}

/// An SR in use, shared.
pub(crate) type SharedSr = OwnedRwLockReadGuard<SrState, Live>;

impl Host {
    pub(crate) async fn open(
        config: StorageConfig,
        database: &Database,
        plugins: Arc<dyn Plugins>,
        data_paths: Arc<dyn DataPaths>,
        files: Arc<dyn MetaFiles>,
    ) -> Result<Arc<Self>> {
        let host = Arc::new(Self {
            boot_id: config.boot_id,
            plugins,
            data_paths,
            files,
            attached: database.bucket("storage-sr"),
            dp_records: database.bucket("storage-dp"),
            journal: database.bucket("storage-journal"),
            sr_locks: KeyedLocks::new(),
            vdi_locks: KeyedLocks::new(),
            merging: KeyedLocks::new(),
            wanted: Wanted::default(),
            srs: Mutex::default(),
            dps: Mutex::default(),
            open_disks: Mutex::default(),
            intents: Mutex::default(),
        });
        host.restore().await?;
        Ok(host)
    }

    /// Rebuilds what is in memory from the records and from the processes that run.
    async fn restore(self: &Arc<Self>) -> Result<()> {
        for (key, intent) in self.journal.all().map_err(StorageError::records)? {
            let id = key.parse().map_err(|e| bad_key(&key, e))?;
            self.intents.lock().insert(id, Held { intent, left: true });
        }
        for (key, mut dp) in self.dp_records.all().map_err(StorageError::records)? {
            if dp.boot_id != self.boot_id {
                self.dp_records
                    .remove_async(&key)
                    .await
                    .map_err(StorageError::records)?;
                continue;
            }
            let id: DpId = key.parse().map_err(|e| bad_key(&key, e))?;
            // Transfers belong to the process that ended: nobody else would close them.
            dp.leaked |= crate::transfer::is_transfer(&id);
            self.dps.lock().insert(id, dp);
        }
        self.find_open_disks().await?;
        for (key, attached) in self.attached.all().map_err(StorageError::records)? {
            let sr: SrUuid = key.parse().map_err(|e| bad_key(&key, e))?;
            if attached.boot_id != self.boot_id {
                self.attached
                    .remove_async(&key)
                    .await
                    .map_err(StorageError::records)?;
                continue;
            }
            match self.make_sr(sr, attached) {
                Ok(made) => {
                    self.srs.lock().insert(sr, made);
                    let host = Arc::clone(self);
                    tokio::spawn(async move {
                        if let Err(e) = host.shared(&CallContext::background(), sr).await {
                            tracing::error!(%sr, error = %e, "an attached SR does not come back");
                        }
                    });
                }
                Err(e) => tracing::error!(%sr, error = %e, "an attached SR does not come back"),
            }
        }
        Ok(())
    }

    /// Learns which disks run; ends processes that have none.
    async fn find_open_disks(&self) -> Result<()> {
        let id = RequestId::random();
        let failed = |e| StorageError::data_path("cannot list data-path processes", e);
        for process in self.data_paths.running().await.map_err(failed)? {
            match self.data_paths.disks(&id, &process).await {
                Ok(Some(disks)) if disks.is_empty() => {
                    if let Err(e) = self.data_paths.exit(&id, &process).await {
                        tracing::warn!(process, error = %e, "an idle data path does not exit");
                    }
                }
                Ok(disks) => {
                    let mut open = self.open_disks.lock();
                    for DiskState { disk, access, .. } in disks.unwrap_or_default() {
                        open.insert(
                            disk,
                            OpenDisk {
                                process: process.clone(),
                                access,
                            },
                        );
                    }
                }
                Err(e) => tracing::error!(process, error = %e, "a data path does not answer"),
            }
        }
        Ok(())
    }

    fn make_sr(&self, uuid: SrUuid, attached: AttachedSr) -> Result<Arc<Sr>> {
        let plugin = self.plugin(&attached.driver)?;
        let gate = Arc::new(RwLock::new(SrState::Down));
        Ok(Arc::new(Sr {
            uuid,
            attached,
            plugin,
            gate,
        }))
    }

    pub(crate) fn plugin(&self, driver: &str) -> Result<Arc<dyn StoragePlugin>> {
        self.plugins.storage(driver).ok_or_else(|| {
            let context = format!("no plugin serves SRs of type {driver:?}");
            StorageError::new(StorageErrorKind::DriverUnknown, context)
        })
    }

    /// An attached SR for calls on its VDIs; brings it up when this process has not yet.
    pub(crate) async fn shared(&self, ctx: &CallContext, sr: SrUuid) -> Result<SharedSr> {
        let found = self.sr(sr)?;
        let guard = Arc::clone(&found.gate).read_owned().await;
        let guard = match &*guard {
            SrState::Down => {
                drop(guard);
                self.alone(ctx, sr).await?.downgrade()
            }
            _ => guard,
        };
        OwnedRwLockReadGuard::try_map(guard, SrState::live).map_err(|_| StorageError::no_sr(sr))
    }

    /// An attached SR as it is, for what can do without; `None` when it is not attached.
    pub(crate) async fn present(&self, sr: SrUuid) -> Option<OwnedRwLockReadGuard<SrState>> {
        let found = self.sr(sr).ok()?;
        Some(Arc::clone(&found.gate).read_owned().await)
    }

    /// An attached SR for what must not run beside calls on its VDIs; waits for those.
    pub(crate) async fn alone(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
    ) -> Result<OwnedRwLockWriteGuard<SrState>> {
        let found = self.sr(sr)?;
        let mut guard = Arc::clone(&found.gate).write_owned().await;
        match &*guard {
            SrState::Live(_) => Ok(guard),
            SrState::Detached => Err(StorageError::no_sr(sr)),
            SrState::Down => {
                let live = self.bring_up(ctx, &found).await?;
                *guard = SrState::Live(Box::new(live));
                Ok(guard)
            }
        }
    }

    pub(crate) fn sr(&self, sr: SrUuid) -> Result<Arc<Sr>> {
        self.srs
            .lock()
            .get(&sr)
            .cloned()
            .ok_or_else(|| StorageError::no_sr(sr))
    }

    /// What the datapaths of a VDI want together, with `changed` in place of its own record.
    pub(crate) fn wanted(
        &self,
        vdi: VdiUuid,
        changed: &DpId,
        state: Option<DpState>,
    ) -> Option<DpState> {
        let dps = self.dps.lock();
        let others = dps
            .iter()
            .filter(|(id, dp)| dp.vdi == vdi && *id != changed);
        superstate(others.map(|(_, dp)| dp.state).chain(state))
    }

    pub(crate) fn dps_of(&self, vdi: VdiUuid) -> Vec<(DpId, DpRecord)> {
        let dps = self.dps.lock();
        dps.iter()
            .filter(|(_, dp)| dp.vdi == vdi)
            .map(|(id, dp)| (id.clone(), dp.clone()))
            .collect()
    }

    pub(crate) fn open_disk(&self, disk: &DpId) -> Option<OpenDisk> {
        self.open_disks.lock().get(disk).cloned()
    }

    pub(crate) fn dp_list(&self) -> Vec<DpInfo> {
        let dps = self.dps.lock();
        dps.iter()
            .map(|(id, dp)| DpInfo {
                dp: id.clone(),
                sr: dp.sr,
                vdi: dp.vdi,
                vm_key: dp.vm_key.clone(),
                state: dp.state,
                leaked: dp.leaked,
            })
            .collect()
    }
}

impl SrState {
    pub(crate) fn live(&self) -> Option<&Live> {
        match self {
            Self::Live(live) => Some(live),
            Self::Down | Self::Detached => None,
        }
    }
}

impl Live {
    /// The data-path process that reads and writes images of this SR nobody has open.
    pub(crate) fn image_process(&self) -> String {
        image_process(self.uuid)
    }

    pub(crate) fn record(&self) -> Arc<SrRecord> {
        self.metadata.record()
    }

    pub(crate) fn info(&self, vdi: VdiUuid) -> Result<VdiInfo> {
        self.record().info(vdi, &self.seen.lock())
    }

    pub(crate) fn extent(&self) -> Extent {
        match self.capacity {
            Capacity::Reserved => Extent::Reserved,
            Capacity::Grows => Extent::Grows,
        }
    }

    pub(crate) async fn locate(&self, id: &ContainerId) -> Result<Location> {
        self.plugin
            .container_locate(&self.handle, id)
            .await
            .map_err(|e| match e.kind {
                plugin::PluginErrorKind::NotFound => StorageError::missing(id),
                _ => StorageError::plugin(e),
            })
    }

    /// The layers of a VDI, leaf first, ready to be opened.
    pub(crate) async fn chain(&self, vdi: VdiUuid) -> Result<Vec<Layer>> {
        let leaf = self.record().vdi(vdi)?.leaf.clone();
        self.layers_of(&leaf).await
    }

    /// A layer and those below it, the upper first, ready to be opened.
    pub(crate) async fn layers_of(&self, layer: &ContainerId) -> Result<Vec<Layer>> {
        let record = self.record();
        let mut layers = Vec::new();
        for (id, image) in record.chain(layer) {
            let location = self.locate(&id).await?;
            layers.push(Layer {
                location,
                format: image.format,
            });
        }
        Ok(layers)
    }
}

pub(crate) fn image_process(sr: SrUuid) -> String {
    format!("images-{sr}")
}

/// The name a VDI's disk has in its data-path process; also its export name.
pub(crate) fn disk_of(vdi: VdiUuid) -> DpId {
    vdi.to_string()
        .parse()
        .expect("a uuid is a valid datapath id")
}

fn bad_key(key: &str, e: impl std::error::Error + Send + Sync + 'static) -> StorageError {
    StorageError::because(
        StorageErrorKind::Internal,
        format!("record {key:?} has a bad name"),
        e,
    )
}

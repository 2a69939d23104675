//! The handle callers hold: every call of the storage manager, as SMAPIv2 names it. What each does
//! is in the module of its subject.

use crate::call::{CallContext, Watch};
use crate::error::{Result, StorageError, StorageErrorKind};
use crate::model::{
    Access, Backend, DpInfo, NbdEndpoint, NewName, NewVdi, SrInfo, SrScan, VdiInfo, VdiUpdate,
};
use crate::outside::{DataPaths, HostFiles, MetaFiles, Plugins};
use crate::state::Host;
use database::Database;
use plugin::{DeviceConfig, Location, ProbeResult};
use std::fs::File;
use std::future::Future;
use std::sync::Arc;
use tracing::Instrument;
use units::{ContainerId, DpId, SrUuid, VdiUuid};

/// What the storage manager has to be told about its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageConfig {
    /// Identifies this boot of the host (`/proc/sys/kernel/random/boot_id`): what was attached in
    /// another boot is not attached now.
    pub boot_id: String,
}

/// The storage manager. Cheap to clone; every call may run at the same time as every other.
///
/// Calls that change something run to their end even when the caller's future is dropped or its
/// deadline passes: dropping a call is cancel safe, its outcome is seen by the next one.
#[derive(Clone)]
pub struct StorageManager {
    host: Arc<Host>,
}

/// A disk served for a transfer; [`Transfer::close`] it, or drop it and it is closed in the
/// background.
pub struct Transfer {
    /// Where to connect.
    pub nbd: NbdEndpoint,
    /// Size in bytes.
    pub virtual_bytes: u64,
    pub(crate) dp: DpId,
    pub(crate) host: Option<Arc<Host>>,
}

/// A container that takes a stream as it is, until it is adopted or dropped with
/// [`StorageManager::import_abort`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportContainer {
    /// The SR it lies in.
    pub sr: SrUuid,
    /// Its name.
    pub id: ContainerId,
    /// Where its bytes are.
    pub location: Location,
    /// Bytes it may hold.
    pub capacity_bytes: u64,
}

impl ImportContainer {
    /// Opens it for writing.
    ///
    /// # Errors
    /// `Backend` when it cannot be opened or is not what the plugin said it is.
    pub fn open(&self) -> Result<File> {
        crate::outside::open_container(&self.location, Access::ReadWrite)
            .map_err(|e| StorageError::because(StorageErrorKind::Backend, "cannot open", e))
    }
}

impl StorageManager {
    /// Reads the records of this host, finds the disks that running data-path processes serve, and
    /// starts to bring back each attached SR. Does not wait for any SR: a call on one does.
    ///
    /// # Errors
    /// `Internal` when the records cannot be read.
    pub async fn open(
        config: StorageConfig,
        database: &Database,
        plugins: Arc<dyn Plugins>,
        data_paths: Arc<dyn DataPaths>,
    ) -> Result<Self> {
        Self::open_with(config, database, plugins, data_paths, Arc::new(HostFiles)).await
    }

    /// As [`StorageManager::open`], with another way to the bytes of metadata containers.
    ///
    /// # Errors
    /// As [`StorageManager::open`].
    pub async fn open_with(
        config: StorageConfig,
        database: &Database,
        plugins: Arc<dyn Plugins>,
        data_paths: Arc<dyn DataPaths>,
        files: Arc<dyn MetaFiles>,
    ) -> Result<Self> {
        let host = Host::open(config, database, plugins, data_paths, files).await?;
        Ok(Self { host })
    }

    /// Runs `op` to its end whatever becomes of the caller, who waits until the deadline.
    async fn run<T, F, Fut>(&self, ctx: &CallContext, name: &'static str, op: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Host>, CallContext) -> Fut,
        Fut: Future<Output = Result<T>> + Send + 'static,
    {
        let span = tracing::info_span!("storage", op = name, request_id = %ctx.request_id);
        let task = tokio::spawn(op(Arc::clone(&self.host), ctx.clone()).instrument(span));
        let joined = match ctx.deadline {
            None => task.await,
            Some(deadline) => tokio::time::timeout_at(deadline, task).await.map_err(|_| {
                let context = format!("{name} did not end before the caller's deadline");
                StorageError::new(StorageErrorKind::Timeout, context)
            })?,
        };
        joined.unwrap_or_else(|e| {
            Err(StorageError::because(
                StorageErrorKind::Internal,
                format!("{name} broke"),
                e,
            ))
        })
    }
}

/// Storage repositories.
impl StorageManager {
    /// Looks at what a (possibly partial) configuration leads to. No side effects.
    ///
    /// # Errors
    /// `DriverUnknown`, or what the plugin says.
    pub async fn sr_probe(
        &self,
        ctx: &CallContext,
        driver: &str,
        config: &DeviceConfig,
    ) -> Result<Vec<ProbeResult>> {
        let (driver, config) = (driver.to_owned(), config.clone());
        self.run(ctx, "SR.probe", |h, _| async move {
            h.sr_probe(&driver, &config).await
        })
        .await
    }

    /// Prepares storage for an SR and writes its metadata; returns the configuration to attach it
    /// with. Does not leave it attached. The same SR again is a success while it has no VDIs.
    ///
    /// # Errors
    /// `SrAttached`, `SrForeign` when another SR lies there, `SrNotEmpty` when this one does and
    /// has VDIs, `DriverUnknown`.
    pub async fn sr_create(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        driver: &str,
        config: &DeviceConfig,
        name_label: &str,
        name_description: &str,
    ) -> Result<DeviceConfig> {
        let (driver, config) = (driver.to_owned(), config.clone());
        let (label, text) = (name_label.to_owned(), name_description.to_owned());
        self.run(ctx, "SR.create", move |h, _| async move {
            h.sr_create(sr, &driver, &config, label, text).await
        })
        .await
    }

    /// Makes an SR usable on this host: reads its metadata and finishes or undoes what a crash
    /// left. Attached with the same configuration already: a success. Also how an SR that another
    /// host made is introduced.
    ///
    /// # Errors
    /// `SrMetadata` when there is none, `SrForeign` when another SR lies there, `SrAttached` with
    /// another configuration, `DriverUnknown`.
    pub async fn sr_attach(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        driver: &str,
        config: &DeviceConfig,
    ) -> Result<()> {
        let (driver, config) = (driver.to_owned(), config.clone());
        self.run(ctx, "SR.attach", move |h, c| async move {
            h.sr_attach(&c, sr, &driver, &config).await
        })
        .await
    }

    /// Undoes `sr_attach`; drops the datapaths that are left. Not attached: a success.
    ///
    /// # Errors
    /// `VdiInUse` when a VM has one of its VDIs activated.
    pub async fn sr_detach(&self, ctx: &CallContext, sr: SrUuid) -> Result<()> {
        self.run(ctx, "SR.detach", move |h, c| async move {
            h.sr_detach(&c, sr).await
        })
        .await
    }

    /// Wipes an attached SR without VDIs and detaches it.
    ///
    /// # Errors
    /// `SrNotEmpty`, `SrNotAttached`.
    pub async fn sr_destroy(&self, ctx: &CallContext, sr: SrUuid) -> Result<()> {
        self.run(ctx, "SR.destroy", move |h, c| async move {
            h.sr_destroy(&c, sr).await
        })
        .await
    }

    /// Forgets what this host remembers of a detached SR. Touches no storage.
    ///
    /// # Errors
    /// `SrAttached`.
    pub async fn sr_forget(&self, ctx: &CallContext, sr: SrUuid) -> Result<()> {
        self.run(ctx, "SR.forget", move |h, _| async move {
            h.sr_forget(sr).await
        })
        .await
    }

    /// Compares the records with the containers that are there. Removes no record, ever.
    ///
    /// # Errors
    /// `SrMetadata` when the metadata container is gone, `SrVanished` when more than half of the
    /// containers that records name are gone; the VDIs are marked missing all the same.
    pub async fn sr_scan(&self, ctx: &CallContext, sr: SrUuid) -> Result<SrScan> {
        self.run(ctx, "SR.scan", move |h, c| async move {
            h.sr_scan(&c, sr).await
        })
        .await
    }

    /// Says how an attached SR is.
    ///
    /// # Errors
    /// `SrNotAttached`, or what the plugin says.
    pub async fn sr_stat(&self, ctx: &CallContext, sr: SrUuid) -> Result<SrInfo> {
        self.run(ctx, "SR.stat", move |h, c| async move {
            h.sr_stat(&c, sr).await
        })
        .await
    }

    /// Sets the name and description that lie in the SR.
    ///
    /// # Errors
    /// `SrNotAttached`.
    pub async fn sr_set_name(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        name_label: &str,
        name_description: &str,
    ) -> Result<()> {
        let (label, text) = (name_label.to_owned(), name_description.to_owned());
        self.run(ctx, "SR.set_name", move |h, c| async move {
            h.sr_set_name(&c, sr, label, text).await
        })
        .await
    }

    /// The SRs attached here, those included that a restart is still bringing back.
    pub fn sr_list(&self) -> Vec<SrUuid> {
        self.host.sr_list()
    }
}

/// Virtual disk images. Each takes the lock of the VDIs it names.
impl StorageManager {
    /// Makes an empty VDI.
    ///
    /// # Errors
    /// `VdiSize`, `VdiExists`, `SrFull`.
    pub async fn vdi_create(&self, ctx: &CallContext, sr: SrUuid, new: NewVdi) -> Result<VdiInfo> {
        self.run(ctx, "VDI.create", move |h, c| async move {
            h.vdi_create(&c, sr, new).await
        })
        .await
    }

    /// Removes a VDI and what only it needs. Drops its datapaths first. One that is not there is a
    /// success.
    ///
    /// # Errors
    /// `VdiInUse` when a VM has it activated.
    pub async fn vdi_destroy(&self, ctx: &CallContext, sr: SrUuid, vdi: VdiUuid) -> Result<()> {
        self.run(ctx, "VDI.destroy", move |h, c| async move {
            h.vdi_destroy(&c, sr, vdi).await
        })
        .await
    }

    /// Describes a VDI.
    ///
    /// # Errors
    /// `VdiDoesNotExist`.
    pub async fn vdi_stat(&self, ctx: &CallContext, sr: SrUuid, vdi: VdiUuid) -> Result<VdiInfo> {
        self.run(ctx, "VDI.stat", move |h, c| async move {
            h.vdi_stat(&c, sr, vdi).await
        })
        .await
    }

    /// Changes what users set.
    ///
    /// # Errors
    /// `VdiDoesNotExist`; `VdiInUse` when it is to become read-only while a datapath writes it.
    pub async fn vdi_update(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
        update: VdiUpdate,
    ) -> Result<VdiInfo> {
        self.run(ctx, "VDI.set", move |h, c| async move {
            h.vdi_update(&c, sr, vdi, update).await
        })
        .await
    }

    /// Takes a snapshot, of a live VDI too: what was flushed before the call is in it.
    ///
    /// # Errors
    /// `ChainTooLong`, `SrFull`, `VdiMissing`.
    pub async fn vdi_snapshot(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
        name: NewName,
    ) -> Result<VdiInfo> {
        self.run(ctx, "VDI.snapshot", move |h, c| async move {
            h.vdi_snapshot(&c, sr, vdi, name).await
        })
        .await
    }

    /// Makes a writable VDI with the content of another, of a live VDI too.
    ///
    /// # Errors
    /// As [`StorageManager::vdi_snapshot`].
    pub async fn vdi_clone(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
        name: NewName,
    ) -> Result<VdiInfo> {
        self.run(ctx, "VDI.clone", move |h, c| async move {
            h.vdi_clone(&c, sr, vdi, name).await
        })
        .await
    }

    /// Gives a VDI the content of a snapshot in the same SR. The VDI keeps its uuid and names.
    ///
    /// # Errors
    /// `VdiInUse` when it is activated, `Invalid` when `snapshot` is not a snapshot.
    pub async fn vdi_revert(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
        snapshot: VdiUuid,
    ) -> Result<VdiInfo> {
        self.run(ctx, "VDI.revert", move |h, c| async move {
            h.vdi_revert(&c, sr, vdi, snapshot).await
        })
        .await
    }

    /// Grows a VDI to at least `virtual_bytes`, a live one too.
    ///
    /// # Errors
    /// `VdiSize` to shrink or to exceed 2040 GiB, `ReadOnly`, `VdiInUse` when it has readers only.
    pub async fn vdi_resize(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
        virtual_bytes: u64,
    ) -> Result<VdiInfo> {
        self.run(ctx, "VDI.resize", move |h, c| async move {
            h.vdi_resize(&c, sr, vdi, virtual_bytes).await
        })
        .await
    }

    /// Copies a VDI into another (or the same) attached SR. The copy does not exist before it is
    /// complete.
    ///
    /// # Errors
    /// `VdiInUse` when something writes the source, `Cancelled`, `SrFull`.
    pub async fn vdi_copy(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
        to: SrUuid,
        name: NewName,
        watch: Watch,
    ) -> Result<VdiInfo> {
        self.run(ctx, "VDI.copy", move |h, c| async move {
            h.vdi_copy(&c, sr, vdi, to, name, watch).await
        })
        .await
    }
}

/// Datapaths: how a VM, or the host itself, gets at a VDI's bytes.
impl StorageManager {
    /// Makes a VDI known to a datapath and says where it will be served. `vm_key` (1 to 64 of
    /// `A-Z a-z 0-9 - _`, e.g. `vm-<uuid>`, `dom0-3`) names the data-path process that serves it;
    /// datapaths of one VDI share the process of whichever was activated first.
    ///
    /// # Errors
    /// `ReadOnly`, `DpExists`, `VdiMissing`.
    pub async fn attach(
        &self,
        ctx: &CallContext,
        dp: &DpId,
        sr: SrUuid,
        vdi: VdiUuid,
        vm_key: &str,
        access: Access,
    ) -> Result<Backend> {
        let (dp, vm_key) = (dp.clone(), vm_key.to_owned());
        self.run(ctx, "DP.attach", move |h, c| async move {
            h.attach(&c, &dp, sr, vdi, &vm_key, access).await
        })
        .await
    }

    /// Serves it. Writing is exclusive to one `vm_key` unless the VDI is sharable. Activated
    /// already: asks the data path, and serves it again when it does not.
    ///
    /// # Errors
    /// `IllegalTransition` when it is not attached, `VdiInUse`.
    pub async fn activate(
        &self,
        ctx: &CallContext,
        dp: &DpId,
        sr: SrUuid,
        vdi: VdiUuid,
    ) -> Result<()> {
        let dp = dp.clone();
        self.run(ctx, "DP.activate", move |h, c| async move {
            h.activate(&c, &dp, sr, vdi).await
        })
        .await
    }

    /// Stops serving it for this datapath; everything written is durable then. Not activated: a
    /// success.
    ///
    /// # Errors
    /// `Backend` when the data path does not answer; call again.
    pub async fn deactivate(
        &self,
        ctx: &CallContext,
        dp: &DpId,
        sr: SrUuid,
        vdi: VdiUuid,
    ) -> Result<()> {
        let dp = dp.clone();
        self.run(ctx, "DP.deactivate", move |h, c| async move {
            h.deactivate(&c, &dp, sr, vdi).await
        })
        .await
    }

    /// Forgets the datapath. Not attached: a success.
    ///
    /// # Errors
    /// `IllegalTransition` when it is activated.
    pub async fn detach(
        &self,
        ctx: &CallContext,
        dp: &DpId,
        sr: SrUuid,
        vdi: VdiUuid,
    ) -> Result<()> {
        let dp = dp.clone();
        self.run(ctx, "DP.detach", move |h, c| async move {
            h.detach(&c, &dp, sr, vdi).await
        })
        .await
    }

    /// Deactivates and detaches. When that fails the datapath is remembered as leaked, and tried
    /// again before the next call on its VDI. One that is not there is a success.
    ///
    /// # Errors
    /// What the data path says.
    pub async fn dp_destroy(&self, ctx: &CallContext, dp: &DpId) -> Result<()> {
        let dp = dp.clone();
        self.run(ctx, "DP.destroy", move |h, c| async move {
            h.dp_destroy(&c, &dp).await
        })
        .await
    }

    /// Every datapath of this host.
    pub fn dp_list(&self) -> Vec<DpInfo> {
        self.host.dp_list()
    }

    /// Serves a VDI read-only to the host itself.
    ///
    /// # Errors
    /// As [`StorageManager::attach`] and [`StorageManager::activate`].
    pub async fn export_open(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
    ) -> Result<Transfer> {
        self.transfer(ctx, sr, vdi, Access::ReadOnly).await
    }

    /// Serves a VDI read-write to the host itself.
    ///
    /// # Errors
    /// As [`StorageManager::attach`] and [`StorageManager::activate`].
    pub async fn import_open(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
    ) -> Result<Transfer> {
        self.transfer(ctx, sr, vdi, Access::ReadWrite).await
    }

    async fn transfer(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
        access: Access,
    ) -> Result<Transfer> {
        self.run(ctx, "transfer", move |h, c| async move {
            h.transfer_open(&c, sr, vdi, access).await
        })
        .await
    }

    /// Makes a container that takes a VHD stream as it is. It is no VDI yet, and gone after a
    /// restart.
    ///
    /// # Errors
    /// `Unsupported` where capacity is reserved: there the footer would not be at the end.
    pub async fn vdi_import_container(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        size_bytes: u64,
    ) -> Result<ImportContainer> {
        self.run(ctx, "import", move |h, c| async move {
            h.import_container(&c, sr, size_bytes).await
        })
        .await
    }

    /// Makes a VDI of a container that was written: a fixed or dynamic VHD of `new.virtual_bytes`
    /// (0: of any size). The data path reads it, never the daemon.
    ///
    /// # Errors
    /// `ImageInvalid` when it is not such an image; the container stays until it is aborted.
    pub async fn adopt_image(
        &self,
        ctx: &CallContext,
        import: ImportContainer,
        new: NewVdi,
    ) -> Result<VdiInfo> {
        self.run(ctx, "adopt", move |h, c| async move {
            h.adopt_image(&c, import, new).await
        })
        .await
    }

    /// Removes a container that was not adopted.
    ///
    /// # Errors
    /// What the plugin says; it is removed at the next attach then.
    pub async fn import_abort(&self, ctx: &CallContext, import: ImportContainer) -> Result<()> {
        self.run(ctx, "abort", move |h, c| async move {
            h.import_abort(&c, &import).await
        })
        .await
    }
}

impl Transfer {
    /// Flushes and detaches; the VDI is free when it returns.
    ///
    /// # Errors
    /// What the data path says; the datapath is then remembered as leaked.
    pub async fn close(mut self, ctx: &CallContext) -> Result<()> {
        match self.host.take() {
            Some(host) => {
                let manager = StorageManager { host };
                manager.dp_destroy(ctx, &self.dp).await
            }
            None => Ok(()),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let (Some(host), Ok(runtime)) = (self.host.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let dp = self.dp.clone();
        runtime.spawn(async move {
            if let Err(e) = host.dp_destroy(&CallContext::background(), &dp).await {
                tracing::warn!(%dp, error = %e, "a dropped transfer was not closed");
            }
        });
    }
}

//! The handle callers hold: every call of the storage manager, as SMAPIv2 names it. What each does
//! is in the module of its subject.

mod datapaths;
mod vdis;

use crate::call::{CallContext, Watch};
use crate::error::{Result, StorageError, StorageErrorKind};
use crate::merge::MergeRules;
use crate::model::{Access, NbdEndpoint, SrInfo, SrScan};
use crate::outside::{DataPaths, HostFiles, MetaFiles, Plugins};
use crate::state::Host;
use database::Database;
use plugin::{DeviceConfig, Location, ProbeResult};
use std::fs::File;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use units::{ContainerId, DpId, SrUuid};

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
        // Plugin calls carry the client call's id from here on. Not its deadline: the operation
        // runs to its end.
        let request = plugin::Request::new(ctx.request_id.clone());
        let work = request.scope(op(Arc::clone(&self.host), ctx.clone()));
        let task = tokio::spawn(work.instrument(span));
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

    /// Makes one layer of two wherever no VDI needs both, until nothing is left to merge; guests go
    /// on meanwhile, and any other call goes before. Says how many layers went. Cancelling leaves
    /// everything as it is.
    ///
    /// # Errors
    /// `SrNotAttached`, `Cancelled`; what went wrong, when nothing at all could be merged.
    pub async fn sr_merge(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        rules: MergeRules,
        watch: Watch,
    ) -> Result<u32> {
        self.run(ctx, "SR.merge", move |h, c| async move {
            h.sr_merge(&c, sr, rules, &watch).await
        })
        .await
    }

    /// Merges in the background whatever [`StorageManager::sr_merge`] would, `settle` after the last
    /// call that left something to merge, as far as `rules` of the SR allow. `merged` hears of each
    /// SR in which layers went: VDIs may have other leaves then. Returns after `stop`.
    pub async fn merge_until(
        &self,
        settle: Duration,
        rules: impl Fn(SrUuid) -> MergeRules + Send + Sync,
        merged: impl Fn(SrUuid) + Send + Sync,
        stop: CancellationToken,
    ) {
        self.host.merge_until(settle, &rules, &merged, &stop).await;
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

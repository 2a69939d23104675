//! The calls on datapaths, and the transfers that stand on them.

use super::{ImportContainer, StorageManager, Transfer};
use crate::call::CallContext;
use crate::error::Result;
use crate::model::{Access, Backend, DpInfo, NewVdi, VdiInfo};
use units::{DpId, SrUuid, VdiUuid};

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

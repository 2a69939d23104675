//! The calls on virtual disk images. Each takes the lock of the VDIs it names.

use super::StorageManager;
use crate::call::{CallContext, Watch};
use crate::error::Result;
use crate::model::{NewName, NewVdi, VdiInfo, VdiUpdate};
use units::{SrUuid, VdiUuid};

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

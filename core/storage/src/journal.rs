//! Operations that are more than one step: written down before the first, struck out after the
//! last, and settled when found without an owner.
//!
//! ```text
//! Make:  prepared ── containers made ── switching ── disk runs on the new leaf ── committed
//!            └── back: remove them          └── forward only: the guest may have written to it
//! Grow:  the image says how large it is; the records follow it
//! Merge: copying ── given up at any time; committing ── forward only
//! ```
//!
//! Settling is idempotent and may itself be cut short anywhere. It runs when an SR comes up and
//! before each call on a VDI that an intent names.

use crate::call::CallContext;
use crate::error::{Result, StorageError, StorageErrorKind};
use crate::merge::Merge;
use crate::model::Access;
use crate::record::{Change, SrRecord};
use crate::state::{Held, Host, Live, OpenDisk, disk_of};
use datapath::{DiskState, ErrorKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use units::{ContainerId, DpId, SrUuid, VdiUuid};
use uuid::Uuid;

/// What an operation is about to do in one SR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Intent {
    pub(crate) sr: SrUuid,
    pub(crate) work: Work,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "work", rename_all = "kebab-case")]
pub(crate) enum Work {
    /// Makes containers, then commits `change` (which names them all, or nothing of it is known
    /// yet).
    Make {
        created: Vec<ContainerId>,
        change: Change,
        /// Set once the live disk may have been switched.
        switching: Option<Switch>,
        /// A disk that a process has open on what was created, to be closed before it is removed.
        scratch: Option<Scratch>,
    },
    /// Grows an image.
    Grow { vdi: VdiUuid, image: ContainerId },
    /// Makes two layers one; see [`crate::merge`].
    Merge {
        merge: Merge,
        /// Where the copy is made; with `live`, the process that serves the disk.
        process: String,
        live: bool,
        stage: Stage,
        /// The VDIs concerned once it is committing.
        vdis: BTreeSet<VdiUuid>,
    },
}

/// How far a merge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// May be given up at any time.
    Copying,
    /// The lower layer has everything.
    Committing,
}

/// A live disk that gets a new leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Switch {
    pub(crate) vdi: VdiUuid,
    pub(crate) process: String,
    pub(crate) leaf: ContainerId,
}

/// A disk of no VDI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scratch {
    pub(crate) process: String,
    pub(crate) disk: DpId,
}

impl Intent {
    /// Whether calls on `vdi` must wait until it is settled.
    fn concerns(&self, vdi: VdiUuid) -> bool {
        match &self.work {
            Work::Make { change, .. } => change.vdis.contains_key(&vdi),
            Work::Grow { vdi: grown, .. } => *grown == vdi,
            Work::Merge { merge, vdis, .. } => merge.leaf_of == Some(vdi) || vdis.contains(&vdi),
        }
    }

    /// Whether its operation runs without the lock of a VDI or an SR. Any other one that is found
    /// by whoever has the lock was left, even by a panic.
    fn is_long(&self) -> bool {
        match &self.work {
            Work::Make { change, .. } => change.vdis.is_empty(),
            Work::Merge { stage, .. } => *stage == Stage::Copying,
            Work::Grow { .. } => false,
        }
    }

    /// Whether it is given up for whoever wants something else of a VDI it concerns.
    fn gives_way(&self) -> bool {
        matches!(
            &self.work,
            Work::Merge {
                stage: Stage::Copying,
                ..
            }
        )
    }

    /// Containers that are ours though no record names them.
    pub(crate) fn created(&self) -> &[ContainerId] {
        match &self.work {
            Work::Make { created, .. } => created,
            Work::Grow { .. } | Work::Merge { .. } => &[],
        }
    }
}

/// Whether the commit happened: it names everything that was created.
fn is_committed(created: &[ContainerId], record: &SrRecord) -> bool {
    created.iter().all(|id| record.images.contains_key(id))
}

impl Host {
    /// Writes an intent down, or changes one; durable when it returns.
    pub(crate) async fn intend(&self, id: Uuid, intent: &Intent) -> Result<()> {
        self.journal
            .put_async(&id.to_string(), intent)
            .await
            .map_err(StorageError::records)?;
        self.intents.lock().insert(
            id,
            Held {
                intent: intent.clone(),
                left: false,
            },
        );
        Ok(())
    }

    /// Strikes an intent out. One that cannot be struck out is settled again later, which changes
    /// nothing, so the operation it belongs to has worked all the same.
    pub(crate) async fn ended(&self, id: Uuid) {
        let removed = self.journal.remove_async(&id.to_string()).await;
        let mut intents = self.intents.lock();
        match removed {
            Ok(_) => {
                intents.remove(&id);
            }
            Err(e) => {
                tracing::warn!(%id, error = %e, "an ended operation stays in the journal");
                if let Some(held) = intents.get_mut(&id) {
                    held.left = true;
                }
            }
        }
    }

    /// Ends a failed operation: settles its intent now, or leaves it for the next call.
    pub(crate) async fn give_up(&self, ctx: &CallContext, live: &Live, id: Uuid) {
        let intent = match self.intents.lock().get_mut(&id) {
            Some(held) => {
                held.left = true;
                held.intent.clone()
            }
            None => return,
        };
        if let Err(e) = self.settle(ctx, live, id, &intent).await {
            tracing::warn!(sr = %live.uuid, error = %e, "an operation is left to be settled later");
        }
    }

    /// Settles what earlier operations left of these VDIs.
    pub(crate) async fn settle_vdis(
        &self,
        ctx: &CallContext,
        live: &Live,
        vdis: &[VdiUuid],
    ) -> Result<()> {
        self.settle_others(ctx, live, vdis, Uuid::nil()).await
    }

    /// As [`Host::settle_vdis`], but for the caller's own intent.
    pub(crate) async fn settle_others(
        &self,
        ctx: &CallContext,
        live: &Live,
        vdis: &[VdiUuid],
        own: Uuid,
    ) -> Result<()> {
        let ours_to_settle = |held: &Held| {
            let left = held.left || !held.intent.is_long() || held.intent.gives_way();
            left && vdis.iter().any(|vdi| held.intent.concerns(*vdi))
        };
        for (id, intent) in self.intents_of(live.uuid, ours_to_settle) {
            if id != own {
                self.settle(ctx, live, id, &intent).await?;
            }
        }
        Ok(())
    }

    /// Ends the merges of an SR that goes away.
    pub(crate) async fn end_merges(&self, ctx: &CallContext, live: &Live) -> Result<()> {
        for (id, intent) in self.intents_of(live.uuid, |held| held.intent.gives_way()) {
            self.settle(ctx, live, id, &intent).await?;
        }
        Ok(())
    }

    /// Settles what earlier operations left of an SR; what cannot be settled now stays.
    pub(crate) async fn settle_sr(&self, ctx: &CallContext, live: &Live) {
        let left = |held: &Held| held.left || !held.intent.is_long();
        for (id, intent) in self.intents_of(live.uuid, left) {
            if let Err(e) = self.settle(ctx, live, id, &intent).await {
                tracing::error!(sr = %live.uuid, error = %e, "an operation stays unsettled");
            }
        }
    }

    fn intents_of(&self, sr: SrUuid, wanted: impl Fn(&Held) -> bool) -> Vec<(Uuid, Intent)> {
        let intents = self.intents.lock();
        let of_sr = intents
            .iter()
            .filter(|(_, held)| held.intent.sr == sr && wanted(held));
        of_sr.map(|(id, held)| (*id, held.intent.clone())).collect()
    }

    async fn settle(
        &self,
        ctx: &CallContext,
        live: &Live,
        id: Uuid,
        intent: &Intent,
    ) -> Result<()> {
        live.metadata.settle().await?;
        match &intent.work {
            Work::Grow { vdi, image } => self.settle_grow(ctx, live, *vdi, image).await?,
            Work::Merge {
                merge,
                process,
                live: is_live,
                stage,
                ..
            } => {
                self.settle_merge(ctx, live, merge, process, *is_live, *stage)
                    .await?;
            }
            Work::Make {
                created,
                change,
                switching,
                scratch,
            } => {
                if let Some(Scratch { process, disk }) = scratch {
                    let closed = self.data_paths.close(&ctx.request_id, process, disk).await;
                    closed
                        .map_err(|e| StorageError::data_path(format!("cannot close {disk}"), e))?;
                    self.open_disks.lock().remove(disk);
                }
                if !is_committed(created, &live.record()) {
                    let forward = match switching {
                        Some(switch) => self.switch(ctx, live, switch).await?,
                        None => false,
                    };
                    if forward {
                        live.metadata.apply(change).await?;
                    } else {
                        self.forget_switch(id, intent).await?;
                        remove_all(live, created).await?;
                    }
                }
            }
        }
        self.ended(id).await;
        Ok(())
    }

    /// Makes going back the only way, before the new leaf is removed.
    async fn forget_switch(&self, id: Uuid, intent: &Intent) -> Result<()> {
        let mut intent = intent.clone();
        let Work::Make {
            switching: switching @ Some(_),
            ..
        } = &mut intent.work
        else {
            return Ok(());
        };
        *switching = None;
        self.intend(id, &intent).await?;
        if let Some(held) = self.intents.lock().get_mut(&id) {
            held.left = true;
        }
        Ok(())
    }

    /// Brings a live disk to its new leaf. Says whether it may run on it: `false` only when the
    /// process refused and still runs on the old one.
    pub(crate) async fn switch(
        &self,
        ctx: &CallContext,
        live: &Live,
        switch: &Switch,
    ) -> Result<bool> {
        let Switch { vdi, process, leaf } = switch;
        let disk = disk_of(*vdi);
        let lost = |e| StorageError::data_path(format!("VDI {vdi} may be between two leaves"), e);
        let disks = self
            .data_paths
            .disks(&ctx.request_id, process)
            .await
            .map_err(lost)?;
        let open = disks.into_iter().flatten().find(|state| state.disk == disk);
        let Some(state) = open else {
            // Nobody writes now; somebody may have written to the new leaf before.
            self.open_disks.lock().remove(&disk);
            return Ok(true);
        };
        let uuid = image_uuid(leaf)?;
        if state.layers.first() == Some(&uuid) {
            return Ok(true);
        }
        let at = live.locate(leaf).await?;
        match self
            .data_paths
            .snapshot(&ctx.request_id, process, &disk, uuid, &at)
            .await
        {
            Ok(_) => Ok(true),
            // Without an answer the request may still be carried out.
            Err(e) if e.kind == ErrorKind::Gone => Err(lost(e)),
            Err(e) => {
                tracing::warn!(%vdi, error = %e, "the data path refuses a new leaf");
                Ok(false)
            }
        }
    }

    async fn settle_grow(
        &self,
        ctx: &CallContext,
        live: &Live,
        vdi: VdiUuid,
        image: &ContainerId,
    ) -> Result<()> {
        if !live.record().images.contains_key(image) {
            return Ok(());
        }
        let id = &ctx.request_id;
        let disk = disk_of(vdi);
        let mut served = None;
        if let Some(OpenDisk { process, .. }) = self.open_disk(&disk) {
            let asked = self.data_paths.disks(id, &process).await;
            let disks = asked.map_err(|e| StorageError::data_path("cannot list disks", e))?;
            let writes = |state: &DiskState| state.access == Access::ReadWrite;
            served = disks
                .into_iter()
                .flatten()
                .find(|d| d.disk == disk && writes(d));
        }
        let virtual_bytes = match served {
            Some(state) => state.virtual_bytes,
            None => {
                let at = live.locate(image).await?;
                let queried = self
                    .data_paths
                    .image_query(id, &live.image_process(), &at, live.extent())
                    .await;
                let what = || format!("cannot read image {image}");
                queried
                    .map_err(|e| StorageError::data_path(what(), e))?
                    .virtual_bytes
            }
        };
        live.metadata
            .commit(|record| {
                if let Some(image) = record.images.get_mut(image) {
                    image.virtual_bytes = virtual_bytes;
                }
                Ok(())
            })
            .await
    }
}

/// Removes containers that no record names, the last made first.
async fn remove_all(live: &Live, created: &[ContainerId]) -> Result<()> {
    for id in created.iter().rev() {
        let removed = live.plugin.container_remove(&live.handle, id).await;
        removed.map_err(StorageError::plugin)?;
    }
    Ok(())
}

/// The uuid of an image made here, which is its container's name.
pub(crate) fn image_uuid(container: &ContainerId) -> Result<Uuid> {
    let text = container.as_str().trim_end_matches(".vhd");
    Uuid::parse_str(text).map_err(|e| {
        let context = format!("container {container} was not made here");
        StorageError::because(StorageErrorKind::Internal, context, e)
    })
}

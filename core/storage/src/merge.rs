//! Takes layers that only history needs out of VHD trees, while guests use the disks.
//!
//! ```text
//!            no lock held                        the VDIs concerned are locked
//!  ┌──────────────────────────────────┐   ┌───────────────────────────────────────────┐
//!  Copying: the lower layer takes over ──> Committing: children stand on the lower one,
//!  what the upper one holds itself         the records say so, the upper one is removed
//!     └── may stop anywhere: nothing           └── forward only
//!         that a reader sees has changed
//! ```
//! A layer that is only a parent is copied by a process of its own. The leaf of a disk that a guest
//! writes is copied by the process that serves it, which then writes to both until the records
//! are changed, so that either chain is the disk if everything dies in between.
//!
//! Whoever wants to do something else with a VDI does not wait: a copy that concerns it is given up
//! and made again later.

mod plan;
mod when;

pub(crate) use plan::Merge;
pub(crate) use when::Wanted;

use crate::call::{CallContext, Watch};
use crate::error::{Result, StorageError};
use crate::journal::{Intent, Stage, Work};
use crate::model::Access;
use crate::outside::Layer;
use crate::record::SrRecord;
use crate::state::{Host, Live, disk_of};
use datapath::protocol::ParentRef;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::OwnedMutexGuard;
use units::{ContainerId, SrUuid, VdiUuid};
use uuid::Uuid;

/// What may be merged in an SR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeRules {
    /// Layers that are only parents.
    pub parents: bool,
    /// Leaves of VDIs.
    pub leaves: bool,
    /// Leaves of VDIs that a guest writes.
    pub leaves_in_use: bool,
}

impl Default for MergeRules {
    /// Everything.
    fn default() -> Self {
        Self {
            parents: true,
            leaves: true,
            leaves_in_use: true,
        }
    }
}

impl MergeRules {
    fn allow(self, merge: &Merge) -> bool {
        match merge.leaf_of {
            None => self.parents,
            Some(_) => self.leaves,
        }
    }
}

/// A merge under way.
struct Begun {
    id: Uuid,
    sr: SrUuid,
    merge: Merge,
    /// Where it runs; with `live`, the process that serves the disk.
    process: String,
    live: bool,
}

impl Host {
    /// Merges what can be merged, until nothing is left or the watch is cancelled; says how many
    /// layers went. One that cannot be merged now is left for the next time.
    pub(crate) async fn sr_merge(
        self: &Arc<Self>,
        ctx: &CallContext,
        sr: SrUuid,
        rules: MergeRules,
        watch: &Watch,
    ) -> Result<u32> {
        let _alone = self.merging.lock(sr).await;
        let (mut merged, mut left) = (0, BTreeSet::new());
        let mut trouble = None;
        loop {
            if watch.cancel.is_cancelled() {
                return Err(StorageError::cancelled("merging layers"));
            }
            let next = {
                let live = self.shared(ctx, sr).await?;
                self.remove_doomed(&live).await;
                let mut merges = live.record().merges().into_iter();
                merges.find(|merge| rules.allow(merge) && !left.contains(&merge.image))
            };
            let Some(merge) = next else { break };
            let image = merge.image.clone();
            match self.merge_one(ctx, sr, merge, rules, watch).await {
                Ok(true) => merged += 1,
                Ok(false) => {
                    left.insert(image);
                }
                Err(e) => {
                    tracing::warn!(%sr, container = %image, error = %e, "a layer is not merged");
                    left.insert(image);
                    trouble = Some(e);
                }
            }
        }
        match trouble {
            Some(e) if merged == 0 => Err(e),
            _ => Ok(merged),
        }
    }

    /// `false` when it has to wait, or something else was wanted of a VDI meanwhile.
    async fn merge_one(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        merge: Merge,
        rules: MergeRules,
        watch: &Watch,
    ) -> Result<bool> {
        let Some(begun) = self.begin_merge(ctx, sr, merge, rules).await? else {
            return Ok(false);
        };
        let copied = tokio::select! {
            biased;
            () = watch.cancel.cancelled() => Err(StorageError::cancelled("merging layers")),
            copied = self.copy_down(ctx, &begun, watch) => copied,
        };
        let ended = match copied {
            Ok(()) => self.commit_merge(ctx, &begun).await,
            Err(e) => Err(e),
        };
        if !matches!(ended, Ok(true))
            && self.holds(begun.id)
            && let Ok(live) = self.shared(ctx, sr).await
        {
            self.give_up(ctx, &live, begun.id).await;
        }
        ended
    }

    /// Writes the intent down and, for a disk in use, has its process begin.
    async fn begin_merge(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        merge: Merge,
        rules: MergeRules,
    ) -> Result<Option<Begun>> {
        let live = self.shared(ctx, sr).await?;
        let mut begun = Begun {
            id: Uuid::new_v4(),
            sr,
            merge,
            process: format!("merge-{sr}"),
            live: false,
        };
        let mut _lock = None;
        if let Some(vdi) = begun.merge.leaf_of {
            _lock = Some(self.vdi_locks.lock(vdi).await);
            self.settle_vdis(ctx, &live, &[vdi]).await?;
            match self.ask_open(ctx, vdi).await? {
                None => {}
                Some(open) if open.access == Access::ReadWrite && rules.leaves_in_use => {
                    begun.process = open.process;
                    begun.live = true;
                }
                // Readers stay on the leaf for as long as they like.
                Some(_) => return Ok(None),
            }
        }
        if !live.record().still_allows(&begun.merge) {
            return Ok(None);
        }
        let intent = begun.intent(Stage::Copying, BTreeSet::new());
        self.intend(begun.id, &intent).await?;
        if begun.live {
            let chain = live.layers_of(&begun.merge.into).await;
            let begin = match (begun.merge.leaf_of, chain) {
                (Some(vdi), Ok(chain)) => {
                    let (process, disk) = (&begun.process, disk_of(vdi));
                    let id = &ctx.request_id;
                    let started =
                        self.data_paths
                            .mirror_start(id, process, &disk, &chain, live.extent());
                    started.await.map_err(|e| copy_error(&begun.merge, e))
                }
                (None, _) => Ok(()),
                (_, Err(e)) => Err(e),
            };
            if let Err(e) = begin {
                self.give_up(ctx, &live, begun.id).await;
                return Err(e);
            }
        }
        Ok(Some(begun))
    }

    /// Copies without any lock; returns when the lower layer has everything.
    async fn copy_down(&self, ctx: &CallContext, begun: &Begun, watch: &Watch) -> Result<()> {
        let Begun { merge, process, .. } = begun;
        let (id, progress) = (&ctx.request_id, &*watch.progress);
        let copied = match (begun.live, merge.leaf_of) {
            (true, Some(vdi)) => {
                let disk = disk_of(vdi);
                self.data_paths
                    .mirror_wait(id, process, &disk, progress)
                    .await
            }
            _ => {
                let (chain, extent) = {
                    let live = self.shared(ctx, begun.sr).await?;
                    (live.layers_of(&merge.image).await?, live.extent())
                };
                self.data_paths
                    .merge(id, process, &chain, extent, progress)
                    .await
            }
        };
        copied.map_err(|e| copy_error(merge, e))
    }

    /// The second stage, under the locks of every VDI that stands on the upper layer. `false` when
    /// the copy was given up meanwhile or is of no use any more.
    async fn commit_merge(&self, ctx: &CallContext, begun: &Begun) -> Result<bool> {
        let live = self.shared(ctx, begun.sr).await?;
        let (_locks, vdis) = self.lock_all_on(&live, &begun.merge.image).await;
        let named: Vec<_> = vdis.iter().copied().collect();
        if !self.holds(begun.id) {
            return Ok(false);
        }
        self.settle_others(ctx, &live, &named, begun.id).await?;
        if !live.record().still_allows(&begun.merge) {
            return Ok(false);
        }
        self.intend(begun.id, &begun.intent(Stage::Committing, vdis))
            .await?;
        let Begun { merge, process, .. } = begun;
        self.conclude_merge(ctx, &live, merge, process, begun.live)
            .await?;
        self.ended(begun.id).await;
        self.remove_doomed(&live).await;
        Ok(true)
    }

    /// Locks every VDI whose chain contains a layer. New ones are made from those only, so once
    /// all are locked there are no others.
    async fn lock_all_on(
        &self,
        live: &Live,
        layer: &ContainerId,
    ) -> (Vec<OwnedMutexGuard<()>>, BTreeSet<VdiUuid>) {
        loop {
            let vdis = live.record().standing_on(layer);
            let mut locks = Vec::with_capacity(vdis.len());
            // In the order of their uuids, as everybody does.
            for vdi in &vdis {
                locks.push(self.vdi_locks.lock(*vdi).await);
            }
            if live.record().standing_on(layer) == vdis {
                return (locks, vdis);
            }
        }
    }

    /// Everything after the copy: may be cut short anywhere and done again.
    pub(crate) async fn conclude_merge(
        &self,
        ctx: &CallContext,
        live: &Live,
        merge: &Merge,
        process: &str,
        is_live: bool,
    ) -> Result<()> {
        let record = live.record();
        match merge.leaf_of {
            Some(vdi) if is_live => {
                let disk = disk_of(vdi);
                let id = &ctx.request_id;
                let prepared = self.data_paths.mirror_prepare(id, process, &disk).await;
                prepared.map_err(|e| copy_error(merge, e))?;
                record_merge(live, merge).await?;
                let switched = self.data_paths.mirror_switch(id, process, &disk).await;
                switched.map_err(|e| copy_error(merge, e))
            }
            Some(_) => record_merge(live, merge).await,
            None => {
                if record.images.contains_key(&merge.image) {
                    self.stand_on_lower(ctx, live, &record, merge).await?;
                }
                record_merge(live, merge).await
            }
        }
    }

    /// Makes every child of the upper layer a child of the lower one, on disk and in the processes
    /// that have it open.
    async fn stand_on_lower(
        &self,
        ctx: &CallContext,
        live: &Live,
        record: &SrRecord,
        merge: &Merge,
    ) -> Result<()> {
        let id = &ctx.request_id;
        let (Some(upper), Some(lower)) = (
            record.images.get(&merge.image),
            record.images.get(&merge.into),
        ) else {
            return Ok(());
        };
        let into = Layer {
            location: live.locate(&merge.into).await?,
            format: lower.format,
        };
        let parent = ParentRef {
            name: merge.into.to_string(),
            uuid: lower.uuid,
            mtime_unix_s: 0,
        };
        let mut rewritten = BTreeSet::new();
        for vdi in record.standing_on(&merge.image) {
            let Some(open) = self.ask_open(ctx, vdi).await? else {
                continue;
            };
            let leaf = &record.vdi(vdi)?.leaf;
            let is_child = record
                .images
                .get(leaf)
                .and_then(|image| image.parent.as_ref())
                == Some(&merge.image);
            // Only whoever writes a leaf may change its header.
            let own = is_child && open.access == Access::ReadWrite;
            if own {
                rewritten.insert(leaf.clone());
            }
            let rewrite = own.then(|| parent.clone());
            let disk = disk_of(vdi);
            let linked = self
                .data_paths
                .relink(id, &open.process, &disk, upper.uuid, &into, rewrite)
                .await;
            linked.map_err(|e| copy_error(merge, e))?;
        }
        for child in record.children(&merge.image) {
            if rewritten.contains(&child) {
                continue;
            }
            let at = live.locate(&child).await?;
            let process = live.image_process();
            let reparented = self
                .data_paths
                .image_reparent(
                    id,
                    &process,
                    &at,
                    parent.clone(),
                    &into.location,
                    live.extent(),
                )
                .await;
            reparented.map_err(|e| copy_error(merge, e))?;
        }
        Ok(())
    }

    /// Settles what was left of a merge, or ends one that is still copying.
    pub(crate) async fn settle_merge(
        &self,
        ctx: &CallContext,
        live: &Live,
        merge: &Merge,
        process: &str,
        is_live: bool,
        stage: Stage,
    ) -> Result<()> {
        let id = &ctx.request_id;
        match (stage, merge.leaf_of) {
            (Stage::Committing, None) => {
                self.conclude_merge(ctx, live, merge, process, is_live)
                    .await
            }
            (Stage::Committing, Some(vdi))
                if live
                    .record()
                    .vdis
                    .get(&vdi)
                    .is_some_and(|vdi| vdi.leaf == merge.into) =>
            {
                if !is_live || self.ask_open(ctx, vdi).await?.is_none() {
                    return Ok(());
                }
                let switched = self
                    .data_paths
                    .mirror_switch(id, process, &disk_of(vdi))
                    .await;
                switched.map_err(|e| copy_error(merge, e))
            }
            (_, Some(vdi)) if is_live => {
                let stopped = self
                    .data_paths
                    .mirror_stop(id, process, &disk_of(vdi))
                    .await;
                stopped.map_err(|e| copy_error(merge, e))
            }
            _ => {
                let stopped = self.data_paths.merge_stop(id, process).await;
                stopped.map_err(|e| copy_error(merge, e))
            }
        }
    }

    /// Containers that a merge of this SR reads or writes.
    pub(crate) fn merging_containers(&self, sr: SrUuid) -> BTreeSet<ContainerId> {
        let intents = self.intents.lock();
        let of_sr = intents.values().filter(|held| held.intent.sr == sr);
        of_sr
            .filter_map(|held| match &held.intent.work {
                Work::Merge { merge, .. } => Some([merge.image.clone(), merge.into.clone()]),
                Work::Make { .. } | Work::Grow { .. } => None,
            })
            .flatten()
            .collect()
    }

    /// Whether an operation's intent is still its own: nobody has settled it or is to.
    fn holds(&self, id: Uuid) -> bool {
        self.intents.lock().get(&id).is_some_and(|held| !held.left)
    }
}

impl Begun {
    fn intent(&self, stage: Stage, vdis: BTreeSet<VdiUuid>) -> Intent {
        let work = Work::Merge {
            merge: self.merge.clone(),
            process: self.process.clone(),
            live: self.live,
            stage,
            vdis,
        };
        Intent { sr: self.sr, work }
    }
}

async fn record_merge(live: &Live, merge: &Merge) -> Result<()> {
    live.metadata
        .commit(|record| {
            record.merged(merge);
            Ok(())
        })
        .await
}

fn copy_error(merge: &Merge, e: datapath::Error) -> StorageError {
    let context = format!("cannot merge {} into {}", merge.image, merge.into);
    StorageError::data_path(context, e)
}

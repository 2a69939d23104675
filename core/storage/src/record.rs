//! What an SR says of itself: its VDIs and the layers they stand on. Pure; how it reaches the disk
//! is in [`crate::metadata`].

use crate::error::{Result, StorageError};
use crate::model::{VdiFields, VdiInfo};
use datapath::Format;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use units::{ContainerId, SrUuid, VdiUuid};
use uuid::Uuid;

/// The whole of an SR's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SrRecord {
    /// Whose metadata this is.
    pub(crate) sr: SrUuid,
    pub(crate) name_label: String,
    pub(crate) name_description: String,
    pub(crate) vdis: BTreeMap<VdiUuid, VdiRecord>,
    /// One per container that a VDI needs, itself or below another.
    pub(crate) images: BTreeMap<ContainerId, ImageRecord>,
    /// Containers that nothing needs any more and that may still be there, children first.
    pub(crate) doomed: Vec<ContainerId>,
}

/// One VDI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VdiRecord {
    pub(crate) fields: VdiFields,
    pub(crate) leaf: ContainerId,
    pub(crate) snapshot: Option<SnapshotRecord>,
}

/// What makes a VDI a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotRecord {
    pub(crate) of: VdiUuid,
    pub(crate) time_unix_ms: i64,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageRecord {
    /// The image's own uuid; the container's for those made here.
    pub(crate) uuid: Uuid,
    pub(crate) parent: Option<ContainerId>,
    pub(crate) virtual_bytes: u64,
    pub(crate) format: Format,
}

/// What one operation adds to the records: applying it twice is applying it once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Change {
    pub(crate) images: BTreeMap<ContainerId, ImageRecord>,
    pub(crate) vdis: BTreeMap<VdiUuid, VdiRecord>,
}

impl SrRecord {
    pub(crate) fn new(sr: SrUuid, name_label: String, name_description: String) -> Self {
        let (vdis, images, doomed) = Default::default();
        Self {
            sr,
            name_label,
            name_description,
            vdis,
            images,
            doomed,
        }
    }

    pub(crate) fn vdi(&self, vdi: VdiUuid) -> Result<&VdiRecord> {
        self.vdis
            .get(&vdi)
            .ok_or_else(|| StorageError::no_vdi(self.sr, vdi))
    }

    /// The layers below and including `leaf`, leaf first. Ends at a parent that no record names.
    pub(crate) fn chain(&self, leaf: &ContainerId) -> Vec<(ContainerId, &ImageRecord)> {
        let mut chain = Vec::new();
        let mut next = Some(leaf);
        // Bounded by the number of images, so that records with a loop cannot hang the daemon.
        while let Some((id, image)) = next.and_then(|id| self.images.get_key_value(id)) {
            if chain.len() == self.images.len() {
                break;
            }
            chain.push((id.clone(), image));
            next = image.parent.as_ref();
        }
        chain
    }

    pub(crate) fn apply(&mut self, change: &Change) {
        self.images.extend(change.images.clone());
        self.vdis.extend(change.vdis.clone());
    }

    /// Moves images that no VDI needs to `doomed`, children first.
    pub(crate) fn collect(&mut self) {
        let mut needed = BTreeSet::new();
        for vdi in self.vdis.values() {
            needed.extend(self.chain(&vdi.leaf).into_iter().map(|(id, _)| id));
        }
        let mut unused: Vec<_> = self
            .images
            .keys()
            .filter(|id| !needed.contains(*id))
            .cloned()
            .collect();
        // A child has a longer chain than its parent.
        unused.sort_by_key(|id| std::cmp::Reverse(self.chain(id).len()));
        self.images.retain(|id, _| needed.contains(id));
        self.doomed.extend(unused);
    }

    pub(crate) fn info(&self, vdi: VdiUuid, seen: &Seen) -> Result<VdiInfo> {
        let record = self.vdi(vdi)?;
        let chain = self.chain(&record.leaf);
        Ok(VdiInfo {
            sr: self.sr,
            vdi,
            fields: record.fields.clone(),
            is_a_snapshot: record.snapshot.is_some(),
            snapshot_of: record.snapshot.map(|s| s.of),
            snapshot_time_unix_ms: record.snapshot.map(|s| s.time_unix_ms),
            virtual_bytes: chain.first().map_or(0, |(_, image)| image.virtual_bytes),
            physical_bytes: seen.used_bytes.get(&record.leaf).copied().unwrap_or(0),
            leaf: record.leaf.clone(),
            chain_layers: chain.len(),
            missing: chain.iter().any(|(id, _)| seen.missing.contains(id)),
        })
    }
}

/// What the last look at the containers showed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    pub(crate) used_bytes: BTreeMap<ContainerId, u64>,
    pub(crate) missing: BTreeSet<ContainerId>,
}

#[cfg(test)]
mod tests;

//! Which layers can be taken out of an SR's trees, from its records alone.
//!
//! ```text
//! only a parent, with one parent of its own that nobody else needs      a leaf with such a parent
//! A ─> C3 ─┐                     A ─> C3 ─┐                              A ─> C2 ─> C1     A ─> C1
//! S ─> C4 ─┴> C2 ─> C1   becomes S ─> C4 ─┴> C1                                    becomes
//! ```
//! What goes is always the upper one: the lower takes over what it holds, and its name stays.

use crate::record::SrRecord;
use datapath::Format;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use units::{ContainerId, VdiUuid};

/// Two neighbouring layers that can become one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Merge {
    /// The layer that goes.
    pub(crate) image: ContainerId,
    /// The one it stands on, which takes over what it holds.
    pub(crate) into: ContainerId,
    /// The VDI whose leaf goes; `None` for a layer that is only a parent.
    pub(crate) leaf_of: Option<VdiUuid>,
}

impl SrRecord {
    /// Everything that can be merged, lowest first: so each byte is moved once, however many
    /// layers become one.
    pub(crate) fn merges(&self) -> Vec<Merge> {
        let leaves: BTreeMap<&ContainerId, Vec<VdiUuid>> =
            self.vdis
                .iter()
                .fold(BTreeMap::new(), |mut leaves, (vdi, record)| {
                    leaves.entry(&record.leaf).or_default().push(*vdi);
                    leaves
                });
        let mut children: BTreeMap<&ContainerId, usize> = BTreeMap::new();
        for parent in self
            .images
            .values()
            .filter_map(|image| image.parent.as_ref())
        {
            *children.entry(parent).or_default() += 1;
        }
        let mut found: Vec<Merge> = Vec::new();
        for (id, image) in &self.images {
            let Some(into) = image
                .parent
                .as_ref()
                .filter(|p| self.images.contains_key(*p))
            else {
                continue;
            };
            let others_need_it = leaves.contains_key(into) || children.get(into) != Some(&1);
            if others_need_it || image.format != Format::Vhd {
                continue;
            }
            let leaf_of = match leaves.get(id).map(Vec::as_slice) {
                None => None,
                Some([vdi]) if self.is_writable_kind(*vdi) => Some(*vdi),
                // A snapshot stays what it is.
                Some(_) => continue,
            };
            let (image, into) = (id.clone(), into.clone());
            found.push(Merge {
                image,
                into,
                leaf_of,
            });
        }
        found.sort_by_key(|merge| self.chain(&merge.image).len());
        found
    }

    fn is_writable_kind(&self, vdi: VdiUuid) -> bool {
        self.vdis
            .get(&vdi)
            .is_some_and(|vdi| vdi.snapshot.is_none())
    }

    /// Whether a merge that was possible when it began still is.
    pub(crate) fn still_allows(&self, merge: &Merge) -> bool {
        self.merges().contains(merge)
    }

    /// The layers that stand directly on one.
    pub(crate) fn children(&self, of: &ContainerId) -> Vec<ContainerId> {
        let children = self.images.iter();
        let children = children.filter(|(_, image)| image.parent.as_ref() == Some(of));
        children.map(|(id, _)| id.clone()).collect()
    }

    /// The VDIs whose chains contain a layer.
    pub(crate) fn standing_on(&self, layer: &ContainerId) -> BTreeSet<VdiUuid> {
        let vdis = self.vdis.iter();
        let vdis = vdis.filter(|(_, vdi)| self.chain(&vdi.leaf).iter().any(|(id, _)| id == layer));
        vdis.map(|(vdi, _)| *vdi).collect()
    }

    /// Makes a merge true in the records. What went is doomed by the commit this belongs to,
    /// because nothing needs it any more. Twice is once.
    pub(crate) fn merged(&mut self, merge: &Merge) {
        let Some(upper_bytes) = self
            .images
            .get(&merge.image)
            .map(|image| image.virtual_bytes)
        else {
            return;
        };
        if let Some(into) = self.images.get_mut(&merge.into) {
            into.virtual_bytes = into.virtual_bytes.max(upper_bytes);
        }
        for image in self.images.values_mut() {
            if image.parent.as_ref() == Some(&merge.image) {
                image.parent = Some(merge.into.clone());
            }
        }
        if let Some(vdi) = merge.leaf_of.and_then(|vdi| self.vdis.get_mut(&vdi))
            && vdi.leaf == merge.image
        {
            vdi.leaf = merge.into.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VdiFields;
    use crate::record::{ImageRecord, SnapshotRecord, VdiRecord};
    use units::SrUuid;
    use uuid::Uuid;

    /// `images`: name and parent; `vdis`: leaf and whether it is a snapshot.
    fn record(images: &[(&str, Option<&str>)], vdis: &[(&str, bool)]) -> SrRecord {
        let mut record = SrRecord::new(SrUuid::random(), String::new(), String::new());
        for (name, parent) in images {
            let image = ImageRecord {
                uuid: Uuid::new_v4(),
                parent: parent.map(container),
                virtual_bytes: 2 << 20,
                format: Format::Vhd,
            };
            record.images.insert(container(name), image);
        }
        for (number, (leaf, is_snapshot)) in vdis.iter().enumerate() {
            let snapshot = is_snapshot.then_some(SnapshotRecord {
                of: vdi(9),
                time_unix_ms: 0,
            });
            let made = VdiRecord {
                fields: VdiFields::default(),
                leaf: container(leaf),
                snapshot,
            };
            record.vdis.insert(vdi(number), made);
        }
        record
    }

    fn container(name: &str) -> ContainerId {
        name.parse().unwrap()
    }

    fn vdi(number: usize) -> VdiUuid {
        VdiUuid::from(Uuid::from_u128(number as u128 + 1))
    }

    /// Upper layers of what can be merged, with the VDI whose leaf it is.
    fn found(record: &SrRecord) -> Vec<(String, Option<VdiUuid>)> {
        let merges = record.merges().into_iter();
        merges.map(|m| (m.image.to_string(), m.leaf_of)).collect()
    }

    #[test]
    fn only_layers_that_nobody_else_needs_are_merged_and_the_lowest_first() {
        let chain = [("c1", None), ("c2", Some("c1")), ("c3", Some("c2"))];
        let forked = [("c1", None), ("c2", Some("c1")), ("c3", Some("c1"))];
        let deep = [
            ("c1", None),
            ("c2", Some("c1")),
            ("c3", Some("c2")),
            ("c4", Some("c2")),
        ];
        type Expected = Vec<(&'static str, Option<usize>)>;
        let cases: [(&str, SrRecord, Expected); 7] = [
            ("alone", record(&[("c1", None)], &[("c1", false)]), vec![]),
            (
                "a leaf on a parent of its own",
                record(&chain[..2], &[("c2", false)]),
                vec![("c2", Some(0))],
            ),
            (
                "the parent is a snapshot's leaf",
                record(&chain[..2], &[("c2", false), ("c1", true)]),
                vec![],
            ),
            (
                "a snapshot stays as it is",
                record(&chain[..2], &[("c2", true)]),
                vec![],
            ),
            (
                "two layers under a leaf",
                record(&chain, &[("c3", false)]),
                vec![("c2", None), ("c3", Some(0))],
            ),
            (
                "a parent with two children",
                record(&forked, &[("c2", false), ("c3", false)]),
                vec![],
            ),
            (
                "a fork above a layer that is only a parent",
                record(&deep, &[("c3", false), ("c4", true)]),
                vec![("c2", None)],
            ),
        ];
        for (what, record, expected) in cases {
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(name, of)| (name.to_owned(), of.map(vdi)))
                .collect();
            assert_eq!(found(&record), expected, "{what}");
        }
    }

    #[test]
    fn merging_until_nothing_is_left_leaves_one_layer_and_dooms_the_rest() {
        let chain = [("c1", None), ("c2", Some("c1")), ("c3", Some("c2"))];
        let mut record = record(&chain, &[("c3", false)]);
        record
            .images
            .get_mut(&container("c3"))
            .unwrap()
            .virtual_bytes = 8 << 20;
        while let Some(merge) = record.merges().into_iter().next() {
            assert!(record.still_allows(&merge));
            record.merged(&merge);
            record.collect();
            let once = record.clone();
            record.merged(&merge);
            assert_eq!(record, once, "merging twice is merging once");
            assert!(!record.still_allows(&merge));
        }
        assert_eq!(record.images.keys().collect::<Vec<_>>(), [&container("c1")]);
        assert_eq!(record.images[&container("c1")].virtual_bytes, 8 << 20);
        assert_eq!(record.vdis[&vdi(0)].leaf, container("c1"));
        assert_eq!(record.doomed, [container("c2"), container("c3")]);
    }
}

//! A sorted map that is cheap to clone and cheap to change after a clone: a list of shared chunks.
//!
//! A clone copies one pointer per chunk; a change then copies one chunk of at most [`CHUNK_MAX`]
//! entries, whatever the map's size. Each chunk carries the highest stamp it was changed with, so
//! that "what changed since" skips chunks that did not.

use std::borrow::Borrow;
use std::sync::Arc;

/// Entries in a chunk before it is split.
const CHUNK_MAX: usize = 128;

#[derive(Clone, Debug)]
struct Chunk<K, V> {
    /// Never empty, sorted by key.
    entries: Vec<(K, V)>,
    stamp: u64,
}

/// The map. Chunks are sorted and do not overlap.
#[derive(Clone, Debug)]
pub(crate) struct ChunkMap<K, V> {
    chunks: Vec<Arc<Chunk<K, V>>>,
    len: usize,
}

impl<K, V> Default for ChunkMap<K, V> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            len: 0,
        }
    }
}

impl<K: Ord + Clone, V: Clone> ChunkMap<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        let at = chunk
            .entries
            .binary_search_by(|(have, _)| have.borrow().cmp(key))
            .ok()?;
        chunk.entries.get(at).map(|(_, value)| value)
    }

    /// Puts `value` at `key` and stamps its chunk.
    pub(crate) fn insert(&mut self, key: K, value: V, stamp: u64) {
        let at = self.chunk_of(&key);
        let Some(shared) = self.chunks.get_mut(at) else {
            self.chunks.push(Arc::new(Chunk {
                entries: vec![(key, value)],
                stamp,
            }));
            self.len += 1;
            return;
        };
        let chunk = Arc::make_mut(shared);
        chunk.stamp = chunk.stamp.max(stamp);
        match chunk.entries.binary_search_by(|(have, _)| have.cmp(&key)) {
            Ok(found) => {
                if let Some(entry) = chunk.entries.get_mut(found) {
                    entry.1 = value;
                }
            }
            Err(place) => {
                chunk.entries.insert(place, (key, value));
                self.len += 1;
            }
        }
        if chunk.entries.len() > CHUNK_MAX {
            let entries = chunk.entries.split_off(CHUNK_MAX / 2);
            let upper = Chunk {
                entries,
                stamp: chunk.stamp,
            };
            self.chunks.insert(at + 1, Arc::new(upper));
        }
    }

    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let at = self.chunk_of(key);
        let shared = self.chunks.get_mut(at)?;
        let place = shared
            .entries
            .binary_search_by(|(have, _)| have.borrow().cmp(key))
            .ok()?;
        let chunk = Arc::make_mut(shared);
        let (_, value) = chunk.entries.remove(place);
        self.len -= 1;
        if chunk.entries.is_empty() {
            self.chunks.remove(at);
        } else {
            self.join_with_next(at);
        }
        Some(value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.entries.iter().map(|(key, value)| (key, value)))
    }

    /// Returns the value at `key` to change it in place, and stamps its chunk.
    pub(crate) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q, stamp: u64) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let at = self.chunk_of(key);
        let shared = self.chunks.get_mut(at)?;
        let place = shared
            .entries
            .binary_search_by(|(have, _)| have.borrow().cmp(key))
            .ok()?;
        let chunk = Arc::make_mut(shared);
        chunk.stamp = chunk.stamp.max(stamp);
        chunk.entries.get_mut(place).map(|(_, value)| value)
    }

    /// Lists the entries from `key` on, itself included.
    pub(crate) fn starting_at<'a>(
        &'a self,
        key: &K,
    ) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V> {
        let first = self.chunk_of(key);
        let place = self.chunks.get(first).map_or(0, |chunk| {
            chunk.entries.partition_point(|(have, _)| have < key)
        });
        let entries = self
            .chunks
            .iter()
            .skip(first)
            .flat_map(|chunk| chunk.entries.iter());
        entries.skip(place).map(|(key, value)| (key, value))
    }

    /// Lists the entries of all chunks that were stamped higher than `stamp`.
    pub(crate) fn stamped_after(&self, stamp: u64) -> impl Iterator<Item = &V> {
        self.chunks
            .iter()
            .filter(move |chunk| chunk.stamp > stamp)
            .flat_map(|chunk| chunk.entries.iter().map(|(_, value)| value))
    }

    /// Finds the last chunk that starts at or before `key`, or the first.
    fn chunk_of<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        let starts_at_or_before = |chunk: &Arc<Chunk<K, V>>| {
            chunk
                .entries
                .first()
                .is_some_and(|(first, _)| first.borrow() <= key)
        };
        self.chunks
            .partition_point(starts_at_or_before)
            .saturating_sub(1)
    }

    /// Keeps removals from leaving many tiny chunks.
    fn join_with_next(&mut self, at: usize) {
        let (Some(left), Some(right)) = (self.chunks.get(at), self.chunks.get(at + 1)) else {
            return;
        };
        if left.entries.len() + right.entries.len() > CHUNK_MAX / 2 {
            return;
        }
        let right = self.chunks.remove(at + 1);
        if let Some(left) = self.chunks.get_mut(at).map(Arc::make_mut) {
            left.entries.extend(right.entries.iter().cloned());
            left.stamp = left.stamp.max(right.stamp);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_like_a_btree_map_and_clones_do_not_see_later_changes(
            steps in prop::collection::vec((any::<bool>(), 0u16..600), 0..1500),
        ) {
            let mut ours = ChunkMap::default();
            let mut model = BTreeMap::new();
            let mut earlier = (ours.clone(), model.clone());
            for (at, (insert, key)) in steps.into_iter().enumerate() {
                if insert {
                    ours.insert(key, at, 0);
                    model.insert(key, at);
                } else {
                    prop_assert_eq!(ours.remove(&key), model.remove(&key));
                }
                prop_assert_eq!(ours.get(&key), model.get(&key));
                prop_assert_eq!(ours.get_mut(&key, 0), model.get_mut(&key));
                if at == 700 {
                    earlier = (ours.clone(), model.clone());
                }
            }
            for (ours, model) in [(ours, model), earlier] {
                prop_assert_eq!(ours.len(), model.len());
                prop_assert!(ours.iter().eq(model.iter()));
                for from in [0, 1, 300, 599, 600] {
                    prop_assert!(ours.starting_at(&from).eq(model.range(from..)));
                }
            }
        }

        #[test]
        fn stamps_never_hide_a_change(
            changes in prop::collection::vec(0u16..1000, 1..800),
            removed in prop::collection::vec(0u16..1000, 0..800),
            since in 0u64..800,
        ) {
            let mut ours = ChunkMap::default();
            let mut model = BTreeMap::new();
            for (at, key) in changes.into_iter().enumerate() {
                let stamp = at as u64 + 1;
                ours.insert(key, (key, stamp), stamp);
                model.insert(key, stamp);
            }
            for key in removed {
                ours.remove(&key);
                model.remove(&key);
            }
            let found: BTreeMap<_, _> =
                ours.stamped_after(since).filter(|(_, stamp)| *stamp > since).copied().collect();
            model.retain(|_, stamp| *stamp > since);
            prop_assert_eq!(found, model);
        }
    }
}

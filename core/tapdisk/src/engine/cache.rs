//! What is known about blocks that are partly in a layer: the leaf's bitmaps, and for the layers
//! below it who owns which sectors. Bounded: what is clean and unused longest makes room.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use vhd_rs::Allocation;

/// Bytes of a block's bitmap: 4096 sectors.
pub(super) const BITMAP_BYTES: usize = 512;

/// Most blocks kept per kind, those that cannot be dropped aside. A bitmap is 512 bytes and run
/// lists are mostly shorter, so this is about 2 MiB per disk.
const ENTRIES_MAX: usize = 2048;

/// The leaf's bitmap of one block, ahead of the disk by what is not flushed yet.
#[derive(Debug)]
pub(super) struct LeafBlock {
    /// One bit per sector, as reads must see it.
    pub(super) bits: Box<[u8; BITMAP_BYTES]>,
    /// Sector of the bitmap in the file.
    pub(super) entry: u32,
    /// Its space, while the block is not in the table: it does not exist on disk yet.
    pub(super) fresh: Option<Allocation>,
    /// The table's sector in memory is ahead of the one on disk.
    pub(super) table_pending: bool,
    /// The bits differ from what is on disk or on its way there.
    pub(super) dirty: bool,
    /// A flush is writing these bits.
    pub(super) flushing: bool,
    /// Changes in flight that will set or clear bits.
    pub(super) writers: u32,
}

impl LeafBlock {
    /// A block as it was read from disk.
    pub(super) fn clean(bits: Box<[u8; BITMAP_BYTES]>, entry: u32) -> Self {
        Self {
            bits,
            entry,
            fresh: None,
            table_pending: false,
            dirty: false,
            flushing: false,
            writers: 0,
        }
    }
}

/// A run of sectors of a block with one owner below the leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First sector after the run.
    pub(super) end: u16,
    /// The owning layer; `None` reads as zeros.
    pub(super) layer: Option<u16>,
}

/// Something the cache may or may not drop.
pub(super) trait Evictable {
    fn evictable(&self) -> bool;
}

impl Evictable for LeafBlock {
    fn evictable(&self) -> bool {
        self.fresh.is_none()
            && !self.table_pending
            && !self.dirty
            && !self.flushing
            && self.writers == 0
    }
}

impl Evictable for Box<[Run]> {
    fn evictable(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Entry<T> {
    value: T,
    used: bool,
}

/// Spreads block numbers over a table by one multiplication. Who chooses numbers that collide makes
/// look-ups in a table of [`ENTRIES_MAX`] slower for himself.
#[derive(Debug, Default)]
struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        // 2^64 divided by the golden ratio; the table uses the upper and the lower bits.
        let product = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }
}

/// Values by block with second-chance eviction.
#[derive(Debug)]
pub(super) struct Cache<T> {
    entries: HashMap<u32, Entry<T>, BuildHasherDefault<BlockHasher>>,
    /// Each key once, in the order the hand visits them.
    hand: VecDeque<u32>,
}

impl<T: Evictable> Cache<T> {
    pub(super) fn new() -> Self {
        Self {
            entries: HashMap::default(),
            hand: VecDeque::new(),
        }
    }

    pub(super) fn get(&mut self, block: u32) -> Option<&mut T> {
        let entry = self.entries.get_mut(&block)?;
        entry.used = true;
        Some(&mut entry.value)
    }

    pub(super) fn contains(&self, block: u32) -> bool {
        self.entries.contains_key(&block)
    }

    /// Puts a value in, after making room.
    pub(super) fn insert(&mut self, block: u32, value: T) {
        if self.entries.len() >= ENTRIES_MAX {
            self.evict_one();
        }
        if self
            .entries
            .insert(block, Entry { value, used: true })
            .is_none()
        {
            self.hand.push_back(block);
        }
    }

    pub(super) fn remove(&mut self, block: u32) {
        if self.entries.remove(&block).is_some() {
            self.hand.retain(|key| *key != block);
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.hand.clear();
    }

    /// Drops one entry if one can be dropped: looks at each twice at most.
    fn evict_one(&mut self) {
        for _ in 0..self.hand.len().saturating_mul(2) {
            let Some(block) = self.hand.pop_front() else {
                return;
            };
            let Some(entry) = self.entries.get_mut(&block) else {
                continue;
            };
            if !entry.used && entry.value.evictable() {
                self.entries.remove(&block);
                return;
            }
            entry.used = false;
            self.hand.push_back(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> LeafBlock {
        LeafBlock::clean(Box::new([0; BITMAP_BYTES]), 7)
    }

    #[test]
    fn the_cache_is_bounded_and_never_drops_what_is_not_on_disk() {
        let mut cache = Cache::new();
        cache.insert(
            0,
            LeafBlock {
                dirty: true,
                ..block()
            },
        );
        cache.insert(
            1,
            LeafBlock {
                table_pending: true,
                ..block()
            },
        );
        cache.insert(
            2,
            LeafBlock {
                writers: 1,
                ..block()
            },
        );
        cache.insert(
            3,
            LeafBlock {
                flushing: true,
                ..block()
            },
        );
        for number in 4..3 * ENTRIES_MAX as u32 {
            cache.insert(number, block());
        }
        assert!((0..4).all(|number| cache.contains(number)));
        assert_eq!(cache.entries.len(), ENTRIES_MAX);
        assert_eq!(cache.hand.len(), ENTRIES_MAX);
    }
}

//! What is kept of a layer below the leaf: where its blocks are and which of them are complete, in
//! memory that grows with what it holds and not with the disk's size. Everything else of its image
//! (footers, locators, batmap) is of no use to a layer that is only read.

use super::layer::{BitSet, Place};
use vhd_rs::Bat;

/// Most blocks in a sorted list; beyond it a bit per block takes less.
const LIST_MAX: usize = 2048;

/// A set of blocks.
#[derive(Debug)]
enum Blocks {
    List(Vec<u32>),
    Bits(BitSet),
}

impl Blocks {
    fn collect(blocks: impl Iterator<Item = u32>) -> Self {
        let mut set = Self::List(Vec::new());
        blocks.for_each(|block| set.set(block, true));
        set
    }

    fn get(&self, block: u32) -> bool {
        match self {
            Self::List(list) => list.binary_search(&block).is_ok(),
            Self::Bits(bits) => bits.get(block),
        }
    }

    fn set(&mut self, block: u32, on: bool) {
        match self {
            Self::Bits(bits) => bits.set(block, on),
            Self::List(list) => match (list.binary_search(&block), on) {
                (Err(_), true) if list.len() >= LIST_MAX => {
                    let mut bits = BitSet::with_len(0);
                    list.iter().for_each(|block| bits.set(*block, true));
                    bits.set(block, true);
                    *self = Self::Bits(bits);
                }
                (Err(at), true) => list.insert(at, block),
                (Ok(at), false) => {
                    list.remove(at);
                }
                (Ok(_), true) | (Err(_), false) => {}
            },
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::List(list) => list.capacity() * size_of::<u32>(),
            Self::Bits(bits) => bits.memory_bytes(),
        }
    }
}

/// A dynamic or differencing image below the leaf.
#[derive(Debug)]
pub(super) struct Sealed {
    bat: Bat,
    full: Blocks,
}

impl Sealed {
    /// `full` says which blocks are known to be complete.
    pub(super) fn new(bat: Bat, full: impl Fn(u32) -> bool) -> Self {
        let blocks = bat.allocated().map(|(block, _)| block);
        let full = Blocks::collect(blocks.filter(|block| full(*block)));
        Self { bat, full }
    }

    #[inline]
    pub(super) fn place(&self, block: u32) -> Place {
        match self.bat.get(block) {
            None => Place::Absent,
            Some(entry) if self.full.get(block) => Place::Full(u64::from(entry).saturating_add(1)),
            Some(entry) => Place::Partial(entry),
        }
    }

    pub(super) fn set_full(&mut self, block: u32, full: bool) {
        self.full.set(block, full);
    }

    /// Its blocks, in order.
    pub(super) fn blocks(&self) -> impl Iterator<Item = u32> + '_ {
        self.bat.allocated().map(|(block, _)| block)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.bat.memory_bytes() + self.full.memory_bytes()
    }
}

//! The flattened chain: which layer holds which sectors of the disk, whatever its depth.
//!
//! For each block one number names the topmost layer below the leaf that has it; if that layer has
//! all of it, the answer is there. Blocks that are spread over several layers get a run list, made
//! once from the bitmaps of the layers concerned. The leaf's own bits lie above that, because they
//! change. Sealed layers never change, so nothing below the leaf ever has to be made anew.
//!
//! What it takes grows with what the layers hold, not with their number or the disk's size:
//!
//! | | bytes |
//! |---|---|
//! | a block that a layer has | 8, or 4 where there are many |
//! | a disk of 1 TiB | 64 KiB for the owners of its blocks by pages of 128, 256 more for each page with several owners |
//! | a sealed layer of 1 TiB | 0, or 140 KiB once it has 8192 blocks |
//! | the leaf | as a sealed layer, and two bits per block: known to be complete, and in the batmap |
//!
//! *Invariants.* A lookup takes one number from the owners and one entry from that layer, however
//! many layers there are. A sealed layer's table and the owners say the same: a block's owner is the
//! topmost layer below the leaf whose table has the block and which no layer above hides by being
//! shorter. Whoever seals a layer enters its blocks, whoever merges one away gives them to the layer
//! below it, and nobody else changes the owners.

use super::cache::{BITMAP_BYTES, Cache, LeafBlock, Run};
use super::layer::{BLOCK_SECTORS, Content, Layer, Place};
use super::owners::{NOBODY, Owners};
use std::ops::Range;
use vhd_rs::bitmap;

/// A run of sectors of one block in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Sectors counted within the block.
    pub(super) sectors: Range<u32>,
    /// Layer and first sector in its file; `None` reads as zeros.
    pub(super) place: Option<(u16, u64)>,
}

/// A bitmap has to be read before the question can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missing;

/// Whether somebody else changes the layers below the leaf while this map is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Beneath {
    /// Nobody.
    #[default]
    Sealed,
    /// What the leaf holds is being written into them. Reads see no difference, but a bit of the
    /// leaf that is cleared would bring those sectors to light.
    Written,
    /// They may hold anything that the leaf does not hide.
    Unknown,
}

/// The layers and what is known of their blocks.
#[derive(Debug)]
pub(super) struct Map {
    /// Base first, leaf last: a snapshot pushes; a merge takes one out, and those above it get other
    /// numbers.
    pub(super) layers: Vec<Layer>,
    below: Owners,
    runs: Cache<Box<[Run]>>,
    pub(super) leaf_blocks: Cache<LeafBlock>,
    pub(super) beneath: Beneath,
}

impl Map {
    /// Builds the map of a chain, base first; at least one layer.
    pub(super) fn new(layers: Vec<Layer>) -> Self {
        let mut map = Self {
            below: Owners::default(),
            runs: Cache::new(),
            leaf_blocks: Cache::new(),
            beneath: Beneath::Sealed,
            layers: Vec::new(),
        };
        for layer in layers {
            map.push(layer);
        }
        map
    }

    /// Puts a new leaf on top. The old one must have nothing that is not on disk; it keeps only what
    /// reading needs.
    pub(super) fn push(&mut self, leaf: Layer) {
        let sealed = self.layers.len().checked_sub(1);
        let blocks_max = leaf.blocks();
        self.layers.push(leaf);
        self.leaf_blocks.clear();
        self.runs.clear();
        let Some(index) = sealed else { return };
        let (Some(layer), Ok(number)) = (self.layers.get_mut(index), u16::try_from(index)) else {
            return;
        };
        layer.seal();
        // A layer that ends before the block hides whatever lies further down; one that ends
        // inside it hides the rest, which the run list will say.
        let blocks = layer.blocks().min(blocks_max);
        self.below.cut(blocks);
        if let Some(last) = blocks.checked_sub(1)
            && layer.sectors_in(last) < BLOCK_SECTORS
            && self.below.get(last) != NOBODY
        {
            self.below.set(last, number);
        }
        match &layer.content {
            Content::Flat => self.below.fill_to(blocks, number),
            Content::Sparse(_) => {}
            Content::Sealed(sealed) => {
                let inside = sealed.blocks().take_while(|block| *block < blocks);
                inside.for_each(|block| self.below.set(block, number));
            }
        }
        self.below.tidy();
    }

    /// Puts `into` in the place of the layer below number `gone`, whose sectors it holds as well,
    /// and takes that one out. Returns both; the caller has checked that they are there.
    pub(super) fn merge(&mut self, gone: usize, mut into: Layer) -> [Layer; 2] {
        into.seal();
        let lower = gone.saturating_sub(1);
        let out = self.layers.remove(gone);
        let old = self
            .layers
            .get_mut(lower)
            .map(|layer| std::mem::replace(layer, into));
        let old = old.expect("the layer below is there");
        self.runs.clear();
        let (gone, lower) = (gone as u16, lower as u16);
        let layers = &self.layers;
        self.below.renumber(lower, |block, owner| {
            if owner > gone {
                owner - 1
            } else {
                top_at(layers, block, lower)
            }
        });
        [out, old]
    }

    /// Bytes of memory that depend on the size and content of the layers; what is cached is not
    /// among them, it has a bound of its own.
    pub(super) fn memory_bytes(&self) -> usize {
        let layers = self.layers.iter().map(Layer::memory_bytes);
        self.below.memory_bytes() + layers.sum::<usize>()
    }

    pub(super) fn leaf(&self) -> &Layer {
        self.layers.last().expect("a chain has at least one layer")
    }

    pub(super) fn leaf_mut(&mut self) -> &mut Layer {
        self.layers
            .last_mut()
            .expect("a chain has at least one layer")
    }

    /// Number of the leaf among the layers.
    pub(super) fn leaf_number(&self) -> u16 {
        u16::try_from(self.layers.len().saturating_sub(1)).unwrap_or(NOBODY)
    }

    /// Whether some layer below the leaf has (part of) the block.
    pub(super) fn has_below(&self, block: u32) -> bool {
        self.beneath == Beneath::Unknown || self.below.get(block) != NOBODY
    }

    /// Appends the places of `sectors` to `pieces`, in order.
    pub(super) fn resolve(
        &mut self,
        block: u32,
        sectors: Range<u32>,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Missing> {
        let leaf_number = self.leaf_number();
        let place = self.leaf().place(block);
        if let Place::Full(first) = place {
            push(pieces, sectors, Some((leaf_number, first)));
            return Ok(());
        }
        let Self {
            layers,
            below,
            runs,
            leaf_blocks,
            ..
        } = self;
        let lower = Lower {
            layers,
            top: below.get(block),
        };
        let runs = runs.get(block).map(|runs| &**runs);
        let Some(leaf_block) = leaf_blocks.get(block) else {
            return match place {
                Place::Absent => lower.resolve(block, sectors, runs, pieces),
                Place::Partial(_) | Place::Full(_) => Err(Missing),
            };
        };
        let first = u64::from(leaf_block.entry).saturating_add(1);
        for run in bitmap::runs(leaf_block.bits.as_slice(), sectors) {
            if run.present {
                push(pieces, run.sectors, Some((leaf_number, first)));
            } else {
                lower.resolve(block, run.sectors, runs, pieces)?;
            }
        }
        Ok(())
    }

    /// The bitmaps that have to be read before the block resolves: layer and sector in its file.
    pub(super) fn bitmaps_needed(&self, block: u32, with_lower: bool) -> Vec<(u16, u64)> {
        let mut needed = Vec::new();
        if let Place::Partial(entry) = self.leaf().place(block)
            && !self.leaf_blocks.contains(block)
        {
            needed.push((self.leaf_number(), u64::from(entry)));
        }
        if with_lower && !self.runs.contains(block) {
            let mut next = self.below.get(block);
            while let Some(layer) = self.layers.get(usize::from(next)) {
                match layer.place(block) {
                    Place::Partial(entry) => needed.push((next, u64::from(entry))),
                    Place::Full(_) => break,
                    Place::Absent => {}
                }
                let Some(lower) = next.checked_sub(1) else {
                    break;
                };
                next = lower;
            }
        }
        needed
    }

    /// Takes bitmaps that were read and makes the block resolvable.
    pub(super) fn learn(&mut self, block: u32, bitmaps: &[(u16, block::Buffer)], with_lower: bool) {
        let leaf_number = self.leaf_number();
        for (number, buffer) in bitmaps {
            let full = bitmap::is_full(buffer.as_slice());
            let Some(layer) = self.layers.get_mut(usize::from(*number)) else {
                continue;
            };
            if full {
                layer.set_full(block, true);
            }
            if *number == leaf_number
                && let Place::Partial(entry) = layer.place(block)
                && let Ok(bits) = <[u8; BITMAP_BYTES]>::try_from(buffer.as_slice())
            {
                self.leaf_blocks
                    .insert(block, LeafBlock::clean(Box::new(bits), entry));
            }
        }
        if with_lower && !self.runs.contains(block) {
            let top = self.below.get(block);
            let runs = Lower {
                layers: &self.layers,
                top,
            }
            .runs(block, bitmaps);
            self.runs.insert(block, runs);
        }
    }
}

/// The topmost layer up to `lower` that has (part of) the block.
fn top_at(layers: &[Layer], block: u32, lower: u16) -> u16 {
    let upper = layers.get(usize::from(lower));
    if upper.is_some_and(|layer| {
        layer.sectors_in(block) == BLOCK_SECTORS && !matches!(layer.place(block), Place::Absent)
    }) {
        return lower;
    }
    let up_to = (0..=lower).zip(layers);
    up_to.fold(NOBODY, |below, (number, layer)| {
        top_with(below, number, layer, block)
    })
}

/// The topmost layer that has (part of) the block, when `below` is the one below this layer.
fn top_with(below: u16, number: u16, layer: &Layer, block: u32) -> u16 {
    // A layer that ends before the block hides whatever lies further down; one that ends inside it
    // hides the rest, which the run list will say.
    let inside = layer.sectors_in(block);
    if inside == 0 {
        NOBODY
    } else if !matches!(layer.place(block), Place::Absent)
        || (inside < BLOCK_SECTORS && below != NOBODY)
    {
        number
    } else {
        below
    }
}

/// The layers below the leaf, for one block.
struct Lower<'a> {
    layers: &'a [Layer],
    top: u16,
}

impl Lower<'_> {
    fn resolve(
        &self,
        block: u32,
        sectors: Range<u32>,
        runs: Option<&[Run]>,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Missing> {
        let Some(top) = self.layers.get(usize::from(self.top)) else {
            push(pieces, sectors, None);
            return Ok(());
        };
        if let Place::Full(first) = top.place(block)
            && sectors.end <= top.sectors_in(block)
        {
            push(pieces, sectors, Some((self.top, first)));
            return Ok(());
        }
        let runs = runs.ok_or(Missing)?;
        let mut next = runs.partition_point(|run| u32::from(run.end) <= sectors.start);
        let mut start = sectors.start;
        while start < sectors.end {
            // The last run ends the block, so this finds one as long as sectors are left.
            let run = runs.get(next).copied().unwrap_or(Run {
                end: u16::MAX,
                layer: None,
            });
            let end = u32::from(run.end).min(sectors.end);
            let first = run.layer.and_then(|layer| {
                let place = self.layers.get(usize::from(layer))?.place(block);
                Some((layer, place.first_data_sector()?))
            });
            push(pieces, start..end, first);
            start = end;
            next += 1;
        }
        Ok(())
    }

    /// Decides each sector of a block from the top down.
    fn runs(&self, block: u32, bitmaps: &[(u16, block::Buffer)]) -> Box<[Run]> {
        let mut owners: Vec<Option<Option<u16>>> = vec![None; BLOCK_SECTORS as usize];
        let numbered = (0u16..)
            .zip(self.layers)
            .take(usize::from(self.top).saturating_add(1));
        let mut numbered: Vec<_> = numbered.collect();
        numbered.reverse();
        for (number, layer) in numbered {
            // Beyond the end of a shorter layer there are zeros, whatever lies further down.
            for owner in owners.iter_mut().skip(layer.sectors_in(block) as usize) {
                owner.get_or_insert(None);
            }
            match layer.place(block) {
                Place::Absent => {}
                Place::Full(_) => {
                    for owner in &mut owners {
                        owner.get_or_insert(Some(number));
                    }
                }
                Place::Partial(_) => {
                    let bits = bitmaps.iter().find(|(of, _)| *of == number);
                    let bits = bits.map_or(&[][..], |(_, buffer)| buffer.as_slice());
                    for run in bitmap::runs(bits, 0..BLOCK_SECTORS).filter(|run| run.present) {
                        let range = run.sectors.start as usize..run.sectors.end as usize;
                        for owner in owners.get_mut(range).unwrap_or_default() {
                            owner.get_or_insert(Some(number));
                        }
                    }
                }
            }
        }
        let mut runs: Vec<Run> = Vec::new();
        for (end, owner) in (1u16..).zip(owners) {
            let layer = owner.flatten();
            match runs.last_mut() {
                Some(last) if last.layer == layer => last.end = end,
                _ => runs.push(Run { end, layer }),
            }
        }
        runs.into_boxed_slice()
    }
}

/// Adds a piece, or lengthens the last one when it goes on in the same place. `first` is where the
/// block's sector 0 lies.
fn push(pieces: &mut Vec<Piece>, sectors: Range<u32>, first: Option<(u16, u64)>) {
    let place =
        first.map(|(layer, sector)| (layer, sector.saturating_add(u64::from(sectors.start))));
    if let Some(last) = pieces.last_mut()
        && last.sectors.end == sectors.start
    {
        let goes_on = match (last.place, place) {
            (None, None) => true,
            (Some((a, from)), Some((b, to))) => {
                let len = u64::from(last.sectors.end.saturating_sub(last.sectors.start));
                a == b && from.saturating_add(len) == to
            }
            _ => false,
        };
        if goes_on {
            last.sectors.end = sectors.end;
            return;
        }
    }
    pieces.push(Piece { sectors, place });
}

//! Trim and write-zeroes: as little work as keeps every promise.
//!
//! | the block is | and below it | trim | write zeroes |
//! |---|---|---|---|
//! | not in the leaf | nothing | done | done |
//! | not in the leaf | data | nothing: the content stays | zeros are written as data |
//! | in the leaf, not marked in the batmap | nothing | bits cleared, hole made if possible | same |
//! | in the leaf, otherwise | any | hole made, bits set | same, or zeros written |
//!
//! A clear bit shows what is below, so bits are cleared only where nothing is. A block that the
//! batmap on disk calls full is read by others without its bitmap, so its bits stay set and its
//! data becomes a hole. The same while the layers below are being written by a coalesce, which keeps
//! what the leaf hides where a cleared bit would show it. That way the batmap never has to be corrected before a bitmap.

use super::Engine;
use super::cache::{BITMAP_BYTES, LeafBlock};
use super::layer::{BLOCK_SECTORS, Content, Place};
use super::map::Beneath;
use super::state::{Context, Part};
use block::Action;
use units::SECTOR_BYTES;

impl Engine {
    pub(super) fn start_zero(&mut self, part: Part, trim: bool, may_trim: bool) {
        if !may_trim {
            return self.start_write(part);
        }
        let leaf = self.map.leaf();
        let place = leaf.place(part.block);
        let Content::Sparse(sparse) = &leaf.content else {
            return self.make_hole(part, place.first_data_sector(), trim, false);
        };
        let in_batmap = sparse.in_batmap(part.block);
        let nothing_below = !self.map.has_below(part.block);
        let may_clear = nothing_below && self.map.beneath == Beneath::Sealed;
        let known = self
            .map
            .leaf_blocks
            .get(part.block)
            .map(|block| u64::from(block.entry) + 1);
        let first = place.first_data_sector().or(known);
        match place {
            Place::Absent if known.is_none() => {
                if nothing_below || trim {
                    self.part_done(part.request, Ok(()));
                } else {
                    self.start_write(part);
                }
            }
            Place::Partial(_) if known.is_none() => self.wait_for_bitmaps(part, false),
            Place::Full(data_sector) if may_clear && !in_batmap && known.is_none() => {
                // Full in memory only: its bitmap is on disk, so a bit can go from it.
                let entry = u32::try_from(data_sector.saturating_sub(1)).unwrap_or(u32::MAX);
                let full = LeafBlock::clean(Box::new([0xFF; BITMAP_BYTES]), entry);
                self.map.leaf_blocks.insert(part.block, full);
                self.make_hole(part, first, trim, true);
            }
            _ => self.make_hole(part, first, trim, may_clear && !in_batmap),
        }
    }

    /// Makes a part's sectors a hole in the leaf's file; falls back to writing zeros.
    fn make_hole(&mut self, part: Part, first: Option<u64>, trim: bool, clear: bool) {
        let Some(first) = first else {
            return self.part_done(part.request, Ok(()));
        };
        let block_end = first
            .saturating_add(u64::from(BLOCK_SECTORS))
            .saturating_mul(SECTOR_BYTES);
        let is_sparse = self.map.leaf().sparse().is_some();
        // Where the file does not reach, a hole is not made and set bits would have nothing behind.
        let exists = !is_sparse || self.room.covers(block_end);
        if self.room.no_holes || !exists {
            if clear {
                self.change_bits(part, false);
                return self.part_done(part.request, Ok(()));
            }
            if trim {
                return self.part_done(part.request, Ok(()));
            }
            return self.start_write(part);
        }
        let offset = first
            .saturating_add(u64::from(part.start))
            .saturating_mul(SECTOR_BYTES);
        let part = self.pin(part);
        let action = Action::Punch {
            offset,
            len_bytes: part.len_bytes(),
        };
        let file = self.map.leaf().file;
        self.emit(file, action, Context::Punch { part, clear });
    }
}

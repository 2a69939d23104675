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
    /// Whether [`super::Request::WriteZeroes`] of the range makes holes or nothing at all, so that
    /// it is faster than a write. It says what is so now: a file system that refuses the first hole
    /// is found out only then, and a snapshot may come between.
    pub fn zeroes_are_fast(&mut self, offset: u64, len_bytes: u64, may_trim: bool) -> bool {
        let block_bytes = u64::from(BLOCK_SECTORS) * SECTOR_BYTES;
        let end = offset.saturating_add(len_bytes).min(self.size_bytes());
        let blocks = offset / block_bytes..end.div_ceil(block_bytes);
        may_trim
            && blocks
                .map(|b| u32::try_from(b).unwrap_or(u32::MAX))
                .all(|b| self.is_zeroed_fast(b))
    }

    /// As [`Engine::start_zero`] decides, for whole blocks.
    fn is_zeroed_fast(&mut self, block: u32) -> bool {
        let known = self.map.leaf_blocks.get(block);
        let known = known.map(|known| u64::from(known.entry) + 1);
        let leaf = self.map.leaf();
        let place = leaf.place(block);
        let Content::Sparse(sparse) = &leaf.content else {
            return !self.room.no_holes;
        };
        let nothing_below = !self.map.has_below(block);
        if matches!(place, Place::Absent) && known.is_none() {
            return nothing_below;
        }
        let clears = nothing_below && !sparse.in_batmap(block);
        let first = place.first_data_sector().or(known);
        clears || first.is_none_or(|first| self.can_punch(first))
    }

    /// Whether a hole in the block whose data begins there is possible. Where the file does not
    /// reach, a hole is not made and set bits would have nothing behind.
    fn can_punch(&self, first: u64) -> bool {
        let block_end = first
            .saturating_add(u64::from(BLOCK_SECTORS))
            .saturating_mul(SECTOR_BYTES);
        let is_sparse = self.map.leaf().sparse().is_some();
        !self.room.no_holes && (!is_sparse || self.room.covers(block_end))
    }

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
        if self.log.is_some() && !self.note_change(part) {
            return;
        }
        if !self.can_punch(first) {
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

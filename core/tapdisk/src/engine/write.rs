//! Changes: their order among each other, writing data, allocating blocks.

use super::Engine;
use super::cache::{BITMAP_BYTES, LeafBlock};
use super::layer::{BLOCK_SECTORS, Place};
use super::request::Error;
use super::reserve::image_error;
use super::state::{Context, Kind, Part, Span};
use block::{Action, Buffer, SharedBuffer};
use units::SECTOR_BYTES;
use vhd_rs::bitmap;

/// Bytes in a block: the most zeros one part can need.
const BLOCK_BYTES: usize = vhd_rs::BLOCK_BYTES as usize;

impl Engine {
    /// Starts a change, or queues it behind the changes it overlaps.
    pub(super) fn start_change_in_order(&mut self, index: u32) {
        let Some(span) = self.span_of(index) else {
            return;
        };
        if self.overlaps_running(span) || self.overlaps_queued(span, self.ordered.len()) {
            return self.ordered.push_back(index);
        }
        self.touched = true;
        self.changing.push((index, span.first, span.end));
        self.start_parts(index, span);
    }

    /// Ends a change's hold on its range and starts those that waited for it.
    pub(super) fn change_done(&mut self, index: u32) {
        self.changing.retain(|(request, ..)| *request != index);
        if self.releasing {
            // The loop below runs already and will see it; nesting would have no limit.
            return;
        }
        self.releasing = true;
        let mut at = 0;
        while let Some(&waiting) = self.ordered.get(at) {
            let span = self.span_of(waiting);
            let blocked = span
                .is_some_and(|span| self.overlaps_running(span) || self.overlaps_queued(span, at));
            if blocked {
                at += 1;
                continue;
            }
            self.ordered.remove(at);
            let Some(span) = span else { continue };
            if let Some(error) = self.poison_error() {
                self.part_done(waiting, Err(error));
            } else {
                self.changing.push((waiting, span.first, span.end));
                self.start_parts(waiting, span);
            }
            // Starting one may have finished it and with it others: look at all again.
            at = 0;
        }
        self.releasing = false;
    }

    fn span_of(&self, index: u32) -> Option<Span> {
        match &self.requests.get(index)?.kind {
            Kind::Write { span, .. } | Kind::Zero { span, .. } => Some(*span),
            Kind::Read { .. } | Kind::Status { .. } | Kind::Flush | Kind::Live => None,
        }
    }

    fn overlaps_running(&self, span: Span) -> bool {
        self.changing
            .iter()
            .any(|(_, first, end)| span.first < *end && *first < span.end)
    }

    fn overlaps_queued(&self, span: Span, before: usize) -> bool {
        self.ordered
            .iter()
            .take(before)
            .filter_map(|index| self.span_of(*index))
            .any(|other| span.first < other.end && other.first < span.end)
    }

    /// Writes a part's data where it belongs, after making a place for it.
    pub(super) fn start_write(&mut self, part: Part) {
        let block = part.block;
        let place = self.map.leaf().place(block);
        let mut first = place.first_data_sector();
        if !matches!(place, Place::Full(_)) {
            match self.map.leaf_blocks.get(block) {
                Some(known) => first = Some(u64::from(known.entry).saturating_add(1)),
                None if matches!(place, Place::Partial(_)) => {
                    return self.wait_for_bitmaps(part, false);
                }
                None => {
                    if !self.map.has_below(block) && self.is_all_zeros(part) {
                        // Nothing is there and nothing stays there: zeros by absence.
                        return self.part_done(part.request, Ok(()));
                    }
                    match self.allocate(block) {
                        Ok(data_sector) => first = Some(data_sector),
                        Err(error) => return self.part_done(part.request, Err(error)),
                    }
                }
            }
        }
        let Some(first) = first else { return };
        if self.map.leaf().sparse().is_some() {
            let end = first
                .saturating_add(u64::from(BLOCK_SECTORS))
                .saturating_mul(SECTOR_BYTES);
            if !self.room.covers(end) {
                return self.wait_for_room(part, end);
            }
        }
        if self.log.is_some() && !self.note_change(part) {
            return;
        }
        let Some(data) = self.data_of(part) else {
            return;
        };
        let offset = first
            .saturating_add(u64::from(part.start))
            .saturating_mul(SECTOR_BYTES);
        let part = self.pin(part);
        let file = self.map.leaf().file;
        self.emit(file, Action::Write { offset, data }, Context::Data(part));
    }

    /// Counts the part among its block's writers, so that the block's bits stay in memory.
    pub(super) fn pin(&mut self, part: Part) -> Part {
        if part.pinned {
            return part;
        }
        match self.map.leaf_blocks.get(part.block) {
            Some(block) => {
                block.writers = block.writers.saturating_add(1);
                Part {
                    pinned: true,
                    ..part
                }
            }
            None => part,
        }
    }

    fn unpin(&mut self, part: Part) {
        if part.pinned
            && let Some(block) = self.map.leaf_blocks.get(part.block)
        {
            block.writers = block.writers.saturating_sub(1);
        }
        self.forget_unused(part.block);
    }

    /// Gives back a new block into which nothing was written after all.
    pub(super) fn forget_unused(&mut self, block: u32) {
        let Some(known) = self.map.leaf_blocks.get(block) else {
            return;
        };
        let unused = known.writers == 0
            && !known.dirty
            && !known.flushing
            && bitmap::is_empty(known.bits.as_slice());
        if let Some(allocation) = known.fresh.filter(|_| unused) {
            self.map.leaf_blocks.remove(block);
            if let Some(sparse) = self.map.leaf_mut().sparse_mut() {
                sparse.image.release(&allocation);
            }
        }
    }

    /// Reserves space for a block of the leaf; returns the sector of its data. The block exists on
    /// disk only after the next flush.
    fn allocate(&mut self, block: u32) -> Result<u64, Error> {
        let Some(sparse) = self.map.leaf_mut().sparse_mut() else {
            return Ok(0);
        };
        let allocation = sparse.image.reserve(block).map_err(|e| image_error(&e))?;
        // `reserve` refuses entries that do not fit 32 bits.
        let entry = u32::try_from(allocation.bitmap_offset / SECTOR_BYTES).unwrap_or(u32::MAX);
        let mut fresh = LeafBlock::clean(Box::new([0; BITMAP_BYTES]), entry);
        fresh.fresh = Some(allocation);
        self.map.leaf_blocks.insert(block, fresh);
        Ok(allocation.data_offset / SECTOR_BYTES)
    }

    fn is_all_zeros(&self, part: Part) -> bool {
        match self.requests.get(part.request).map(|request| &request.kind) {
            Some(Kind::Write { span, data, .. }) => slice_of(*span, data, part)
                .is_some_and(|data| data.as_slice().iter().all(|byte| *byte == 0)),
            _ => false,
        }
    }

    fn data_of(&mut self, part: Part) -> Option<SharedBuffer> {
        match &self.requests.get(part.request)?.kind {
            Kind::Write { span, data, .. } => slice_of(*span, data, part),
            Kind::Zero { .. } => {
                let zeros = self
                    .zeros
                    .get_or_insert_with(|| Buffer::zeroed(BLOCK_BYTES).share());
                zeros.slice(0..part.len_bytes() as usize)
            }
            Kind::Read { .. } | Kind::Status { .. } | Kind::Flush | Kind::Live => None,
        }
    }

    /// A part's data (or zeros) is in the file: from now on reads must find it there.
    pub(super) fn data_done(&mut self, part: Part, result: Result<(), block::Error>) {
        self.flush.volatile = true;
        if result.is_ok() {
            self.change_bits(part, true);
        }
        self.unpin(part);
        self.part_done(part.request, result.map_err(Error::from));
    }

    /// Sets or clears the bits of a part's sectors in its leaf block, if it has one in memory.
    pub(super) fn change_bits(&mut self, part: Part, present: bool) {
        let Some(block) = self.map.leaf_blocks.get(part.block) else {
            return;
        };
        let sectors = part.start..part.end;
        let changed = if present {
            bitmap::set_range(block.bits.as_mut_slice(), sectors)
        } else {
            bitmap::clear_range(block.bits.as_mut_slice(), sectors)
        };
        if !changed {
            return;
        }
        let full = bitmap::is_full(block.bits.as_slice());
        if block.fresh.is_none() {
            self.map.leaf_mut().set_full(part.block, full);
        }
        self.mark_dirty(part.block);
    }

    /// The end of punching a hole; see `zero.rs`.
    pub(super) fn punch_done(&mut self, part: Part, clear: bool, result: Result<(), block::Error>) {
        self.flush.volatile = true;
        let unsupported = result
            .as_ref()
            .is_err_and(|e| e.kind == block::ErrorKind::Unsupported);
        self.room.no_holes |= unsupported;
        if clear {
            // Clear bits read as zeros, whether the hole was made or not.
            self.change_bits(part, false);
        } else if unsupported {
            let trim = matches!(
                self.requests.get(part.request).map(|request| &request.kind),
                Some(Kind::Zero { trim: true, .. })
            );
            if !trim {
                self.unpin(part);
                return self.start_write(Part {
                    pinned: false,
                    ..part
                });
            }
        } else if result.is_ok() {
            self.change_bits(part, true);
        }
        self.unpin(part);
        let ignored = clear || unsupported;
        self.part_done(
            part.request,
            if ignored {
                Ok(())
            } else {
                result.map_err(Error::from)
            },
        );
    }
}

fn slice_of(span: Span, data: &SharedBuffer, part: Part) -> Option<SharedBuffer> {
    let from = part
        .disk_sector()
        .checked_sub(span.first)?
        .checked_mul(SECTOR_BYTES)?;
    let from = usize::try_from(from).ok()?;
    data.slice(from..from.checked_add(part.len_bytes() as usize)?)
}

//! Flush: two barriers however much is dirty, shared by everyone who waits.
//!
//! ```text
//!  Idle ──> Fresh ──────────> BarrierA ──────> Table ───────────────> BarrierB ──> Idle, answer
//!           bitmaps of new    fdatasync        bitmaps of old blocks,  fdatasync
//!           blocks, with                       BAT sectors of new ones
//!           their bits
//! ```
//! When a flush starts it takes a copy of every dirty bitmap; the bits in it are of data that is in
//! the file by then. Barrier A makes that data durable, and the new blocks' bitmaps with it, which
//! nobody can see before the BAT names them. Only then bits and BAT entries are written. So a
//! durable bit has durable data behind it and a durable BAT entry a durable bitmap, and a crash in
//! between leaves the state of the last flush. With nothing dirty there is one barrier.
//!
//! Changes that are logged (see `cbt.rs`) are marked durably by the end of barrier A; the log is
//! another file, whose barrier runs beside it.
//!
//! Who comes while a flush runs waits for the next one. A flush starts when the loop asks for
//! operations and there are no others, so all who came in one turn share it: requests to flush,
//! writes with FUA, and in write-through mode every change. A barrier that fails poisons the disk.

use super::Engine;
use super::cache::BITMAP_BYTES;
use super::pause::Stall;
use super::request::Error;
use super::state::{Context, Kind};
use block::{Action, SharedBuffer};
use std::collections::BTreeMap;
use units::SECTOR_BYTES;
use vhd_rs::bitmap;

/// Dirty blocks that start a flush without anyone asking: bounds memory and the time of the next.
const DIRTY_MAX: usize = 1024;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    Fresh,
    BarrierA,
    /// Barrier A is through, the log of changed blocks is not.
    Log,
    Table,
    BarrierB,
}

/// What is not durable, and the flush under way.
#[derive(Debug, Default)]
pub(super) struct Flush {
    /// Something was done to the leaf's file since the last barrier was started.
    pub(super) volatile: bool,
    /// Blocks whose bitmaps or entries differ from what is on disk.
    dirty: Vec<u32>,
    phase: Phase,
    /// Requests the flush under way answers, and those that wait for the next.
    answering: Vec<u32>,
    wanted: Vec<u32>,
    /// Blocks of the flush under way, and the copies of old blocks' bitmaps.
    blocks: Vec<u32>,
    old_bitmaps: Vec<(u64, SharedBuffer)>,
    pending: u32,
    /// The sync of the log that the table must not get ahead of.
    log_sync: u64,
    error: Option<Error>,
}

impl Flush {
    /// Nothing dirty, but not known to be durable either: whoever wrote the files before may have
    /// been killed.
    pub(super) fn new() -> Self {
        Self {
            volatile: true,
            ..Self::default()
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }
}

/// Views of a buffer, each of so many bytes.
fn cut(data: &SharedBuffer, bytes: usize) -> impl Iterator<Item = SharedBuffer> {
    let starts = (0..data.len()).step_by(bytes);
    starts.filter_map(move |start| data.slice(start..start.saturating_add(bytes)))
}

impl Engine {
    /// Adds a block to those the next flush writes.
    pub(super) fn mark_dirty(&mut self, block: u32) {
        let Some(known) = self.map.leaf_blocks.get(block) else {
            return;
        };
        if known.dirty {
            return;
        }
        known.dirty = true;
        self.flush.dirty.push(block);
        if self.flush.dirty.len() >= DIRTY_MAX && self.flush.is_idle() && self.poisoned.is_none() {
            self.start_flush();
        }
    }

    /// Answers the request after a flush that starts from now on.
    pub(super) fn want_flush(&mut self, index: u32) {
        self.flush.wanted.push(index);
        if self.flush.is_idle() && self.nothing_to_flush() {
            self.start_flush();
        }
    }

    /// A flush would end at once: all is durable, or nothing will ever be.
    fn nothing_to_flush(&self) -> bool {
        let clean = self.flush.dirty.is_empty() && !self.flush.volatile && !self.log_is_behind();
        clean || self.poisoned.is_some()
    }

    /// Starts the flush that somebody waits for, if none is under way.
    pub(super) fn start_due_flush(&mut self) {
        if self.flush.is_idle() && !self.flush.wanted.is_empty() {
            self.start_flush();
        }
    }

    fn start_flush(&mut self) {
        self.flush.answering = std::mem::take(&mut self.flush.wanted);
        let merged = self.flush.answering.len().saturating_sub(1) as u64;
        self.stats.counts.flushes_merged += merged;
        if let Some(error) = self.poison_error() {
            return self.end_flush(Some(error));
        }
        self.flush.blocks = std::mem::take(&mut self.flush.dirty);
        let log_behind = self.log_is_behind();
        self.flush.log_sync = self.sync_log();
        if self.flush.blocks.is_empty() && !self.flush.volatile && !log_behind {
            return self.end_flush(None);
        }
        self.flush.phase = Phase::Fresh;
        self.flush.pending = 1;
        let file = self.map.leaf().file;
        // One buffer for all of them: there may be a thousand, and a buffer is at least a page.
        let blocks = self.flush.blocks.clone();
        let mut copies = self.pool.take(blocks.len().saturating_mul(BITMAP_BYTES));
        let mut places = Vec::with_capacity(blocks.len());
        let rooms = copies.as_mut_slice().chunks_exact_mut(BITMAP_BYTES);
        for (block, room) in blocks.into_iter().zip(rooms) {
            places.push(self.map.leaf_blocks.get(block).map(|known| {
                known.dirty = false;
                known.flushing = true;
                room.copy_from_slice(known.bits.as_slice());
                let offset = u64::from(known.entry).saturating_mul(SECTOR_BYTES);
                (offset, known.fresh.is_some())
            }));
        }
        for (place, data) in places.into_iter().zip(cut(&copies.share(), BITMAP_BYTES)) {
            match place {
                None => {}
                Some((offset, false)) => self.flush.old_bitmaps.push((offset, data)),
                Some((offset, true)) => {
                    self.flush.pending = self.flush.pending.saturating_add(1);
                    self.emit(file, Action::Write { offset, data }, Context::FlushWrite);
                }
            }
        }
        self.flush_write_done(Ok(()));
    }

    /// One write of the present phase is done; the last one leads to the barrier after it.
    pub(super) fn flush_write_done(&mut self, result: Result<(), block::Error>) {
        if let Err(error) = result {
            self.flush.error.get_or_insert(error.into());
        }
        self.flush.pending = self.flush.pending.saturating_sub(1);
        if self.flush.pending > 0 {
            return;
        }
        if let Some(error) = self.flush.error.take() {
            return self.end_flush(Some(error));
        }
        self.flush.phase = match self.flush.phase {
            Phase::Table => Phase::BarrierB,
            _ => Phase::BarrierA,
        };
        self.flush.volatile = false;
        let file = self.map.leaf().file;
        self.emit(file, Action::Fdatasync, Context::FlushSync);
    }

    pub(super) fn flush_sync_done(&mut self, result: Result<(), block::Error>) {
        if let Err(error) = result {
            self.poison(&error);
            return self.end_flush(Some(error.into()));
        }
        if self.flush.phase == Phase::BarrierA {
            self.flush.phase = Phase::Log;
            self.flush_log_synced();
        } else {
            self.end_flush(None);
        }
    }

    /// Goes on after barrier A once the log is durable as well, usually at once.
    pub(super) fn flush_log_synced(&mut self) {
        if self.flush.phase != Phase::Log || !self.log_is_synced(self.flush.log_sync) {
            return;
        }
        if self.flush.blocks.is_empty() {
            self.end_flush(None);
        } else {
            self.write_table();
        }
    }

    /// After barrier A: the old blocks' bitmaps, and the BAT sectors that name the new blocks.
    fn write_table(&mut self) {
        self.flush.phase = Phase::Table;
        self.flush.pending = 1;
        let file = self.map.leaf().file;
        let mut writes: Vec<(u64, SharedBuffer)> = std::mem::take(&mut self.flush.old_bitmaps);
        let mut sectors: BTreeMap<u64, u32> = BTreeMap::new();
        for block in self.flush.blocks.clone() {
            if self.commit(block)
                && let Some(sector) = self.bat_sector(block)
            {
                sectors.insert(sector.offset, block);
            }
        }
        // Made only now, so that a sector shows all blocks committed here.
        let sectors = sectors.into_values();
        let sectors: Vec<_> = sectors.filter_map(|block| self.bat_sector(block)).collect();
        let sector_bytes = SECTOR_BYTES as usize;
        let mut copies = self.pool.take(sectors.len().saturating_mul(sector_bytes));
        let rooms = copies.as_mut_slice().chunks_exact_mut(sector_bytes);
        for (sector, room) in sectors.iter().zip(rooms) {
            room.copy_from_slice(&sector.bytes);
        }
        let offsets = sectors.iter().map(|sector| sector.offset);
        writes.extend(offsets.zip(cut(&copies.share(), sector_bytes)));
        writes.sort_unstable_by_key(|(offset, _)| *offset);
        for (offset, data) in writes {
            self.flush.pending = self.flush.pending.saturating_add(1);
            self.emit(file, Action::Write { offset, data }, Context::FlushWrite);
        }
        self.flush.volatile = true;
        self.flush_write_done(Ok(()));
    }

    fn bat_sector(&self, block: u32) -> Option<vhd_rs::SectorWrite> {
        self.map.leaf().sparse()?.image.bat_sector(block)
    }

    /// Enters a fresh block in the table in memory; returns whether its BAT sector is to be
    /// written, which is also so when an earlier flush failed to.
    fn commit(&mut self, block: u32) -> bool {
        let Some(known) = self.map.leaf_blocks.get(block) else {
            return false;
        };
        if let Some(allocation) = known.fresh {
            let full = bitmap::is_full(known.bits.as_slice());
            let Some(sparse) = self.map.leaf_mut().sparse_mut() else {
                return false;
            };
            // It can only fail for a block that is in the table already.
            if sparse.image.commit(&allocation).is_err() {
                return false;
            }
            sparse.full.set(block, full);
            if let Some(known) = self.map.leaf_blocks.get(block) {
                known.fresh = None;
                known.table_pending = true;
            }
        }
        self.map
            .leaf_blocks
            .get(block)
            .is_some_and(|known| known.table_pending)
    }

    /// Ends the flush under way, answers, and starts the next if somebody waits for it.
    fn end_flush(&mut self, error: Option<Error>) {
        self.flush.phase = Phase::Idle;
        self.flush.old_bitmaps.clear();
        let failed = error.is_some();
        self.flush.volatile |= failed;
        for block in std::mem::take(&mut self.flush.blocks) {
            let Some(known) = self.map.leaf_blocks.get(block) else {
                continue;
            };
            known.flushing = false;
            if !failed {
                known.table_pending = false;
            } else if !known.dirty {
                known.dirty = true;
                self.flush.dirty.push(block);
            }
        }
        for index in std::mem::take(&mut self.flush.answering) {
            let Some(request) = self.requests.get_mut(index) else {
                continue;
            };
            if matches!(request.kind, Kind::Live) {
                self.live_flushed(error.clone());
            } else {
                request.error = error.clone();
                if !(failed && self.stall(index, Stall::Flush)) {
                    self.finish(index);
                }
            }
        }
        if self.nothing_to_flush() {
            self.start_due_flush();
        }
    }

    /// Remembers that a barrier failed: what was written since the last good one may be lost
    /// although it still reads back, so nothing after it can be trusted.
    pub(super) fn poison(&mut self, error: &block::Error) {
        self.poisoned.get_or_insert_with(|| error.to_string());
    }
}

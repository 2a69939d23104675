//! Settled changes: what is answered is in the file, metadata and all, so that it outlives this
//! process. A front end whose guest goes on while the process is replaced needs that; for all
//! others the next flush is soon enough.
//!
//! Data is in the file when a change is answered anyway. Its bits and its block's entry may be in
//! memory alone, and they must not be written before the data is durable, so a change that has such
//! waits for a flush. Changes of one turn share it, and a sector that was written before has
//! nothing left to wait for.

use super::Engine;
use super::layer::BLOCK_SECTORS;
use super::state::Span;

impl Engine {
    /// Whether changes are answered only when they outlive this process.
    pub fn is_settling(&self) -> bool {
        self.settling
    }

    /// Answers changes, from now on, only when they outlive this process; or again as soon as
    /// their data is written. Neither says anything about a loss of power.
    pub fn set_settling(&mut self, settling: bool) {
        self.settling = settling;
    }

    /// Whether a change that is otherwise done has metadata in memory alone.
    pub(super) fn is_unsettled(&mut self, span: Span) -> bool {
        if !self.settling || span.first >= span.end {
            return false;
        }
        let sectors = u64::from(BLOCK_SECTORS);
        let blocks = span.first / sectors..=(span.end - 1) / sectors;
        let mut blocks = blocks.filter_map(|block| u32::try_from(block).ok());
        blocks.any(|block| {
            self.map.leaf_blocks.get(block).is_some_and(|block| {
                block.dirty || block.flushing || block.table_pending || block.fresh.is_some()
            })
        })
    }
}

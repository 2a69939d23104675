//! What the machine that copies disks asks of an engine besides requests: which blocks can hold
//! anything at all, and what it must know about layers that are written below it.

use super::Engine;
use super::layer::{Layer, Place};
use super::map::{Beneath, Map};
use super::request::{Request, Scope, Ticket};
use super::state::Kind;
use units::SECTOR_BYTES;

/// Bytes of a block, the unit in which a disk is copied.
pub const BLOCK_BYTES: u64 = vhd_rs::BLOCK_BYTES as u64;

impl Engine {
    /// Blocks of the disk, the last of which may be cut short by its end.
    pub fn blocks(&self) -> u32 {
        self.map.leaf().blocks()
    }

    /// Whether some sector of the block can be in scope. Told from tables in memory: `true` for a
    /// block that a layer has, even if its bitmap turns out to be empty.
    pub fn may_hold(&self, block: u32, scope: Scope) -> bool {
        match scope {
            Scope::Chain => self.leaf_has(block) || self.map.has_below(block),
            Scope::Layer(0) => self.leaf_has(block),
            Scope::Layer(depth) => self.layer(depth).is_some_and(|layer| has(layer, block)),
        }
    }

    /// Whether making the range zero would put zeros as data where the leaf has no block yet.
    pub fn zeroing_allocates(&self, offset: u64, len_bytes: u64) -> bool {
        let first = offset / BLOCK_BYTES;
        let end = offset.saturating_add(len_bytes).div_ceil(BLOCK_BYTES);
        (first..end).any(|block| {
            let block = u32::try_from(block).unwrap_or(u32::MAX);
            self.map.has_below(block) && !self.leaf_has(block)
        })
    }

    /// From now on sectors that the leaf holds are written into the layer below it. What the leaf
    /// hides stays hidden: its bits are set and never cleared any more.
    pub fn leaf_is_being_merged(&mut self) {
        if self.map.beneath == Beneath::Sealed {
            self.map.beneath = Beneath::Written;
        }
    }

    /// The layers below the leaf may hold something the leaf does not hide and this engine does
    /// not know of: zeros are written as data from now on.
    pub fn distrust_layers_below(&mut self) {
        self.map.beneath = Beneath::Unknown;
    }

    /// Changes that were submitted and are not finished: ticket, offset and length in bytes.
    pub fn changes_in_flight(&self) -> Vec<(Ticket, u64, u64)> {
        let running = self.requests.values().filter_map(|active| {
            let (Kind::Write { span, .. } | Kind::Zero { span, .. }) = &active.kind else {
                return None;
            };
            let offset = span.first.saturating_mul(SECTOR_BYTES);
            Some((active.ticket, offset, span.len_bytes()))
        });
        let held = self.held.iter().filter_map(|held| {
            let (offset, len_bytes) = held.request.changed_range()?;
            Some((held.ticket, offset, len_bytes))
        });
        running.chain(held).collect()
    }

    /// Becomes the engine of the disk that `old` was the engine of: its settings and counts go on.
    pub fn take_over(&mut self, old: &mut Engine) {
        self.config.write_through = old.config.write_through;
        self.stats = std::mem::take(&mut old.stats);
        self.settling = old.settling;
        self.set_policy(old.policy());
        // They were good for the old one.
        let _ = self.set_limits(old.limits());
        self.set_policy(old.policy());
        self.take_log(old);
    }

    /// Whether a live operation is under way or the disk is frozen.
    pub fn is_held(&self) -> bool {
        self.frozen || self.live.is_some()
    }

    fn leaf_has(&self, block: u32) -> bool {
        has(self.map.leaf(), block) || self.map.leaf_blocks.contains(block)
    }

    fn layer(&self, depth: u16) -> Option<&Layer> {
        let Map { layers, .. } = &self.map;
        layers.iter().rev().nth(usize::from(depth))
    }
}

impl Request {
    /// Offset and length in bytes of what it changes.
    pub(crate) fn changed_range(&self) -> Option<(u64, u64)> {
        match self {
            Request::Write { offset, data, .. } => Some((*offset, data.len() as u64)),
            Request::WriteShared { offset, data, .. } => Some((*offset, data.len() as u64)),
            Request::Trim {
                offset, len_bytes, ..
            }
            | Request::WriteZeroes {
                offset, len_bytes, ..
            } => Some((*offset, *len_bytes)),
            Request::Read { .. }
            | Request::BlockStatus { .. }
            | Request::LayerStatus { .. }
            | Request::Flush => None,
        }
    }
}

fn has(layer: &Layer, block: u32) -> bool {
    !matches!(layer.place(block), Place::Absent)
}

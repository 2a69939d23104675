//! The state of every block: one byte each, and counts.

use crate::engine::{BLOCK_BYTES, Engine, Scope};
use std::collections::VecDeque;

/// Blocks looked at in one go: about 50 microseconds.
const SCAN_MAX: u32 = 8192;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not looked at, or to be copied.
    Todo,
    /// Being copied.
    Copying,
    /// Both engines hold the same.
    Done,
    /// Being copied or compared with its changes held back, or about to be.
    Held,
}

#[derive(Debug)]
pub(super) struct Blocks {
    states: Vec<State>,
    /// First block the scan has not seen.
    scanned: u32,
    /// Found by the scan or changed since, in the order they will be copied.
    queue: VecDeque<(u32, u8)>,
    found: u64,
    copied: u64,
}

impl Blocks {
    pub(super) fn new(blocks: u32) -> Self {
        Self {
            states: vec![State::Todo; blocks as usize],
            scanned: 0,
            queue: VecDeque::new(),
            found: 0,
            copied: 0,
        }
    }

    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.states.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn state(&self, block: u32) -> State {
        let state = self.states.get(block as usize).copied();
        state.unwrap_or(State::Done)
    }

    pub(super) fn set(&mut self, block: u32, state: State) {
        if let Some(place) = self.states.get_mut(block as usize) {
            *place = state;
        }
    }

    /// Goes on with the scan: blocks in which neither side can hold anything are done. Whether
    /// there is more to scan.
    pub(super) fn scan(&mut self, source: &Engine, target: &Engine, scope: Scope) -> bool {
        let end = self.scanned.saturating_add(SCAN_MAX).min(self.len());
        for block in self.scanned..end {
            let to_clear = scope == Scope::Chain && target.may_hold(block, Scope::Chain);
            if source.may_hold(block, scope) || to_clear {
                self.queue.push_back((block, 0));
                self.found += 1;
            } else {
                self.set(block, State::Done);
            }
        }
        self.scanned = end;
        end < self.len()
    }

    /// The next block to be copied, and how often that was tried.
    pub(super) fn next(&mut self) -> Option<(u32, u8)> {
        self.queue.pop_front()
    }

    /// A block that was done or being copied has to be copied (again).
    pub(super) fn again(&mut self, block: u32, tries: u8) {
        if self.state(block) == State::Done {
            // It may be one that the scan found empty.
            self.found = self.found.saturating_add(1);
        }
        self.set(block, State::Todo);
        self.queue.push_back((block, tries));
    }

    pub(super) fn copied(&mut self, block: u32) {
        self.set(block, State::Done);
        self.copied = self.copied.saturating_add(1);
    }

    pub(super) fn all_copied(&self) -> bool {
        self.scanned >= self.len() && self.queue.is_empty()
    }

    /// Bytes of blocks with something in them, and of those copied.
    pub(super) fn progress_bytes(&self) -> (u64, u64) {
        let total = self.found.max(self.copied);
        (
            total.saturating_mul(BLOCK_BYTES),
            self.copied.saturating_mul(BLOCK_BYTES),
        )
    }
}

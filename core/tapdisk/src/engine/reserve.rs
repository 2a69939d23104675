//! Room for new blocks. A growing file is made longer some blocks ahead, so that writes never change
//! its size, what is not written reads as zeros, and its last sector is never a guest's.
//!
//! The first time, the footer at the end is taken out of use (its copy at offset 0 is made good
//! before) and everything behind the last block is cut off, so that bytes of blocks that a crash
//! took back cannot come to light.

use super::Engine;
use super::layer::Layer;
use super::request::{Error, ErrorKind};
use super::state::{Context, Part};
use std::collections::VecDeque;
use vhd_rs::{Extent, Plan, Step};

/// How much further than needed a file is extended: 32 blocks with their bitmaps and gaps.
const AHEAD_BYTES: u64 = 32 * 4104 * 512;

/// The leaf's file size as it is now and will be.
#[derive(Debug)]
pub(super) struct Room {
    grows: bool,
    /// Bytes up to which the file exists.
    file_bytes: u64,
    /// Whether the steps that clean up the end of the file were made (not: done).
    planned: bool,
    /// End of the blocks when the leaf was opened.
    data_end: u64,
    /// What is still to be done to the file; the last step extends it to `next_bytes`.
    steps: VecDeque<Step>,
    doing: Option<Step>,
    next_bytes: u64,
    waiters: Vec<Part>,
    /// The file cannot have holes made in it.
    pub(super) no_holes: bool,
}

impl Room {
    pub(super) fn of(leaf: &Layer) -> Self {
        let image = leaf.sparse().map(|sparse| &sparse.image);
        // What a killed process left behind the last block is about to be cut off: no new block may
        // go there before, or it is cut off with the rest.
        let kept_bytes = image.map_or(u64::MAX, |image| image.size_needed_bytes());
        Self {
            grows: image.is_some_and(|image| image.options().extent == Extent::Grows),
            file_bytes: leaf.file_bytes.min(kept_bytes),
            planned: false,
            data_end: image.map_or(0, |image| image.end_of_data_bytes()),
            steps: VecDeque::new(),
            doing: None,
            next_bytes: 0,
            waiters: Vec::new(),
            no_holes: false,
        }
    }

    /// Whether data may be written up to here: one more sector must follow it.
    pub(super) fn covers(&self, end_bytes: u64) -> bool {
        !self.grows || end_bytes.saturating_add(512) <= self.file_bytes
    }
}

impl Engine {
    /// Parks a part until the leaf's file reaches beyond `end_bytes`.
    pub(super) fn wait_for_room(&mut self, part: Part, end_bytes: u64) {
        self.room.waiters.push(part);
        if self.room.doing.is_some() {
            return;
        }
        if !self.room.planned {
            let plan = match self.map.leaf_mut().sparse_mut() {
                Some(sparse) => sparse.image.in_use_plan(),
                None => Ok(Plan::default()),
            };
            match plan {
                Ok(plan) => self.room.steps.extend(plan.steps),
                Err(e) => return self.room_failed(&image_error(&e)),
            }
            self.room.steps.push_back(Step::SetSize {
                bytes: self.room.data_end,
            });
            self.room.planned = true;
        }
        self.room.next_bytes = end_bytes
            .max(self.room.data_end)
            .saturating_add(AHEAD_BYTES);
        self.room.steps.push_back(Step::SetSize {
            bytes: self.room.next_bytes,
        });
        self.next_room_step();
    }

    fn next_room_step(&mut self) {
        self.room.doing = self.room.steps.pop_front();
        if let Some(step) = self.room.doing.clone() {
            let file = self.map.leaf().file;
            self.emit_step(file, step, Context::Room);
            return;
        }
        self.room.file_bytes = self.room.next_bytes;
        self.flush.volatile = true;
        for part in std::mem::take(&mut self.room.waiters) {
            self.start_part(part);
        }
    }

    pub(super) fn room_done(&mut self, result: Result<(), block::Error>) {
        match result {
            Ok(()) => self.next_room_step(),
            Err(error) => {
                if error.verb == block::Verb::Fdatasync {
                    self.poison(&error);
                }
                // Whoever needs room next goes on where this stopped, to a size of its own.
                self.room.steps.extend(self.room.doing.take());
                self.room.steps.rotate_right(1);
                self.room.steps.pop_back();
                self.room_failed(&Error::from(error));
            }
        }
    }

    fn room_failed(&mut self, error: &Error) {
        for part in std::mem::take(&mut self.room.waiters) {
            self.forget_unused(part.block);
            self.part_done(part.request, Err(error.clone()));
        }
    }
}

/// An error of the format library in this module's terms.
pub(super) fn image_error(error: &vhd_rs::Error) -> Error {
    let kind = match error.kind() {
        vhd_rs::ErrorKind::NoSpace => ErrorKind::NoSpace,
        vhd_rs::ErrorKind::Io => ErrorKind::Io,
        vhd_rs::ErrorKind::Argument => ErrorKind::Invalid,
        _ => ErrorKind::Unsupported,
    };
    Error::new(kind, error.to_string())
}

//! The copy itself: blocks under way, the runs in them, pieces read and written.
//!
//! ```text
//!  Waiting ──> Asking ──> Moving ──> done, or once more
//!    │           │          └ a piece: read from the source, then written to the target
//!    │           └ which sectors are in scope, from the source's map
//!    └ held blocks only: until no change of the block is in flight
//! ```
//! Neighbouring sectors in scope are one piece, up to [`PIECE_BYTES`]; nothing is read that is not
//! written, and nothing is read to be modified.

use super::blocks::State;
use super::{Mirror, Phase, Switch};
use crate::engine::{
    BLOCK_BYTES, Done, Engine, Error, Extent, ExtentState, Request, Scope, Ticket,
};
use block::Buffer;
use std::collections::VecDeque;

/// Most bytes of one piece: what buffers are kept for. Beyond it nothing gets faster.
const PIECE_BYTES: u64 = 1 << 20;
/// The same while guests have requests in flight, who wait behind it in the device.
const PIECE_BYTES_BUSY: u64 = 256 << 10;
/// Bytes read and not yet written.
const WINDOW_BYTES: u64 = 8 << 20;
/// Blocks under way, for those whose bitmaps have to be read and that are in small pieces.
const ACTIVE_MAX: usize = 16;
/// The same while guests have requests in flight.
const ACTIVE_MAX_BUSY: usize = 2;
/// Copies of a block that may be in vain before its changes are held back.
const TRIES_MAX: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Copy,
    /// Copies what the disk reads as, whatever the scope: a change failed on the source alone.
    Heal,
    Compare,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Asking,
    Moving,
}

/// Bytes of the disk, of the same state.
#[derive(Debug, Clone, Copy)]
struct Run {
    offset: u64,
    len_bytes: u64,
    is_data: bool,
}

/// A block under way.
#[derive(Debug)]
pub(super) struct Active {
    block: u32,
    task: Task,
    stage: Stage,
    runs: VecDeque<Run>,
    pending: u32,
    /// The guest changed it meanwhile.
    changed: bool,
    tries: u8,
    /// What one side of a comparison read.
    first_half: Option<Buffer>,
}

impl Active {
    fn new(block: u32, task: Task, tries: u8) -> Self {
        Self {
            block,
            task,
            stage: Stage::Waiting,
            runs: VecDeque::new(),
            pending: 0,
            changed: false,
            tries,
            first_half: None,
        }
    }

    pub(super) fn is_copy(&self) -> bool {
        self.task != Task::Compare
    }
}

/// What one of the machine's own requests was for.
#[derive(Debug)]
pub(super) enum Own {
    Grow { same_size: bool },
    Status { block: u32 },
    Read { block: u32, offset: u64 },
    Write { block: u32, len_bytes: u64 },
    Zero { block: u32 },
    Compare { block: u32 },
    FirstFlush,
    SwitchFlush,
    Close,
}

impl Mirror {
    pub(super) fn own_ticket(&mut self, own: Own) -> Ticket {
        self.last_own = self.last_own.wrapping_add(1) & !Ticket::OWN;
        let ticket = Ticket::OWN | self.last_own;
        self.own.insert(ticket, own);
        Ticket(ticket)
    }

    /// Starts whatever can be started.
    pub(super) fn go_on(&mut self, source: &mut Engine) {
        let copying = matches!(
            self.phase,
            Phase::Copying | Phase::Settling | Phase::Flushing | Phase::InSync
        );
        while copying && self.failed.is_none() {
            self.release_waiting(source);
            if let Some(index) = self.actives.iter().position(can_move) {
                if !self.has_window() {
                    break;
                }
                self.move_piece(source, index);
            } else if !self.begin_next(source) {
                break;
            }
        }
        self.go_on_to_the_end(source);
    }

    fn has_window(&self) -> bool {
        // How long the last piece took is known in the next turn.
        let just_ended = self.own_bytes == 0 && self.pace.is_open();
        let rests = just_ended || self.pace.rests_until_us(self.now_us).is_some();
        let rests = rests && self.guests_busy;
        let window = if self.guests_busy { 1 } else { WINDOW_BYTES };
        self.own_bytes < window && !rests && self.limit.allows()
    }

    /// Takes the next block up, if there is one and room for it.
    fn begin_next(&mut self, source: &mut Engine) -> bool {
        let most = if self.guests_busy {
            ACTIVE_MAX_BUSY
        } else {
            ACTIVE_MAX
        };
        if self.actives.len() >= most {
            return false;
        }
        if let Some(block) = self.heal.pop_front() {
            self.actives.push(Active::new(block, Task::Heal, 0));
            return true;
        }
        if self.phase == Phase::Copying
            && let Some((block, tries)) = self.blocks.next()
        {
            let active = Active::new(block, Task::Copy, tries);
            if tries >= TRIES_MAX {
                self.blocks.set(block, State::Held);
                self.actives.push(active);
            } else {
                self.blocks.set(block, State::Copying);
                self.actives.push(active);
                self.ask(source, self.actives.len().saturating_sub(1));
            }
            return true;
        }
        if let Some(Switch::Comparing(next)) = &mut self.switch
            && *next < self.blocks.len()
            && self.phase == Phase::InSync
        {
            let block = *next;
            if self.blocks.state(block) != State::Done {
                return false;
            }
            *next = next.saturating_add(1);
            self.blocks.set(block, State::Held);
            self.actives.push(Active::new(block, Task::Compare, 0));
            return true;
        }
        false
    }

    /// Lets held blocks go on that no change in flight touches any more.
    fn release_waiting(&mut self, source: &mut Engine) {
        let mut index = 0;
        while let Some(active) = self.actives.get(index) {
            let block = active.block;
            if active.stage == Stage::Waiting
                && !self.joint.values().any(|joint| joint.touches(block))
            {
                self.ask(source, index);
            }
            index += 1;
        }
        self.drop_finished(source);
    }

    /// Finds out what of a block is to be copied.
    fn ask(&mut self, source: &mut Engine, index: usize) {
        let Some(active) = self.actives.get_mut(index) else {
            return;
        };
        let block = active.block;
        let offset = u64::from(block) * BLOCK_BYTES;
        let len_bytes = source.size_bytes().saturating_sub(offset).min(BLOCK_BYTES);
        let scope = match active.task {
            Task::Copy => self.plan.scope,
            Task::Heal => Scope::Chain,
            Task::Compare => {
                active.stage = Stage::Moving;
                active.runs.push_back(Run {
                    offset,
                    len_bytes,
                    is_data: true,
                });
                return;
            }
        };
        if source.may_hold(block, scope) {
            active.stage = Stage::Asking;
            let ticket = self.own_ticket(Own::Status { block });
            let request = Request::LayerStatus {
                offset,
                len_bytes,
                scope,
            };
            return source.submit(ticket, request);
        }
        let nothing = Extent {
            len_bytes,
            state: ExtentState::Zero,
        };
        self.plan_runs(index, &[nothing]);
    }

    fn plan_runs(&mut self, index: usize, extents: &[Extent]) {
        let Some(active) = self.actives.get_mut(index) else {
            return;
        };
        let scope = match active.task {
            Task::Copy => self.plan.scope,
            Task::Heal | Task::Compare => Scope::Chain,
        };
        // What is not in one layer's scope is no business of the copy; what is nowhere reads as
        // zeros, and so must the target.
        let clears = scope == Scope::Chain && self.other.may_hold(active.block, Scope::Chain);
        let mut offset = u64::from(active.block) * BLOCK_BYTES;
        for extent in extents {
            let is_data = extent.state == ExtentState::Data;
            if is_data || clears {
                active.runs.push_back(Run {
                    offset,
                    len_bytes: extent.len_bytes,
                    is_data,
                });
            }
            offset = offset.saturating_add(extent.len_bytes);
        }
        active.stage = Stage::Moving;
    }

    /// Starts the next piece of a block.
    fn move_piece(&mut self, source: &mut Engine, index: usize) {
        let Some(active) = self.actives.get_mut(index) else {
            return;
        };
        let Some(run) = active.runs.front_mut() else {
            return;
        };
        let (block, offset, task) = (active.block, run.offset, active.task);
        if !run.is_data {
            let len_bytes = run.len_bytes;
            active.runs.pop_front();
            active.pending += 1;
            let ticket = self.own_ticket(Own::Zero { block });
            let request = Request::WriteZeroes {
                offset,
                len_bytes,
                may_trim: true,
                fua: false,
            };
            return self.other.submit(ticket, request);
        }
        let most = if self.guests_busy {
            PIECE_BYTES_BUSY
        } else {
            PIECE_BYTES
        };
        let len_bytes = run.len_bytes.min(most);
        run.offset = run.offset.saturating_add(len_bytes);
        run.len_bytes = run.len_bytes.saturating_sub(len_bytes);
        if run.len_bytes == 0 {
            active.runs.pop_front();
        }
        self.own_bytes = self.own_bytes.saturating_add(len_bytes);
        self.limit.spend(len_bytes);
        self.pace.begin(self.now_us);
        let len_bytes = u32::try_from(len_bytes).unwrap_or(u32::MAX);
        let request = || Request::Read { offset, len_bytes };
        if task == Task::Compare {
            active.pending += 2;
            let ticket = self.own_ticket(Own::Compare { block });
            source.submit(ticket, request());
            let ticket = self.own_ticket(Own::Compare { block });
            return self.other.submit(ticket, request());
        }
        active.pending += 1;
        // The buffer of the last write, which went to the target's pool, is good for the next read.
        source.give_buffer(self.other.take_buffer(len_bytes as usize));
        let ticket = self.own_ticket(Own::Read { block, offset });
        source.submit(ticket, request());
    }

    /// One of the machine's own requests has ended.
    pub(super) fn own_done(
        &mut self,
        source: &mut Engine,
        own: Own,
        result: Result<Done, Error>,
        from_target: bool,
    ) {
        if let Own::Close = own {
            self.closed = result.err();
            return self.other_closed();
        }
        if let Own::Write { len_bytes, .. } = own {
            self.own_bytes = self.own_bytes.saturating_sub(len_bytes);
        }
        let done = match result {
            Ok(done) => done,
            Err(error) => {
                let side = if from_target { "target" } else { "source" };
                if let Own::Read { .. } | Own::Compare { .. } = own {
                    self.own_bytes = 0;
                }
                return self.fail(source, format!("{side}: {error}"));
            }
        };
        match own {
            Own::Grow { same_size } => self.grown(source, same_size),
            Own::Status { block } => {
                if let (Some(index), Done::Extents(extents)) = (self.index_of(block), done) {
                    self.plan_runs(index, &extents);
                }
            }
            Own::Read { block, offset } => self.piece_read(source, block, offset, done),
            Own::Write { block, len_bytes } => {
                self.copied_bytes = self.copied_bytes.saturating_add(len_bytes);
                self.piece_done(block);
            }
            Own::Zero { block } => self.piece_done(block),
            Own::Compare { block } => self.half_read(source, block, done),
            Own::FirstFlush => self.first_flushed(),
            Own::SwitchFlush => self.switch_flushed(),
            Own::Close => {}
        }
        self.drop_finished(source);
    }

    fn index_of(&self, block: u32) -> Option<usize> {
        self.actives.iter().position(|a| a.block == block)
    }

    fn piece_done(&mut self, block: u32) {
        if let Some(active) = self.actives.iter_mut().find(|a| a.block == block) {
            active.pending = active.pending.saturating_sub(1);
        }
    }

    /// A piece was read: it is written, unless its block was changed and will be copied anyway.
    fn piece_read(&mut self, source: &mut Engine, block: u32, offset: u64, done: Done) {
        let Done::Data(data) = done else { return };
        let len_bytes = data.len() as u64;
        let active = self.actives.iter_mut().find(|a| a.block == block);
        let Some(active) = active.filter(|active| !active.changed) else {
            self.own_bytes = self.own_bytes.saturating_sub(len_bytes);
            source.give_buffer(data);
            return self.piece_done(block);
        };
        debug_assert_eq!(active.stage, Stage::Moving);
        let ticket = self.own_ticket(Own::Write { block, len_bytes });
        let request = Request::Write {
            offset,
            data,
            fua: false,
        };
        self.other.submit(ticket, request);
    }

    /// One side of a comparison was read.
    fn half_read(&mut self, source: &mut Engine, block: u32, done: Done) {
        let Done::Data(data) = done else { return };
        let Some(active) = self.actives.iter_mut().find(|a| a.block == block) else {
            return source.give_buffer(data);
        };
        active.pending = active.pending.saturating_sub(1);
        let Some(first) = active.first_half.take() else {
            active.first_half = Some(data);
            return;
        };
        self.own_bytes = self.own_bytes.saturating_sub(data.len() as u64);
        let same = first.as_slice() == data.as_slice();
        source.give_buffer(first);
        self.other.give_buffer(data);
        if !same {
            let text = format!("block {block} differs between source and target");
            self.fail(source, text);
        }
    }

    /// Ends the blocks of which nothing is left to do.
    fn drop_finished(&mut self, source: &mut Engine) {
        let mut released = false;
        while let Some(index) = self.actives.iter().position(is_finished) {
            let active = self.actives.swap_remove(index);
            match active.task {
                Task::Copy if active.changed => {
                    self.blocks
                        .again(active.block, active.tries.saturating_add(1));
                }
                Task::Copy => self.blocks.copied(active.block),
                Task::Heal | Task::Compare => self.blocks.set(active.block, State::Done),
            }
            released |= active.task != Task::Copy || active.tries >= TRIES_MAX;
        }
        if released {
            self.release_held(source);
        }
    }

    /// The guest changed blocks while they were copied, or behind the copy's back.
    pub(super) fn changed(&mut self, first: u32, last: u32) {
        for block in first..=last.min(self.blocks.len().saturating_sub(1)) {
            match self.blocks.state(block) {
                State::Done => {
                    self.blocks.again(block, 0);
                    // What is on its way to both may reach the target before this copy does.
                    let joints = self.joint.values_mut();
                    joints.for_each(|joint| joint.spoil(block));
                }
                State::Copying => {
                    if let Some(active) = self.actives.iter_mut().find(|a| a.block == block) {
                        active.changed = true;
                        active.runs.clear();
                    }
                }
                // A held block has not begun before its changes have ended.
                State::Todo | State::Held => {}
            }
        }
    }
}

pub(super) fn can_move(active: &Active) -> bool {
    let free = active.task != Task::Compare || active.pending == 0;
    active.stage == Stage::Moving && free && !active.runs.is_empty()
}

fn is_finished(active: &Active) -> bool {
    active.stage == Stage::Moving && active.pending == 0 && active.runs.is_empty()
}

//! Operations on the whole disk while it is in use: freeze, snapshot switch, resize, close, and
//! begin and end of a log of changed blocks.
//!
//! ```text
//!  Draining ──> Flushing ──> Steps ──> Behind ──> done
//!     │            │           │         └ the log that is done with says that it is consistent
//!     │            │           └ footers and batmap of the leaf, one after the other
//!     │            └ as any flush
//!     └ until nothing is in flight; new requests are held back from the beginning
//! ```
//! Freeze is done after draining and keeps holding back. An operation that fails leaves the disk as
//! it was, in use, with what it flushed flushed.

use super::Engine;
use super::cbt::Log;
use super::layer::{Layer, check_new_leaf};
use super::request::{Done, Error, ErrorKind, LiveOp, Ticket};
use super::reserve::{Room, image_error};
use super::state::{Active, Context, Kind};
use block::{Action, Buffer, FileId};
use datapath::protocol::Access;
use std::collections::VecDeque;
use vhd_rs::{Plan, Step};

/// Most zeros written by one operation of a plan.
const ZERO_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Draining,
    Flushing,
    Steps,
    Behind,
}

/// The live operation under way.
#[derive(Debug)]
pub(super) struct Live {
    request: u32,
    pub(super) op: LiveOp,
    stage: Stage,
    steps: VecDeque<(FileId, Step)>,
    /// What is written when the operation is done; its failure changes nothing.
    behind: VecDeque<(FileId, Step)>,
}

impl Engine {
    /// Starts a live operation; it finishes like a request. One that cannot start is answered at
    /// once: `Busy` while another is under way, `Closed`, `ReadOnly`, and `Poisoned` for all but
    /// closing and freezing.
    pub fn start(&mut self, ticket: Ticket, op: LiveOp) {
        if let Err(error) = self.check_live(&op) {
            if self.live.is_none() {
                self.staged_log = None;
            }
            return self.answer(ticket, Err(error));
        }
        let closing = matches!(op, LiveOp::Close);
        let failed = if closing { self.fail_held() } else { None };
        if closing {
            self.lift_limits();
        }
        let active = Active {
            ticket,
            kind: Kind::Live,
            pending: 1,
            error: None,
            since_us: self.stats.now_us,
        };
        let request = self.requests.insert(active);
        self.live = Some(Live {
            request,
            op,
            stage: Stage::Draining,
            steps: VecDeque::new(),
            behind: VecDeque::new(),
        });
        if let Some(error) = failed {
            self.fail_kept(&error);
        }
        self.go_on_with_live();
    }

    /// Undoes a freeze; held requests start in their order.
    pub fn thaw(&mut self) {
        self.frozen = false;
        self.release_held();
    }

    fn check_live(&self, op: &LiveOp) -> Result<(), Error> {
        if self.closed {
            return Err(Error::new(ErrorKind::Closed, "the disk is closed"));
        }
        if self.live.is_some() {
            let text = "another live operation is under way";
            return Err(Error::new(ErrorKind::Busy, text));
        }
        if self.relinking.is_some() && !matches!(op, LiveOp::Freeze) {
            let text = "the disk is being relinked";
            return Err(Error::new(ErrorKind::Busy, text));
        }
        if matches!(op, LiveOp::Freeze | LiveOp::Close) {
            return Ok(());
        }
        if self.config.access == Access::ReadOnly {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "the disk is open for reading only",
            ));
        }
        if matches!(op, LiveOp::CbtStart(_)) && self.log.is_some() {
            return Err(Error::new(ErrorKind::Busy, "changes are logged already"));
        }
        if let LiveOp::SnapshotSwitch(spec) = op {
            check_new_leaf(spec, &self.map)?;
        }
        self.poison_error().map_or(Ok(()), Err)
    }

    /// Looks whether the disk has gone quiet. Called whenever something finished.
    pub(super) fn go_on_with_live(&mut self) {
        let Some(live) = &mut self.live else { return };
        // With nothing under way, what is queued is so behind what a pause keeps.
        let kept = self.pause.kept();
        let kept = if kept > 0 {
            kept + self.ordered.len()
        } else {
            0
        };
        let quiet =
            self.requests.len() == 1 + kept && self.contexts.len() == 0 && self.flush.is_idle();
        if live.stage != Stage::Draining || !quiet {
            return;
        }
        live.stage = Stage::Flushing;
        let request = live.request;
        match live.op {
            LiveOp::Freeze => {
                self.frozen = true;
                self.finish_live(Ok(()));
            }
            LiveOp::Close if self.config.access == Access::ReadOnly => {
                self.closed = true;
                self.finish_live(Ok(()));
            }
            LiveOp::Close if self.poisoned.is_some() => {
                // Nothing may be written any more, and the bytes are as safe as they will get.
                self.closed = true;
                let error = self.poison_error();
                self.finish_live(error.map_or(Ok(()), Err));
            }
            _ => self.want_flush(request),
        }
    }

    /// The flush of a live operation ended.
    pub(super) fn live_flushed(&mut self, error: Option<Error>) {
        let planned = match error {
            None => self.plan_logs().and_then(|()| self.plan_live()),
            Some(error) => Err(error),
        };
        match planned {
            Ok(plan) => {
                let leaf = self.map.leaf().file;
                if let Some(live) = &mut self.live {
                    live.stage = Stage::Steps;
                    let steps = plan.steps.into_iter();
                    live.steps.extend(steps.map(|step| (leaf, step)));
                }
                self.next_live_step();
            }
            Err(error) => self.finish_live(Err(error)),
        }
    }

    /// What has to be written to logs, before the leaf is touched and when all is done.
    fn plan_logs(&mut self) -> Result<(), Error> {
        let size_bytes = self.size_bytes();
        let Some(live) = &mut self.live else {
            return Ok(());
        };
        if let LiveOp::CbtStart(_) = live.op
            && let LiveOp::CbtStart(spec) = std::mem::replace(&mut live.op, LiveOp::CbtStop)
        {
            self.staged_log = Some(Box::new(Log::new(*spec, size_bytes)?));
        }
        let grown_to = match &live.op {
            LiveOp::Resize { virtual_bytes } => Some(*virtual_bytes),
            _ => None,
        };
        let ends = matches!(live.op, LiveOp::CbtStop | LiveOp::Close);
        let [before, behind] = self.log_steps(grown_to, ends);
        if let Some(live) = &mut self.live {
            live.steps.extend(before);
            live.behind.extend(behind);
        }
        Ok(())
    }

    /// What has to be written to the leaf. Every block is committed and durable here.
    fn plan_live(&mut self) -> Result<Plan, Error> {
        let Some(live) = &self.live else {
            return Ok(Plan::default());
        };
        let resize_to = match &live.op {
            LiveOp::Resize { virtual_bytes } => Some(*virtual_bytes),
            LiveOp::CbtStart(_) | LiveOp::CbtStop => return Ok(Plan::default()),
            LiveOp::SnapshotSwitch(_) | LiveOp::Close | LiveOp::Freeze => None,
        };
        let untouched = !self.touched;
        let leaf = self.map.leaf_mut();
        let Some(sparse) = leaf.sparse_mut() else {
            return match resize_to {
                Some(_) => {
                    let text = "only dynamic and differencing images are resized while in use";
                    Err(Error::new(ErrorKind::Unsupported, text))
                }
                None => Ok(Plan::default()),
            };
        };
        let plan = match resize_to {
            Some(virtual_bytes) => {
                let plan = sparse.image.resize_plan(virtual_bytes);
                return plan.map_err(|e| resize_error(&e));
            }
            None if untouched && sparse.image.is_clean() => Ok(Plan::default()),
            None => {
                sparse.note_full_blocks();
                sparse.image.close_plan()
            }
        };
        plan.map_err(|e| image_error(&e))
    }

    fn next_live_step(&mut self) {
        let Some(live) = &mut self.live else { return };
        if let Some((file, step)) = live.steps.pop_front() {
            return self.emit_step(file, step, Context::Step);
        }
        if live.stage == Stage::Steps {
            live.stage = Stage::Behind;
            live.steps = std::mem::take(&mut live.behind);
            if let Err(error) = self.conclude_live() {
                return self.finish_live(Err(error));
            }
            return self.next_live_step();
        }
        self.finish_live(Ok(()));
    }

    pub(super) fn step_done(&mut self, result: Result<(), block::Error>) {
        match result {
            Ok(()) => self.next_live_step(),
            Err(error) => {
                let behind = |live: &Live| live.stage == Stage::Behind;
                if self.live.as_ref().is_some_and(behind) {
                    // The log keeps its flag clear, or has it on bits that are all there.
                    return self.finish_live(Ok(()));
                }
                let is_leaf = error.file == self.map.leaf().file;
                if is_leaf && error.verb == block::Verb::Fdatasync {
                    self.poison(&error);
                }
                self.finish_live(Err(error.into()));
            }
        }
    }

    /// Performs one step of a plan; its completion comes with `context`.
    pub(super) fn emit_step(&mut self, file: FileId, step: Step, context: Context) {
        let action = match step {
            Step::Write { offset, bytes } => Action::Write {
                offset,
                data: Buffer::copy_of(&bytes).share(),
            },
            Step::Zero { offset, len } => {
                let now = len.min(ZERO_BYTES_MAX);
                if let Some(live) = self.live.as_mut().filter(|_| now < len) {
                    let rest = Step::Zero {
                        offset: offset.saturating_add(now),
                        len: len - now,
                    };
                    live.steps.push_front((file, rest));
                }
                Action::Write {
                    offset,
                    data: Buffer::zeroed(now as usize).share(),
                }
            }
            Step::SetSize { bytes } => Action::Truncate { size_bytes: bytes },
            Step::Flush => Action::Fdatasync,
        };
        self.emit(file, action, context);
    }

    /// Everything is on disk: makes the operation true in memory.
    fn conclude_live(&mut self) -> Result<(), Error> {
        let Some(live) = &mut self.live else {
            return Ok(());
        };
        match std::mem::replace(&mut live.op, LiveOp::Freeze) {
            LiveOp::Freeze => {}
            LiveOp::Close => self.closed = true,
            LiveOp::CbtStart(_) => {}
            // Also the end of a start, which left its log here.
            LiveOp::CbtStop => self.log = self.staged_log.take(),
            LiveOp::SnapshotSwitch(spec) => {
                self.map.push(Layer::new(*spec)?);
                self.touched = false;
                self.flush.volatile = true;
                if let Some(log) = self.staged_log.take() {
                    self.log = Some(log);
                }
            }
            LiveOp::Resize { .. } => {
                let leaf = self.map.leaf_mut();
                if let Some(sparse) = leaf.sparse() {
                    leaf.size_sectors = sparse.image.virtual_bytes() / units::SECTOR_BYTES;
                }
                let size_bytes = leaf.size_bytes();
                self.log_grown(size_bytes);
            }
        }
        Ok(())
    }

    fn finish_live(&mut self, result: Result<(), Error>) {
        let Some(live) = self.live.take() else { return };
        self.staged_log = None;
        if matches!(live.stage, Stage::Steps | Stage::Behind) {
            // Footers were written and the file cut off behind them, or something of that: the next
            // allocation makes room anew.
            let leaf = self.map.leaf_mut();
            if leaf.sparse().is_some() {
                leaf.file_bytes = 0;
            }
            self.room = Room::of(self.map.leaf());
        }
        if let Some(active) = self.requests.remove(live.request) {
            self.answer(active.ticket, result.map(|()| Done::Ok));
        }
        self.release_held();
    }
}

/// More than the table was made for: there is space, but the image would have to be laid out anew,
/// which is not done while it is in use.
fn resize_error(error: &vhd_rs::Error) -> Error {
    let Error { kind, message } = image_error(error);
    let kind = match kind {
        ErrorKind::NoSpace => ErrorKind::Unsupported,
        kind => kind,
    };
    Error { kind, message }
}

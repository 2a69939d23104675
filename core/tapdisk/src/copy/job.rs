//! A copy without a guest: both engines are the job's own, and it ends by itself.

use super::{Mirror, Plan, Progress};
use crate::engine::{Engine, Error, LiveOp, Ticket};
use block::{Completion, Op};

/// The ticket with which the source is closed.
const CLOSE: Ticket = Ticket(Ticket::OWN - 1);

/// A copy under way or ended.
#[derive(Debug)]
pub struct Job {
    source: Engine,
    mirror: Mirror,
    /// All is in the target, durably.
    copied: bool,
    stopping: bool,
    closing: bool,
    over: bool,
}

impl Job {
    /// Begins. The source is open for reading only, or at least nobody writes it.
    ///
    /// # Errors
    /// Those of [`Mirror::new`].
    pub fn new(mut source: Engine, target: Engine, plan: Plan) -> Result<Self, Error> {
        let mirror = Mirror::new(&mut source, target, plan, false)?;
        Ok(Self {
            source,
            mirror,
            copied: false,
            stopping: false,
            closing: false,
            over: false,
        })
    }

    /// How far it is. Not `in_sync` before the target is closed.
    pub fn progress(&self) -> Progress {
        let mut progress = self.mirror.progress();
        progress.in_sync = self.copied && self.over;
        if progress.failed.is_none()
            && let Some(error) = self.mirror.close_error()
        {
            progress.failed = Some(format!("target: {error}"));
            progress.in_sync = false;
        }
        progress
    }

    /// Whether it has ended, well or badly; both engines are closed then.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Gives up.
    pub fn stop(&mut self) {
        self.mirror.stop(&mut self.source);
    }

    /// Both engines, to tell their operations apart and to see what files they have.
    pub fn engines(&self) -> [&Engine; 2] {
        [&self.source, self.mirror.other()]
    }

    /// As [`Mirror::work`].
    pub fn work(&mut self, now_us: u64, guests_busy: bool) -> bool {
        let more = self.mirror.work(&mut self.source, now_us, guests_busy);
        while let Some(finished) = self.mirror.next_finished(&mut self.source) {
            self.over |= finished.ticket == CLOSE;
        }
        if self.mirror.is_in_sync() {
            self.copied = true;
        }
        let ended = self.copied || self.mirror.has_failed();
        if ended && !self.stopping {
            self.stopping = true;
            self.mirror.stop(&mut self.source);
            // It may be closed without any operation.
            return true;
        }
        if self.mirror.is_over() && !self.closing {
            self.closing = true;
            self.source.start(CLOSE, LiveOp::Close);
            return true;
        }
        more
    }

    /// As [`Mirror::wake_at_us`].
    pub fn wake_at_us(&self) -> Option<u64> {
        self.mirror.wake_at_us()
    }

    /// The next operation of either engine.
    pub fn next_op(&mut self) -> Option<Op> {
        self.source.next_op().or_else(|| self.mirror.next_op())
    }

    /// Takes a completion in, of the engine with this tag.
    pub fn complete(&mut self, tag: u16, completion: Completion) {
        if tag == self.source.tag() {
            self.source.complete(completion);
        } else {
            self.mirror.complete(completion);
        }
    }
}

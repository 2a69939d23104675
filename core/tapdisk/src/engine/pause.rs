//! Pausing instead of failing: a request that the storage refuses is kept until it can be done.
//!
//! ```text
//!             fails with a kind              probe fails: twice the time
//!             whose policy is pause                ┌───┐
//!  in use ───────────────────────────> paused ─────┴───┴──> in use
//!                                        │ resume by control, or (no space) the probe works
//!                                        └ close, poisoned, policy is report again: all that is kept
//!                                          ends with its error
//! ```
//! * What failed is kept, with its buffer and its claim on its sectors, so whatever overlaps it waits
//!   as if it were still running. Nothing of it was answered, so doing all of it again is sound.
//! * Paused for want of space, changes that come later are held back in order; reads and flushes go
//!   on, since what was answered must be readable and can be made durable. Every two seconds, later
//!   every minute, one of the requests kept is tried again; when that works, all go on.
//! * Paused for an error of the storage, everything is held back until somebody resumes.
//! * A barrier that fails never pauses: the kernel may have dropped what it could not write, and
//!   would report success the next time. That poisons the disk, and what is kept fails.
//! * The data path's own requests (copies) are neither kept nor held back by a pause: whoever makes
//!   them looks at their errors.
//! * Freeze and snapshot do not wait for what is kept, which goes on after them, on the new leaf.

use super::Engine;
use super::request::{Error, ErrorKind, LiveOp, Request};
use super::state::Kind;
use datapath::protocol::{OnError, Policy};

/// Time to the first probe, and the longest time between two.
const PROBE_FIRST_US: u64 = 2_000_000;
const PROBE_LAST_US: u64 = 60_000_000;

/// Where a request goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stall {
    /// From its beginning.
    Parts,
    /// Its data is in the file; the flush that makes it durable failed before a barrier.
    Flush,
}

/// Why a disk is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paused {
    /// The error of the first request that was kept.
    pub error: Error,
    /// Since when, on the clock of [`Engine::set_now`].
    pub since_us: u64,
}

/// What is kept while the disk is paused.
#[derive(Debug, Default)]
pub(super) struct Pause {
    policy: Policy,
    now: Option<Paused>,
    stalled: Vec<(u32, Stall)>,
    /// The request that is tried again, and when the next one is.
    probe: Option<u32>,
    probe_at_us: Option<u64>,
    probe_after_us: u64,
}

/// What a pause means for a request that has not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passes {
    Yes,
    /// It waits, those behind it may pass.
    No,
    /// All wait.
    Nobody,
}

impl Pause {
    pub(super) fn is_on(&self) -> bool {
        self.now.is_some()
    }

    /// Whether reads pass changes that are held back.
    pub(super) fn lets_reads_pass(&self) -> bool {
        let kind = self.now.as_ref().map(|paused| paused.error.kind);
        kind == Some(ErrorKind::NoSpace)
    }

    pub(super) fn passes(&self, request: &Request) -> Passes {
        match &self.now {
            None => Passes::Yes,
            Some(_) if !self.lets_reads_pass() => Passes::Nobody,
            Some(_) if request.changed_range().is_some() => Passes::No,
            Some(_) => Passes::Yes,
        }
    }

    /// Requests that are kept.
    pub(super) fn kept(&self) -> usize {
        self.stalled.len()
    }

    pub(super) fn probe_at_us(&self) -> Option<u64> {
        self.probe_at_us.filter(|_| self.is_on())
    }
}

impl Engine {
    /// What happens on errors of the storage.
    pub fn policy(&self) -> Policy {
        self.pause.policy
    }

    /// Changes that. A disk that is paused for something that is now to be reported goes on, and
    /// what was kept ends with its error.
    pub fn set_policy(&mut self, policy: Policy) {
        self.pause.policy = policy;
        let error = self.pause.now.as_ref().map(|paused| paused.error.clone());
        if let Some(error) = error
            && !self.would_pause(&error)
        {
            self.pause.now = None;
            self.fail_kept(&error);
            self.release_held();
        }
    }

    /// Why the disk is paused, if it is.
    pub fn paused(&self) -> Option<&Paused> {
        self.pause.now.as_ref()
    }

    /// Ends a pause: what was kept is done again, then what was held back. It begins anew if that
    /// fails.
    pub fn resume(&mut self) {
        self.pause.now = None;
        self.pause.probe_at_us = None;
        self.release_held();
    }

    fn would_pause(&self, error: &Error) -> bool {
        let policy = match error.kind {
            ErrorKind::NoSpace => self.pause.policy.on_no_space,
            ErrorKind::Io => self.pause.policy.on_io_error,
            _ => OnError::Report,
        };
        policy == OnError::Pause && self.poisoned.is_none()
    }

    /// Keeps a request that is about to end with an error, if that is the policy.
    pub(super) fn stall(&mut self, index: u32, stage: Stall) -> bool {
        let Some(request) = self.requests.get(index) else {
            return false;
        };
        let closing = matches!(&self.live, Some(live) if matches!(live.op, LiveOp::Close));
        let Some(error) = request.error.clone().filter(|error| {
            let keeps = !request.ticket.is_own() && !matches!(request.kind, Kind::Live);
            keeps && !closing && self.would_pause(error)
        }) else {
            return false;
        };
        let was_probe = self.pause.probe == Some(index);
        let pause = &mut self.pause;
        pause.stalled.push((index, stage));
        let since_us = self.stats.now_us;
        let begins = pause.now.is_none();
        let paused = pause.now.get_or_insert(Paused {
            error: error.clone(),
            since_us,
        });
        if error.kind == ErrorKind::Io {
            // Holds back more than want of space does.
            paused.error = error;
        }
        if begins {
            pause.probe_after_us = PROBE_FIRST_US;
        } else if was_probe {
            pause.probe_after_us = pause.probe_after_us.saturating_mul(2).min(PROBE_LAST_US);
        }
        if begins || was_probe {
            pause.probe = None;
            pause.probe_at_us = Some(since_us.saturating_add(pause.probe_after_us));
        }
        if !pause.lets_reads_pass() {
            pause.probe_at_us = None;
        }
        true
    }

    /// It is time to look whether there is space again.
    pub(super) fn probe(&mut self) {
        let due = self
            .pause
            .probe_at_us()
            .is_some_and(|at| at <= self.stats.now_us);
        if !due || self.frozen || self.live.is_some() {
            return;
        }
        self.pause.probe_at_us = None;
        let Some((index, stage)) = self.pause.stalled.pop() else {
            return self.resume();
        };
        self.pause.probe = Some(index);
        self.restart(index, stage);
    }

    /// A request ended that may have been the probe: the disk goes on.
    pub(super) fn probe_ended(&mut self, index: u32) {
        if self.pause.probe == Some(index) {
            self.pause.probe = None;
            self.resume();
        }
    }

    /// Starts what was kept, once the pause is over and nothing else stands in the way.
    pub(super) fn restart_kept(&mut self) {
        if self.pause.is_on() || self.frozen || self.live.is_some() {
            return;
        }
        for (index, stage) in std::mem::take(&mut self.pause.stalled) {
            self.restart(index, stage);
        }
    }

    fn restart(&mut self, index: u32, stage: Stall) {
        let poison = self.poison_error();
        let Some(request) = self.requests.get_mut(index) else {
            return;
        };
        request.error = None;
        request.pending = 1;
        match (&request.kind, stage) {
            (Kind::Read { span, .. }, _) => {
                let span = *span;
                self.start_parts(index, span);
            }
            (Kind::Status { .. }, _) => self.go_on_with_status(index),
            (Kind::Flush, _) | (_, Stall::Flush) => self.want_flush(index),
            (Kind::Write { span, .. } | Kind::Zero { span, .. }, Stall::Parts) => {
                let span = *span;
                match poison {
                    Some(error) => self.part_done(index, Err(error)),
                    None => self.start_parts(index, span),
                }
            }
            (Kind::Live, _) => {}
        }
    }

    /// Ends what is kept with an error.
    pub(super) fn fail_kept(&mut self, error: &Error) {
        for (index, stage) in std::mem::take(&mut self.pause.stalled) {
            if let Some(request) = self.requests.get_mut(index) {
                request.error = Some(error.clone());
            }
            if stage == Stall::Parts {
                self.change_done(index);
            }
            self.finish(index);
        }
    }

    /// The disk is to be closed: what was held back because of a pause ends with its error.
    pub(super) fn fail_held(&mut self) -> Option<Error> {
        let paused = self.pause.now.take()?;
        self.pause.probe_at_us = None;
        for held in std::mem::take(&mut self.held) {
            self.answer(held.ticket, Err(paused.error.clone()));
        }
        Some(paused.error)
    }
}

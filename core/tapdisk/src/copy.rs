//! One disk copied into another, block by block: copy-out, the coalesce of an inner node, a mirror,
//! the coalesce of a live leaf. One machine does all four, above two engines, and like them it does
//! no I/O and reads no clock.
//!
//! | operation | source | scope | target | guest |
//! |---|---|---|---|---|
//! | copy-out | a chain, read-only | `Chain` | an empty image | none |
//! | coalesce of A into its parent B | `[above.., A, B, .., base]`, read-only | `Layer(above)` | `[B, .., base]` | none here |
//! | mirror | a live disk | `Chain` | any image of its size | writes to both |
//! | coalesce of a live leaf into its parent P | a live disk | `Layer(0)` | `[P, .., base]` | writes to both |
//!
//! Coalescing is redone after a crash from its beginning: whatever is written into B (or P) lies
//! under sectors that A (or the leaf) holds, so nobody reads it before A is gone. The caller sees
//! to it that B has no other child than A, and P no other than the leaf.
//!
//! # Blocks
//! ```text
//!   Todo ──> Copying ──> Done ── a change of the guest goes to both engines ──> Done
//!    ^          │ │               │ it failed on the source
//!    └──────────┘ └ copied anew   └─> Held: changes wait, the block is read and written once more
//!      changed meanwhile
//! ```
//! A change that touches no `Done` block goes to the source alone. If its block is not `Todo` any
//! more when the change completes, the block is copied again. A block that the guest changed
//! during two copies is copied a third time with its changes held back: a few milliseconds, for one
//! block of 2 MiB, once; otherwise a disk whose guest hammers one place would never be in sync.
//! A request that touches several blocks goes to both engines if one of them is `Done`; what it
//! puts into a block that is not is overwritten by that block's copy.
//!
//! # In sync
//! When every block is done and no change is on its way to the source alone, the target is flushed
//! once; from then on the pair is *in sync*, and every flush and FUA goes to both and is answered
//! when both are durable. Before that they go to the source alone: nobody recovers from a target
//! that is not in sync, and the guest need not pay for it. It never falls out of sync again: a
//! change that fails on the source alone leaves its block `Held` until both read the same.
//!
//! # The switch
//! The caller's order is: in sync, [`Mirror::prepare`], record durably that the target is the disk,
//! [`Mirror::switch`]. Between prepare and switch a crash may come up on either. So if the target
//! fails in that window, changes go on, on the source, but no flush is answered until the caller has
//! taken its record back and stops the mirror; answering would promise what the target has not.
//! The switch flushes both (and compares both, if asked), then puts the target in the source's
//! place in one step: new requests go there, those in flight end where they are, nothing waits. The
//! old engine is closed when the last of them ended.
//!
//! A target that fails in any other state costs nothing but the mirror: the source goes on alone and
//! [`Progress::failed`] says why, until the mirror is stopped.
//!
//! # Trim
//! Both must read the same afterwards, and what a trim does differs between images. So a trim of a
//! mirrored block becomes zeroes on both; one that would have to *write* those zeroes as data, where
//! the source's leaf hides other content with nothing, is answered without effect, as a trim may be.

mod background;
mod blocks;
mod finish;
mod guest;
mod job;
mod limit;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use job::Job;

use crate::engine::{Engine, Error, ErrorKind, Finished, LiveOp, Request, Scope, Ticket};
use background::{Active, Own};
use block::{Completion, Op};
use blocks::Blocks;
use datapath::protocol::Access;
use guest::Joint;
use limit::{Limit, Pace};
use std::collections::{HashMap, VecDeque};

/// What is to be copied, and how fast.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plan {
    /// Whose sectors.
    pub scope: Scope,
    /// Most bytes copied per second; `None` as fast as it goes.
    pub limit_bytes_per_s: Option<u64>,
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the blocks that have something to copy, as far as they are known: final once
    /// the first pass over the tables is over.
    pub total_bytes: u64,
    /// Bytes of those among them that are copied.
    pub done_bytes: u64,
    /// Bytes written to the target by the copy, repeated blocks included, guest writes not.
    pub copied_bytes: u64,
    /// Both hold the same, and every flush is durable on both.
    pub in_sync: bool,
    /// The target has taken the source's place.
    pub switched: bool,
    /// Why the copy is given up; the source is as good as ever unless it says so itself.
    pub failed: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The target was smaller and is made as large as the source.
    Growing,
    Copying,
    /// All is copied, flush and FUA go to both; FUA writes from before end.
    Settling,
    /// The target is being flushed for the first time.
    Flushing,
    InSync,
    /// Switched or stopped: the other engine ends what it has and is closed.
    Closing,
    Over,
}

/// A switch that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Switch {
    /// Blocks up to here were compared.
    Comparing(u32),
    /// Flushes that have not ended.
    Flushing(u32),
}

/// A source and its target. The source stays with the owner, who hands it to every call; the
/// target lives here, and after the switch the old source does.
#[derive(Debug)]
pub struct Mirror {
    other: Engine,
    plan: Plan,
    phase: Phase,
    failed: Option<String>,
    prepared: bool,
    switch: Option<Switch>,
    switched: Option<Result<(), Error>>,
    closed: Option<Error>,
    blocks: Blocks,
    actives: Vec<Active>,
    /// Blocks to be copied again with changes held back.
    heal: VecDeque<u32>,
    own: HashMap<u64, Own>,
    own_bytes: u64,
    last_own: u64,
    joint: HashMap<u64, Joint>,
    /// Changes that wait for their block.
    held: VecDeque<(Ticket, Request)>,
    /// Flushes that may not be answered, see [`Mirror::prepare`].
    parked: Vec<Finished>,
    ready: VecDeque<Finished>,
    limit: Limit,
    guests_busy: bool,
    now_us: u64,
    pace: Pace,
    copied_bytes: u64,
}

impl Mirror {
    /// Begins to copy from `source` into `target`. A target that is smaller is made larger first,
    /// within the metadata it has.
    ///
    /// # Errors
    /// `Unsupported` when the disk keeps a log of changed blocks, which stays with its engine, and
    /// when the target is larger than the source and `same_size` is wanted (a guest
    /// must not see its disk change); `ReadOnly` for a target that takes no writes.
    pub fn new(
        source: &mut Engine,
        target: Engine,
        plan: Plan,
        same_size: bool,
    ) -> Result<Self, Error> {
        let (from, to) = (source.size_bytes(), target.size_bytes());
        if same_size && to > from {
            let text = format!("the target has {to} bytes, the disk {from}");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if target.access() == Access::ReadOnly {
            let text = "the target is open for reading only";
            return Err(Error::new(ErrorKind::ReadOnly, text));
        }
        if source.log_state().is_some() {
            return Err(logged());
        }
        if plan.scope != Scope::Chain {
            source.leaf_is_being_merged();
        }
        let before = source.changes_in_flight().into_iter();
        let joint = before.map(|(ticket, offset, len_bytes)| {
            let joint = Joint::of_before(offset, len_bytes);
            (ticket.0, joint)
        });
        let mut mirror = Self {
            other: target,
            plan,
            phase: Phase::Copying,
            failed: None,
            prepared: false,
            switch: None,
            switched: None,
            closed: None,
            blocks: Blocks::new(source.blocks()),
            actives: Vec::new(),
            heal: VecDeque::new(),
            own: HashMap::new(),
            own_bytes: 0,
            last_own: 0,
            joint: joint.collect(),
            held: VecDeque::new(),
            parked: Vec::new(),
            ready: VecDeque::new(),
            limit: Limit::new(plan.limit_bytes_per_s),
            guests_busy: false,
            now_us: 0,
            pace: Pace::default(),
            copied_bytes: 0,
        };
        if to < from {
            mirror.phase = Phase::Growing;
            let ticket = mirror.own_ticket(Own::Grow { same_size });
            let virtual_bytes = from;
            mirror.other.start(ticket, LiveOp::Resize { virtual_bytes });
        }
        Ok(mirror)
    }

    /// The engine that the owner does not have: the target, after the switch the old source.
    pub fn other(&self) -> &Engine {
        &self.other
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let (total_bytes, done_bytes) = self.blocks.progress_bytes();
        Progress {
            total_bytes,
            done_bytes,
            copied_bytes: self.copied_bytes,
            in_sync: self.is_in_sync(),
            switched: self.switched == Some(Ok(())),
            failed: self.failed.clone(),
        }
    }

    /// Whether both hold the same and every answered flush is durable on both.
    pub fn is_in_sync(&self) -> bool {
        self.phase == Phase::InSync
            && self.failed.is_none()
            && self.heal.is_empty()
            && !self.actives.iter().any(Active::is_copy)
    }

    /// Whether it is given up; [`Progress::failed`] says why.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Whether [`Mirror::switch`] or [`Mirror::stop`] has come to its end and the other engine is
    /// closed; nothing of the owner's is left here then.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
            && self.own.is_empty()
            && self.joint.is_empty()
            && self.ready.is_empty()
    }

    /// Why closing the other engine failed.
    pub fn close_error(&self) -> Option<&Error> {
        self.closed.as_ref()
    }

    /// What came of [`Mirror::switch`], once.
    pub fn take_switched(&mut self) -> Option<Result<(), Error>> {
        if matches!(self.switched, Some(Ok(()))) {
            return self.switched.clone();
        }
        self.switched.take()
    }

    /// Lets the copy go on: to be called once per turn of the loop. `guests_busy` says that guests
    /// of the same process have requests in flight, to whom the copy then gives way. `true` when it
    /// stopped for the sake of others.
    pub fn work(&mut self, source: &mut Engine, now_us: u64, guests_busy: bool) -> bool {
        self.guests_busy = guests_busy;
        self.now_us = now_us;
        self.limit.tick(now_us);
        if self.own_bytes == 0 {
            self.pace.end(now_us);
        }
        let scanning = self.phase == Phase::Copying
            && self.failed.is_none()
            && self.blocks.scan(source, &self.other, self.plan.scope);
        self.go_on(source);
        scanning
    }

    /// When there is something to do although nothing happened: a limit lets more through, or a rest
    /// is over.
    pub fn wake_at_us(&self) -> Option<u64> {
        let waits = self.failed.is_none() && self.actives.iter().any(background::can_move);
        // A piece that ended since the last turn is told of in the next one.
        let ended = (self.own_bytes == 0 && self.pace.is_open()).then_some(self.now_us);
        let rests_until_us = self.pace.rests_until_us(self.now_us).or(ended);
        // Whichever comes last: before that nothing moves.
        self.limit
            .wake_at_us()
            .max(rests_until_us)
            .filter(|_| waits)
    }

    /// The next operation of the other engine.
    pub fn next_op(&mut self) -> Option<Op> {
        self.other.next_op()
    }

    /// Takes a completion of the other engine's operation in.
    pub fn complete(&mut self, completion: Completion) {
        self.other.complete(completion);
    }

    /// Upper bits of the tokens of the other engine's operations.
    pub fn other_tag(&self) -> u16 {
        self.other.tag()
    }

    /// The next finished request of the guest or the owner, of both engines. The owner asks here
    /// instead of its engine.
    pub fn next_finished(&mut self, source: &mut Engine) -> Option<Finished> {
        loop {
            if let Some(finished) = self.ready.pop_front() {
                return Some(finished);
            }
            if let Some(finished) = source.next_finished() {
                let from_target = self.phase_is_after_switch();
                self.take_finished(source, finished, from_target);
            } else if let Some(finished) = self.other.next_finished() {
                let from_target = !self.phase_is_after_switch();
                self.take_finished(source, finished, from_target);
            } else {
                return None;
            }
        }
    }

    fn phase_is_after_switch(&self) -> bool {
        self.switched == Some(Ok(()))
    }

    fn take_finished(&mut self, source: &mut Engine, finished: Finished, from_target: bool) {
        let Finished { ticket, result } = finished;
        if ticket.is_own() {
            if let Some(own) = self.own.remove(&ticket.0) {
                self.own_done(source, own, result, from_target);
                self.go_on(source);
            }
        } else if self.joint.contains_key(&ticket.0) {
            self.leg_done(source, ticket, result, from_target);
            self.go_on(source);
        } else {
            self.ready.push_back(Finished { ticket, result });
        }
    }

    /// Gives the copy up: the target is not to be used any more. The guest does not notice, but see
    /// [`Mirror::prepare`].
    fn fail(&mut self, source: &mut Engine, why: String) {
        if self.failed.is_some() || self.phase_is_after_switch() {
            return;
        }
        self.failed = Some(why);
        if self.switch.take().is_some() {
            self.switched = Some(Err(self.failure()));
        }
        self.actives.clear();
        self.heal.clear();
        self.release_held(source);
    }

    fn failure(&self) -> Error {
        let why = self.failed.as_deref().unwrap_or("it is being stopped");
        Error::new(ErrorKind::Io, format!("the mirror has failed: {why}"))
    }
}

fn logged() -> Error {
    let text = "the disk keeps a log of changed blocks, which cannot go to its mirror";
    Error::new(ErrorKind::Unsupported, text)
}

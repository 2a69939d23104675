//! The guest's requests: which go to both engines, which wait, and what comes of them.

use super::blocks::State;
use super::{Mirror, Phase};
use crate::engine::{
    BLOCK_BYTES, Done, Engine, Error, ErrorKind, Finished, REQUESTS_MAX, Request, Scope, Ticket,
};

/// Blocks a change touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    first: u32,
    last: u32,
}

impl Change {
    fn of(offset: u64, len_bytes: u64) -> Self {
        let end = offset.saturating_add(len_bytes).saturating_sub(1);
        let block = |offset: u64| u32::try_from(offset / BLOCK_BYTES).unwrap_or(u32::MAX);
        Self {
            first: block(offset),
            last: block(end),
        }
    }
}

/// A change or flush of the guest that the machine keeps an eye on.
#[derive(Debug)]
pub(super) struct Joint {
    change: Option<Change>,
    /// Flush or FUA, or the disk settles or is written through: its answer promises something.
    durable: bool,
    /// It went to both.
    both: bool,
    /// Every block it touches was done when it began.
    clean: bool,
    /// FUA on the source and not on the target.
    weak: bool,
    left: u8,
    source: Option<Result<Done, Error>>,
    target: Option<Result<Done, Error>>,
}

impl Joint {
    /// A change that is in flight on the source already when the mirror begins.
    pub(super) fn of_before(offset: u64, len_bytes: u64) -> Self {
        Self {
            change: Some(Change::of(offset, len_bytes)),
            durable: false,
            both: false,
            clean: false,
            weak: false,
            left: 1,
            source: None,
            target: None,
        }
    }

    pub(super) fn touches(&self, block: u32) -> bool {
        self.change
            .is_some_and(|change| (change.first..=change.last).contains(&block))
    }

    /// A block it touches is going to be copied again while it is in flight.
    pub(super) fn spoil(&mut self, block: u32) {
        self.clean &= !self.touches(block);
    }

    /// Whether its answer may promise what the target has not.
    pub(super) fn is_weak(&self) -> bool {
        self.weak
    }

    /// Whether it may leave something on the source that the target has not.
    pub(super) fn is_unclean(&self) -> bool {
        self.change.is_some() && !self.clean
    }
}

impl Mirror {
    /// Takes a request of the guest in, in place of the owner's engine.
    pub fn submit(&mut self, source: &mut Engine, ticket: Ticket, request: Request) {
        if self.is_alone() && !self.holds_flushes() {
            return source.submit(ticket, request);
        }
        match change_of(&request) {
            Some(change) if source.check(&request).is_ok() => {
                self.submit_change(source, ticket, request, change);
            }
            None if matches!(request, Request::Flush) => self.submit_flush(source, ticket),
            _ => source.submit(ticket, request),
        }
    }

    /// Whether the engine of the owner has the disk for itself.
    fn is_alone(&self) -> bool {
        self.failed.is_some() || matches!(self.phase, Phase::Closing | Phase::Over)
    }

    /// Whether flushes may not be answered: the caller may have recorded that the target is the
    /// disk, and the target has failed.
    fn holds_flushes(&self) -> bool {
        self.failed.is_some() && self.prepared
    }

    /// Whether a flush must be durable on both.
    fn is_durable_on_both(&self) -> bool {
        let all_copied = matches!(
            self.phase,
            Phase::Settling | Phase::Flushing | Phase::InSync
        );
        all_copied && self.failed.is_none()
    }

    fn submit_flush(&mut self, source: &mut Engine, ticket: Ticket) {
        let both = self.is_durable_on_both();
        self.joint.insert(
            ticket.0,
            Joint {
                change: None,
                durable: true,
                both,
                clean: true,
                weak: false,
                left: if both { 2 } else { 1 },
                source: None,
                target: None,
            },
        );
        source.submit(ticket, Request::Flush);
        if both {
            self.other.submit(ticket, Request::Flush);
        }
    }

    fn submit_change(
        &mut self,
        source: &mut Engine,
        ticket: Ticket,
        request: Request,
        change: Change,
    ) {
        if source.poisoned().is_some() {
            self.fail(source, "the source is poisoned by a failed flush".into());
        }
        if !self.must_wait(change, self.held.len()) {
            return self.start_change(source, ticket, request, change);
        }
        if self.held.len() >= REQUESTS_MAX {
            let text = format!("{REQUESTS_MAX} changes wait for a block");
            let result = Err(Error::new(ErrorKind::Busy, text));
            return self.ready.push_back(Finished { ticket, result });
        }
        self.held.push_back((ticket, request));
    }

    /// Whether a change has to wait for a held block, or for an earlier one of the first `before`
    /// that does and touches the same blocks.
    fn must_wait(&self, change: Change, before: usize) -> bool {
        let held = (change.first..=change.last).any(|b| self.blocks.state(b) == State::Held);
        let behind = || {
            let earlier = self.held.iter().take(before);
            earlier
                .filter_map(|(_, request)| change_of(request))
                .any(|other| change.first <= other.last && other.first <= change.last)
        };
        self.failed.is_none() && (held || behind())
    }

    /// Starts changes that waited and need not any more.
    pub(super) fn release_held(&mut self, source: &mut Engine) {
        let mut at = 0;
        while let Some((_, request)) = self.held.get(at) {
            let change = change_of(request);
            if change.is_some_and(|change| self.must_wait(change, at)) {
                at += 1;
                continue;
            }
            if let (Some((ticket, request)), Some(change)) = (self.held.remove(at), change) {
                self.start_change(source, ticket, request, change);
            }
        }
    }

    fn start_change(
        &mut self,
        source: &mut Engine,
        ticket: Ticket,
        request: Request,
        change: Change,
    ) {
        let mut blocks = change.first..=change.last;
        let any_done = blocks.any(|block| self.blocks.state(block) == State::Done);
        let both = any_done && !self.is_alone() && self.phase != Phase::Growing;
        let fua_on_target = self.is_durable_on_both();
        self.other
            .set_settling(fua_on_target && source.is_settling());
        let promises = source.is_write_through() || source.is_settling();
        let durable = is_fua(&request) || promises;
        let requests = if both {
            let Some(requests) = doubled(source, request, fua_on_target) else {
                // A trim without effect.
                let result = Ok(Done::Ok);
                return self.ready.push_back(Finished { ticket, result });
            };
            requests
        } else {
            (request, None)
        };
        let mut blocks = change.first..=change.last;
        let clean = both && blocks.all(|block| self.blocks.state(block) == State::Done);
        self.joint.insert(
            ticket.0,
            Joint {
                change: Some(change),
                durable,
                both,
                clean,
                weak: both && durable && !fua_on_target,
                left: if both { 2 } else { 1 },
                source: None,
                target: None,
            },
        );
        source.submit(ticket, requests.0);
        if let Some(request) = requests.1 {
            self.other.submit(ticket, request);
        }
    }

    /// One engine has ended its half of a request.
    pub(super) fn leg_done(
        &mut self,
        source: &mut Engine,
        ticket: Ticket,
        result: Result<Done, Error>,
        from_target: bool,
    ) {
        let Some(joint) = self.joint.get_mut(&ticket.0) else {
            return;
        };
        joint.left = joint.left.saturating_sub(1);
        let failure = match (&result, from_target) {
            (Err(error), true) => Some(format!("target: {error}")),
            _ => None,
        };
        if from_target {
            joint.target = Some(result);
        } else {
            joint.source = Some(result);
        }
        let over = joint.left == 0;
        if let Some(why) = failure {
            self.fail(source, why);
        }
        if over && let Some(joint) = self.joint.remove(&ticket.0) {
            self.joint_done(source, ticket, joint);
        }
    }

    fn joint_done(&mut self, source: &mut Engine, ticket: Ticket, joint: Joint) {
        let source_failed = matches!(joint.source, Some(Err(_)));
        if let Some(Change { first, last }) = joint.change
            && !self.phase_is_after_switch()
        {
            if source_failed && joint.both && self.plan.scope != Scope::Chain {
                source.distrust_layers_below();
            }
            if self.failed.is_some() {
                // Nobody will use the target.
            } else if source_failed && joint.both {
                self.heal_blocks(first, last);
            } else if !joint.clean {
                self.changed(first, last);
            }
        }
        // After the switch the target is the disk, before it the source is.
        let (decisive, other) = if self.phase_is_after_switch() {
            (joint.target, joint.source)
        } else {
            (joint.source, joint.target)
        };
        let result = decisive.or(other).unwrap_or(Ok(Done::Ok));
        let finished = Finished { ticket, result };
        if joint.durable && self.holds_flushes() {
            self.parked.push(finished);
        } else {
            self.ready.push_back(finished);
        }
    }

    /// Changes of these blocks happened on the target alone, or in part: they wait until both read
    /// the same again.
    fn heal_blocks(&mut self, first: u32, last: u32) {
        for block in first..=last.min(self.blocks.len().saturating_sub(1)) {
            match self.blocks.state(block) {
                State::Done => {
                    self.blocks.set(block, State::Held);
                    self.heal.push_back(block);
                }
                State::Copying => self.changed(block, block),
                State::Todo | State::Held => {}
            }
        }
    }
}

fn change_of(request: &Request) -> Option<Change> {
    let (offset, len_bytes) = request.changed_range()?;
    Some(Change::of(offset, len_bytes))
}

fn is_fua(request: &Request) -> bool {
    matches!(
        request,
        Request::Write { fua: true, .. }
            | Request::WriteShared { fua: true, .. }
            | Request::WriteZeroes { fua: true, .. }
            | Request::Trim { fua: true, .. }
    )
}

/// A change as each engine gets it; `None` for a trim that is left out.
fn doubled(
    source: &Engine,
    request: Request,
    fua_on_target: bool,
) -> Option<(Request, Option<Request>)> {
    let write = |offset, data: block::SharedBuffer, fua| {
        let copy = Request::WriteShared {
            offset,
            data: data.clone(),
            fua: (fua || source.is_write_through()) && fua_on_target,
        };
        (Request::WriteShared { offset, data, fua }, Some(copy))
    };
    let zeroes = |offset, len_bytes, may_trim, fua| {
        let request = |fua| Request::WriteZeroes {
            offset,
            len_bytes,
            may_trim,
            fua,
        };
        let on_target = (fua || source.is_write_through()) && fua_on_target;
        (request(fua), Some(request(on_target)))
    };
    match request {
        Request::Write { offset, data, fua } => Some(write(offset, data.share(), fua)),
        Request::WriteShared { offset, data, fua } => Some(write(offset, data, fua)),
        Request::Trim {
            offset,
            len_bytes,
            fua,
        } => {
            let writes = source.zeroing_allocates(offset, len_bytes);
            (!writes).then(|| zeroes(offset, len_bytes, true, fua))
        }
        Request::WriteZeroes {
            offset,
            len_bytes,
            may_trim,
            fua,
        } => Some(zeroes(offset, len_bytes, may_trim, fua)),
        other => Some((other, None)),
    }
}

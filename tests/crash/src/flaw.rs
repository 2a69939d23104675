//! Faults planted to see that a sweep finds them: in the carrier, which does not do what it says,
//! and in the owner, who keeps the record at the wrong moment. The engine has no switch for this.

use block::{Action, BlockIo, Completion, Fault, FaultDisk, FileId, Op, SimDisk, Wait};
use std::collections::VecDeque;
use std::io;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The carrier: the first barrier of each flush is answered and not done.
    FirstBarrier,
    /// The carrier: the second one is.
    SecondBarrier,
    /// The carrier: bitmaps of blocks reach the file only after the barrier that should cover them.
    LateBitmaps,
    /// The carrier: one in so many writes of one sector is answered and not done.
    LostWrite(u64),
    /// The carrier: no barrier is done while a disk changes its leaf.
    UnflushedSwitch,
    /// The owner: what has to be durable at once is asked for without saying so.
    ForgottenFua,
    /// The owner: the record names the chain from before a snapshot until the next operation.
    LateRecord,
    /// The owner: a resize is on record before it is done.
    EarlyResize,
    /// The owner: a second disk is opened on the leaf of another one that is in use.
    UnsealedClone,
    /// The owner: the file of a deleted disk goes before the record forgets the disk.
    EarlyDelete,
    /// The owner: images that only snapshots stand on are taken for garbage.
    GreedyCollect,
    /// The carrier: what is written to the target of a mirror where it was written before is lost.
    LostRecopy,
    /// The carrier: no barrier of the target of a mirror is done.
    UnflushedTarget,
    /// The owner: a move is on record before the mirror is in sync.
    EarlyMove,
    /// The owner: an image that was merged goes before its children are put on its parent.
    EarlyCollect,
    /// The carrier: what failed is answered as done; not among [`Flaw::ALL`], as nothing fails there.
    HiddenFailure,
    /// The owner: something is merged into a parent that others stand on or somebody reads.
    SharedParent,
}

impl Flaw {
    /// Those that a sweep finds.
    pub const ALL: [Flaw; 16] = [
        Flaw::FirstBarrier,
        Flaw::SecondBarrier,
        Flaw::LateBitmaps,
        Flaw::LostWrite(2),
        Flaw::UnflushedSwitch,
        Flaw::ForgottenFua,
        Flaw::LateRecord,
        Flaw::EarlyResize,
        Flaw::UnsealedClone,
        Flaw::EarlyDelete,
        Flaw::GreedyCollect,
        Flaw::LostRecopy,
        Flaw::UnflushedTarget,
        Flaw::EarlyMove,
        Flaw::EarlyCollect,
        Flaw::SharedParent,
    ];
}

/// A simulated disk that may do something else than it was asked for.
#[derive(Debug)]
pub(crate) struct Carrier {
    disk: FaultDisk<SimDisk>,
    flaw: Option<Flaw>,
    /// A disk is changing its leaf.
    pub(crate) switching: bool,
    /// The file a mirror writes to, and where it did.
    target: Option<FileId>,
    copied: Vec<(u64, u64)>,
    /// Barriers of the flush under way, and writes, that were seen.
    barriers: u64,
    writes: u64,
    late: VecDeque<Op>,
    lies: Vec<Completion>,
}

/// Where the first block of the small images of a world begins, at the earliest.
const BLOCKS_FROM: u64 = 4096;

impl Carrier {
    pub(crate) fn new(disk: SimDisk, flaw: Option<Flaw>) -> Self {
        Self {
            disk: FaultDisk::new(disk),
            flaw,
            switching: false,
            target: None,
            copied: Vec::new(),
            barriers: 0,
            writes: 0,
            late: VecDeque::new(),
            lies: Vec::new(),
        }
    }

    pub(crate) fn disk(&self) -> &SimDisk {
        self.disk.inner()
    }

    pub(crate) fn disk_mut(&mut self) -> &mut SimDisk {
        self.disk.inner_mut()
    }

    pub(crate) fn set_fault(&mut self, fault: Option<Fault>) {
        self.disk.set_fault(fault);
    }

    pub(crate) fn struck(&self) -> u64 {
        self.disk.struck()
    }

    /// Hands over what is to be done. A barrier that fails loses what it should have covered.
    fn perform(&mut self, op: Op) {
        let (before, file) = (self.disk.struck(), op.file);
        let is_barrier = matches!(op.action, Action::Fdatasync);
        self.disk.submit(op);
        if is_barrier && self.disk.struck() > before {
            self.disk.inner_mut().fail_sync(file);
        }
    }

    /// From now on a mirror writes to this file.
    pub(crate) fn set_target(&mut self, target: Option<FileId>) {
        self.target = target;
        self.copied.clear();
    }

    /// Whether a write of data to the target lies on an earlier one.
    fn is_recopy(&mut self, op: &Op) -> bool {
        let Action::Write { offset, data } = &op.action else {
            return false;
        };
        if Some(op.file) != self.target || data.len() <= 512 {
            return false;
        }
        let (start, end) = (*offset, *offset + data.len() as u64);
        let again = self
            .copied
            .iter()
            .any(|(from, to)| start < *to && *from < end);
        self.copied.push((start, end));
        again
    }

    pub(crate) fn submit(&mut self, op: Op) {
        let Some(flaw) = self.flaw else {
            return self.perform(op);
        };
        let is_barrier = matches!(op.action, Action::Fdatasync);
        let sector = match &op.action {
            Action::Write { offset, data } if data.len() == 512 => Some(*offset),
            _ => None,
        };
        self.barriers += u64::from(is_barrier);
        self.writes += u64::from(sector.is_some());
        let is_lie = match flaw {
            Flaw::FirstBarrier => is_barrier && self.barriers % 2 == 1,
            Flaw::SecondBarrier => is_barrier && self.barriers.is_multiple_of(2),
            Flaw::UnflushedSwitch => is_barrier && self.switching,
            Flaw::LostWrite(nth) => sector.is_some() && self.writes.is_multiple_of(nth),
            Flaw::LostRecopy => self.is_recopy(&op),
            Flaw::UnflushedTarget => is_barrier && Some(op.file) == self.target,
            _ => false,
        };
        if is_lie {
            return self.lie(op);
        }
        if flaw == Flaw::LateBitmaps && sector.is_some_and(|offset| offset >= BLOCKS_FROM) {
            if let Action::Write { offset, data } = &op.action {
                let (token, file) = (u64::MAX, op.file);
                let (offset, data) = (*offset, data.clone());
                let action = Action::Write { offset, data };
                self.late.push_back(Op {
                    token,
                    file,
                    action,
                });
            }
            return self.lie(op);
        }
        self.perform(op);
        if is_barrier {
            for late in self.late.drain(..) {
                self.disk.submit(late);
            }
        }
    }

    fn lie(&mut self, op: Op) {
        self.lies.push(Completion {
            token: op.token,
            result: Ok(()),
            payload: op.action.into_payload(),
        });
    }

    pub(crate) fn poll(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        self.disk.poll(Wait::Forever, done)?;
        if self.flaw == Some(Flaw::HiddenFailure) {
            for completion in done.iter_mut() {
                completion.result = Ok(());
            }
        }
        done.append(&mut self.lies);
        // Nobody asked for what came late.
        done.retain(|completion| completion.token != u64::MAX);
        Ok(())
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.disk.in_flight() + self.lies.len()
    }
}

//! Worlds whose disk fails: what an error answer means, and what must hold once it is healthy.

use super::{Witness, World};
use block::Fault;
use std::fmt;

impl<W: Witness> World<W> {
    /// From now on operations on files fail, and answers may be errors.
    pub fn set_fault(&mut self, fault: Fault) {
        self.is_faulty = true;
        self.host.set_fault(Some(fault));
    }

    /// How many operations on files failed, and how many answers were errors.
    pub fn failed(&self) -> (u64, u64) {
        (self.host.struck(), self.failures)
    }

    /// Takes the answers of guests' requests; whether some are still to come.
    pub(super) fn take_answers(&mut self) -> bool {
        let mut running = false;
        for disk in self.disks.values_mut() {
            for (ticket, meaning) in std::mem::take(&mut disk.running) {
                let Some(result) = self.host.take(ticket) else {
                    disk.running.push((ticket, meaning));
                    continue;
                };
                if let Err(e) = &result {
                    assert!(
                        self.is_faulty,
                        "turn {}: a healthy disk answers: {e}",
                        self.turns
                    );
                    self.failures += 1;
                }
                meaning.answered(&mut disk.model, result.is_ok());
            }
            running |= !disk.running.is_empty();
        }
        running
    }

    /// Something the owner did failed: it leaves it at that.
    pub(super) fn gives_up(&mut self, why: &dyn fmt::Display) {
        assert!(self.is_faulty, "{self:?}: on a healthy disk: {why}");
        self.failures += 1;
        self.acts.clear();
    }

    /// A live operation failed: the disk is what it was, or it is closed for good.
    pub(super) fn live_failed(&mut self, tag: u16) {
        let closed = self.host.is_closed(tag);
        if let Some(disk) = self.disks.get_mut(&tag) {
            disk.record = vec![disk.chain.clone()];
            disk.leaving = closed;
        }
    }

    /// The disk is healthy again. Where no barrier failed, what is on record is done to its end, a
    /// flush works, and everything answered holds; where one did, at least what was flushed.
    pub fn heal(&mut self) {
        self.settle();
        self.host.set_fault(None);
        let tags: Vec<u16> = self.disks.keys().copied().collect();
        let poisoned = |tag: &u16| self.host.is_poisoned(*tag) || self.host.is_closed(*tag);
        let (lost, sound): (Vec<u16>, Vec<u16>) = tags.into_iter().partition(poisoned);
        self.is_faulty = !lost.is_empty();
        if lost.is_empty() {
            self.merge_again();
        }
        for tag in sound {
            self.flush(tag);
        }
        self.settle();
        let is_done = self.merging.is_none() || !lost.is_empty();
        assert!(
            is_done,
            "{self:?}: {:?} is not done to its end",
            self.merging
        );
    }
}

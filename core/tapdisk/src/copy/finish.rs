//! From "all is copied" to the end: in sync, prepare, switch, stop.

use super::background::Own;
use super::guest::Joint;
use super::{Mirror, Phase, Switch, logged};
use crate::engine::{Engine, Error, ErrorKind, LiveOp, Request};

impl Mirror {
    /// From now on, until the switch or the stop, no flush is answered that is not durable on both,
    /// even if the target fails. To be asked for before the caller records that the target is the
    /// disk. Idempotent.
    ///
    /// # Errors
    /// `Busy` unless in sync, `Io` when the mirror has failed.
    pub fn prepare(&mut self) -> Result<(), Error> {
        if self.phase_is_after_switch() {
            return Ok(());
        }
        self.check_in_sync()?;
        self.prepared = true;
        Ok(())
    }

    /// Puts the target in the source's place, after a flush of both and, with `verify`, after both
    /// were compared; [`Mirror::take_switched`] says when. Blocks that are held because a change
    /// failed on the source are waited for. Idempotent.
    ///
    /// # Errors
    /// `Busy` unless it is or was in sync, `Io` when the mirror has failed.
    pub fn switch(&mut self, source: &mut Engine, verify: bool) -> Result<(), Error> {
        if self.phase_is_after_switch() || self.switch.is_some() {
            return Ok(());
        }
        if self.failed.is_some() {
            return Err(self.failure());
        }
        if self.phase != Phase::InSync {
            return Err(not_in_sync());
        }
        if source.log_state().is_some() {
            return Err(logged());
        }
        let from = if verify { 0 } else { self.blocks.len() };
        self.switched = None;
        self.switch = Some(Switch::Comparing(from));
        self.go_on(source);
        Ok(())
    }

    /// Ends the copy: the target is closed, the source goes on alone, flushes that were held back
    /// are answered. A switch that was asked for and has not happened never will. After a switch
    /// there is nothing to stop. Idempotent.
    pub fn stop(&mut self, source: &mut Engine) {
        if matches!(self.phase, Phase::Closing | Phase::Over) {
            return;
        }
        if self.switch.take().is_some() {
            self.switched = Some(Err(self.failure()));
        }
        self.prepared = false;
        self.actives.clear();
        self.heal.clear();
        self.close_other();
        self.release_held(source);
        self.ready.extend(self.parked.drain(..));
    }

    fn check_in_sync(&self) -> Result<(), Error> {
        if self.failed.is_some() {
            return Err(self.failure());
        }
        if !self.is_in_sync() {
            return Err(not_in_sync());
        }
        Ok(())
    }

    /// The target is as large as the source.
    pub(super) fn grown(&mut self, source: &mut Engine, same_size: bool) {
        let (from, to) = (source.size_bytes(), self.other.size_bytes());
        if self.phase != Phase::Growing {
            return;
        }
        self.phase = Phase::Copying;
        if to < from || (same_size && to != from) {
            let text = format!("target: it grew to {to} bytes, the disk has {from}");
            self.fail(source, text);
        }
    }

    /// Looks whether the next step towards the end can be taken.
    pub(super) fn go_on_to_the_end(&mut self, source: &mut Engine) {
        if self.failed.is_some() {
            return;
        }
        let quiet = self.actives.is_empty() && self.heal.is_empty();
        if self.phase == Phase::Copying
            && quiet
            && self.blocks.all_copied()
            && !self.joint.values().any(Joint::is_unclean)
        {
            self.phase = Phase::Settling;
        }
        if self.phase == Phase::Settling && !self.joint.values().any(Joint::is_weak) {
            self.phase = Phase::Flushing;
            let ticket = self.own_ticket(Own::FirstFlush);
            return self.other.submit(ticket, Request::Flush);
        }
        match self.switch {
            Some(Switch::Comparing(next)) if quiet && next >= self.blocks.len() => {
                self.switch = Some(Switch::Flushing(2));
                let ticket = self.own_ticket(Own::SwitchFlush);
                source.submit(ticket, Request::Flush);
                let ticket = self.own_ticket(Own::SwitchFlush);
                self.other.submit(ticket, Request::Flush);
            }
            Some(Switch::Flushing(0)) if source.log_state().is_some() => {
                self.switch = None;
                self.switched = Some(Err(logged()));
            }
            Some(Switch::Flushing(0)) if self.is_in_sync() && !source.is_held() => {
                self.switch = None;
                self.switched = Some(Ok(()));
                self.prepared = false;
                self.other.take_over(source);
                std::mem::swap(source, &mut self.other);
                self.close_other();
            }
            _ => {}
        }
    }

    pub(super) fn first_flushed(&mut self) {
        if self.phase == Phase::Flushing {
            self.phase = Phase::InSync;
        }
    }

    pub(super) fn switch_flushed(&mut self) {
        if let Some(Switch::Flushing(left)) = &mut self.switch {
            *left = left.saturating_sub(1);
        }
    }

    /// What it has in flight still ends.
    fn close_other(&mut self) {
        self.phase = Phase::Closing;
        let ticket = self.own_ticket(Own::Close);
        self.other.start(ticket, LiveOp::Close);
    }

    pub(super) fn other_closed(&mut self) {
        self.phase = Phase::Over;
    }
}

fn not_in_sync() -> Error {
    Error::new(ErrorKind::Busy, "the mirror is not in sync")
}

//! What a disk's requests go to: its engine, and while it is mirrored a second one beside it.
//!
//! Whoever has the disk uses it as if it were the engine; only what goes in and comes out takes
//! another way while there is a mirror.

use super::disk::FileIdentity;
use crate::copy::Mirror;
use crate::engine::{Engine, Error, Finished, Request, Ticket};
use block::{Completion, FileId, Op};
use datapath::protocol::{CopyProgress, Extent, MirrorState};
use std::ops::{Deref, DerefMut};
use uuid::Uuid;

/// A mirror, and the files of the engine that the disk does not have: the target's, after the
/// switch those of the chain before.
#[derive(Debug)]
pub(super) struct Mirroring {
    pub(super) mirror: Mirror,
    pub(super) identities: Vec<FileIdentity>,
    pub(super) extent: Extent,
    /// The layer that is directly above the written file in every chain that may have it.
    pub(super) over: Option<FileIdentity>,
    pub(super) target: Vec<Uuid>,
    /// The switch was taken note of.
    pub(super) noted: bool,
}

impl Mirroring {
    pub(super) fn state(&self) -> MirrorState {
        let progress = self.mirror.progress();
        MirrorState {
            target: self.target.clone(),
            progress: wire(&progress),
            in_sync: progress.in_sync,
            switched: progress.switched,
            failed: progress.failed,
        }
    }
}

/// How far a copy is, as the protocol has it.
pub(super) fn wire(progress: &crate::copy::Progress) -> CopyProgress {
    CopyProgress {
        total_bytes: progress.total_bytes,
        done_bytes: progress.done_bytes,
        copied_bytes: progress.copied_bytes,
    }
}

/// An engine with or without a mirror.
#[derive(Debug)]
pub(super) struct Engines {
    engine: Engine,
    mirroring: Option<Box<Mirroring>>,
    /// The last mirror, if it was switched.
    last: Option<MirrorState>,
    now_us: u64,
}

impl Engines {
    pub(super) fn new(engine: Engine) -> Self {
        Self {
            engine,
            mirroring: None,
            last: None,
            now_us: 0,
        }
    }

    /// Takes a request in; see [`Engine::submit`].
    pub(super) fn submit(&mut self, ticket: Ticket, request: Request) {
        match &mut self.mirroring {
            None => self.engine.submit(ticket, request),
            Some(m) => m.mirror.submit(&mut self.engine, ticket, request),
        }
    }

    /// The next finished request; see [`Engine::next_finished`].
    pub(super) fn next_finished(&mut self) -> Option<Finished> {
        match &mut self.mirroring {
            None => self.engine.next_finished(),
            Some(m) => m.mirror.next_finished(&mut self.engine),
        }
    }

    /// The next operation; see [`Engine::next_op`].
    pub(super) fn next_op(&mut self) -> Option<Op> {
        let own = self.engine.next_op();
        own.or_else(|| self.mirroring.as_mut()?.mirror.next_op())
    }

    /// Takes the completion of an operation with this tag in.
    pub(super) fn complete(&mut self, tag: u16, completion: Completion) {
        match &mut self.mirroring {
            Some(m) if m.mirror.other_tag() == tag => m.mirror.complete(completion),
            _ => self.engine.complete(completion),
        }
    }

    /// See [`Engine::set_now`].
    pub(super) fn set_now(&mut self, now_us: u64) {
        self.now_us = now_us;
        self.engine.set_now(now_us);
    }

    /// See [`Engine::wake_at_us`].
    pub(super) fn wake_at_us(&self) -> Option<u64> {
        let mirror = self.mirroring.as_ref().and_then(|m| m.mirror.wake_at_us());
        self.engine.wake_at_us().into_iter().chain(mirror).min()
    }

    /// Lets the copy of a mirror go on; see [`Mirror::work`].
    pub(super) fn work(&mut self, guests_busy: bool) -> bool {
        let now_us = self.now_us;
        let mirroring = self.mirroring.as_mut();
        mirroring.is_some_and(|m| m.mirror.work(&mut self.engine, now_us, guests_busy))
    }

    /// The mirror that is there.
    pub(super) fn mirroring(&self) -> Option<&Mirroring> {
        self.mirroring.as_deref()
    }

    /// The mirror that is there.
    pub(super) fn mirroring_mut(&mut self) -> Option<&mut Mirroring> {
        self.mirroring.as_deref_mut()
    }

    /// The mirror that is there, and the engine.
    pub(super) fn both(&mut self) -> (Option<&mut Mirroring>, &mut Engine) {
        (self.mirroring.as_deref_mut(), &mut self.engine)
    }

    /// Begins to use a mirror, made for this engine.
    pub(super) fn set_mirror(
        &mut self,
        make: impl FnOnce(&mut Engine) -> Result<Mirroring, Error>,
    ) -> Result<(), Error> {
        self.mirroring = Some(Box::new(make(&mut self.engine)?));
        self.last = None;
        Ok(())
    }

    /// Drops a mirror that is over. Returns the tag and the files of the engine that went with it.
    pub(super) fn end_mirror(&mut self) -> Option<(u16, Vec<FileId>)> {
        let over = self.mirroring.as_ref().is_some_and(|m| m.mirror.is_over());
        let mirroring = self.mirroring.take_if(|_| over)?;
        self.last = Some(mirroring.state()).filter(|state| state.switched);
        let other = mirroring.mirror.other();
        let files = other.files().into_iter().chain(other.retiring());
        Some((other.tag(), files.collect()))
    }

    /// The state of the mirror that is there, or of the last one if it was switched.
    pub(super) fn mirror_state(&self) -> Option<MirrorState> {
        let present = self.mirroring.as_ref().map(|m| m.state());
        present.or_else(|| self.last.clone())
    }
}

impl Deref for Engines {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl DerefMut for Engines {
    fn deref_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }
}

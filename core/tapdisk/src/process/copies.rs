//! Copies and mirrors of the process: their turns, their ends, who waits for them, and which files
//! they may have.
//!
//! A file that is written is in no other chain, with one exception: what takes over the sectors of
//! the layer above it is also below that layer in the chains of others, who read it only where that
//! layer has nothing.

use super::disk::FileIdentity;
use super::engines::wire;
use super::operations::engine_error;
use super::{Process, ReplyTo};
use crate::copy::Job;
use datapath::protocol::{Access, CopyState, Error, ErrorKind, Reply};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};
use units::DpId;

/// For how long after a guest's last request copies still give way to guests.
const GUEST_PAUSE: Duration = Duration::from_millis(20);

/// One copy, under way or ended.
#[derive(Debug)]
pub(super) struct Copying {
    pub(super) source: Vec<FileIdentity>,
    pub(super) target: Vec<FileIdentity>,
    pub(super) over: Option<FileIdentity>,
    /// `None` once it has ended.
    pub(super) job: Option<Box<Job>>,
    /// As it ended.
    pub(super) last: CopyState,
}

impl Copying {
    pub(super) fn state(&self, copy: &DpId) -> CopyState {
        let Some(job) = &self.job else {
            return self.last.clone();
        };
        let progress = job.progress();
        CopyState {
            copy: copy.clone(),
            progress: wire(&progress),
            ended: false,
            failed: progress.failed,
        }
    }
}

/// What somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Awaited {
    CopyEnded(DpId),
    CopyStopped(DpId),
    InSync(DpId),
    Switched(DpId),
    Stopped(DpId),
    /// The end of a mirror, to close its disk then.
    Close(DpId),
}

/// Somebody who waits.
#[derive(Debug)]
pub(super) struct Waiting {
    /// `None`: the process itself.
    pub(super) to: Option<ReplyTo>,
    pub(super) what: Awaited,
    pub(super) until: Option<Instant>,
}

/// All copies, and who waits for copies and mirrors.
#[derive(Debug, Default)]
pub(super) struct Copies {
    pub(super) known: BTreeMap<DpId, Copying>,
    /// Which copy a token's tag belongs to.
    pub(super) tags: HashMap<u16, DpId>,
    pub(super) waiting: Vec<Waiting>,
    /// When a guest last had a request in flight.
    guest_seen: Option<Instant>,
    /// Requests answered to guests, when they were last counted.
    answered: u64,
}

impl Copies {
    /// Whether some copy is under way.
    pub(super) fn are_running(&self) -> bool {
        self.known.values().any(|copying| copying.job.is_some())
    }

    pub(super) fn states(&self) -> Vec<CopyState> {
        let known = self.known.iter();
        known.map(|(id, copying)| copying.state(id)).collect()
    }

    /// When something is to be done although nothing happens: the first moment somebody waits no
    /// longer, the first token of a limit.
    pub(super) fn wake(&self) -> (Option<Instant>, Option<u64>) {
        let until = self.waiting.iter().filter_map(|w| w.until).min();
        let jobs = self.known.values().filter_map(|c| c.job.as_ref());
        (until, jobs.filter_map(|job| job.wake_at_us()).min())
    }

    /// Whether the disk is about to be closed when its mirror is over.
    pub(super) fn closes(&self, disk: &DpId) -> bool {
        let close = Awaited::Close(disk.clone());
        self.waiting.iter().any(|w| w.what == close)
    }
}

fn stopped(disk: &DpId) -> Error {
    let message = format!("the mirror of disk {disk} was stopped");
    Error::new(ErrorKind::NotFound, message)
}

/// A file that somebody writes.
#[derive(Debug, Clone, Copy)]
struct Written {
    file: FileIdentity,
    over: Option<FileIdentity>,
}

impl Written {
    /// Whether a chain, leaf first, may not have it.
    fn clashes(self, chain: &[FileIdentity]) -> bool {
        let Some(at) = chain.iter().position(|file| *file == self.file) else {
            return false;
        };
        let above = at.checked_sub(1).and_then(|above| chain.get(above));
        self.over.is_none() || above != self.over.as_ref()
    }
}

impl Process {
    /// Gives every copy its turn and ends what is over. `true` when one stopped for the sake of
    /// others.
    pub(super) fn work_copies(&mut self, now: Instant) -> bool {
        self.look_for_guests(now);
        let seen = self.copies.guest_seen;
        let busy = seen.is_some_and(|seen| now.duration_since(seen) < GUEST_PAUSE);
        let now_us = self.now_us(now);
        let mut more = false;
        for copying in self.copies.known.values_mut() {
            if let Some(job) = &mut copying.job {
                more |= job.work(now_us, busy);
                while let Some(op) = job.next_op() {
                    self.reactor.submit(op);
                }
            }
        }
        for disk in self.disks.values_mut() {
            more |= disk.engine.work(busy);
            while let Some(op) = disk.engine.next_op() {
                self.reactor.submit(op);
            }
            while let Some(file) = disk.engine.take_retired() {
                self.reactor.remove_file(file);
            }
        }
        more
    }

    /// Takes note of guests that have requests in flight or had some answered.
    fn look_for_guests(&mut self, now: Instant) {
        let mirrored = |disk: &super::Disk| disk.engine.mirroring().is_some();
        if !self.copies.are_running() && !self.disks.values().any(mirrored) {
            return;
        }
        let answered = self.disks.values().map(|disk| {
            let stats = disk.engine.stats();
            stats
                .reads
                .wrapping_add(stats.writes)
                .wrapping_add(stats.flushes)
        });
        let answered = answered.fold(0, u64::wrapping_add);
        let waits = self.disks.values().any(super::Disk::has_requests);
        if waits || answered != self.copies.answered {
            self.copies.guest_seen = Some(now);
        }
        self.copies.answered = answered;
    }

    /// Takes note of what has ended and answers who waits for it; whether there was something.
    pub(super) fn settle_copies(&mut self, now: Instant) -> bool {
        self.end_copies();
        self.note_mirrors();
        self.answer_waiting(now)
    }

    fn end_copies(&mut self) {
        let Copies { known, tags, .. } = &mut self.copies;
        for (id, copying) in known {
            let Some(job) = copying.job.take_if(|job| job.is_over()) else {
                continue;
            };
            let progress = job.progress();
            for engine in job.engines() {
                tags.remove(&engine.tag());
                for file in engine.files() {
                    self.reactor.remove_file(file);
                }
            }
            let failed = match (progress.in_sync, &progress.failed) {
                (true, _) => None,
                (false, Some(why)) => Some(why.clone()),
                (false, None) => Some("it was stopped".to_owned()),
            };
            match &failed {
                None => tracing::info!(copy = %id, bytes = progress.copied_bytes, "copied"),
                Some(why) => tracing::warn!(copy = %id, why, "not copied"),
            }
            copying.last = CopyState {
                copy: id.clone(),
                progress: wire(&progress),
                ended: true,
                failed,
            };
        }
    }

    /// Takes note of switches that happened and of mirrors that are over.
    fn note_mirrors(&mut self) {
        for (id, disk) in &mut self.disks {
            if let Some(mirroring) = disk.engine.mirroring_mut()
                && mirroring.mirror.progress().switched
                && !mirroring.noted
            {
                mirroring.noted = true;
                mirroring.over = None;
                std::mem::swap(&mut disk.identities, &mut mirroring.identities);
                std::mem::swap(&mut disk.extent, &mut mirroring.extent);
                disk.tag = disk.engine.tag();
                tracing::info!(disk = %id, "switched to its mirror");
            }
            let close_error = disk.engine.mirroring().and_then(|m| m.mirror.close_error());
            let close_error = close_error.map(ToString::to_string);
            if let Some((tag, files)) = disk.engine.end_mirror() {
                if let Some(error) = close_error {
                    tracing::warn!(disk = %id, error, "the other side is not closed cleanly");
                }
                self.tags.remove(&tag);
                files
                    .into_iter()
                    .for_each(|file| self.reactor.remove_file(file));
            }
        }
    }

    /// Answers those whose wait is over; whether there was one.
    fn answer_waiting(&mut self, now: Instant) -> bool {
        let mut any = false;
        for waiting in std::mem::take(&mut self.copies.waiting) {
            let timed_out = waiting.until.is_some_and(|until| until <= now);
            match self.outcome(&waiting.what, timed_out) {
                None => self.copies.waiting.push(waiting),
                Some(outcome) => {
                    any = true;
                    if let Awaited::Close(disk) = waiting.what {
                        self.begin_close(disk, waiting.to);
                    } else if let Some(to) = waiting.to {
                        self.answer(&to, outcome);
                    }
                }
            }
        }
        any
    }

    /// What came of something that is waited for; `None` when it still is.
    fn outcome(&mut self, what: &Awaited, timed_out: bool) -> Option<Result<Reply, Error>> {
        match what {
            Awaited::CopyEnded(id) => match self.copies.known.get(id) {
                Some(copying) if copying.job.is_some() && !timed_out => None,
                Some(copying) => Some(Ok(Reply::Copy(copying.state(id)))),
                None => Some(Err(Error::new(
                    ErrorKind::NotFound,
                    format!("copy {id} was stopped"),
                ))),
            },
            Awaited::CopyStopped(id) => {
                let running = self.copies.known.get(id).is_some_and(|c| c.job.is_some());
                if running {
                    return None;
                }
                self.copies.known.remove(id);
                Some(Ok(Reply::Done))
            }
            Awaited::InSync(id) => {
                let state = self.disks.get(id).and_then(|d| d.engine.mirror_state());
                let waits = state
                    .as_ref()
                    .is_some_and(|s| !s.in_sync && !s.switched && s.failed.is_none());
                if waits && !timed_out {
                    return None;
                }
                let none = Error::new(ErrorKind::NotFound, format!("disk {id} has no mirror"));
                Some(state.ok_or(none).and_then(|_| self.disk_state(id)))
            }
            Awaited::Switched(id) => {
                let engine = self.disks.get_mut(id).map(|disk| &mut disk.engine);
                let switched = engine.as_ref().is_some_and(|e| e.mirror_state().is_some());
                let result = match engine.and_then(|engine| engine.mirroring_mut()) {
                    Some(mirroring) => mirroring.mirror.take_switched()?.map_err(engine_error),
                    None if switched => Ok(()),
                    None => Err(stopped(id)),
                };
                Some(result.and_then(|()| self.disk_state(id)))
            }
            Awaited::Stopped(id) | Awaited::Close(id) => {
                let there = self.disks.get(id).and_then(|d| d.engine.mirroring());
                there.is_none().then_some(Ok(Reply::Done))
            }
        }
    }

    /// Stops every copy because the process ends.
    pub(super) fn stop_copies(&mut self) {
        for copying in self.copies.known.values_mut() {
            if let Some(job) = &mut copying.job {
                job.stop();
            }
        }
    }

    /// Checks that a chain, leaf first, can be opened beside all others. `writes` when its leaf is
    /// to be written, with the layer that hides what is written from others, if there is one.
    pub(super) fn check_files(
        &self,
        chain: &[FileIdentity],
        writes: Option<Option<FileIdentity>>,
    ) -> Result<(), Error> {
        let theirs = self.written().into_iter();
        let theirs = theirs.filter(|(_, written)| written.clashes(chain));
        let mut clash = theirs.map(|(who, _)| who).next();
        if let (Some(over), Some(file)) = (writes, chain.first()) {
            let ours = Written { file: *file, over };
            let chains = self.chains().into_iter();
            let of_ours = chains.filter(|(_, chain)| ours.clashes(chain));
            clash = clash.or(of_ours.map(|(who, _)| who).next());
        }
        match clash {
            None => Ok(()),
            Some(who) => {
                let message = format!("{who} has a file of this chain, and one of them writes it");
                Err(Error::new(ErrorKind::Busy, message))
            }
        }
    }

    /// Whether somebody writes the file.
    pub(super) fn is_written(&self, file: FileIdentity) -> bool {
        self.written()
            .iter()
            .any(|(_, written)| written.file == file)
    }

    /// Who has the file in a chain.
    pub(super) fn user_of(&self, file: FileIdentity) -> Option<String> {
        let mut chains = self.chains().into_iter();
        let found = chains.find(|(_, chain)| chain.contains(&file));
        found.map(|(who, _)| who)
    }

    fn written(&self) -> Vec<(String, Written)> {
        let mut all = Vec::new();
        for (id, disk) in &self.disks {
            let leaf = disk.identities.first();
            let leaf = leaf.filter(|_| disk.engine.access() == Access::ReadWrite);
            all.extend(leaf.map(|file| {
                let written = Written {
                    file: *file,
                    over: None,
                };
                (format!("disk {id}"), written)
            }));
            if let Some(mirroring) = disk.engine.mirroring()
                && let Some(file) = mirroring.identities.first()
            {
                let written = Written {
                    file: *file,
                    over: mirroring.over,
                };
                all.push((format!("the mirror of disk {id}"), written));
            }
        }
        for (id, copying) in &self.copies.known {
            if copying.job.is_some()
                && let Some(file) = copying.target.first()
            {
                let written = Written {
                    file: *file,
                    over: copying.over,
                };
                all.push((format!("copy {id}"), written));
            }
        }
        all
    }

    fn chains(&self) -> Vec<(String, &[FileIdentity])> {
        let mut all: Vec<(String, &[FileIdentity])> = Vec::new();
        for (id, disk) in &self.disks {
            all.push((format!("disk {id}"), &disk.identities));
            if let Some(mirroring) = disk.engine.mirroring() {
                all.push((format!("the mirror of disk {id}"), &mirroring.identities));
            }
        }
        for (id, copying) in &self.copies.known {
            if copying.job.is_some() {
                all.push((format!("copy {id}"), &copying.source));
                all.push((format!("copy {id}"), &copying.target));
            }
        }
        all
    }
}

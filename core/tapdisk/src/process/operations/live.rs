//! Operations that are answered when an engine has gone quiet: snapshot, resize, freeze, close.

use super::open::Opened;
use super::{Answered, Process, engine_error, found};
use crate::engine::{LayerImage, LayerSpec, LiveOp, Relink};
use crate::process::copies::{Awaited, Waiting};
use crate::process::disk::{Disk, FileIdentity, LiveOutcome};
use crate::process::reactor::Key;
use crate::process::{Life, ReplyTo};
use block::FileId;
use datapath::protocol::{Access, Error, ErrorKind, Format, Reply};
use std::fs::File;
use std::os::fd::OwnedFd;
use units::DpId;
use uuid::Uuid;

/// An operation that waits for an engine.
#[derive(Debug)]
pub(in crate::process) struct Live {
    disk: DpId,
    after: After,
}

/// What is to be done when the engine is done.
#[derive(Debug)]
pub(super) enum After {
    Snapshot {
        to: ReplyTo,
        identity: FileIdentity,
        file: FileId,
        log: Option<(FileIdentity, FileId)>,
    },
    CbtStart {
        to: ReplyTo,
        log: (FileIdentity, FileId),
    },
    CbtStop {
        to: ReplyTo,
    },
    Resize {
        to: ReplyTo,
    },
    /// With the file that takes the place of the one below the layer at `depth`, which goes.
    Relink {
        to: ReplyTo,
        file: FileId,
        depth: usize,
    },
    /// Without anyone to tell: the process is ending.
    Close {
        to: Option<ReplyTo>,
    },
    /// One disk of a freeze, by the freeze's number.
    Freeze {
        number: u64,
    },
}

/// The disks of one freeze.
#[derive(Debug)]
pub(in crate::process) struct Freezing {
    to: ReplyTo,
    disks: Vec<DpId>,
    left: usize,
    error: Option<Error>,
}

impl Process {
    pub(super) fn close(&mut self, to: &ReplyTo, id: DpId) -> Option<Answered> {
        if !self.disks.contains_key(&id) {
            return Some(Ok(Reply::Done));
        }
        if self.is_busy(&id) {
            let message = format!("disk {id} is in another operation");
            return Some(Err(Error::new(ErrorKind::Busy, message)));
        }
        self.begin_close(id, Some(to.clone()));
        None
    }

    /// Closes every disk because the process ends. One that is in an operation follows when that
    /// is over.
    pub(in crate::process) fn close_all(&mut self) {
        let ids: Vec<DpId> = self.disks.keys().cloned().collect();
        for id in ids {
            if !self.is_busy(&id) {
                self.begin_close(id, None);
            }
        }
    }

    pub(super) fn is_busy(&self, id: &DpId) -> bool {
        self.live.values().any(|live| live.disk == *id) || self.copies.closes(id)
    }

    /// Closes a disk, after the end of its mirror if it has one.
    pub(in crate::process) fn begin_close(&mut self, id: DpId, to: Option<ReplyTo>) {
        let Some(disk) = self.disks.get_mut(&id) else {
            return;
        };
        for key in disk.unserve(&mut self.reactor) {
            self.owners.remove(&key);
        }
        // What is held back was accepted and is answered first.
        disk.engine.thaw();
        self.frozen.remove(&id);
        if let (Some(mirroring), engine) = disk.engine.both() {
            mirroring.mirror.stop(engine);
            return self.copies.waiting.push(Waiting {
                to,
                what: Awaited::Close(id),
                until: None,
            });
        }
        self.start(id, LiveOp::Close, After::Close { to });
    }

    pub(super) fn snapshot(
        &mut self,
        to: &ReplyTo,
        id: DpId,
        leaf: Uuid,
        (fd, log): (OwnedFd, Option<OwnedFd>),
    ) -> Option<Answered> {
        match self.prepare_snapshot(&id, leaf, fd) {
            Ok(Some((spec, identity))) => {
                let log = match log.map(|log| self.stage_log(&id, log)).transpose() {
                    Ok(log) => log,
                    Err(e) => {
                        self.reactor.remove_file(spec.file);
                        return Some(Err(e));
                    }
                };
                let after = After::Snapshot {
                    to: to.clone(),
                    identity,
                    file: spec.file,
                    log,
                };
                self.start(id, LiveOp::SnapshotSwitch(Box::new(spec)), after);
                None
            }
            Ok(None) => Some(self.disk_state(&id)),
            Err(e) => Some(Err(e)),
        }
    }

    /// `None`: it is the leaf already.
    fn prepare_snapshot(
        &mut self,
        id: &DpId,
        leaf: Uuid,
        fd: OwnedFd,
    ) -> Result<Option<(LayerSpec, FileIdentity)>, Error> {
        let disk = found(self.disks.get(id), id)?;
        if disk.engine.layer_uuids().first() == Some(&leaf) {
            return Ok(None);
        }
        check_not_mirrored(disk, id)?;
        let opened = Opened::read(File::from(fd), Format::Vhd, disk.extent, Access::ReadWrite)?;
        let identity = opened.identity;
        self.check_free(&[identity], Access::ReadWrite)?;
        if let LayerImage::Vhd(image) = &opened.image
            && image.uuid() != leaf
        {
            let message = format!("the new leaf is image {}, not {leaf}", image.uuid());
            return Err(Error::new(ErrorKind::Chain, message));
        }
        let spec = opened.into_spec(&mut self.reactor);
        if let Some(disk) = self.disks.get_mut(id) {
            disk.set_cache_of_new_file(&mut self.reactor, spec.file);
        }
        Ok(Some((spec, identity)))
    }

    pub(super) fn resize(
        &mut self,
        to: &ReplyTo,
        id: DpId,
        virtual_bytes: u64,
    ) -> Option<Answered> {
        let disk = match found(self.disks.get(&id), &id) {
            Ok(disk) => disk,
            Err(e) => return Some(Err(e)),
        };
        if disk.engine.size_bytes() == virtual_bytes {
            return Some(self.disk_state(&id));
        }
        if let Err(e) = check_not_mirrored(disk, &id) {
            return Some(Err(e));
        }
        self.start(
            id,
            LiveOp::Resize { virtual_bytes },
            After::Resize { to: to.clone() },
        );
        None
    }

    /// All begin before any is waited for, so that they stop at one instant.
    pub(super) fn freeze(&mut self, to: &ReplyTo, mut disks: Vec<DpId>) -> Option<Answered> {
        disks.sort();
        disks.dedup();
        for id in &disks {
            if let Err(e) = found(self.disks.get(id), id) {
                return Some(Err(e));
            }
            if self.frozen.contains_key(id) {
                let message = format!("disk {id} is frozen already");
                return Some(Err(Error::new(ErrorKind::Busy, message)));
            }
        }
        if disks.is_empty() {
            return Some(Ok(Reply::Done));
        }
        self.last_number += 1;
        let number = self.last_number;
        for id in &disks {
            self.frozen.insert(id.clone(), to.control);
            self.start(id.clone(), LiveOp::Freeze, After::Freeze { number });
        }
        let freezing = Freezing {
            to: to.clone(),
            left: disks.len(),
            disks,
            error: None,
        };
        self.freezing.insert(number, freezing);
        None
    }

    pub(super) fn thaw(&mut self, disks: &[DpId]) -> Answered {
        for id in disks {
            found(self.disks.get(id), id)?;
        }
        disks.iter().for_each(|id| self.thaw_one(id));
        Ok(Reply::Done)
    }

    fn thaw_one(&mut self, id: &DpId) {
        self.frozen.remove(id);
        if let Some(disk) = self.disks.get_mut(id) {
            disk.engine.thaw();
        }
    }

    /// A freeze ends with the connection it came by: a daemon that dies must not hold a guest.
    pub(in crate::process) fn thaw_orphans(&mut self, control: Key) {
        let orphans = self.frozen.iter().filter(|(_, by)| **by == control);
        let orphans: Vec<DpId> = orphans.map(|(id, _)| id.clone()).collect();
        for id in orphans {
            tracing::warn!(disk = %id, "thawed, as its control connection ended");
            self.thaw_one(&id);
        }
    }

    pub(super) fn start(&mut self, id: DpId, op: LiveOp, after: After) {
        let Some(disk) = self.disks.get_mut(&id) else {
            return;
        };
        self.last_number += 1;
        disk.start(self.last_number, op);
        self.live.insert(self.last_number, Live { disk: id, after });
    }

    pub(super) fn start_relink(&mut self, id: DpId, relink: Relink, after: After) {
        let Some(disk) = self.disks.get_mut(&id) else {
            return;
        };
        self.last_number += 1;
        disk.start_relink(self.last_number, relink);
        self.live.insert(self.last_number, Live { disk: id, after });
    }

    /// An engine is done with what was started.
    pub(in crate::process) fn live_ended(&mut self, outcome: LiveOutcome) {
        let Some(Live { disk: id, after }) = self.live.remove(&outcome.number) else {
            return;
        };
        let result = outcome.result.map_err(engine_error);
        match after {
            After::Snapshot {
                to,
                identity,
                file,
                log,
            } => {
                if log.is_some() {
                    self.log_ended(&id, log, result.is_ok());
                }
                match (&result, self.disks.get_mut(&id)) {
                    (Ok(()), Some(disk)) => {
                        tracing::info!(disk = %id, request_id = %to.request_id, "new leaf");
                        disk.identities.insert(0, identity);
                    }
                    _ => self.reactor.remove_file(file),
                }
                let answer = result.and_then(|()| self.disk_state(&id));
                self.answer(&to, answer);
            }
            After::CbtStart { to, log } => {
                self.log_ended(&id, Some(log), result.is_ok());
                self.answer_state(&to, &id, result);
            }
            After::CbtStop { to } => {
                if result.is_ok() {
                    self.log_ended(&id, None, true);
                }
                self.answer_state(&to, &id, result);
            }
            After::Resize { to } => {
                if let Some(disk) = self.disks.get_mut(&id) {
                    disk.fit_size();
                }
                let answer = result.and_then(|()| self.disk_state(&id));
                self.answer(&to, answer);
            }
            After::Relink { to, file, depth } => {
                match (&result, self.disks.get_mut(&id)) {
                    (Ok(()), Some(disk)) if depth < disk.identities.len() => {
                        tracing::info!(disk = %id, request_id = %to.request_id, "a layer less");
                        disk.identities.remove(depth);
                    }
                    _ => self.reactor.remove_file(file),
                }
                let answer = result.and_then(|()| self.disk_state(&id));
                self.answer(&to, answer);
            }
            After::Close { to } => self.closed(&id, to, result),
            After::Freeze { number } => self.froze(&id, number, result),
        }
        if matches!(self.life, Life::Closing { .. }) && !self.is_busy(&id) {
            self.begin_close(id, None);
        }
    }

    /// A disk whose close failed stays, unless its engine has given it up.
    fn closed(&mut self, id: &DpId, to: Option<ReplyTo>, result: Result<(), Error>) {
        let is_over = self
            .disks
            .get(id)
            .is_none_or(|disk| disk.engine.is_closed());
        let ending = matches!(self.life, Life::Closing { .. });
        if let Err(error) = &result {
            tracing::error!(disk = %id, %error, "not closed cleanly");
            if let Life::Closing { unclean } = &mut self.life {
                *unclean = true;
            }
        }
        if is_over || ending {
            self.drop_clients(id);
            if let Some(disk) = self.disks.remove(id) {
                disk.files()
                    .into_iter()
                    .for_each(|file| self.reactor.remove_file(file));
                self.tags.remove(&disk.tag);
                tracing::info!(disk = %id, "closed");
            }
        }
        if let Some(to) = to {
            self.answer(&to, result.map(|()| Reply::Done));
        }
    }

    fn froze(&mut self, id: &DpId, number: u64, result: Result<(), Error>) {
        let Some(freezing) = self.freezing.get_mut(&number) else {
            return;
        };
        freezing.left = freezing.left.saturating_sub(1);
        if let Err(error) = result {
            tracing::warn!(disk = %id, %error, "not frozen");
            freezing.error.get_or_insert(error);
        }
        if freezing.left > 0 {
            return;
        }
        let Some(Freezing {
            to, disks, error, ..
        }) = self.freezing.remove(&number)
        else {
            return;
        };
        let answer = match error {
            Some(error) => {
                disks.iter().for_each(|id| self.thaw_one(id));
                Err(error)
            }
            None => Ok(Reply::Done),
        };
        if !self.controls.contains_key(&to.control) {
            self.thaw_orphans(to.control);
        }
        self.answer(&to, answer);
    }

    pub(in crate::process) fn disk_state(&self, id: &DpId) -> Answered {
        found(self.disks.get(id), id).map(|disk| Reply::Disk(Box::new(disk.state(id))))
    }
}

/// A mirror is of one chain and one size.
fn check_not_mirrored(disk: &Disk, id: &DpId) -> Result<(), Error> {
    match disk.engine.mirroring() {
        None => Ok(()),
        Some(_) => {
            let message = format!("disk {id} is mirrored");
            Err(Error::new(ErrorKind::Busy, message))
        }
    }
}

//! Logs of changed blocks: taken from their descriptors, begun, ended.

use super::{Answered, Process, engine_error, found};
use crate::engine::{LiveOp, LogSpec};
use crate::process::ReplyTo;
use crate::process::disk::{Disk, FileIdentity};
use crate::process::operations::live::After;
use block::FileId;
use datapath::protocol::{Error, ErrorKind, Reply};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use units::DpId;
use vhd_rs::cbt::{CBT_HEADER_BYTES, CbtHeader};

/// A log that was read.
#[derive(Debug)]
pub(super) struct OpenedLog {
    file: File,
    pub(super) identity: FileIdentity,
    header: CbtHeader,
    bitmap: Vec<u8>,
}

/// A log whose file is in the ring.
type Taken = (LogSpec, (FileIdentity, FileId));

impl OpenedLog {
    /// Reads a log, blocking: 2 MiB for a disk of 1 TiB.
    pub(super) fn read(fd: OwnedFd) -> Result<Self, Error> {
        let file = File::from(fd);
        let unreadable = |e: std::io::Error| {
            let kind = match e.kind() {
                std::io::ErrorKind::UnexpectedEof => ErrorKind::Corrupt,
                _ => ErrorKind::Io,
            };
            Error::new(kind, format!("a log of changed blocks: {e}"))
        };
        let identity = FileIdentity::of(&file).map_err(unreadable)?;
        let mut header = [0; CBT_HEADER_BYTES];
        file.read_exact_at(&mut header, 0).map_err(unreadable)?;
        let header = CbtHeader::parse(&header)
            .map_err(|e| Error::new(ErrorKind::Unsupported, e.to_string()))?;
        // `parse` bounds the size of the disk, so this is a few megabytes at most.
        let mut bitmap = vec![0; usize::try_from(header.bitmap_bytes()).unwrap_or(0)];
        file.read_exact_at(&mut bitmap, CBT_HEADER_BYTES as u64)
            .map_err(unreadable)?;
        Ok(Self {
            file,
            identity,
            header,
            bitmap,
        })
    }
}

impl Process {
    /// Reads a log that no disk has and puts its file into the ring.
    pub(super) fn take_log(
        &mut self,
        fd: OwnedFd,
    ) -> Result<(LogSpec, FileIdentity, FileId), Error> {
        let OpenedLog {
            file,
            identity,
            header,
            bitmap,
        } = OpenedLog::read(fd)?;
        let users = self.disks.iter();
        let has = |disk: &Disk| {
            let is_log = disk.log.is_some_and(|(log, _)| log == identity);
            is_log || disk.identities.contains(&identity)
        };
        if let Some((id, _)) = users.into_iter().find(|(_, disk)| has(disk)) {
            let text = format!("disk {id} has this log open");
            return Err(Error::new(ErrorKind::Busy, text));
        }
        let file = self.reactor.add_file(file.into());
        let spec = LogSpec {
            file,
            header,
            bitmap,
        };
        Ok((spec, identity, file))
    }

    /// Hands the engine the log that a snapshot goes over to.
    pub(super) fn stage_log(
        &mut self,
        id: &DpId,
        fd: OwnedFd,
    ) -> Result<(FileIdentity, FileId), Error> {
        let (spec, identity, file) = self.take_log(fd)?;
        let disk = found(self.disks.get_mut(id), id)?;
        disk.engine.stage_log(spec).map_err(|e| {
            self.reactor.remove_file(file);
            engine_error(e)
        })?;
        Ok((identity, file))
    }

    pub(super) fn cbt_start(&mut self, to: &ReplyTo, id: DpId, fd: OwnedFd) -> Option<Answered> {
        match self.prepare_cbt_start(&id, fd) {
            Ok(Some((spec, log))) => {
                let to = to.clone();
                self.start(
                    id,
                    LiveOp::CbtStart(Box::new(spec)),
                    After::CbtStart { to, log },
                );
                None
            }
            Ok(None) => Some(self.disk_state(&id)),
            Err(e) => Some(Err(e)),
        }
    }

    /// `None`: it is in use already.
    fn prepare_cbt_start(&mut self, id: &DpId, fd: OwnedFd) -> Result<Option<Taken>, Error> {
        let disk = found(self.disks.get(id), id)?;
        if let Some((log, _)) = disk.log {
            let identity = FileIdentity::of(&fd)
                .map_err(|e| Error::new(ErrorKind::Io, format!("a log of changed blocks: {e}")))?;
            if log == identity {
                return Ok(None);
            }
            let text = format!("disk {id} has another log");
            return Err(Error::new(ErrorKind::Busy, text));
        }
        let (spec, identity, file) = self.take_log(fd)?;
        Ok(Some((spec, (identity, file))))
    }

    pub(super) fn cbt_stop(&mut self, to: &ReplyTo, id: DpId) -> Option<Answered> {
        match found(self.disks.get(&id), &id) {
            Ok(disk) if disk.log.is_none() => return Some(self.disk_state(&id)),
            Ok(_) => {}
            Err(e) => return Some(Err(e)),
        }
        let to = to.clone();
        self.start(id, LiveOp::CbtStop, After::CbtStop { to });
        None
    }

    /// A start, a stop or a switch ended: `log` is the disk's from now on if it worked, and else
    /// closed like the one before.
    pub(super) fn log_ended(
        &mut self,
        id: &DpId,
        log: Option<(FileIdentity, FileId)>,
        worked: bool,
    ) {
        let unused = match self.disks.get_mut(id) {
            Some(disk) if worked => std::mem::replace(&mut disk.log, log),
            _ => log,
        };
        if let Some((_, file)) = unused {
            self.reactor.remove_file(file);
        }
    }

    pub(super) fn answer_state(&mut self, to: &ReplyTo, id: &DpId, result: Result<(), Error>) {
        let answer: Result<Reply, Error> = result.and_then(|()| self.disk_state(id));
        self.answer(to, answer);
    }
}

//! Files by number, and what the kernel's error numbers mean.

use block::{Error, ErrorKind, FileId, Op, Verb};
use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// Largest offset a file has, as `off_t` allows it.
const OFFSET_MAX: u64 = i64::MAX as u64;

/// Open files; numbers are given out once.
#[derive(Debug, Default)]
pub(crate) struct Files {
    open: HashMap<FileId, OwnedFd>,
    next: u32,
}

impl Files {
    pub(crate) fn add(&mut self, file: OwnedFd) -> FileId {
        let id = FileId(self.next);
        self.next = self
            .next
            .checked_add(1)
            .expect("fewer than 2^32 files in a process's life");
        self.open.insert(id, file);
        id
    }

    pub(crate) fn remove(&mut self, file: FileId) {
        self.open.remove(&file);
    }

    pub(crate) fn get(&self, file: FileId) -> Option<&OwnedFd> {
        self.open.get(&file)
    }

    /// The file of an operation that can be performed at all.
    pub(crate) fn check(&self, op: &Op) -> Result<&OwnedFd, Error> {
        let end = op.action.offset().checked_add(op.action.len_bytes());
        if end.is_none_or(|end| end > OFFSET_MAX) {
            return Err(op.error(ErrorKind::Invalid, None));
        }
        self.get(op.file)
            .ok_or_else(|| op.error(ErrorKind::NoSuchFile, None))
    }

    /// Size of a file, capacity of a block device.
    pub(crate) fn size_bytes(&self, file: FileId) -> Result<u64, Error> {
        let error = |kind, errno: Option<Errno>| Error {
            kind,
            verb: Verb::Read,
            file,
            offset: 0,
            os_error: errno.map(Errno::raw_os_error),
        };
        let fd = self
            .get(file)
            .ok_or_else(|| error(ErrorKind::NoSuchFile, None))?;
        let failed = |errno| error(ErrorKind::Io, Some(errno));
        let stat = rustix::fs::fstat(fd).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
            return rustix::fs::seek(fd, SeekFrom::End(0)).map_err(failed);
        }
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }
}

/// The error of an operation for an error number.
pub(crate) fn error_of(op: &Op, errno: Errno) -> Error {
    let verb = op.action.verb();
    let kind = match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => ErrorKind::NoSpace,
        Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV => ErrorKind::Unsupported,
        // A punch that a block device cannot do at this alignment.
        Errno::INVAL if verb == Verb::Punch => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    op.error(kind, Some(errno.raw_os_error()))
}

//! One operation by plain system calls: all that [`crate::PreadIo`] has, and what
//! [`crate::Uring`] does with files in memory.

use crate::files::{File, error_of};
use block::{Action, Error, ErrorKind, Op};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd};

/// Performs an operation that [`crate::files::Files::check`] found possible.
pub(crate) fn perform(file: &File, op: &mut Op) -> Result<(), Error> {
    let fd = file.fd.as_fd();
    let failed = match &mut op.action {
        Action::Read { offset, buffer } => read_all(fd, *offset, buffer.as_mut_slice()),
        Action::Write { offset, data } => write_all(fd, *offset, data.as_slice()),
        Action::Fdatasync => rustix::fs::fdatasync(fd).map_err(Some),
        Action::Truncate { size_bytes } => rustix::fs::ftruncate(fd, *size_bytes).map_err(Some),
        Action::Allocate { offset, len_bytes } => {
            rustix::fs::fallocate(fd, FallocateFlags::empty(), *offset, *len_bytes).map_err(Some)
        }
        Action::Punch { offset, len_bytes } => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(fd, flags, *offset, *len_bytes).map_err(Some)
        }
    };
    failed.map_err(|errno| match errno {
        Some(errno) => error_of(op, errno),
        None => op.error(ErrorKind::EndOfFile, None),
    })
}

/// Fills the buffer; `Err(None)` is the end of the file.
fn read_all(fd: BorrowedFd<'_>, offset: u64, buffer: &mut [u8]) -> Result<(), Option<Errno>> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(fd, rest, offset.saturating_add(filled as u64)) {
            Ok(0) => return Err(None),
            Ok(count) => filled += count,
            Err(Errno::INTR | Errno::AGAIN) => {}
            // What follows a short direct read may not be aligned: it was the end.
            Err(Errno::INVAL) if filled > 0 => return Err(None),
            Err(errno) => return Err(Some(errno)),
        }
    }
    Ok(())
}

fn write_all(fd: BorrowedFd<'_>, offset: u64, data: &[u8]) -> Result<(), Option<Errno>> {
    let mut written = 0;
    while let Some(rest) = data.get(written..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pwrite(fd, rest, offset.saturating_add(written as u64)) {
            Ok(0) => return Err(Some(Errno::IO)),
            Ok(count) => written += count,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(Some(errno)),
        }
    }
    Ok(())
}

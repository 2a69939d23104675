//! One operation by plain system calls: all that [`crate::PreadIo`] has, and what
//! [`crate::Uring`] does with files in memory.

use crate::files::{File, error_of};
use block::{Action, Error, ErrorKind, Op};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::os::fd::AsFd;

/// Performs an operation that [`crate::files::Files::check`] found possible.
pub(crate) fn perform(file: &File, op: &mut Op) -> Result<(), Error> {
    let fd = file.fd.as_fd();
    let failed = match &mut op.action {
        Action::Read { offset, buffer } => read_all(*offset, buffer.as_mut_slice(), |rest, at| {
            rustix::io::pread(fd, rest, at)
        }),
        Action::Write { offset, data } => write_all(*offset, data.as_slice(), |rest, at| {
            rustix::io::pwrite(fd, rest, at)
        }),
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
pub(crate) fn read_all(
    offset: u64,
    buffer: &mut [u8],
    mut pread: impl FnMut(&mut [u8], u64) -> Result<usize, Errno>,
) -> Result<(), Option<Errno>> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match pread(rest, offset.saturating_add(filled as u64)) {
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

pub(crate) fn write_all(
    offset: u64,
    data: &[u8],
    mut pwrite: impl FnMut(&[u8], u64) -> Result<usize, Errno>,
) -> Result<(), Option<Errno>> {
    let mut written = 0;
    while let Some(rest) = data.get(written..).filter(|rest| !rest.is_empty()) {
        match pwrite(rest, offset.saturating_add(written as u64)) {
            Ok(0) => return Err(Some(Errno::IO)),
            Ok(count) => written += count,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(Some(errno)),
        }
    }
    Ok(())
}

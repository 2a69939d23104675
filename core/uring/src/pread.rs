//! The fallback: plain system calls, one operation after the other, epoll for sockets.

use crate::files::{Files, error_of};
use crate::{Interest, Ready};
use block::{Action, BlockIo, Completion, Error, ErrorKind, FileId, Op, Wait};
use rustix::event::{Timespec, epoll};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Most events taken at once.
const EVENTS_MAX: usize = 256;

/// Block I/O by `pread`, `pwrite`, `fdatasync`, `ftruncate` and `fallocate`.
#[derive(Debug)]
pub struct PreadIo {
    files: Files,
    queue: VecDeque<Op>,
    epoll: OwnedFd,
    /// Watched sockets: a duplicate of the descriptor, so that it can always be taken out again.
    watched: HashMap<u64, OwnedFd>,
}

impl PreadIo {
    /// Makes one without files.
    ///
    /// # Errors
    /// When there is no epoll to be had.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (files, watched) = (Files::default(), HashMap::new());
        Ok(Self {
            files,
            queue: VecDeque::new(),
            epoll,
            watched,
        })
    }

    /// Takes a file over.
    pub fn add_file(&mut self, file: OwnedFd) -> FileId {
        self.files.add(file)
    }

    /// Closes a file.
    pub fn remove_file(&mut self, file: FileId) {
        self.files.remove(file);
    }

    /// Asks for one event of a socket.
    ///
    /// # Errors
    /// What epoll says.
    pub fn watch(&mut self, token: u64, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<()> {
        self.unwatch(token);
        let own = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
        let mut flags = epoll::EventFlags::ONESHOT;
        flags.set(epoll::EventFlags::IN, interest.read);
        flags.set(epoll::EventFlags::OUT, interest.write);
        epoll::add(&self.epoll, &own, epoll::EventData::new_u64(token), flags)?;
        self.watched.insert(token, own);
        Ok(())
    }

    /// Forgets a watched socket.
    pub fn unwatch(&mut self, token: u64) {
        if let Some(own) = self.watched.remove(&token) {
            // The duplicate is the same open socket, which lives on: closing would not be enough.
            let _gone_already = epoll::delete(&self.epoll, own);
        }
    }

    /// Performs what was submitted and waits for sockets; see [`crate::Ring::wait`].
    ///
    /// # Errors
    /// What epoll says.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        done: &mut Vec<Completion>,
        ready: &mut Vec<Ready>,
    ) -> io::Result<()> {
        let before = done.len();
        self.poll(Wait::No, done)?;
        let timeout = if done.len() > before {
            Some(Duration::ZERO)
        } else {
            timeout
        };
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let space = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, space, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        for event in events {
            let (token, flags) = (event.data.u64(), event.flags);
            self.unwatch(token);
            let wrong = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
            let read = flags.intersects(epoll::EventFlags::IN | wrong);
            let write = flags.intersects(epoll::EventFlags::OUT | wrong);
            ready.push(Ready {
                token,
                interest: Interest { read, write },
            });
        }
        Ok(())
    }

    fn perform(&self, op: &mut Op) -> Result<(), Error> {
        let fd = self.files.check(op)?.as_fd();
        let failed = match &mut op.action {
            Action::Read { offset, buffer } => read_all(fd, *offset, buffer.as_mut_slice()),
            Action::Write { offset, data } => write_all(fd, *offset, data.as_slice()),
            Action::Fdatasync => rustix::fs::fdatasync(fd).map_err(Some),
            Action::Truncate { size_bytes } => rustix::fs::ftruncate(fd, *size_bytes).map_err(Some),
            Action::Allocate { offset, len_bytes } => {
                rustix::fs::fallocate(fd, FallocateFlags::empty(), *offset, *len_bytes)
                    .map_err(Some)
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

impl BlockIo for PreadIo {
    fn submit(&mut self, op: Op) {
        self.queue.push_back(op);
    }

    fn poll(&mut self, _wait: Wait, done: &mut Vec<Completion>) -> io::Result<()> {
        while let Some(mut op) = self.queue.pop_front() {
            let result = self.perform(&mut op);
            done.push(Completion {
                token: op.token,
                result,
                payload: op.action.into_payload(),
            });
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.queue.len()
    }

    fn size_bytes(&mut self, file: FileId) -> Result<u64, Error> {
        self.files.size_bytes(file)
    }
}

//! The fallback: plain system calls, one operation after the other, epoll for sockets.

mod streams;

use crate::files::{File, Files};
use crate::inline::perform;
use crate::stream::Streams;
use crate::{Events, Interest, Ready};
use block::{BlockIo, Completion, Error, FileId, Op, Wait};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// Most events taken at once.
const EVENTS_MAX: usize = 256;

/// Block I/O by `pread`, `pwrite`, `fdatasync`, `ftruncate` and `fallocate`; streams by `recv` and
/// `sendmsg`.
#[derive(Debug)]
pub struct PreadIo {
    files: Files,
    queue: VecDeque<Op>,
    epoll: OwnedFd,
    /// Watched sockets: a duplicate of the descriptor, so that it can always be taken out again.
    watched: HashMap<u64, OwnedFd>,
    streams: Streams<streams::Stream>,
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
            streams: Streams::default(),
        })
    }

    /// Takes a file over.
    pub fn add_file(&mut self, file: OwnedFd) -> FileId {
        self.files.add(File {
            fd: file,
            slot: None,
            inline: true,
        })
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
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

    /// See [`crate::Ring::take_done`].
    pub fn take_done(&mut self, done: &mut Vec<Completion>) {
        while let Some(mut op) = self.queue.pop_front() {
            let result = match self.files.check(&op) {
                Ok(file) => perform(file, &mut op),
                Err(error) => Err(error),
            };
            done.push(Completion {
                token: op.token,
                result,
                payload: op.action.into_payload(),
            });
        }
    }

    /// Performs what was submitted and waits for sockets; see [`crate::Ring::wait`].
    ///
    /// # Errors
    /// What epoll says.
    pub fn wait(&mut self, timeout: Option<Duration>, events: &mut Events) -> io::Result<()> {
        self.take_done(&mut events.done);
        self.move_streams(&mut events.streams);
        let timeout = if events.is_empty() {
            timeout
        } else {
            Some(Duration::ZERO)
        };
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut seen = Vec::with_capacity(EVENTS_MAX);
        let space = rustix::buffer::spare_capacity(&mut seen);
        match epoll::wait(&self.epoll, space, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        for event in seen {
            let (token, flags) = (event.data.u64(), event.flags);
            let wrong = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
            let read = flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP | wrong);
            let write = flags.intersects(epoll::EventFlags::OUT | wrong);
            let interest = Interest { read, write };
            if !self.stream_ready(token, interest) {
                self.unwatch(token);
                events.ready.push(Ready { token, interest });
            }
        }
        self.move_streams(&mut events.streams);
        Ok(())
    }
}

impl BlockIo for PreadIo {
    fn submit(&mut self, op: Op) {
        self.queue.push_back(op);
    }

    fn poll(&mut self, _wait: Wait, done: &mut Vec<Completion>) -> io::Result<()> {
        self.take_done(done);
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.queue.len()
    }

    fn size_bytes(&mut self, file: FileId) -> Result<u64, Error> {
        self.files.size_bytes(file)
    }
}

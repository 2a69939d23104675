//! Block I/O on io_uring, with readiness of sockets on the same ring. The only importer of
//! `io-uring`.
//!
//! | type | carries | needs |
//! |---|---|---|
//! | [`Uring`] | file operations and socket readiness on one ring | Linux 5.11, io_uring allowed |
//! | [`PreadIo`] | the same with `pread`, `pwrite` and epoll, one operation after the other | nothing |
//! | [`Ring`] | whichever of the two the kernel gives | |
//!
//! All three are [`block::BlockIo`] and pass its conformance suite. Files are handed over with
//! `add_file` and named by [`block::FileId`]; ids are never used twice, so an operation that comes
//! too late finds no file instead of the wrong one.
//!
//! # Readiness
//! `watch` asks for one event when a socket can be read or written; it is delivered by `wait`, which
//! is `poll` for both kinds of events. An event disarms. Reading and writing is the caller's, on a
//! non-blocking socket.
//!
//! # UNSAFETY
//! `uring.rs` alone: pushing entries whose buffers the kernel fills and reads. A buffer in flight
//! is owned by the ring's table and untouched until its completion; dropping the ring waits for
//! them or leaks them.

mod files;
mod pread;
mod uring;

pub use pread::PreadIo;
pub use uring::Uring;

use block::{BlockIo, Completion, Error, FileId, Op, Wait};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// What a socket is watched for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interest {
    /// Something can be read, or the other side is gone.
    pub read: bool,
    /// Something can be written, or the other side is gone.
    pub write: bool,
}

/// A watched socket became ready; it is not watched any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// As given to `watch`.
    pub token: u64,
    /// For what. Errors and hang-ups show in both.
    pub interest: Interest,
}

/// The best carrier the kernel gives.
#[derive(Debug)]
pub enum Ring {
    /// io_uring.
    Uring(Box<Uring>),
    /// One system call per operation.
    Pread(PreadIo),
}

impl Ring {
    /// Makes an io_uring, or the fallback where that is refused.
    ///
    /// # Errors
    /// When not even epoll is to be had.
    pub fn new() -> io::Result<Self> {
        match Uring::new() {
            Ok(uring) => Ok(Self::Uring(Box::new(uring))),
            Err(_) => PreadIo::new().map(Self::Pread),
        }
    }

    /// Takes a file over.
    pub fn add_file(&mut self, file: OwnedFd) -> FileId {
        match self {
            Self::Uring(ring) => ring.add_file(file),
            Self::Pread(ring) => ring.add_file(file),
        }
    }

    /// Closes a file. What is in flight on it still completes.
    pub fn remove_file(&mut self, file: FileId) {
        match self {
            Self::Uring(ring) => ring.remove_file(file),
            Self::Pread(ring) => ring.remove_file(file),
        }
    }

    /// Asks for one event of a socket. A token that is watched already is watched anew.
    ///
    /// # Errors
    /// What the kernel says to a descriptor that cannot be watched.
    pub fn watch(&mut self, token: u64, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<()> {
        match self {
            Self::Uring(ring) => {
                ring.watch(token, fd, interest);
                Ok(())
            }
            Self::Pread(ring) => ring.watch(token, fd, interest),
        }
    }

    /// Forgets a watched socket; call it before the socket is closed. No event of it comes after.
    pub fn unwatch(&mut self, token: u64) {
        match self {
            Self::Uring(ring) => ring.unwatch(token),
            Self::Pread(ring) => ring.unwatch(token),
        }
    }

    /// Starts what was submitted and waits for an operation to finish or a socket to become ready,
    /// `None` for ever. May return without either, after a signal.
    ///
    /// # Errors
    /// When the carrier broke.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        done: &mut Vec<Completion>,
        ready: &mut Vec<Ready>,
    ) -> io::Result<()> {
        match self {
            Self::Uring(ring) => ring.wait(timeout, done, ready),
            Self::Pread(ring) => ring.wait(timeout, done, ready),
        }
    }
}

impl BlockIo for Ring {
    fn submit(&mut self, op: Op) {
        match self {
            Self::Uring(ring) => ring.submit(op),
            Self::Pread(ring) => ring.submit(op),
        }
    }

    fn poll(&mut self, wait: Wait, done: &mut Vec<Completion>) -> io::Result<()> {
        match self {
            Self::Uring(ring) => ring.poll(wait, done),
            Self::Pread(ring) => ring.poll(wait, done),
        }
    }

    fn in_flight(&self) -> usize {
        match self {
            Self::Uring(ring) => ring.in_flight(),
            Self::Pread(ring) => ring.in_flight(),
        }
    }

    fn size_bytes(&mut self, file: FileId) -> Result<u64, Error> {
        match self {
            Self::Uring(ring) => ring.size_bytes(file),
            Self::Pread(ring) => ring.size_bytes(file),
        }
    }
}

#[cfg(test)]
mod tests;

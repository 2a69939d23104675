//! Block and stream I/O on io_uring. The only importer of `io-uring`.
//!
//! | type | carries | needs |
//! |---|---|---|
//! | [`Uring`] | files, streams and readiness of other sockets on one ring | Linux 6.1, io_uring allowed |
//! | [`PreadIo`] | the same with `pread`, `pwrite`, `recv`, `sendmsg` and epoll, one after the other | nothing |
//! | [`Ring`] | whichever of the two the kernel gives | |
//!
//! All three are [`block::BlockIo`] and pass its conformance suite. Files are handed over with
//! `add_file` and named by [`block::FileId`]; ids are never used twice, so an operation that comes
//! too late finds no file instead of the wrong one.
//!
//! # Streams
//! A connected stream socket is handed over with [`Ring::add_stream`]. What it brings is received
//! without being asked for, up to a limit, and stays in [`Ring::input`] until it is consumed; a
//! long payload can be received straight into a buffer ([`Ring::receive_into`]). What it takes is
//! sent as a list of pieces, one list at a time ([`Ring::send`]). Buffers belong to the carrier
//! from the call to the event that brings them back.
//!
//! # Readiness
//! `watch` asks for one event when a socket can be read or written; it is delivered by `wait`. An
//! event disarms. Reading and writing is the caller's, on a non-blocking socket.
//!
//! # Why it is built like this
//! Measured with 4 KiB requests at depth 32 from one client, CPU seconds per 100,000 requests without
//! a disk behind: receive and send system calls per request 0.59, the same on a ring with deferred
//! completion work 0.34, receives armed once for many 0.27, one send per round 0.25. Not worth it:
//! a kernel thread that polls the queue, zero-copy sends (not for Unix sockets), reads linked to
//! sends, trying `RWF_NOWAIT` first.
//!
//! # UNSAFETY
//! - `uring.rs`: pushing entries whose memory the kernel fills and reads. It is owned by the ring's
//!   tables and untouched until the completion; dropping the ring waits for them or leaks them.
//! - `uring/buffers.rs`: the mapping shared with the kernel that streams are received into.
//! - `uring/streams.rs`: an empty message header.

mod files;
mod inline;
mod pread;
mod stream;
mod uring;

pub use pread::PreadIo;
pub use stream::{Body, HEAD_BYTES_MAX, INPUT_BYTES_MAX, Piece, StreamEvent, StreamId};
pub use uring::Uring;

use block::{BlockIo, Buffer, Completion, Error, FileId, Op, Wait};
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

/// What [`Ring::wait`] brings.
#[derive(Debug, Default)]
pub struct Events {
    /// Operations on files that finished.
    pub done: Vec<Completion>,
    /// Watched sockets that became ready.
    pub ready: Vec<Ready>,
    /// What happened on streams, in order for each.
    pub streams: Vec<StreamEvent>,
}

impl Events {
    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty() && self.ready.is_empty() && self.streams.is_empty()
    }
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

    /// Switches direct I/O (`O_DIRECT`) of a file on or off, for its operations from now on. The
    /// descriptor is shared with whoever gave it.
    ///
    /// # Errors
    /// Why it stays as it is, in words: the file system has none or wants larger units than
    /// sectors, the file is in memory.
    pub fn set_direct(&mut self, file: FileId, direct: bool) -> Result<(), String> {
        let files = match self {
            Self::Uring(ring) => ring.files(),
            Self::Pread(ring) => ring.files(),
        };
        let file = files.get(file).ok_or("there is no such file")?;
        files::set_direct(file, direct)
    }

    /// Asks for one event of a socket. A token that is watched already is watched anew. Tokens are
    /// below 2^63.
    ///
    /// # Errors
    /// What the kernel says to a descriptor that cannot be watched.
    pub fn watch(&mut self, token: u64, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<()> {
        match self {
            Self::Uring(ring) => ring.watch(token, fd, interest),
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

    /// Takes a connected stream socket over and begins to receive.
    ///
    /// # Errors
    /// When the kernel has no room for it; the socket is closed.
    pub fn add_stream(&mut self, token: u64, socket: OwnedFd) -> io::Result<StreamId> {
        match self {
            Self::Uring(ring) => ring.add_stream(token, socket),
            Self::Pread(ring) => ring.add_stream(token, socket),
        }
    }

    /// Shuts a stream down in both directions and closes it. No event of it comes after. What was
    /// handed over with [`Ring::send`] goes out as far as the socket takes it without waiting.
    pub fn remove_stream(&mut self, stream: StreamId) {
        match self {
            Self::Uring(ring) => ring.remove_stream(stream),
            Self::Pread(ring) => ring.remove_stream(stream),
        }
    }

    /// What came and was not consumed: a first part of it, empty only when there is nothing.
    pub fn input(&self, stream: StreamId) -> &[u8] {
        match self {
            Self::Uring(ring) => ring.input(stream),
            Self::Pread(ring) => ring.input(stream),
        }
    }

    /// Takes `count` bytes off the front of [`Ring::input`].
    pub fn consume(&mut self, stream: StreamId, count: usize) {
        match self {
            Self::Uring(ring) => ring.consume(stream, count),
            Self::Pread(ring) => ring.consume(stream, count),
        }
    }

    /// Receives what comes next into `buffer` from byte `filled` on, until it is full or the stream
    /// ends; then [`StreamEvent::Filled`]. Until then `input` is empty.
    pub fn receive_into(&mut self, stream: StreamId, buffer: Buffer, filled: usize) {
        match self {
            Self::Uring(ring) => ring.receive_into(stream, buffer, filled),
            Self::Pread(ring) => ring.receive_into(stream, buffer, filled),
        }
    }

    /// Sends pieces in order; then [`StreamEvent::Sent`], and only after that the next send. With
    /// `wake` that event ends a wait; without, it may come with the next thing that happens, which
    /// is cheaper. So whoever sends without `wake` does so last before a wait, with all there is.
    pub fn send(&mut self, stream: StreamId, pieces: Vec<Piece>, wake: bool) {
        match self {
            Self::Uring(ring) => ring.send(stream, pieces, wake),
            // Every send ends in the call that begins it, or wakes.
            Self::Pread(ring) => ring.send(stream, pieces),
        }
    }

    /// Operations that are finished already, without a system call for the ring: those on files in
    /// memory, which are performed at once.
    pub fn take_done(&mut self, done: &mut Vec<Completion>) {
        match self {
            Self::Uring(ring) => ring.take_done(done),
            Self::Pread(ring) => ring.take_done(done),
        }
    }

    /// Starts what was submitted and waits for something to happen, `None` for ever. May return
    /// without anything, after a signal.
    ///
    /// # Errors
    /// When the carrier broke.
    pub fn wait(&mut self, timeout: Option<Duration>, events: &mut Events) -> io::Result<()> {
        match self {
            Self::Uring(ring) => ring.wait(timeout, events),
            Self::Pread(ring) => ring.wait(timeout, events),
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

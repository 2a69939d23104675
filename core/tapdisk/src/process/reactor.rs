//! What the process waits on: one ring with files, streams and other sockets.
//!
//! It remembers what each watched socket is armed for, so that asking again every round costs
//! nothing.

use block::{BlockIo, Buffer, Completion, FileId, Op};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use uring::Ring;
pub(super) use uring::{Events, Interest, Piece, StreamEvent, StreamId};

/// Names a socket; never used twice, so that a late event finds nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key(u64);

/// Gives out keys.
#[derive(Debug, Default)]
pub(super) struct Keys(u64);

impl Keys {
    pub(super) fn next(&mut self) -> Key {
        self.0 += 1;
        Key(self.0)
    }
}

impl Key {
    /// The key in an event.
    pub(super) fn of(token: u64) -> Self {
        Self(token)
    }
}

/// The ring, and the sockets that are watched.
#[derive(Debug)]
pub(super) struct Reactor {
    ring: Ring,
    armed: BTreeMap<Key, Interest>,
}

impl Reactor {
    pub(super) fn new() -> io::Result<Self> {
        let ring = Ring::new()?;
        if let Ring::Pread(_) = ring {
            tracing::warn!("the kernel refuses io_uring: one system call per operation instead");
        }
        Ok(Self {
            ring,
            armed: BTreeMap::new(),
        })
    }

    /// One with a carrier of the caller's choice.
    #[cfg(test)]
    pub(super) fn on(ring: Ring) -> Self {
        Self {
            ring,
            armed: BTreeMap::new(),
        }
    }

    pub(super) fn add_file(&mut self, file: OwnedFd) -> FileId {
        self.ring.add_file(file)
    }

    pub(super) fn remove_file(&mut self, file: FileId) {
        self.ring.remove_file(file);
    }

    /// Switches direct I/O; see [`Ring::set_direct`].
    pub(super) fn set_direct(&mut self, file: FileId, direct: bool) -> Result<(), String> {
        self.ring.set_direct(file, direct)
    }

    pub(super) fn submit(&mut self, op: Op) {
        self.ring.submit(op);
    }

    /// Asks for one event when the socket becomes what `interest` says. Asking again is free.
    pub(super) fn watch(
        &mut self,
        key: Key,
        socket: impl AsFd,
        interest: Interest,
    ) -> io::Result<()> {
        let armed = self.armed.get(&key).copied().unwrap_or_default();
        if (!interest.read || armed.read) && (!interest.write || armed.write) {
            return Ok(());
        }
        self.ring.watch(key.0, socket.as_fd(), interest)?;
        self.armed.insert(key, interest);
        Ok(())
    }

    /// To be called before the socket is closed.
    pub(super) fn forget(&mut self, key: Key) {
        if self.armed.remove(&key).is_some() {
            self.ring.unwatch(key.0);
        }
    }

    /// Takes a connected socket over.
    pub(super) fn add_stream(&mut self, key: Key, socket: OwnedFd) -> io::Result<StreamId> {
        self.ring.add_stream(key.0, socket)
    }

    /// Closes a stream.
    pub(super) fn remove_stream(&mut self, stream: StreamId) {
        self.ring.remove_stream(stream);
    }

    /// What a stream brought and nobody consumed; see [`Ring::input`].
    pub(super) fn input(&self, stream: StreamId) -> &[u8] {
        self.ring.input(stream)
    }

    pub(super) fn consume(&mut self, stream: StreamId, count: usize) {
        self.ring.consume(stream, count);
    }

    /// Lends a buffer; see [`Ring::receive_into`].
    pub(super) fn receive_into(&mut self, stream: StreamId, buffer: Buffer, filled: usize) {
        self.ring.receive_into(stream, buffer, filled);
    }

    /// Sends; see [`Ring::send`].
    pub(super) fn send(&mut self, stream: StreamId, pieces: Vec<Piece>, wake: bool) {
        self.ring.send(stream, pieces, wake);
    }

    /// Operations that are finished already; see [`Ring::take_done`].
    pub(super) fn take_done(&mut self, done: &mut Vec<Completion>) {
        self.ring.take_done(done);
    }

    /// Starts what was submitted and waits for something to happen, `None` for ever.
    pub(super) fn wait(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Events,
    ) -> io::Result<()> {
        self.ring.wait(timeout, events)?;
        for ready in &events.ready {
            // It stays known: its place in the ring is given up by `forget` only.
            self.armed.insert(Key(ready.token), Interest::default());
        }
        Ok(())
    }
}

//! What the process waits on: one ring with files and sockets.
//!
//! It remembers what each socket is armed for, so that asking again every round costs nothing.

use block::{BlockIo, Completion, FileId, Op};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
pub(super) use uring::Interest;
use uring::Ring;

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

/// A socket that became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) key: Key,
    pub(super) interest: Interest,
}

/// The ring, and the sockets that are watched.
#[derive(Debug)]
pub(super) struct Reactor {
    ring: Ring,
    armed: HashMap<Key, Interest>,
    /// Kept for its memory.
    events: Vec<uring::Ready>,
}

impl Reactor {
    pub(super) fn new() -> io::Result<Self> {
        let ring = Ring::new()?;
        if let Ring::Pread(_) = ring {
            tracing::warn!("the kernel refuses io_uring: one system call per operation instead");
        }
        Ok(Self {
            ring,
            armed: HashMap::new(),
            events: Vec::new(),
        })
    }

    pub(super) fn add_file(&mut self, file: OwnedFd) -> FileId {
        self.ring.add_file(file)
    }

    pub(super) fn remove_file(&mut self, file: FileId) {
        self.ring.remove_file(file);
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

    /// Starts what was submitted and waits for something to happen, `None` for ever.
    pub(super) fn wait(
        &mut self,
        timeout: Option<Duration>,
        done: &mut Vec<Completion>,
        ready: &mut Vec<Ready>,
    ) -> io::Result<()> {
        self.ring.wait(timeout, done, &mut self.events)?;
        for event in self.events.drain(..) {
            let key = Key(event.token);
            self.armed.remove(&key);
            ready.push(Ready {
                key,
                interest: event.interest,
            });
        }
        Ok(())
    }
}

//! A listening socket and when to look at it again.

use super::reactor::Interest;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Pause after an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_secs(1);

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    readable: bool,
    paused_until: Option<Instant>,
}

impl Listener {
    /// Takes over a descriptor.
    ///
    /// # Errors
    /// When it is no listening socket.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        if !rustix::net::sockopt::socket_acceptconn(&socket)? {
            return Err(io::Error::other("the socket does not listen"));
        }
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self {
            socket,
            readable: true,
            paused_until: None,
        })
    }

    pub(super) fn ready(&mut self, interest: Interest) {
        self.readable |= interest.read;
    }

    pub(super) fn interest(&self) -> Interest {
        Interest {
            read: !self.readable && self.paused_until.is_none(),
            write: false,
        }
    }

    /// When to try again by the clock.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// The next client, if one waits.
    pub(super) fn accept(&mut self, now: Instant) -> Option<OwnedFd> {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            self.readable = true;
        }
        while self.readable {
            match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(client) => return Some(client),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => self.readable = false,
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept, trying again in a second");
                    self.readable = false;
                    self.paused_until = Some(now + PAUSE);
                }
            }
        }
        None
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

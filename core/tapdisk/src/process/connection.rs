//! One NBD client: its socket and its session.

use super::reactor::Interest;
use crate::frontend::{Answer, Buffers, Job, Slot};
use crate::nbd::{Export, Session};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, sendmsg, shutdown};
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a client may take over its handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Parts handed to one send.
const PARTS_MAX: usize = 64;

/// Receives of one client before others have their turn.
const RECEIVES_MAX: usize = 32;

/// One client.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    session: Session,
    since: Instant,
    /// Cleared when the socket had no more, set when it has again.
    readable: bool,
    writable: bool,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, export: Export) -> Self {
        let session = Session::new(export);
        Self {
            socket,
            session,
            since: Instant::now(),
            readable: true,
            writable: true,
        }
    }

    pub(super) fn ready(&mut self, interest: Interest) {
        self.readable |= interest.read;
        self.writable |= interest.write;
    }

    /// What the socket must become before [`Connection::pump`] has work again.
    pub(super) fn interest(&mut self) -> Interest {
        let wants_input = !self.session.receive_into().is_empty();
        Interest {
            read: wants_input && !self.readable,
            write: self.session.has_output() && !self.writable,
        }
    }

    /// Moves bytes in both directions until the socket or the session has no more, and adds the
    /// jobs that came of it. `true` when it stopped for the sake of others and has more to do.
    pub(super) fn pump(&mut self, buffers: &mut impl Buffers, jobs: &mut Vec<Job>) -> bool {
        for _ in 0..RECEIVES_MAX {
            self.send(buffers);
            while let Some(job) = self.session.next_job(buffers) {
                jobs.push(job);
            }
            if !self.receive() {
                self.send(buffers);
                return false;
            }
        }
        true
    }

    pub(super) fn answer(&mut self, slot: Slot, answer: Answer) {
        self.session.answer(slot, answer);
    }

    pub(super) fn set_size(&mut self, size_bytes: u64) {
        self.session.set_size(size_bytes);
    }

    /// Takes no more requests.
    pub(super) fn end(&mut self) {
        self.session.end();
    }

    /// The client is cut off; what it has in flight still finishes.
    pub(super) fn cut_off(&mut self) {
        self.session.lost();
    }

    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        !self.session.is_greeted() && now.duration_since(self.since) > HANDSHAKE_MAX
    }

    pub(super) fn is_greeted(&self) -> bool {
        self.session.is_greeted()
    }

    pub(super) fn is_finished(&self) -> bool {
        self.session.is_finished()
    }

    /// Whether something moved.
    fn receive(&mut self) -> bool {
        let into = self.session.receive_into();
        if !self.readable || into.is_empty() {
            return false;
        }
        match recv(&self.socket, into, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => self.session.lost(),
            Ok((_, count)) => self.session.received(count),
            Err(Errno::AGAIN) => self.readable = false,
            Err(Errno::INTR) => {}
            Err(_) => self.session.lost(),
        }
        self.readable
    }

    fn send(&mut self, buffers: &mut impl Buffers) {
        while self.writable && self.session.has_output() {
            let parts: Vec<IoSlice<'_>> = self
                .session
                .output()
                .take(PARTS_MAX)
                .map(IoSlice::new)
                .collect();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(
                &self.socket,
                &parts,
                &mut SendAncillaryBuffer::default(),
                flags,
            ) {
                Ok(count) => self.session.sent(count, buffers),
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                Err(_) => self.session.lost(),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Connection {
    /// Whoever else holds the socket (a poll that is still armed) must not keep it open.
    fn drop(&mut self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::BufferPool;
    use std::os::unix::net::UnixStream;

    fn connected() -> (Connection, UnixStream) {
        let (server, client) = UnixStream::pair().unwrap();
        let export = Export {
            name: "d".to_owned(),
            size_bytes: 1 << 20,
            read_only: false,
        };
        (Connection::new(server.into(), export), client)
    }

    #[test]
    fn a_client_that_does_not_finish_its_handshake_is_overdue_after_ten_seconds() {
        let (mut connection, _client) = connected();
        let mut pool = BufferPool::new(0);
        connection.pump(&mut pool, &mut Vec::new());
        let start = connection.since;
        assert!(!connection.is_overdue(start + Duration::from_secs(10)));
        assert!(connection.is_overdue(start + Duration::from_millis(10_001)));
        connection.cut_off();
        assert!(connection.is_finished());
    }

    #[test]
    fn a_socket_that_is_quiet_is_waited_for_and_not_polled() {
        let (mut connection, client) = connected();
        let mut pool = BufferPool::new(0);
        assert!(!connection.pump(&mut pool, &mut Vec::new()));
        assert_eq!(
            connection.interest(),
            Interest {
                read: true,
                write: false
            }
        );
        drop(client);
        connection.ready(Interest {
            read: true,
            write: true,
        });
        connection.pump(&mut pool, &mut Vec::new());
        assert!(connection.is_finished(), "the client left");
        assert_eq!(connection.interest(), Interest::default());
    }

    #[test]
    fn closing_reaches_the_client_even_if_another_descriptor_holds_the_socket() {
        let (connection, client) = connected();
        let _held = connection.as_fd().try_clone_to_owned().unwrap();
        drop(connection);
        client
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        assert_eq!(std::io::Read::read(&mut &client, &mut [0; 8]).unwrap(), 0);
    }
}

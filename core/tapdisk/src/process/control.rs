//! Control connections: frames in, replies out.

use super::reactor::Interest;
use datapath::codec::{Frame, FrameReader, FrameWriter, Read};
use datapath::protocol::{Error, Outcome, Reply, ReplyFrame};
use rustix::net::{Shutdown, shutdown};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Requests of one connection that are not answered; more are left in the socket.
const UNANSWERED_MAX: usize = 32;

/// One control connection.
#[derive(Debug)]
pub(super) struct Control {
    socket: OwnedFd,
    reader: FrameReader,
    writer: FrameWriter,
    readable: bool,
    writable: bool,
    unanswered: usize,
    /// Whether `Hello` was said.
    pub(super) greeted: bool,
    /// Nothing more is read; closed once the replies are out.
    ending: bool,
    lost: bool,
}

impl Control {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            reader: FrameReader::default(),
            writer: FrameWriter::default(),
            readable: true,
            writable: true,
            unanswered: 0,
            greeted: false,
            ending: false,
            lost: false,
        }
    }

    pub(super) fn ready(&mut self, interest: Interest) {
        self.readable |= interest.read;
        self.writable |= interest.write;
    }

    pub(super) fn interest(&self) -> Interest {
        Interest {
            read: self.takes_requests() && !self.readable,
            write: !self.lost && !self.writer.is_empty() && !self.writable,
        }
    }

    /// The next request, if there is a whole one and it may be taken.
    pub(super) fn next_frame(&mut self) -> Option<Frame> {
        while self.takes_requests() && self.readable {
            match self.reader.read(&self.socket) {
                Ok(Read::Frame(frame)) => {
                    self.unanswered += 1;
                    return Some(frame);
                }
                Ok(Read::Pending) => self.readable = false,
                Ok(Read::Closed) => self.lost = true,
                Err(e) => {
                    tracing::warn!(error = %e, "control connection closed");
                    self.lost = true;
                }
            }
        }
        None
    }

    /// Answers a request; sent by [`Control::send`].
    pub(super) fn answer(&mut self, id: u64, result: Result<Reply, Error>) {
        self.unanswered = self.unanswered.saturating_sub(1);
        let result = match result {
            Ok(reply) => Outcome::Ok(reply),
            Err(error) => Outcome::Error(error),
        };
        if let Err(e) = self.writer.push(&ReplyFrame { id, result }, Vec::new()) {
            tracing::warn!(error = %e, "control connection closed");
            self.lost = true;
        }
    }

    pub(super) fn send(&mut self) {
        if !self.lost && self.writable && !self.writer.is_empty() {
            match self.writer.write(&self.socket) {
                Ok(all) => self.writable = all,
                Err(_) => self.lost = true,
            }
        }
    }

    /// Reads no more.
    pub(super) fn end(&mut self) {
        self.ending = true;
    }

    /// Whether it can be closed. Requests in flight go on; nobody hears their replies.
    pub(super) fn is_finished(&self) -> bool {
        self.lost || (self.ending && self.writer.is_empty())
    }

    fn takes_requests(&self) -> bool {
        !self.lost && !self.ending && self.unanswered < UNANSWERED_MAX
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Control {
    /// Whoever else holds the socket (a poll that is still armed) must not keep it open.
    fn drop(&mut self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

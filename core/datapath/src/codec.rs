//! Frames on a unix socket, without waiting: what is there is taken, what fits is sent.
//!
//! The caller waits for readiness in its own way (tokio, io_uring, poll) and calls again. A read
//! never goes past the end of the frame it is in, so the descriptors that arrived since the frame
//! began belong to it and to no other.

use crate::protocol::{Error, ErrorKind, FRAME_BYTES_MAX, FRAME_FDS_MAX};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Frames one [`FrameWriter`] holds back for a peer that does not read.
pub const QUEUE_FRAMES_MAX: usize = 256;

const LENGTH_BYTES: usize = 4;
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX));

/// A frame as it came in: its JSON and its descriptors.
#[derive(Debug)]
pub struct Frame {
    body: Vec<u8>,
    /// The descriptors, in the order they were sent.
    pub fds: Vec<OwnedFd>,
}

impl Frame {
    /// The body as it came.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Decodes the body.
    ///
    /// # Errors
    /// `Protocol` when it is not the JSON of a `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body)
            .map_err(|e| Error::new(ErrorKind::Protocol, format!("malformed frame: {e}")))
    }
}

/// What a read found.
#[derive(Debug)]
pub enum Read {
    /// A whole frame.
    Frame(Frame),
    /// Nothing more for now; wait until the socket is readable.
    Pending,
    /// The peer closed the connection between two frames.
    Closed,
}

/// Puts frames together.
#[derive(Debug)]
pub struct FrameReader {
    buffer: Vec<u8>,
    filled: usize,
    fds: Vec<OwnedFd>,
}

impl Default for FrameReader {
    fn default() -> Self {
        Self {
            buffer: vec![0; LENGTH_BYTES],
            filled: 0,
            fds: Vec::new(),
        }
    }
}

impl FrameReader {
    /// Reads until a frame is whole or the socket has no more. Never waits.
    ///
    /// # Errors
    /// `Protocol` for a frame over [`FRAME_BYTES_MAX`] or with more than [`FRAME_FDS_MAX`]
    /// descriptors, and for a connection that ends inside a frame; `Gone` when the socket fails.
    /// The connection is of no use afterwards.
    pub fn read(&mut self, socket: impl AsFd) -> Result<Read, Error> {
        loop {
            let had = self.filled;
            match self.fill(socket.as_fd()) {
                Ok(0) if had == 0 => return Ok(Read::Closed),
                Ok(0) => {
                    let message = format!("connection ended {had} bytes into a frame");
                    return Err(Error::new(ErrorKind::Protocol, message));
                }
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(Read::Pending),
                Err(Errno::INTR) => continue,
                Err(Errno::MSGSIZE) => {
                    let message = format!("more than {FRAME_FDS_MAX} descriptors in one frame");
                    return Err(Error::new(ErrorKind::Protocol, message));
                }
                Err(e) => return Err(Error::gone(format!("control connection failed: {e}"))),
            }
            if let Some(frame) = self.advance()? {
                return Ok(Read::Frame(frame));
            }
        }
    }

    /// One recvmsg into the rest of what is wanted now.
    fn fill(&mut self, socket: BorrowedFd<'_>) -> Result<usize, Errno> {
        let mut space = [const { MaybeUninit::uninit() }; CONTROL_BYTES];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let (_, wanted) = self.buffer.split_at_mut(self.filled);
        let received = recvmsg(socket, &mut [IoSliceMut::new(wanted)], &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > FRAME_FDS_MAX {
            return Err(Errno::MSGSIZE);
        }
        self.filled += received.bytes;
        Ok(received.bytes)
    }

    /// Goes from length to body, and from a full body to a frame.
    fn advance(&mut self) -> Result<Option<Frame>, Error> {
        if self.filled < self.buffer.len() {
            return Ok(None);
        }
        if let [a, b, c, d] = self.buffer[..] {
            let length = u32::from_le_bytes([a, b, c, d]) as usize;
            // A body is a JSON object with an id, so no body is as short as a length.
            if length <= LENGTH_BYTES || length > FRAME_BYTES_MAX {
                let message =
                    format!("frame of {length} bytes, allowed are 5 to {FRAME_BYTES_MAX}");
                return Err(Error::new(ErrorKind::Protocol, message));
            }
            *self = Self {
                buffer: vec![0; length],
                filled: 0,
                fds: std::mem::take(&mut self.fds),
            };
            return Ok(None);
        }
        let done = std::mem::take(self);
        Ok(Some(Frame {
            body: done.buffer,
            fds: done.fds,
        }))
    }
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// Sends frames, keeping what the socket does not take yet.
#[derive(Debug, Default)]
pub struct FrameWriter {
    queue: VecDeque<Outgoing>,
}

impl FrameWriter {
    /// Appends a frame. Its descriptors are closed here once they are sent.
    ///
    /// # Errors
    /// `Protocol` when the frame is over a limit, `Busy` when [`QUEUE_FRAMES_MAX`] frames wait.
    pub fn push<T: Serialize>(&mut self, value: &T, fds: Vec<OwnedFd>) -> Result<(), Error> {
        if self.queue.len() >= QUEUE_FRAMES_MAX {
            let message = format!("{QUEUE_FRAMES_MAX} frames wait for a peer that does not read");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        if fds.len() > FRAME_FDS_MAX {
            let message = format!(
                "{} descriptors for one frame, at most {FRAME_FDS_MAX}",
                fds.len()
            );
            return Err(Error::new(ErrorKind::Protocol, message));
        }
        let mut bytes = vec![0; LENGTH_BYTES];
        serde_json::to_writer(&mut bytes, value)
            .map_err(|e| Error::new(ErrorKind::Protocol, format!("cannot encode a frame: {e}")))?;
        let body = bytes.len() - LENGTH_BYTES;
        let length = u32::try_from(body).ok().filter(|_| body <= FRAME_BYTES_MAX);
        let Some(length) = length else {
            let message = format!("frame of {body} bytes, at most {FRAME_BYTES_MAX}");
            return Err(Error::new(ErrorKind::Protocol, message));
        };
        bytes[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        self.queue.push_back(Outgoing {
            bytes,
            sent: 0,
            fds,
        });
        Ok(())
    }

    /// Whether nothing waits to be sent.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Sends what the socket takes. Never waits; `true` when everything is sent, `false` when the
    /// caller should wait until the socket is writable.
    ///
    /// # Errors
    /// `Gone` when the socket fails.
    pub fn write(&mut self, socket: impl AsFd) -> Result<bool, Error> {
        while let Some(frame) = self.queue.front_mut() {
            match send_part(socket.as_fd(), frame) {
                Ok(sent) => {
                    frame.sent += sent;
                    frame.fds.clear();
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(Error::gone(format!("control connection failed: {e}"))),
            }
            if frame.sent == frame.bytes.len() {
                self.queue.pop_front();
            }
        }
        Ok(true)
    }
}

fn send_part(socket: BorrowedFd<'_>, frame: &Outgoing) -> Result<usize, Errno> {
    let mut space = [const { MaybeUninit::uninit() }; CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = frame.fds.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::MSGSIZE);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(
        socket,
        &[IoSlice::new(&frame.bytes[frame.sent..])],
        &mut control,
        flags,
    )
}

#[cfg(test)]
mod tests;

//! Streams by `recv` and `sendmsg`, told by an edge-triggered epoll when to try again.

use super::PreadIo;
use crate::Interest;
use crate::stream::{INPUT_BYTES_MAX, Piece, StreamEvent, StreamId, gather};
use block::Buffer;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, sendmsg, shutdown};
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;

/// Bytes received at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Set in epoll's data for a stream, whose index follows.
const STREAM_BIT: u64 = 1 << 63;

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    socket: OwnedFd,
    token: u64,
    /// What came, and how much of it was taken.
    input: Vec<u8>,
    taken: usize,
    lent: Option<(Buffer, usize)>,
    sending: Option<(Vec<Piece>, usize)>,
    readable: bool,
    writable: bool,
    ended: bool,
    end_told: bool,
}

impl PreadIo {
    /// See [`crate::Ring::add_stream`].
    ///
    /// # Errors
    /// What epoll says.
    pub fn add_stream(&mut self, token: u64, socket: OwnedFd) -> io::Result<StreamId> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let data = STREAM_BIT | u64::from(self.streams.next_index());
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(data), flags)?;
        Ok(self.streams.insert(Stream {
            socket,
            token,
            input: Vec::new(),
            taken: 0,
            lent: None,
            sending: None,
            readable: true,
            writable: true,
            ended: false,
            end_told: false,
        }))
    }

    /// See [`crate::Ring::remove_stream`].
    pub fn remove_stream(&mut self, id: StreamId) {
        if self.streams.get(id).is_none() {
            return;
        }
        if let Some(mut stream) = self.streams.remove(id.index) {
            stream.send(&mut Vec::new());
            let _gone_already = shutdown(&stream.socket, Shutdown::Both);
            let _gone_already = epoll::delete(&self.epoll, &stream.socket);
        }
    }

    /// See [`crate::Ring::input`].
    pub fn input(&self, id: StreamId) -> &[u8] {
        let stream = self.streams.get(id).filter(|s| s.lent.is_none());
        let input = stream.and_then(|stream| stream.input.get(stream.taken..));
        input.unwrap_or_default()
    }

    /// See [`crate::Ring::consume`].
    pub fn consume(&mut self, id: StreamId, count: usize) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.take(count);
        }
    }

    /// See [`crate::Ring::receive_into`].
    pub fn receive_into(&mut self, id: StreamId, buffer: Buffer, filled: usize) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.lent = Some((buffer, filled));
        }
    }

    /// See [`crate::Ring::send`].
    pub fn send(&mut self, id: StreamId, pieces: Vec<Piece>) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.sending = Some((pieces, 0));
        }
    }

    /// Notes an event; `false` when it is not a stream's.
    pub(super) fn stream_ready(&mut self, data: u64, interest: Interest) -> bool {
        let Some(index) = data
            .checked_sub(STREAM_BIT)
            .and_then(|index| u32::try_from(index).ok())
        else {
            return false;
        };
        if let Some(stream) = self.streams.at(index) {
            stream.readable |= interest.read;
            stream.writable |= interest.write;
        }
        true
    }

    /// Moves what can move in both directions.
    pub(super) fn move_streams(&mut self, events: &mut Vec<StreamEvent>) {
        for (_, stream) in self.streams.iter_mut() {
            stream.send(events);
            stream.receive(events);
            if stream.ended && !stream.end_told {
                stream.end_told = true;
                let token = stream.token;
                events.push(StreamEvent::Ended { token });
            }
        }
    }
}

impl Stream {
    fn take(&mut self, count: usize) {
        self.taken = self.taken.saturating_add(count).min(self.input.len());
        if self.taken == self.input.len() {
            self.input.clear();
            self.taken = 0;
        }
    }

    fn send(&mut self, events: &mut Vec<StreamEvent>) {
        while let Some((pieces, sent)) = &mut self.sending {
            let mut slices = Vec::new();
            gather(pieces, *sent, |part| slices.push(IoSlice::new(part)));
            if !self.ended && !slices.is_empty() {
                if !self.writable {
                    return;
                }
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                let mut nothing = SendAncillaryBuffer::default();
                match sendmsg(&self.socket, &slices, &mut nothing, flags) {
                    Ok(count) => *sent += count,
                    Err(Errno::AGAIN) => self.writable = false,
                    Err(Errno::INTR) => {}
                    Err(_) => self.ended = true,
                }
                continue;
            }
            if let Some((pieces, _)) = self.sending.take() {
                let token = self.token;
                events.push(StreamEvent::Sent { token, pieces });
            }
        }
    }

    fn receive(&mut self, events: &mut Vec<StreamEvent>) {
        if self.lent.is_some() {
            return self.fill(events);
        }
        let before = self.input.len();
        while self.readable && !self.ended && self.input.len() < INPUT_BYTES_MAX {
            let start = self.input.len();
            self.input.resize(start + CHUNK_BYTES, 0);
            let into = self.input.get_mut(start..).unwrap_or_default();
            let count = received(&self.socket, into, &mut self.readable, &mut self.ended);
            self.input.truncate(start + count);
        }
        if self.input.len() > before {
            let token = self.token;
            events.push(StreamEvent::Input { token });
        }
    }

    /// Fills the buffer that was lent, first with what came before.
    fn fill(&mut self, events: &mut Vec<StreamEvent>) {
        let Some((mut buffer, mut filled)) = self.lent.take() else {
            return;
        };
        let early = self.input.get(self.taken..).unwrap_or_default();
        let place = buffer.as_mut_slice().get_mut(filled..).unwrap_or_default();
        let count = early.len().min(place.len());
        place
            .split_at_mut(count)
            .0
            .copy_from_slice(early.split_at(count).0);
        filled += count;
        self.take(count);
        while filled < buffer.len() && self.readable && !self.ended {
            let place = buffer.as_mut_slice().get_mut(filled..).unwrap_or_default();
            filled += received(&self.socket, place, &mut self.readable, &mut self.ended);
        }
        if filled < buffer.len() && !self.ended {
            self.lent = Some((buffer, filled));
        } else {
            let token = self.token;
            events.push(StreamEvent::Filled {
                token,
                buffer,
                filled,
            });
        }
    }
}

/// One `recv`; notes when there is no more for now, or for ever.
fn received(socket: &OwnedFd, into: &mut [u8], readable: &mut bool, ended: &mut bool) -> usize {
    match recv(socket, into, RecvFlags::DONTWAIT) {
        Ok((_, 0)) => *ended = true,
        Ok((_, count)) => return count,
        Err(Errno::AGAIN) => *readable = false,
        Err(Errno::INTR) => {}
        Err(_) => *ended = true,
    }
    0
}

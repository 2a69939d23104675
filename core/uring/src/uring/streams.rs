//! Streams on the ring.
//!
//! ```text
//!  socket ──multishot recv──> provided buffers ──> input ──> consume ──> back to the kernel
//!         └─recv of a known length──> the buffer that was lent
//!  pieces ──one sendmsg──> socket
//! ```
//! *Sending.* A send is tried once without waiting (`MSG_DONTWAIT`), and its completion is asked for
//! only if it does not send everything (`IOSQE_CQE_SKIP_SUCCESS`). The kernel performs such a
//! request inside the call that submits it and never parks it, so after that call, with the
//! completion queue looked through and no completion held back, silence means success. What is left
//! after a short send goes out in one that waits in the kernel and tells its end. One send is in
//! flight per stream: two could interleave when the first goes short.
//!
//! *Large payloads.* A buffer that is lent is filled by the kernel directly. A receive that is armed
//! meanwhile is cancelled first, and only its last completion starts the direct one, so bytes
//! cannot change places. While large payloads come, receives are armed one by one, for headers.

use super::buffers::{BUFFERS, Buffers};
use super::setup::Use;
use super::{NOBODY, Uring};
use crate::stream::{Piece, StreamEvent, StreamId, gather};
use block::Buffer;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::Fixed;
use io_uring::{cqueue, opcode};
use rustix::net::{Shutdown, shutdown};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Kinds of completions, above the stream's index in the user data.
pub(super) const RECEIVED: u64 = 1 << 32;
pub(super) const SENT: u64 = 2 << 32;

/// Bytes received at once between large payloads: a header and little else.
const HEADER_BYTES: u32 = 4096;

/// Receives armed one by one after a large payload before many are received at once again.
const LARGE_MEMORY: u8 = 8;

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    token: u64,
    socket: OwnedFd,
    slot: u32,
    buffers: Buffers,
    /// What came and was not taken, in order.
    chunks: VecDeque<Chunk>,
    receiving: Receiving,
    /// A receive is being cancelled.
    cancelling: bool,
    /// A buffer to be filled once nothing else is receiving.
    lent: Option<(Buffer, usize)>,
    /// Receives to go in the mode for large payloads.
    large: u8,
    /// Boxed: the kernel reads the header where it is.
    sending: Box<Sending>,
    /// In the list of streams that have something to start.
    roused: bool,
    input_told: bool,
    ended: bool,
    end_told: bool,
    removed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Chunk {
    buffer: u16,
    start: usize,
    end: usize,
}

#[derive(Debug)]
enum Receiving {
    No,
    /// Into provided buffers, until told otherwise.
    Many,
    /// Into one provided buffer.
    One,
    /// Into a buffer that was lent, of which so many bytes are filled.
    Into(Buffer, usize),
}

/// A send; nothing in it changes while `in_kernel`.
struct Sending {
    pieces: Vec<Piece>,
    parts: Vec<libc::iovec>,
    header: libc::msghdr,
    sent_bytes: usize,
    total_bytes: usize,
    /// There is something to be sent.
    active: bool,
    in_kernel: bool,
    /// Wait in the kernel, and tell the end.
    loud: bool,
}

impl Sending {
    fn new() -> Self {
        Self {
            pieces: Vec::new(),
            parts: Vec::new(),
            header: empty_header(),
            sent_bytes: 0,
            total_bytes: 0,
            active: false,
            in_kernel: false,
            loud: false,
        }
    }
}

impl std::fmt::Debug for Sending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sending({} of {})", self.sent_bytes, self.total_bytes)
    }
}

impl Uring {
    /// See [`crate::Ring::add_stream`].
    ///
    /// # Errors
    /// When the kernel has no room for it.
    pub fn add_stream(&mut self, token: u64, socket: OwnedFd) -> io::Result<StreamId> {
        let group = u16::try_from(self.streams.next_index())
            .map_err(|_| io::Error::other("65536 streams are open"))?;
        // The ring waits; the socket's own flag would make it fail instead.
        rustix::io::ioctl_fionbio(&socket, false)?;
        let slot = self
            .table
            .add(&self.ring, socket.as_raw_fd(), Use::Stream)?;
        let buffers = Buffers::new(&self.ring, group)
            .inspect_err(|_| self.table.remove(&self.ring, slot, true))?;
        let id = self.streams.insert(Stream {
            token,
            socket,
            slot,
            buffers,
            chunks: VecDeque::with_capacity(BUFFERS.into()),
            receiving: Receiving::No,
            cancelling: false,
            lent: None,
            large: 0,
            sending: Box::new(Sending::new()),
            roused: false,
            input_told: false,
            ended: false,
            end_told: false,
            removed: false,
        });
        self.rouse(id.index);
        Ok(id)
    }

    /// See [`crate::Ring::remove_stream`].
    pub fn remove_stream(&mut self, id: StreamId) {
        let Some(stream) = self.stream(id) else {
            return;
        };
        if stream.sending.active && !stream.sending.in_kernel && self.start_stream(id.index) {
            let _tried = self.enter(0, None);
        }
        let Some(stream) = self.stream(id) else {
            return;
        };
        stream.removed = true;
        // What the kernel holds ends with it.
        let _gone_already = shutdown(&stream.socket, Shutdown::Both);
        let token = stream.token;
        self.events.retain(|event| event.token() != token);
        self.close_if_quiet(id.index);
    }

    /// See [`crate::Ring::input`].
    pub fn input(&self, id: StreamId) -> &[u8] {
        let stream = self
            .streams
            .get(id)
            .filter(|s| s.lent.is_none() && !s.removed);
        let chunk = stream.and_then(|stream| Some((stream, stream.chunks.front()?)));
        chunk.map_or(&[], |(stream, chunk)| {
            stream.buffers.bytes(chunk.buffer, chunk.start, chunk.end)
        })
    }

    /// See [`crate::Ring::consume`].
    pub fn consume(&mut self, id: StreamId, count: usize) {
        if let Some(stream) = self.stream(id)
            && stream.take(count)
        {
            self.rouse(id.index);
        }
    }

    /// See [`crate::Ring::receive_into`].
    pub fn receive_into(&mut self, id: StreamId, buffer: Buffer, filled: usize) {
        if let Some(stream) = self.stream(id) {
            stream.lent = Some((buffer, filled));
            stream.large = LARGE_MEMORY;
            self.rouse(id.index);
        }
    }

    /// See [`crate::Ring::send`].
    pub fn send(&mut self, id: StreamId, pieces: Vec<Piece>, wake: bool) {
        let Some(stream) = self.stream(id) else {
            return;
        };
        let sending = &mut *stream.sending;
        debug_assert!(!sending.active, "one send at a time");
        sending.total_bytes = pieces.iter().map(Piece::len).sum();
        sending.pieces = pieces;
        sending.sent_bytes = 0;
        sending.loud = wake;
        sending.active = true;
        self.rouse(id.index);
    }

    fn stream(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.streams.get_mut(id).filter(|stream| !stream.removed)
    }

    /// Adds a stream to those that have something to start.
    fn rouse(&mut self, index: u32) {
        if let Some(stream) = self.streams.at(index)
            && !stream.roused
        {
            stream.roused = true;
            self.roused.push(index);
        }
    }

    /// Moves what streams want into the submission queue.
    pub(super) fn start_streams(&mut self) {
        for _ in 0..self.roused.len() {
            let Some(index) = self.roused.pop() else {
                return;
            };
            if let Some(stream) = self.streams.at(index) {
                stream.roused = false;
            }
            if !self.start_stream(index) {
                // No room even after a call; the next round tries again.
                return self.rouse(index);
            }
        }
    }

    /// `false` when the submission queue took not everything.
    fn start_stream(&mut self, index: u32) -> bool {
        let Some(stream) = self.streams.at(index) else {
            return true;
        };
        stream.fill_from_input(&mut self.events);
        while let Some(entry) = self.streams.at(index).and_then(Stream::next_receive) {
            let entry = match entry {
                Wanted::Receive(entry) => entry.user_data(RECEIVED | u64::from(index)),
                Wanted::Cancel => opcode::AsyncCancel::new(RECEIVED | u64::from(index))
                    .build()
                    .flags(Flags::FIXED_FILE | Flags::SKIP_SUCCESS)
                    .user_data(NOBODY),
            };
            if !self.push(&entry) {
                if let Some(stream) = self.streams.at(index) {
                    stream.not_started();
                }
                return false;
            }
        }
        let Some(stream) = self.streams.at(index) else {
            return true;
        };
        if let Some((entry, loud)) = stream.next_send() {
            if !self.push(&entry.user_data(SENT | u64::from(index))) {
                if let Some(stream) = self.streams.at(index) {
                    stream.sending.in_kernel = false;
                }
                return false;
            }
            if !loud {
                self.quiet.push(index);
            }
        }
        true
    }

    /// The completion of a receive.
    pub(super) fn stream_received(&mut self, index: u32, result: i32, flags: u32) {
        let Some(stream) = self.streams.at(index) else {
            return;
        };
        stream.received(result, flags, &mut self.events);
        self.rouse(index);
        self.close_if_quiet(index);
    }

    /// The completion of a send.
    pub(super) fn stream_sent(&mut self, index: u32, result: i32) {
        let Some(stream) = self.streams.at(index) else {
            return;
        };
        stream.sent(result, &mut self.events);
        self.quiet.retain(|quiet| *quiet != index);
        self.rouse(index);
        self.close_if_quiet(index);
    }

    /// Ends the sends that said nothing. To be called after the completion queue was looked through.
    pub(super) fn settle_sends(&mut self) -> io::Result<()> {
        if self.quiet.is_empty() {
            return Ok(());
        }
        // Completions that did not fit the queue come with the next call.
        while self.ring.submission().cq_overflow() {
            self.enter(0, None)?;
            self.reap();
        }
        if !self.ring.submission().is_empty() {
            return Ok(());
        }
        for index in std::mem::take(&mut self.quiet) {
            let Some(stream) = self.streams.at(index) else {
                continue;
            };
            stream.sending.sent_bytes = stream.sending.total_bytes;
            stream.sent(0, &mut self.events);
            self.close_if_quiet(index);
        }
        Ok(())
    }

    /// Closes a stream that was removed once the kernel has nothing of it.
    fn close_if_quiet(&mut self, index: u32) {
        let done = self.streams.at(index).is_some_and(|stream| {
            let receiving = !matches!(stream.receiving, Receiving::No);
            stream.removed && !receiving && !stream.sending.in_kernel
        });
        if done && let Some(stream) = self.streams.remove(index) {
            self.release(stream.slot);
            stream.buffers.close(&self.ring);
        }
    }

    /// Shuts every stream down; `true` when the kernel has nothing of them any more.
    pub(super) fn end_streams(&mut self) -> bool {
        let mut indices = Vec::new();
        for (index, stream) in self.streams.iter_mut() {
            if !stream.removed {
                stream.removed = true;
                let _gone_already = shutdown(&stream.socket, Shutdown::Both);
            }
            indices.push(index);
        }
        indices
            .into_iter()
            .for_each(|index| self.close_if_quiet(index));
        self.streams.iter_mut().next().is_none()
    }
}

/// What a stream wants of the submission queue.
enum Wanted {
    Receive(Entry),
    Cancel,
}

impl Stream {
    /// Takes bytes off the input; `true` when a buffer went back to the kernel.
    fn take(&mut self, mut count: usize) -> bool {
        let mut freed = false;
        while let Some(chunk) = self.chunks.front_mut() {
            let taken = count.min(chunk.end - chunk.start);
            chunk.start += taken;
            count -= taken;
            if chunk.start < chunk.end {
                break;
            }
            self.buffers.put(chunk.buffer);
            self.chunks.pop_front();
            freed = true;
        }
        if freed {
            self.buffers.publish();
        }
        self.input_told &= !self.chunks.is_empty();
        freed
    }

    /// Moves what came already into the buffer that was lent.
    fn fill_from_input(&mut self, events: &mut Vec<StreamEvent>) {
        let Some((mut buffer, mut filled)) = self.lent.take() else {
            return;
        };
        while let Some(chunk) = self.chunks.front().copied() {
            let place = buffer.as_mut_slice().get_mut(filled..).unwrap_or_default();
            let bytes = self.buffers.bytes(chunk.buffer, chunk.start, chunk.end);
            let count = bytes.len().min(place.len());
            if count == 0 {
                break;
            }
            place
                .split_at_mut(count)
                .0
                .copy_from_slice(bytes.split_at(count).0);
            filled += count;
            self.take(count);
        }
        if filled < buffer.len() && !self.ended {
            self.lent = Some((buffer, filled));
            return;
        }
        let token = self.token;
        if !self.removed {
            events.push(StreamEvent::Filled {
                token,
                buffer,
                filled,
            });
        }
        self.tell(events);
    }

    /// The next receive to be started, which counts as started.
    fn next_receive(&mut self) -> Option<Wanted> {
        if self.removed || self.ended {
            return None;
        }
        match (&self.receiving, self.lent.take()) {
            (Receiving::No, Some((mut buffer, filled))) => {
                let rest = buffer.as_mut_slice().get_mut(filled..).unwrap_or_default();
                let (at, len) = (rest.as_mut_ptr(), rest.len() as u32);
                let recv = opcode::Recv::new(Fixed(self.slot), at, len);
                self.receiving = Receiving::Into(buffer, filled);
                Some(Wanted::Receive(recv.flags(libc::MSG_WAITALL).build()))
            }
            (Receiving::Many | Receiving::One, Some(lent)) => {
                self.lent = Some(lent);
                let first = !std::mem::replace(&mut self.cancelling, true);
                first.then_some(Wanted::Cancel)
            }
            (Receiving::No, None) if self.chunks.len() < usize::from(BUFFERS) => {
                let group = self.buffers.group();
                Some(Wanted::Receive(if self.large > 0 {
                    self.receiving = Receiving::One;
                    let recv =
                        opcode::Recv::new(Fixed(self.slot), std::ptr::null_mut(), HEADER_BYTES);
                    let entry = recv.buf_group(group).build();
                    entry.flags(Flags::BUFFER_SELECT)
                } else {
                    self.receiving = Receiving::Many;
                    opcode::RecvMulti::new(Fixed(self.slot), group).build()
                }))
            }
            (_, lent) => {
                self.lent = lent;
                None
            }
        }
    }

    /// The receive that was to be started was not.
    fn not_started(&mut self) {
        if self.cancelling {
            self.cancelling = false;
        } else if let Receiving::Into(buffer, filled) =
            std::mem::replace(&mut self.receiving, Receiving::No)
        {
            self.lent = Some((buffer, filled));
        }
    }

    fn received(&mut self, result: i32, flags: u32, events: &mut Vec<StreamEvent>) {
        let count = usize::try_from(result).unwrap_or(0);
        if let Receiving::Into(..) = self.receiving {
            let into = std::mem::replace(&mut self.receiving, Receiving::No);
            if let Receiving::Into(buffer, filled) = into {
                self.lent = Some((buffer, filled + count));
            }
        } else {
            if let Some(buffer) = cqueue::buffer_select(flags) {
                if count > 0 {
                    let (start, end) = (0, count);
                    self.chunks.push_back(Chunk { buffer, start, end });
                } else {
                    self.buffers.put(buffer);
                    self.buffers.publish();
                }
            }
            if !cqueue::more(flags) {
                self.receiving = Receiving::No;
                self.cancelling = false;
                self.large = self.large.saturating_sub(1);
            }
        }
        let passing = [libc::ENOBUFS, libc::ECANCELED, libc::EINTR, libc::EAGAIN];
        self.ended |= result == 0 || (result < 0 && !passing.contains(&-result));
        self.fill_from_input(events);
        self.tell(events);
    }

    /// Tells of input and of the end, once each.
    fn tell(&mut self, events: &mut Vec<StreamEvent>) {
        let token = self.token;
        if self.removed || self.lent.is_some() {
            return;
        }
        if !self.chunks.is_empty() && !self.input_told {
            self.input_told = true;
            events.push(StreamEvent::Input { token });
        }
        if self.ended && !self.end_told {
            self.end_told = true;
            events.push(StreamEvent::Ended { token });
        }
    }

    /// The send to be started, which counts as started, and whether it is loud.
    fn next_send(&mut self) -> Option<(Entry, bool)> {
        let sending = &mut *self.sending;
        if !sending.active || sending.in_kernel || self.removed {
            return None;
        }
        sending.in_kernel = true;
        sending.parts.clear();
        gather(&sending.pieces, sending.sent_bytes, |part| {
            sending.parts.push(libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            });
        });
        sending.header.msg_iov = sending.parts.as_mut_ptr();
        sending.header.msg_iovlen = sending.parts.len() as _;
        let (flags, marks) = if sending.loud {
            (libc::MSG_WAITALL, Flags::empty())
        } else {
            (libc::MSG_WAITALL | libc::MSG_DONTWAIT, Flags::SKIP_SUCCESS)
        };
        let flags = (flags | libc::MSG_NOSIGNAL) as u32;
        let entry = opcode::SendMsg::new(Fixed(self.slot), &raw const sending.header);
        Some((entry.flags(flags).build().flags(marks), sending.loud))
    }

    /// So many more bytes went out, or an error number.
    fn sent(&mut self, result: i32, events: &mut Vec<StreamEvent>) {
        let sending = &mut *self.sending;
        sending.in_kernel = false;
        let passing = [libc::EINTR, libc::EAGAIN];
        match usize::try_from(result) {
            Ok(count) => sending.sent_bytes += count,
            Err(_) if passing.contains(&-result) => {}
            Err(_) => self.ended = true,
        }
        if sending.sent_bytes < sending.total_bytes && !self.ended && !self.removed {
            sending.loud = true;
            return;
        }
        sending.active = false;
        let pieces = std::mem::take(&mut sending.pieces);
        let token = self.token;
        if !self.removed {
            events.push(StreamEvent::Sent { token, pieces });
        }
        self.tell(events);
    }
}

fn empty_header() -> libc::msghdr {
    // SAFETY: all fields are numbers and pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

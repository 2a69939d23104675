//! Answers, and the bytes they become.

use super::request::{Header, Style};
use crate::frontend::{Answer, BlockRun, Buffers, Errno, Failure, Slot};
use block::{Buffer, SharedBuffer};
use datapath::nbd::wire;
use std::collections::VecDeque;

/// Most runs in one block status reply; the client asks again for the rest.
const RUNS_MAX: usize = 4096;

/// Grain in which a read's data is looked at for zeroes: a grain of zeroes is worth a chunk of its
/// own, and looking costs one cache line per grain of data.
const GRAIN_BYTES: usize = 32 << 10;

/// Number of the `base:allocation` context on every session.
pub(super) const ALLOCATION_CONTEXT: u32 = 1;

/// The number an error has on the wire.
fn code(errno: Errno) -> u32 {
    match errno {
        Errno::Permission => wire::EPERM,
        Errno::Io => wire::EIO,
        Errno::NoMemory => wire::ENOMEM,
        Errno::Invalid => wire::EINVAL,
        Errno::NoSpace => wire::ENOSPC,
        Errno::NotSupported => wire::ENOTSUP,
        Errno::Shutdown => wire::ESHUTDOWN,
    }
}

/// Longest head: chunk header, offset, length of a hole.
const HEAD_BYTES_MAX: usize = wire::EXTENDED_CHUNK_HEADER_BYTES + 12;

#[derive(Debug)]
enum Body {
    Bytes(Vec<u8>),
    /// A part of a read's buffer, which goes back to the pool with its last part.
    Data(SharedBuffer),
}

/// A stretch of output: a head, kept inline, and a body.
#[derive(Debug)]
struct Piece {
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: usize,
    body: Body,
    /// The request that is over once this is sent.
    ends: Option<Slot>,
}

impl Piece {
    fn new(body: Body, ends: Option<Slot>) -> Self {
        Self {
            head: [0; HEAD_BYTES_MAX],
            head_bytes: 0,
            body,
            ends,
        }
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        let end = self.head_bytes + bytes.len();
        self.head
            .get_mut(self.head_bytes..end)
            .expect("no head is longer than HEAD_BYTES_MAX")
            .copy_from_slice(bytes);
        self.head_bytes = end;
        self
    }

    fn parts(&self) -> [&[u8]; 2] {
        let body = match &self.body {
            Body::Bytes(bytes) => bytes,
            Body::Data(data) => data.as_slice(),
        };
        [self.head.get(..self.head_bytes).unwrap_or_default(), body]
    }

    fn len(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }
}

/// What waits to be sent, in order.
#[derive(Debug, Default)]
pub(super) struct Output {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are sent.
    sent: usize,
    /// Buffers whose content nobody wants.
    spent: Vec<Buffer>,
}

impl Output {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// What is to be sent, in order, without empty parts.
    pub(super) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let mut skip = self.sent;
        self.pieces
            .iter()
            .flat_map(Piece::parts)
            .filter_map(move |part| {
                let skipped = skip.min(part.len());
                skip -= skipped;
                part.get(skipped..).filter(|rest| !rest.is_empty())
            })
    }

    /// Takes `count` bytes off, gives their buffers back and tells which requests are over.
    pub(super) fn sent(
        &mut self,
        count: usize,
        pool: &mut impl Buffers,
        mut over: impl FnMut(Slot),
    ) {
        self.sent += count;
        self.spent.drain(..).for_each(|buffer| pool.give(buffer));
        while let Some(first) = self
            .pieces
            .front()
            .map(Piece::len)
            .filter(|l| *l <= self.sent)
        {
            self.sent -= first;
            let Some(piece) = self.pieces.pop_front() else {
                return;
            };
            if let Body::Data(data) = piece.body
                && let Ok(buffer) = data.try_unshare()
            {
                pool.give(buffer);
            }
            if let Some(slot) = piece.ends {
                over(slot);
            }
        }
    }

    /// Drops everything; the requests in it are over.
    pub(super) fn discard(&mut self, mut over: impl FnMut(Slot)) {
        self.sent = 0;
        self.spent.clear();
        self.pieces
            .drain(..)
            .filter_map(|piece| piece.ends)
            .for_each(&mut over);
    }

    /// Bytes of the handshake.
    pub(super) fn push_bytes(&mut self, bytes: Vec<u8>) {
        self.pieces.push_back(Piece::new(Body::Bytes(bytes), None));
    }

    /// The whole reply to one request.
    pub(super) fn push_reply(&mut self, slot: Slot, header: &Header, style: Style, answer: Answer) {
        let piece = match answer {
            Answer::Data(data) if header.command == wire::CMD_CACHE => {
                self.spent.push(data);
                done(header, style)
            }
            Answer::Data(data) if style == Style::Simple => {
                simple(header, 0, Body::Data(data.share()))
            }
            Answer::Data(data) => self.push_data(header, style, data),
            Answer::Status(runs) => status_chunk(header, style, &runs),
            Answer::Failed(failure) if style == Style::Simple => {
                simple(header, code(failure.errno), Body::none())
            }
            Answer::Failed(failure) => error_chunk(header, style, &failure),
            Answer::Done => done(header, style),
        };
        self.pieces.push_back(Piece {
            ends: Some(slot),
            ..piece
        });
    }

    /// A read's data in chunks, zeroes as holes; returns the last chunk.
    fn push_data(&mut self, header: &Header, style: Style, data: Buffer) -> Piece {
        let data = data.share();
        let grain = if header.has(wire::CMD_FLAG_DF) {
            data.len()
        } else {
            GRAIN_BYTES
        };
        let mut start = 0;
        loop {
            let (len, zero) = run(data.as_slice().get(start..).unwrap_or_default(), grain);
            let end = start + len;
            let last = end == data.len();
            let offset = header.offset.saturating_add(start as u64).to_be_bytes();
            let part = data.slice(start..end).filter(|_| !zero);
            let piece = match part {
                Some(part) => {
                    let chunk = Chunk {
                        kind: wire::CHUNK_OFFSET_DATA,
                        last,
                        len: 8 + len,
                    };
                    chunk.piece(header, style, Body::Data(part)).put(&offset)
                }
                None => {
                    let chunk = Chunk {
                        kind: wire::CHUNK_OFFSET_HOLE,
                        last,
                        len: 12,
                    };
                    let hole = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
                    chunk
                        .piece(header, style, Body::none())
                        .put(&offset)
                        .put(&hole)
                }
            };
            if last {
                if zero {
                    // The parts before, if any, do not give it back.
                    self.spent.extend(data.try_unshare().ok());
                }
                return piece;
            }
            self.pieces.push_back(piece);
            start = end;
        }
    }
}

/// How many bytes from the front on are all data or all zeroes, in whole grains, and which.
fn run(data: &[u8], grain: usize) -> (usize, bool) {
    let mut grains = data
        .chunks(grain.max(1))
        .map(|grain| (grain.len(), is_zero(grain)));
    let Some((mut len, zero)) = grains.next() else {
        return (0, true);
    };
    len += grains
        .take_while(|(_, other)| *other == zero)
        .map(|(len, _)| len)
        .sum::<usize>();
    (len, zero)
}

fn is_zero(bytes: &[u8]) -> bool {
    // In steps that the compiler makes a few instructions of.
    bytes
        .chunks(64)
        .all(|step| step.iter().fold(0, |all, byte| all | byte) == 0)
}

impl Body {
    fn none() -> Self {
        Self::Bytes(Vec::new())
    }
}

fn simple(header: &Header, code: u32, body: Body) -> Piece {
    Piece::new(body, None)
        .put(&wire::SIMPLE_REPLY_MAGIC.to_be_bytes())
        .put(&code.to_be_bytes())
        .put(&header.cookie.to_be_bytes())
}

/// Success without content. On a structured session it may be a simple reply, which is shorter.
fn done(header: &Header, style: Style) -> Piece {
    if style < Style::Extended {
        return simple(header, 0, Body::none());
    }
    Chunk::only(wire::CHUNK_NONE, 0).piece(header, style, Body::none())
}

/// What a chunk's header says besides the request's own fields; `len` counts what follows it.
struct Chunk {
    kind: u16,
    last: bool,
    len: usize,
}

impl Chunk {
    /// A chunk that is a whole reply.
    fn only(kind: u16, len: usize) -> Self {
        Self {
            kind,
            last: true,
            len,
        }
    }

    fn piece(self, header: &Header, style: Style, body: Body) -> Piece {
        let flags = if self.last { wire::CHUNK_DONE } else { 0 };
        let (magic, extended) = match style {
            Style::Extended => (wire::EXTENDED_CHUNK_MAGIC, true),
            _ => (wire::CHUNK_MAGIC, false),
        };
        let piece = Piece::new(body, None)
            .put(&magic.to_be_bytes())
            .put(&flags.to_be_bytes())
            .put(&self.kind.to_be_bytes())
            .put(&header.cookie.to_be_bytes());
        if extended {
            return piece
                .put(&header.offset.to_be_bytes())
                .put(&(self.len as u64).to_be_bytes());
        }
        let len = u32::try_from(self.len).expect("chunks are at most 32 MiB and a head");
        piece.put(&len.to_be_bytes())
    }
}

fn error_chunk(header: &Header, style: Style, failure: &Failure) -> Piece {
    let text: Vec<u8> = failure.message.bytes().take(1024).collect();
    let size = u16::try_from(text.len()).expect("cut to 1024 bytes");
    Chunk::only(wire::CHUNK_ERROR, 6 + text.len())
        .piece(header, style, Body::Bytes(text))
        .put(&code(failure.errno).to_be_bytes())
        .put(&size.to_be_bytes())
}

fn status_chunk(header: &Header, style: Style, runs: &[BlockRun]) -> Piece {
    let limit = if header.has(wire::CMD_FLAG_REQ_ONE) {
        1
    } else {
        RUNS_MAX
    };
    let merged = merge(runs, header.length, limit);
    if merged.is_empty() {
        let message = "the range has no state".to_owned();
        let errno = Errno::Io;
        return error_chunk(header, style, &Failure { errno, message });
    }
    let mut body = Vec::with_capacity(merged.len() * 16);
    if style == Style::Extended {
        let count = u32::try_from(merged.len()).expect("at most RUNS_MAX");
        body.extend(count.to_be_bytes());
        for (length, state) in merged {
            body.extend(length.to_be_bytes());
            body.extend(u64::from(state).to_be_bytes());
        }
    } else {
        for (length, state) in merged {
            let length = u32::try_from(length).expect("the request's length is 32 bits");
            body.extend(length.to_be_bytes());
            body.extend(state.to_be_bytes());
        }
    }
    let kind = match style {
        Style::Extended => wire::CHUNK_BLOCK_STATUS_EXT,
        _ => wire::CHUNK_BLOCK_STATUS,
    };
    Chunk::only(kind, 4 + body.len())
        .piece(header, style, Body::Bytes(body))
        .put(&ALLOCATION_CONTEXT.to_be_bytes())
}

/// Joins neighbours in one state and cuts at the request's end.
fn merge(runs: &[BlockRun], mut left: u64, limit: usize) -> Vec<(u64, u32)> {
    let mut merged: Vec<(u64, u32)> = Vec::new();
    for run in runs {
        let length = run.length_bytes.min(left);
        left -= length;
        if length == 0 {
            continue;
        }
        let hole = if run.hole { wire::STATE_HOLE } else { 0 };
        let state = hole | if run.zero { wire::STATE_ZERO } else { 0 };
        // Together they are at most the request's length.
        if let Some((total, _)) = merged.last_mut().filter(|(_, last)| *last == state) {
            *total += length;
        } else if merged.len() < limit {
            merged.push((length, state));
        } else {
            break;
        }
    }
    merged
}

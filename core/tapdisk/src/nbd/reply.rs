//! Answers, and the bytes they become.

use super::request::Header;
use crate::frontend::{Answer, BlockRun, Buffers, Errno, Failure, Slot};
use block::Buffer;
use datapath::nbd::wire;
use std::collections::VecDeque;

/// Most runs in one block status reply; the client asks again for the rest.
const RUNS_MAX: usize = 4096;

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
const HEAD_BYTES_MAX: usize = wire::CHUNK_HEADER_BYTES + 12;

#[derive(Debug)]
enum Body {
    Bytes(Vec<u8>),
    Buffer(Buffer),
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
            Body::Buffer(buffer) => buffer.as_slice(),
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
            if let Body::Buffer(buffer) = piece.body {
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
    pub(super) fn push_reply(
        &mut self,
        slot: Slot,
        header: &Header,
        structured: bool,
        answer: Answer,
    ) {
        let piece = match answer {
            Answer::Status(runs) => status_chunk(header, &runs),
            Answer::Failed(failure) if structured => error_chunk(header, &failure),
            Answer::Failed(failure) => simple(header, code(failure.errno), Body::none()),
            Answer::Data(data) if structured => data_chunk(header, data),
            Answer::Data(data) => simple(header, 0, Body::Buffer(data)),
            // Commands without data may answer simply on a structured session; it is shorter.
            Answer::Done => simple(header, 0, Body::none()),
        };
        self.pieces.push_back(Piece {
            ends: Some(slot),
            ..piece
        });
    }
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

/// A chunk that is the whole reply; `length` counts what follows the chunk's header.
fn chunk(header: &Header, kind: u16, length: usize, body: Body) -> Piece {
    let length = u32::try_from(length).expect("chunks are at most 32 MiB and a head");
    Piece::new(body, None)
        .put(&wire::CHUNK_MAGIC.to_be_bytes())
        .put(&wire::CHUNK_DONE.to_be_bytes())
        .put(&kind.to_be_bytes())
        .put(&header.cookie.to_be_bytes())
        .put(&length.to_be_bytes())
}

fn data_chunk(header: &Header, data: Buffer) -> Piece {
    let offset = header.offset.to_be_bytes();
    // Looking costs only where there are zeroes, and there it saves sending them.
    if data.as_slice().iter().all(|byte| *byte == 0) {
        let piece = chunk(header, wire::CHUNK_OFFSET_HOLE, 12, Body::none());
        return piece.put(&offset).put(&header.length.to_be_bytes());
    }
    let length = 8 + data.len();
    chunk(header, wire::CHUNK_OFFSET_DATA, length, Body::Buffer(data)).put(&offset)
}

fn error_chunk(header: &Header, failure: &Failure) -> Piece {
    let text: Vec<u8> = failure.message.bytes().take(1024).collect();
    let length = 6 + text.len();
    let size = u16::try_from(text.len()).expect("cut to 1024 bytes");
    chunk(header, wire::CHUNK_ERROR, length, Body::Bytes(text))
        .put(&code(failure.errno).to_be_bytes())
        .put(&size.to_be_bytes())
}

fn status_chunk(header: &Header, runs: &[BlockRun]) -> Piece {
    let limit = if header.has(wire::CMD_FLAG_REQ_ONE) {
        1
    } else {
        RUNS_MAX
    };
    let merged = merge(runs, u64::from(header.length), limit);
    if merged.is_empty() {
        let message = "the range has no state".to_owned();
        return error_chunk(
            header,
            &Failure {
                errno: Errno::Io,
                message,
            },
        );
    }
    let mut body = Vec::with_capacity(merged.len() * 8);
    for (length, state) in merged {
        body.extend(length.to_be_bytes());
        body.extend(state.to_be_bytes());
    }
    chunk(
        header,
        wire::CHUNK_BLOCK_STATUS,
        4 + body.len(),
        Body::Bytes(body),
    )
    .put(&ALLOCATION_CONTEXT.to_be_bytes())
}

/// Joins neighbours in one state and cuts at the request's end.
fn merge(runs: &[BlockRun], mut left: u64, limit: usize) -> Vec<(u32, u32)> {
    let mut merged: Vec<(u32, u32)> = Vec::new();
    for run in runs {
        let length = run.length_bytes.min(left);
        left -= length;
        let Some(length) = u32::try_from(length).ok().filter(|l| *l > 0) else {
            continue;
        };
        let hole = if run.hole { wire::STATE_HOLE } else { 0 };
        let state = hole | if run.zero { wire::STATE_ZERO } else { 0 };
        // Together they are at most the request's length, which is a u32.
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

//! Answers, and the bytes they become.

use super::request::{Header, Style};
use crate::frontend::{Answer, BlockRun, Buffers, Errno, Failure, Slot};
use block::{Buffer, is_zero};
use datapath::nbd::wire;
use uring::{Body, Piece};

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

/// The tag of a piece that ends no request.
const NO_SLOT: u32 = u32::MAX;

/// What waits to be sent, in order.
#[derive(Debug, Default)]
pub(super) struct Output {
    pieces: Vec<Piece>,
    /// An empty list, kept for its memory.
    spare: Vec<Piece>,
    /// A list is on its way.
    out: bool,
    /// Buffers whose content nobody wants.
    spent: Vec<Buffer>,
}

impl Output {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Whether a list was taken and did not come back.
    pub(super) fn is_out(&self) -> bool {
        self.out
    }

    pub(super) fn take(&mut self) -> Vec<Piece> {
        self.out = true;
        let spare = std::mem::take(&mut self.spare);
        std::mem::replace(&mut self.pieces, spare)
    }

    /// Takes back the list, emptied.
    pub(super) fn back(&mut self, pieces: Vec<Piece>, pool: &mut impl Buffers) {
        self.out = false;
        self.spare = pieces;
        self.spent.drain(..).for_each(|buffer| pool.give(buffer));
    }

    /// Drops everything.
    pub(super) fn discard(&mut self) {
        self.pieces.clear();
        self.spent.clear();
    }

    /// Takes what waits, as bytes.
    pub(super) fn drain_bytes(&mut self) -> Vec<u8> {
        let pieces = std::mem::take(&mut self.pieces);
        pieces
            .iter()
            .flat_map(Piece::parts)
            .flatten()
            .copied()
            .collect()
    }

    /// Bytes of the handshake.
    pub(super) fn push_bytes(&mut self, bytes: Vec<u8>) {
        self.pieces.push(Piece::new(Body::Bytes(bytes), NO_SLOT));
    }

    /// The whole reply to one request.
    pub(super) fn push_reply(&mut self, slot: Slot, header: &Header, style: Style, answer: Answer) {
        let mut piece = match answer {
            Answer::Data(data) if header.command == wire::CMD_CACHE => {
                self.spent.push(data);
                done(header, style)
            }
            Answer::Data(data) if style == Style::Simple => {
                simple(header, 0, Body::Shared(data.share()))
            }
            Answer::Data(data) => self.push_data(header, style, data),
            Answer::Status(runs) => status_chunk(header, style, &runs),
            Answer::Failed(failure) if style == Style::Simple => {
                simple(header, code(failure.errno), Body::None)
            }
            Answer::Failed(failure) => error_chunk(header, style, &failure),
            Answer::Done => done(header, style),
        };
        piece.tag = slot.0;
        self.pieces.push(piece);
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
                    chunk.piece(header, style, Body::Shared(part)).put(&offset)
                }
                None => {
                    let chunk = Chunk {
                        kind: wire::CHUNK_OFFSET_HOLE,
                        last,
                        len: 12,
                    };
                    let hole = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
                    chunk
                        .piece(header, style, Body::None)
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
            self.pieces.push(piece);
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

fn simple(header: &Header, code: u32, body: Body) -> Piece {
    Piece::new(body, NO_SLOT)
        .put(&wire::SIMPLE_REPLY_MAGIC.to_be_bytes())
        .put(&code.to_be_bytes())
        .put(&header.cookie.to_be_bytes())
}

/// Success without content. On a structured session it may be a simple reply, which is shorter.
fn done(header: &Header, style: Style) -> Piece {
    if style < Style::Extended {
        return simple(header, 0, Body::None);
    }
    Chunk::only(wire::CHUNK_NONE, 0).piece(header, style, Body::None)
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
        let piece = Piece::new(body, NO_SLOT)
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

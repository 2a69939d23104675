//! Requests in flight: taking them in, cutting them into parts, answering them.

use super::request::{Done, Error, ErrorKind, Extent, Finished, Request, Ticket};
use super::{Engine, REQUEST_BYTES_MAX, REQUESTS_MAX};
use crate::engine::layer::BLOCK_SECTORS;
use block::{Action, Buffer, Completion, FileId, Op, Payload, SharedBuffer};
use datapath::protocol::Access;
use units::SECTOR_BYTES;

/// Bits of a token below the engine's tag.
const TOKEN_BITS: u32 = 48;

/// A request's share of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// The request's place in the slab.
    pub(super) request: u32,
    pub(super) block: u32,
    /// Sectors counted within the block.
    pub(super) start: u32,
    /// First sector after the part.
    pub(super) end: u32,
    /// Whether the part counts among its leaf block's writers.
    pub(super) pinned: bool,
}

impl Part {
    /// First sector on the disk.
    pub(super) fn disk_sector(&self) -> u64 {
        u64::from(self.block) * u64::from(BLOCK_SECTORS) + u64::from(self.start)
    }

    pub(super) fn len_bytes(&self) -> u64 {
        u64::from(self.end.saturating_sub(self.start)) * SECTOR_BYTES
    }
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) ticket: Ticket,
    pub(super) kind: Kind,
    /// Parts and operations that are not finished, and one while parts are still being started.
    pub(super) pending: u32,
    pub(super) error: Option<Error>,
}

/// Changes of one range.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) first: u64,
    /// First sector after it.
    pub(super) end: u64,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// The buffer travels with the only operation of a read in one piece.
    Read {
        span: Span,
        buffer: Option<Buffer>,
    },
    Write {
        span: Span,
        data: SharedBuffer,
        fua: bool,
    },
    Zero {
        span: Span,
        trim: bool,
        may_trim: bool,
        fua: bool,
    },
    Status {
        next: u64,
        end: u64,
        extents: Vec<Extent>,
        extents_max: usize,
    },
    Flush,
    Live,
}

/// What was submitted while the disk was frozen or a live operation under way.
#[derive(Debug)]
pub(super) struct Held {
    ticket: Ticket,
    request: Request,
}

/// What an operation on a file was for.
#[derive(Debug)]
pub(super) enum Context {
    /// Part of a read: where it goes in the request's buffer; `whole` when it *is* that buffer.
    Read {
        request: u32,
        at: usize,
        whole: bool,
    },
    /// A bitmap of one layer.
    Bitmap { block: u32, layer: u16 },
    /// Data (or zeros) of a part.
    Data(Part),
    /// A hole made for a part; `clear` when its bits are to be cleared instead of set.
    Punch { part: Part, clear: bool },
    /// Room at the end of the leaf.
    Room,
    /// A bitmap or BAT sector of the flush under way.
    FlushWrite,
    /// One of its barriers.
    FlushSync,
    /// A step of a live operation.
    Step,
}

impl Engine {
    /// Takes a request in. It may be finished at once; see [`Engine::next_finished`].
    pub fn submit(&mut self, ticket: Ticket, request: Request) {
        if self.closed {
            let error = Error::new(ErrorKind::Closed, "the disk is closed");
            return self.answer(ticket, Err(error));
        }
        if self.requests.len().saturating_add(self.held.len()) >= REQUESTS_MAX {
            let text = format!("{REQUESTS_MAX} requests are in flight");
            return self.answer(ticket, Err(Error::new(ErrorKind::Busy, text)));
        }
        if let Err(error) = self.check(&request) {
            return self.answer(ticket, Err(error));
        }
        if self.frozen || self.live.is_some() {
            self.held.push_back(Held { ticket, request });
        } else {
            self.begin(ticket, request);
        }
    }

    /// Lets held requests go, after a thaw or a live operation.
    pub(super) fn release_held(&mut self) {
        while !self.frozen
            && self.live.is_none()
            && let Some(Held { ticket, request }) = self.held.pop_front()
        {
            if self.closed {
                let error = Error::new(ErrorKind::Closed, "the disk is closed");
                self.answer(ticket, Err(error));
            } else {
                self.begin(ticket, request);
            }
        }
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let (offset, len, change) = match request {
            Request::Read { offset, len_bytes } => (*offset, u64::from(*len_bytes), false),
            Request::Write { offset, data, .. } => (*offset, data.len() as u64, true),
            Request::Trim { offset, len_bytes }
            | Request::WriteZeroes {
                offset, len_bytes, ..
            } => (*offset, *len_bytes, true),
            Request::BlockStatus {
                offset, len_bytes, ..
            } => (*offset, *len_bytes, false),
            Request::Flush => return Ok(()),
        };
        let carries_data = matches!(request, Request::Read { .. } | Request::Write { .. });
        let too_long = carries_data && len > u64::from(REQUEST_BYTES_MAX);
        let aligned = offset.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES);
        if len == 0 || too_long || !aligned {
            let text = format!("{len} bytes at byte {offset} is not a possible request");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let size = self.size_bytes();
        if offset.checked_add(len).is_none_or(|end| end > size) {
            let text = format!("{len} bytes at byte {offset} end beyond the disk's {size} bytes");
            return Err(Error::new(ErrorKind::OutOfRange, text));
        }
        if change && self.config.access == Access::ReadOnly {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "the disk is open for reading only",
            ));
        }
        Ok(())
    }

    fn begin(&mut self, ticket: Ticket, request: Request) {
        let is_change = !matches!(request, Request::Read { .. } | Request::BlockStatus { .. });
        if is_change && let Some(error) = self.poison_error() {
            return self.answer(ticket, Err(error));
        }
        let kind = match request {
            Request::Read { offset, len_bytes } => {
                let buffer = self.pool.take(len_bytes as usize);
                Kind::Read {
                    span: Span::of(offset, u64::from(len_bytes)),
                    buffer: Some(buffer),
                }
            }
            Request::Write { offset, data, fua } => {
                let span = Span::of(offset, data.len() as u64);
                Kind::Write {
                    span,
                    data: data.share(),
                    fua,
                }
            }
            Request::Trim { offset, len_bytes } => {
                let span = Span::of(offset, len_bytes);
                Kind::Zero {
                    span,
                    trim: true,
                    may_trim: true,
                    fua: false,
                }
            }
            Request::WriteZeroes {
                offset,
                len_bytes,
                may_trim,
                fua,
            } => Kind::Zero {
                span: Span::of(offset, len_bytes),
                trim: false,
                may_trim,
                fua,
            },
            Request::BlockStatus {
                offset,
                len_bytes,
                extents_max,
            } => {
                let Span { first, end } = Span::of(offset, len_bytes);
                let extents_max = (extents_max as usize).max(1);
                Kind::Status {
                    next: first,
                    end,
                    extents: Vec::new(),
                    extents_max,
                }
            }
            Request::Flush => Kind::Flush,
        };
        let index = self.requests.insert(Active {
            ticket,
            kind,
            pending: 1,
            error: None,
        });
        self.start_request(index);
    }

    fn start_request(&mut self, index: u32) {
        match self.requests.get(index).map(|request| &request.kind) {
            Some(Kind::Read { span, .. }) => self.start_parts(index, *span),
            Some(Kind::Write { .. } | Kind::Zero { .. }) => self.start_change_in_order(index),
            Some(Kind::Status { .. }) => self.go_on_with_status(index),
            Some(Kind::Flush) => self.want_flush(index),
            Some(Kind::Live) | None => {}
        }
    }

    /// Starts a request's parts and drops the count that kept it from finishing meanwhile.
    pub(super) fn start_parts(&mut self, index: u32, span: Span) {
        let mut sector = span.first;
        while sector < span.end {
            let block = sector / u64::from(BLOCK_SECTORS);
            let block_end = (block + 1) * u64::from(BLOCK_SECTORS);
            let start = (sector % u64::from(BLOCK_SECTORS)) as u32;
            let end = start + (block_end.min(span.end) - sector) as u32;
            // A disk has fewer than 2^32 blocks: `check_chain` refuses larger ones.
            let block = u32::try_from(block).unwrap_or(u32::MAX);
            if let Some(request) = self.requests.get_mut(index) {
                request.pending = request.pending.saturating_add(1);
            }
            self.start_part(Part {
                request: index,
                block,
                start,
                end,
                pinned: false,
            });
            sector = block_end;
        }
        self.part_done(index, Ok(()));
    }

    /// Starts a part, or starts it again after what it waited for.
    pub(super) fn start_part(&mut self, part: Part) {
        match self.requests.get(part.request).map(|request| &request.kind) {
            Some(Kind::Read { .. }) => self.start_read(part),
            Some(Kind::Write { .. }) => self.start_write(part),
            Some(Kind::Zero { trim, may_trim, .. }) => {
                let (trim, may_trim) = (*trim, *may_trim);
                self.start_zero(part, trim, may_trim);
            }
            Some(Kind::Status { .. }) => self.go_on_with_status(part.request),
            Some(Kind::Flush | Kind::Live) | None => {}
        }
    }

    /// Counts one part or operation of a request as finished, and the request with the last one.
    pub(super) fn part_done(&mut self, index: u32, result: Result<(), Error>) {
        let Some(request) = self.requests.get_mut(index) else {
            return;
        };
        if let Err(error) = result {
            request.error.get_or_insert(error);
        }
        request.pending = request.pending.saturating_sub(1);
        if request.pending > 0 {
            return;
        }
        match request.kind {
            Kind::Write { fua, .. } | Kind::Zero { fua, .. } => {
                let durable = fua && request.error.is_none();
                self.change_done(index);
                if durable {
                    return self.want_flush(index);
                }
            }
            Kind::Read { .. } | Kind::Status { .. } | Kind::Flush | Kind::Live => {}
        }
        self.finish(index);
    }

    /// Answers a request and forgets it.
    pub(super) fn finish(&mut self, index: u32) {
        let Some(Active {
            ticket,
            kind,
            error,
            ..
        }) = self.requests.remove(index)
        else {
            return;
        };
        let failed = error.is_some();
        let mut done = Done::Ok;
        match kind {
            Kind::Read { span, buffer } => {
                if let Some(buffer) = buffer {
                    if failed {
                        self.pool.give(buffer);
                    } else {
                        done = Done::Data(buffer);
                    }
                }
                if !failed {
                    self.stats.reads += 1;
                    self.stats.read_bytes = self.stats.read_bytes.saturating_add(span.len_bytes());
                }
            }
            Kind::Write { span, data, .. } => {
                self.recycle(data);
                if !failed {
                    self.stats.writes += 1;
                    self.stats.write_bytes =
                        self.stats.write_bytes.saturating_add(span.len_bytes());
                }
            }
            Kind::Zero { .. } if !failed => self.stats.writes += 1,
            Kind::Flush if !failed => self.stats.flushes += 1,
            Kind::Status { extents, .. } => done = Done::Extents(extents),
            Kind::Zero { .. } | Kind::Flush | Kind::Live => {}
        }
        self.answer(ticket, error.map_or(Ok(done), Err));
        self.go_on_with_live();
    }

    /// Puts an answer where [`Engine::next_finished`] finds it.
    pub(super) fn answer(&mut self, ticket: Ticket, result: Result<Done, Error>) {
        if result.is_err() {
            self.stats.errors += 1;
        }
        self.finished.push_back(Finished { ticket, result });
    }

    /// Gives data back to the pool if nothing else looks at it.
    pub(super) fn recycle(&mut self, data: SharedBuffer) {
        if let Ok(buffer) = data.try_unshare() {
            self.pool.give(buffer);
        }
    }

    /// Queues an operation on a file.
    pub(super) fn emit(&mut self, file: FileId, action: Action, context: Context) {
        let index = self.contexts.insert(context);
        let token = (u64::from(self.config.tag) << TOKEN_BITS) | u64::from(index);
        self.outbox.push_back(Op {
            token,
            file,
            action,
        });
    }

    /// Takes the completion of an operation in.
    pub fn complete(&mut self, completion: Completion) {
        let Completion {
            token,
            result,
            payload,
        } = completion;
        let index = u32::try_from(token & ((1 << TOKEN_BITS) - 1)).unwrap_or(u32::MAX);
        let Some(context) = self.contexts.remove(index) else {
            return;
        };
        match context {
            Context::Read { request, at, whole } => {
                self.read_done(request, at, whole, result, payload);
            }
            Context::Bitmap { block, layer } => self.bitmap_done(block, layer, result, payload),
            Context::Data(part) => {
                drop(payload);
                self.data_done(part, result);
            }
            Context::Punch { part, clear } => self.punch_done(part, clear, result),
            Context::Room => self.room_done(result),
            Context::FlushWrite => {
                if let Payload::Written(data) = payload {
                    self.recycle(data);
                }
                self.flush_write_done(result);
            }
            Context::FlushSync => self.flush_sync_done(result),
            Context::Step => self.step_done(result),
        }
        self.go_on_with_live();
    }

    /// Why a change is refused, once the disk is poisoned.
    pub(super) fn poison_error(&self) -> Option<Error> {
        let reason = self.poisoned.as_ref()?;
        Some(Error::new(
            ErrorKind::Poisoned,
            format!("an earlier flush failed: {reason}"),
        ))
    }
}

impl Span {
    fn of(offset: u64, len_bytes: u64) -> Self {
        let first = offset / SECTOR_BYTES;
        Self {
            first,
            end: first.saturating_add(len_bytes / SECTOR_BYTES),
        }
    }

    pub(super) fn len_bytes(self) -> u64 {
        self.end
            .saturating_sub(self.first)
            .saturating_mul(SECTOR_BYTES)
    }
}

//! Requests in flight: their parts, the operations made for them, their answers.

use super::Engine;
use super::pause::Stall;
use super::request::{Done, Error, ErrorKind, Extent, Finished, Request, Scope, Ticket};
use crate::engine::layer::BLOCK_SECTORS;
use block::{Action, Buffer, Completion, FileId, Op, Payload, SharedBuffer};
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
    /// When it came in.
    pub(super) since_us: u64,
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
        scope: Scope,
    },
    Flush,
    Live,
}

/// What was submitted while the disk was frozen or a live operation under way.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) ticket: Ticket,
    pub(super) request: Request,
    /// When it came in.
    pub(super) since_us: u64,
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
    /// A page of the log of changed blocks.
    LogWrite,
    /// The barrier behind them.
    LogSync,
    /// A step of a live operation.
    Step,
    /// A step that enters a new parent.
    Relink,
}

impl Engine {
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
        if request.error.is_some() && self.stall(index, Stall::Parts) {
            return;
        }
        let Some(request) = self.requests.get(index) else {
            return;
        };
        match request.kind {
            Kind::Write { fua, span, .. } | Kind::Zero { fua, span, .. } => {
                let failed = request.error.is_some();
                let flush = !failed && (fua || self.is_unsettled(span));
                self.change_done(index);
                if flush {
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
            since_us,
            ..
        }) = self.requests.remove(index)
        else {
            return;
        };
        let failed = error.is_some();
        if !failed && !ticket.is_own() {
            self.stats.worked(&kind, since_us);
        }
        let mut done = Done::Ok;
        match kind {
            Kind::Read { buffer, .. } => {
                if let Some(buffer) = buffer {
                    if failed {
                        self.pool.give(buffer);
                    } else {
                        done = Done::Data(buffer);
                    }
                }
            }
            Kind::Write { data, .. } => self.recycle(data),
            Kind::Status { extents, .. } => done = Done::Extents(extents),
            Kind::Zero { .. } | Kind::Flush | Kind::Live => {}
        }
        self.answer(ticket, error.map_or(Ok(done), Err));
        self.probe_ended(index);
        self.go_on_with_live();
    }

    /// Puts an answer where [`Engine::next_finished`] finds it.
    pub(super) fn answer(&mut self, ticket: Ticket, result: Result<Done, Error>) {
        if result.is_err() {
            self.stats.counts.errors += 1;
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
        let counts = &mut self.stats.counts;
        counts.file_ops += 1;
        counts.barriers += u64::from(matches!(action, Action::Fdatasync));
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
        self.retire(index);
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
            Context::LogWrite => {
                if let Payload::Written(data) = payload {
                    self.recycle(data);
                }
                self.log_write_done(result);
            }
            Context::LogSync => self.log_sync_done(result),
            Context::Step => self.step_done(result),
            Context::Relink => self.relink_step_done(result),
        }
        if self.poisoned.is_some() {
            self.start_due_flush();
            if self.pause.is_on() {
                self.resume();
            }
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
    pub(super) fn of(offset: u64, len_bytes: u64) -> Self {
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

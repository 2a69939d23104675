//! Taking requests in: what is possible at all, what is held back, how a request is cut into parts.

use super::layer::BLOCK_SECTORS;
use super::pause::Passes;
use super::request::{Error, ErrorKind, Request, Scope, Ticket};
use super::state::{Active, Held, Kind, Part, Span};
use super::{Engine, REQUEST_BYTES_MAX, REQUESTS_MAX};
use datapath::protocol::Access;
use units::SECTOR_BYTES;

/// What keeps a request from beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// Nothing.
    Open,
    /// Something that the requests behind it may pass.
    Wait,
    /// Something that everything behind it waits for too.
    Shut,
}

impl Engine {
    /// Takes a request in. It may be finished at once; see [`Engine::next_finished`].
    pub fn submit(&mut self, ticket: Ticket, request: Request) {
        if self.closed {
            let error = Error::new(ErrorKind::Closed, "the disk is closed");
            return self.answer(ticket, Err(error));
        }
        if self.requests_in_flight() >= REQUESTS_MAX {
            let text = format!("{REQUESTS_MAX} requests are in flight");
            return self.answer(ticket, Err(Error::new(ErrorKind::Busy, text)));
        }
        if let Err(error) = self.check(&request) {
            return self.answer(ticket, Err(error));
        }
        let since_us = self.stats.now_us;
        let own = ticket.is_own() && !self.is_held();
        // Reads pass changes that a pause holds back, but not each other.
        let first =
            self.held.is_empty() || self.pause.lets_reads_pass() && !self.throttle.is_waiting();
        if own || self.gate(&request, first) == Gate::Open {
            self.begin(ticket, request, since_us);
        } else {
            self.held.push_back(Held {
                ticket,
                request,
                since_us,
            });
        }
        self.stats.submitted(self.requests_in_flight());
    }

    /// Lets held requests go as far as possible, in order: after a thaw, a live operation, a pause,
    /// or when there are tokens.
    pub(super) fn release_held(&mut self) {
        self.throttle.stop_waiting();
        self.restart_kept();
        let mut at = 0;
        while let Some(held) = self.held.get(at) {
            if self.closed {
                let error = Error::new(ErrorKind::Closed, "the disk is closed");
                let ticket = held.ticket;
                self.held.remove(at);
                self.answer(ticket, Err(error));
                continue;
            }
            let Some(held) = self.held.remove(at) else {
                return;
            };
            let own = held.ticket.is_own() && !self.is_held();
            let gate = if own {
                Gate::Open
            } else {
                self.gate(&held.request, true)
            };
            match gate {
                Gate::Open => self.begin(held.ticket, held.request, held.since_us),
                gate => {
                    self.held.insert(at, held);
                    if gate == Gate::Shut {
                        return;
                    }
                    at += 1;
                }
            }
        }
    }

    /// Whether a request may begin; takes its tokens if so. `first` when nothing waits before it.
    fn gate(&mut self, request: &Request, first: bool) -> Gate {
        if self.frozen || self.live.is_some() {
            return Gate::Shut;
        }
        match self.pause.passes(request) {
            Passes::Yes => {}
            Passes::No => return Gate::Wait,
            Passes::Nobody => return Gate::Shut,
        }
        if first || matches!(request, Request::Flush) {
            if self.take_tokens(request) {
                Gate::Open
            } else {
                Gate::Shut
            }
        } else {
            Gate::Wait
        }
    }

    /// Whether the request is one that this disk can be asked.
    ///
    /// # Errors
    /// `Invalid`, `OutOfRange`, `ReadOnly`.
    pub(crate) fn check(&self, request: &Request) -> Result<(), Error> {
        let (offset, len, change) = match request {
            Request::Read { offset, len_bytes } => (*offset, u64::from(*len_bytes), false),
            Request::Write { offset, data, .. } => (*offset, data.len() as u64, true),
            Request::WriteShared { offset, data, .. } => (*offset, data.len() as u64, true),
            Request::Trim {
                offset, len_bytes, ..
            }
            | Request::WriteZeroes {
                offset, len_bytes, ..
            } => (*offset, *len_bytes, true),
            Request::BlockStatus {
                offset, len_bytes, ..
            }
            | Request::LayerStatus {
                offset, len_bytes, ..
            } => (*offset, *len_bytes, false),
            Request::Flush => return Ok(()),
        };
        let carries_data = matches!(
            request,
            Request::Read { .. } | Request::Write { .. } | Request::WriteShared { .. }
        );
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

    fn begin(&mut self, ticket: Ticket, request: Request, since_us: u64) {
        let is_change = !matches!(
            request,
            Request::Read { .. } | Request::BlockStatus { .. } | Request::LayerStatus { .. }
        );
        if is_change && let Some(error) = self.poison_error() {
            return self.answer(ticket, Err(error));
        }
        let write_through = self.config.write_through;
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
                    fua: fua || write_through,
                }
            }
            Request::WriteShared { offset, data, fua } => {
                let span = Span::of(offset, data.len() as u64);
                Kind::Write {
                    span,
                    data,
                    fua: fua || write_through,
                }
            }
            Request::Trim {
                offset,
                len_bytes,
                fua,
            } => {
                let span = Span::of(offset, len_bytes);
                Kind::Zero {
                    span,
                    trim: true,
                    may_trim: true,
                    fua: fua || write_through,
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
                fua: fua || write_through,
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
                    scope: Scope::Chain,
                }
            }
            Request::LayerStatus {
                offset,
                len_bytes,
                scope,
            } => {
                let Span { first, end } = Span::of(offset, len_bytes);
                Kind::Status {
                    next: first,
                    end,
                    extents: Vec::new(),
                    extents_max: usize::MAX,
                    scope,
                }
            }
            Request::Flush => Kind::Flush,
        };
        let index = self.requests.insert(Active {
            ticket,
            kind,
            pending: 1,
            error: None,
            since_us,
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
}

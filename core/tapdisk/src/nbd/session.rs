//! One connection: where it is in the protocol, what is in flight, what waits to be sent.

use super::handshake::{self, Next, OPTION_BYTES_MAX, OPTIONS_MAX};
use super::reply::Output;
use super::request::{Agreed, Header, REQUEST_BYTES_MAX, Style};
use super::{Export, Tls};
use crate::frontend::{Answer, Buffers, Errno, Failure, Job, Slot, Work};
use block::Buffer;
use datapath::nbd::wire;
use std::collections::VecDeque;
use uring::{Body, Piece};

/// Requests of one session between their header and the last byte of their reply.
pub const IN_FLIGHT_MAX: usize = 128;

/// Payload and read buffers of one session; a single request may always go on.
pub const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// Bytes of the client's flags.
const FLAGS_BYTES: usize = 4;

/// Bytes of a payload still to come from which it is better received straight into its buffer.
const DIRECT_BYTES_MIN: usize = 64 << 10;

/// Where the session is.
#[derive(Debug)]
enum Phase {
    /// The client's flags come next.
    Flags,
    /// An option comes next; so many came.
    Option(u32),
    /// A request comes next.
    Request,
    /// A write's payload is coming in; the buffer may be lent to whoever receives it.
    Payload {
        slot: Slot,
        data: Option<Buffer>,
        filled: usize,
    },
    /// The payload of a write that fails is thrown away.
    Discard { slot: Slot, left: u64, errno: Errno },
    /// Nothing more is taken; what is in flight is answered.
    Ending,
}

/// A request between its header and the last byte of its reply.
#[derive(Debug, Clone, Copy)]
struct Request {
    header: Header,
    /// How much of it was handed out as jobs.
    worked: u64,
    /// The reply is made.
    answered: bool,
}

/// One connection in the clear. See the module's page.
#[derive(Debug)]
pub(super) struct Session {
    export: Export,
    phase: Phase,
    agreed: Agreed,
    /// The beginning of what comes next, while it is not whole.
    held: Vec<u8>,
    jobs: VecDeque<Job>,
    requests: Vec<Option<Request>>,
    free: Vec<Slot>,
    /// Requests whose job is done and that need another.
    unfinished: VecDeque<Slot>,
    cost_bytes: usize,
    output: Output,
    /// `STARTTLS` was agreed to, and nothing was taken after it.
    starts_tls: bool,
    is_greeted: bool,
    /// Set when the peer cannot hear answers any more.
    deaf: bool,
}

impl Session {
    /// Begins a session; the greeting is its first output.
    pub(super) fn new(export: Export) -> Self {
        let mut output = Output::default();
        output.push_bytes(handshake::greeting());
        Self {
            export,
            phase: Phase::Flags,
            agreed: Agreed::default(),
            held: Vec::new(),
            jobs: VecDeque::new(),
            requests: Vec::new(),
            free: Vec::new(),
            unfinished: VecDeque::new(),
            cost_bytes: 0,
            output,
            starts_tls: false,
            is_greeted: false,
            deaf: false,
        }
    }

    /// Takes the next bytes of the stream and returns how many of them. It takes less than all of
    /// them when answers have to be given and sent first, when a payload is lent out, and none
    /// when it is ending; the rest is to be offered again. The jobs that came of them wait in
    /// [`Session::next_job`].
    pub(super) fn receive(&mut self, bytes: &[u8], pool: &mut impl Buffers) -> usize {
        let mut rest = bytes;
        loop {
            let moved = match &mut self.phase {
                Phase::Flags => self.take_flags(&mut rest),
                Phase::Option(_) => self.take_option(&mut rest),
                Phase::Request => self.take_request(&mut rest, pool),
                Phase::Payload { .. } => self.take_payload(&mut rest),
                Phase::Discard { .. } => self.take_discarded(&mut rest),
                Phase::Ending => None,
            };
            if moved.is_none() {
                return bytes.len() - rest.len();
            }
        }
    }

    /// Whether TLS begins with the next byte; told once.
    pub(super) fn starts_tls(&mut self) -> bool {
        std::mem::take(&mut self.starts_tls)
    }

    /// The export's TLS.
    pub(super) fn tls(&self) -> Option<&Tls> {
        self.export.tls.as_ref()
    }

    /// What the handshake has to send and did not hand out; there are no requests yet.
    pub(super) fn drain_handshake(&mut self) -> Vec<u8> {
        self.output.drain_bytes()
    }

    /// Lends the buffer of a long payload and how much of it is filled, so that what comes next can
    /// be received straight into it; to be given back with [`Session::payload_back`]. Only when
    /// everything received before was taken.
    pub(super) fn lend_payload(&mut self) -> Option<(Buffer, usize)> {
        let Phase::Payload { data, filled, .. } = &mut self.phase else {
            return None;
        };
        let left = data.as_ref()?.len().saturating_sub(*filled);
        (left >= DIRECT_BYTES_MIN).then_some(())?;
        Some((data.take()?, *filled))
    }

    /// Takes a lent buffer back, with more of it filled.
    pub(super) fn payload_back(
        &mut self,
        buffer: Buffer,
        now_filled: usize,
        pool: &mut impl Buffers,
    ) {
        match &mut self.phase {
            Phase::Payload { data, filled, .. } if data.is_none() => {
                *filled = now_filled.min(buffer.len());
                *data = Some(buffer);
                let _no_more = self.take_payload(&mut &[][..]);
            }
            _ => pool.give(buffer),
        }
    }

    /// The next job that came of what was received, or of the answer to a part of a request.
    pub(super) fn next_job(&mut self) -> Option<Job> {
        self.go_on().or_else(|| self.jobs.pop_front())
    }

    /// Answers a job. Every job is answered exactly once, in any order.
    pub(super) fn answer(&mut self, slot: Slot, answer: Answer) {
        let Some(Some(request)) = self.requests.get_mut(slot.0 as usize) else {
            return;
        };
        if self.deaf {
            self.over(slot);
        } else if matches!(answer, Answer::Done) && request.header.piece_bytes(request.worked) > 0 {
            self.unfinished.push_back(slot);
        } else {
            request.answered = true;
            let header = request.header;
            self.output
                .push_reply(slot, &header, self.agreed.style, answer);
        }
    }

    /// Whether something is to be sent.
    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// What is to be sent, in order. It goes out as a whole before what is taken next, and comes
    /// back with [`Session::sent`].
    pub(super) fn take_output(&mut self) -> Vec<Piece> {
        self.output.take()
    }

    /// Takes back what was sent, or could not be because the peer is gone.
    pub(super) fn sent(&mut self, mut pieces: Vec<Piece>, pool: &mut impl Buffers) {
        for piece in pieces.drain(..) {
            if let Body::Shared(data) = piece.body
                && let Ok(buffer) = data.try_unshare()
            {
                pool.give(buffer);
            }
            self.over(Slot(piece.tag));
        }
        self.output.back(pieces, pool);
    }

    /// Takes no more requests; those in flight are answered.
    pub(super) fn end(&mut self) {
        if let Phase::Payload { slot, .. } | Phase::Discard { slot, .. } = self.phase {
            self.over(slot);
        }
        self.phase = Phase::Ending;
    }

    /// The peer closed or the socket failed: as [`Session::end`], and nothing more is sent. Whether
    /// what was taken to be sent comes back does not matter any more.
    pub(super) fn lost(&mut self) {
        self.end();
        self.deaf = true;
        self.output.discard();
        let answered = (0..).zip(&self.requests).filter_map(|(slot, request)| {
            let answered = request.as_ref().is_some_and(|request| request.answered);
            answered.then_some(Slot(slot))
        });
        let over: Vec<Slot> = answered.chain(self.unfinished.drain(..)).collect();
        over.into_iter().for_each(|slot| self.over(slot));
    }

    /// Takes over the disk's new size.
    pub(super) fn set_size(&mut self, size_bytes: u64) {
        self.export.size_bytes = size_bytes;
    }

    /// Whether the export was entered.
    pub(super) fn is_greeted(&self) -> bool {
        self.is_greeted
    }

    /// Whether no more input is taken for good.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending)
    }

    /// Whether everything is answered and sent, so that the socket can be closed.
    pub(super) fn is_finished(&self) -> bool {
        let all_sent = self.deaf || (self.output.is_empty() && !self.output.is_out());
        self.is_ending() && self.in_flight() == 0 && all_sent
    }

    /// Requests between header and end of reply.
    pub(super) fn in_flight(&self) -> usize {
        self.requests.len() - self.free.len()
    }

    fn request(&self, slot: Slot) -> Option<Request> {
        self.requests.get(slot.0 as usize).copied().flatten()
    }

    /// The next job of a request that is larger than one.
    fn go_on(&mut self) -> Option<Job> {
        let slot = self.unfinished.pop_front()?;
        let request = self.requests.get_mut(slot.0 as usize)?.as_mut()?;
        let work = request.header.work(request.worked)?;
        request.worked += request.header.piece_bytes(request.worked);
        Some(Job { slot, work })
    }

    /// Gathers the next `count` bytes in `held`; `None` until they are all there.
    fn gather(&mut self, rest: &mut &[u8], count: usize) -> Option<()> {
        let missing = count.saturating_sub(self.held.len()).min(rest.len());
        let (now, later) = rest.split_at(missing);
        self.held.extend_from_slice(now);
        *rest = later;
        (self.held.len() >= count).then_some(())
    }

    fn take_flags(&mut self, rest: &mut &[u8]) -> Option<()> {
        self.gather(rest, FLAGS_BYTES)?;
        let flags = u32::from_be_bytes(*self.held.first_chunk()?);
        self.held.clear();
        let (fixed, no_zeroes) = (
            u32::from(wire::FLAG_FIXED_NEWSTYLE),
            u32::from(wire::FLAG_NO_ZEROES),
        );
        if flags & !(fixed | no_zeroes) != 0 {
            // Nothing in the protocol could tell the client.
            self.lost();
            return None;
        }
        self.agreed.fixed = flags & fixed != 0;
        self.agreed.no_zeroes = flags & no_zeroes != 0;
        self.phase = Phase::Option(0);
        Some(())
    }

    fn take_option(&mut self, rest: &mut &[u8]) -> Option<()> {
        let Phase::Option(seen) = self.phase else {
            return None;
        };
        self.gather(rest, wire::OPTION_HEADER_BYTES)?;
        let header: [u8; wire::OPTION_HEADER_BYTES] = *self.held.first_chunk()?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = header;
        let option = u32::from_be_bytes([i, j, k, l]);
        let length = u32::from_be_bytes([m, n, o, p]) as usize;
        if u64::from_be_bytes([a, b, c, d, e, f, g, h]) != wire::OPTION_MAGIC {
            self.lost();
            return None;
        }
        if length > OPTION_BYTES_MAX || seen == OPTIONS_MAX {
            let why = if seen == OPTIONS_MAX {
                "too many options"
            } else {
                "option too long"
            };
            self.output.push_bytes(handshake::too_big(option, why));
            self.end();
            return None;
        }
        self.gather(rest, wire::OPTION_HEADER_BYTES + length)?;
        let data = self.held.get(wire::OPTION_HEADER_BYTES..)?;
        let mut reply = Vec::new();
        let next = handshake::option(&self.export, &mut self.agreed, option, data, &mut reply);
        self.held.clear();
        self.output.push_bytes(reply);
        match next {
            Next::Option => self.phase = Phase::Option(seen + 1),
            Next::Transmission => {
                self.held.shrink_to(wire::EXTENDED_REQUEST_BYTES);
                self.phase = Phase::Request;
                self.is_greeted = true;
            }
            Next::StartTls => {
                let Agreed {
                    fixed, no_zeroes, ..
                } = self.agreed;
                self.agreed = Agreed {
                    fixed,
                    no_zeroes,
                    secured: true,
                    ..Agreed::default()
                };
                self.phase = Phase::Option(seen + 1);
                self.starts_tls = true;
                return None;
            }
            Next::End => self.end(),
            Next::Drop => self.lost(),
        }
        Some(())
    }

    fn take_request(&mut self, rest: &mut &[u8], pool: &mut impl Buffers) -> Option<()> {
        let style = self.agreed.style;
        let offered = *rest;
        self.gather(rest, Header::bytes(style))?;
        let Ok(header) = Header::parse(&self.held, style)? else {
            self.lost();
            return None;
        };
        if header.command == wire::CMD_DISC {
            self.end();
            return None;
        }
        let payload = header.payload_bytes;
        if style == Style::Extended && payload > u64::from(REQUEST_BYTES_MAX) {
            // Its end could be 2^64 bytes away: the specification has the connection closed.
            self.lost();
            return None;
        }
        let cost = self.cost_bytes + header.cost_bytes();
        if self.in_flight() > 0 && (self.in_flight() == IN_FLIGHT_MAX || cost > IN_FLIGHT_BYTES_MAX)
        {
            // Its last byte is to be offered again, or nobody would know that a request waits.
            let taken = offered.len() - rest.len();
            if let Some(again) = taken.checked_sub(1).and_then(|last| offered.get(last..)) {
                self.held.pop();
                *rest = again;
            }
            return None;
        }
        self.held.clear();
        let slot = self.begin(header);
        match header.check(&self.export, self.agreed) {
            Ok(()) if payload > 0 => {
                let data = Some(pool.take(usize::try_from(payload).unwrap_or_default()));
                self.phase = Phase::Payload {
                    slot,
                    data,
                    filled: 0,
                };
            }
            Ok(()) => {
                self.unfinished.push_front(slot);
                let job = self.go_on();
                self.jobs.extend(job);
            }
            Err(errno) => {
                self.phase = Phase::Discard {
                    slot,
                    left: payload,
                    errno,
                };
            }
        }
        Some(())
    }

    fn take_payload(&mut self, rest: &mut &[u8]) -> Option<()> {
        let Phase::Payload { slot, data, filled } = &mut self.phase else {
            return None;
        };
        let buffer = data.as_mut()?;
        let wanted = buffer.as_mut_slice().get_mut(*filled..).unwrap_or_default();
        let count = rest.len().min(wanted.len());
        let (now, later) = rest.split_at(count);
        wanted.split_at_mut(count).0.copy_from_slice(now);
        *rest = later;
        *filled += count;
        if *filled < buffer.len() {
            return None;
        }
        let (slot, data) = (*slot, data.take()?);
        self.phase = Phase::Request;
        let header = self.request(slot)?.header;
        let fua = header.has(wire::CMD_FLAG_FUA);
        let offset = header.offset;
        let work = Work::Write { offset, data, fua };
        self.jobs.push_back(Job { slot, work });
        Some(())
    }

    fn take_discarded(&mut self, rest: &mut &[u8]) -> Option<()> {
        let Phase::Discard { slot, left, errno } = &mut self.phase else {
            return None;
        };
        let count = usize::try_from(*left).map_or(rest.len(), |left| rest.len().min(left));
        *rest = rest.split_at(count).1;
        *left -= count as u64;
        if *left > 0 {
            return None;
        }
        let (slot, errno) = (*slot, *errno);
        self.phase = Phase::Request;
        let message = "the request does not fit the export".to_owned();
        self.answer(slot, Answer::Failed(Failure { errno, message }));
        Some(())
    }

    fn begin(&mut self, header: Header) -> Slot {
        self.cost_bytes += header.cost_bytes();
        let slot = self.free.pop().unwrap_or_else(|| {
            self.requests.push(None);
            Slot(u32::try_from(self.requests.len() - 1).expect("at most IN_FLIGHT_MAX"))
        });
        if let Some(place) = self.requests.get_mut(slot.0 as usize) {
            // What has a payload is one job, whose data comes later.
            let worked = header.payload_bytes;
            *place = Some(Request {
                header,
                worked,
                answered: false,
            });
        }
        slot
    }

    /// The request needs nothing any more.
    fn over(&mut self, slot: Slot) {
        if let Some(request) = self
            .requests
            .get_mut(slot.0 as usize)
            .and_then(Option::take)
        {
            self.cost_bytes -= request.header.cost_bytes();
            self.free.push(slot);
        }
    }
}

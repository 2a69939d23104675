//! One connection: where it is in the protocol, what is in flight, what waits to be sent.

use super::Export;
use super::handshake::{self, Next, OPTION_BYTES_MAX, OPTIONS_MAX};
use super::reply::Output;
use super::request::{Agreed, Header, REQUEST_BYTES_MAX, Style};
use crate::frontend::{Answer, Buffers, Errno, Failure, FrontEnd, Job, Slot, Work};
use block::Buffer;
use datapath::nbd::wire;
use std::collections::VecDeque;

/// Requests of one session between their header and the last byte of their reply.
pub const IN_FLIGHT_MAX: usize = 128;

/// Payload and read buffers of one session; a single request may always go on.
pub const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// Bytes received at once. Holds the longest option with its header.
const STAGING_BYTES: usize = 64 << 10;

/// Where the session is.
#[derive(Debug)]
enum Phase {
    /// The client's flags come next.
    Flags,
    /// An option comes next; so many came.
    Option(u32),
    /// A request comes next.
    Request,
    /// A write's payload is coming in.
    Payload {
        slot: Slot,
        data: Buffer,
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
}

/// One connection. See the module's page.
#[derive(Debug)]
pub struct Session {
    export: Export,
    phase: Phase,
    agreed: Agreed,
    staging: Box<[u8]>,
    /// The part of `staging` that is received and not taken yet.
    start: usize,
    end: usize,
    requests: Vec<Option<Request>>,
    free: Vec<Slot>,
    /// Requests whose job is done and that need another.
    unfinished: VecDeque<Slot>,
    cost_bytes: usize,
    output: Output,
    /// Set when the peer cannot hear answers any more.
    deaf: bool,
}

impl Session {
    /// Begins a session; the greeting is its first output.
    pub fn new(export: Export) -> Self {
        let mut output = Output::default();
        output.push_bytes(handshake::greeting());
        Self {
            export,
            phase: Phase::Flags,
            agreed: Agreed::default(),
            staging: vec![0; STAGING_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            requests: Vec::new(),
            free: Vec::new(),
            unfinished: VecDeque::new(),
            cost_bytes: 0,
            output,
            deaf: false,
        }
    }

    /// Where the next bytes of the stream go; empty while the session takes none. Call
    /// [`Session::next_job`] until it has none before each receive.
    pub fn receive_into(&mut self) -> &mut [u8] {
        match &mut self.phase {
            Phase::Ending => return &mut [],
            // Straight to where it belongs.
            Phase::Payload { data, filled, .. } if self.start == self.end => {
                return data.as_mut_slice().get_mut(*filled..).unwrap_or_default();
            }
            _ => {}
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.staging.len() {
            self.staging.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.staging.get_mut(self.end..).unwrap_or_default()
    }

    /// Tells that `count` bytes were put into [`Session::receive_into`].
    pub fn received(&mut self, count: usize) {
        match &mut self.phase {
            Phase::Payload { data, filled, .. } if self.start == self.end => {
                *filled = filled.saturating_add(count).min(data.len());
            }
            _ => self.end = self.end.saturating_add(count).min(self.staging.len()),
        }
    }

    /// Goes on with what was received; `None` when more bytes, answers or sending are needed.
    pub fn next_job(&mut self, pool: &mut impl Buffers) -> Option<Job> {
        if let Some(job) = self.go_on() {
            return Some(job);
        }
        loop {
            let moved = match &mut self.phase {
                Phase::Flags => self.take_flags(),
                Phase::Option(_) => self.take_option(),
                Phase::Request => match self.take_request(pool) {
                    Some(Some(job)) => return Some(job),
                    moved => moved.map(drop),
                },
                Phase::Payload { .. } => match self.take_payload() {
                    Some(job) => return Some(job),
                    None => None,
                },
                Phase::Discard { .. } => self.take_discarded(),
                Phase::Ending => None,
            };
            moved?;
        }
    }

    /// Answers a job. Every job is answered exactly once, in any order.
    pub fn answer(&mut self, slot: Slot, answer: Answer) {
        let Some(Request { header, worked }) = self.request(slot) else {
            return;
        };
        if self.deaf {
            self.over(slot);
        } else if matches!(answer, Answer::Done) && header.piece_bytes(worked) > 0 {
            self.unfinished.push_back(slot);
        } else {
            self.output
                .push_reply(slot, &header, self.agreed.style, answer);
        }
    }

    /// What is to be sent, in order; none of the parts is empty.
    pub fn output(&self) -> impl Iterator<Item = &[u8]> {
        self.output.parts()
    }

    /// Whether something is to be sent.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Tells that `count` bytes of [`Session::output`] were sent.
    pub fn sent(&mut self, count: usize, pool: &mut impl Buffers) {
        let mut over = Vec::new();
        self.output.sent(count, pool, |slot| over.push(slot));
        over.into_iter().for_each(|slot| self.over(slot));
    }

    /// Takes no more requests; those in flight are answered.
    pub fn end(&mut self) {
        if let Phase::Payload { slot, .. } | Phase::Discard { slot, .. } = self.phase {
            self.over(slot);
        }
        self.phase = Phase::Ending;
    }

    /// The peer closed or the socket failed: as [`Session::end`], and nothing more is sent.
    pub fn lost(&mut self) {
        self.end();
        self.deaf = true;
        let mut over = Vec::new();
        self.output.discard(|slot| over.push(slot));
        over.extend(self.unfinished.drain(..));
        over.into_iter().for_each(|slot| self.over(slot));
    }

    /// Takes over the disk's new size.
    pub fn set_size(&mut self, size_bytes: u64) {
        self.export.size_bytes = size_bytes;
    }

    /// Whether the session is past the handshake.
    pub fn is_greeted(&self) -> bool {
        !matches!(self.phase, Phase::Flags | Phase::Option(_))
    }

    /// Whether no more input is taken for good.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending)
    }

    /// Whether everything is answered and sent, so that the socket can be closed.
    pub fn is_finished(&self) -> bool {
        self.is_ending() && self.in_flight() == 0 && self.output.is_empty()
    }

    /// Requests between header and end of reply.
    pub fn in_flight(&self) -> usize {
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

    fn unread(&self) -> &[u8] {
        self.staging.get(self.start..self.end).unwrap_or_default()
    }

    /// Takes `N` bytes off the front of what was received, when they are there.
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = *self.unread().first_chunk()?;
        self.start += N;
        Some(bytes)
    }

    fn take_flags(&mut self) -> Option<()> {
        let flags = u32::from_be_bytes(self.take()?);
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

    fn take_option(&mut self) -> Option<()> {
        let Phase::Option(seen) = self.phase else {
            return None;
        };
        let header: [u8; wire::OPTION_HEADER_BYTES] = *self.unread().first_chunk()?;
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
        let data_start = self.start + wire::OPTION_HEADER_BYTES;
        let data = self.staging.get(data_start..self.end)?.get(..length)?;
        let mut reply = Vec::new();
        let next = handshake::option(&self.export, &mut self.agreed, option, data, &mut reply);
        self.start = data_start + length;
        self.output.push_bytes(reply);
        match next {
            Next::Option => self.phase = Phase::Option(seen + 1),
            Next::Transmission => self.phase = Phase::Request,
            Next::End => self.end(),
            Next::Drop => self.lost(),
        }
        Some(())
    }

    /// `Some(None)`: moved on without a job.
    fn take_request(&mut self, pool: &mut impl Buffers) -> Option<Option<Job>> {
        let style = self.agreed.style;
        let Ok((header, size)) = Header::parse(self.unread(), style)? else {
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
            return None;
        }
        self.start += size;
        let slot = self.begin(header);
        match header.check(&self.export, self.agreed) {
            Ok(()) if payload > 0 => {
                let data = pool.take(usize::try_from(payload).unwrap_or_default());
                self.phase = Phase::Payload {
                    slot,
                    data,
                    filled: 0,
                };
                Some(None)
            }
            Ok(()) => {
                self.unfinished.push_front(slot);
                Some(self.go_on())
            }
            Err(errno) => {
                self.phase = Phase::Discard {
                    slot,
                    left: payload,
                    errno,
                };
                Some(None)
            }
        }
    }

    fn take_payload(&mut self) -> Option<Job> {
        let Phase::Payload { slot, data, filled } = &mut self.phase else {
            return None;
        };
        let staged = self.staging.get(self.start..self.end).unwrap_or_default();
        let wanted = data.as_mut_slice().get_mut(*filled..).unwrap_or_default();
        let count = staged.len().min(wanted.len());
        let (into, from) = (wanted.split_at_mut(count).0, staged.split_at(count).0);
        into.copy_from_slice(from);
        self.start += count;
        *filled += count;
        if *filled < data.len() {
            return None;
        }
        let slot = *slot;
        let Phase::Payload { data, .. } = std::mem::replace(&mut self.phase, Phase::Request) else {
            return None;
        };
        let header = self.request(slot)?.header;
        let fua = header.has(wire::CMD_FLAG_FUA);
        Some(Job {
            slot,
            work: Work::Write {
                offset: header.offset,
                data,
                fua,
            },
        })
    }

    fn take_discarded(&mut self) -> Option<()> {
        let Phase::Discard { slot, left, errno } = &mut self.phase else {
            return None;
        };
        let staged = self.end - self.start;
        let count = usize::try_from(*left).map_or(staged, |left| staged.min(left));
        self.start += count;
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
            *place = Some(Request { header, worked });
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

impl FrontEnd for Session {
    fn next_job(&mut self, buffers: &mut impl Buffers) -> Option<Job> {
        self.next_job(buffers)
    }

    fn answer(&mut self, slot: Slot, answer: Answer, _: &mut impl Buffers) {
        self.answer(slot, answer);
    }

    fn set_size(&mut self, size_bytes: u64) {
        self.set_size(size_bytes);
    }

    fn end(&mut self) {
        self.end();
    }

    fn lost(&mut self) {
        self.lost();
    }

    fn in_flight(&self) -> usize {
        self.in_flight()
    }

    fn is_finished(&self) -> bool {
        self.is_finished()
    }
}

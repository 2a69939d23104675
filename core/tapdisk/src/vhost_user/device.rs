//! One front end's device: its queues, the requests in flight, and what it is told.
//!
//! The messages are in `messages.rs`. A queue's life:
//!
//! ```text
//!  set up ── SET_VRING_KICK ──> started ── GET_VRING_BASE: drained, replied to ──> set up
//!                                 │ └──── makes no sense ──> broken ── kick ─────> started
//!                                 └────── reset ───────────────────> set up
//! ```
//! It is served while it is started and enabled.

use super::chain::Chain;
use super::inflight::{self, Inflight};
use super::memory::Memory;
use super::protocol::{Header, Receiver, RingAddresses, Violation};
use super::queue::{Broken, Queue};
use super::request::{Asked, Status, decode};
use super::{Export, QUEUES_MAX, Segment};
use crate::frontend::{Answer, Buffers, Errno, FrontEnd, Job, Slot, Work};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Requests of one device between being taken and being given back.
pub const IN_FLIGHT_MAX: usize = 1024;

/// Data of those requests; one more may begin below it.
pub const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// Requests of one queue before the next has its turn.
const TURN_MAX: u32 = 16;

/// Requests answered without the engine before the caller sees to others.
const ANSWERED_MAX: u32 = 64;

/// One queue.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub(super) size: u16,
    pub(super) addresses: Option<RingAddresses>,
    pub(super) base: u16,
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Option<OwnedFd>,
    pub(super) error: Option<OwnedFd>,
    pub(super) enabled: bool,
    /// There while the queue is started.
    pub(super) queue: Option<Queue>,
    pub(super) inflight: Option<Inflight>,
    /// Chains that an earlier process took and did not give back.
    pub(super) again: VecDeque<u16>,
    /// Requests in flight that belong to the present life of the queue.
    pub(super) in_flight: usize,
    /// Counts lives; answers to requests of an earlier one go nowhere.
    pub(super) life: u32,
    /// Counts kick descriptors.
    pub(super) kicks: u64,
}

/// A request in flight.
#[derive(Debug, Default)]
struct Active {
    busy: bool,
    ring: u16,
    life: u32,
    head: u16,
    /// Where the status goes.
    status: u64,
    /// Where a read's data goes.
    data: Vec<Segment>,
    cost_bytes: usize,
}

/// Bytes for the front end, and the descriptor that rides on the first of them.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    pub(super) fd: Option<OwnedFd>,
    pub(super) sent: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    Ending,
    Lost,
}

/// One connection. See the module's page.
#[derive(Debug)]
pub struct Device {
    pub(super) export: Export,
    pub(super) features: u64,
    pub(super) protocol_features: u64,
    pub(super) writeback: bool,
    pub(super) memory: Memory,
    pub(super) region: Option<inflight::Region>,
    pub(super) rings: Vec<Ring>,
    pub(super) receiver: Receiver,
    pub(super) output: VecDeque<Output>,
    /// The queue that is to be stopped once it has nothing in flight, and who asked.
    pub(super) draining: Option<(u16, Header)>,
    /// Where the front end hears what it did not ask for.
    pub(super) channel: Option<OwnedFd>,
    slots: Vec<Active>,
    free: Vec<u32>,
    in_flight_bytes: usize,
    /// The queue whose turn it is, and how many it took in it.
    turn: (u16, u32),
    chain: Chain,
    phase: Phase,
}

/// What taking from a queue came to.
enum Taken {
    Job(Job),
    Answered,
    Nothing,
}

impl Device {
    /// Waits for a front end's first message.
    pub fn new(export: Export) -> Self {
        let mut rings = Vec::new();
        rings.resize_with(usize::from(QUEUES_MAX), Ring::default);
        Self {
            export,
            features: 0,
            protocol_features: 0,
            writeback: true,
            memory: Memory::default(),
            region: None,
            rings,
            receiver: Receiver::default(),
            output: VecDeque::new(),
            draining: None,
            channel: None,
            slots: Vec::new(),
            free: Vec::new(),
            in_flight_bytes: 0,
            turn: (0, 0),
            chain: Chain::default(),
            phase: Phase::Serving,
        }
    }

    /// Where the next bytes of the socket go; empty while no messages are taken: while a reply
    /// waits to be sent, and while a queue is drained.
    ///
    /// # Errors
    /// The front end does not speak the protocol; the connection is of no more use.
    pub fn receive_into(&mut self) -> Result<&mut [u8], Violation> {
        let busy = !self.output.is_empty() || self.draining.is_some();
        if busy || self.phase != Phase::Serving {
            return Ok(&mut []);
        }
        self.receiver.receive_into()
    }

    /// What is to be sent next, with the descriptor that goes along.
    pub fn output(&self) -> Option<(&[u8], Option<BorrowedFd<'_>>)> {
        let first = self.output.front()?;
        let rest = first.bytes.get(first.sent..).unwrap_or_default();
        Some((rest, first.fd.as_ref().map(AsFd::as_fd)))
    }

    /// Tells that `count` bytes of [`Device::output`] were sent, and its descriptor with them.
    pub fn sent(&mut self, count: usize) {
        if let Some(first) = self.output.front_mut() {
            first.sent = first.sent.saturating_add(count);
            first.fd = None;
            if first.sent >= first.bytes.len() {
                self.output.pop_front();
            }
        }
    }

    /// The eventfd by which a started queue is kicked, and a number that changes when another takes
    /// its place.
    pub fn kick_fd(&self, ring: u16) -> Option<(u64, BorrowedFd<'_>)> {
        let ring = self.rings.get(usize::from(ring))?;
        let fd = ring.kick.as_ref().filter(|_| ring.queue.is_some())?;
        Some((ring.kicks, fd.as_fd()))
    }

    /// A kick came: takes it off the eventfd.
    pub fn kicked(&self, ring: u16) {
        let ring = self.rings.get(usize::from(ring));
        if let Some(fd) = ring.and_then(|ring| ring.kick.as_ref()) {
            // Whatever it says: the queue is looked at anyway.
            let _ = rustix::io::read(fd, &mut [0; 8]);
        }
    }

    /// Whether the front end keeps an inflight region, so that another process may go on with this
    /// guest.
    pub fn is_survivable(&self) -> bool {
        self.region.is_some()
    }

    /// Makes what was answered visible to the guest and calls it where it wants that. To be called
    /// after the answers of a round, before waiting.
    pub fn publish(&mut self) {
        for ring in &mut self.rings {
            let Some(queue) = &mut ring.queue else {
                continue;
            };
            if !queue.is_unpublished() {
                continue;
            }
            let wants_call = queue.publish();
            if let Some(inflight) = &mut ring.inflight {
                inflight.given_back(queue.used_index());
            }
            if wants_call {
                signal(ring.call.as_ref());
            }
        }
        self.finish_draining();
    }

    /// Stops a queue that is being drained although requests are in flight, as the disk may hold
    /// them back for long and the front end waits. They are done again when the queue is started
    /// next; without an inflight region, which is to know of them, it goes on being drained.
    pub fn stop_draining(&mut self) {
        if let Some((index, _)) = self.draining
            && let Some(ring) = self.rings.get_mut(usize::from(index))
            && ring.inflight.is_some()
        {
            ring.stop();
            self.finish_draining();
        }
    }

    /// Tells the guest that kicks are not needed for now.
    pub fn refuse_kicks(&self) {
        let queues = self.rings.iter().filter_map(|ring| ring.queue.as_ref());
        queues.for_each(Queue::refuse_kicks);
    }

    /// Asks for kicks, to be called before waiting for them. `true` when something is there already.
    pub fn want_kicks(&mut self) -> bool {
        let mut any = false;
        for index in 0..QUEUES_MAX {
            let Some(ring) = self.rings.get_mut(usize::from(index)) else {
                continue;
            };
            let again = ring.enabled && !ring.again.is_empty();
            let Some(queue) = ring.queue.as_mut().filter(|_| ring.enabled) else {
                continue;
            };
            match queue.want_kicks() {
                Ok(more) => any |= more || again,
                Err(broken) => self.broken(index, broken),
            }
        }
        any && self.takes_requests()
    }

    fn takes_requests(&self) -> bool {
        self.phase == Phase::Serving
            && self.in_flight() < IN_FLIGHT_MAX
            && self.in_flight_bytes < IN_FLIGHT_BYTES_MAX
    }

    /// Takes the next request of a queue, if it has one.
    fn take(&mut self, index: u16, buffers: &mut impl Buffers) -> Taken {
        let draining = self.draining.is_some_and(|(ring, _)| ring == index);
        let Some(ring) = self.rings.get_mut(usize::from(index)) else {
            return Taken::Nothing;
        };
        let Some(queue) = ring.queue.as_mut().filter(|_| ring.enabled && !draining) else {
            return Taken::Nothing;
        };
        let head = match ring.again.pop_front() {
            Some(head) => head,
            None => match queue.take() {
                Ok(None) => return Taken::Nothing,
                Ok(Some(head)) => {
                    if let Some(inflight) = &mut ring.inflight {
                        inflight.taken(head);
                    }
                    head
                }
                Err(broken) => {
                    self.broken(index, broken);
                    return Taken::Nothing;
                }
            },
        };
        let read = self.chain.read(&self.memory, queue, head);
        let decoded =
            read.and_then(|()| decode(&self.memory, &mut self.chain, &self.export, self.features));
        match decoded {
            Ok((asked, status)) => self.begin(index, head, asked, status, buffers),
            Err(broken) => {
                self.broken(index, broken);
                Taken::Nothing
            }
        }
    }

    /// Makes a job of a request, or answers it at once.
    fn begin(
        &mut self,
        ring: u16,
        head: u16,
        asked: Asked,
        status: u64,
        buffers: &mut impl Buffers,
    ) -> Taken {
        let mut cost_bytes = 0;
        let fua = self.is_write_through();
        let work = match asked {
            Asked::Refused(code) => return self.answer_now(ring, head, status, code),
            Asked::Serial => {
                let mut rest = self.export.serial.as_slice();
                let written = scatter(&self.memory, &self.chain.writable, &mut rest);
                return self.answer_now(ring, head, status, status_of(written));
            }
            Asked::Write { offset, length } => {
                let mut data = buffers.take(length as usize);
                if !gather(&self.memory, &self.chain.readable, data.as_mut_slice()) {
                    buffers.give(data);
                    return self.answer_now(ring, head, status, Status::IoError);
                }
                cost_bytes = length as usize;
                Work::Write { offset, data, fua }
            }
            Asked::Read { offset, length } => {
                cost_bytes = length as usize;
                Work::Read { offset, length }
            }
            Asked::Flush => Work::Flush,
            Asked::Trim { offset, length } => Work::Trim {
                offset,
                length: length.into(),
                fua: false,
            },
            Asked::WriteZeroes {
                offset,
                length,
                may_trim,
            } => Work::WriteZeroes {
                offset,
                length: length.into(),
                fua,
                no_hole: !may_trim,
                fast_bytes: 0,
            },
        };
        let slot = self.activate(ring, head, status, cost_bytes);
        Taken::Job(Job { slot, work })
    }

    /// Remembers a request whose data goes to (or came from) the chain that was just read.
    fn activate(&mut self, ring: u16, head: u16, status: u64, cost_bytes: usize) -> Slot {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Active::default());
            // At most IN_FLIGHT_MAX.
            (self.slots.len() - 1) as u32
        });
        self.in_flight_bytes = self.in_flight_bytes.saturating_add(cost_bytes);
        if let (Some(active), Some(ring_state)) = (
            self.slots.get_mut(index as usize),
            self.rings.get_mut(usize::from(ring)),
        ) {
            ring_state.in_flight += 1;
            active.busy = true;
            active.ring = ring;
            active.life = ring_state.life;
            active.head = head;
            active.status = status;
            active.cost_bytes = cost_bytes;
            std::mem::swap(&mut active.data, &mut self.chain.writable);
        }
        Slot(index)
    }

    fn answer_now(&mut self, ring: u16, head: u16, status: u64, code: Status) -> Taken {
        self.give_back(ring, head, status, code, 1);
        Taken::Answered
    }

    /// Writes the status and gives the chain back, with the number of bytes written.
    fn give_back(&mut self, index: u16, head: u16, status: u64, code: Status, len: u32) {
        let written = self.memory.write(status, &[code as u8]);
        let Some(ring) = self.rings.get_mut(usize::from(index)) else {
            return;
        };
        let Some(queue) = &mut ring.queue else {
            return;
        };
        if written.is_err() {
            return self.broken(index, Broken::NotMapped);
        }
        if let Some(inflight) = &mut ring.inflight {
            inflight.giving_back(head);
        }
        queue.put(head, len);
    }

    /// Stops a queue that makes no sense and tells the front end.
    pub(super) fn broken(&mut self, index: u16, broken: Broken) {
        tracing::warn!(queue = index, why = %broken, "a queue is stopped");
        if let Some(ring) = self.rings.get_mut(usize::from(index)) {
            ring.stop();
            signal(ring.error.as_ref());
        }
    }

    /// Every write is durable before it is answered: the guest does not flush (VIRTIO 1.2, 5.2.6.2).
    fn is_write_through(&self) -> bool {
        use super::config::feature;
        let has = |bit| self.features & bit != 0;
        !has(feature::FLUSH) || (has(feature::CONFIG_WCE) && !self.writeback)
    }
}

impl Ring {
    /// Ends the queue's present life: requests in flight are answered to nobody.
    pub(super) fn stop(&mut self) {
        if let Some(queue) = self.queue.take() {
            self.base = queue.next_available();
        }
        self.inflight = None;
        self.again.clear();
        self.in_flight = 0;
        self.life = self.life.wrapping_add(1);
    }
}

impl FrontEnd for Device {
    fn next_job(&mut self, buffers: &mut impl Buffers) -> Option<Job> {
        let (mut idle, mut answered) = (0, 0);
        while idle < QUEUES_MAX && answered < ANSWERED_MAX && self.takes_requests() {
            let (ring, count) = self.turn;
            let taken = match count < TURN_MAX {
                true => self.take(ring, buffers),
                false => Taken::Nothing,
            };
            match taken {
                Taken::Job(job) => {
                    self.turn = (ring, count.saturating_add(1));
                    return Some(job);
                }
                Taken::Answered => {
                    self.turn = (ring, count.saturating_add(1));
                    answered += 1;
                }
                Taken::Nothing => {
                    // A queue that had its turn is asked again after the others.
                    idle = if count < TURN_MAX { idle + 1 } else { 0 };
                    self.turn = ((ring + 1) % QUEUES_MAX, 0);
                }
            }
        }
        None
    }

    fn answer(&mut self, slot: Slot, answer: Answer, buffers: &mut impl Buffers) {
        let Some(active) = self.slots.get_mut(slot.0 as usize).filter(|a| a.busy) else {
            return give_back_buffer(answer, buffers);
        };
        active.busy = false;
        self.free.push(slot.0);
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(active.cost_bytes);
        let (ring, head, status, life) = (active.ring, active.head, active.status, active.life);
        let current = self.rings.get_mut(usize::from(ring));
        let current = current.filter(|ring| ring.life == life && self.phase != Phase::Lost);
        let Some(current) = current else {
            return give_back_buffer(answer, buffers);
        };
        current.in_flight = current.in_flight.saturating_sub(1);
        let mut len = 1_u32;
        let code = match &answer {
            Answer::Done => Status::Ok,
            Answer::Data(buffer) => {
                let mut rest = buffer.as_slice();
                // At most 32 MiB, as the request was checked.
                len = len.saturating_add(rest.len() as u32);
                status_of(scatter(&self.memory, &active.data, &mut rest))
            }
            Answer::Failed(failure) if failure.errno == Errno::NotSupported => Status::Unsupported,
            Answer::Failed(_) | Answer::Status(_) => Status::IoError,
        };
        give_back_buffer(answer, buffers);
        self.give_back(ring, head, status, code, len);
    }

    fn set_size(&mut self, size_bytes: u64) {
        if self.export.size_bytes != size_bytes {
            self.export.size_bytes = size_bytes;
            self.announce_config();
        }
    }

    fn end(&mut self) {
        if self.phase == Phase::Serving {
            self.phase = Phase::Ending;
        }
    }

    fn lost(&mut self) {
        self.phase = Phase::Lost;
        self.output.clear();
        self.draining = None;
        self.rings.iter_mut().for_each(Ring::stop);
    }

    fn in_flight(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }

    fn is_finished(&self) -> bool {
        let told = self.output.is_empty() || self.phase == Phase::Lost;
        self.phase != Phase::Serving && self.in_flight() == 0 && told
    }
}

fn give_back_buffer(answer: Answer, buffers: &mut impl Buffers) {
    if let Answer::Data(buffer) = answer {
        buffers.give(buffer);
    }
}

fn status_of(done: bool) -> Status {
    match done {
        true => Status::Ok,
        false => Status::IoError,
    }
}

/// Copies bytes into segments, as far as either goes.
fn scatter(memory: &Memory, segments: &[Segment], rest: &mut &[u8]) -> bool {
    segments.iter().all(|segment| {
        let (now, later) = rest.split_at(rest.len().min(segment.len as usize));
        *rest = later;
        memory.write(segment.address, now).is_ok()
    })
}

/// Fills the bytes from segments, which are of their length.
fn gather(memory: &Memory, segments: &[Segment], mut rest: &mut [u8]) -> bool {
    segments.iter().all(|segment| {
        let now = std::mem::take(&mut rest);
        let (now, later) = now.split_at_mut(now.len().min(segment.len as usize));
        rest = later;
        memory.read(segment.address, now).is_ok()
    })
}

/// Adds one to an eventfd. One that is full says already what is to be said.
fn signal(fd: Option<&OwnedFd>) {
    if let Some(fd) = fd {
        let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
    }
}

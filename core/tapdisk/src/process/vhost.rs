//! The vhost-user side of one disk: its listener, the front end that is connected, and when to
//! poll its queues instead of waiting for kicks.
//!
//! One front end at a time: a guest has one device. One that comes while another is connected waits
//! in the listener's queue, which is what a front end that reconnects wants.

use super::listener::Listener;
use super::reactor::{Interest, Key, Keys, Reactor};
use crate::engine::Ticket;
use crate::frontend::{Answer, Buffers, FrontEnd, Job, Slot};
use crate::vhost_user::socket::{Moved, receive, send};
use crate::vhost_user::{Device, Export, QUEUES_MAX, SERIAL_BYTES};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Marks tickets of front ends; others count up from one and never get there. The bit above it is
/// the engine's ([`Ticket::OWN`]).
const TICKET: u64 = 1 << 62;
const CLIENT_SHIFT: u32 = 32;
const CLIENT_MASK: u64 = (1 << 30) - 1;

/// Requests taken before the engine's answers are looked at.
const JOBS_MAX: usize = 256;

/// Longest time the queues are polled after the last request. A kick and the sleep it ends cost
/// about as much: polling longer than that costs more than it saves.
const POLL_MAX: Duration = Duration::from_micros(50);

/// Where polling starts, and where it gives up.
const POLL_MIN: Duration = Duration::from_micros(8);

/// A listener with what it serves.
#[derive(Debug)]
struct Served {
    key: Key,
    listener: Listener,
    serial: [u8; SERIAL_BYTES],
}

/// The vhost-user side of a disk.
#[derive(Debug, Default)]
pub(super) struct Vhost {
    served: Option<Served>,
    client: Option<Client>,
    /// Counts front ends, so that answers for one do not reach the next.
    clients: u64,
}

/// The front end.
#[derive(Debug)]
struct Client {
    number: u64,
    key: Key,
    socket: OwnedFd,
    device: Device,
    readable: bool,
    writable: bool,
    /// What each queue's eventfd is watched by, and which eventfd that is.
    kicks: Vec<(Key, u64)>,
    poll: Poll,
}

impl Vhost {
    /// Whether it is served.
    pub(super) fn is_served(&self) -> bool {
        self.served.is_some()
    }

    /// Whether a front end is connected.
    pub(super) fn has_client(&self) -> bool {
        self.client.is_some()
    }

    /// Whether the front end's guest would go on with another process.
    pub(super) fn is_survivable(&self) -> bool {
        let client = self.client.as_ref();
        client.is_some_and(|client| client.device.is_survivable())
    }

    /// Serves on `listener`, in place of the one before, whose key is returned. A front end stays.
    pub(super) fn serve(
        &mut self,
        reactor: &mut Reactor,
        key: Key,
        listener: Listener,
        serial: [u8; SERIAL_BYTES],
    ) -> Option<Key> {
        let old = self.stop_listening(reactor);
        self.served = Some(Served {
            key,
            listener,
            serial,
        });
        old
    }

    fn stop_listening(&mut self, reactor: &mut Reactor) -> Option<Key> {
        let old = self.served.take()?;
        reactor.forget(old.key);
        Some(old.key)
    }

    /// No new front end; the one connected has its requests answered and is closed. Returns the
    /// listener's key.
    pub(super) fn unserve(&mut self, reactor: &mut Reactor) -> Option<Key> {
        if let Some(client) = &mut self.client {
            client.device.end();
        }
        self.stop_listening(reactor)
    }

    /// Drops the front end, answered or not; returns its keys.
    pub(super) fn drop_client(&mut self, reactor: &mut Reactor) -> Vec<Key> {
        let Some(client) = self.client.take() else {
            return Vec::new();
        };
        let keys = client.kicks.iter().map(|(key, _)| *key);
        let keys: Vec<Key> = keys.chain([client.key]).collect();
        keys.iter().for_each(|key| reactor.forget(*key));
        keys
    }

    /// Tells the front end about a new size.
    pub(super) fn set_size(&mut self, size_bytes: u64) {
        if let Some(client) = &mut self.client {
            client.device.set_size(size_bytes);
        }
    }

    /// Something is there that was waited for. `false` when it is nothing of ours.
    pub(super) fn ready(&mut self, key: Key, interest: Interest) -> bool {
        if let Some(served) = self.served.as_mut().filter(|served| served.key == key) {
            served.listener.ready(interest);
            return true;
        }
        let Some(client) = &mut self.client else {
            return false;
        };
        if client.key == key {
            client.readable |= interest.read;
            client.writable |= interest.write;
            return true;
        }
        let ring = (0..).zip(&client.kicks).find(|(_, (k, _))| *k == key);
        let Some((ring, _)) = ring else {
            return false;
        };
        client.device.kicked(ring);
        client.poll.kicked();
        true
    }

    /// Takes a new front end; returns its keys, which are for events to find this disk by.
    pub(super) fn accept(
        &mut self,
        now: Instant,
        keys: &mut Keys,
        (size_bytes, read_only): (u64, bool),
    ) -> Vec<Key> {
        let Some(served) = self.served.as_mut().filter(|_| self.client.is_none()) else {
            return Vec::new();
        };
        let Some(socket) = served.listener.accept(now) else {
            return Vec::new();
        };
        let export = Export {
            size_bytes,
            read_only,
            serial: served.serial,
        };
        self.clients = (self.clients + 1) & CLIENT_MASK;
        let client = Client {
            number: self.clients,
            key: keys.next(),
            socket,
            device: Device::new(export),
            readable: true,
            writable: true,
            kicks: (0..QUEUES_MAX).map(|_| (keys.next(), 0)).collect(),
            poll: Poll::default(),
        };
        let kicks = client.kicks.iter().map(|(key, _)| *key);
        let fresh = kicks.chain([client.key]).collect();
        self.client = Some(client);
        fresh
    }

    /// Moves messages, and takes the requests that there are, to be submitted with their tickets.
    /// `true` when the front end is gone or over.
    pub(super) fn take(
        &mut self,
        buffers: &mut impl Buffers,
        jobs: &mut Vec<(Ticket, Job)>,
    ) -> bool {
        let Some(client) = &mut self.client else {
            return false;
        };
        client.exchange();
        while jobs.len() < JOBS_MAX
            && let Some(job) = client.device.next_job(buffers)
        {
            let number = TICKET | client.number << CLIENT_SHIFT;
            jobs.push((Ticket(number | u64::from(job.slot.0)), job));
        }
        client.device.is_finished()
    }

    /// Whether a ticket is for a front end.
    pub(super) fn is_ticket(ticket: Ticket) -> bool {
        ticket.0 & TICKET != 0
    }

    /// Hands an answer to the front end that asked, if it is still the one connected.
    pub(super) fn answer(&mut self, ticket: Ticket, answer: Answer, buffers: &mut impl Buffers) {
        let number = ticket.0 >> CLIENT_SHIFT & CLIENT_MASK;
        let client = self.client.as_mut().filter(|c| c.number == number);
        match (client, answer) {
            (Some(client), answer) => {
                // The lower half is the slot.
                let slot = Slot(ticket.0 as u32);
                client.device.answer(slot, answer, buffers);
            }
            (None, Answer::Data(buffer)) => buffers.give(buffer),
            (None, _) => {}
        }
    }

    /// The disk answers nothing for now: a front end that stops a queue does not wait for it.
    pub(super) fn disk_is_paused(&mut self) {
        if let Some(client) = &mut self.client {
            client.device.stop_draining();
        }
    }

    /// Shows the guest what was answered.
    pub(super) fn publish(&mut self) {
        if let Some(client) = &mut self.client {
            client.device.publish();
            client.exchange();
        }
    }

    /// To be asked when there was nothing to do: `true` to be called again at once, either because
    /// there is something now or because something may come soon.
    pub(super) fn rest(&mut self, now: Instant) -> bool {
        let Some(client) = &mut self.client else {
            return false;
        };
        // Whoever waits for the disk hears of new requests by its completions.
        let alone = client.device.in_flight() == 0;
        if alone && client.poll.goes_on(now) {
            return true;
        }
        let more = client.device.want_kicks();
        if !more {
            client.poll.rests(now);
        }
        more
    }

    /// There was something to do: kicks are not needed for now.
    pub(super) fn busy(&mut self) {
        if let Some(client) = &mut self.client {
            client.poll.busy();
            client.device.refuse_kicks();
        }
    }

    /// Says what is waited for; whether the clock must be looked at meanwhile.
    pub(super) fn watch(&mut self, reactor: &mut Reactor) -> io::Result<bool> {
        let mut by_clock = false;
        if let Some(served) = self.served.as_ref().filter(|_| self.client.is_none()) {
            by_clock = served.listener.paused_until().is_some();
            reactor.watch(served.key, &served.listener, served.listener.interest())?;
        }
        if let Some(client) = &mut self.client {
            client.watch(reactor)?;
        }
        Ok(by_clock)
    }
}

impl Client {
    /// Moves messages in both directions as far as they go.
    fn exchange(&mut self) {
        loop {
            let sent = match self.writable {
                true => send(&mut self.device, &self.socket),
                false => Moved::Blocked,
            };
            let got = match self.readable {
                true => receive(&mut self.device, &self.socket).unwrap_or_else(|why| {
                    tracing::warn!(why = %why, "a front end makes no sense and is cut off");
                    Moved::Closed
                }),
                false => Moved::Blocked,
            };
            self.writable &= sent != Moved::Blocked;
            self.readable &= got != Moved::Blocked;
            if [sent, got].contains(&Moved::Closed) {
                self.device.lost();
            }
            if ![sent, got].contains(&Moved::Some) {
                return;
            }
        }
    }

    fn watch(&mut self, reactor: &mut Reactor) -> io::Result<()> {
        let takes = self
            .device
            .receive_into()
            .is_ok_and(|into| !into.is_empty());
        let interest = Interest {
            read: takes && !self.readable,
            write: self.device.output().is_some() && !self.writable,
        };
        reactor.watch(self.key, &self.socket, interest)?;
        let reads = Interest {
            read: true,
            write: false,
        };
        for (ring, (key, watched)) in (0..).zip(&mut self.kicks) {
            let Some((number, fd)) = self.device.kick_fd(ring) else {
                if *watched != 0 {
                    reactor.forget(*key);
                    *watched = 0;
                }
                continue;
            };
            if *watched != number {
                reactor.forget(*key);
                *watched = number;
            }
            reactor.watch(*key, fd, reads)?;
        }
        Ok(())
    }
}

/// How long the queues are polled before kicks are waited for. The time grows while kicks come
/// soon after the waiting began, which polling would have spared, and shrinks to nothing while they
/// do not.
#[derive(Debug, Default)]
struct Poll {
    window: Duration,
    idle_since: Option<Instant>,
    resting_since: Option<Instant>,
}

impl Poll {
    fn busy(&mut self) {
        self.idle_since = None;
        self.resting_since = None;
    }

    /// Whether to look again instead of waiting.
    fn goes_on(&mut self, now: Instant) -> bool {
        let since = *self.idle_since.get_or_insert(now);
        now.saturating_duration_since(since) < self.window
    }

    fn rests(&mut self, now: Instant) {
        self.resting_since.get_or_insert(now);
    }

    fn kicked(&mut self) {
        if let Some(since) = self.resting_since.take() {
            self.learn(since.elapsed());
        }
    }

    fn learn(&mut self, rested: Duration) {
        self.window = if rested <= POLL_MAX {
            self.window.saturating_mul(2).clamp(POLL_MIN, POLL_MAX)
        } else {
            self.window
                .checked_div(2)
                .filter(|half| *half >= POLL_MIN)
                .unwrap_or_default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_grows_where_kicks_come_soon_and_stops_where_they_do_not() {
        let mut poll = Poll::default();
        let now = Instant::now();
        assert!(!poll.goes_on(now), "nothing is known yet");
        (0..10).for_each(|_| poll.learn(Duration::from_micros(20)));
        assert_eq!(poll.window, POLL_MAX);
        poll.busy();
        assert!(poll.goes_on(now));
        assert!(poll.goes_on(now + Duration::from_micros(49)));
        assert!(!poll.goes_on(now + POLL_MAX));
        (0..10).for_each(|_| poll.learn(Duration::from_millis(1)));
        assert_eq!(poll.window, Duration::ZERO);
        poll.busy();
        assert!(!poll.goes_on(now));
    }
}

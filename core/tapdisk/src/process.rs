//! The process: one thread, one ring, one loop.
//!
//! ```text
//!            ┌────────────────────────── wait ──────────────────────────┐
//!            v                                                          │
//!  completions of files ─> engines      sockets ready ─> control frames ┤─> operations
//!                                                        clients ───────┘─> engines
//!            engines ─> operations on files, answers of clients, ends of live operations
//! ```
//!
//! * The control socket's listener is descriptor 0. Whoever connects is the daemon: the socket's
//!   place in the file system decides who may. The end of a control connection changes nothing.
//! * Operations that need the disk to go quiet (snapshot, resize, freeze, close) are answered when
//!   their engine is done; others go on meanwhile.
//! * Copies and mirrors have their turns in the same loop and give way to guests (`copies.rs`).
//! * It ends by itself only on `exit`, on a signal, or when it had neither a disk nor a control
//!   connection for [`IDLE_MAX`].
//!
//! # A turn
//! All that came is taken in, operations on files in memory are performed and answered at once, and
//! what there is to say goes out last, one send per client, in the system call that also waits. The
//! more requests are in flight, the fewer calls each needs.
//!
//! That was weighed against taking requests one by one. Measured with 4 KiB reads of a file on
//! ext4 without page cache, depth 32, one client on a Unix socket, two cores:
//!
//! | | requests/s | calls per request | CPU s per 100,000 |
//! |---|---|---|---|
//! | all that came, one send | 54-60 k | 0.10 | 0.37-0.41 |
//! | the same, client and server on a core each | 77-80 k | 0.30 | 0.46 |
//! | one request per receive, at most 8 replies per send | 74-83 k | 1.15-1.26 | 0.57-0.65 |
//!
//! Where the kernel puts client and server on one core, they and the disk take turns, and whole
//! batches lose throughput (waiting for more in the kernel, spinning and smaller limits did not
//! help). Whole batches were chosen all the same: CPU time is what guests lack, and a guest whose
//! disk is busy has cores of its own.

mod connection;
mod control;
mod copies;
mod disk;
mod engines;
mod images;
mod listener;
mod operations;
mod reactor;
mod vhost;

pub mod arguments;
pub mod sandbox;
pub mod syscalls;

use block::Completion;
use control::Control;
use copies::Copies;
use datapath::protocol::{Error, Reply};
use disk::{Disk, LiveOutcome};
use engines::Engines;
use listener::Listener;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use operations::{Freezing, Live, Unserving};
use reactor::{Events, Interest, Key, Keys, Reactor, StreamEvent};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use units::{DpId, RequestId};

/// How long the process stays without a disk and without a control connection.
pub const IDLE_MAX: Duration = Duration::from_secs(60);

/// Control connections at once.
const CONTROLS_MAX: usize = 8;

/// How often clocks are looked at while one is running.
const TICK: Duration = Duration::from_millis(500);

/// Rounds of work on operations that are performed at once, before sockets have their turn.
const ROUNDS_MAX: usize = 16;

/// Bits of a token below an engine's tag.
const TAG_SHIFT: u32 = 48;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// In order.
    Clean,
    /// By a signal, with an image that could not be closed cleanly.
    Unclean,
}

/// Whom an answer is for.
#[derive(Debug, Clone)]
struct ReplyTo {
    control: Key,
    id: u64,
    request_id: RequestId,
}

/// What the process does with itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Serving,
    /// A signal came: every disk is being closed. `unclean` once one could not be.
    Closing {
        unclean: bool,
    },
    /// `exit` was answered; ends when the answer is sent.
    Leaving,
}

/// The state of the loop.
#[derive(Debug)]
pub struct Process {
    reactor: Reactor,
    keys: Keys,
    signals: (Key, SignalFd),
    listener: (Key, Listener),
    controls: BTreeMap<Key, Control>,
    disks: BTreeMap<DpId, Disk>,
    /// Which disk a token's tag or a socket's key belongs to.
    tags: BTreeMap<u16, DpId>,
    owners: BTreeMap<Key, DpId>,
    /// Operations that wait for an engine.
    live: HashMap<u64, Live>,
    /// Which control connection froze a disk.
    frozen: BTreeMap<DpId, Key>,
    freezing: HashMap<u64, Freezing>,
    unserving: Vec<Unserving>,
    copies: Copies,
    /// Numbers of operations that wait.
    last_number: u64,
    life: Life,
    /// Since when there is neither a disk nor a control connection.
    idle_since: Option<Instant>,
    /// What engines count their time from.
    started: Instant,
}

impl Process {
    /// Sets up the ring and takes over the listening control socket.
    ///
    /// # Errors
    /// When the system refuses the ring, or the socket does not listen.
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        let mut keys = Keys::default();
        let mut set = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self {
            reactor: Reactor::new()?,
            signals: (keys.next(), signals),
            listener: (keys.next(), Listener::new(listener)?),
            keys,
            controls: BTreeMap::new(),
            disks: BTreeMap::new(),
            tags: BTreeMap::new(),
            owners: BTreeMap::new(),
            live: HashMap::new(),
            frozen: BTreeMap::new(),
            freezing: HashMap::new(),
            unserving: Vec::new(),
            copies: Copies::default(),
            last_number: 0,
            life: Life::Serving,
            idle_since: None,
            started: Instant::now(),
        })
    }

    /// Serves until it is time to end.
    ///
    /// # Errors
    /// When the ring broke; the images are then as after a power failure.
    pub fn run(mut self) -> io::Result<Ending> {
        let (mut events, mut outcomes) = (Events::default(), Vec::new());
        let mut now = Instant::now();
        loop {
            let mut more = self.work(now, &mut outcomes);
            for _ in 0..ROUNDS_MAX {
                self.reactor.take_done(&mut events.done);
                if events.done.is_empty() {
                    break;
                }
                self.complete(&mut events.done);
                more |= self.work(now, &mut outcomes);
            }
            more |= self.send_answers();
            if let Some(ending) = self.ending(now) {
                return Ok(ending);
            }
            let by_clock = self.watch()?;
            let timeout = match (more, by_clock) {
                (true, _) => Some(Duration::ZERO),
                (false, true) => Some(TICK),
                (false, false) => None,
            };
            let timeout = self.until_wake(now).into_iter().chain(timeout).min();
            self.reactor.wait(timeout, &mut events)?;
            // The only look at the clock in a turn.
            now = Instant::now();
            self.tell_time(now);
            self.complete(&mut events.done);
            for ready in events.ready.drain(..) {
                self.take_ready(Key::of(ready.token), ready.interest);
            }
            for event in events.streams.drain(..) {
                self.take_stream_event(event);
            }
        }
    }

    /// Lets engines have what their operations came to.
    fn complete(&mut self, done: &mut Vec<Completion>) {
        for completion in done.drain(..) {
            let tag = u16::try_from(completion.token >> TAG_SHIFT).unwrap_or_default();
            let Copies { known, tags, .. } = &mut self.copies;
            if let Some(disk) = self.tags.get(&tag).and_then(|id| self.disks.get_mut(id)) {
                disk.engine.complete(tag, completion);
            } else if let Some(copying) = tags.get(&tag).and_then(|id| known.get_mut(id))
                && let Some(job) = &mut copying.job
            {
                job.complete(tag, completion);
            }
        }
    }

    /// Does everything that can be done without waiting. `true` when some disk stopped for the sake
    /// of others.
    fn work(&mut self, now: Instant, outcomes: &mut Vec<LiveOutcome>) -> bool {
        loop {
            self.take_controls(now);
            let more = self.work_copies(now) | self.work_disks(now, outcomes);
            let settled = self.settle_copies(now) | self.finish_unserving(now);
            if !settled && outcomes.is_empty() {
                return more;
            }
            // An end may thaw a disk or let a connection ask again: another round.
            for outcome in outcomes.drain(..) {
                self.live_ended(outcome);
            }
        }
    }

    fn take_stream_event(&mut self, event: StreamEvent) {
        let key = Key::of(event.token());
        if let Some(disk) = self.owners.get(&key).and_then(|id| self.disks.get_mut(id)) {
            disk.take_event(key, event, &mut self.reactor);
        }
    }

    fn take_ready(&mut self, key: Key, interest: Interest) {
        if key == self.signals.0 {
            while let Ok(Some(signal)) = self.signals.1.read_signal() {
                self.signalled(signal.ssi_signo);
            }
        } else if key == self.listener.0 {
            self.listener.1.ready(interest);
        } else if let Some(control) = self.controls.get_mut(&key) {
            control.ready(interest);
        } else if let Some(disk) = self.owners.get(&key).and_then(|id| self.disks.get_mut(id)) {
            disk.ready(key, interest);
        }
    }

    fn signalled(&mut self, number: u32) {
        let hangup = u32::try_from(Signal::SIGHUP as i32).unwrap_or_default();
        if number == hangup || matches!(self.life, Life::Closing { .. }) {
            return;
        }
        tracing::info!(
            signal = number,
            disks = self.disks.len(),
            "closing every disk"
        );
        self.life = Life::Closing { unclean: false };
        self.close_all();
        self.stop_copies();
    }

    /// Accepts control connections and carries out what they ask.
    fn take_controls(&mut self, now: Instant) {
        while self.life == Life::Serving
            && self.controls.len() < CONTROLS_MAX
            && let Some(socket) = self.listener.1.accept(now)
        {
            self.controls.insert(self.keys.next(), Control::new(socket));
        }
        let keys: Vec<Key> = self.controls.keys().copied().collect();
        for key in keys {
            while let Some(frame) = self.controls.get_mut(&key).and_then(Control::next_frame) {
                self.take_frame(key, frame);
            }
        }
    }

    /// Sends what is answered and closes what is over. `true` when that left work to do.
    fn send_answers(&mut self) -> bool {
        self.controls.values_mut().for_each(Control::send);
        let finished = self
            .controls
            .iter()
            .filter(|(_, control)| control.is_finished());
        let finished: Vec<Key> = finished.map(|(key, _)| *key).collect();
        let any = !finished.is_empty();
        for key in finished {
            self.reactor.forget(key);
            self.controls.remove(&key);
            self.thaw_orphans(key);
        }
        any
    }

    fn work_disks(&mut self, now: Instant, outcomes: &mut Vec<LiveOutcome>) -> bool {
        let (mut more, mut gone) = (false, Vec::new());
        for (id, disk) in &mut self.disks {
            for key in disk.accept(&mut self.reactor, now, &mut self.keys) {
                self.owners.insert(key, id.clone());
            }
            more |= disk.work(&mut self.reactor, now, outcomes, &mut gone);
            disk.note_pause(id);
        }
        for key in gone {
            self.owners.remove(&key);
        }
        more
    }

    /// Sends, and says what to wait for. `true` when there is also a clock to look at.
    fn watch(&mut self) -> io::Result<bool> {
        let reads = Interest {
            read: true,
            write: false,
        };
        self.reactor.watch(self.signals.0, &self.signals.1, reads)?;
        if self.life == Life::Serving && self.controls.len() < CONTROLS_MAX {
            self.reactor.watch(
                self.listener.0,
                &self.listener.1,
                self.listener.1.interest(),
            )?;
        }
        for (key, control) in &self.controls {
            self.reactor.watch(*key, control, control.interest())?;
        }
        let mut by_clock = self.idle_since.is_some()
            || !self.unserving.is_empty()
            || self.listener.1.paused_until().is_some();
        for disk in self.disks.values_mut() {
            disk.send(&mut self.reactor);
            by_clock |= disk.watch(&mut self.reactor)?;
        }
        Ok(by_clock)
    }

    /// How long until some engine must hear of the time.
    fn until_wake(&self, now: Instant) -> Option<Duration> {
        let (until, copies_us) = self.copies.wake();
        let engines = self.disks.values().map(|disk| &disk.engine);
        let engines_us = engines.filter_map(Engines::wake_at_us);
        let at = engines_us.chain(copies_us).min();
        let at = at.map(|at_us| self.started + Duration::from_micros(at_us));
        let at = at.into_iter().chain(until).min()?;
        Some(at.saturating_duration_since(now))
    }

    fn now_us(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.started);
        u64::try_from(passed.as_micros()).unwrap_or(u64::MAX)
    }

    fn tell_time(&mut self, now: Instant) {
        let now_us = self.now_us(now);
        for disk in self.disks.values_mut() {
            disk.engine.set_now(now_us);
        }
    }

    /// Whether it is time to end, and how.
    fn ending(&mut self, now: Instant) -> Option<Ending> {
        let at_rest = self.disks.is_empty() && !self.copies.are_running();
        let idle = at_rest && self.controls.is_empty();
        self.idle_since = idle.then(|| self.idle_since.unwrap_or(now));
        match self.life {
            Life::Closing { unclean } if at_rest => Some(if unclean {
                Ending::Unclean
            } else {
                Ending::Clean
            }),
            Life::Leaving if self.controls.is_empty() => Some(Ending::Clean),
            Life::Serving => {
                let long = self
                    .idle_since
                    .is_some_and(|since| now.duration_since(since) > IDLE_MAX);
                if long {
                    tracing::info!("nothing to do for a minute");
                }
                long.then_some(Ending::Clean)
            }
            _ => None,
        }
    }

    fn answer(&mut self, to: &ReplyTo, result: Result<Reply, Error>) {
        match &result {
            Ok(_) => tracing::debug!(request_id = %to.request_id, "done"),
            Err(e) => {
                tracing::warn!(request_id = %to.request_id, kind = ?e.kind, error = %e, "failed")
            }
        }
        if let Some(control) = self.controls.get_mut(&to.control) {
            control.answer(to.id, result);
        }
    }
}

//! One open disk: its engine, its listeners and clients, and who waits for what.

use super::connection::Connection;
use super::engines::Engines;
use super::listener::Listener;
use super::reactor::{Key, Keys, Reactor, StreamEvent};
use super::vhost::Vhost;
use crate::engine::{self, Done, Engine, Finished, LiveOp, Relink, Request, Ticket};
use crate::frontend::{Answer, BlockRun, Buffers, Errno, Failure, Job, Slot, Work};
use crate::nbd::{Export, Tls};
use crate::slab::Slab;
use block::{Buffer, FileId};
use datapath::protocol::{
    Access, Cache, DiskSettings, DiskState, ErrorKind, Extent, LogState, Paused,
};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use units::DpId;

/// Clients of one disk; QEMU needs one, copies a few.
const CLIENTS_MAX: usize = 16;

/// How long a disk has nothing to do before it gives memory up.
const REST: Duration = Duration::from_secs(2);

/// Rounds of a vhost-user front end before others have their turn.
const ROUNDS_MAX: usize = 8;

/// Requests of one disk that are answered before others have their turn.
const FINISHED_MAX: usize = 1024;

/// Most runs asked of the engine for one block status.
const RUNS_MAX: u32 = 4096;

/// What makes a file itself, whatever descriptor it comes by: device, inode, device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileIdentity(u64, u64, u64);

impl FileIdentity {
    pub(super) fn of(file: impl AsFd) -> std::io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        Ok(Self(stat.st_dev, stat.st_ino, stat.st_rdev))
    }
}

/// A listener with its export.
#[derive(Debug)]
struct Served {
    key: Key,
    listener: Listener,
    export: String,
    tls: Option<Tls>,
}

/// What a ticket is for.
#[derive(Debug)]
enum Pending {
    /// A client's request.
    Client { client: Key, slot: Slot },
    /// An operation of the process, by its own number.
    Live(u64),
}

/// The end of a live operation.
#[derive(Debug)]
pub(super) struct LiveOutcome {
    pub(super) number: u64,
    pub(super) result: Result<(), engine::Error>,
}

/// One open disk.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) engine: Engines,
    /// The layers' files, leaf first.
    pub(super) identities: Vec<FileIdentity>,
    /// How its containers end.
    pub(super) extent: Extent,
    /// Upper bits of its tokens.
    pub(super) tag: u16,
    /// The log of changed blocks in use.
    pub(super) log: Option<(FileIdentity, FileId)>,
    served: Option<Served>,
    clients: BTreeMap<Key, Connection>,
    /// Its vhost-user side.
    pub(super) vhost: Vhost,
    /// By ticket; the engine gives each back once.
    pending: Slab<Pending>,
    /// The engine's pause as it was noticed.
    paused: Option<Paused>,
    /// What the leaf does.
    cache: Cache,
    /// Since when it has nothing to do and memory to give up.
    resting_since: Option<Instant>,
    /// Kept for its memory.
    jobs: Vec<Job>,
    vhost_jobs: Vec<(Ticket, Job)>,
}

impl Disk {
    pub(super) fn new(
        engine: Engine,
        identities: Vec<FileIdentity>,
        extent: Extent,
        tag: u16,
    ) -> Self {
        Self {
            engine: Engines::new(engine),
            identities,
            extent,
            tag,
            log: None,
            served: None,
            clients: BTreeMap::new(),
            vhost: Vhost::default(),
            pending: Slab::new(),
            paused: None,
            cache: Cache::default(),
            resting_since: None,
            jobs: Vec::new(),
            vhost_jobs: Vec::new(),
        }
    }

    pub(super) fn state(&self, disk: &DpId) -> DiskState {
        DiskState {
            disk: disk.clone(),
            layers: self.engine.layer_uuids(),
            virtual_bytes: self.engine.size_bytes(),
            access: self.engine.access(),
            serving: self.served.as_ref().map(|served| served.export.clone()),
            vhost_user: self.vhost.is_served(),
            poisoned: self.engine.poisoned().map(str::to_owned),
            stats: self.engine.stats(),
            settings: self.settings(),
            paused: self.paused.clone(),
            log: self.engine.log_state().map(|log| LogState {
                changed_bytes: log.changed_bytes,
                trusted: log.trusted && log.broken.is_none(),
                broken: log.broken.clone(),
            }),
            mirror: self.engine.mirror_state(),
        }
    }

    /// Whether requests are in flight.
    pub(super) fn has_requests(&self) -> bool {
        self.pending.len() > 0
    }

    /// How it behaves.
    fn settings(&self) -> DiskSettings {
        DiskSettings {
            limits: self.engine.limits(),
            write_through: self.engine.is_write_through(),
            policy: self.engine.policy(),
            cache: self.cache,
        }
    }

    /// Has the layers' files go through the page cache or not, as far as they can.
    pub(super) fn set_cache(&mut self, reactor: &mut Reactor, wanted: Cache) {
        for (depth, file) in self.engine.files().into_iter().enumerate() {
            let is = set_cache(reactor, file, wanted);
            if depth == 0 {
                self.cache = is;
            }
        }
    }

    /// How a new leaf's file is to be used, before it becomes the leaf.
    pub(super) fn set_cache_of_new_file(&mut self, reactor: &mut Reactor, file: FileId) {
        self.cache = set_cache(reactor, file, self.cache);
    }

    /// Makes it behave so; all of it or, after an error, none.
    pub(super) fn set_settings(&mut self, settings: DiskSettings) -> Result<(), engine::Error> {
        self.engine.set_limits(settings.limits)?;
        self.engine.set_write_through(settings.write_through);
        self.engine.set_policy(settings.policy);
        Ok(())
    }

    /// Takes note of the beginning and the end of a pause.
    pub(super) fn note_pause(&mut self, id: &DpId) {
        match (self.engine.paused(), &self.paused) {
            // An error of the storage may follow on want of space.
            (Some(paused), known)
                if known.as_ref().map(|known| &known.message) != Some(&paused.error.message) =>
            {
                tracing::error!(disk = %id, error = %paused.error, "paused");
                self.paused = Some(noted(paused));
            }
            (None, Some(_)) => {
                tracing::info!(disk = %id, "goes on after a pause");
                self.paused = None;
            }
            _ => {}
        }
    }

    /// The files of its layers and its log as the ring knows them.
    pub(super) fn files(&self) -> Vec<FileId> {
        let log = self.log.map(|(_, file)| file);
        let files = self.engine.files().into_iter();
        files.chain(self.engine.retiring()).chain(log).collect()
    }

    /// Serves on `listener`, in place of the one before, whose key is returned. Clients stay.
    pub(super) fn serve(
        &mut self,
        reactor: &mut Reactor,
        key: Key,
        listener: Listener,
        (export, tls): (String, Option<Tls>),
    ) -> Option<Key> {
        let old = self.served.as_ref().map(|served| served.key);
        old.into_iter().for_each(|key| reactor.forget(key));
        self.served = Some(Served {
            key,
            listener,
            export,
            tls,
        });
        old
    }

    /// No new clients; those connected are answered and closed. Returns the listeners' keys.
    pub(super) fn unserve(&mut self, reactor: &mut Reactor) -> Vec<Key> {
        for client in self.clients.values_mut() {
            client.end();
        }
        let mut keys = Vec::from_iter(self.vhost.unserve(reactor));
        if let Some(served) = self.served.take() {
            reactor.forget(served.key);
            keys.push(served.key);
        }
        keys
    }

    /// Whether a client is still connected.
    pub(super) fn has_clients(&self) -> bool {
        !self.clients.is_empty() || self.vhost.has_client()
    }

    /// Drops every client, answered or not; returns their keys.
    pub(super) fn drop_clients(&mut self, reactor: &mut Reactor) -> Vec<Key> {
        let mut keys = Vec::new();
        for (key, client) in std::mem::take(&mut self.clients) {
            client.close(reactor);
            keys.push(key);
        }
        keys.extend(self.vhost.drop_client(reactor));
        keys
    }

    /// Begins an operation on the whole disk; it ends as a [`LiveOutcome`].
    pub(super) fn start(&mut self, number: u64, op: LiveOp) {
        let ticket = self.ticket(Pending::Live(number));
        self.engine.start(ticket, op);
    }

    /// Begins to take a layer out; it ends as a [`LiveOutcome`].
    pub(super) fn start_relink(&mut self, number: u64, relink: Relink) {
        let ticket = self.ticket(Pending::Live(number));
        self.engine.relink(ticket, relink);
    }

    /// Tells clients that are connected about a new size.
    pub(super) fn fit_size(&mut self) {
        let size_bytes = self.engine.size_bytes();
        for client in self.clients.values_mut() {
            client.set_size(size_bytes);
        }
        self.vhost.set_size(size_bytes);
    }

    /// A client waits to be accepted.
    pub(super) fn ready(&mut self, key: Key, interest: super::reactor::Interest) {
        if self.vhost.ready(key, interest) {
            return;
        }
        if let Some(served) = self.served.as_mut().filter(|served| served.key == key) {
            served.listener.ready(interest);
        }
    }

    /// Something happened on a client's stream.
    pub(super) fn take_event(&mut self, key: Key, event: StreamEvent, reactor: &mut Reactor) {
        let Some(client) = self.clients.get_mut(&key) else {
            return;
        };
        let mut jobs = std::mem::take(&mut self.jobs);
        client.take_event(event, reactor, &mut self.engine, &mut jobs);
        for job in jobs.drain(..) {
            self.submit(key, job);
        }
        self.jobs = jobs;
    }

    /// Takes new clients; returns their keys.
    pub(super) fn accept(
        &mut self,
        reactor: &mut Reactor,
        now: Instant,
        keys: &mut Keys,
    ) -> Vec<Key> {
        let read_only = self.engine.access() == Access::ReadOnly;
        let size_bytes = self.engine.size_bytes();
        let mut fresh = self.vhost.accept(now, keys, (size_bytes, read_only));
        let Some(served) = &mut self.served else {
            return fresh;
        };
        while self.clients.len() < CLIENTS_MAX
            && let Some(socket) = served.listener.accept(now)
        {
            let export = Export {
                name: served.export.clone(),
                size_bytes,
                read_only,
                tls: served.tls.clone(),
            };
            let key = keys.next();
            match Connection::new(reactor, key, socket, export) {
                Ok(client) => {
                    self.clients.insert(key, client);
                    fresh.push(key);
                }
                Err(e) => tracing::warn!(error = %e, "a client was turned away"),
            }
        }
        fresh
    }

    /// Moves everything that can move. `true` when it stopped for the sake of others. Keys of
    /// clients that went are added to `gone`.
    pub(super) fn work(
        &mut self,
        reactor: &mut Reactor,
        now: Instant,
        outcomes: &mut Vec<LiveOutcome>,
        gone: &mut Vec<Key>,
    ) -> bool {
        let mut left = FINISHED_MAX;
        while left > 0
            && let Some(finished) = self.engine.next_finished()
        {
            self.finish(finished, outcomes);
            left -= 1;
        }
        while let Some(op) = self.engine.next_op() {
            reactor.submit(op);
        }
        self.rest(now);
        let mut any_gone = false;
        for client in self.clients.values_mut() {
            if client.is_overdue(now) {
                client.cut_off();
            }
            any_gone |= client.is_finished();
        }
        if any_gone {
            let finished = self
                .clients
                .extract_if(.., |_, client| client.is_finished());
            for (key, client) in finished {
                client.close(reactor);
                gone.push(key);
            }
        }
        // Whoever waits to be accepted may have their place.
        any_gone | (left == 0) | self.work_vhost(reactor, now, outcomes, gone)
    }

    /// Gives memory up some time after the last request.
    fn rest(&mut self, now: Instant) {
        if self.engine.in_flight() > 0 || !self.engine.has_spare_memory() {
            self.resting_since = None;
        } else if now.duration_since(*self.resting_since.get_or_insert(now)) > REST {
            self.engine.give_up_spare_memory();
            self.resting_since = None;
        }
    }

    /// Serves the vhost-user front end; returns as [`Disk::work`] does.
    fn work_vhost(
        &mut self,
        reactor: &mut Reactor,
        now: Instant,
        outcomes: &mut Vec<LiveOutcome>,
        gone: &mut Vec<Key>,
    ) -> bool {
        if !self.vhost.has_client() {
            return false;
        }
        let mut any = false;
        let mut jobs = std::mem::take(&mut self.vhost_jobs);
        for _ in 0..ROUNDS_MAX {
            let over = self.vhost.take(&mut self.engine, &mut jobs);
            self.engine.set_settling(self.vhost.is_survivable());
            let more = !jobs.is_empty();
            for (ticket, job) in jobs.drain(..) {
                self.engine.submit(ticket, request(job.work));
            }
            while let Some(finished) = self.engine.next_finished() {
                self.finish(finished, outcomes);
            }
            if self.engine.paused().is_some() {
                self.vhost.disk_is_paused();
            }
            self.vhost.publish();
            if over {
                gone.extend(self.vhost.drop_client(reactor));
                self.engine.set_settling(false);
                any = true;
            }
            any |= more;
            if !more {
                break;
            }
        }
        self.vhost_jobs = jobs;
        while let Some(op) = self.engine.next_op() {
            reactor.submit(op);
        }
        if any {
            self.vhost.busy();
        }
        any || self.vhost.rest(now)
    }

    /// Sends what there is to say to clients. The last thing before a wait.
    pub(super) fn send(&mut self, reactor: &mut Reactor) {
        for client in self.clients.values_mut() {
            client.send(reactor);
        }
    }

    /// Says what the disk waits for, and when it must be looked at without an event.
    pub(super) fn watch(&mut self, reactor: &mut Reactor) -> std::io::Result<bool> {
        let mut by_clock = self.vhost.watch(reactor)? | self.resting_since.is_some();
        by_clock |= self.clients.values().any(|client| !client.is_greeted());
        if let Some(served) = &self.served
            && self.clients.len() < CLIENTS_MAX
        {
            by_clock |= served.listener.paused_until().is_some();
            reactor.watch(served.key, &served.listener, served.listener.interest())?;
        }
        Ok(by_clock)
    }

    fn ticket(&mut self, pending: Pending) -> Ticket {
        Ticket(self.pending.insert(pending).into())
    }

    fn submit(&mut self, client: Key, Job { slot, work }: Job) {
        if let Work::WriteZeroes {
            offset,
            fast_bytes,
            no_hole,
            ..
        } = work
            && fast_bytes > 0
            && !self.engine.zeroes_are_fast(offset, fast_bytes, !no_hole)
        {
            if let Some(client) = self.clients.get_mut(&client) {
                client.answer(slot, Answer::Failed(not_fast()));
            }
            return;
        }
        let ticket = self.ticket(Pending::Client { client, slot });
        self.engine.submit(ticket, request(work));
    }

    fn finish(&mut self, finished: Finished, outcomes: &mut Vec<LiveOutcome>) {
        if Vhost::is_ticket(finished.ticket) {
            let answer = answer(finished.result);
            return self.vhost.answer(finished.ticket, answer, &mut self.engine);
        }
        let index = u32::try_from(finished.ticket.0).unwrap_or(u32::MAX);
        match self.pending.remove(index) {
            Some(Pending::Client { client, slot }) => {
                let answer = answer(finished.result);
                match (self.clients.get_mut(&client), answer) {
                    (Some(connection), answer) => {
                        if let Some(job) = connection.answer(slot, answer) {
                            self.submit(client, job);
                        }
                    }
                    (None, Answer::Data(buffer)) => self.engine.give_buffer(buffer),
                    (None, _) => {}
                }
            }
            Some(Pending::Live(number)) => {
                let result = finished.result.map(drop);
                outcomes.push(LiveOutcome { number, result });
            }
            None => {}
        }
    }
}

impl Buffers for Engines {
    fn take(&mut self, len: usize) -> Buffer {
        self.take_buffer(len)
    }

    fn give(&mut self, buffer: Buffer) {
        self.give_buffer(buffer);
    }
}

/// Has a file go through the page cache or not; returns what it does.
fn set_cache(reactor: &mut Reactor, file: FileId, wanted: Cache) -> Cache {
    let Err(why) = reactor.set_direct(file, wanted == Cache::Direct) else {
        return wanted;
    };
    tracing::warn!(why, ?wanted, "a file goes through the page cache");
    Cache::PageCache
}

/// A pause that has just begun, as the protocol has it.
fn noted(paused: &engine::Paused) -> Paused {
    let kind = match paused.error.kind {
        engine::ErrorKind::NoSpace => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    };
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since_ms = since.unwrap_or_default().as_millis();
    Paused {
        kind,
        message: paused.error.message.clone(),
        since_unix_ms: u64::try_from(since_ms).unwrap_or(u64::MAX),
    }
}

fn not_fast() -> Failure {
    Failure {
        errno: Errno::NotSupported,
        message: "zeroes would have to be written".to_owned(),
    }
}

/// What a client wants done, in the engine's words.
fn request(work: Work) -> Request {
    match work {
        Work::Read { offset, length } => Request::Read {
            offset,
            len_bytes: length,
        },
        Work::Write { offset, data, fua } => Request::Write { offset, data, fua },
        Work::Flush => Request::Flush,
        Work::Trim {
            offset,
            length,
            fua,
        } => Request::Trim {
            offset,
            len_bytes: length,
            fua,
        },
        Work::WriteZeroes {
            offset,
            length,
            fua,
            no_hole,
            ..
        } => Request::WriteZeroes {
            offset,
            len_bytes: length,
            may_trim: !no_hole,
            fua,
        },
        Work::BlockStatus {
            offset,
            length,
            one,
        } => Request::BlockStatus {
            offset,
            len_bytes: length,
            extents_max: if one { 1 } else { RUNS_MAX },
        },
    }
}

/// The engine's word for what happened, in the server's.
fn answer(result: Result<Done, engine::Error>) -> Answer {
    match result {
        Ok(Done::Ok) => Answer::Done,
        Ok(Done::Data(buffer)) => Answer::Data(buffer),
        Ok(Done::Extents(extents)) => Answer::Status(
            extents
                .iter()
                .map(|extent| {
                    let zero = extent.state == engine::ExtentState::Zero;
                    BlockRun {
                        length_bytes: extent.len_bytes,
                        hole: zero,
                        zero,
                    }
                })
                .collect(),
        ),
        Err(error) => {
            use engine::ErrorKind as Kind;
            let errno = match error.kind {
                Kind::Invalid | Kind::OutOfRange => Errno::Invalid,
                Kind::ReadOnly => Errno::Permission,
                Kind::NoSpace => Errno::NoSpace,
                Kind::Closed => Errno::Shutdown,
                Kind::Busy => Errno::NoMemory,
                Kind::Unsupported => Errno::NotSupported,
                _ => Errno::Io,
            };
            Answer::Failed(Failure {
                errno,
                message: error.message,
            })
        }
    }
}

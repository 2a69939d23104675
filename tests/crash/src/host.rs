//! One simulated disk under several engines, as one process has them.

use crate::flaw::{Carrier, Flaw};
use block::{Action, Completion, Fault, FileId, Op, SimDisk, Token};
use datapath::Access;
use datapath::protocol::Format;
use std::collections::BTreeMap;
use tapdisk::copy::{Job, Mirror, Plan, Progress};
use tapdisk::engine::testing::rig::load_chain;
use tapdisk::engine::{Config, Done, Engine, Error, Finished, LiveOp, Relink, Request, Ticket};

/// A chain, leaf first.
pub(crate) type Files<'a> = &'a [(FileId, Format)];

/// Bits of a token below an engine's tag.
const TOKEN_BITS: u32 = 48;

/// The tag of what the owner of the tree does to files itself.
const OWNER: u16 = u16::MAX;

/// A disk in use.
#[derive(Debug)]
struct Served {
    engine: Engine,
    mirror: Option<Mirror>,
}

/// The disk below, and the disks in use on it by their numbers.
#[derive(Debug)]
pub(crate) struct Host {
    carrier: Carrier,
    served: BTreeMap<u16, Served>,
    job: Option<Job>,
    finished: Vec<Finished>,
    /// What became of the owner's own operation.
    own: Option<Result<(), block::Error>>,
    scratch: Vec<Completion>,
    last_ticket: u64,
    last_tag: u16,
    in_flight: u64,
    now_us: u64,
}

impl Host {
    pub(crate) fn new(disk: SimDisk, flaw: Option<Flaw>) -> Self {
        Self {
            carrier: Carrier::new(disk, flaw),
            served: BTreeMap::new(),
            job: None,
            finished: Vec::new(),
            own: None,
            scratch: Vec::new(),
            last_ticket: 0,
            last_tag: 0,
            in_flight: 0,
            now_us: 0,
        }
    }

    pub(crate) fn io(&self) -> &SimDisk {
        self.carrier.disk()
    }

    pub(crate) fn io_mut(&mut self) -> &mut SimDisk {
        self.carrier.disk_mut()
    }

    fn engine_on(&mut self, files: Files<'_>, access: Access, write_through: bool) -> Engine {
        self.last_tag += 1;
        let config = Config {
            tag: self.last_tag,
            access,
            write_through,
        };
        let layers = load_chain(self.io(), files, access).expect("the images open");
        Engine::open(config, layers).expect("the chain opens")
    }

    /// Opens a disk for writing.
    pub(crate) fn open(&mut self, disk: u16, files: Files<'_>, write_through: bool) {
        let engine = self.engine_on(files, Access::ReadWrite, write_through);
        let mirror = None;
        self.served.insert(disk, Served { engine, mirror });
    }

    /// From now on every change is durable when it is answered.
    pub(crate) fn write_through(&mut self) {
        for served in self.served.values_mut() {
            served.engine.set_write_through(true);
        }
    }

    /// From now on, or never again, operations fail.
    pub(crate) fn set_fault(&mut self, fault: Option<Fault>) {
        self.carrier.set_fault(fault);
    }

    /// How many operations failed since.
    pub(crate) fn struck(&self) -> u64 {
        self.carrier.struck()
    }

    pub(crate) fn is_poisoned(&self, disk: u16) -> bool {
        let served = self.served.get(&disk);
        served.is_some_and(|served| served.engine.poisoned().is_some())
    }

    pub(crate) fn is_closed(&self, disk: u16) -> bool {
        let served = self.served.get(&disk);
        served.is_some_and(|served| served.engine.is_closed())
    }

    /// Drops a closed disk.
    pub(crate) fn drop_engine(&mut self, disk: u16) {
        self.served.remove(&disk);
    }

    pub(crate) fn size_bytes(&self, disk: u16) -> u64 {
        let served = self.served.get(&disk);
        served.map_or(0, |served| served.engine.size_bytes())
    }

    fn ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        self.in_flight += 1;
        Ticket(self.last_ticket)
    }

    pub(crate) fn submit(&mut self, disk: u16, request: Request) -> Ticket {
        let ticket = self.ticket();
        if let Some(Served { engine, mirror }) = self.served.get_mut(&disk) {
            match mirror {
                Some(mirror) => mirror.submit(engine, ticket, request),
                None => engine.submit(ticket, request),
            }
        }
        ticket
    }

    pub(crate) fn start(&mut self, disk: u16, op: LiveOp) -> Ticket {
        let ticket = self.ticket();
        self.carrier.switching = matches!(op, LiveOp::SnapshotSwitch(_));
        if let Some(served) = self.served.get_mut(&disk) {
            served.engine.start(ticket, op);
        }
        ticket
    }

    pub(crate) fn relink(&mut self, disk: u16, relink: Relink) -> Ticket {
        let ticket = self.ticket();
        if let Some(served) = self.served.get_mut(&disk) {
            served.engine.relink(ticket, relink);
        }
        ticket
    }

    /// Begins to mirror a disk to this chain.
    pub(crate) fn mirror(&mut self, disk: u16, target: Files<'_>, plan: Plan) {
        let file = target.first().map(|(file, _)| *file);
        self.carrier.set_target(file);
        let target = self.engine_on(target, Access::ReadWrite, false);
        if let Some(served) = self.served.get_mut(&disk) {
            let mirror = Mirror::new(&mut served.engine, target, plan, true);
            served.mirror = Some(mirror.expect("the mirror begins"));
        }
    }

    /// A disk's mirror and its engine.
    pub(crate) fn mirror_of(&mut self, disk: u16) -> Option<(&mut Mirror, &mut Engine)> {
        let Served { engine, mirror } = self.served.get_mut(&disk)?;
        Some((mirror.as_mut()?, engine))
    }

    /// Drops a mirror that is over.
    pub(crate) fn end_mirror(&mut self, disk: u16) {
        self.carrier.set_target(None);
        if let Some(served) = self.served.get_mut(&disk) {
            served.mirror = None;
        }
    }

    /// Begins to copy one chain into another.
    pub(crate) fn copy(&mut self, source: Files<'_>, target: Files<'_>, plan: Plan) {
        let source = self.engine_on(source, Access::ReadOnly, false);
        let target = self.engine_on(target, Access::ReadWrite, false);
        self.job = Some(Job::new(source, target, plan).expect("the copy begins"));
    }

    /// Whether a copy is under way.
    pub(crate) fn is_copying(&self) -> bool {
        self.job.is_some()
    }

    /// How the copy ended, once.
    pub(crate) fn take_job(&mut self) -> Option<Progress> {
        let over = self.job.take_if(|job| job.is_over());
        over.map(|job| job.progress())
    }

    /// Whether some disk still reads from a file that left its chain.
    pub(crate) fn is_read(&self, file: FileId) -> bool {
        let mut all = self
            .served
            .values()
            .flat_map(|served| served.engine.retiring());
        all.any(|retiring| retiring == file)
    }

    /// Something the owner does to a file itself; one at a time.
    pub(crate) fn own(&mut self, file: FileId, action: Action) {
        let token = Token::from(OWNER) << TOKEN_BITS;
        self.own = None;
        self.carrier.submit(Op {
            token,
            file,
            action,
        });
    }

    /// How the owner's operation ended, once.
    pub(crate) fn take_own(&mut self) -> Option<Result<(), block::Error>> {
        self.own.take()
    }

    /// One turn of the loop; whether anything is under way.
    pub(crate) fn step(&mut self) -> bool {
        let more = self.work();
        self.hand_over();
        let mut done = std::mem::take(&mut self.scratch);
        self.carrier.poll(&mut done).expect("the carrier");
        for completion in done.drain(..) {
            self.complete(completion);
        }
        self.scratch = done;
        let again = self.work();
        self.hand_over();
        more || again || self.carrier.in_flight() > 0
    }

    fn complete(&mut self, completion: Completion) {
        let tag = (completion.token >> TOKEN_BITS) as u16;
        if tag == OWNER {
            self.own = Some(completion.result);
            return;
        }
        for Served { engine, mirror } in self.served.values_mut() {
            if engine.tag() == tag {
                return engine.complete(completion);
            }
            if let Some(mirror) = mirror.as_mut().filter(|m| m.other_tag() == tag) {
                return mirror.complete(completion);
            }
        }
        if let Some(job) = &mut self.job {
            job.complete(tag, completion);
        }
    }

    /// Lets copies go on and takes what finished; whether one stopped for the sake of others.
    fn work(&mut self) -> bool {
        self.now_us += 1000;
        let busy = self.in_flight > 0;
        let mut more = false;
        for Served { engine, mirror } in self.served.values_mut() {
            let before = self.finished.len();
            if let Some(mirror) = mirror {
                more |= mirror.work(engine, self.now_us, busy) && !mirror.is_over();
                let finished = std::iter::from_fn(|| mirror.next_finished(engine));
                self.finished.extend(finished);
            } else {
                let finished = std::iter::from_fn(|| engine.next_finished());
                self.finished.extend(finished);
            }
            let count = self.finished.len().saturating_sub(before) as u64;
            self.in_flight = self.in_flight.saturating_sub(count);
            while engine.take_retired().is_some() {}
        }
        if let Some(job) = &mut self.job {
            more |= job.work(self.now_us, busy) && !job.is_over();
        }
        more
    }

    fn hand_over(&mut self) {
        let Self {
            carrier,
            served,
            job,
            ..
        } = self;
        for Served { engine, mirror } in served.values_mut() {
            while let Some(op) = engine.next_op() {
                carrier.submit(op);
            }
            while let Some(op) = mirror.as_mut().and_then(Mirror::next_op) {
                carrier.submit(op);
            }
        }
        while let Some(op) = job.as_mut().and_then(Job::next_op) {
            carrier.submit(op);
        }
    }

    /// The answer to a request, once.
    pub(crate) fn take(&mut self, ticket: Ticket) -> Option<Result<Done, Error>> {
        let index = self
            .finished
            .iter()
            .position(|finished| finished.ticket == ticket)?;
        let finished = self.finished.swap_remove(index);
        Some(finished.result)
    }
}

//! A disk with its mirror, or a copy without a guest, on one disk in memory: what tests drive one
//! turn at a time. Only with the feature `testing`.

use super::{Job, Mirror, Plan, Progress};
use crate::engine::testing::rig::{Peek, load_chain};
use crate::engine::{Config, Done, Engine, Error, Finished, LiveOp, Relink, Request, Ticket};
use block::{BlockIo, Completion, FileId, Wait};
use datapath::protocol::{Access, Format};

/// Tag of the disk's engine; targets and jobs have the ones after it.
pub const TAG: u16 = 3;

/// Bits of a token below an engine's tag.
const TOKEN_BITS: u32 = 48;

/// Turns after which a test gives up: nothing is that long.
const TURNS_MAX: usize = 200_000;

/// A chain, leaf first.
pub type Files<'a> = &'a [(FileId, Format)];

/// Opens an engine on files of a disk in memory.
///
/// # Panics
/// When the chain does not open.
pub fn open(io: &impl Peek, files: Files<'_>, access: Access, tag: u16) -> Engine {
    let layers = load_chain(io, files, access).expect("the images open");
    let config = Config {
        tag,
        access,
        write_through: false,
    };
    Engine::open(config, layers).expect("the chain opens")
}

/// A disk in use with its mirror and with a job beside it, on one disk in memory.
#[derive(Debug)]
pub struct Pair<I> {
    /// The disk.
    pub io: I,
    /// The engine of the guest.
    pub engine: Engine,
    /// Its mirror.
    pub mirror: Option<Mirror>,
    /// A copy beside it.
    pub job: Option<Job>,
    /// Finished and not yet asked for.
    pub finished: Vec<Finished>,
    now_us: u64,
    next_tag: u16,
    scratch: Vec<Completion>,
    last_ticket: u64,
    in_flight: u64,
}

impl<I: Peek> Pair<I> {
    /// Opens a disk.
    pub fn open(io: I, files: Files<'_>, access: Access) -> Self {
        let engine = open(&io, files, access, TAG);
        Self {
            io,
            engine,
            mirror: None,
            job: None,
            finished: Vec::new(),
            now_us: 0,
            next_tag: TAG + 1,
            scratch: Vec::new(),
            last_ticket: 0,
            in_flight: 0,
        }
    }

    fn tag(&mut self) -> u16 {
        self.next_tag += 1;
        self.next_tag - 1
    }

    /// Begins to mirror the disk to this chain.
    ///
    /// # Errors
    /// Those of [`Mirror::new`].
    pub fn mirror(&mut self, target: Files<'_>, plan: Plan) -> Result<(), Error> {
        let tag = self.tag();
        let target = open(&self.io, target, Access::ReadWrite, tag);
        self.mirror = Some(Mirror::new(&mut self.engine, target, plan, true)?);
        Ok(())
    }

    /// Begins to copy from one chain to another.
    ///
    /// # Errors
    /// Those of [`Job::new`].
    pub fn copy(&mut self, source: Files<'_>, target: Files<'_>, plan: Plan) -> Result<(), Error> {
        let (from, to) = (self.tag(), self.tag());
        let source = open(&self.io, source, Access::ReadOnly, from);
        let target = open(&self.io, target, Access::ReadWrite, to);
        self.job = Some(Job::new(source, target, plan)?);
        Ok(())
    }
}

impl<I: BlockIo> Pair<I> {
    fn ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        self.in_flight += 1;
        Ticket(self.last_ticket)
    }

    /// Hands over a request of the guest.
    pub fn submit(&mut self, request: Request) -> Ticket {
        let ticket = self.ticket();
        match &mut self.mirror {
            Some(mirror) => mirror.submit(&mut self.engine, ticket, request),
            None => self.engine.submit(ticket, request),
        }
        ticket
    }

    /// Hands over a live operation.
    pub fn start(&mut self, op: LiveOp) -> Ticket {
        let ticket = self.ticket();
        self.engine.start(ticket, op);
        ticket
    }

    /// Hands over a relink.
    pub fn relink(&mut self, relink: Relink) -> Ticket {
        let ticket = self.ticket();
        self.engine.relink(ticket, relink);
        ticket
    }

    /// Lets the copies go on and takes what finished; whether one stopped for the sake of others.
    fn work(&mut self) -> bool {
        self.now_us += 1000;
        let busy = self.in_flight > 0;
        let mut more = false;
        if let Some(mirror) = &mut self.mirror {
            more |= mirror.work(&mut self.engine, self.now_us, busy);
            while let Some(finished) = mirror.next_finished(&mut self.engine) {
                self.finished.push(finished);
                self.in_flight = self.in_flight.saturating_sub(1);
            }
            if mirror.is_over() {
                // What nobody asked for yet stays to be asked for in `progress`.
                more = false;
            }
        } else {
            while let Some(finished) = self.engine.next_finished() {
                self.finished.push(finished);
                self.in_flight = self.in_flight.saturating_sub(1);
            }
        }
        if let Some(job) = &mut self.job {
            more |= job.work(self.now_us, busy);
        }
        more
    }

    fn hand_over(&mut self) {
        while let Some(op) = self.engine.next_op() {
            self.io.submit(op);
        }
        if let Some(mirror) = &mut self.mirror {
            while let Some(op) = mirror.next_op() {
                self.io.submit(op);
            }
        }
        if let Some(job) = &mut self.job {
            while let Some(op) = job.next_op() {
                self.io.submit(op);
            }
        }
    }

    /// One turn of the loop; whether anything is left to be done.
    pub fn step(&mut self) -> bool {
        let more = self.work();
        self.hand_over();
        let mut done = std::mem::take(&mut self.scratch);
        self.io.poll(Wait::Forever, &mut done).expect("the carrier");
        for completion in done.drain(..) {
            let tag = (completion.token >> TOKEN_BITS) as u16;
            if tag == self.engine.tag() {
                self.engine.complete(completion);
            } else if let Some(mirror) = self.mirror.as_mut().filter(|m| m.other_tag() == tag) {
                mirror.complete(completion);
            } else if let Some(job) = &mut self.job {
                job.complete(tag, completion);
            }
        }
        self.scratch = done;
        let again = self.work();
        self.hand_over();
        more || again || self.io.in_flight() > 0
    }

    /// Turns until nothing is under way.
    ///
    /// # Panics
    /// When that does not happen.
    pub fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            if !self.step() {
                return;
            }
        }
        panic!("it never ends: {:?}", self.mirror);
    }

    /// Turns until something holds.
    ///
    /// # Panics
    /// When it does not come to hold.
    pub fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        for _ in 0..TURNS_MAX {
            if holds(self) {
                return;
            }
            self.step();
        }
        panic!("it never holds: {:?}", self.progress());
    }

    /// The answer to a request, once.
    pub fn take(&mut self, ticket: Ticket) -> Option<Result<Done, Error>> {
        let index = self.finished.iter().position(|f| f.ticket == ticket)?;
        Some(self.finished.remove(index).result)
    }

    /// One request, from its beginning to its end.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn run(&mut self, request: Request) -> Result<Done, Error> {
        let ticket = self.submit(request);
        self.wait(ticket)
    }

    /// Turns until the request is finished.
    ///
    /// # Errors
    /// Those of the engine.
    ///
    /// # Panics
    /// When it does not finish.
    pub fn wait(&mut self, ticket: Ticket) -> Result<Done, Error> {
        for _ in 0..TURNS_MAX {
            if let Some(result) = self.take(ticket) {
                return result;
            }
            self.step();
        }
        panic!("{ticket:?} does not finish");
    }

    /// How far the mirror, or else the job, is.
    pub fn progress(&self) -> Progress {
        let of_job = || self.job.as_ref().map(Job::progress);
        let of_mirror = self.mirror.as_ref().map(Mirror::progress);
        of_mirror.or_else(of_job).unwrap_or_default()
    }

    /// Turns until the mirror is in sync, and prepares it for the switch.
    ///
    /// # Errors
    /// Why it never will be.
    pub fn sync(&mut self) -> Result<(), Error> {
        self.until(|pair| {
            let progress = pair.progress();
            progress.in_sync || progress.failed.is_some()
        });
        match &mut self.mirror {
            Some(mirror) => mirror.prepare(),
            None => Ok(()),
        }
    }

    /// Switches to the target; the mirror is gone then.
    ///
    /// # Errors
    /// Why it is not switched; the mirror is still there.
    pub fn switch(&mut self, verify: bool) -> Result<(), Error> {
        if let Some(mirror) = &mut self.mirror {
            mirror.switch(&mut self.engine, verify)?;
        }
        loop {
            let switched = self.mirror.as_mut().and_then(Mirror::take_switched);
            match switched {
                Some(Ok(())) => break,
                Some(Err(e)) => return Err(e),
                None => {
                    self.step();
                }
            }
        }
        self.end_mirror();
        Ok(())
    }

    /// Stops the mirror.
    pub fn stop(&mut self) {
        if let Some(mirror) = &mut self.mirror {
            mirror.stop(&mut self.engine);
        }
        self.end_mirror();
    }

    fn end_mirror(&mut self) {
        self.until(|pair| pair.mirror.as_ref().is_none_or(Mirror::is_over));
        self.mirror = None;
    }

    /// Reads; at most [`crate::engine::REQUEST_BYTES_MAX`].
    ///
    /// # Errors
    /// Those of the engine.
    ///
    /// # Panics
    /// When a read ends with something else.
    pub fn read(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
        let len_bytes = u32::try_from(len).expect("a short read");
        match self.run(Request::Read { offset, len_bytes })? {
            Done::Data(buffer) => Ok(buffer.as_slice().to_vec()),
            other => panic!("a read finished with {other:?}"),
        }
    }

    /// Closes the disk, which must work, and gives back what it stood on.
    ///
    /// # Panics
    /// When it does not close.
    pub fn close(mut self) -> I {
        let ticket = self.start(LiveOp::Close);
        self.wait(ticket).expect("the disk closes");
        self.io
    }
}

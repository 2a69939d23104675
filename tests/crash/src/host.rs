//! One simulated disk under several engines, as one process has them.

use crate::flaw::{Carrier, Flaw};
use block::{Action, Completion, FileId, Op, SimDisk, Token};
use datapath::Access;
use std::collections::BTreeMap;
use tapdisk::engine::{Config, Done, Engine, Error, Finished, LayerSpec, LiveOp, Request, Ticket};

/// Bits of a token below an engine's tag.
const TOKEN_BITS: u32 = 48;

/// The tag of what the owner of the tree does to files itself.
const OWNER: u16 = u16::MAX;

/// The disk, and the engines on it by their tags.
#[derive(Debug)]
pub(crate) struct Host {
    carrier: Carrier,
    engines: BTreeMap<u16, Engine>,
    finished: Vec<Finished>,
    /// What became of the owner's own operation.
    own: Option<Result<(), block::Error>>,
    scratch: Vec<Completion>,
    last_ticket: u64,
}

impl Host {
    pub(crate) fn new(disk: SimDisk, flaw: Option<Flaw>) -> Self {
        Self {
            carrier: Carrier::new(disk, flaw),
            engines: BTreeMap::new(),
            finished: Vec::new(),
            own: None,
            scratch: Vec::new(),
            last_ticket: 0,
        }
    }

    pub(crate) fn io(&self) -> &SimDisk {
        &self.carrier.disk
    }

    pub(crate) fn io_mut(&mut self) -> &mut SimDisk {
        &mut self.carrier.disk
    }

    pub(crate) fn open(
        &mut self,
        tag: u16,
        layers: Vec<LayerSpec>,
        write_through: bool,
    ) -> Result<(), Error> {
        let config = Config {
            tag,
            access: Access::ReadWrite,
            write_through,
        };
        self.engines.insert(tag, Engine::open(config, layers)?);
        Ok(())
    }

    /// From now on every change is durable when it is answered.
    pub(crate) fn write_through(&mut self) {
        for engine in self.engines.values_mut() {
            engine.set_write_through(true);
        }
    }

    /// Drops a closed engine.
    pub(crate) fn drop_engine(&mut self, tag: u16) {
        self.engines.remove(&tag);
    }

    pub(crate) fn engine(&self, tag: u16) -> Option<&Engine> {
        self.engines.get(&tag)
    }

    fn ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        Ticket(self.last_ticket)
    }

    pub(crate) fn submit(&mut self, tag: u16, request: Request) -> Ticket {
        let ticket = self.ticket();
        if let Some(engine) = self.engines.get_mut(&tag) {
            engine.submit(ticket, request);
        }
        ticket
    }

    pub(crate) fn start(&mut self, tag: u16, op: LiveOp) -> Ticket {
        let ticket = self.ticket();
        self.carrier.switching = matches!(op, LiveOp::SnapshotSwitch(_));
        if let Some(engine) = self.engines.get_mut(&tag) {
            engine.start(ticket, op);
        }
        ticket
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

    /// One turn of the loop; whether operations are under way.
    pub(crate) fn step(&mut self) -> bool {
        self.hand_over();
        let mut done = std::mem::take(&mut self.scratch);
        self.carrier.poll(&mut done).expect("the carrier");
        for completion in done.drain(..) {
            let tag = (completion.token >> TOKEN_BITS) as u16;
            if tag == OWNER {
                self.own = Some(completion.result);
            } else if let Some(engine) = self.engines.get_mut(&tag) {
                engine.complete(completion);
            }
        }
        self.scratch = done;
        self.hand_over();
        for engine in self.engines.values_mut() {
            self.finished
                .extend(std::iter::from_fn(|| engine.next_finished()));
        }
        self.carrier.in_flight() > 0
    }

    fn hand_over(&mut self) {
        for engine in self.engines.values_mut() {
            while let Some(op) = engine.next_op() {
                self.carrier.submit(op);
            }
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

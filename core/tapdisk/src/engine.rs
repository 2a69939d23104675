//! The request engine of one open disk: a chain of images under one flat map, driven by completions.
//!
//! It does no I/O itself. Requests go in with [`Engine::submit`] (or [`Engine::start`] for the disk as a whole), operations on files come out of
//! [`Engine::next_op`], their completions go back in with [`Engine::complete`], and finished
//! requests come out of [`Engine::next_finished`]. Whoever holds an engine owns the loop; one ring
//! can carry many engines, told apart by the upper 16 bits of the token ([`Config::tag`]).
//!
//! ```text
//!  submit ──> request ──> parts (one per 2 MiB block) ──> operations ──> completions ──> finished
//!                           │        ^
//!                           └─ wait ─┘  for a bitmap, for room at the end of the file
//! ```
//!
//! # What an answer promises
//! A write is answered when its data is in the file (with [`Config::write_through`] when it is
//! durable). Bitmaps and BAT stay in memory until a flush,
//! which takes two barriers however much is dirty (see `flush.rs`). What the disk holds after a
//! crash at any point is for each sector a value that was current at or after the last answered
//! flush, never a third value and never what lies in the file from before. After a failed
//! `fdatasync` the disk is *poisoned*: reads go on, everything else fails, nothing is tried again.
//!
//! # Order
//! Overlapping changes happen in the order they were submitted. A read that overlaps a change in
//! flight gets the old or the new content of each sector.
//!
//! Not here: sockets, protocols, opening files, deciding what to do about an error.

mod cache;
mod cbt;
mod flush;
mod intake;
mod layer;
mod limits;
mod live;
mod load;
mod map;
mod owners;
mod pause;
mod read;
mod relink;
mod request;
mod reserve;
mod scope;
mod sealed;
mod settle;
mod state;
mod stats;
mod status;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod write;
mod zero;

pub use cbt::{LogSpec, LogState};
pub use layer::{LayerImage, LayerSpec};
pub use pause::Paused;
pub use relink::Relink;
pub use request::{
    Done, Error, ErrorKind, Extent, ExtentState, Finished, LiveOp, Request, Scope, Ticket,
};
pub use scope::BLOCK_BYTES;

use crate::slab::Slab;
use block::{BlockIo, Buffer, BufferPool, Completion, Op, Wait};
use datapath::protocol::Access;
use layer::Layer;
use load::Loading;
use map::{Map, Piece};
use state::{Active, Context, Held};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use uuid::Uuid;

/// Longest read or write in bytes. NBD clients keep to 32 MiB by convention.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;

/// Most requests in flight and held back; one more is answered with [`ErrorKind::Busy`].
pub const REQUESTS_MAX: usize = 4096;

/// Longest chain.
pub const LAYERS_MAX: usize = 1024;

/// Idle buffers kept per disk that has nothing to do for a while.
const POOL_BYTES_IDLE: usize = 512 << 10;

/// Idle buffers kept per disk: four or more requests of the largest size that is kept, which would
/// otherwise be zeroed each time they are allocated.
const POOL_BYTES_MAX: usize = 8 << 20;

/// How an engine is set up.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Upper 16 bits of the tokens of all operations, so that completions find their engine.
    pub tag: u16,
    /// Whether the leaf takes writes.
    pub access: Access,
    /// Whether a change is answered only when it is durable, for front ends without flush.
    pub write_through: bool,
}

/// One open disk.
pub struct Engine {
    config: Config,
    map: Map,
    requests: Slab<Active>,
    contexts: Slab<Context>,
    outbox: VecDeque<Op>,
    finished: VecDeque<Finished>,
    pool: BufferPool,
    /// Changes whose data may be in flight: request, first sector, end sector.
    changing: Vec<(u32, u64, u64)>,
    /// Changes that wait because they overlap an earlier one.
    ordered: VecDeque<u32>,
    /// Waiting changes are being started.
    releasing: bool,
    loading: HashMap<u32, Loading>,
    room: reserve::Room,
    flush: flush::Flush,
    live: Option<live::Live>,
    relinking: Option<relink::Relinking>,
    /// Files of layers that have left the chain.
    retired: Vec<relink::Retired>,
    frozen: bool,
    closed: bool,
    /// See `settle.rs`.
    settling: bool,
    /// The leaf was changed since it was opened.
    touched: bool,
    held: VecDeque<Held>,
    poisoned: Option<String>,
    stats: stats::Stats,
    throttle: limits::Throttle,
    pause: pause::Pause,
    log: Option<Box<cbt::Log>>,
    /// The log that a snapshot switch hands over to.
    staged_log: Option<Box<cbt::Log>>,
    /// Scratch of `resolve`, kept for its memory.
    pieces: Vec<Piece>,
    zeros: Option<block::SharedBuffer>,
}

impl fmt::Debug for Engine {
    /// The outside view: never bytes of the disk.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("layers", &self.layer_uuids())
            .field("size_bytes", &self.size_bytes())
            .field("requests", &self.requests.len())
            .field("held", &self.held.len())
            .field("operations", &self.contexts.len())
            .field("frozen", &self.frozen)
            .field("poisoned", &self.poisoned)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens a chain, given leaf first.
    ///
    /// # Errors
    /// `Chain` when the layers do not fit together, `Unsupported` for an image this engine cannot
    /// serve or write, `Invalid` for a size that is not a multiple of 512.
    pub fn open(config: Config, layers: Vec<LayerSpec>) -> Result<Self, Error> {
        let layers = layer::check_chain(layers, config.access)?;
        let map = Map::new(layers);
        let room = reserve::Room::of(map.leaf());
        Ok(Self {
            config,
            map,
            requests: Slab::new(),
            contexts: Slab::new(),
            outbox: VecDeque::new(),
            finished: VecDeque::new(),
            pool: BufferPool::new(POOL_BYTES_MAX),
            changing: Vec::new(),
            ordered: VecDeque::new(),
            releasing: false,
            loading: HashMap::new(),
            room,
            flush: flush::Flush::new(),
            live: None,
            relinking: None,
            retired: Vec::new(),
            frozen: false,
            closed: false,
            settling: false,
            touched: false,
            held: VecDeque::new(),
            poisoned: None,
            stats: stats::Stats::default(),
            throttle: limits::Throttle::default(),
            pause: pause::Pause::default(),
            log: None,
            staged_log: None,
            pieces: Vec::new(),
            zeros: None,
        })
    }

    /// Size of the disk in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.map.leaf().size_bytes()
    }

    /// Upper bits of the tokens of its operations.
    pub fn tag(&self) -> u16 {
        self.config.tag
    }

    /// Whether the disk takes writes.
    pub fn access(&self) -> Access {
        self.config.access
    }

    /// Uuids of the layers, leaf first; nil for a raw layer.
    pub fn layer_uuids(&self) -> Vec<Uuid> {
        self.map.layers.iter().rev().map(Layer::uuid).collect()
    }

    /// Bytes of memory for knowing where everything is, caches of bounded size aside.
    pub fn map_bytes(&self) -> usize {
        self.map.memory_bytes()
    }

    /// Files of the layers, leaf first.
    pub fn files(&self) -> Vec<block::FileId> {
        self.map
            .layers
            .iter()
            .rev()
            .map(|layer| layer.file)
            .collect()
    }

    /// Whether a change is answered only when it is durable.
    pub fn is_write_through(&self) -> bool {
        self.config.write_through
    }

    /// Changes that; requests in flight are not affected.
    pub fn set_write_through(&mut self, write_through: bool) {
        self.config.write_through = write_through;
    }

    /// When the engine must hear of the time although nothing else happens; see
    /// [`Engine::set_now`].
    pub fn wake_at_us(&self) -> Option<u64> {
        if self.frozen || self.live.is_some() {
            return None;
        }
        let tokens = self.throttle.wake_at_us();
        let tokens = tokens.filter(|_| !self.held.is_empty());
        tokens.into_iter().chain(self.pause.probe_at_us()).min()
    }

    fn wake(&mut self) {
        self.probe();
        self.release_held();
    }

    /// Why nothing that changes the disk works any more.
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.as_deref()
    }

    /// Whether requests are held back after [`LiveOp::Freeze`].
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Whether [`LiveOp::Close`] has finished.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Requests, live operations and file operations that are not finished.
    pub fn in_flight(&self) -> usize {
        self.requests
            .len()
            .saturating_add(self.held.len())
            .saturating_add(self.contexts.len())
    }

    /// A buffer of `len` bytes with old content, to be filled and submitted with a write.
    pub fn take_buffer(&mut self, len: usize) -> Buffer {
        self.pool.take(len)
    }

    /// Gives the buffer of a finished read back for reuse.
    pub fn give_buffer(&mut self, buffer: Buffer) {
        self.pool.give(buffer);
    }

    /// Whether more idle memory is kept than a disk needs that has nothing to do.
    pub fn has_spare_memory(&self) -> bool {
        self.pool.kept_bytes() > POOL_BYTES_IDLE
    }

    /// Gives up memory that was kept for large requests.
    pub fn give_up_spare_memory(&mut self) {
        self.pool.shrink(POOL_BYTES_IDLE);
    }

    /// The next operation to be performed, if any. Drain it after each `submit` and `complete`.
    pub fn next_op(&mut self) -> Option<Op> {
        if self.outbox.is_empty() {
            self.start_due_log_sync();
            self.start_due_flush();
        }
        self.outbox.pop_front()
    }

    /// The next finished request, if any.
    pub fn next_finished(&mut self) -> Option<Finished> {
        self.finished.pop_front()
    }

    /// Hands over everything that is ready, polls once and takes the completions in: the whole loop
    /// for an engine that has `io` for itself. `scratch` is kept by the caller for its memory.
    ///
    /// # Errors
    /// When the carrier broke.
    pub fn drive(
        &mut self,
        io: &mut impl BlockIo,
        wait: Wait,
        scratch: &mut Vec<Completion>,
    ) -> std::io::Result<()> {
        while let Some(op) = self.next_op() {
            io.submit(op);
        }
        io.poll(wait, scratch)?;
        for completion in scratch.drain(..) {
            self.complete(completion);
        }
        while let Some(op) = self.next_op() {
            io.submit(op);
        }
        Ok(())
    }
}

#[cfg(test)]
mod part_size {
    //! Hot values stay small.

    #[test]
    fn a_part_is_passed_in_registers() {
        assert!(size_of::<super::state::Part>() <= 24);
    }
}

//! What every front end of a disk is: requests of one client in, answers out.
//!
//! ```text
//!             next_job                        submit
//!  client ──> FrontEnd ──> Job { slot, Work } ──────> engine
//!             FrontEnd <── Answer, by slot    <──────
//!              answer                      next_finished
//! ```
//!
//! | front end | how requests travel | where |
//! |---|---|---|
//! | NBD | a byte stream | [`crate::nbd::Session`] |
//! | vhost-user-blk | virtqueues in the guest's shared memory, told of by eventfds | [`crate::vhost_user::Device`] |
//! | Xen blkif | a ring in a granted page, told of by an event channel | comes with the Xen back end |
//!
//! A front end is a state machine of one client. It checks what the client asks, so that every
//! [`Job`] it gives out lies inside the disk, is aligned to 512 bytes and is allowed; it knows no
//! engine and no other client. How it moves bytes (sockets, shared memory) is its own; what is the
//! same for all of them is here, and the process needs no more to join one to an engine.
//!
//! blkif has its place as a third implementation: its `RING_OP`s are [`Work`]s (read, write,
//! flush, discard), its grant copies take the place of the copies to and from guest memory, its
//! ring's `id` is what a [`Slot`] remembers, and its event channel is watched as a queue's eventfd is.

use block::{Buffer, BufferPool};

/// Where payload and reply buffers come from and go back to.
pub trait Buffers {
    /// A buffer of `len` bytes with old content.
    fn take(&mut self, len: usize) -> Buffer;

    /// Takes a buffer back.
    fn give(&mut self, buffer: Buffer);
}

impl Buffers for BufferPool {
    fn take(&mut self, len: usize) -> Buffer {
        BufferPool::take(self, len)
    }

    fn give(&mut self, buffer: Buffer) {
        BufferPool::give(self, buffer);
    }
}

/// One client of a disk.
///
/// Every job that was given out is answered exactly once, in any order, also after [`end`] and
/// [`lost`]; the front end is finished when the last is answered and heard.
///
/// [`end`]: FrontEnd::end
/// [`lost`]: FrontEnd::lost
pub trait FrontEnd {
    /// The next job; `None` when the client has to send more, take answers, or wait for some.
    fn next_job(&mut self, buffers: &mut impl Buffers) -> Option<Job>;

    /// Answers a job. A slot that has none is ignored.
    fn answer(&mut self, slot: Slot, answer: Answer, buffers: &mut impl Buffers);

    /// Takes over the disk's new size.
    fn set_size(&mut self, size_bytes: u64);

    /// Takes no more requests; those in flight are answered.
    fn end(&mut self);

    /// The client is gone: as [`FrontEnd::end`], and nothing reaches it any more.
    fn lost(&mut self);

    /// Requests that are not over.
    fn in_flight(&self) -> usize;

    /// Whether everything is over, so that the connection can be closed.
    fn is_finished(&self) -> bool;
}

/// Where a job's answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// A checked request: inside the disk, aligned to 512 bytes, allowed on this export.
#[derive(Debug)]
pub struct Job {
    /// Comes back with the answer.
    pub slot: Slot,
    /// What to do.
    pub work: Work,
}

/// What a job does. Offsets and lengths are bytes.
#[derive(Debug)]
pub enum Work {
    /// Answered with the data.
    Read {
        /// Where to start.
        offset: u64,
        /// How much.
        length: u32,
    },
    /// Writes the buffer.
    Write {
        /// Where to start.
        offset: u64,
        /// What to write.
        data: Buffer,
        /// Durable before the answer.
        fua: bool,
    },
    /// Makes what was answered before durable, whatever connection it came on.
    Flush,
    /// Gives space back if that costs nothing; the content is undefined afterwards.
    Trim {
        /// Where to start.
        offset: u64,
        /// How much.
        length: u64,
        /// Durable before the answer.
        fua: bool,
    },
    /// Makes a range read as zeroes.
    WriteZeroes {
        /// Where to start.
        offset: u64,
        /// How much.
        length: u64,
        /// Durable before the answer.
        fua: bool,
        /// Keep the range allocated.
        no_hole: bool,
        /// Unless it is zero: fail with [`Errno::NotSupported`] and without a change if zeroes would
        /// have to be written anywhere in so many bytes from `offset` on.
        fast_bytes: u64,
    },
    /// Describes a range from its start on; the answer may stop early.
    BlockStatus {
        /// Where to start.
        offset: u64,
        /// How much.
        length: u64,
        /// One run is enough.
        one: bool,
    },
}

/// What a job came to.
#[derive(Debug)]
pub enum Answer {
    /// It is done (writes, flush, trim, write zeroes).
    Done,
    /// The data of a read; of the length that was asked for.
    Data(Buffer),
    /// The runs of a block status, from the job's offset on.
    Status(Vec<BlockRun>),
    /// It did not work.
    Failed(Failure),
}

/// A stretch in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRun {
    /// Its length; what goes past the request is cut off.
    pub length_bytes: u64,
    /// Not allocated in any layer.
    pub hole: bool,
    /// Reads as zeroes.
    pub zero: bool,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the client branches on.
    pub errno: Errno,
    /// For people; only structured replies carry it.
    pub message: String,
}

/// Error numbers that the protocol knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errno {
    /// The export is read-only.
    Permission,
    /// The storage failed.
    Io,
    /// No memory.
    NoMemory,
    /// The request makes no sense for this export.
    Invalid,
    /// No space left, or a write past the end.
    NoSpace,
    /// Not done, or not fast.
    NotSupported,
    /// The server is going away.
    Shutdown,
}

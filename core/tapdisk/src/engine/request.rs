//! What front ends and control ask of an engine, and what they get back.

use block::{Buffer, SharedBuffer};
use std::fmt;

/// Chosen by whoever submits a request, returned when it is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

impl Ticket {
    /// Set in the tickets of requests that are no guest's but the data path's own. They wait for
    /// no tokens and are not counted.
    pub const OWN: u64 = 1 << 63;

    /// Whether it is one of those.
    pub fn is_own(self) -> bool {
        self.0 & Self::OWN != 0
    }
}

/// A request on the disk's bytes. Offsets and lengths are bytes and multiples of 512.
#[derive(Debug)]
pub enum Request {
    /// Reads `len_bytes` from `offset`. Finishes with [`Done::Data`].
    Read {
        /// Where to start.
        offset: u64,
        /// How much; at most [`super::REQUEST_BYTES_MAX`].
        len_bytes: u32,
    },
    /// Writes the data. Answered when it is in the file, durable only after a flush or with `fua`.
    Write {
        /// Where to start.
        offset: u64,
        /// What to write; take the buffer from [`super::Engine::take_buffer`].
        data: Buffer,
        /// Whether to answer only once it is durable.
        fua: bool,
    },
    /// [`Request::Write`] of data that others look at too: the other half of a mirror.
    WriteShared {
        /// Where to start.
        offset: u64,
        /// What to write.
        data: SharedBuffer,
        /// Whether to answer only once it is durable.
        fua: bool,
    },
    /// Makes every write that was answered before durable.
    Flush,
    /// Says that the range's content is not needed any more. What it reads as afterwards is the old
    /// content or zeros, never a third thing.
    Trim {
        /// Where to start.
        offset: u64,
        /// How much.
        len_bytes: u64,
        /// Whether to answer only once it is durable.
        fua: bool,
    },
    /// Makes the range read as zeros.
    WriteZeroes {
        /// Where to start.
        offset: u64,
        /// How much.
        len_bytes: u64,
        /// Whether space may be given back; otherwise zeros are written (NBD's `NO_HOLE`).
        may_trim: bool,
        /// Whether to answer only once it is durable.
        fua: bool,
    },
    /// Says which parts hold data. Finishes with [`Done::Extents`], which cover the range from its
    /// start, not always to its end.
    BlockStatus {
        /// Where to start.
        offset: u64,
        /// How much.
        len_bytes: u64,
        /// Most extents to answer with; at least one is given.
        extents_max: u32,
    },
    /// [`Request::BlockStatus`] of one layer's own sectors: `Data` is what the layer holds and no
    /// layer above it hides, everything else is `Zero`. The extents cover the range.
    LayerStatus {
        /// Where to start.
        offset: u64,
        /// How much; within one block of 2 MiB.
        len_bytes: u64,
        /// Whose sectors count.
        scope: Scope,
    },
}

/// Whose sectors count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// Those of every layer: what the disk holds.
    #[default]
    Chain,
    /// Those that one layer holds and no layer above it; layers count from the leaf, which is 0.
    Layer(u16),
}

/// An operation on the disk as a whole. One at a time; requests that come meanwhile are held back.
#[derive(Debug)]
pub enum LiveOp {
    /// Finishes what is in flight and holds back what comes after, until [`super::Engine::thaw`].
    Freeze,
    /// Flushes and seals the leaf and puts a new, empty leaf on top of it. Also while frozen.
    SnapshotSwitch(Box<super::LayerSpec>),
    /// Grows the leaf, within the metadata it has, and the disk with it. `Unsupported`, with nothing
    /// changed, beyond that.
    Resize {
        /// The new size; at least the present one.
        virtual_bytes: u64,
    },
    /// Begins to mark changes in a log of changed blocks; what was answered before is not in it.
    CbtStart(Box<super::LogSpec>),
    /// Ends that: the log is complete and durable.
    CbtStop,
    /// Flushes, writes footers and batmap. Every later request fails with [`ErrorKind::Closed`].
    Close,
}

/// The end of one request or live operation.
#[derive(Debug)]
pub struct Finished {
    /// As submitted.
    pub ticket: Ticket,
    /// What came of it.
    pub result: Result<Done, Error>,
}

/// What a finished request brings.
#[derive(Debug)]
pub enum Done {
    /// Nothing but success.
    Ok,
    /// The bytes of a read; give the buffer back with [`super::Engine::give_buffer`].
    Data(Buffer),
    /// Extents of a block status, in order and without gaps; neighbours differ in state.
    Extents(Vec<Extent>),
}

/// A run of bytes in the same state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How long it is.
    pub len_bytes: u64,
    /// What it is.
    pub state: ExtentState,
}

/// State of an extent, as NBD's `base:allocation` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentState {
    /// Some layer holds bytes here.
    Data,
    /// No layer holds bytes here: a hole that reads as zeros.
    Zero,
}

/// What callers branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Unaligned, empty or too long (NBD: `EINVAL`).
    Invalid,
    /// Beyond the end of the disk (NBD: `EINVAL` for reads, `ENOSPC` for writes).
    OutOfRange,
    /// The disk takes no writes (NBD: `EPERM`).
    ReadOnly,
    /// No space left below the image, or in its format (NBD: `ENOSPC`).
    NoSpace,
    /// The storage answered with an error (NBD: `EIO`).
    Io,
    /// A flush failed earlier: nothing that changes the disk works any more (NBD: `EIO`).
    Poisoned,
    /// The disk is closed (NBD: `ESHUTDOWN`).
    Closed,
    /// Another live operation is under way, or too many requests wait.
    Busy,
    /// The layers do not fit together.
    Chain,
    /// This image cannot do that.
    Unsupported,
}

/// Why a request failed or a chain was not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What callers branch on.
    pub kind: ErrorKind,
    /// The thing and the number.
    pub message: String,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<block::Error> for Error {
    fn from(error: block::Error) -> Self {
        let kind = match error.kind {
            block::ErrorKind::NoSpace => ErrorKind::NoSpace,
            block::ErrorKind::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Self::new(kind, error.to_string())
    }
}

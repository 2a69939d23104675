//! An NBD client for what the data path serves: exports, imports and copies read and write disks
//! through it. Fixed newstyle over a unix socket, with extended headers where the server has them; no
//! TLS, no oldstyle, no reconnect.
//!
//! ```text
//! Client::read/write/... ── permit (16) ── queue ──> writer task ── socket ──> server
//!         <──────────────── oneshot ──────────────── reader task <── socket ──
//! ```
//!
//! Requests of one client overlap up to [`IN_FLIGHT_MAX`]; to pipeline, run several calls at once
//! (`join!`, `FuturesUnordered`, clones in tasks). There is no order between overlapping requests.

mod client;
mod connection;
mod handshake;
pub mod wire;

pub use client::{BlockRun, Client, Info, WriteFlags};

use std::fmt;

/// Requests of one client that are on their way at once; a further call waits.
pub const IN_FLIGHT_MAX: usize = 16;

/// Largest read or write of one call. Larger ones are the caller's to split.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;

/// What callers branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nothing listens there.
    NotFound,
    /// The server does not know the export.
    NoExport,
    /// The server said something the protocol does not allow; the connection is closed.
    Protocol,
    /// The connection ended or did not answer in time.
    Gone,
    /// The range, the size or the flags do not fit the export; nothing was sent or it was refused.
    Invalid,
    /// The export takes no writes.
    ReadOnly,
    /// No space left on the server's side.
    NoSpace,
    /// The server does not do this.
    Unsupported,
    /// The server's storage failed.
    Io,
}

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// What callers branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nbd: {}", self.message)
    }
}

impl std::error::Error for Error {}

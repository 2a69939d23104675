//! The NBD server as a state machine: bytes in, jobs out; answers in, bytes out.
//!
//! It has no socket, no clock and no disk, so that tests and fuzzers drive it byte by byte. One
//! [`Session`] is one connection; the process moves its bytes and lets the engine do its jobs.
//!
//! ```text
//!  greeting ─> client flags ─> option <──┐
//!                                │  └────┘  LIST, INFO, STRUCTURED_REPLY, *_META_CONTEXT, unknown
//!                                ├─ GO, EXPORT_NAME ─> request <─┐
//!                                │                      │  │     │
//!                                │                      │  ├─ payload ── job
//!                                │                      │  └─ discard ── error reply
//!                                └─ ABORT ──> ending <──┴─ DISC, violation, end of stream
//! ```
//!
//! * What cannot be understood any more (a wrong magic, an option over the limits) ends the session;
//!   what can be understood and is wrong gets its error reply, with its payload taken off the
//!   stream first, so no error puts the stream out of step.
//! * A request counts from its header until the last byte of its reply is sent. Over
//!   [`IN_FLIGHT_MAX`] requests or [`IN_FLIGHT_BYTES_MAX`] bytes the session takes no more input.
//! * Not here: TLS, oldstyle, `CACHE`, `RESIZE`, extended headers. Handshake timeouts and the limit
//!   on connections are the process's.

mod handshake;
mod reply;
mod request;
mod session;

pub use request::REQUEST_BYTES_MAX;
pub use session::{IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX, Session};

/// What a session serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The only name answered to, besides the empty one.
    pub name: String,
    /// Size of the disk.
    pub size_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
}

#[cfg(test)]
mod tests;

//! Control protocol of the data-path process and its client. Contains no image parser.
//!
//! `xylemd` decides, `xylem-tapdisk` moves bytes; this crate is what they say to each other. It
//! exists so that the daemon can drive the data path without linking the code that parses images.
//!
//! ```text
//! frame     u32 little-endian length, then that many bytes of JSON (at most 1 MiB)
//! request   {"id": n, "request_id": "R:...", "op": "...", ...}   descriptors ride on its first byte
//! reply     {"id": n, "ok": ...} or {"id": n, "error": {kind, message}}
//! ```
//!
//! * [`Supervisor`] starts data-path processes and finds those that run already. A process outlives
//!   the daemon: it holds the listening control socket itself, so the next daemon connects to it.
//! * [`Client`] is one connection to one process. Every call has a deadline, and a process that
//!   dies turns every call into [`ErrorKind::Gone`].
//! * [`nbd`] is a client for what a process serves, for exports, imports and copies.
//! * [`codec`] is the framing that both ends use; [`histogram`] what latencies are counted in.

#![forbid(unsafe_code)]

mod client;
pub mod codec;
pub mod histogram;
pub mod nbd;
pub mod protocol;
mod supervisor;

pub use client::{CALL_DEADLINE, Chain, Client, HELLO_DEADLINE, NewImage};
pub use protocol::{
    Access, Cache, DiskSettings, DiskState, Error, ErrorKind, Extent, Format, ImageInfo, Reply,
    Request, Secret, Tls, TlsPolicy,
};
pub use supervisor::{Supervisor, SupervisorConfig, listen};

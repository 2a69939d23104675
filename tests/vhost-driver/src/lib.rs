//! The other end of vhost-user-blk, for tests and benchmarks: a front end (what QEMU is) and the
//! guest's driver (what Linux is) in one, written without a line of the data path's own.
//!
//! ```text
//! FrontEnd ── messages ──> the data path's socket
//!    └ Queue ── rings and buffers in a memfd, eventfds ──> its queues
//! ```
//! * [`FrontEnd::connect`] shares memory and sets queues up; [`FrontEnd::reconnect`] does so again
//!   with the same memory and the same inflight region, as a front end does whose back end died.
//! * [`Queue`] takes requests by slot: each slot has its own header, status and data, so that a
//!   request costs no allocation and thousands can be in flight.
//! * [`Guest`] and [`message`] give a test bytes and addresses to do harm with.

#![forbid(unsafe_code)]

mod front;
mod guest;
mod queue;
mod wire;

pub use front::{FrontEnd, Options};
pub use guest::Guest;
pub use queue::{Ask, Done, Layout, Queue, Status};
pub use wire::{Connection, feature, message, number, protocol_feature};

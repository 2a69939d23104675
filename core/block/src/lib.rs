//! Completion-based block I/O: one trait, and the disks that tests and the data path run on.
//!
//! [`BlockIo`] takes operations and gives back completions. The request engine of the data path is
//! written against it alone, so the same code runs on io_uring, in memory, on a simulated disk that
//! can lose power, and under injected faults.
//!
//! | implementation | what it is |
//! |---|---|
//! | `uring::Uring`, `uring::PreadIo` | files of the kernel (another crate: it needs `unsafe`) |
//! | [`RamDisk`] | sparse files in memory |
//! | [`SimDisk`] | files with a volatile cache: a crash keeps any subset of unflushed writes, in any order, torn at 512 bytes |
//! | [`FaultDisk`] | wraps another one and makes the nth operation fail |
//!
//! Not here: caching, image formats, retries, and anything that knows what the bytes mean.
//!
//! # The contract
//!
//! *Of every implementation*, checked by [`conformance`]:
//! - each submitted [`Op`] gives exactly one [`Completion`] with its token, in any order;
//! - the buffer of a read or write comes back with the completion, also when it failed;
//! - a success is a complete success: short transfers are carried on inside, and a read that meets
//!   the end of the file fails with [`ErrorKind::EndOfFile`];
//! - a write past the end extends the file, and what lies between reads as zeros;
//! - [`Action::Fdatasync`] makes durable what *completed before it was submitted*: contents, and the
//!   file size needed to read them. Nothing else is promised about order or durability;
//! - no offset or length makes it panic.
//!
//! *Of every user*: operations whose ranges overlap and that are in flight together happen in any
//! order, so order them by waiting; after a failed `Fdatasync` what was written since the last good
//! one may be gone although it still reads back, so never try again and report success.

#![forbid(unsafe_code)]

mod buffer;
pub mod conformance;
mod cuts;
mod error;
mod fault;
mod io;
mod pool;
mod ram;
mod rng;
mod sim;
mod sparse;

pub use buffer::{ALIGN_BYTES, Buffer, SharedBuffer, is_zero};
pub use cuts::{Cuts, Grain};
pub use error::{Error, ErrorKind};
pub use fault::{Fault, FaultDisk, FaultKind, Target};
pub use io::{Action, BlockIo, Completion, FileId, Op, Payload, Token, Verb, Wait};
pub use pool::BufferPool;
pub use ram::RamDisk;
pub use rng::Rng;
pub use sim::{Crash, Order, SimDisk};
pub use sparse::SparseBytes;

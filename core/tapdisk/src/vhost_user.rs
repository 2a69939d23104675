//! vhost-user-blk: a virtio block device whose queues lie in the guest's own memory.
//!
//! One [`Device`] is one connection of a front end (QEMU). Its messages set the device up; after
//! that the socket is quiet, and requests come by the queues.
//!
//! ```text
//!  socket ──> Receiver ──> Request ──> Device ── Memory: what is mapped of the guest
//!                                        ├─ Queue: heads in, used entries out   (one per ring)
//!  eventfds ── kicks ──────────────────> │    └─ Inflight: what a successor must do again
//!           <─ calls ─────────────────── ├─ Chain: a request's segments, checked
//!                                        └─ Job ──> engine ──> Answer ──> data, status, used entry
//! ```
//!
//! It opens nothing and waits for nothing; what it does to the outside is done to descriptors it was
//! sent: it maps them, and reads and writes eventfds. The process watches those and lets the engine
//! do the jobs.
//!
//! # A hostile guest or front end
//! * A request that is wrong and has a place for its status gets `IOERR` or `UNSUPP`.
//! * A queue that makes no sense ([`Broken`]) is stopped until it is set up anew; the front end
//!   hears of it by the queue's error eventfd.
//! * A message that makes no sense ([`Violation`]) is refused where the front end asked for an
//!   acknowledgement, and otherwise ends the connection.
//! * Descriptors are read once into our own memory and then checked, so that changing them later
//!   changes nothing. Every address is looked up in the mapped regions each time it is used.
//! * Memory that is cut off below us (a file that shrinks) raises SIGBUS, which ends this process;
//!   it has its own user and serves one domain. A memfd sealed with `F_SEAL_SHRINK`, as QEMU's is,
//!   cannot be; for anything else the log says so when it is mapped.
//! * A call eventfd is made non-blocking when it comes. A front end that makes it blocking again
//!   can stop its own process and nobody else's.
//!
//! # When this process dies
//! The inflight region (shared memory that the front end keeps) says which requests were taken and
//! not answered; the next process does those again, in their order. What was answered is in the
//! file then: with a region, the engine settles changes before they are answered, because a guest
//! that goes on is owed what it was told.
//!
//! # Source
//! QEMU, docs/interop/vhost-user.rst; Virtual I/O Device (VIRTIO) 1.2, 2.7 and 5.2.

mod chain;
mod config;
mod device;
mod inflight;
mod memory;
mod messages;
mod protocol;
mod queue;
mod request;
pub mod socket;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use chain::{CHAIN_SEGMENTS_MAX, Chain, Segment};
pub use device::{Device, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX};
pub use inflight::{Inflight, InflightInfo};
pub use memory::{Memory, REGIONS_MAX, Region};
pub use protocol::{
    Arrived, FDS_MAX, HEADER_BYTES, Header, Message, PAYLOAD_BYTES_MAX, Receiver, Request,
    Violation,
};
pub use queue::{Broken, QUEUE_SIZE_MAX, Queue};

/// Most queues of a device.
pub const QUEUES_MAX: u16 = 16;

/// What a device serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Size of the disk; a guest sees whole sectors of 512 bytes.
    pub size_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// What a guest reads as the disk's serial number, padded with zeroes.
    pub serial: [u8; SERIAL_BYTES],
}

/// Length of a serial number (VIRTIO 1.2, 5.2.6).
pub const SERIAL_BYTES: usize = 20;

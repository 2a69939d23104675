//! The data path: chain map, request engine, NBD and vhost-user front ends; the binary xylem-tapdisk.
//!
//! | part | what it is | what it does not know |
//! |---|---|---|
//! | [`engine`] | one open disk: requests in, file operations out | sockets, protocols |
//! | [`copy`] | one disk copied into another, with or without a guest that writes it | files, sockets |
//! | [`frontend`] | what a client's side of a disk is, whatever the protocol | protocols, disks |
//! | [`nbd`] | one NBD session: bytes in, jobs out | sockets, disks |
//! | [`vhost_user`] | one vhost-user-blk connection: messages and queues in, jobs out | sockets, disks |
//! | [`process`] | the loop that joins them, and the control operations | what bytes mean |
//!
//! The state machines do no I/O, so everything that can go wrong in them is tested without a
//! kernel. The process does I/O and nothing else.

#![forbid(unsafe_code)]

pub mod copy;
pub mod engine;
pub mod frontend;
pub mod nbd;
pub mod process;
mod slab;
pub mod vhost_user;

//! The data path against power cuts and kills, at length.
//!
//! | part | what is cut off | judges |
//! |---|---|---|
//! | [`sweep`] | the engine on a simulated disk: every workload up to three operations and long random ones, every choice of few volatile changes, samples of many | the model of legal values; on a sample the independent checker and naive reader, and QEMU |
//! | [`kill`] | real `xylem-tapdisk` processes on real files, under writes, snapshots, coalesces and mirrors | the same model through a new process, checker and naive reader every time |
//!
//! The engine's rig and the model come from `tapdisk::engine::testing`, which its own unit tests
//! use too; [`world`] puts disks and an owner around them. What is found is replayed by one
//! command, see [`workload::Workload`].

#![forbid(unsafe_code)]

pub mod flaw;
mod host;
pub mod kill;
pub mod op;
mod opinion;
pub mod sweep;
pub mod workload;
pub mod world;

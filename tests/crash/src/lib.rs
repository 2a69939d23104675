//! The data path against power cuts and kills, at length.
//!
//! | part | what is cut off | judges |
//! |---|---|---|
//! | [`sweep`] | the engine on a simulated disk: every workload up to three requests and long random ones, every subset of few volatile changes, samples of many | the model of legal values, the independent checker and naive reader on a sample |
//! | [`kill`] | real `xylem-tapdisk` processes on real files, under writes and snapshots | the same model through a new process, checker and naive reader every time |
//!
//! The engine's rig, the model and the worlds come from `tapdisk::engine::testing`, which its own
//! unit tests use too. What is found is replayed by one command, see [`sweep::Workload`].

#![forbid(unsafe_code)]

pub mod kill;
mod opinion;
pub mod sweep;

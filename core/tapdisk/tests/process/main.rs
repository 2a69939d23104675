//! The real binary, driven by the real client over real sockets, with other people's tools as
//! witnesses: `nbdinfo`, `nbdcopy`, `qemu-img` and the checker that was written without vhd-rs.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod bench;
mod certificates;
mod control;
mod copies;
mod direct;
mod faults;
mod group;
mod guest;
mod images;
mod life;
mod limits;
mod logs;
mod mirrors;
mod pipelines;
mod serving;
mod settings;
mod snapshots;
mod tls;
mod vhost;

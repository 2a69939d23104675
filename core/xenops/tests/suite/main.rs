//! The domain manager on the simulator and on real QEMU, one binary.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

mod failures;
mod fixture;
mod guest;
mod life_cycle;
mod limits;
mod memory_disks;
mod restart;

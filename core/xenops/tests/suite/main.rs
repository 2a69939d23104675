//! The domain manager on the simulator and on real QEMU, one binary.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

mod failures;
mod fixture;
mod guest;
mod life_cycle;
mod limits;
#[path = "../../../qemu/tests/suite/machine.rs"]
mod machine;
mod memory_disks;
mod on_qemu;
mod restart;

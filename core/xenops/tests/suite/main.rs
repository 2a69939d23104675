//! The domain manager on the simulator and on real QEMU, one binary.

mod failures;
mod fixture;
mod guest;
mod life_cycle;
mod limits;
mod memory_disks;
mod restart;

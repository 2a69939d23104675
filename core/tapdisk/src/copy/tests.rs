//! Tests of copies on disks in memory.

mod crash;
mod facts;
mod faults;
mod merge;
mod random;
mod world;

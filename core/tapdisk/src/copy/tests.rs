//! Tests of copies on disks in memory.

mod random;
mod world;

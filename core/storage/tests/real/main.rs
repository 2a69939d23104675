//! The storage manager on real parts: `xylem-tapdisk` processes, VHD files in a directory, and
//! QEMU's and libnbd's tools as witnesses of what is served.
//!
//! The data path is another package's binary: `cargo build -p tapdisk` makes it.

mod bench;
mod directory;
mod merges;
mod trees;
mod witnesses;

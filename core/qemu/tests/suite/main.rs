//! The back end with real QEMU processes and a real Linux guest.
//!
//! Needs `qemu-system-x86_64`, `nbdkit`, `busybox` and the test kernel that `cargo xtask setup`
//! fetches; a test that misses one fails and says which.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

mod back_end;
mod faults;
mod machine;

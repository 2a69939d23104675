//! Plugins of both carriers through the real `xylem-plugin`: conformance, faults, lies, grants.
//!
//! The plugins are built by `cargo xtask plugins`; without them the tests fail and say so.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod conformance;
mod faults;
mod grants;
mod harness;
mod lies;
mod monitors;
mod process;
mod sm_file;

//! Whole-host tests: real daemon, plugins, data paths, hypervisor, clients.
//!
//! * [`host`]: a host of its own in a directory: started, killed, started again.
//! * [`scenario`]: the story that `cargo xtask demo` plays, step by step.
//! * [`story_guest`]: the Linux guest of that story.
//! * [`process`]: running commands and waiting for conditions.

#![forbid(unsafe_code)]

pub mod host;
pub mod process;
pub mod scenario;
pub mod story_guest;

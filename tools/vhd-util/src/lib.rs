//! The commands of `vhd-util` and `cbt-util` and what they share: opened images, chains found by their locators,
//! a writer that keeps the format's order of durability.
//!
//! What is on disk and in which order it may change is `vhd-rs`' knowledge; this crate does the
//! I/O. Options, output lines and exit codes are those of XenServer's tool of the same name, so
//! that scripts that read them keep working.

#![forbid(unsafe_code)]

pub mod cbt;
pub mod chain;
pub mod command;
mod disk;
mod error;
pub mod journal;
mod paths;
pub mod process;
mod volumes;
mod writer;

pub use disk::{Disk, create_file, open_file};
pub use error::{Error, Result};
pub use writer::{Fresh, Writer};

//! `vhd-util`: see [`vhd_util::command`].

#![forbid(unsafe_code)]

use std::process::ExitCode;
use vhd_util::command::Cli;

fn main() -> ExitCode {
    vhd_util::process::run("vhd-util", Cli::run)
}

//! `cbt-util`: see [`vhd_util::cbt`].

#![forbid(unsafe_code)]

use std::process::ExitCode;
use vhd_util::cbt::Cli;

fn main() -> ExitCode {
    vhd_util::process::run("cbt-util", Cli::run)
}

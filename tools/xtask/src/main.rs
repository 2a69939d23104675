//! `cargo xtask`: everything a developer or an operator on a laptop types, in one place.
//!
//! Each command does its own set-up, says what it is doing while it does it, and either ends with
//! exit code 0 or names the step that failed.

#![forbid(unsafe_code)]

mod bench;
mod build;
mod crash;
mod fuzz;
mod setup;
mod step;
mod up;
mod verify;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Build, run and test Xylem.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", version, arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Set everything up, build release, and run a host in the foreground until Ctrl-C
    Up(up::Options),
    /// Set everything up and pass every test: format, lints, unit, process and whole-host tests
    Test(verify::Options),
    /// Set everything up and play the whole story once: import, boot, snapshot, kill, adopt, alarm
    Demo(up::DemoOptions),
    /// Measure the data path against its peers (qemu-nbd, nbdkit) in turn, and print a table
    Bench(bench::Options),
    /// Cut the power of the data path in every way, or kill its processes, and look what is lost
    Crash(crash::Options),
    /// Search for bytes that break a parser, under coverage, or replay a found input
    Fuzz(fuzz::Options),
    /// Build every plugin both ways into target/plugins
    Plugins,
    /// Only do the set-up: Debian packages, the wasm target, a test kernel, a Python environment
    Setup,
    /// Regenerate the plugin bindings from wit/ (with --check: fail if they are not current)
    Gen {
        /// Change nothing, fail if something would change
        #[arg(long)]
        check: bool,
    },
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Up(options) => up::up(&options),
        Command::Test(options) => verify::test(&options),
        Command::Demo(options) => up::demo(&options),
        Command::Bench(options) => bench::bench(&options),
        Command::Crash(options) => crash::crash(&options),
        Command::Fuzz(options) => fuzz::fuzz(&options),
        Command::Plugins => {
            setup::wasm_target()?;
            build::plugins()
        }
        Command::Setup => setup::everything(),
        Command::Gen { check } => build::bindings(check),
    }
}

//! The sub-commands by name: what the command line looks like. Each command is a type of its own,
//! with its options and what it does.

use crate::Result;
use clap::{Parser, Subcommand};
use std::io::Write;

mod check;
mod coalesce;
mod copy;
mod create;
mod fill;
mod key;
mod modify;
mod query;
mod read;
mod repair;
mod resize;
mod revert;
mod scan;
mod set;
mod snapshot;

/// Makes, inspects, checks and changes VHDs. Exits with 0 or an error number of the system.
#[derive(Debug, Parser)]
#[command(name = "vhd-util", version, disable_help_subcommand = true)]
pub struct Cli {
    /// Accepted for scripts; errors are always told in full
    #[arg(long, global = true)]
    debug: bool,
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    Create(create::Create),
    Snapshot(snapshot::Snapshot),
    Query(query::Query),
    Read(read::Read),
    Set(set::Set),
    Repair(repair::Repair),
    Resize(resize::Resize),
    Revert(revert::Revert),
    Fill(fill::Fill),
    Coalesce(coalesce::Coalesce),
    Modify(modify::Modify),
    Scan(scan::Scan),
    Key(key::Key),
    Copy(copy::Copy),
    Check(check::Check),
}

impl Cli {
    /// Does what the command line says and prints to `out`.
    ///
    /// # Errors
    /// Those of the command; what was printed before is true.
    pub fn run(&self, out: &mut dyn Write) -> Result<()> {
        match &self.command {
            Command::Create(command) => command.run(),
            Command::Snapshot(command) => command.run(),
            Command::Query(command) => command.run(out),
            Command::Read(command) => command.run(out),
            Command::Set(command) => command.run(),
            Command::Repair(command) => command.run(),
            Command::Resize(command) => command.run(),
            Command::Revert(command) => command.run(),
            Command::Fill(command) => command.run(),
            Command::Coalesce(command) => command.run(out),
            Command::Modify(command) => command.run(),
            Command::Scan(command) => command.run(out),
            Command::Key(command) => command.run(out),
            Command::Copy(command) => command.run(),
            Command::Check(command) => command.run(out),
        }
    }
}

/// Bytes of a number of MiB given on the command line; too many become too many bytes.
fn mib(count: u64) -> u64 {
    count.saturating_mul(1 << 20)
}

/// Turns a failure to print into an error of the command.
fn printing(error: std::io::Error) -> crate::Error {
    crate::Error::io("cannot print", error)
}

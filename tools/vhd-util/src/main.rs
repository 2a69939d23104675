//! `vhd-util`: the process around the commands.

#![forbid(unsafe_code)]

use clap::Parser;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use vhd_util::command::Cli;

/// What wrong options exit with, as `EINVAL`.
const USAGE: u8 = 22;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            let asked_for = !usage.use_stderr();
            // Where this cannot be printed nothing can.
            let _ = usage.print();
            return if asked_for {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(USAGE)
            };
        }
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let result = cli.run(&mut out);
    // What was found out before a failure is still worth printing.
    let flushed = out
        .flush()
        .map_err(|e| vhd_util::Error::io("cannot print", e));
    match result.and(flushed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhd-util: {}", error.chain());
            ExitCode::from(error.exit_code())
        }
    }
}

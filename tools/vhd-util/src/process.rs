//! What both programs do around a command: read the command line, print, exit with an error number.

use crate::{Error, Result};
use clap::Parser;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

/// What wrong options exit with, as `EINVAL`.
const USAGE: u8 = 22;

/// Runs a program: `run` does what its command line says and prints to what it is given.
pub fn run<C: Parser>(name: &str, run: impl FnOnce(&C, &mut dyn Write) -> Result<()>) -> ExitCode {
    let cli = match C::try_parse() {
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
    let result = run(&cli, &mut out);
    // What was found out before a failure is still worth printing.
    let flushed = out.flush().map_err(|e| Error::io("cannot print", e));
    match result.and(flushed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {}", error.chain());
            ExitCode::from(error.exit_code())
        }
    }
}

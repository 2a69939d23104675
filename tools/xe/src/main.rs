//! `xe`: the command line client. It knows no commands: it sends its arguments to the server's
//! `/cli` and does what the server then says, within limits.
//!
//! ```text
//!  arguments, ~/.xe, XE_* ──> options ──> connect (socket | TCP | TLS) ──> talk ──> exit code
//!                                                                          │
//!                    files: only those the user named <── transfer, terminal ┘
//! ```

#![forbid(unsafe_code)]

mod completion;
mod connect;
mod files;
mod options;
mod talk;
mod terminal;
mod tls;
mod transfer;

use options::{Asked, Options};
use std::ffi::OsString;
use std::process::ExitCode;

const USAGE: &str = include_str!("usage.txt");

/// The server never said how it ended, or was not reached.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match Options::gather(args, &environment) {
        Ok(Asked::Usage) => print(USAGE),
        Ok(Asked::Version) => {
            let protocol = thin_cli::VERSION;
            let version = env!("CARGO_PKG_VERSION");
            print(&format!(
                "xe {version}\nThinCLI protocol: {}.{}\n",
                protocol.major, protocol.minor
            ))
        }
        Ok(Asked::Completion(script)) => print(script),
        Ok(Asked::Command(options)) => run(&options),
        Err(problem) => fail(&problem),
    }
}

fn run(options: &Options) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let code = match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(talk::talk(options));
            // A read of the terminal that nobody waits for any more must not hold the end up.
            runtime.shutdown_background();
            code
        }
        Err(problem) => Err(problem.into()),
    };
    match code {
        // What a shell sees of a code are its lowest eight bits.
        Ok(code) => ExitCode::from(code.to_le_bytes()[0]),
        Err(problem) => fail(&problem),
    }
}

fn fail(problem: &anyhow::Error) -> ExitCode {
    _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("Error: {problem:#}\n"));
    ExitCode::from(FAILED)
}

fn print(text: &str) -> ExitCode {
    match std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILED),
    }
}

//! `xylem-tapdisk`: see `--help`, which is [`tapdisk::process::arguments::HELP`].

#![forbid(unsafe_code)]

use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use tapdisk::process::arguments::{Arguments, Asked, parse};
use tapdisk::process::syscalls::{self, Filtered};
use tapdisk::process::{Ending, Process, sandbox};

/// Exit codes besides 0, as the help lists them (names of `sysexits.h`).
const USAGE: u8 = 64;
const OS_ERROR: u8 = 71;
const IO_ERROR: u8 = 74;

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(Asked::Run(arguments)) => arguments,
        Ok(Asked::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("xylem-tapdisk: {why}; see --help");
            return ExitCode::from(USAGE);
        }
    };
    sandbox::close_strays();
    start_log(&arguments);
    let listener = match take_listener() {
        Ok(listener) => listener,
        Err(e) => {
            tracing::error!(error = %e, "descriptor 0 is not the control socket; see --help");
            return ExitCode::from(USAGE);
        }
    };
    match run(&arguments, listener) {
        Ok(Ending::Clean) => ExitCode::SUCCESS,
        Ok(Ending::Unclean) => ExitCode::from(IO_ERROR),
        Err(e) => {
            tracing::error!(error = %e, "cannot go on");
            ExitCode::from(OS_ERROR)
        }
    }
}

fn run(arguments: &Arguments, listener: OwnedFd) -> io::Result<Ending> {
    sandbox::enter(arguments.run_as, arguments.require_sandbox)?;
    let process = Process::new(listener)?;
    match syscalls::confine()? {
        Filtered::Yes => tracing::info!("system calls are filtered"),
        Filtered::Unsupported if arguments.require_sandbox => {
            return Err(io::Error::other("the kernel filters no system calls"));
        }
        Filtered::Unsupported => tracing::warn!("the kernel filters no system calls"),
    }
    tracing::info!(
        pid = std::process::id(),
        version = env!("CARGO_PKG_VERSION"),
        "ready"
    );
    let ending = process.run()?;
    tracing::info!(?ending, "ended");
    Ok(ending)
}

/// Moves the listening socket away from descriptor 0, which becomes `/dev/null`.
fn take_listener() -> io::Result<OwnedFd> {
    let stdin = rustix::stdio::stdin();
    if !rustix::net::sockopt::socket_acceptconn(stdin)? {
        return Err(io::Error::other("it does not listen"));
    }
    let listener = rustix::io::fcntl_dupfd_cloexec(stdin, 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(listener)
}

fn start_log(arguments: &Arguments) {
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_max_level(arguments.log_level)
        .with_writer(io::stderr)
        .init();
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "internal error")));
}

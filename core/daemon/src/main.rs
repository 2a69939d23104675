//! `xylemd`: arguments, configuration, log, start, wait, drain, exit. The wiring is in `host`.

#![forbid(unsafe_code)]

mod config;
mod disks;
mod host;
mod logging;
mod merges;
mod monitors;
mod notify;
mod services;
mod sources;

use clap::Parser;
use nix::sys::signal::SigSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Exit codes, as documented in [`HELP`].
mod exit {
    pub(super) const START_FAILED: u8 = 1;
    pub(super) const BAD_CONFIG: u8 = 64;
    pub(super) const DRAIN_TIMED_OUT: u8 = 75;
}

/// How long calls in flight may take to end after SIGTERM.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

const ABOUT: &str = "The Xylem toolstack daemon of a host";

const HELP: &str = "\
DESCRIPTION
  xylemd serves XenAPI, decides what happens to storage and domains, and starts the processes that
  do it: xylem-plugin (one per plugin), xylem-tapdisk (one per domain) and the hypervisor's. Data
  paths and domains are not its children in life and death: they go on when it stops, is killed or
  is upgraded, and the next start finds and adopts them.

FILES
  /etc/xylem/xylemd.toml          the configuration; every key is optional
  STATE_DIR/xylem.db              the database (redb)
  STATE_DIR/initial-password      root's password, made at the first start; read it, then remove it
  RUN_DIR/                        sockets and the records of running domains and data paths
  LOG_DIR/                        one log per child process; xylemd's own goes to standard error

SIGNALS
  SIGTERM, SIGINT                 take no new calls, finish those in flight (60 s at most), stop the
                                  plugins, close the database, exit. Domains and data paths go on.

EXIT STATUS
  0    stopped as asked, or the checked configuration is valid
  1    could not start, or failed; the last log line says why
  64   bad arguments or a configuration that cannot be used
  75   stopped, but calls were still running when the time was up; they are finished or undone by the
       next start";

/// The command line.
#[derive(Parser)]
#[command(name = "xylemd", version, about = ABOUT, after_long_help = HELP)]
struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/xylem/xylemd.toml")]
    config: PathBuf,

    /// Check the configuration, say what is wrong with it, and exit
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    // A parent that blocks signals, as one that waits for them does, hands its mask down: without
    // this the daemon, and every process it starts, would be deaf to SIGTERM.
    if let Err(error) = SigSet::all().thread_unblock() {
        eprintln!("xylemd: signals stay as they were found: {error}");
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() {
                exit::BAD_CONFIG
            } else {
                0
            };
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let config = match config::read(&args.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("xylemd: {:#}", anyhow::Error::from(error));
            return ExitCode::from(exit::BAD_CONFIG);
        }
    };
    if args.check_config {
        println!("{} is valid", args.config.display());
        return ExitCode::SUCCESS;
    }
    logging::start(&config.log);
    match run(config) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{error:#}");
            eprintln!("xylemd: {error:#}");
            ExitCode::from(exit::START_FAILED)
        }
    }
}

fn run(config: config::Config) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let code = runtime.block_on(async {
        // Before anything is started, so that no signal is lost.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let running = host::start(config).await?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
        let drained = running.stop(DRAIN_LIMIT).await;
        tracing::info!(drained, "stopped");
        Ok(if drained { 0 } else { exit::DRAIN_TIMED_OUT })
    });
    // A blocking call that hangs (a dead NFS server) must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

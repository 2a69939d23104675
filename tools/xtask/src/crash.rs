//! `cargo xtask crash`: builds release and cuts the power of the data path, or kills it, at length.
//! A slice of both is in every `cargo xtask test`.

use crate::step::{cargo, command, run, target};
use anyhow::Result;
use clap::Args;

/// What to do, and with which seed.
#[derive(Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["full", "kill", "replay"]))]
pub(crate) struct Options {
    /// Every workload up to three requests, then long random ones up to a million distinct crash states
    #[arg(long)]
    full: bool,
    /// Kill so many real processes under load, snapshots, coalesces and mirrors, on real files
    #[arg(long, value_name = "N")]
    kill: Option<u64>,
    /// One workload of an earlier run again, as its last lines named it
    #[arg(long, value_name = "WORKLOAD")]
    replay: Option<String>,
    /// Where random workloads begin
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Volatile changes up to which every subset is tried
    #[arg(long, default_value_t = 12)]
    exhaustive: u32,
    /// Subsets tried above that
    #[arg(long, default_value_t = 64)]
    samples: u32,
    /// Seconds after which a full run begins nothing new
    #[arg(long, default_value_t = 1800)]
    seconds: u64,
}

/// Fails if a rule is broken or the run is not complete.
pub(crate) fn crash(options: &Options) -> Result<()> {
    let mut build = cargo(&["build", "--release", "--locked", "--bins"]);
    build.args(["--package", "tapdisk", "--package", "xylem-crash"]);
    run(build)?;
    let program = target().join("release/xylem-crash");
    let mut crash = command(&program.to_string_lossy(), &[]);
    match (options.kill, &options.replay) {
        (Some(kills), _) => crash.args(["kill", "--kills", &kills.to_string()]),
        (_, Some(workload)) => crash.args(["replay", "--workload", workload]),
        _ => crash.args(["sweep", "--seconds", &options.seconds.to_string()]),
    };
    crash.args(["--seed", &options.seed.to_string()]);
    crash.args(["--exhaustive", &options.exhaustive.to_string()]);
    crash.args(["--samples", &options.samples.to_string()]);
    run(crash)
}

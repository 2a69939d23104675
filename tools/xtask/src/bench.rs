//! `cargo xtask bench`: builds release and measures it beside its peers. Not part of any test.

use crate::setup;
use crate::step::{cargo, command, run, target};
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// What to measure, and how long.
#[derive(Args)]
pub(crate) struct Options {
    /// What to measure
    what: What,
    /// Write the rows to this file, as they come: id, work, medium, ours, peer, peer_name, ratio,
    /// aim, met, and spreads
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Go on from what the JSON file holds
    #[arg(long, requires = "json")]
    resume: bool,
    /// 2 short pairs per point instead of 7 longer ones, of each peer the first way only
    #[arg(long)]
    quick: bool,
    /// Only these ids, such as P1,P3
    #[arg(long, value_name = "IDS")]
    only: Option<String>,
    /// Only these media: direct, cached, tmpfs
    #[arg(long, value_name = "MEDIA")]
    medium: Option<String>,
    /// Pairs per point
    #[arg(long, value_name = "COUNT")]
    pairs: Option<u32>,
}

/// What can be measured.
#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// xylem-tapdisk serving a dynamic VHD, beside qemu-nbd and nbdkit
    Datapath,
}

/// Measures, prints the tables, and fails only if measuring does: an aim that is missed is a result.
pub(crate) fn bench(options: &Options) -> Result<()> {
    match options.what {
        What::Datapath => datapath(options),
    }
}

fn datapath(options: &Options) -> Result<()> {
    setup::bench_packages()?;
    let mut build = cargo(&["build", "--release", "--locked", "--bins"]);
    for package in ["tapdisk", "vhd-util", "bench"] {
        build.args(["--package", package]);
    }
    run(build)?;
    let release = target().join("release");
    let mut bench = command(&release.join("xylem-bench").to_string_lossy(), &[]);
    bench
        .arg("--tapdisk")
        .arg(release.join("xylem-tapdisk"))
        .arg("--vhd-util")
        .arg(release.join("vhd-util"))
        .arg("--disk")
        .arg(target());
    for (name, wanted) in [("--quick", options.quick), ("--resume", options.resume)] {
        if wanted {
            bench.arg(name);
        }
    }
    let pairs = options.pairs.map(|pairs| pairs.to_string());
    for (name, value) in [
        ("--only", &options.only),
        ("--medium", &options.medium),
        ("--pairs", &pairs),
    ] {
        if let Some(value) = value {
            bench.args([name, value]);
        }
    }
    if let Some(file) = &options.json {
        // The command runs in the root of the checkout, the name is meant from here.
        let file = std::path::absolute(file).context("the name of the JSON file")?;
        bench.arg("--json").arg(file);
    }
    run(bench)
}

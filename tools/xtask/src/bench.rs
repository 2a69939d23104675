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
    /// Write the rows to this file: id, work, medium, ours, peer, peer_name, ratio, aim, met
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// 3 short pairs per point instead of 7 longer ones, under 3 minutes
    #[arg(long)]
    quick: bool,
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
    let packages = ["--package", "tapdisk", "--package", "bench"];
    let mut build = cargo(&["build", "--release", "--locked", "--bins"]);
    build.args(packages);
    run(build)?;
    let release = target().join("release");
    let mut bench = command(&release.join("xylem-bench").to_string_lossy(), &[]);
    bench
        .arg("--tapdisk")
        .arg(release.join("xylem-tapdisk"))
        .arg("--disk")
        .arg(target());
    if options.quick {
        bench.arg("--quick");
    }
    if let Some(file) = &options.json {
        // The command runs in the root of the checkout, the name is meant from here.
        let file = std::path::absolute(file).context("the name of the JSON file")?;
        bench.arg("--json").arg(file);
    }
    run(bench)
}

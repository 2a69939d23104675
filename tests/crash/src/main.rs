//! `xylem-crash`: power cuts and kills of the data path, as `cargo xtask crash` runs them.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use xylem_crash::op::Op;
use xylem_crash::workload::{SHORT_MAX, Workload};
use xylem_crash::world::Effort;
use xylem_crash::{kill, sweep};

/// Long workloads of a sweep, however many states the short ones have.
const LONG_MIN: u64 = 400;

/// Cuts the power of the data path in every way there is, and kills its processes
#[derive(Parser)]
#[command(version)]
struct Args {
    /// What to do
    #[arg(value_enum)]
    what: What,
    /// First seed of what is random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Distinct states before a sweep may end; all short workloads are tried in any case
    #[arg(long, default_value_t = 1_000_000)]
    states: u64,
    /// Seconds after which no new workload begins
    #[arg(long, default_value_t = 1800)]
    seconds: u64,
    /// Threads; as many as there are processors if not given
    #[arg(long)]
    jobs: Option<usize>,
    /// Volatile changes up to which all subsets and orders are tried
    #[arg(long, default_value_t = 12)]
    exhaustive: u32,
    /// Torn subsets tried in each turn where not all are
    #[arg(long, default_value_t = 64)]
    samples: u32,
    /// One state in so many is shown to the checker and the naive reader
    #[arg(long, default_value_t = 400)]
    opinion_every: u64,
    /// One of those in so many is flattened and compared by QEMU
    #[arg(long, default_value_t = 40)]
    qemu_every: u64,
    /// The workload to replay, such as short,parent,together,write-new,flush or long,17
    #[arg(long, required_if_eq("what", "replay"))]
    workload: Option<Workload>,
    /// Processes to kill
    #[arg(long, default_value_t = 1000)]
    kills: u64,
    /// The data-path binary to kill; the one beside this program if not given
    #[arg(long)]
    tapdisk: Option<PathBuf>,
    /// Where images of the kill loop go
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Every short workload, then long random ones, on a simulated disk
    Sweep,
    /// One workload of a sweep again
    Replay,
    /// Real processes on real files
    Kill,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    match args.what {
        What::Sweep => sweep(&args),
        What::Replay => replay(&args),
        What::Kill => kill(&args),
    }
}

fn effort(args: &Args) -> Result<Effort> {
    if args.exhaustive > 16 {
        bail!("all subsets of {} changes are too many", args.exhaustive);
    }
    Ok(Effort {
        exhaustive_max: args.exhaustive,
        samples: args.samples,
    })
}

fn sweep(args: &Args) -> Result<ExitCode> {
    let begun = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let plan = sweep::Plan {
        ops: Op::all().collect(),
        short_max: SHORT_MAX,
        effort: effort(args)?,
        states: args.states,
        long_min: LONG_MIN,
        time: Duration::from_secs(args.seconds),
        seed: args.seed,
        jobs: args.jobs.unwrap_or(threads),
        opinion_every: args.opinion_every,
        qemu_every: args.qemu_every,
        flaw: None,
    };
    // The text of a violation is printed below with its replay.
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = sweep::run(&plan, &|outcome| {
        if outcome.workloads % 16 == 0 {
            let (states, workloads) = (outcome.states, outcome.workloads);
            line(&format!("{states} states, {workloads} workloads"));
        }
    })?;
    line("");
    for (workload, what) in &outcome.violations {
        println!("violation: {what}");
        println!(
            "replay: cargo xtask crash --replay {workload} --exhaustive {} --samples {}",
            args.exhaustive, args.samples
        );
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} distinct crash states in {seconds:.1} s ({:.0} per second, {} threads), {} chains judged; \
         {} states judged by the checker and the naive reader too, {} compared by QEMU",
        outcome.states,
        outcome.states as f64 / seconds,
        plan.jobs,
        outcome.judged,
        outcome.opinions,
        outcome.compared
    );
    println!(
        "{} of {} workloads up to {} operations, {} long ones from seed {}, {} violations",
        outcome.short,
        outcome.short_planned,
        plan.short_max,
        outcome.workloads - outcome.short,
        args.seed,
        outcome.violations.len()
    );
    let complete = outcome.short == outcome.short_planned && outcome.states >= args.states;
    if !complete && outcome.violations.is_empty() {
        println!("not complete: the time was over");
    }
    Ok(ExitCode::from(u8::from(
        !complete || !outcome.violations.is_empty(),
    )))
}

fn replay(args: &Args) -> Result<ExitCode> {
    let workload = args.workload.as_ref().context("--workload")?;
    let states = sweep::replay(workload, effort(args)?)?;
    println!("{workload}: {states} crash states, no violation");
    Ok(ExitCode::SUCCESS)
}

fn kill(args: &Args) -> Result<ExitCode> {
    let begun = Instant::now();
    let beside = || -> Result<PathBuf> {
        let here = std::env::current_exe()?;
        Ok(here.with_file_name("xylem-tapdisk"))
    };
    let plan = kill::Plan {
        kills: args.kills,
        seed: args.seed,
        tapdisk: match &args.tapdisk {
            Some(path) => path.clone(),
            None => beside()?,
        },
        folder: args.folder.clone().unwrap_or_else(std::env::temp_dir),
    };
    let outcome = kill::run(&plan, &|outcome| {
        line(&format!("{} of {} kills", outcome.kills, plan.kills));
    })?;
    line("");
    println!(
        "{} kills in {:.1} s ({} while opening), nothing lost: {} changes, {} flushes, {} sectors \
         judged after kills, longest recovery {} ms",
        outcome.kills,
        begun.elapsed().as_secs_f64(),
        outcome.kills_early,
        outcome.changes,
        outcome.flushes,
        outcome.sectors,
        outcome.recovery_ms_max
    );
    for (what, times) in [
        ("snapshots", outcome.snapshots),
        ("coalesces", outcome.coalesces),
        ("leaf coalesces", outcome.leaf_coalesces),
        ("mirrors", outcome.mirrors),
    ] {
        println!("{} {what}, and {} found under way", times.done, times.cut);
    }
    println!(
        "{} kills where more than one chain was the disk",
        outcome.either
    );
    Ok(ExitCode::SUCCESS)
}

/// A line of progress that the next one replaces, for people only.
fn line(text: &str) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        // Nobody reads progress whose terminal is gone.
        let _ = write!(out, "\r\x1b[K{text}").and_then(|()| out.flush());
    }
}

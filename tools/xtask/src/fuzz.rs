//! `cargo xtask fuzz TARGET`: searches for inputs that break a target, under coverage, or replays
//! one. Works on stable Rust: the instrumentation is LLVM's own pass, libFuzzer drives.
//! A slice of it is in every `cargo xtask test`.

use crate::setup;
use crate::step::{cargo, command, root, run, say, target};
use anyhow::{Result, bail};
use clap::Args;
use std::path::PathBuf;

/// What to search, and for how long.
#[derive(Args)]
pub(crate) struct Options {
    /// open, write, chain, locators, batmap, journal, nbd, control, vhost
    #[arg(value_name = "TARGET")]
    name: String,
    /// Seconds after which the search ends
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where random choices begin; 0 for the clock
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// Run this input and no other
    #[arg(long, value_name = "PATH")]
    replay: Option<PathBuf>,
    /// Put the least inputs that reach everything found so far into the tree's corpus
    #[arg(long)]
    keep: bool,
}

/// What makes LLVM count the edges that are passed and look into comparisons.
const INSTRUMENTATION: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=3",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
];

/// With it, dependencies and build scripts of the host are left as they are.
const HOST: &str = "x86_64-unknown-linux-gnu";

/// Fails if an input is found, which stays in `target/fuzz`.
pub(crate) fn fuzz(options: &Options) -> Result<()> {
    setup::fuzz_packages()?;
    let folder = target().join("fuzz");
    let mut build = cargo(&["build", "--release", "--locked", "--package", "xylem-fuzz"]);
    build.args([
        "--features",
        "coverage",
        "--bin",
        "xylem-fuzz-coverage",
        "--target",
        HOST,
    ]);
    build.arg("--target-dir").arg(&folder);
    build.env("RUSTFLAGS", INSTRUMENTATION.join(" "));
    run(build)?;
    let program = folder.join(HOST).join("release/xylem-fuzz-coverage");
    let name = &options.name;
    let fuzzer = || {
        let mut fuzzer = command(
            &program.to_string_lossy(),
            &["-timeout=10", "-rss_limit_mb=2048"],
        );
        fuzzer.env("XYLEM_FUZZ_TARGET", name);
        fuzzer
    };
    if let Some(path) = &options.replay {
        let mut fuzzer = fuzzer();
        fuzzer.arg(path);
        return run(fuzzer);
    }
    let committed = root().join("tests/fuzz/corpus").join(name);
    if !committed.is_dir() {
        bail!(
            "there is no target {name}: {} is no folder",
            committed.display()
        );
    }
    let (grown, found) = (folder.join("corpus").join(name), folder.join("found"));
    std::fs::create_dir_all(&grown)?;
    std::fs::create_dir_all(&found)?;
    let mut search = fuzzer();
    search.arg(format!("-max_total_time={}", options.seconds));
    search.arg(format!("-seed={}", options.seed));
    search.arg(format!("-artifact_prefix={}/{name}-", found.display()));
    search.args(["-max_len=2048", "-print_final_stats=1"]);
    search.args([&grown, &committed]);
    run(search)?;
    if options.keep {
        keep(fuzzer(), [&committed, &grown])?;
    }
    Ok(())
}

/// Merges what reaches something new into the committed corpus.
fn keep(mut merge: std::process::Command, folders: [&PathBuf; 2]) -> Result<()> {
    merge.arg("-merge=1").args(folders);
    run(merge)?;
    say(&format!(
        "look through {} before it is committed",
        folders[0].display()
    ));
    Ok(())
}

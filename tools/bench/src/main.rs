//! `xylem-bench`: our data path and its peers, in turn, at the same work on the same bytes.
//!
//! # What is run
//! All servers serve one disk over NBD on a unix socket to one client, fio. What they are given is
//! equal: the same random bytes as a raw file, as our dynamic VHD (of which `qemu-nbd vpc` serves
//! a copy) and as a qcow2. Three media: a disk's file system past the page cache (`O_DIRECT` for
//! all that have it), the same through the page cache with the images in it, and a tmpfs.
//! `qemu-nbd` runs with Linux AIO, threads and io_uring; a row compares with the way that did
//! best in that row's metric. What one disk alone cannot show (chains, snapshots, coalescing,
//! mirrors, memory, checking) has experiments of its own, which say in `work` what they did.
//!
//! # How to read a row
//! | column | meaning |
//! |---|---|
//! | `id`, `aim`, `met` | which aim, its bound (`0.45x` bounds the ratio, a bare number bounds ours), and whether the median keeps it |
//! | `work` | what was done and the metric with its unit |
//! | `ours`, `peer` | medians over the rounds, each with its first and third quartile |
//! | `ratio` | median of ours / theirs, round by round, with its quartiles: what slows the machine for a while slows both sides of a round, so this is steadier than either value |
//! | `n` | rounds the row rests on; 1 is a single look, not a measurement |
//! | `load` | most cores that anything else on the machine used during one of the rounds; for an experiment, just before or just after it. A round with more than [`machine::DISTURBED_CORES`] is run again, so often, and an experiment waits a while for less; what is still above it was measured on a busy machine |
//! | `[…]` | what limits the value, such as a client that has no more to give |
//!
//! A peer whose name ends in `recorded` was not run: tapdisk and libvhd's vhd-util are not in
//! Debian. Their values were measured once on a quiet machine of 2 cores with the same client, so
//! on another machine their rows say little.
//!
//! What is done to a disk in use (snapshots, coalescing, mirrors) has no peer that could do it: there
//! the other side is the same guest a moment before, so a disk that has moods shows them in both.
//!
//! # How far to trust it
//! CPU time per request (all threads of the server, io_uring's workers included) is the steadiest
//! number and IOPS the noisiest: fio takes a core of its own at around 200k requests a second, and
//! a virtual disk has moods. System calls are counted in further rounds, by the kernel (`perf`),
//! which costs the server next to nothing; where only `strace` is there it stops the server at
//! each call and the counts come out too low. Those of a client that comes, asks once and goes are
//! taken off. Writes are worth the same everywhere or less at the
//! peer: the list of promises under the table says what an answer means at each server.
//!
//! # How it is written down
//! `--json` gets every row as soon as there is one; `--resume` goes on from such a file. `--only`
//! and `--medium` measure a part.

#![forbid(unsafe_code)]

mod account;
mod chains;
mod check;
mod fio;
mod guest;
mod images;
mod kind;
mod live;
mod machine;
mod measure;
mod measured;
mod memory;
mod offline;
mod ours;
mod plan;
mod points;
mod process;
mod random;
mod row;
mod rows;
mod run;
mod server;
mod snapshot;
mod stage;
mod stats;
mod table;
mod trace;
mod vhost;
mod windows;

use anyhow::{Result, bail};
use clap::Parser;
use plan::Medium;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

/// Measures the data path against its peers.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The xylem-tapdisk to measure; a release build
    #[arg(long)]
    tapdisk: PathBuf,
    /// The vhd-util to measure; a release build
    #[arg(long)]
    vhd_util: PathBuf,
    /// Folder on a disk, preferably ext4; what is made in it is removed
    #[arg(long, default_value = ".")]
    disk: PathBuf,
    /// Folder on a tmpfs
    #[arg(long, default_value = "/dev/shm")]
    tmpfs: PathBuf,
    /// Write the rows to this file, as they come
    #[arg(long)]
    json: Option<PathBuf>,
    /// Go on from what the JSON file holds
    #[arg(long, requires = "json")]
    resume: bool,
    /// 2 short pairs instead of 7 longer ones, of each peer the first way only
    #[arg(long)]
    quick: bool,
    /// Only these ids, such as P1,P3
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these media
    #[arg(long, value_delimiter = ',')]
    medium: Vec<Medium>,
    /// Pairs per point
    #[arg(long)]
    pairs: Option<usize>,
    /// Milliseconds of a run
    #[arg(long)]
    run_ms: Option<u64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut ended = signal(SignalKind::terminate())?;
        // Whichever is first, the other is dropped, and with it every server and file.
        tokio::select! {
            done = run::bench(&args) => done,
            _ = ended.recv() => bail!("ended by a signal"),
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        }
    })
}

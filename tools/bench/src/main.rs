//! `xylem-bench`: our data path and its peers, in turn, at the same work on the same bytes.
//!
//! All servers serve one disk over NBD on a unix socket to one client, fio. What they are given is
//! equal: the same random bytes as a raw file, as our dynamic VHD (of which `qemu-nbd vpc` serves
//! a copy) and as a qcow2; `O_DIRECT` for all that have it, or the page cache for all. No server
//! promises less at a flush than the peer it is compared with.
//!
//! CPU time per request is the steadiest number and IOPS the noisiest: fio takes a core of its
//! own at around 200k requests a second, and a virtual disk has moods.

#![forbid(unsafe_code)]

mod account;
mod fio;
mod images;
mod measure;
mod memory;
mod ours;
mod plan;
mod process;
mod report;
mod server;
mod stats;
mod trace;

use anyhow::{Context, Result, bail};
use clap::Parser;
use measure::{Effort, Measuring};
use ours::Installed;
use plan::Medium;
use server::{Kind, Servers};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use trace::Tracer;

/// Magic number of ext4 in `statfs`.
const EXT4: i64 = 0xEF53;

/// Measures the data path against its peers.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The xylem-tapdisk to measure; a release build
    #[arg(long)]
    tapdisk: PathBuf,
    /// Folder on a disk, preferably ext4; what is made in it is removed
    #[arg(long, default_value = ".")]
    disk: PathBuf,
    /// Folder on a tmpfs
    #[arg(long, default_value = "/dev/shm")]
    tmpfs: PathBuf,
    /// Write the rows to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// 3 short pairs instead of 7 longer ones, under 3 minutes
    #[arg(long)]
    quick: bool,
    /// Pairs per point
    #[arg(long)]
    pairs: Option<u64>,
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
            done = bench(&args) => done,
            _ = ended.recv() => bail!("ended by a signal"),
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        }
    })
}

async fn bench(args: &Args) -> Result<()> {
    let begun = Instant::now();
    let load = account::load();
    let scratch = tempfile::tempdir()?;
    let servers = Servers::new(Installed {
        // It starts with another working directory.
        binary: std::path::absolute(&args.tapdisk)?,
        run_dir: scratch.path().to_owned(),
    });
    let measuring = Measuring {
        servers: &servers,
        effort: effort(args, begun),
        tracer: Tracer::find().await,
        scratch: scratch.path(),
    };
    let image_bytes = if args.quick { 256 << 20 } else { 1 << 30 };

    let mut all = Vec::new();
    let disk = tempfile::tempdir_in(&args.disk).context("making a folder on the disk")?;
    images::make_full(&servers, disk.path(), image_bytes).await?;
    all.extend(measuring.medium(Medium::DiskDirect, disk.path()).await?);
    images::warm(disk.path(), &[Kind::QemuRaw, Kind::Ours, Kind::QemuVpc])?;
    all.extend(measuring.medium(Medium::DiskCached, disk.path()).await?);
    let tmpfs = tempfile::tempdir_in(&args.tmpfs).context("making a folder on the tmpfs")?;
    images::make_full(&servers, tmpfs.path(), image_bytes).await?;
    all.extend(measuring.medium(Medium::Tmpfs, tmpfs.path()).await?);

    let disk_name = file_system(&args.disk)?;
    let mut rows = report::rows(&all, disk_name);
    rows.extend(memory::measure(&servers, tmpfs.path(), scratch.path()).await?);
    println!("{}", report::context(&all, disk_name));
    println!("{}", report::table(&rows));
    println!(
        "{} of {} aims met; load {load} at the start, {} at the end; {} s; system calls by {}",
        rows.iter().filter(|row| row.met).count(),
        rows.len(),
        account::load(),
        begun.elapsed().as_secs(),
        measuring.tracer.name(),
    );
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&rows)?;
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

fn effort(args: &Args, begun: Instant) -> Effort {
    let (rounds, run_ms, limit) = match args.quick {
        true => (3, 200, Duration::from_secs(120)),
        false => (7, 2000, Duration::from_secs(3600)),
    };
    Effort {
        quick: args.quick,
        rounds: args.pairs.unwrap_or(rounds).max(1),
        run_ms: args.run_ms.unwrap_or(run_ms).max(1),
        until: begun + limit,
    }
}

/// The name of the disk's file system in tables.
fn file_system(dir: &Path) -> Result<&'static str> {
    let magic = rustix::fs::statfs(dir)?.f_type;
    Ok(if magic == EXT4 { "ext4" } else { "disk" })
}

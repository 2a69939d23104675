//! P10, on files that nobody has open: `vhd-util coalesce` beside `cp` of the same bytes.
//!
//! Both begin with nothing of the source cached (on a disk) and end when the result is on the
//! medium.

use crate::guest::{Op, perform};
use crate::images::{evict, settle};
use crate::measure::Measuring;
use crate::ours::{Cache, Image};
use crate::plan::{Aim, Medium};
use crate::process;
use crate::random::Random;
use crate::row::{Peer, Row};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::process::Command;

const BLOCK_BYTES: u64 = 2 << 20;

const CHUNK_BYTES: u64 = 64 << 10;

/// How long one copy may take.
const COPY: Duration = Duration::from_secs(120);

/// MB/s of libvhd's vhd-util 4.0.8 with scattered extents of 64 KiB, recorded on a quiet machine;
/// the middle of 145 to 167 on ext4.
const LIBVHD_EXT4: f64 = 156.0;
const LIBVHD_TMPFS: f64 = 335.0;

/// A parent with nothing in it, a copy of that to begin anew with, and a child.
struct Pair {
    parent: Image,
    empty: PathBuf,
    child: Image,
    /// Bytes that the child holds.
    bytes: u64,
}

/// Coalesces full blocks and scattered extents.
///
/// # Errors
/// When a file, a process or the client fails.
///
/// # Cancel safety
/// Safe: what runs is ended.
pub(crate) async fn measure(
    with: &Measuring<'_>,
    dir: &Path,
    medium: Medium,
    on: &str,
) -> Result<Vec<Row>> {
    let disk_bytes = if with.effort.quick {
        128 << 20
    } else {
        1 << 30
    };
    let full = pair(with, &dir.join("full"), disk_bytes, full(disk_bytes)).await?;
    let copied = full.child.path.with_file_name("copy.vhd");
    let (mut ours, mut cp) = (Vec::new(), Vec::new());
    for _ in 0..with.effort.rounds {
        ours.push(coalesce(with, &full).await?);
        cp.push(copy(&full, &copied).await?);
    }
    let peer = Peer {
        name: "cp and fsync".to_owned(),
        values: cp,
        recorded: false,
    };
    let work = "vhd-util coalesce of full blocks into an empty parent: MB/s";
    let first = Row::against("P10", work, on, &ours, &peer, Aim::LeastTimes(1.0));
    fs::remove_dir_all(dir.join("full"))?;

    let scattered = pair(
        with,
        &dir.join("scattered"),
        disk_bytes,
        scattered(disk_bytes),
    )
    .await?;
    let mut ours = Vec::new();
    for _ in 0..with.effort.rounds {
        ours.push(coalesce(with, &scattered).await?);
    }
    let peer = Peer {
        name: "libvhd vhd-util, recorded".to_owned(),
        values: vec![if medium == Medium::Tmpfs {
            LIBVHD_TMPFS
        } else {
            LIBVHD_EXT4
        }],
        recorded: true,
    };
    let work = "vhd-util coalesce of scattered 64 KiB extents into an empty parent: MB/s";
    let second = Row::against("P10", work, on, &ours, &peer, Aim::LeastTimes(5.0));
    Ok(first.into_iter().chain(second).collect())
}

/// Every byte of the disk.
pub(crate) fn full(disk_bytes: u64) -> Vec<Op> {
    let step = 1u64 << 20;
    let writes = (0..disk_bytes / step).map(|index| Op::Write {
        offset: index * step,
        bytes: step as u32,
    });
    writes.collect()
}

/// 16 random ones of the 32 chunks of 64 KiB in each block.
pub(crate) fn scattered(disk_bytes: u64) -> Vec<Op> {
    let mut random = Random::new(5);
    let mut ops = Vec::new();
    for block in 0..disk_bytes / BLOCK_BYTES {
        for chunk in random.some(16, BLOCK_BYTES / CHUNK_BYTES) {
            ops.push(Op::Write {
                offset: block * BLOCK_BYTES + chunk * CHUNK_BYTES,
                bytes: CHUNK_BYTES as u32,
            });
        }
    }
    ops
}

/// Bytes that so many writes write.
pub(crate) fn bytes_of(ops: &[Op]) -> u64 {
    let bytes = ops.iter().map(|op| match op {
        Op::Write { bytes, .. } => u64::from(*bytes),
        Op::Read { .. } | Op::Flush => 0,
    });
    bytes.sum()
}

async fn pair(with: &Measuring<'_>, dir: &Path, disk_bytes: u64, mut ops: Vec<Op>) -> Result<Pair> {
    fs::create_dir_all(dir)?;
    let bytes = bytes_of(&ops);
    ops.push(Op::Flush);
    let maker = with.servers.ours().await?;
    let parent = maker
        .create(&dir.join("parent.vhd"), disk_bytes, None)
        .await?;
    let empty = dir.join("empty.vhd");
    fs::copy(&parent.path, &empty)?;
    let child = maker
        .create(&dir.join("child.vhd"), disk_bytes, Some(&parent))
        .await?;
    maker.exit().await?;
    let ours = with.servers.ours().await?;
    ours.open(&[&child.path, &parent.path], Cache::Page).await?;
    perform(&ours.serve().await?, 4, ops).await?;
    ours.stop().await?;
    settle(&child.path)?;
    Ok(Pair {
        parent,
        empty,
        child,
        bytes,
    })
}

/// MB/s.
async fn coalesce(with: &Measuring<'_>, pair: &Pair) -> Result<f64> {
    fs::copy(&pair.empty, &pair.parent.path)?;
    settle(&pair.parent.path)?;
    let mut command = Command::new(with.vhd_util);
    command.arg("coalesce").arg("-n").arg(&pair.child.path);
    timed(pair, command, &pair.parent.path).await
}

/// MB/s.
async fn copy(pair: &Pair, to: &Path) -> Result<f64> {
    let mut command = Command::new("cp");
    command.args(["--reflink=never", "--sparse=never"]);
    command.arg(&pair.child.path).arg(to);
    let speed = timed(pair, command, to).await?;
    fs::remove_file(to)?;
    Ok(speed)
}

async fn timed(pair: &Pair, command: Command, result: &Path) -> Result<f64> {
    evict(&pair.child.path)?;
    let begun = Instant::now();
    process::output(command, COPY).await?;
    settle(result).context("the result")?;
    Ok(pair.bytes as f64 / begun.elapsed().as_secs_f64() / 1e6)
}

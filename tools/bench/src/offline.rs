//! P10 without a guest: an image into its empty parent beside `cp` of the same bytes, by
//! `vhd-util coalesce` and by the data path.
//!
//! All begin with nothing of the source cached (on a disk) and end when the result is on the
//! medium.

use crate::account::written_bytes;
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

/// Who coalesces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    VhdUtil,
    /// What the daemon does below a disk in use, here without one.
    DataPath,
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::VhdUtil => "vhd-util coalesce",
            Self::DataPath => "coalescing by the data path",
        }
    }

    /// The tool goes through the page cache, the data path past it where there is one.
    fn works_on(self, medium: Medium) -> bool {
        match self {
            Self::VhdUtil => medium != Medium::DiskDirect,
            Self::DataPath => medium != Medium::DiskCached,
        }
    }
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
        512 << 20
    };
    let full = pair(with, &dir.join("full"), disk_bytes, full(disk_bytes)).await?;
    let copied = full.child.path.with_file_name("copy.vhd");
    let tools = [Tool::VhdUtil, Tool::DataPath];
    let mut rows = Vec::new();
    for tool in tools.into_iter().filter(|tool| tool.works_on(medium)) {
        let (mut ours, mut values) = (Vec::new(), Vec::new());
        for _ in 0..with.effort.rounds {
            ours.push(coalesce(with, tool, medium, &full).await?);
            values.push(copy(&full, &copied).await?);
        }
        let peer = Peer {
            name: "cp and fsync".to_owned(),
            values,
            recorded: false,
        };
        let work = format!("{}, full blocks into an empty parent: MB/s", tool.name());
        rows.extend(Row::against(
            "P10",
            &work,
            on,
            &ours,
            &peer,
            Aim::LeastTimes(1.0),
        ));
    }
    fs::remove_dir_all(dir.join("full"))?;

    let scattered = pair(
        with,
        &dir.join("scattered"),
        disk_bytes,
        scattered(disk_bytes),
    )
    .await?;
    let libvhd = if medium == Medium::Tmpfs {
        LIBVHD_TMPFS
    } else {
        LIBVHD_EXT4
    };
    let peer = Peer {
        name: "libvhd vhd-util, recorded".to_owned(),
        values: vec![libvhd],
        recorded: true,
    };
    for tool in tools.into_iter().filter(|tool| tool.works_on(medium)) {
        let mut ours = Vec::new();
        for _ in 0..with.effort.rounds {
            ours.push(coalesce(with, tool, medium, &scattered).await?);
        }
        let work = format!(
            "{}, scattered 64 KiB into an empty parent: MB/s",
            tool.name()
        );
        rows.extend(Row::against(
            "P10",
            &work,
            on,
            &ours,
            &peer,
            Aim::LeastTimes(5.0),
        ));
    }
    if medium == Medium::DiskDirect {
        rows.extend(moved(with, &dir.join("moved"), disk_bytes, on).await?);
    }
    Ok(rows)
}

/// Bytes written per byte that somebody can see, where a sealed layer hides half of what is moved.
async fn moved(with: &Measuring<'_>, dir: &Path, disk_bytes: u64, on: &str) -> Result<Option<Row>> {
    let pair = pair(with, dir, disk_bytes, scattered(disk_bytes)).await?;
    let maker = with.servers.ours().await?;
    let path = dir.join("above.vhd");
    let above = maker.create(&path, disk_bytes, Some(&pair.child)).await?;
    maker.exit().await?;
    let half = disk_bytes / 2 / BLOCK_BYTES * BLOCK_BYTES;
    let chain = [&above.path, &pair.child.path, &pair.parent.path].map(PathBuf::as_path);
    write(with, &chain, full(half)).await?;
    let visible = scattered(disk_bytes).into_iter().filter(|op| match op {
        Op::Write { offset, .. } => *offset >= half,
        Op::Read { .. } | Op::Flush => false,
    });
    let visible = bytes_of(&visible.collect::<Vec<Op>>());
    let mut ratios = Vec::new();
    for _ in 0..with.effort.rounds.min(3) {
        fs::copy(&pair.empty, &pair.parent.path)?;
        settle(&pair.parent.path)?;
        let ours = with.servers.ours().await?;
        let before = written_bytes(ours.pid())?;
        ours.coalesce(&chain, 1, Cache::Direct).await?;
        let written = written_bytes(ours.pid())?.saturating_sub(before);
        ours.exit().await?;
        ratios.push(written as f64 / visible as f64);
    }
    let work = "coalescing by the data path, half of it hidden: bytes written per visible byte";
    Ok(Row::alone("P10", work, on, &ratios, Aim::Most(1.02)))
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
    write(with, &[&child.path, &parent.path], ops).await?;
    settle(&child.path)?;
    Ok(Pair {
        parent,
        empty,
        child,
        bytes,
    })
}

/// Writes to a disk with that chain.
async fn write(with: &Measuring<'_>, chain: &[&Path], ops: Vec<Op>) -> Result<()> {
    let ours = with.servers.ours().await?;
    ours.open(chain, Cache::Page).await?;
    perform(&ours.serve().await?, 4, ops).await?;
    ours.stop().await
}

/// MB/s.
async fn coalesce(with: &Measuring<'_>, tool: Tool, medium: Medium, pair: &Pair) -> Result<f64> {
    fs::copy(&pair.empty, &pair.parent.path)?;
    settle(&pair.parent.path)?;
    match tool {
        Tool::VhdUtil => {
            let mut command = Command::new(with.vhd_util);
            command.arg("coalesce").arg("-n").arg(&pair.child.path);
            timed(pair, command, &pair.parent.path).await
        }
        Tool::DataPath => {
            let ours = with.servers.ours().await?;
            evict(&pair.child.path)?;
            let chain = [pair.child.path.as_path(), pair.parent.path.as_path()];
            let begun = Instant::now();
            ours.coalesce(&chain, 0, medium.cache()).await?;
            settle(&pair.parent.path)?;
            let seconds = begun.elapsed().as_secs_f64();
            ours.exit().await?;
            Ok(pair.bytes as f64 / seconds / 1e6)
        }
    }
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

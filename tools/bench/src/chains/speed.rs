//! Random reads through a deep chain beside the same reads from its base alone.

use super::build::{self, Chain, Spread, native_qcow2};
use crate::fio::{Direction, Flush, Job, Pattern, Until};
use crate::measure::Measuring;
use crate::ours::{Cache, Ours};
use crate::plan::Aim;
use crate::row::{Peer, Row};
use crate::stats::Summary;
use anyhow::Result;
use std::path::Path;

/// Blocks half full of what lies in all layers.
const DEEP: usize = 30;

/// Deeper than any tool makes them on purpose.
const VERY_DEEP: usize = 500;

/// A server whose chain is so deep.
struct Reader {
    pid: u32,
    uri: String,
}

/// Rounds of a deep chain and of what it is compared with.
struct Pairs {
    pairs: Vec<(Speed, Speed)>,
    foreign_cores: f64,
}

/// What one run of it came to.
#[derive(Debug, Clone, Copy)]
struct Speed {
    iops: f64,
    cpu_per_100k: f64,
    foreign_cores: f64,
}

/// Measures chains of 30 and of 500 layers, and qcow2's chain of 30 to compare.
///
/// # Errors
/// When a file, a server or the client fails.
///
/// # Cancel safety
/// Safe: what runs is ended.
pub(crate) async fn measure(with: &Measuring<'_>, dir: &Path, medium: &str) -> Result<Vec<Row>> {
    let quick = with.effort.quick;
    let disk_bytes = if quick { 128 << 20 } else { 512 << 20 };
    let blocks = disk_bytes >> 21;
    let scattered = Spread {
        blocks: blocks / 4,
        chunks: 16,
    };
    let mut rows = Vec::new();
    let depth = if quick { 8 } else { DEEP };
    let folder = dir.join("deep");
    let chain = build::ours(with.servers, &folder, disk_bytes, depth, scattered, true).await?;
    let pairs = beside_one(with, chain).await?;
    std::fs::remove_dir_all(&folder)?;
    let note = match quick {
        true => None,
        false => Some(peers(with, dir, disk_bytes, scattered).await?),
    };
    rows.extend(rows_of(depth, 1.05, medium, &pairs, note));

    // One chunk in each of a quarter of the blocks: 16 would be 32 GiB.
    let thin = Spread {
        chunks: 1,
        ..scattered
    };
    let depth = if quick { 60 } else { VERY_DEEP };
    let folder = dir.join("very-deep");
    let chain = build::ours(with.servers, &folder, disk_bytes, depth, thin, true).await?;
    let pairs = beside_one(with, chain).await?;
    std::fs::remove_dir_all(&folder)?;
    rows.extend(rows_of(depth, 1.10, medium, &pairs, None));
    Ok(rows)
}

/// The deep chain, and its full base alone in a process of its own, in turn.
async fn beside_one(with: &Measuring<'_>, chain: Chain) -> Result<Pairs> {
    // The base has been sealed long ago: all may read it.
    let shallow: Ours = with.servers.ours().await?;
    shallow.open_to_read(&chain.below(0), Cache::Direct).await?;
    let deep = Reader {
        pid: chain.ours.pid(),
        uri: chain.uri.clone(),
    };
    let one = Reader {
        pid: shallow.pid(),
        uri: shallow.serve().await?,
    };
    let pairs = pairs(with, &deep, &one).await?;
    shallow.stop().await?;
    chain.ours.stop().await?;
    Ok(pairs)
}

async fn pairs(with: &Measuring<'_>, deep: &Reader, one: &Reader) -> Result<Pairs> {
    for reader in [deep, one] {
        // All bitmaps once, as on a disk that has been in use for a while.
        let warm = Job {
            pattern: Pattern::Sequential,
            request_bytes: 1 << 20,
            depth: 4,
            until: Until::Requests(crate::guest::Guest::connect(&reader.uri)?.size_bytes >> 20),
            ..random_read(with, 0)
        };
        warm.run(&reader.uri, with.scratch).await?;
    }
    let rounds = with.rounds(async |round| {
        let job = random_read(with, round as u64);
        let (deep, one) = (
            speed(with, &job, deep).await?,
            speed(with, &job, one).await?,
        );
        let foreign_cores = deep.foreign_cores.max(one.foreign_cores);
        Ok(((deep, one), foreign_cores))
    });
    let (pairs, foreign_cores) = rounds.await?;
    Ok(Pairs {
        pairs,
        foreign_cores,
    })
}

async fn speed(with: &Measuring<'_>, job: &Job, reader: &Reader) -> Result<Speed> {
    let sample = with.run(job, reader.pid, &reader.uri, false).await?;
    let requests = sample.outcome.requests as f64;
    Ok(Speed {
        iops: requests / sample.outcome.seconds,
        cpu_per_100k: sample.cpu_seconds / requests * 1e5,
        foreign_cores: sample.foreign_cores,
    })
}

/// What others lose to depth, in words.
async fn peers(
    with: &Measuring<'_>,
    dir: &Path,
    disk_bytes: u64,
    spread: Spread,
) -> Result<String> {
    let folder = dir.join("qcow2");
    let files = build::qcow2(with.servers, &folder, disk_bytes, DEEP, spread).await?;
    let folder_of = |depth: usize| files.get(depth).and_then(|file| file.parent());
    let (Some(deep), Some(one)) = (folder_of(DEEP), folder_of(0)) else {
        anyhow::bail!("a chain of {} files", files.len());
    };
    let kind = native_qcow2();
    let servers = (
        with.servers.start(kind, deep, Cache::Direct).await?,
        with.servers.start(kind, one, Cache::Direct).await?,
    );
    let reader = |server: &crate::server::Server| Reader {
        pid: server.pid,
        uri: server.uri.clone(),
    };
    let pairs = pairs(with, &reader(&servers.0), &reader(&servers.1)).await?;
    servers.0.stop().await?;
    servers.1.stop().await?;
    std::fs::remove_dir_all(&folder)?;
    let iops = ratio(&pairs, |speed| speed.iops);
    let cpu = ratio(&pairs, |speed| speed.cpu_per_100k);
    Ok(format!(
        "{} the same here: IOPS {iops:.2}x, CPU {cpu:.2}x; tapdisk 4.0.8, recorded: IOPS 0.62x, \
         CPU 1.67x",
        kind.name()
    ))
}

fn rows_of(
    depth: usize,
    cpu_most: f64,
    medium: &str,
    measured: &Pairs,
    note: Option<String>,
) -> Vec<Row> {
    let row = |metric: &str, value: fn(&Speed) -> f64, aim| {
        let work =
            format!("4 KiB random read, depth 32, {depth} layers above a full base: {metric}");
        let pairs = measured.pairs.iter();
        let ours: Vec<f64> = pairs.clone().map(|(deep, _)| value(deep)).collect();
        let peer = Peer {
            name: "xylem-tapdisk, base alone".to_owned(),
            values: pairs.map(|(_, one)| value(one)).collect(),
            recorded: false,
        };
        let row = Row::against("P7", &work, medium, &ours, &peer, aim);
        row.map(|mut row| {
            row.foreign_cores = Some(measured.foreign_cores);
            row.note.clone_from(&note);
            row
        })
    };
    let cpu = row(
        "server CPU s per 100k requests",
        |speed| speed.cpu_per_100k,
        Aim::MostTimes(cpu_most),
    );
    let iops = row("IOPS", |speed| speed.iops, Aim::LeastTimes(0.95));
    cpu.into_iter().chain(iops).collect()
}

fn ratio(measured: &Pairs, value: fn(&Speed) -> f64) -> f64 {
    let pairs = measured.pairs.iter();
    let (deep, one): (Vec<f64>, Vec<f64>) = pairs.map(|(a, b)| (value(a), value(b))).unzip();
    Summary::of_ratios(&deep, &one).map_or(f64::NAN, |summary| summary.median)
}

fn random_read(with: &Measuring<'_>, seed: u64) -> Job {
    Job {
        pattern: Pattern::Random,
        direction: Direction::Read,
        request_bytes: 4096,
        depth: 32,
        clients: 1,
        flush: Flush::Never,
        until: Until::Time(with.effort.run_ms),
        seed,
    }
}

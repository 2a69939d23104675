//! P9: vhost-user-blk, without a guest in the way: the client is a driver.
//!
//! *Null*: reads of a disk that holds nothing, so that all of the work is the front end's and the
//! engine's. The driver polls its queue. Counted per core: requests by seconds of CPU time of the
//! server.
//!
//! *File*: reads of a full disk past the page cache, against fio with io_uring on the same file.
//! Here the driver sleeps until it is called, as fio does until something is completed.

use crate::account::cpu_seconds;
use crate::fio::outcome;
use crate::guest::{Op, perform};
use crate::measure::Measuring;
use crate::ours::Cache;
use crate::plan::Aim;
use crate::process;
use crate::random::Random;
use crate::row::{Peer, Row};
use crate::stats::Summary;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::process::Command;
use vhost_driver::{Ask, FrontEnd, Options, Status};

const REQUEST_BYTES: u32 = 4096;
const SECTORS: u64 = REQUEST_BYTES as u64 / 512;

/// Requests in flight: enough for the server to find some whenever it looks.
const NULL_DEPTH: usize = 64;
const FILE_DEPTH: usize = 32;

/// Thousand requests a second of the server's CPU time.
const NULL_AIM: f64 = 500.0;
/// Of what fio gets out of the same file.
const FILE_AIM: f64 = 0.9;

/// How long either side may take beyond its time.
const SLACK: Duration = Duration::from_secs(20);

/// What a driver does when nothing is answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Idle {
    Polls,
    Sleeps,
}

/// How a driver drives.
#[derive(Debug, Clone, Copy)]
struct Drive {
    depth: usize,
    idle: Idle,
    disk_bytes: u64,
    run: Duration,
    seed: u64,
}

/// What a driver did.
#[derive(Debug, Clone, Copy)]
struct Driven {
    requests: u64,
    seconds: f64,
}

impl Driven {
    fn thousands(self) -> f64 {
        self.requests as f64 / self.seconds / 1e3
    }
}

/// Measures both.
///
/// # Errors
/// When a file, a process or the driver fails.
///
/// # Cancel safety
/// A driver that was started goes on to its end.
pub(crate) async fn measure(with: &Measuring<'_>, dir: &Path, medium: &str) -> Result<Vec<Row>> {
    let null = null(with, dir).await?;
    let file = file(with, dir, medium).await?;
    Ok(null.into_iter().chain(file).collect())
}

async fn null(with: &Measuring<'_>, dir: &Path) -> Result<Option<Row>> {
    let disk_bytes = 1 << 30;
    let (mut per_core, mut iops) = (Vec::new(), Vec::new());
    let ours = with.servers.ours().await?;
    let image = ours.create(&dir.join("null.vhd"), disk_bytes, None).await?;
    ours.open(&[&image.path], Cache::Page).await?;
    let socket = ours.serve_vhost_user().await?;
    for round in 0..with.effort.rounds as u64 {
        let before = cpu_seconds(ours.pid())?;
        let how = Drive {
            depth: NULL_DEPTH,
            idle: Idle::Polls,
            disk_bytes,
            run: Duration::from_millis(with.effort.run_ms),
            seed: round,
        };
        let driven = drive(&socket, how).await?;
        let cpu = cpu_seconds(ours.pid())? - before;
        per_core.push(driven.requests as f64 / cpu.max(0.001) / 1e3);
        iops.push(driven.thousands());
    }
    ours.stop().await?;
    let work = "vhost-user, 4 KiB reads of nothing, depth 64: thousand requests per CPU second";
    let row = Row::alone("P9", work, "memory", &per_core, Aim::Least(NULL_AIM));
    let iops = Summary::of(&iops).context("no rounds")?;
    Ok(row.map(|row| row.note(format!("{:.0} thousand requests a second", iops.median))))
}

async fn file(with: &Measuring<'_>, dir: &Path, medium: &str) -> Result<Option<Row>> {
    let disk_bytes: u64 = if with.effort.quick {
        256 << 20
    } else {
        1 << 30
    };
    let ours = with.servers.ours().await?;
    let image = ours.create(&dir.join("full.vhd"), disk_bytes, None).await?;
    ours.open(&[&image.path], Cache::Direct).await?;
    perform(&ours.serve().await?, 4, fill(disk_bytes)).await?;
    let socket = ours.serve_vhost_user().await?;
    let (mut iops, mut theirs) = (Vec::new(), Vec::new());
    let (mut cpu, mut their_cpu) = (Vec::new(), Vec::new());
    for round in 0..with.effort.rounds as u64 {
        let before = cpu_seconds(ours.pid())?;
        let how = Drive {
            depth: FILE_DEPTH,
            idle: Idle::Sleeps,
            disk_bytes,
            run: Duration::from_millis(with.effort.run_ms),
            seed: round,
        };
        let driven = drive(&socket, how).await?;
        let used = cpu_seconds(ours.pid())? - before;
        cpu.push(used / driven.requests as f64 * 1e5);
        iops.push(driven.thousands());
        let (thousands, cpu) = fio(&image.path, with, round).await?;
        theirs.push(thousands);
        their_cpu.push(cpu);
    }
    ours.stop().await?;
    let peer = Peer {
        name: "fio io_uring on the file".to_owned(),
        values: theirs,
        recorded: false,
    };
    let work = "vhost-user, 4 KiB random reads, depth 32: thousand requests a second";
    let row = Row::against("P9", work, medium, &iops, &peer, Aim::LeastTimes(FILE_AIM));
    let cpu = Summary::of(&cpu).context("no rounds")?.median;
    let their_cpu = Summary::of(&their_cpu).context("no rounds")?.median;
    let note = format!("{cpu:.2} s of CPU per 100k, fio itself {their_cpu:.2}");
    Ok(row.map(|row| row.note(note)))
}

/// Everything once.
fn fill(disk_bytes: u64) -> Vec<Op> {
    let step = 1u64 << 20;
    let writes = (0..disk_bytes / step).map(|index| Op::Write {
        offset: index * step,
        bytes: step as u32,
    });
    writes.chain([Op::Flush]).collect()
}

/// Reads at random places for so long, on a thread of its own.
async fn drive(socket: &Path, how: Drive) -> Result<Driven> {
    let socket = PathBuf::from(socket);
    tokio::task::spawn_blocking(move || reads(&socket, how)).await?
}

fn reads(socket: &Path, how: Drive) -> Result<Driven> {
    let mut front = FrontEnd::connect(
        socket,
        Options {
            queue_size: 128,
            data_bytes: REQUEST_BYTES,
            ..Options::default()
        },
    )?;
    let queue = front.queues.first_mut().context("a queue")?;
    if how.idle == Idle::Polls {
        queue.refuse_calls();
    }
    let places = how.disk_bytes / u64::from(REQUEST_BYTES);
    let mut random = Random::new(how.seed);
    let mut done = Vec::with_capacity(how.depth);
    let mut requests = 0_u64;
    let begun = Instant::now();
    let mut stopping = false;
    while !stopping || queue.in_flight() > 0 {
        while !stopping
            && queue.in_flight() < how.depth
            && let Some(slot) = queue.slot()
        {
            let sector = random.below(places) * SECTORS;
            let bytes = REQUEST_BYTES;
            queue.put(slot, Ask::Read { sector, bytes });
        }
        queue.tell();
        match how.idle {
            Idle::Polls => queue.poll(&mut done),
            Idle::Sleeps => {
                let answered = queue.wait(&mut done, SLACK.as_millis() as i64)?;
                ensure!(answered, "the server does not answer");
            }
        }
        for answer in done.drain(..) {
            ensure!(answer.status == Status::Ok, "a read: {:?}", answer.status);
            requests += 1;
        }
        let elapsed = begun.elapsed();
        stopping = elapsed >= how.run;
        ensure!(elapsed < how.run + SLACK, "the server does not answer");
    }
    Ok(Driven {
        requests,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// What fio gets out of the same file, in thousands a second, and its seconds of CPU time per 100k.
async fn fio(file: &Path, with: &Measuring<'_>, seed: u64) -> Result<(f64, f64)> {
    let report = with.scratch.join("fio-file.json");
    let mut fio = Command::new("fio");
    fio.args(["--thread", "--eta=never", "--output-format=json"])
        .args(["--name=bench", "--ioengine=io_uring", "--norandommap"])
        .args(["--rw=randread", "--direct=1", "--readonly", "--time_based"])
        .arg(format!("--output={}", report.display()))
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--bs={REQUEST_BYTES}"))
        .arg(format!("--iodepth={FILE_DEPTH}"))
        .arg(format!("--randseed={}", seed.saturating_add(1)))
        .arg(format!("--runtime={}ms", with.effort.run_ms));
    process::output(fio, SLACK + Duration::from_millis(with.effort.run_ms)).await?;
    let outcome = outcome(&report)?;
    let cpu = outcome.client_cores * outcome.seconds;
    let requests = outcome.requests as f64;
    Ok((requests / outcome.seconds / 1e3, cpu / requests * 1e5))
}

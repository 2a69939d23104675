//! One run: stage after stage, each with its own failures, and the tables at the end.

use crate::kind::Family;
use crate::machine::{self, DISTURBED_CORES, Usage};
use crate::measure::{Effort, Measuring, Standing};
use crate::ours::Installed;
use crate::plan::Medium;
use crate::row::Row;
use crate::rows::Rows;
use crate::server::Servers;
use crate::stage::{Experiment, Stage};
use crate::trace::Tracer;
use crate::{Args, account, chains, check, images, live, memory, offline, snapshot, table, vhost};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Magic number of ext4 in `statfs`.
const EXT4: i64 = 0xEF53;

/// How long the machine is watched when nothing is done with it.
const LOOK: Duration = Duration::from_millis(500);

/// How long an experiment waits for the machine to be quiet.
const QUIET: Duration = Duration::from_secs(10);

/// What making the images of one file system takes, about.
const IMAGES: Duration = Duration::from_secs(15);

/// Where images lie and what is there already.
struct Places<'a> {
    args: &'a Args,
    disk_name: &'static str,
    image_bytes: u64,
    disk: Option<TempDir>,
    tmpfs: Option<TempDir>,
    warm: bool,
}

/// Measures what the arguments ask for.
///
/// # Errors
/// When something that all stages need is not there, or, after all others, when a stage failed.
///
/// # Cancel safety
/// Safe: what runs is ended and what was made is removed.
pub(crate) async fn bench(args: &Args) -> Result<()> {
    let begun = Instant::now();
    let scratch = tempfile::tempdir()?;
    let servers = Servers::new(Installed {
        // It starts with another working directory.
        binary: std::path::absolute(&args.tapdisk)?,
        run_dir: scratch.path().to_owned(),
    });
    let vhd_util = std::path::absolute(&args.vhd_util)?;
    let measuring = Measuring {
        servers: &servers,
        vhd_util: &vhd_util,
        effort: Effort::new(args.quick, args.pairs, args.run_ms),
        tracer: Tracer::find().await,
        scratch: scratch.path(),
    };
    let mut rows = match (&args.json, args.resume) {
        (Some(json), true) => Rows::resume(json.clone(), args.only.clone())?,
        (json, _) => Rows::new(json.clone(), args.only.clone()),
    };
    let stages = wanted(args, &measuring.effort, &rows);
    introduce(&stages, &measuring).await?;

    let mut places = Places::new(args)?;
    let failed = measure(&stages, &measuring, &mut places, &mut rows).await?;
    let rows = rows.sorted();
    println!("\n{}", table::table(&rows));
    println!("{}", table::promises());
    println!(
        "{} of {} aims met; {} s; load {} at the end; system calls by {}",
        rows.iter().filter(|row| row.met).count(),
        rows.len(),
        begun.elapsed().as_secs(),
        account::load(),
        measuring.tracer.name(),
    );
    if !failed.is_empty() {
        bail!("not measured:\n{}", failed.join("\n"));
    }
    Ok(())
}

/// Goes through the stages; returns what failed.
async fn measure(
    stages: &[Stage],
    measuring: &Measuring<'_>,
    places: &mut Places<'_>,
    rows: &mut Rows,
) -> Result<Vec<String>> {
    let mut failed = Vec::new();
    let mut standing = Standing::new();
    for (index, stage) in stages.iter().enumerate() {
        let name = stage.name();
        eprintln!("bench: {}/{}: {name}", index + 1, stages.len());
        match one(*stage, measuring, places, &mut standing).await {
            Ok(measured) => rows.add(&name, measured)?,
            Err(error) => {
                let text = format!("{name}: {error:#}");
                eprintln!("  failed: {text}");
                failed.push(text);
                // Whatever is wrong, the next one begins with servers of its own.
                standing.clear();
            }
        }
        let next = stages.get(index + 1);
        let goes_on = next.is_some_and(|next| match next {
            Stage::Point(_, medium) => *medium == stage.medium(),
            Stage::Experiment(..) => false,
        });
        if !goes_on {
            for (kind, server) in std::mem::take(&mut standing) {
                let stopped = server.stop().await;
                stopped.with_context(|| format!("{name}: ending {}", kind.name()))?;
            }
            places.leave(next.map(|next| next.medium()));
        }
    }
    Ok(failed)
}

async fn one(
    stage: Stage,
    measuring: &Measuring<'_>,
    places: &mut Places<'_>,
    standing: &mut Standing,
) -> Result<Vec<Row>> {
    match stage {
        Stage::Point(point, medium) => {
            let disk = places.disk_name;
            let dir = places.full(measuring.servers, medium).await?;
            let measured = measuring.point(point, medium, dir, standing).await?;
            println!("{}", table::context(&measured, disk));
            let goals = point.goals.iter();
            let goals = goals.filter(|goal| goal.media.contains(&medium));
            Ok(goals
                .filter_map(|goal| Row::of(goal, &measured, disk))
                .collect())
        }
        Stage::Experiment(experiment, medium) => {
            let before = quiet(measuring.effort.quick).await?;
            let dir = tempfile::tempdir_in(places.root(medium))?;
            let on = medium.on(places.disk_name);
            let done = run_experiment(experiment, measuring, dir.path(), medium, &on).await;
            dir.close()?;
            let mut rows = done?;
            let load = before.max(look().await?);
            for row in &mut rows {
                row.foreign_cores.get_or_insert(load);
            }
            Ok(rows)
        }
    }
}

async fn run_experiment(
    experiment: Experiment,
    with: &Measuring<'_>,
    dir: &Path,
    medium: Medium,
    on: &str,
) -> Result<Vec<Row>> {
    match experiment {
        Experiment::Chains => chains::measure_speed(with, dir, on).await,
        Experiment::OpenChain => chains::measure_open(with, dir, on).await,
        Experiment::VhostUser => vhost::measure(with, dir, on).await,
        Experiment::Offline => offline::measure(with, dir, medium, on).await,
        Experiment::Coalesce => live::coalesce(with, dir, on).await,
        Experiment::Mirror => live::mirror(with, dir, on).await,
        Experiment::Snapshot => snapshot::measure(with, dir, on).await,
        Experiment::Memory => memory::measure(with, dir, on).await,
        Experiment::Check => check::measure(with, dir, on).await,
    }
}

/// Cores that others use just now.
async fn look() -> Result<f64> {
    let usage = Usage::now()?;
    tokio::time::sleep(LOOK).await;
    usage.foreign_cores_since(0.0)
}

/// Waits for a while until others leave the machine alone, unless it must be quick; returns how
/// many cores they use then.
async fn quiet(quick: bool) -> Result<f64> {
    let mut least = look().await?;
    let until = Instant::now() + QUIET;
    while !quick && least > DISTURBED_CORES && Instant::now() < until {
        least = look().await?;
    }
    Ok(least)
}

/// Says what is going to be done with what, for how long and beside whom.
async fn introduce(stages: &[Stage], measuring: &Measuring<'_>) -> Result<()> {
    let foreign = look().await?;
    let sum: Duration = stages.iter().map(|s| s.estimate(&measuring.effort)).sum();
    println!("{}", machine::versions().await);
    println!(
        "{} stages, about {} minutes on a quiet machine; others use {foreign:.2} cores now",
        stages.len(),
        (sum + IMAGES * 2).as_secs().div_ceil(60)
    );
    Ok(())
}

fn wanted(args: &Args, effort: &Effort, rows: &Rows) -> Vec<Stage> {
    let all = Stage::all(effort).into_iter();
    all.filter(|stage| args.medium.is_empty() || args.medium.contains(&stage.medium()))
        .filter(|stage| stage.serves(|id| rows.wants(id)))
        .filter(|stage| !rows.has(&stage.name()))
        .collect()
}

impl<'a> Places<'a> {
    fn new(args: &'a Args) -> Result<Self> {
        Ok(Self {
            args,
            disk_name: file_system(&args.disk)?,
            image_bytes: if args.quick { 256 << 20 } else { 1 << 30 },
            disk: None,
            tmpfs: None,
            warm: false,
        })
    }

    fn root(&self, medium: Medium) -> &'a Path {
        match medium {
            Medium::DiskDirect | Medium::DiskCached => &self.args.disk,
            Medium::Tmpfs => &self.args.tmpfs,
        }
    }

    /// The folder with the full images of a medium, made when it is first needed.
    async fn full(&mut self, servers: &Servers, medium: Medium) -> Result<&Path> {
        let root = self.root(medium);
        let place = match medium {
            Medium::DiskDirect | Medium::DiskCached => &mut self.disk,
            Medium::Tmpfs => &mut self.tmpfs,
        };
        let dir = match place.take() {
            Some(dir) => dir,
            None => {
                let dir = tempfile::tempdir_in(root)
                    .with_context(|| format!("making a folder in {}", root.display()))?;
                images::make_full(servers, dir.path(), self.image_bytes).await?;
                dir
            }
        };
        if medium == Medium::DiskCached && !self.warm {
            let all = [
                Family::QemuRaw,
                Family::Ours,
                Family::QemuVpc,
                Family::QemuQcow2,
            ];
            images::warm(dir.path(), &all)?;
            self.warm = true;
        }
        Ok(place.insert(dir).path())
    }

    /// Removes images that what comes next has no use for.
    fn leave(&mut self, next: Option<Medium>) {
        if next != Some(Medium::Tmpfs) {
            self.tmpfs = None;
        }
        if !matches!(next, Some(Medium::DiskDirect | Medium::DiskCached)) {
            self.disk = None;
        }
    }
}

/// The name of the disk's file system in tables.
fn file_system(dir: &Path) -> Result<&'static str> {
    let magic = rustix::fs::statfs(dir)?.f_type;
    Ok(if magic == EXT4 { "ext4" } else { "disk" })
}

//! Runs the servers in turn and keeps what was measured.
//!
//! One round runs each server of a point once, one after the other: A B C, A B C, … A server's
//! values of the same round are compared, so that a machine that is slow for a while is fair. A
//! peer that has several ways to do its I/O runs in all of them in the first rounds (the heats);
//! those that win in nothing stay out of the later ones. A round in which others used the machine
//! is run again, so often.

use crate::account;
use crate::fio::{Job, Outcome, Until};
use crate::images::{evict, make_empty, settle, used_bytes};
use crate::kind::{Family, Kind};
use crate::machine::{DISTURBED_CORES, Usage};
use crate::measured::{Measured, Round, Sample};
use crate::ours::Cache;
use crate::plan::{Amount, EMPTY_BYTES, Image, Medium, Point};
use crate::server::{Server, Servers};
use crate::trace::Tracer;
use anyhow::Result;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::time::Duration;

/// What starting the client, counting and looking around take beside each run.
const BESIDE: Duration = Duration::from_millis(250);

/// What making an image and starting a server on it take.
const FRESH: Duration = Duration::from_millis(400);

/// How thorough to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    /// Rounds in which a peer runs in all of its ways.
    pub(crate) heats: usize,
    /// Further rounds in which system calls are counted.
    pub(crate) counted: usize,
    /// Further rounds a point may have because others used the machine.
    pub(crate) repeats: usize,
    pub(crate) run_ms: u64,
}

/// What the measuring needs besides a medium.
pub(crate) struct Measuring<'a> {
    pub(crate) servers: &'a Servers,
    /// The tool for files that nobody has open.
    pub(crate) vhd_util: &'a Path,
    pub(crate) effort: Effort,
    pub(crate) tracer: Tracer,
    /// Folder for the client's reports.
    pub(crate) scratch: &'a Path,
}

/// Whether others use the machine while something is measured.
pub(crate) struct Beside {
    usage: Usage,
    pids: Vec<u32>,
    before_s: f64,
}

impl Beside {
    /// Begins to watch; the servers with those process ids are no others.
    ///
    /// # Errors
    /// When a server is gone.
    pub(crate) fn begin(pids: &[u32]) -> Result<Self> {
        Ok(Self {
            usage: Usage::now()?,
            pids: pids.to_vec(),
            before_s: cpu_seconds(pids)?,
        })
    }

    /// Cores that others used since then.
    ///
    /// # Errors
    /// When a server is gone.
    pub(crate) fn cores(&self) -> Result<f64> {
        let known_s = cpu_seconds(&self.pids)? - self.before_s;
        self.usage.foreign_cores_since(known_s)
    }
}

fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| account::cpu_seconds(*pid)).sum()
}

/// Servers that stay up over the points of a medium.
pub(crate) type Standing = BTreeMap<Kind, Server>;

/// Who runs in the rounds of a point.
struct Field {
    kinds: Vec<Kind>,
    traced: bool,
}

impl Effort {
    /// The usual effort, with other pairs or runs if wanted.
    pub(crate) fn new(quick: bool, pairs: Option<usize>, run_ms: Option<u64>) -> Self {
        let (rounds, usual_ms) = if quick { (2, 200) } else { (7, 800) };
        let rounds = pairs.unwrap_or(rounds).max(1);
        Self {
            quick,
            rounds,
            // In the quick run each has one way only.
            heats: if quick { rounds } else { 2 },
            counted: if quick { 1 } else { 3 },
            repeats: if quick { 0 } else { rounds / 2 },
            run_ms: run_ms.unwrap_or(usual_ms).max(1),
        }
    }

    /// Whether a point is measured on a medium.
    pub(crate) fn has(&self, point: &Point, medium: Medium) -> bool {
        let media = if self.quick {
            point.quick_media
        } else {
            point.media
        };
        media.contains(&medium)
    }

    /// How long a point takes, about, without repeats.
    pub(crate) fn estimate(&self, point: &Point, medium: Medium) -> Duration {
        let all = self.kinds(point, medium).len();
        let later = self.rounds.saturating_sub(self.heats);
        let counted = if point.traced { self.counted } else { 0 };
        // About one way of each server is left after the heats.
        let runs = all * self.heats.min(self.rounds) + (later + counted) * point.servers.len();
        let mut each = BESIDE;
        each += match point.amount {
            Amount::Time => Duration::from_millis(self.run_ms),
            Amount::Requests { .. } => Duration::from_millis(300),
        };
        if point.image == Image::Empty {
            each += FRESH;
        }
        each * u32::try_from(runs).unwrap_or(u32::MAX)
    }

    /// Every server of a point in every way it has there; when it must be quick, in one.
    fn kinds(&self, point: &Point, medium: Medium) -> Vec<Kind> {
        let ways = if self.quick { 1 } else { usize::MAX };
        let families = point.servers.iter();
        families
            .flat_map(|family| family.kinds(medium.cache()).into_iter().take(ways))
            .collect()
    }

    fn job(&self, point: &Point, round: usize, traced: bool) -> Job {
        let until = match point.amount {
            Amount::Time if traced => Until::Time(self.run_ms.div_ceil(2)),
            Amount::Time => Until::Time(self.run_ms),
            Amount::Requests { quick, .. } if self.quick => Until::Requests(quick),
            Amount::Requests { full, .. } => Until::Requests(full),
        };
        Job {
            pattern: point.pattern,
            direction: point.direction,
            request_bytes: point.request_bytes,
            depth: point.depth,
            clients: point.clients,
            flush: point.flush,
            until,
            seed: round as u64,
        }
    }
}

impl Measuring<'_> {
    /// Measures a point on a medium whose full images are in `dir`.
    ///
    /// # Errors
    /// When a server or the client fails.
    ///
    /// # Cancel safety
    /// Safe: what runs is ended.
    pub(crate) async fn point(
        &self,
        point: &'static Point,
        medium: Medium,
        dir: &Path,
        standing: &mut Standing,
    ) -> Result<Measured> {
        let effort = &self.effort;
        let mut field = Field {
            kinds: effort.kinds(point, medium),
            traced: false,
        };
        let mut measured = Measured::new(point, medium);
        loop {
            let done = measured.rounds.len();
            let repeats = measured
                .disturbed_rounds(DISTURBED_CORES)
                .min(effort.repeats);
            if done >= effort.rounds + repeats {
                break;
            }
            if done == effort.heats {
                field.kinds = measured.winners(&field.kinds);
            }
            let round = self
                .round(&mut field, done, &mut measured, dir, standing)
                .await?;
            measured.rounds.push(round);
        }
        measured.keep_quietest(effort.rounds);
        if point.traced {
            field.traced = true;
            for number in 0..effort.counted {
                let round = self
                    .round(&mut field, number, &mut measured, dir, standing)
                    .await?;
                measured.counted.push(round);
            }
        }
        Ok(measured)
    }

    /// Does something in rounds: as many as asked for, and some again in which others used the
    /// machine. A round says how many cores that was; returns what is left of the quietest, in
    /// order, and the most cores among them.
    ///
    /// # Errors
    /// When a round fails.
    ///
    /// # Cancel safety
    /// That of the rounds.
    pub(crate) async fn rounds<T>(
        &self,
        mut round: impl AsyncFnMut(usize) -> Result<(T, f64)>,
    ) -> Result<(Vec<T>, f64)> {
        let (mut done, effort) = (Vec::new(), &self.effort);
        loop {
            let loads = done.iter().map(|(_, cores): &(T, f64)| *cores);
            let disturbed = loads.filter(|cores| *cores > DISTURBED_CORES).count();
            if done.len() >= effort.rounds + disturbed.min(effort.repeats) {
                break;
            }
            done.push(round(done.len()).await?);
        }
        while done.len() > effort.rounds {
            let loads = done.iter().enumerate();
            let loudest = loads.max_by(|(_, (_, a)), (_, (_, b))| a.total_cmp(b));
            let index = loudest.map_or(0, |(index, _)| index);
            done.remove(index);
        }
        let most = done.iter().map(|(_, cores)| *cores).fold(0.0, f64::max);
        Ok((done.into_iter().map(|(value, _)| value).collect(), most))
    }

    async fn round(
        &self,
        field: &mut Field,
        number: usize,
        measured: &mut Measured,
        dir: &Path,
        standing: &mut Standing,
    ) -> Result<Round> {
        let (point, medium) = (measured.point, measured.medium);
        let job = self.effort.job(point, number, field.traced);
        let mut round = Round::default();
        for kind in field.kinds.clone() {
            let run = match point.image {
                Image::Full => {
                    self.standing(&job, kind, medium, dir, standing, field.traced)
                        .await
                }
                Image::Empty => self.fresh(&job, kind, medium, dir, field.traced).await,
            };
            let (mut sample, rss_bytes_max) = match run {
                Ok(run) => run,
                // A way that a peer does not have here is no reason to measure nothing.
                Err(error) if kind != Kind::OURS => {
                    standing.remove(&kind);
                    field.kinds.retain(|other| *other != kind);
                    let text = format!("{} is left out: {error:#}", kind.name());
                    eprintln!("  {text}");
                    measured.left_out.push(text);
                    continue;
                }
                Err(error) => return Err(error.context(kind.name())),
            };
            if field.traced && point.image == Image::Full {
                sample.greeting = self.greeting(&job, kind, standing, measured).await?;
            }
            let rss = measured.rss_bytes_max.entry(kind).or_default();
            *rss = rss_bytes_max.max(*rss);
            round.foreign_cores = round.foreign_cores.max(sample.foreign_cores);
            round.samples.insert(kind, sample);
        }
        Ok(round)
    }

    /// The system calls of clients that come, ask once and go, and how many requests that were;
    /// counted once for each server.
    async fn greeting(
        &self,
        job: &Job,
        kind: Kind,
        standing: &Standing,
        measured: &mut Measured,
    ) -> Result<Option<(u64, u64)>> {
        if let Some(known) = measured.greetings.get(&kind) {
            return Ok(Some(*known));
        }
        let Some(server) = standing.get(&kind) else {
            return Ok(None);
        };
        let once = Job {
            until: Until::Requests(1),
            ..*job
        };
        let sample = self.run(&once, server.pid, &server.uri, true).await?;
        let counts = sample
            .counts
            .map(|counts| (counts.syscalls, sample.outcome.requests));
        measured
            .greetings
            .extend(counts.map(|counts| (kind, counts)));
        Ok(counts)
    }

    /// Runs against a server that stays, started at its first run.
    async fn standing(
        &self,
        job: &Job,
        kind: Kind,
        medium: Medium,
        dir: &Path,
        standing: &mut Standing,
        traced: bool,
    ) -> Result<(Sample, u64)> {
        let image = dir.join(kind.file());
        if kind.family == Family::NbdkitFile && medium == Medium::DiskDirect {
            evict(&image)?;
        }
        let server = match standing.entry(kind) {
            Entry::Occupied(running) => running.into_mut(),
            Entry::Vacant(place) => {
                place.insert(self.servers.start(kind, dir, medium.cache()).await?)
            }
        };
        let run = self.run_on(job, server, traced).await?;
        if job.writes() && (medium.cache() == Cache::Page || kind.family == Family::NbdkitFile) {
            // What it left in the page cache is not to be written while the next one runs.
            settle(&image)?;
        }
        Ok(run)
    }

    /// Runs against a server on an image that was just made.
    async fn fresh(
        &self,
        job: &Job,
        kind: Kind,
        medium: Medium,
        dir: &Path,
        traced: bool,
    ) -> Result<(Sample, u64)> {
        let dir = dir.join("empty");
        std::fs::create_dir_all(&dir)?;
        make_empty(self.servers, kind.family, &dir, EMPTY_BYTES).await?;
        let image = dir.join(kind.file());
        let before = used_bytes(&image)?;
        let server = self.servers.start(kind, &dir, medium.cache()).await?;
        if traced {
            // Counts are of the work, not of what the first write after opening prepares.
            let first = Job {
                until: Until::Requests(1),
                ..*job
            };
            first.run(&server.uri, self.scratch).await?;
        }
        let run = self.run_on(job, &server, traced).await?;
        server.stop().await?;
        let (mut sample, rss_bytes_max) = run;
        sample.grown_bytes = used_bytes(&image)?.checked_sub(before);
        std::fs::remove_file(&image)?;
        Ok((sample, rss_bytes_max))
    }

    async fn run_on(&self, job: &Job, server: &Server, traced: bool) -> Result<(Sample, u64)> {
        let sample = self.run(job, server.pid, &server.uri, traced).await?;
        Ok((sample, account::rss_bytes_max(server.pid)?))
    }

    /// Runs the client once against the server with that process id.
    ///
    /// # Errors
    /// When the client fails or the server is gone.
    ///
    /// # Cancel safety
    /// Safe: the client is ended.
    pub(crate) async fn run(&self, job: &Job, pid: u32, uri: &str, traced: bool) -> Result<Sample> {
        let usage = Usage::now()?;
        let before = account::cpu_seconds(pid)?;
        let (outcome, counts): (Outcome, _) = if traced {
            let run = self.tracer.run(job, pid, uri, self.scratch);
            run.await.map(|(outcome, counts)| (outcome, Some(counts)))?
        } else {
            (job.run(uri, self.scratch).await?, None)
        };
        let cpu_seconds = account::cpu_seconds(pid)? - before;
        Ok(Sample {
            outcome,
            cpu_seconds,
            foreign_cores: usage.foreign_cores_since(cpu_seconds)?,
            grown_bytes: None,
            counts,
            greeting: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::points::POINTS;

    #[test]
    fn quick_means_one_way_of_each_server() {
        let [point, ..] = &POINTS;
        let servers = point.servers.len();
        assert_eq!(
            Effort::new(true, None, None)
                .kinds(point, Medium::Tmpfs)
                .len(),
            servers
        );
        assert!(
            Effort::new(false, None, None)
                .kinds(point, Medium::Tmpfs)
                .len()
                > servers
        );
    }

    #[test]
    fn every_goal_is_on_a_medium_and_against_a_server_of_its_point() {
        use crate::plan::Against;
        for point in &POINTS {
            for goal in point.goals {
                let media = goal.media.iter().all(|medium| point.media.contains(medium));
                assert!(media, "{} {}", goal.id, point.work);
                assert!(
                    point.traced || !goal.metric.is_counted(),
                    "{} {}",
                    goal.id,
                    point.work
                );
                if let Against::Peer(family) = goal.against {
                    assert!(
                        point.servers.contains(&family),
                        "{} {}",
                        goal.id,
                        point.work
                    );
                }
            }
        }
    }
}

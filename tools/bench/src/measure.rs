//! Runs the servers in turn and keeps what was measured.
//!
//! One round runs each server of a point once, one after the other: A B C, A B C, … A server's
//! values of the same round are compared, so that a machine that is slow for a while is fair.

use crate::fio::{Job, Outcome, Until};
use crate::images::{evict, make_empty, used_bytes};
use crate::plan::{Amount, EMPTY_BYTES, Image, Medium, Metric, Point};
use crate::server::{Kind, Server, Servers};
use crate::stats::Summary;
use crate::trace::{Counts, Tracer};
use crate::{account, plan};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::time::Instant;

/// How thorough to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) quick: bool,
    pub(crate) rounds: u64,
    pub(crate) run_ms: u64,
    /// After this no further round begins.
    pub(crate) until: Instant,
}

/// One run of one server.
#[derive(Debug, Clone, Copy)]
struct Sample {
    outcome: Outcome,
    cpu_seconds: f64,
    /// Bytes the image grew by, where it was empty.
    grown_bytes: Option<u64>,
    counts: Option<Counts>,
}

/// All runs of one server at one point.
#[derive(Debug, Default)]
pub(crate) struct Series {
    samples: Vec<Sample>,
    traced: Option<Sample>,
    pub(crate) rss_bytes_max: u64,
}

/// All runs of all servers at one point.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) point: &'static Point,
    pub(crate) medium: Medium,
    pub(crate) series: BTreeMap<Kind, Series>,
}

/// What the measuring needs besides a medium.
pub(crate) struct Measuring<'a> {
    pub(crate) servers: &'a Servers,
    pub(crate) effort: Effort,
    pub(crate) tracer: Tracer,
    /// Folder for the client's reports.
    pub(crate) scratch: &'a Path,
}

impl Measuring<'_> {
    /// Measures every point of a medium whose full images are in `dir`.
    ///
    /// # Errors
    /// When a server or the client fails.
    ///
    /// # Cancel safety
    /// Safe: what runs is ended.
    pub(crate) async fn medium(&self, medium: Medium, dir: &Path) -> Result<Vec<Measured>> {
        let mut standing = BTreeMap::new();
        let mut all = Vec::new();
        for point in &plan::POINTS {
            let media = match self.effort.quick {
                true => point.quick_media,
                false => point.media,
            };
            if !media.contains(&medium) {
                continue;
            }
            eprintln!("bench: {}: {}", medium.name(), point.work);
            let measured = self.point(point, medium, dir, &mut standing).await;
            all.push(measured.with_context(|| format!("{}: {}", medium.name(), point.work))?);
        }
        for (_, server) in standing {
            server.stop().await?;
        }
        Ok(all)
    }

    async fn point(
        &self,
        point: &'static Point,
        medium: Medium,
        dir: &Path,
        standing: &mut BTreeMap<Kind, Server>,
    ) -> Result<Measured> {
        let mut measured = Measured {
            point,
            medium,
            series: BTreeMap::new(),
        };
        // The last round is the one that is traced.
        let rounds = self.effort.rounds.saturating_add(point.traced.into());
        for round in 0..rounds {
            let traced = round == self.effort.rounds;
            if round > 0 && !traced && Instant::now() > self.effort.until {
                continue;
            }
            for kind in point.servers {
                let job = self.job(point, round);
                let run = match point.image {
                    Image::Full => {
                        self.standing(&job, *kind, medium, dir, standing, traced)
                            .await
                    }
                    Image::Empty => self.fresh(&job, *kind, medium, dir, traced).await,
                };
                let (sample, rss_bytes_max) = run.with_context(|| kind.name())?;
                let series = measured.series.entry(*kind).or_default();
                series.rss_bytes_max = series.rss_bytes_max.max(rss_bytes_max);
                match traced {
                    true => series.traced = Some(sample),
                    false => series.samples.push(sample),
                }
            }
        }
        Ok(measured)
    }

    /// Runs against a server that stays, started at its first run.
    async fn standing(
        &self,
        job: &Job,
        kind: Kind,
        medium: Medium,
        dir: &Path,
        standing: &mut BTreeMap<Kind, Server>,
        traced: bool,
    ) -> Result<(Sample, u64)> {
        if kind == Kind::NbdkitFile && medium == Medium::DiskDirect {
            evict(&dir.join(kind.file()))?;
        }
        let server = match standing.entry(kind) {
            Entry::Occupied(running) => running.into_mut(),
            Entry::Vacant(place) => {
                place.insert(self.servers.start(kind, dir, medium.cache()).await?)
            }
        };
        self.run(job, server, traced).await
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
        make_empty(self.servers, kind, &dir, EMPTY_BYTES).await?;
        let image = dir.join(kind.file());
        let before = used_bytes(&image)?;
        let server = self.servers.start(kind, &dir, medium.cache()).await?;
        let run = self.run(job, &server, traced).await?;
        server.stop().await?;
        let (mut sample, rss_bytes_max) = run;
        sample.grown_bytes = used_bytes(&image)?.checked_sub(before);
        std::fs::remove_file(&image)?;
        Ok((sample, rss_bytes_max))
    }

    async fn run(&self, job: &Job, server: &Server, traced: bool) -> Result<(Sample, u64)> {
        let before = account::cpu_seconds(server.pid)?;
        let (outcome, counts) = if traced {
            let tracer = self.tracer;
            let run = tracer.run(job, server.pid, &server.uri, self.scratch);
            run.await.map(|(outcome, counts)| (outcome, Some(counts)))?
        } else {
            (job.run(&server.uri, self.scratch).await?, None)
        };
        let sample = Sample {
            outcome,
            cpu_seconds: account::cpu_seconds(server.pid)? - before,
            grown_bytes: None,
            counts,
        };
        Ok((sample, account::rss_bytes_max(server.pid)?))
    }

    fn job(&self, point: &Point, seed: u64) -> Job {
        let until = match point.amount {
            Amount::Time => Until::Time(self.effort.run_ms),
            Amount::Requests { quick, .. } if self.effort.quick => Until::Requests(quick),
            Amount::Requests { full, .. } => Until::Requests(full),
        };
        Job {
            pattern: point.pattern,
            direction: point.direction,
            request_bytes: point.request_bytes,
            depth: point.depth,
            flush: point.flush,
            until,
            seed,
        }
    }
}

impl Series {
    /// One value per round, in order; of the traced run alone where only that one has it.
    pub(crate) fn values(&self, metric: Metric) -> Vec<f64> {
        let counted = matches!(metric, Metric::SyscallsPerRequest | Metric::SyncsPerFlush);
        let from: Vec<&Sample> = match counted {
            true => self.traced.iter().collect(),
            false => self.samples.iter().collect(),
        };
        from.iter().filter_map(|s| s.value(metric)).collect()
    }

    /// The middle and the spread of [`Series::values`].
    pub(crate) fn summary(&self, metric: Metric) -> Option<Summary> {
        Summary::of(&self.values(metric))
    }

    /// Median of the slowest hundredth's bound.
    pub(crate) fn p99_us(&self) -> Option<f64> {
        let values: Vec<f64> = self.samples.iter().map(|s| s.outcome.p99_us).collect();
        Summary::of(&values).map(|s| s.median)
    }
}

impl Sample {
    fn value(&self, metric: Metric) -> Option<f64> {
        let run = &self.outcome;
        let (requests, bytes) = (run.requests as f64, run.bytes as f64);
        Some(match metric {
            Metric::Iops => requests / run.seconds,
            Metric::MegabytesPerSecond => bytes / run.seconds / 1e6,
            Metric::CpuPer100k => self.cpu_seconds / requests * 1e5,
            Metric::CpuPerGib => self.cpu_seconds / bytes * f64::from(1 << 30),
            Metric::MeanUs => run.mean_us,
            Metric::P50Us => run.p50_us,
            Metric::SyscallsPerRequest => self.counts?.syscalls as f64 / requests,
            Metric::SyncsPerFlush => self.counts?.syncs? as f64 / run.flushes as f64,
            Metric::KibBeyondData => (self.grown_bytes? as f64 - bytes) / requests / 1024.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(counts: Option<Counts>) -> Sample {
        Sample {
            outcome: Outcome {
                requests: 1000,
                bytes: 4_096_000,
                flushes: 125,
                seconds: 0.5,
                mean_us: 30.0,
                p50_us: 29.0,
                p99_us: 90.0,
            },
            cpu_seconds: 0.02,
            grown_bytes: Some(8_192_000),
            counts,
        }
    }

    #[test]
    fn values_are_per_request_per_second_and_per_byte() {
        let counts = Counts {
            syscalls: 250,
            syncs: Some(250),
        };
        let sample = sample(Some(counts));
        for (metric, expected) in [
            (Metric::Iops, 2000.0),
            (Metric::MegabytesPerSecond, 8.192),
            (Metric::CpuPer100k, 2.0),
            (Metric::CpuPerGib, 5.24288),
            (Metric::SyscallsPerRequest, 0.25),
            (Metric::SyncsPerFlush, 2.0),
            (Metric::KibBeyondData, 4.0),
        ] {
            let value = sample.value(metric).unwrap();
            assert!((value - expected).abs() < 1e-9, "{metric:?}: {value}");
        }
    }

    #[test]
    fn counts_come_from_the_traced_run_and_times_never_do() {
        let counts = Counts {
            syscalls: 250,
            syncs: None,
        };
        let series = Series {
            samples: vec![sample(None)],
            traced: Some(sample(Some(counts))),
            rss_bytes_max: 0,
        };
        assert_eq!(series.values(Metric::SyscallsPerRequest), [0.25]);
        assert!(series.values(Metric::SyncsPerFlush).is_empty());
        assert_eq!(series.values(Metric::Iops), [2000.0]);
    }
}

//! What was measured at one point, and how it is read: by server, by metric, pair by pair.

use crate::fio::Outcome;
use crate::kind::{Family, Kind};
use crate::plan::{Against, Medium, Metric, Point};
use crate::stats::Summary;
use crate::trace::Counts;
use std::collections::BTreeMap;

/// One run of one server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) outcome: Outcome,
    pub(crate) cpu_seconds: f64,
    /// Cores that others used meanwhile.
    pub(crate) foreign_cores: f64,
    /// Bytes the image grew by, where it was empty.
    pub(crate) grown_bytes: Option<u64>,
    pub(crate) counts: Option<Counts>,
    /// System calls, and requests, that belong to coming and going and not to the work.
    pub(crate) greeting: Option<(u64, u64)>,
}

/// One run of each server, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(crate) samples: BTreeMap<Kind, Sample>,
    /// Most cores that others used during one of them.
    pub(crate) foreign_cores: f64,
}

/// All runs of all servers at one point.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) point: &'static Point,
    pub(crate) medium: Medium,
    pub(crate) rounds: Vec<Round>,
    /// Those in which system calls were counted.
    pub(crate) counted: Vec<Round>,
    pub(crate) rss_bytes_max: BTreeMap<Kind, u64>,
    /// [`Sample::greeting`] of each.
    pub(crate) greetings: BTreeMap<Kind, (u64, u64)>,
    /// Peers that failed, and why.
    pub(crate) left_out: Vec<String>,
}

impl Measured {
    pub(crate) fn new(point: &'static Point, medium: Medium) -> Self {
        Self {
            point,
            medium,
            rounds: Vec::new(),
            counted: Vec::new(),
            rss_bytes_max: BTreeMap::new(),
            greetings: BTreeMap::new(),
            left_out: Vec::new(),
        }
    }

    /// Everybody who ran.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.rss_bytes_max.keys().copied()
    }

    /// One value per round, in order; of the rounds with counting where only those have it.
    pub(crate) fn values(&self, kind: Kind, metric: Metric) -> Vec<f64> {
        let samples = self.of(metric).iter().filter_map(|r| r.samples.get(&kind));
        samples.filter_map(|sample| sample.value(metric)).collect()
    }

    /// The middle and the spread of [`Measured::values`].
    pub(crate) fn summary(&self, kind: Kind, metric: Metric) -> Option<Summary> {
        Summary::of(&self.values(kind, metric))
    }

    /// Our values and a peer's of the rounds in which both ran.
    pub(crate) fn pairs(&self, peer: Kind, metric: Metric) -> (Vec<f64>, Vec<f64>) {
        let rounds = self.of(metric).iter();
        let both = rounds.filter_map(|round| {
            let ours = round.samples.get(&Kind::OURS)?.value(metric)?;
            Some((ours, round.samples.get(&peer)?.value(metric)?))
        });
        both.unzip()
    }

    /// The way of a peer that does best in a metric, of those that ran most often.
    pub(crate) fn best(&self, families: &[Family], metric: Metric) -> Option<Kind> {
        let sign = if metric.more_is_better() { -1.0 } else { 1.0 };
        let kinds = self.kinds().filter(|kind| families.contains(&kind.family));
        let found: Vec<(Kind, Vec<f64>)> = kinds
            .map(|kind| (kind, self.values(kind, metric)))
            .collect();
        let most = found.iter().map(|(_, values)| values.len()).max()?;
        let complete = found.iter().filter(|(_, values)| values.len() == most);
        let medians = complete.filter_map(|(k, v)| Some((*k, Summary::of(v)?.median * sign)));
        medians
            .min_by(|(_, a), (_, b)| a.total_cmp(b))
            .map(|(kind, _)| kind)
    }

    /// The peers a row may be compared with.
    pub(crate) fn peers(&self, against: Against) -> Vec<Family> {
        match against {
            Against::Peer(family) => vec![family],
            Against::BestPeer => {
                let peers = self.point.servers.iter().copied();
                peers
                    .filter(|f| !matches!(f, Family::Ours | Family::NbdkitNull))
                    .collect()
            }
            Against::Recorded(..) | Against::Nothing => Vec::new(),
        }
    }

    /// After the heats: of each server the ways that did best in a metric some aim looks at, or in
    /// requests per second.
    pub(crate) fn winners(&self, kinds: &[Kind]) -> Vec<Kind> {
        let timed = self.point.goals.iter().map(|goal| goal.metric);
        let mut metrics: Vec<Metric> = timed.filter(|metric| !metric.is_counted()).collect();
        metrics.push(Metric::Iops);
        let mut kept = Vec::new();
        for kind in kinds {
            let wins = |metric: &Metric| self.best(&[kind.family], *metric) == Some(*kind);
            if metrics.iter().any(wins) {
                kept.push(*kind);
            }
        }
        kept
    }

    /// Rounds during which others used more of the machine than so.
    pub(crate) fn disturbed_rounds(&self, cores: f64) -> usize {
        self.rounds
            .iter()
            .filter(|r| r.foreign_cores > cores)
            .count()
    }

    /// Drops the rounds with the most foreign load until so many are left.
    pub(crate) fn keep_quietest(&mut self, count: usize) {
        while self.rounds.len() > count {
            let loads = self.rounds.iter().enumerate();
            let loudest =
                loads.max_by(|(_, a), (_, b)| a.foreign_cores.total_cmp(&b.foreign_cores));
            match loudest.map(|(index, _)| index) {
                Some(index) => drop(self.rounds.remove(index)),
                None => return,
            }
        }
    }

    /// Cores that others used, median and most.
    pub(crate) fn foreign_cores(&self) -> Option<(f64, f64)> {
        let loads: Vec<f64> = self.rounds.iter().map(|r| r.foreign_cores).collect();
        let most = loads.iter().copied().reduce(f64::max)?;
        Some((Summary::of(&loads)?.median, most))
    }

    /// Cores that the client used against a server, median.
    pub(crate) fn client_cores(&self, kind: Kind) -> Option<f64> {
        let samples = self.rounds.iter().filter_map(|r| r.samples.get(&kind));
        let cores: Vec<f64> = samples.map(|s| s.outcome.client_cores).collect();
        Summary::of(&cores).map(|s| s.median)
    }

    fn of(&self, metric: Metric) -> &[Round] {
        if metric.is_counted() {
            &self.counted
        } else {
            &self.rounds
        }
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
            Metric::P99Us => run.p99_us,
            Metric::SyscallsPerRequest => {
                let (calls, asked) = self.greeting.unwrap_or_default();
                let calls = self.counts?.syscalls.checked_sub(calls)?;
                calls as f64 / run.requests.checked_sub(asked)? as f64
            }
            Metric::SyncsPerFlush => self.counts?.syncs? as f64 / run.flushes as f64,
            Metric::KibBeyondData => (self.grown_bytes? as f64 - bytes) / requests / 1024.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Aio;
    use crate::points::POINTS;

    fn sample(requests: u64, counts: Option<Counts>) -> Sample {
        Sample {
            outcome: Outcome {
                requests,
                bytes: 4_096_000,
                flushes: 125,
                seconds: 0.5,
                mean_us: 30.0,
                p50_us: 29.0,
                p99_us: 90.0,
                client_cores: 0.5,
            },
            cpu_seconds: 0.02,
            foreign_cores: 0.0,
            grown_bytes: Some(8_192_000),
            counts,
            greeting: None,
        }
    }

    fn raw(aio: Aio) -> Kind {
        Kind {
            family: Family::QemuRaw,
            aio,
        }
    }

    fn measured(rounds: Vec<(f64, Vec<(Kind, u64)>)>) -> Measured {
        let [point, ..] = &POINTS;
        let mut measured = Measured::new(point, Medium::Tmpfs);
        for (foreign_cores, runs) in rounds {
            let mut round = Round {
                foreign_cores,
                ..Round::default()
            };
            for (kind, requests) in runs {
                round.samples.insert(kind, sample(requests, None));
                measured.rss_bytes_max.insert(kind, 0);
            }
            measured.rounds.push(round);
        }
        measured
    }

    #[test]
    fn values_are_per_request_per_second_and_per_byte() {
        let counts = Counts {
            syscalls: 250,
            syncs: Some(250),
        };
        let sample = sample(1000, Some(counts));
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
    fn the_calls_of_coming_and_going_are_not_the_works() {
        let counts = Counts {
            syscalls: 2042,
            syncs: None,
        };
        let sample = Sample {
            greeting: Some((44, 1)),
            ..sample(1000, Some(counts))
        };
        assert_eq!(sample.value(Metric::SyscallsPerRequest), Some(2.0));
    }

    #[test]
    fn counts_come_from_counted_rounds_and_times_never_do() {
        let mut measured = measured(vec![(0.0, vec![(Kind::OURS, 1000)])]);
        let counts = Counts {
            syscalls: 250,
            syncs: None,
        };
        let mut round = Round::default();
        round.samples.insert(Kind::OURS, sample(500, Some(counts)));
        measured.counted.push(round);
        assert_eq!(
            measured.values(Kind::OURS, Metric::SyscallsPerRequest),
            [0.5]
        );
        assert!(
            measured
                .values(Kind::OURS, Metric::SyncsPerFlush)
                .is_empty()
        );
        assert_eq!(measured.values(Kind::OURS, Metric::Iops), [2000.0]);
    }

    #[test]
    fn only_the_best_ways_go_on_after_the_heats_and_ours_always() {
        let (native, threads, uring) = (raw(Aio::Native), raw(Aio::Threads), raw(Aio::Uring));
        let heat = vec![
            (Kind::OURS, 10),
            (native, 1000),
            (threads, 10),
            (uring, 999),
        ];
        let measured = measured(vec![(0.0, heat)]);
        let kept = measured.winners(&[Kind::OURS, native, threads, uring]);
        assert_eq!(kept, [Kind::OURS, native]);
    }

    #[test]
    fn a_way_that_ran_in_the_heats_alone_is_no_peer_of_a_row() {
        let (native, uring) = (raw(Aio::Native), raw(Aio::Uring));
        let measured = measured(vec![
            (0.0, vec![(Kind::OURS, 500), (native, 900), (uring, 1000)]),
            (0.0, vec![(Kind::OURS, 600), (native, 900)]),
        ]);
        assert_eq!(
            measured.best(&[Family::QemuRaw], Metric::Iops),
            Some(native)
        );
        assert_eq!(
            measured.pairs(uring, Metric::Iops),
            (vec![1000.0], vec![2000.0])
        );
    }

    #[test]
    fn the_loudest_rounds_are_dropped_and_the_order_stays() {
        let round = |foreign, requests| (foreign, vec![(Kind::OURS, requests)]);
        let mut measured = measured(vec![
            round(0.1, 1),
            round(0.9, 2),
            round(0.0, 3),
            round(0.3, 4),
        ]);
        assert_eq!(measured.disturbed_rounds(0.25), 2);
        measured.keep_quietest(2);
        assert_eq!(measured.values(Kind::OURS, Metric::Iops), [2.0, 6.0]);
        assert_eq!(measured.foreign_cores(), Some((0.05, 0.1)));
    }
}

//! Rows, the tables and the JSON.

use crate::measure::{Measured, Series};
use crate::plan::{Against, Aim, Goal, Medium, Metric};
use crate::server::Kind;
use crate::stats::Summary;
use serde::Serialize;
use std::fmt::{self, Display, Formatter};

/// One aim and what was measured for it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) id: &'static str,
    /// The work and the metric with its unit.
    pub(crate) work: String,
    pub(crate) medium: String,
    /// Median of ours.
    pub(crate) ours: f64,
    /// Median of the peer's.
    pub(crate) peer: Option<f64>,
    pub(crate) peer_name: Option<String>,
    /// Median of ours divided by theirs, pair by pair.
    pub(crate) ratio: Option<f64>,
    pub(crate) aim: String,
    pub(crate) met: bool,
    /// How many times it was measured; fewer than asked for where time ran out.
    pub(crate) pairs: usize,
    /// First and third quartile of ours.
    pub(crate) ours_spread: [f64; 2],
    /// First and third quartile of the ratio.
    pub(crate) ratio_spread: Option<[f64; 2]>,
}

impl Row {
    /// A row that was measured once and has no peer.
    pub(crate) fn alone(id: &'static str, work: String, medium: &str, ours: f64, aim: Aim) -> Self {
        Self {
            id,
            work,
            medium: medium.to_owned(),
            ours,
            peer: None,
            peer_name: None,
            ratio: None,
            aim: aim.to_string(),
            met: aim.is_met(ours, None),
            pairs: 1,
            ours_spread: [ours, ours],
            ratio_spread: None,
        }
    }

    /// The row of a goal; `None` when it was not measured (no counter for it on this machine).
    fn of(goal: &Goal, measured: &Measured, disk: &str) -> Option<Self> {
        let ours = measured.series.get(&Kind::Ours)?.values(goal.metric);
        let summary = Summary::of(&ours)?;
        let (peer_name, theirs) = match goal.against {
            Against::Nothing => (None, Vec::new()),
            Against::Tapdisk(value) => {
                let name = "tapdisk vhd (recorded)".to_owned();
                (Some(name), vec![value; ours.len()])
            }
            Against::Peer(kind) => named(kind, measured, goal.metric)?,
            Against::BestPeer => best_peer(measured, goal.metric)?,
        };
        let ratio = Summary::of_ratios(&ours, &theirs);
        Some(Self {
            id: goal.id,
            work: format!("{}: {}", measured.point.work, goal.metric.name()),
            medium: measured.medium.on(disk),
            ours: summary.median,
            peer: Summary::of(&theirs).map(|s| s.median),
            peer_name,
            ratio: ratio.map(|r| r.median),
            aim: goal.aim.to_string(),
            met: goal.aim.is_met(summary.median, ratio.map(|r| r.median)),
            pairs: ours.len(),
            ours_spread: [summary.low, summary.high],
            ratio_spread: ratio.map(|r| [r.low, r.high]),
        })
    }
}

/// The rows of everything that was measured, by id.
pub(crate) fn rows(all: &[Measured], disk: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = all
        .iter()
        .flat_map(|measured| {
            let goals = measured.point.goals.iter();
            goals
                .filter(|goal| goal.media.contains(&measured.medium))
                .filter_map(|goal| Row::of(goal, measured, disk))
        })
        .collect();
    rows.sort_by_key(|row| row.id);
    rows
}

/// The table of rows.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<4} {:<14} {:>9} {:>15} {:>9} {:>6} {:>11} {:>8} {:<4} {:>2} {:<22} work\n",
        "id",
        "medium",
        "ours",
        "(quartiles)",
        "peer",
        "ratio",
        "(quartiles)",
        "aim",
        "met",
        "n",
        "peer"
    );
    for row in rows {
        let spread = |[low, high]: [f64; 2]| format!("{}..{}", short(low), short(high));
        text += &format!(
            "{:<4} {:<14} {:>9} {:>15} {:>9} {:>6} {:>11} {:>8} {:<4} {:>2} {:<22} {}\n",
            row.id,
            row.medium,
            short(row.ours),
            spread(row.ours_spread),
            row.peer.map(short).unwrap_or_default(),
            row.ratio.map(short).unwrap_or_default(),
            row.ratio_spread.map(spread).unwrap_or_default(),
            row.aim,
            if row.met { "yes" } else { "NO" },
            row.pairs,
            row.peer_name.as_deref().unwrap_or_default(),
            row.work,
        );
    }
    text
}

/// The table of everything that was measured, whoever it is compared with.
pub(crate) fn context(all: &[Measured], disk: &str) -> String {
    let mut text = String::new();
    for measured in all {
        text += &format!(
            "\n{}, {}\n  {:<22} {:>8} {:>15} {:>7} {:>8} {:>8} {:>7} {:>8} {:>8} {:>8}\n",
            measured.medium.on(disk),
            measured.point.work,
            "server",
            "IOPS",
            "(quartiles)",
            "MB/s",
            "CPU/100k",
            "CPU/GiB",
            "p50 us",
            "p99 us",
            "syscalls",
            "RSS MiB"
        );
        for (kind, series) in &measured.series {
            text += &context_line(*kind, series);
        }
    }
    text
}

fn context_line(kind: Kind, series: &Series) -> String {
    let value = |metric| {
        let summary = series.summary(metric);
        summary.map(|s| short(s.median)).unwrap_or_default()
    };
    let iops = series.summary(Metric::Iops);
    let spread = iops.map(|s| format!("{}..{}", short(s.low), short(s.high)));
    format!(
        "  {:<22} {:>8} {:>15} {:>7} {:>8} {:>8} {:>7} {:>8} {:>8} {:>8}\n",
        kind.name(),
        value(Metric::Iops),
        spread.unwrap_or_default(),
        value(Metric::MegabytesPerSecond),
        value(Metric::CpuPer100k),
        value(Metric::CpuPerGib),
        value(Metric::P50Us),
        series.p99_us().map(short).unwrap_or_default(),
        value(Metric::SyscallsPerRequest),
        short(series.rss_bytes_max as f64 / f64::from(1 << 20)),
    )
}

type Named = (Option<String>, Vec<f64>);

fn named(kind: Kind, measured: &Measured, metric: Metric) -> Option<Named> {
    let values = measured.series.get(&kind)?.values(metric);
    Some((Some(kind.name().to_owned()), values))
}

/// The peer with the lowest median, or the highest where more is better.
fn best_peer(measured: &Measured, metric: Metric) -> Option<Named> {
    let sign = if metric.more_is_better() { -1.0 } else { 1.0 };
    let peers = measured.series.iter().filter(|(k, _)| **k != Kind::Ours);
    let medians = peers.filter_map(|(k, s)| Some((*k, s.summary(metric)?.median * sign)));
    let (best, _) = medians.min_by(|(_, a), (_, b)| a.total_cmp(b))?;
    named(best, measured, metric)
}

impl Medium {
    /// For progress.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DiskDirect => "disk O_DIRECT",
            Self::DiskCached => "disk, cached",
            Self::Tmpfs => "tmpfs",
        }
    }

    /// With the file system that the disk has.
    fn on(self, disk: &str) -> String {
        self.name().replace("disk", disk)
    }
}

impl Metric {
    fn name(self) -> &'static str {
        match self {
            Self::Iops => "IOPS",
            Self::MegabytesPerSecond => "MB/s",
            Self::CpuPer100k => "server CPU s per 100k requests",
            Self::CpuPerGib => "server CPU s per GiB",
            Self::MeanUs => "mean us",
            Self::P50Us => "p50 us",
            Self::SyscallsPerRequest => "syscalls per request",
            Self::SyncsPerFlush => "file system flushes per client flush",
            Self::KibBeyondData => "KiB used per request beyond its data",
        }
    }

    fn more_is_better(self) -> bool {
        matches!(self, Self::Iops | Self::MegabytesPerSecond)
    }
}

impl Aim {
    fn is_met(self, ours: f64, ratio: Option<f64>) -> bool {
        match self {
            Self::Most(most) => ours <= most,
            Self::Least(least) => ours >= least,
            Self::MostTimes(most) => ratio.is_some_and(|ratio| ratio <= most),
            Self::LeastTimes(least) => ratio.is_some_and(|ratio| ratio >= least),
        }
    }
}

impl Display for Aim {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Most(most) => write!(f, "<= {most}"),
            Self::Least(least) => write!(f, ">= {least}"),
            Self::MostTimes(most) => write!(f, "<= {most}x"),
            Self::LeastTimes(least) => write!(f, ">= {least}x"),
        }
    }
}

/// Three digits or so.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 10_000.0 => format!("{:.1}k", value / 1000.0),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aims_look_at_the_value_or_at_the_ratio() {
        for (aim, ours, ratio, met) in [
            (Aim::Most(0.5), 0.5, Some(9.0), true),
            (Aim::Most(0.5), 0.6, None, false),
            (Aim::Least(10.0), 10.0, None, true),
            (Aim::MostTimes(0.45), 9.0, Some(0.45), true),
            (Aim::MostTimes(0.45), 0.1, Some(0.46), false),
            (Aim::MostTimes(0.45), 0.1, None, false),
            (Aim::LeastTimes(7.0), 0.1, Some(7.5), true),
            (Aim::LeastTimes(7.0), 99.0, Some(6.9), false),
        ] {
            assert_eq!(aim.is_met(ours, ratio), met, "{aim} of {ours}, {ratio:?}");
        }
    }

    #[test]
    fn numbers_have_three_digits_or_so() {
        for (value, text) in [
            (0.456, "0.46"),
            (12.34, "12.3"),
            (1234.0, "1234"),
            (45_678.0, "45.7k"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn the_json_has_the_agreed_keys() {
        let row = Row::alone("P13", "x".to_owned(), "tmpfs", 2.0, Aim::Most(3.0));
        let json = serde_json::to_value(&row).unwrap();
        for key in [
            "id",
            "work",
            "medium",
            "ours",
            "peer",
            "peer_name",
            "ratio",
            "aim",
            "met",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
    }
}

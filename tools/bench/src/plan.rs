//! The words of the plan: media, points, metrics, aims. The points themselves are in `points`.

use crate::fio::{Direction, Flush, Pattern};
use crate::kind::Family;
use crate::ours::Cache;
use clap::ValueEnum;
use std::fmt::{self, Display, Formatter};

/// Where images lie and how they are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Medium {
    /// A disk's file system, past the page cache.
    #[value(name = "direct")]
    DiskDirect,
    /// A disk's file system through the page cache, warm.
    #[value(name = "cached")]
    DiskCached,
    /// Memory; `O_DIRECT` where the server asks for it, which changes nothing there.
    Tmpfs,
}

impl Medium {
    pub(crate) const ALL: [Self; 3] = [Self::DiskDirect, Self::DiskCached, Self::Tmpfs];

    pub(crate) fn cache(self) -> Cache {
        match self {
            Self::DiskDirect | Self::Tmpfs => Cache::Direct,
            Self::DiskCached => Cache::Page,
        }
    }

    /// For progress.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DiskDirect => "disk O_DIRECT",
            Self::DiskCached => "disk, cached",
            Self::Tmpfs => "tmpfs",
        }
    }

    /// With the file system that the disk has.
    pub(crate) fn on(self, disk: &str) -> String {
        self.name().replace("disk", disk)
    }
}

/// Which image a server gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Image {
    /// Full of random bytes, the same one for all runs.
    Full,
    /// A fresh one with nothing in it for each run, the server started for it.
    Empty,
}

/// How much is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Amount {
    /// As much as goes into the time of a run.
    Time,
    /// So many requests, quick or thorough.
    Requests { quick: u64, full: u64 },
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metric {
    Iops,
    MegabytesPerSecond,
    CpuPer100k,
    CpuPerGib,
    MeanUs,
    P50Us,
    P99Us,
    SyscallsPerRequest,
    /// Flushes that reach the file system per flush of the client.
    SyncsPerFlush,
    /// KiB the image grows by per request, beyond the request's own bytes.
    KibBeyondData,
}

impl Metric {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Iops => "IOPS",
            Self::MegabytesPerSecond => "MB/s",
            Self::CpuPer100k => "server CPU s per 100k requests",
            Self::CpuPerGib => "server CPU s per GiB",
            Self::MeanUs => "mean us",
            Self::P50Us => "p50 us",
            Self::P99Us => "p99 us",
            Self::SyscallsPerRequest => "syscalls per request",
            Self::SyncsPerFlush => "file system flushes per client flush",
            Self::KibBeyondData => "KiB used per request beyond its data",
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::Iops | Self::MegabytesPerSecond)
    }

    /// Whether it comes from the runs in which system calls are counted.
    pub(crate) fn is_counted(self) -> bool {
        matches!(self, Self::SyscallsPerRequest | Self::SyncsPerFlush)
    }
}

/// With what it is compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Against {
    /// A peer in whichever of its ways does best in this metric.
    Peer(Family),
    /// The peer that did best, in its best way.
    BestPeer,
    /// What was measured on a quiet machine like the one these aims were made for; it is not run.
    Recorded(&'static str, f64),
    /// A number, not a peer.
    Nothing,
}

/// XenServer's tapdisk, blktap 4.0.8 with a dynamic VHD and its NBD server: it is not in Debian,
/// so it cannot run here. Recorded on a quiet machine of 2 cores with the same client.
pub(crate) const TAPDISK: &str = "tapdisk 4.0.8, recorded";

/// The prototype that read a raw file with the same ring and the same front end.
pub(crate) const PROTOTYPE: &str = "raw-file prototype, recorded";

/// When it is good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Aim {
    Most(f64),
    Least(f64),
    /// Ours divided by theirs.
    MostTimes(f64),
    LeastTimes(f64),
}

impl Aim {
    pub(crate) fn is_met(self, ours: f64, ratio: Option<f64>) -> bool {
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

/// One row of the result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    pub(crate) id: &'static str,
    pub(crate) media: &'static [Medium],
    pub(crate) metric: Metric,
    pub(crate) against: Against,
    pub(crate) aim: Aim,
}

/// One kind of work and who does it.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) work: &'static str,
    pub(crate) pattern: Pattern,
    pub(crate) direction: Direction,
    pub(crate) request_bytes: u64,
    pub(crate) depth: u32,
    /// Connections, each with so many requests in flight.
    pub(crate) clients: u32,
    pub(crate) flush: Flush,
    pub(crate) amount: Amount,
    pub(crate) image: Image,
    pub(crate) media: &'static [Medium],
    /// Media measured when it must be quick.
    pub(crate) quick_media: &'static [Medium],
    pub(crate) servers: &'static [Family],
    /// Whether system calls are counted in further runs.
    pub(crate) traced: bool,
    pub(crate) goals: &'static [Goal],
}

/// Virtual size of images that start empty: room for every block that is touched.
pub(crate) const EMPTY_BYTES: u64 = 16 << 30;

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
}

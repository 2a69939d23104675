//! What is measured, on what, against whom, and what is aimed at. Data only.

use crate::fio::{Direction, Flush, Pattern};
use crate::ours::Cache;
use crate::server::Kind;

/// Where images lie and how they are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Medium {
    /// A disk's file system, past the page cache.
    DiskDirect,
    /// A disk's file system through the page cache, warm.
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
    SyscallsPerRequest,
    /// Flushes that reach the file system per flush of the client.
    SyncsPerFlush,
    /// KiB the image grows by per request, beyond the request's own bytes.
    KibBeyondData,
}

/// With what it is compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Against {
    Peer(Kind),
    /// The peer that did best.
    BestPeer,
    /// XenServer's tapdisk (blktap 4.0.8, dynamic VHD) as it was measured on a quiet 2-core
    /// machine; it is not in Debian, so it cannot run here.
    Tapdisk(f64),
    /// A number, not a peer.
    Nothing,
}

/// When it is good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Aim {
    Most(f64),
    Least(f64),
    /// Ours divided by theirs.
    MostTimes(f64),
    LeastTimes(f64),
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
    pub(crate) flush: Flush,
    pub(crate) amount: Amount,
    pub(crate) image: Image,
    pub(crate) media: &'static [Medium],
    /// Media measured when it must be quick.
    pub(crate) quick_media: &'static [Medium],
    pub(crate) servers: &'static [Kind],
    /// Whether system calls are counted in one more run.
    pub(crate) traced: bool,
    pub(crate) goals: &'static [Goal],
}

/// Virtual size of images that start empty: room for every block that is touched.
pub(crate) const EMPTY_BYTES: u64 = 16 << 30;

const DIRECT: &[Medium] = &[Medium::DiskDirect];
const TMPFS: &[Medium] = &[Medium::Tmpfs];
const BOTH: &[Medium] = &[Medium::DiskDirect, Medium::Tmpfs];
const KIB_4: u64 = 4 << 10;
const MIB: u64 = 1 << 20;

const fn goal(
    id: &'static str,
    media: &'static [Medium],
    metric: Metric,
    against: Against,
    aim: Aim,
) -> Goal {
    Goal {
        id,
        media,
        metric,
        against,
        aim,
    }
}

use Against::{BestPeer, Nothing, Peer, Tapdisk};
use Aim::{Least, LeastTimes, Most, MostTimes};
use Kind::{NbdkitFile, NbdkitNull, Ours, QemuQcow2, QemuRaw, QemuRawUring, QemuVpc};
use Metric::{
    CpuPer100k, CpuPerGib, Iops, KibBeyondData, MeanUs, MegabytesPerSecond, P50Us, SyncsPerFlush,
    SyscallsPerRequest,
};

const RANDOM_READ: Point = Point {
    work: "4 KiB random read, depth 32",
    pattern: Pattern::Random,
    direction: Direction::Read,
    request_bytes: KIB_4,
    depth: 32,
    flush: Flush::Never,
    amount: Amount::Time,
    image: Image::Full,
    media: &Medium::ALL,
    quick_media: &Medium::ALL,
    servers: &[Ours, QemuRaw, QemuRawUring, NbdkitFile, NbdkitNull],
    traced: true,
    goals: &[
        goal("P1", TMPFS, CpuPer100k, Tapdisk(0.84), MostTimes(0.45)),
        goal("P1", TMPFS, CpuPer100k, Peer(QemuRaw), MostTimes(0.45)),
        goal("P1", TMPFS, CpuPer100k, Peer(NbdkitFile), MostTimes(0.7)),
        goal("P1", DIRECT, CpuPer100k, Tapdisk(1.55), MostTimes(0.35)),
        goal("P1", DIRECT, CpuPer100k, Peer(QemuRaw), MostTimes(0.45)),
        goal("P1", DIRECT, CpuPer100k, Peer(NbdkitFile), MostTimes(0.7)),
        goal("P1", DIRECT, Iops, Tapdisk(39_800.0), LeastTimes(1.8)),
        goal("P1", DIRECT, Iops, Peer(QemuRaw), LeastTimes(1.25)),
        goal(
            "P1",
            &[Medium::DiskCached],
            CpuPer100k,
            Peer(NbdkitFile),
            MostTimes(0.7),
        ),
        goal("P6", DIRECT, SyscallsPerRequest, Peer(QemuRaw), Most(0.5)),
    ],
};

const RANDOM_READ_ALONE: Point = Point {
    work: "4 KiB random read, depth 1",
    depth: 1,
    quick_media: BOTH,
    servers: &[Ours, QemuRaw, NbdkitFile],
    goals: &[
        goal("P2", &Medium::ALL, P50Us, BestPeer, MostTimes(1.0)),
        goal("P2", &Medium::ALL, SyscallsPerRequest, BestPeer, Most(2.0)),
    ],
    ..RANDOM_READ
};

const RANDOM_WRITE: Point = Point {
    work: "4 KiB random write, depth 32, allocated",
    direction: Direction::Write,
    quick_media: BOTH,
    servers: &[Ours, QemuRaw, QemuVpc],
    goals: &[
        goal("P3", BOTH, Iops, Peer(QemuVpc), LeastTimes(7.0)),
        goal("P3", BOTH, Iops, Peer(QemuRaw), LeastTimes(1.1)),
        goal("P3", DIRECT, Iops, Tapdisk(58_000.0), LeastTimes(1.1)),
        goal("P3", TMPFS, Iops, Tapdisk(111_600.0), LeastTimes(1.1)),
        goal("P3", DIRECT, CpuPer100k, Tapdisk(1.30), MostTimes(0.55)),
        goal("P3", TMPFS, CpuPer100k, Tapdisk(0.83), MostTimes(0.55)),
        goal("P6", DIRECT, SyscallsPerRequest, Peer(QemuRaw), Most(0.5)),
    ],
    ..RANDOM_READ
};

const TOUCH_ALONE: Point = Point {
    work: "first touch of a block with 4 KiB, depth 1",
    pattern: Pattern::EachBlock,
    depth: 1,
    amount: Amount::Requests {
        quick: 256,
        full: 1024,
    },
    image: Image::Empty,
    media: DIRECT,
    quick_media: DIRECT,
    servers: &[Ours, QemuQcow2],
    traced: false,
    goals: &[
        goal("P4", DIRECT, MeanUs, Tapdisk(1064.0), MostTimes(0.2)),
        goal("P4", DIRECT, MeanUs, Peer(QemuQcow2), MostTimes(1.1)),
        goal("P4", DIRECT, KibBeyondData, Peer(QemuQcow2), Most(64.0)),
    ],
    ..RANDOM_WRITE
};

const TOUCH_DEEP: Point = Point {
    work: "first touch of a block with 4 KiB, depth 16",
    depth: 16,
    amount: Amount::Requests {
        quick: 2048,
        full: 8192,
    },
    goals: &[
        goal("P4", DIRECT, Iops, Nothing, Least(10_000.0)),
        goal("P4", DIRECT, Iops, Tapdisk(1380.0), LeastTimes(7.0)),
        goal("P4", DIRECT, Iops, Peer(QemuQcow2), LeastTimes(1.0)),
    ],
    ..TOUCH_ALONE
};

const FILL: Point = Point {
    work: "filling an empty disk with 1 MiB writes, depth 4, one flush at the end",
    pattern: Pattern::Sequential,
    request_bytes: MIB,
    depth: 4,
    flush: Flush::AtEnd,
    amount: Amount::Requests {
        quick: 128,
        full: 1024,
    },
    goals: &[
        goal(
            "P4",
            DIRECT,
            MegabytesPerSecond,
            Tapdisk(395.0),
            LeastTimes(2.0),
        ),
        goal(
            "P4",
            DIRECT,
            MegabytesPerSecond,
            Peer(QemuQcow2),
            LeastTimes(1.0),
        ),
    ],
    ..TOUCH_ALONE
};

const FLUSH_EACH: Point = Point {
    work: "4 KiB random write, allocated, a flush after each, depth 1",
    depth: 1,
    flush: Flush::Every(1),
    media: DIRECT,
    quick_media: DIRECT,
    servers: &[Ours, QemuVpc, QemuQcow2],
    traced: false,
    goals: &[
        goal("P5", DIRECT, Iops, Peer(QemuVpc), LeastTimes(1.5)),
        goal("P5", DIRECT, Iops, Peer(QemuQcow2), LeastTimes(1.1)),
    ],
    ..RANDOM_WRITE
};

const FLUSH_EIGHTH: Point = Point {
    work: "4 KiB random write, allocated, a flush after every 8, depth 1",
    flush: Flush::Every(8),
    ..FLUSH_EACH
};

const FLUSH_DIRTY: Point = Point {
    work: "first touch of a block with 4 KiB, a flush after every 8, depth 1",
    flush: Flush::Every(8),
    traced: true,
    goals: &[goal(
        "P5",
        DIRECT,
        SyncsPerFlush,
        Peer(QemuQcow2),
        Most(2.0),
    )],
    ..TOUCH_ALONE
};

const SEQUENTIAL_READ: Point = Point {
    work: "1 MiB sequential read, depth 4",
    pattern: Pattern::Sequential,
    request_bytes: MIB,
    depth: 4,
    quick_media: BOTH,
    servers: &[Ours, QemuRaw, NbdkitFile],
    traced: false,
    goals: &[
        goal(
            "P8",
            DIRECT,
            MegabytesPerSecond,
            Tapdisk(1241.0),
            LeastTimes(1.0),
        ),
        goal(
            "P8",
            TMPFS,
            MegabytesPerSecond,
            Tapdisk(3911.0),
            LeastTimes(1.0),
        ),
        goal(
            "P8",
            BOTH,
            MegabytesPerSecond,
            Peer(NbdkitFile),
            LeastTimes(1.0),
        ),
        goal("P8", BOTH, CpuPerGib, Peer(QemuRaw), Most(0.2)),
    ],
    ..RANDOM_READ
};

const SEQUENTIAL_WRITE: Point = Point {
    work: "1 MiB sequential write, depth 4, allocated",
    direction: Direction::Write,
    goals: &[
        goal(
            "P8",
            DIRECT,
            MegabytesPerSecond,
            Tapdisk(3257.0),
            LeastTimes(1.0),
        ),
        goal(
            "P8",
            TMPFS,
            MegabytesPerSecond,
            Tapdisk(4097.0),
            LeastTimes(1.0),
        ),
        goal(
            "P8",
            BOTH,
            MegabytesPerSecond,
            Peer(NbdkitFile),
            LeastTimes(1.0),
        ),
        goal("P8", BOTH, CpuPerGib, Peer(QemuRaw), Most(0.2)),
    ],
    ..SEQUENTIAL_READ
};

/// Everything that is measured with the client, in this order on each medium.
pub(crate) static POINTS: [Point; 11] = [
    RANDOM_READ,
    RANDOM_READ_ALONE,
    RANDOM_WRITE,
    TOUCH_ALONE,
    TOUCH_DEEP,
    FILL,
    FLUSH_EACH,
    FLUSH_EIGHTH,
    FLUSH_DIRTY,
    SEQUENTIAL_READ,
    SEQUENTIAL_WRITE,
];

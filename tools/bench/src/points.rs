//! What is measured with fio, on what, against whom, and what is aimed at. Data only.

use crate::fio::{Direction, Flush, Pattern};
use crate::kind::Family::{NbdkitFile, NbdkitNull, Ours, QemuQcow2, QemuRaw, QemuVpc};
use crate::plan::Against::{self, BestPeer, Nothing, Peer, Recorded};
use crate::plan::Aim::{self, Least, LeastTimes, Most, MostTimes};
use crate::plan::Metric::{
    self, CpuPer100k, CpuPerGib, Iops, KibBeyondData, MeanUs, MegabytesPerSecond, P50Us,
    SyncsPerFlush, SyscallsPerRequest,
};
use crate::plan::{Amount, Goal, Image, Medium, PROTOTYPE, Point, TAPDISK};

const DIRECT: &[Medium] = &[Medium::DiskDirect];
const CACHED: &[Medium] = &[Medium::DiskCached];
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

const fn tapdisk(value: f64) -> Against {
    Recorded(TAPDISK, value)
}

const fn prototype(value: f64) -> Against {
    Recorded(PROTOTYPE, value)
}

const RANDOM_READ: Point = Point {
    work: "4 KiB random read, depth 32",
    pattern: Pattern::Random,
    direction: Direction::Read,
    request_bytes: KIB_4,
    depth: 32,
    clients: 1,
    flush: Flush::Never,
    amount: Amount::Time,
    image: Image::Full,
    media: &Medium::ALL,
    quick_media: &Medium::ALL,
    servers: &[Ours, QemuRaw, QemuQcow2, QemuVpc, NbdkitFile, NbdkitNull],
    traced: true,
    goals: &[
        goal("P1", TMPFS, CpuPer100k, tapdisk(0.84), MostTimes(0.45)),
        goal("P1", TMPFS, CpuPer100k, Peer(QemuRaw), MostTimes(0.45)),
        goal("P1", TMPFS, CpuPer100k, Peer(NbdkitFile), MostTimes(0.7)),
        goal("P1", TMPFS, CpuPer100k, prototype(0.36), MostTimes(1.1)),
        goal("P1", DIRECT, CpuPer100k, tapdisk(1.55), MostTimes(0.35)),
        goal("P1", DIRECT, CpuPer100k, Peer(QemuRaw), MostTimes(0.45)),
        goal("P1", DIRECT, CpuPer100k, Peer(NbdkitFile), MostTimes(0.7)),
        goal("P1", DIRECT, CpuPer100k, prototype(0.45), MostTimes(1.1)),
        goal("P1", DIRECT, Iops, tapdisk(39_800.0), LeastTimes(1.8)),
        goal("P1", DIRECT, Iops, Peer(QemuRaw), LeastTimes(1.25)),
        goal("P1", CACHED, CpuPer100k, Peer(NbdkitFile), MostTimes(0.7)),
        goal("P6", DIRECT, SyscallsPerRequest, BestPeer, Most(0.5)),
    ],
};

const RANDOM_READ_ALONE: Point = Point {
    work: "4 KiB random read, depth 1",
    depth: 1,
    quick_media: BOTH,
    servers: &[Ours, QemuRaw, QemuQcow2, QemuVpc, NbdkitFile],
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
    servers: &[Ours, QemuRaw, QemuQcow2, QemuVpc],
    goals: &[
        goal("P3", BOTH, Iops, Peer(QemuVpc), LeastTimes(7.0)),
        goal("P3", BOTH, Iops, Peer(QemuRaw), LeastTimes(1.1)),
        goal("P3", DIRECT, Iops, tapdisk(58_000.0), LeastTimes(1.1)),
        goal("P3", TMPFS, Iops, tapdisk(111_600.0), LeastTimes(1.1)),
        goal("P3", DIRECT, CpuPer100k, tapdisk(1.30), MostTimes(0.55)),
        goal("P3", TMPFS, CpuPer100k, tapdisk(0.83), MostTimes(0.55)),
        goal("P6", DIRECT, SyscallsPerRequest, BestPeer, Most(0.5)),
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
        goal("P4", DIRECT, MeanUs, tapdisk(1064.0), MostTimes(0.2)),
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
        goal("P4", DIRECT, Iops, tapdisk(1380.0), LeastTimes(7.0)),
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
            tapdisk(395.0),
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

const FLUSH_TOGETHER: Point = Point {
    work: "4 KiB random write, allocated, a flush after each, 16 clients of depth 1",
    clients: 16,
    traced: true,
    // All flushes of 16 clients at once in less than one flush of the file each.
    goals: &[goal(
        "P5",
        DIRECT,
        SyncsPerFlush,
        Peer(QemuQcow2),
        Most(1.0),
    )],
    ..FLUSH_EACH
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
            tapdisk(1241.0),
            LeastTimes(1.0),
        ),
        goal(
            "P8",
            TMPFS,
            MegabytesPerSecond,
            tapdisk(3911.0),
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
    work: "1 MiB sequential write, depth 4, allocated, one flush at the end",
    direction: Direction::Write,
    // nbdkit's writes stay in the page cache; with a flush all have done the same.
    flush: Flush::AtEnd,
    goals: &[
        goal(
            "P8",
            DIRECT,
            MegabytesPerSecond,
            tapdisk(3257.0),
            LeastTimes(1.0),
        ),
        goal(
            "P8",
            TMPFS,
            MegabytesPerSecond,
            tapdisk(4097.0),
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
pub(crate) static POINTS: [Point; 12] = [
    RANDOM_READ,
    RANDOM_READ_ALONE,
    RANDOM_WRITE,
    TOUCH_ALONE,
    TOUCH_DEEP,
    FILL,
    FLUSH_EACH,
    FLUSH_EIGHTH,
    FLUSH_DIRTY,
    FLUSH_TOGETHER,
    SEQUENTIAL_READ,
    SEQUENTIAL_WRITE,
];

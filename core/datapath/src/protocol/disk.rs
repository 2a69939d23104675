//! How a disk behaves and what is counted of it.

use super::ErrorKind;
use crate::histogram::Histogram;
use serde::{Deserialize, Serialize};

/// What can be chosen for each disk. The default is what a front end with flush wants: no limits,
/// and a write is answered before it is durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskSettings {
    /// How much it may do in a second.
    pub limits: Limits,
    /// For front ends without flush: a change is answered only when it is durable. Changes that
    /// come together share a flush.
    pub write_through: bool,
    /// What happens when the storage refuses a request.
    pub policy: Policy,
    /// Whether its files' bytes go through the page cache. What is shown of an open disk is what
    /// its leaf does: where `direct` cannot be had, the page cache is used.
    pub cache: Cache,
}

/// Whether bytes go through the host's page cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cache {
    /// They do: what is read again is fast, what was written reaches the disk with a flush. The
    /// default, as it works on every file system and with blocks of any size.
    #[default]
    PageCache,
    /// They do not (`O_DIRECT`): nothing is cached twice when the guest caches too, and a write is
    /// on the device when it is answered. Needs files that take 512-byte direct I/O.
    Direct,
}

/// What happens when the storage refuses a request. A barrier that fails is always reported, and
/// poisons the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// When there is no space left, in the file system, the volume or the image.
    pub on_no_space: OnError,
    /// When the storage answers with any other error.
    pub on_io_error: OnError,
}

/// What happens on one kind of error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// The request is answered with it.
    #[default]
    Report,
    /// The request is kept and the disk paused, until somebody resumes it; for want of space also
    /// until there is some again. Only then the client gets an answer.
    Pause,
}

/// Why a disk is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// The error that was met: `NoSpace` or `Io`.
    pub kind: ErrorKind,
    /// The thing and the number.
    pub message: String,
    /// Since when, in milliseconds of the Unix epoch.
    pub since_unix_ms: u64,
}

/// How much a disk may do in a second; `None` is as much as it can. Flushes are free and never
/// wait. Requests that have to wait start in their order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Requests.
    pub requests: Option<Limit>,
    /// Bytes read and written. A request may take more than there is and is paid for afterwards.
    pub bytes: Option<Limit>,
}

/// A rate with a reserve: what is not used is saved up, to be used at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// How much in a second, in the long run; 1 to 2^40.
    pub per_second: u64,
    /// How much at once after a pause; 1 to 2^40.
    pub burst: u64,
}

impl Limit {
    /// Largest rate and burst.
    pub const MAX: u64 = 1 << 40;
}

/// How a log of changed blocks stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogState {
    /// Bytes of the disk that are marked, in whole blocks of 64 KiB.
    pub changed_bytes: u64,
    /// Whether it will say that it is consistent when it is done with.
    pub trusted: bool,
    /// Why it misses changes from some time on; it will not say that it is consistent then.
    pub broken: Option<String>,
}

/// Counts since a disk was opened; never reset, so that readers take differences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskStats {
    /// Read requests finished.
    pub reads: u64,
    /// Bytes read by clients.
    pub read_bytes: u64,
    /// Write, write-zeroes and trim requests finished.
    pub writes: u64,
    /// Bytes written by clients.
    pub write_bytes: u64,
    /// Those of `writes` that carried no data: write-zeroes and trims.
    pub discards: u64,
    /// Bytes zeroed and trimmed by clients.
    pub discard_bytes: u64,
    /// Flushes finished.
    pub flushes: u64,
    /// Requests that ended with an error.
    pub errors: u64,
    /// Requests in flight now, those that are held back included.
    pub in_flight: u32,
    /// Most requests in flight at any time.
    pub in_flight_max: u32,
    /// Those of `in_flight` that are held back: frozen, paused or beyond a limit.
    pub held: u32,
    /// Sum over time of the requests in flight, in microseconds: divided by the time between two
    /// readings it is the mean queue depth.
    pub depth_us: u64,
    /// Time with a request in flight, in microseconds.
    pub busy_us: u64,
    /// Operations on files made for all this.
    pub file_ops: u64,
    /// Barriers (`fdatasync`) among them.
    pub barriers: u64,
    /// Flushes and durable writes that shared the barriers of another one.
    pub flushes_merged: u64,
}

/// How long requests took, from their arrival to their answer, time held back included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskLatencies {
    /// The counts of the same moment.
    pub stats: DiskStats,
    /// When this was taken, in microseconds since the process began.
    pub taken_us: u64,
    /// Reads that worked.
    pub reads: Histogram,
    /// Writes that worked.
    pub writes: Histogram,
    /// Write-zeroes and trims that worked.
    pub discards: Histogram,
    /// Flushes that worked.
    pub flushes: Histogram,
}

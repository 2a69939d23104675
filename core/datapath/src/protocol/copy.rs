//! Copies and mirrors: what is asked for and how far they are.

use super::Format;
use serde::{Deserialize, Serialize};
use units::DpId;
use uuid::Uuid;

/// Whose sectors a copy or mirror takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyScope {
    /// Those of every layer: the target holds what the disk holds.
    #[default]
    Chain,
    /// Those of one layer, which goes into the layer below it: the first of the source, or the
    /// first after those above it ([`CopyPlan::above`]). Nobody reads the target but through that
    /// layer.
    Layer,
}

/// What a copy or mirror is to do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CopyPlan {
    /// Formats of the target's layers, leaf first. The first one is written, the others make it
    /// complete: zeros need not be written where nothing is below them.
    pub target: Vec<Format>,
    /// Whose sectors.
    #[serde(default)]
    pub scope: CopyScope,
    /// For [`CopyScope::Layer`]: how many layers of the source come first, are sealed, and lie above
    /// the one that goes in the chain of everyone who reads it. What they hide is not moved.
    #[serde(default)]
    pub above: u16,
    /// Most bytes moved per second; `None` as fast as it goes, which is slower while a guest of the
    /// process has requests in flight.
    #[serde(default)]
    pub limit_bytes_per_s: Option<u64>,
}

/// How far a copy or mirror is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Bytes of the blocks of 2 MiB that have something to copy; grows while tables are looked
    /// through at the beginning and when a guest writes elsewhere.
    pub total_bytes: u64,
    /// Bytes of those among them that are copied.
    pub done_bytes: u64,
    /// Bytes written to the target, repeated ones included, guest writes not.
    pub copied_bytes: u64,
}

/// A copy without a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyState {
    /// Its name.
    pub copy: DpId,
    /// How far it is.
    pub progress: CopyProgress,
    /// It has ended: well, and then all of it is durable, or badly.
    pub ended: bool,
    /// Why it ended badly.
    pub failed: Option<String>,
}

/// The mirror of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorState {
    /// Uuids of the target's layers, leaf first; nil for a raw layer.
    pub target: Vec<Uuid>,
    /// How far it is.
    pub progress: CopyProgress,
    /// Both hold the same, and every answered flush is durable on both.
    pub in_sync: bool,
    /// The target is the disk.
    pub switched: bool,
    /// Why the mirror is given up; the disk goes on without it. After `mirror-prepare` no flush is
    /// answered any more until the mirror is stopped.
    pub failed: Option<String>,
}

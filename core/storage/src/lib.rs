//! SMAPIv2: SR life cycle, datapath automaton, VHD trees over containers, journal.
//!
//! A storage plugin keeps *named byte containers* and nothing else. This crate makes storage
//! repositories of them: VDIs, snapshots, clones, datapaths, and a description of the SR that lies
//! beside the disks.
//!
//! # Model
//!
//! ```text
//!   VDI records            containers, one VHD layer each, named by fresh uuids
//!
//!   A (rw) ───────────────> C2.vhd ──┐ parent
//!   S (snapshot of A) ───────────────┴─> C1.vhd
//! ```
//!
//! * A VDI is a record that names a leaf. Snapshot of A: make C2 as a child of A's leaf C1, switch
//!   the live disk to C2, then commit *A is C2 now, S is C1* in one write. No container is ever
//!   renamed, and what a parent shows never changes again. Layers that only history needs are
//!   merged into the one below while guests use the disks (`merge`).
//! * The records lie in the container `xylem-meta` of the SR (two slots, newest valid one counts),
//!   so the SR describes itself; an SR without readable metadata is an error, never empty.
//! * Containers that a commit left unused are listed as doomed in the same write and removed after
//!   it. Containers made before a commit are in the journal of this host's database. So nothing
//!   leaks at any crash, and nothing is removed that is not known to be ours.
//! * Datapaths: see [`automaton`]. Their records are written after the side effect, so a restart
//!   repeats what may not have happened. Disks that run in data-path processes are found by asking
//!   them.
//!
//! # Invariants
//!
//! * A commit is one metadata write; every state between two commits is undone or finished by
//!   [`StorageManager::open`] or the next call on the VDI, the same way.
//! * The daemon parses no image: whatever is to be known of one, the data path is asked.
//! * Locks are per VDI and per SR. Nothing here is held across SRs, so a hung SR hangs alone.
//!
//! Errors: [`StorageError`], whose [`StorageErrorKind`] is what callers branch on.

#![forbid(unsafe_code)]

pub mod automaton;
mod call;
mod dp;
mod error;
mod gc;
mod geometry;
mod journal;
mod locks;
mod manager;
mod merge;
mod metadata;
mod model;
mod outside;
mod record;
mod sr;
mod state;
mod transfer;
mod tree;
mod vdi;

pub use automaton::DpState;
pub use call::{CallContext, Watch};
pub use error::{Result, StorageError, StorageErrorKind};
pub use manager::{ImportContainer, StorageConfig, StorageManager, Transfer};
pub use merge::MergeRules;
pub use model::{
    Access, Backend, DpInfo, Keys, NbdEndpoint, NewName, NewVdi, SrInfo, SrScan, VdiFields,
    VdiInfo, VdiUpdate,
};
pub use outside::{DataPaths, HostFiles, Layer, MetaFiles, Plugins, Tapdisks, open_container};

//! What the calls take and give: SRs, VDIs, datapaths. Plain data, no behaviour.

use crate::automaton::DpState;
use plugin::Capacity;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use units::{ContainerId, DpId, SrUuid, VdiUuid};

pub use datapath::Access;

/// Free-form keys of a VDI (`sm_config`). Nothing here ever acts on them.
pub type Keys = BTreeMap<String, String>;

/// What a user may set on a VDI and what a new one starts with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VdiFields {
    /// For people.
    pub name_label: String,
    /// For people.
    pub name_description: String,
    /// XenAPI `VDI.type`: `user`, `system`, `suspend`, ...; kept, not interpreted.
    pub kind: String,
    /// Whether several VMs may write at once.
    pub sharable: bool,
    /// Whether a user asked that nothing writes it.
    pub read_only: bool,
    /// Free-form.
    pub sm_config: Keys,
    /// Free-form.
    pub tags: BTreeSet<String>,
}

impl Default for VdiFields {
    fn default() -> Self {
        Self {
            name_label: String::new(),
            name_description: String::new(),
            kind: "user".to_owned(),
            sharable: false,
            read_only: false,
            sm_config: Keys::new(),
            tags: BTreeSet::new(),
        }
    }
}

/// A VDI to be made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewVdi {
    /// Its uuid; `None` for a fresh one. The same uuid, size and SR again is the same VDI.
    pub uuid: Option<VdiUuid>,
    /// Size a guest sees, at least 1; rounded up to 2 MiB.
    pub virtual_bytes: u64,
    /// The rest.
    pub fields: VdiFields,
}

/// Names for a VDI made from another one; `None` keeps the source's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewName {
    /// Uuid of the new VDI; `None` for a fresh one.
    pub uuid: Option<VdiUuid>,
    /// For people.
    pub name_label: Option<String>,
    /// For people.
    pub name_description: Option<String>,
}

/// What to change of a VDI; `None` leaves a field as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VdiUpdate {
    /// For people.
    pub name_label: Option<String>,
    /// For people.
    pub name_description: Option<String>,
    /// Whether several VMs may write at once.
    pub sharable: Option<bool>,
    /// Whether a user asked that nothing writes it.
    pub read_only: Option<bool>,
    /// Free-form; replaces all keys.
    pub sm_config: Option<Keys>,
    /// Free-form; replaces all tags.
    pub tags: Option<BTreeSet<String>>,
}

/// A VDI as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VdiInfo {
    /// The SR it lies in.
    pub sr: SrUuid,
    /// Its uuid, also its location.
    pub vdi: VdiUuid,
    /// What users set.
    pub fields: VdiFields,
    /// Whether it is a snapshot; a snapshot takes no writes.
    pub is_a_snapshot: bool,
    /// The VDI it was taken of, when `is_a_snapshot`.
    pub snapshot_of: Option<VdiUuid>,
    /// When it was taken, milliseconds since the Unix epoch.
    pub snapshot_time_unix_ms: Option<i64>,
    /// Size a guest sees.
    pub virtual_bytes: u64,
    /// Bytes its own container takes, as of the last scan or change.
    pub physical_bytes: u64,
    /// The container that holds its newest layer.
    pub leaf: ContainerId,
    /// How many layers a read may go through.
    pub chain_layers: usize,
    /// Whether a container of its chain was not there at the last scan.
    pub missing: bool,
}

impl VdiInfo {
    /// Whether attaching it read-write is refused.
    pub fn is_read_only(&self) -> bool {
        self.is_a_snapshot || self.fields.read_only
    }
}

/// An attached SR as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SrInfo {
    /// Its uuid.
    pub sr: SrUuid,
    /// The plugin that serves it.
    pub driver: String,
    /// For people.
    pub name_label: String,
    /// For people.
    pub name_description: String,
    /// Bytes that exist in all.
    pub total_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
    /// Sum of the sizes its VDIs have for guests.
    pub virtual_bytes: u64,
    /// How containers take their capacity.
    pub capacity: Capacity,
    /// Whether the storage answers as it should; the text says what is wrong.
    pub health: Result<(), String>,
}

/// What a scan found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SrScan {
    /// The SR itself.
    pub sr: SrInfo,
    /// Every VDI, the missing ones too.
    pub vdis: Vec<VdiInfo>,
    /// Containers that no record names. They are left alone.
    pub orphans: Vec<ContainerId>,
}

/// Where an NBD server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdEndpoint {
    /// A unix socket.
    pub socket: PathBuf,
    /// The only export name answered to.
    pub export: String,
}

/// How the user of a datapath reaches the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Listens from `activate` on. When the access of a VDI in use changes (a writer joins readers
    /// or leaves them) connected clients are closed and connect again to the same place.
    pub nbd: NbdEndpoint,
    /// Size a guest sees.
    pub virtual_bytes: u64,
}

/// A datapath as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DpInfo {
    /// Its id, chosen by whoever attached.
    pub dp: DpId,
    /// The SR.
    pub sr: SrUuid,
    /// The VDI.
    pub vdi: VdiUuid,
    /// Whose it is; also the name of the data-path process.
    pub vm_key: String,
    /// How far it has come.
    pub state: DpState,
    /// Whether taking it down failed; it is tried again before the next call on the VDI.
    pub leaked: bool,
}

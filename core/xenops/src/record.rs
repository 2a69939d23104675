//! What is written down about a VM, so that a new daemon knows what the old one was doing.
//!
//! ```text
//!   (none) -> starting -> up -> stopping -> (none)
//!                          \-> rebooting -> starting
//! ```

use crate::spec::{VbdSpec, VmSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use units::VbdUuid;

/// How far a VM's life is, as written down before the first step of each part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// The start plan is under way; if it is cut short everything is undone.
    Starting,
    /// The domain lives.
    Up,
    /// Everything is to be taken down.
    Stopping,
    /// Everything is to be taken down and started again.
    Rebooting,
}

/// One disk that may be attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskRecord {
    pub(crate) spec: VbdSpec,
    /// `false` from before the first step of plugging to after its last, and again for unplugging.
    pub(crate) plugged: bool,
}

/// One VM that may have a domain or attached disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) spec: VmSpec,
    pub(crate) phase: Phase,
    pub(crate) disks: BTreeMap<VbdUuid, DiskRecord>,
    pub(crate) started_at_ms: Option<i64>,
}

impl Record {
    pub(crate) fn new(spec: VmSpec) -> Self {
        let entry = |vbd: &VbdSpec| {
            (
                vbd.vbd,
                DiskRecord {
                    spec: vbd.clone(),
                    plugged: false,
                },
            )
        };
        let disks = spec.vbds.iter().map(entry).collect();
        Self {
            spec,
            phase: Phase::Starting,
            disks,
            started_at_ms: None,
        }
    }

    /// The specification with the disks as they are now, to start the VM again from.
    pub(crate) fn spec_now(&self) -> VmSpec {
        let vbds = self.disks.values().map(|disk| disk.spec.clone()).collect();
        VmSpec {
            vbds,
            ..self.spec.clone()
        }
    }
}

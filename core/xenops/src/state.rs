//! What can be read about a VM at any time. Plain data.

use crate::operation::OperationKind;
use hypervisor::{Console, DeviceName, ShutdownReason};
use units::{VbdUuid, VmUuid};

/// Whether a VM has a domain and whether that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PowerState {
    /// It has none. Its disks are released too once no operation is under way.
    Halted,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still.
    Paused,
}

/// One disk of a live VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VbdState {
    /// Which.
    pub vbd: VbdUuid,
    /// Where.
    pub device: DeviceName,
    /// Whether the guest has it; `false` while it comes or goes, or if it could not be released.
    pub plugged: bool,
}

/// A VM as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmState {
    /// Which.
    pub vm: VmUuid,
    /// Its power state.
    pub power: PowerState,
    /// Its domain's number, if it has a domain.
    pub domid: Option<u32>,
    /// When it was last started, in milliseconds since 1970; `None` when it is halted.
    pub started_at_ms: Option<i64>,
    /// Its text console, if it has one.
    pub console: Option<Console>,
    /// Its disks, by uuid.
    pub vbds: Vec<VbdState>,
    /// How its guest last ended by itself, in this daemon's life.
    pub last_end: Option<ShutdownReason>,
    /// What is being done to it.
    pub operation: Option<OperationKind>,
}

impl VmState {
    pub(crate) fn halted(vm: VmUuid) -> Self {
        Self {
            vm,
            power: PowerState::Halted,
            domid: None,
            started_at_ms: None,
            console: None,
            vbds: Vec::new(),
            last_end: None,
            operation: None,
        }
    }
}

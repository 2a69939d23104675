//! What the layer above hands over: VMs, their disks, and how a call is meant. Plain data.

use hypervisor::{Access, Boot, DeviceName, NbdTarget, ShutdownReason};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use units::{RequestId, SrUuid, VbdUuid, VdiUuid, VmUuid};

/// What follows one client call through all layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallContext {
    /// Names the client's call in the logs of every process.
    pub request_id: RequestId,
}

impl CallContext {
    /// Makes a context for work that no client asked for.
    pub fn internal() -> Self {
        Self {
            request_id: RequestId::random(),
        }
    }
}

/// What becomes of a VM when its guest ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestEndAction {
    /// The domain is destroyed and the VM halted.
    Destroy,
    /// The VM is started again from its record.
    Restart,
    /// The stopped domain is kept for a look at it; the VM shows as paused.
    Preserve,
}

/// One disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VbdSpec {
    /// The link's own uuid.
    pub vbd: VbdUuid,
    /// Where the guest sees it.
    pub device: DeviceName,
    /// The repository the disk is in.
    pub sr: SrUuid,
    /// The disk.
    pub vdi: VdiUuid,
    /// Whether the guest may write.
    pub access: Access,
}

/// All that is needed to start a VM, and to start it again when it reboots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The VM.
    pub vm: VmUuid,
    /// A name for people.
    pub name: String,
    /// Memory in bytes, a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// How it boots.
    pub boot: Boot,
    /// Whether it has a text console.
    pub serial_console: bool,
    /// Its disks.
    pub vbds: Vec<VbdSpec>,
    /// When the guest powers itself off.
    pub on_poweroff: GuestEndAction,
    /// When the guest reboots.
    pub on_reboot: GuestEndAction,
    /// When the guest crashes.
    pub on_crash: GuestEndAction,
}

impl VmSpec {
    pub(crate) fn action(&self, reason: ShutdownReason) -> GuestEndAction {
        match reason {
            ShutdownReason::Poweroff => self.on_poweroff,
            ShutdownReason::Reboot => self.on_reboot,
            ShutdownReason::Crash => self.on_crash,
        }
    }

    pub(crate) fn domain_config(
        &self,
        disks: Vec<hypervisor::DiskConfig>,
    ) -> hypervisor::DomainConfig {
        hypervisor::DomainConfig {
            vm: self.vm,
            name: self.name.clone(),
            memory_bytes: self.memory_bytes,
            vcpus: self.vcpus,
            boot: self.boot.clone(),
            disks,
            serial_console: self.serial_console,
        }
    }
}

impl VbdSpec {
    pub(crate) fn disk_config(&self, target: NbdTarget) -> hypervisor::DiskConfig {
        hypervisor::DiskConfig {
            device: self.device,
            access: self.access,
            target,
        }
    }
}

/// Whether a started VM runs at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartAs {
    /// It runs.
    Running,
    /// It waits before its first instruction.
    Paused,
}

/// How a VM is brought to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// The guest is asked, and has this long to finish.
    Clean(Duration),
    /// The guest is not asked.
    Hard,
}

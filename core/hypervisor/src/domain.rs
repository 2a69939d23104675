//! What a domain is made of and what can be said about it. Plain data.

use crate::device::DeviceName;
use crate::error::{Error, ErrorKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use units::VmUuid;

/// Whether a guest may write to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// Where a disk's bytes are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NbdTarget {
    /// A unix socket on which an NBD server listens.
    pub socket: PathBuf,
    /// The name of the export; may be empty.
    pub export: String,
}

/// One disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// The device, also the disk's serial number in the guest.
    pub device: DeviceName,
    /// Whether the guest may write.
    pub access: Access,
    /// Where the bytes are.
    pub target: NbdTarget,
}

/// How the guest's first code is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Boot {
    /// Load a kernel from the host's file system.
    Kernel {
        /// A bzImage.
        kernel: PathBuf,
        /// The initial RAM file system.
        ramdisk: Option<PathBuf>,
        /// The kernel's command line.
        cmdline: String,
    },
    /// Let the firmware boot the disk with the lowest position.
    Disk,
}

/// What a domain is created from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainConfig {
    /// The VM's uuid; the guest sees it too.
    pub vm: VmUuid,
    /// A name for people; any text without control characters, at most 255 bytes.
    pub name: String,
    /// Memory in bytes, a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// Virtual CPUs, at least 1.
    pub vcpus: u32,
    /// How it boots.
    pub boot: Boot,
    /// Its disks, in any order, no device twice.
    pub disks: Vec<DiskConfig>,
    /// Whether it has a serial text console.
    pub serial_console: bool,
}

impl DomainConfig {
    /// The most virtual CPUs a domain may ask for; Xen's limit for HVM guests.
    pub const VCPUS_MAX: u32 = 128;

    /// Checks what no back end can make good, before any of them sees it.
    ///
    /// # Errors
    /// `Invalid`, naming the field and its value.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |what: String| Err(Error::new(ErrorKind::Invalid, what));
        if self.name.len() > 255 || self.name.chars().any(char::is_control) {
            return invalid(format!(
                "name of domain {} is not printable or too long",
                self.vm
            ));
        }
        if self.memory_bytes == 0 || !self.memory_bytes.is_multiple_of(units::MIB) {
            return invalid(format!(
                "memory of domain {} is {} bytes, not a positive multiple of 1 MiB",
                self.vm, self.memory_bytes
            ));
        }
        if !(1..=Self::VCPUS_MAX).contains(&self.vcpus) {
            return invalid(format!(
                "domain {} asks for {} vCPUs, not 1 to {}",
                self.vm,
                self.vcpus,
                Self::VCPUS_MAX
            ));
        }
        if let Boot::Kernel { cmdline, .. } = &self.boot
            && (cmdline.len() > 2048 || cmdline.chars().any(char::is_control))
        {
            return invalid(format!(
                "kernel command line of domain {} is not usable",
                self.vm
            ));
        }
        let mut devices = BTreeSet::new();
        match self.disks.iter().find(|disk| !devices.insert(disk.device)) {
            Some(disk) => invalid(format!(
                "domain {} has device {} twice",
                self.vm, disk.device
            )),
            None => Ok(()),
        }
    }
}

/// Why a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownReason {
    /// It powered itself off.
    Poweroff,
    /// It asked to be reset.
    Reboot,
    /// It crashed.
    Crash,
}

/// What a domain is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainState {
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still and may go on.
    Paused,
    /// Its guest has ended; only `destroy` is left.
    Shutdown(ShutdownReason),
}

/// One entry of `list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// Which VM.
    pub vm: VmUuid,
    /// The domain's number: another one each time the VM is created, at least 1.
    pub domid: u32,
    /// What it does.
    pub state: DomainState,
    /// The devices that hold a disk.
    pub disks: BTreeSet<DeviceName>,
}

/// What `stat` measures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainStat {
    /// The domain's number.
    pub domid: u32,
    /// What it does.
    pub state: DomainState,
    /// Time all vCPUs ran, in nanoseconds since the domain was created.
    pub cpu_time_ns: u64,
    /// Memory the guest has, in bytes.
    pub memory_bytes: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
}

/// What one opens to talk to a console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleEndpoint {
    /// A unix socket; one client at a time, raw bytes both ways.
    Socket(PathBuf),
    /// A pseudo terminal.
    Pty(PathBuf),
}

/// A domain's text console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Console {
    /// Where to connect.
    pub endpoint: ConsoleEndpoint,
    /// A file with what the guest has written, bounded by the back end.
    pub log: Option<PathBuf>,
}

/// Whether a call did something or found it done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was done now.
    Created,
    /// It was so already.
    AlreadyThere,
}

/// The answer of `create`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Created {
    /// The domain's number.
    pub domid: u32,
    /// Whether the domain is new.
    pub outcome: Outcome,
}

/// What a guest is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownRequest {
    /// Power off.
    Poweroff,
    /// Reboot.
    Reboot,
}

/// What a guest answered to a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Acknowledgement {
    /// It said that it will.
    Given,
    /// This hypervisor delivers wishes but guests cannot answer them.
    Unknowable,
}

/// Something a domain did by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Event {
    /// Which VM.
    pub vm: VmUuid,
    /// Which of its domains: an event of an earlier one must not be taken for the present one's.
    pub domid: u32,
    /// What it did.
    pub kind: EventKind,
}

/// What a domain did by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// Its guest ended; the domain is still there, stopped.
    Shutdown(ShutdownReason),
    /// It vanished without our doing.
    Gone,
}

//! A host in memory that outlives its daemon, and VMs to run on it.

use crate::memory_disks::{MemoryDisks, Stage};
use database::{Database, Schema};
use hypervisor::{Access, Boot, DeviceName, DomainState, Simulator};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use units::{MIB, SrUuid, VbdUuid, VdiUuid, VmUuid};
use xenops::{
    Adoption, CallContext, GuestEndAction, Manner, PowerState, StartAs, VbdSpec, VmSpec, Xenops,
    XenopsConfig,
};

/// Long enough for a loaded machine, short enough to wait for on purpose.
pub(crate) const ATOM_DEADLINE: Duration = Duration::from_millis(1500);

pub(crate) struct Host {
    pub(crate) simulator: Simulator,
    pub(crate) disks: MemoryDisks,
    pub(crate) config: XenopsConfig,
    database: Database,
    _dir: TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let schema = Schema {
            version: 1,
            classes: Vec::new(),
        };
        let simulator = Simulator::new();
        Self {
            disks: MemoryDisks::watching(&simulator),
            simulator,
            config: XenopsConfig {
                atom_deadline: ATOM_DEADLINE,
                ..XenopsConfig::default()
            },
            database: Database::open(dir.path().join("db"), schema).unwrap(),
            _dir: dir,
        }
    }

    /// Starts a daemon and lets it adopt.
    pub(crate) async fn daemon(&self) -> (Xenops, Adoption) {
        let (simulator, disks) = (
            Arc::new(self.simulator.clone()),
            Arc::new(self.disks.clone()),
        );
        let xenops = Xenops::open(self.config.clone(), simulator, &self.database, disks);
        let xenops = xenops.await.unwrap();
        let adoption = xenops.adopt().await;
        (xenops, adoption)
    }

    pub(crate) async fn xenops(&self) -> Xenops {
        self.daemon().await.0
    }

    /// Nothing of any VM is left: no domain, no disk, and no record for the next daemon to find.
    pub(crate) async fn assert_empty(&self) {
        assert_eq!(self.simulator.domains(), []);
        assert_eq!(self.disks.stages(), []);
        self.disks.assert_contract_was_kept();
        let (_, adoption) = self.daemon().await;
        assert!(
            adoption.live.is_empty() && adoption.halted.is_empty(),
            "{adoption:?}"
        );
        assert!(adoption.failed.is_empty(), "{adoption:?}");
    }

    /// The VM runs with exactly these disks, active and plugged.
    pub(crate) fn assert_runs_with(&self, xenops: &Xenops, vm: VmUuid, vbds: &[VbdSpec]) {
        let state = xenops.state(vm);
        assert_eq!(state.power, PowerState::Running, "{state:?}");
        let domains = self.simulator.domains();
        let domain = domains
            .iter()
            .find(|domain| domain.vm == vm)
            .expect("a domain");
        assert_eq!(
            (domain.state, Some(domain.domid)),
            (DomainState::Running, state.domid)
        );
        let devices = vbds.iter().map(|vbd| vbd.device).collect();
        assert_eq!(domain.disks, devices);
        assert!(state.vbds.iter().all(|vbd| vbd.plugged), "{state:?}");
        assert_eq!(state.vbds.len(), vbds.len());
        let mut stages = self.disks.stages();
        let mut wanted: Vec<_> = vbds.iter().map(|vbd| (vbd.vdi, Stage::Active)).collect();
        stages.sort_by_key(|(vdi, _)| *vdi);
        wanted.sort_by_key(|(vdi, _)| *vdi);
        assert_eq!(stages, wanted);
        self.disks.assert_contract_was_kept();
    }
}

pub(crate) fn call() -> CallContext {
    CallContext::internal()
}

pub(crate) fn vbd(position: u8, access: Access) -> VbdSpec {
    VbdSpec {
        vbd: VbdUuid::random(),
        device: DeviceName::from_position(position),
        sr: SrUuid::random(),
        vdi: VdiUuid::random(),
        access,
    }
}

/// A VM with a read-only disk before a writable one.
pub(crate) fn spec() -> VmSpec {
    VmSpec {
        vm: VmUuid::random(),
        name: "guest".to_owned(),
        memory_bytes: 64 * MIB,
        vcpus: 1,
        boot: Boot::Disk,
        serial_console: true,
        vbds: vec![vbd(0, Access::ReadOnly), vbd(1, Access::ReadWrite)],
        on_poweroff: GuestEndAction::Destroy,
        on_reboot: GuestEndAction::Restart,
        on_crash: GuestEndAction::Restart,
    }
}

pub(crate) async fn started(xenops: &Xenops, spec: &VmSpec) {
    xenops
        .start(&call(), spec.clone(), StartAs::Running)
        .unwrap()
        .wait()
        .await
        .unwrap();
}

pub(crate) async fn stopped(xenops: &Xenops, vm: VmUuid) {
    xenops
        .shutdown(&call(), vm, Manner::Hard)
        .unwrap()
        .wait()
        .await
        .unwrap();
}

pub(crate) fn clean() -> Manner {
    Manner::Clean(Duration::from_secs(20))
}

/// Waits for something another task does.
pub(crate) async fn until(what: &str, limit: Duration, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "{what}: not after {limit:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

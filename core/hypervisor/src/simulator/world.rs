//! The simulator's domains and what each call does to them. No time passes in here.

use crate::domain::{
    Created, DiskConfig, Domain, DomainConfig, DomainStat, DomainState, Outcome, ShutdownReason,
};
use crate::{DeviceName, Error, ErrorKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;
use units::VmUuid;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct World {
    domains: BTreeMap<VmUuid, SimDomain>,
    domids_given: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SimDomain {
    domid: u32,
    config: DomainConfig,
    state: DomainState,
    disks: BTreeMap<DeviceName, DiskConfig>,
    ran: Duration,
    #[serde(skip)]
    runs_since: Option<Instant>,
}

impl SimDomain {
    fn set_state(&mut self, state: DomainState) {
        if let Some(since) = self.runs_since.take() {
            self.ran = self.ran.saturating_add(since.elapsed());
        }
        self.runs_since = (state == DomainState::Running).then(Instant::now);
        self.state = state;
    }

    fn cpu_time_ns(&self) -> u64 {
        let running = self
            .runs_since
            .map(|since| since.elapsed())
            .unwrap_or_default();
        u64::try_from(self.ran.saturating_add(running).as_nanos()).unwrap_or(u64::MAX)
    }
}

fn not_found(vm: VmUuid) -> Error {
    Error::new(ErrorKind::NotFound, format!("vm {vm} has no domain"))
}

fn bad_state(vm: VmUuid, state: DomainState, wish: &str) -> Error {
    Error::new(
        ErrorKind::BadState,
        format!("cannot {wish} the domain of vm {vm}: it is {state:?}"),
    )
}

impl World {
    pub(super) fn load(file: &Path) -> Result<Self, Error> {
        let bad = |source: Box<dyn std::error::Error + Send + Sync>| {
            let context = format!("cannot read the simulator's file {}", file.display());
            Error::new(ErrorKind::Io, context).with_source(source)
        };
        match std::fs::read(file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| bad(error.into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(bad(error.into())),
        }
    }

    /// Writes a new file and renames it over the old one: a killed process leaves a whole file.
    pub(super) fn save(&self, file: &Path) -> Result<(), Error> {
        let write = || {
            let text = serde_json::to_vec(self)?;
            let new = file.with_extension("new");
            std::fs::write(&new, text)?;
            std::fs::rename(&new, file)
        };
        write().map_err(|error| {
            let context = format!("cannot write the simulator's file {}", file.display());
            Error::new(ErrorKind::Io, context).with_source(error)
        })
    }

    fn get(&mut self, vm: VmUuid) -> Result<&mut SimDomain, Error> {
        self.domains.get_mut(&vm).ok_or_else(|| not_found(vm))
    }

    pub(super) fn domid(&self, vm: VmUuid) -> Option<u32> {
        self.domains.get(&vm).map(|domain| domain.domid)
    }

    pub(super) fn create(&mut self, config: &DomainConfig) -> Result<Created, Error> {
        if let Some(domain) = self.domains.get(&config.vm) {
            return if domain.config == *config {
                Ok(Created {
                    domid: domain.domid,
                    outcome: Outcome::AlreadyThere,
                })
            } else {
                let context = format!("vm {} has domain {} already", config.vm, domain.domid);
                Err(Error::new(ErrorKind::Exists, context))
            };
        }
        self.domids_given = self.domids_given.saturating_add(1);
        let domain = SimDomain {
            domid: self.domids_given,
            config: config.clone(),
            state: DomainState::Paused,
            disks: config
                .disks
                .iter()
                .map(|disk| (disk.device, disk.clone()))
                .collect(),
            ran: Duration::ZERO,
            runs_since: None,
        };
        self.domains.insert(config.vm, domain);
        Ok(Created {
            domid: self.domids_given,
            outcome: Outcome::Created,
        })
    }

    pub(super) fn remove(&mut self, vm: VmUuid) -> Option<u32> {
        self.domains.remove(&vm).map(|domain| domain.domid)
    }

    pub(super) fn pause(&mut self, vm: VmUuid) -> Result<(), Error> {
        let domain = self.get(vm)?;
        match domain.state {
            DomainState::Running | DomainState::Paused => domain.set_state(DomainState::Paused),
            DomainState::Shutdown(_) => return Err(bad_state(vm, domain.state, "pause")),
        }
        Ok(())
    }

    pub(super) fn unpause(&mut self, vm: VmUuid) -> Result<u32, Error> {
        let domain = self.get(vm)?;
        match domain.state {
            DomainState::Paused => domain.set_state(DomainState::Running),
            DomainState::Running => {}
            DomainState::Shutdown(_) => return Err(bad_state(vm, domain.state, "unpause")),
        }
        Ok(domain.domid)
    }

    /// Says which domain was asked, `None` when its guest has ended already.
    pub(super) fn ask(&mut self, vm: VmUuid) -> Result<Option<u32>, Error> {
        let domain = self.get(vm)?;
        match domain.state {
            DomainState::Running => Ok(Some(domain.domid)),
            DomainState::Shutdown(_) => Ok(None),
            DomainState::Paused => Err(bad_state(vm, domain.state, "ask the guest of")),
        }
    }

    pub(super) fn end(&mut self, vm: VmUuid, domid: u32, reason: ShutdownReason) -> bool {
        match self.domains.get_mut(&vm) {
            Some(domain) if domain.domid == domid && domain.state == DomainState::Running => {
                domain.set_state(DomainState::Shutdown(reason));
                true
            }
            _ => false,
        }
    }

    pub(super) fn plug(&mut self, vm: VmUuid, disk: &DiskConfig) -> Result<(), Error> {
        let domain = self.get(vm)?;
        match domain.disks.get(&disk.device) {
            Some(present) if present == disk => {}
            Some(_) => {
                let context = format!("vm {vm} has another disk at {}", disk.device);
                return Err(Error::new(ErrorKind::Exists, context));
            }
            None => {
                domain.disks.insert(disk.device, disk.clone());
            }
        }
        Ok(())
    }

    pub(super) fn unplug(
        &mut self,
        vm: VmUuid,
        device: DeviceName,
        releases: bool,
    ) -> Result<(), Error> {
        let domain = self.get(vm)?;
        if domain.disks.contains_key(&device) && !releases {
            let context = format!("the guest of vm {vm} does not let {device} go");
            return Err(Error::new(ErrorKind::Refused, context));
        }
        domain.disks.remove(&device);
        Ok(())
    }

    pub(super) fn list(&self) -> Vec<Domain> {
        let entry = |(vm, domain): (&VmUuid, &SimDomain)| Domain {
            vm: *vm,
            domid: domain.domid,
            state: domain.state,
            disks: domain.disks.keys().copied().collect(),
        };
        self.domains.iter().map(entry).collect()
    }

    pub(super) fn stat(&mut self, vm: VmUuid) -> Result<DomainStat, Error> {
        let domain = self.get(vm)?;
        Ok(DomainStat {
            domid: domain.domid,
            state: domain.state,
            cpu_time_ns: domain.cpu_time_ns(),
            memory_bytes: domain.config.memory_bytes,
            vcpus: domain.config.vcpus,
        })
    }
}

//! Disks that hold nothing but watch over their contract: activate before use, one writer, detach
//! only what is not active, nothing pulled from under a domain.

use hypervisor::simulator::Fault;
use hypervisor::{Access, NbdTarget, Simulator};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use units::{DpId, VdiUuid, VmUuid};
use xenops::{CallContext, DiskError, DiskRef, Disks};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DiskCall {
    Attach,
    Activate,
    Deactivate,
    Detach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Attached,
    Active,
}

#[derive(Debug, Default)]
struct Books {
    stages: BTreeMap<DpId, (DiskRef, Stage)>,
    targets: BTreeMap<VdiUuid, NbdTarget>,
    faults: BTreeMap<DiskCall, VecDeque<Option<Fault>>>,
    calls: Vec<(DiskCall, DpId)>,
    violations: Vec<String>,
}

/// A cheap handle; it outlives the daemon like the data paths it stands for.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryDisks {
    books: Arc<Mutex<Books>>,
    domains: Option<Simulator>,
}

impl MemoryDisks {
    pub(crate) fn watching(simulator: &Simulator) -> Self {
        Self {
            books: Arc::default(),
            domains: Some(simulator.clone()),
        }
    }

    /// Makes a disk be served at a real socket.
    pub(crate) fn serve(&self, vdi: VdiUuid, target: NbdTarget) {
        self.books.lock().targets.insert(vdi, target);
    }

    /// Makes the call after `healthy` further ones of its kind go wrong.
    pub(crate) fn inject(&self, call: DiskCall, healthy: usize, fault: Fault) {
        let mut books = self.books.lock();
        let queue = books.faults.entry(call).or_default();
        queue.extend(std::iter::repeat_n(None, healthy));
        queue.push_back(Some(fault));
    }

    pub(crate) fn calls(&self) -> Vec<(DiskCall, DpId)> {
        self.books.lock().calls.clone()
    }

    pub(crate) fn count(&self, call: DiskCall) -> usize {
        self.books
            .lock()
            .calls
            .iter()
            .filter(|(made, _)| *made == call)
            .count()
    }

    pub(crate) fn stages(&self) -> Vec<(VdiUuid, Stage)> {
        self.books
            .lock()
            .stages
            .values()
            .map(|(disk, stage)| (disk.vdi, *stage))
            .collect()
    }

    pub(crate) fn assert_contract_was_kept(&self) {
        assert_eq!(self.books.lock().violations, Vec::<String>::new());
    }

    fn in_use(&self, vm: VmUuid, dp: &DpId) -> bool {
        let Some(simulator) = &self.domains else {
            return false;
        };
        let device = dp
            .as_str()
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        simulator.domains().iter().any(|domain| {
            domain.vm == vm && domain.disks.iter().any(|disk| disk.to_string() == device)
        })
    }

    async fn run<T>(
        &self,
        call: DiskCall,
        disk: &DiskRef,
        change: impl FnOnce(&mut Books) -> Result<T, String>,
    ) -> Result<T, DiskError> {
        let fault = {
            let mut books = self.books.lock();
            books.calls.push((call, disk.dp.clone()));
            books
                .faults
                .get_mut(&call)
                .and_then(VecDeque::pop_front)
                .flatten()
        };
        match fault {
            Some(Fault::FailBefore) => return Err(format!("injected {call:?}").into()),
            Some(Fault::HangBefore) => std::future::pending::<()>().await,
            _ => {}
        }
        let result = {
            let mut books = self.books.lock();
            let result = change(&mut books);
            if let Err(violation) = &result {
                books.violations.push(violation.clone());
            }
            result
        };
        match fault {
            Some(Fault::FailAfter) => Err(format!("injected {call:?}").into()),
            Some(Fault::HangAfter) => std::future::pending().await,
            _ => result.map_err(Into::into),
        }
    }
}

#[async_trait::async_trait]
impl Disks for MemoryDisks {
    async fn attach(&self, _: &CallContext, disk: &DiskRef) -> Result<NbdTarget, DiskError> {
        self.run(DiskCall::Attach, disk, |books| {
            let entry = books.stages.entry(disk.dp.clone());
            let (known, _) = entry.or_insert_with(|| (disk.clone(), Stage::Attached));
            if known != disk {
                return Err(format!("{} attached as {known:?} and as {disk:?}", disk.dp));
            }
            let elsewhere = || NbdTarget {
                socket: "/no/such.sock".into(),
                export: String::new(),
            };
            Ok(books
                .targets
                .get(&disk.vdi)
                .cloned()
                .unwrap_or_else(elsewhere))
        })
        .await
    }

    async fn activate(&self, _: &CallContext, disk: &DiskRef) -> Result<(), DiskError> {
        self.run(DiskCall::Activate, disk, |books| {
            let clash = books.stages.values().find(|(other, stage)| {
                other.vdi == disk.vdi
                    && other.dp != disk.dp
                    && *stage == Stage::Active
                    && (other.access == Access::ReadWrite || disk.access == Access::ReadWrite)
            });
            if let Some((other, _)) = clash {
                return Err(format!("{} active while {} writes", disk.dp, other.dp));
            }
            match books.stages.get_mut(&disk.dp) {
                Some((_, stage)) => *stage = Stage::Active,
                None => return Err(format!("{} activated but not attached", disk.dp)),
            }
            Ok(())
        })
        .await
    }

    async fn deactivate(&self, _: &CallContext, disk: &DiskRef) -> Result<(), DiskError> {
        let in_use = self.in_use(disk.vm, &disk.dp);
        self.run(DiskCall::Deactivate, disk, |books| {
            if in_use {
                return Err(format!("{} deactivated under its domain", disk.dp));
            }
            if let Some((_, stage)) = books.stages.get_mut(&disk.dp) {
                *stage = Stage::Attached;
            }
            Ok(())
        })
        .await
    }

    async fn detach(&self, _: &CallContext, disk: &DiskRef) -> Result<(), DiskError> {
        self.run(DiskCall::Detach, disk, |books| {
            match books.stages.remove(&disk.dp) {
                Some((_, Stage::Active)) => Err(format!("{} detached while active", disk.dp)),
                _ => Ok(()),
            }
        })
        .await
    }
}

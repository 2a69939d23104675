//! The atoms: what each does and what undoes it. In which order they come is `plan`'s matter.

use crate::disks::DiskRef;
use crate::error::{Error, ErrorKind};
use crate::owner::Machine;
use crate::record::{DiskRecord, Phase};
use crate::spec::CallContext;
use crate::state::PowerState;
use hypervisor::{DiskConfig, ShutdownRequest};
use std::time::Duration;
use units::{VbdUuid, VmUuid};

/// One step that is done or not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atom {
    /// Writes down how far the VM's life is.
    Journal(Phase),
    /// Forgets the record.
    Forget,
    Attach(VbdUuid),
    Activate(VbdUuid),
    Deactivate(VbdUuid),
    Detach(VbdUuid),
    CreateDomain,
    DestroyDomain,
    Pause,
    Unpause,
    AskGuest(ShutdownRequest),
    AwaitEnd(Duration),
    PlugDisk(VbdUuid),
    UnplugDisk(VbdUuid),
    /// Writes down that a disk may be attached from now on.
    NoteDisk(VbdUuid),
    /// Writes down that the guest has a disk.
    SettleDisk(VbdUuid),
    /// Writes down that a disk is coming or going.
    UnsettleDisk(VbdUuid),
    /// Writes down that nothing of a disk is left.
    DropDisk(VbdUuid),
}

impl Atom {
    /// The name in progress, logs and errors.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Journal(_) => "journal",
            Self::Forget => "forget",
            Self::Attach(_) => "attach",
            Self::Activate(_) => "activate",
            Self::Deactivate(_) => "deactivate",
            Self::Detach(_) => "detach",
            Self::CreateDomain => "create-domain",
            Self::DestroyDomain => "destroy-domain",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
            Self::AskGuest(_) => "ask-guest",
            Self::AwaitEnd(_) => "await-end",
            Self::PlugDisk(_) => "plug-disk",
            Self::UnplugDisk(_) => "unplug-disk",
            Self::NoteDisk(_) => "note-disk",
            Self::SettleDisk(_) => "settle-disk",
            Self::UnsettleDisk(_) => "unsettle-disk",
            Self::DropDisk(_) => "drop-disk",
        }
    }

    /// What takes this atom's effect away, whether it had any or not.
    pub(crate) fn undo(self) -> Option<Self> {
        match self {
            Self::Journal(Phase::Starting | Phase::Rebooting) => Some(Self::Forget),
            Self::Attach(vbd) => Some(Self::Detach(vbd)),
            Self::Activate(vbd) => Some(Self::Deactivate(vbd)),
            Self::CreateDomain => Some(Self::DestroyDomain),
            Self::Pause => Some(Self::Unpause),
            Self::Unpause => Some(Self::Pause),
            Self::PlugDisk(vbd) => Some(Self::UnplugDisk(vbd)),
            Self::UnplugDisk(vbd) => Some(Self::PlugDisk(vbd)),
            Self::NoteDisk(vbd) => Some(Self::DropDisk(vbd)),
            Self::UnsettleDisk(vbd) => Some(Self::SettleDisk(vbd)),
            Self::Journal(Phase::Up | Phase::Stopping)
            | Self::Forget
            | Self::Deactivate(_)
            | Self::Detach(_)
            | Self::DestroyDomain
            | Self::AskGuest(_)
            | Self::AwaitEnd(_)
            | Self::SettleDisk(_)
            | Self::DropDisk(_) => None,
        }
    }

    /// The disk it is about: once one atom of a disk failed on the way down, its others are left.
    pub(crate) fn vbd(self) -> Option<VbdUuid> {
        match self {
            Self::Attach(vbd)
            | Self::Activate(vbd)
            | Self::Deactivate(vbd)
            | Self::Detach(vbd)
            | Self::PlugDisk(vbd)
            | Self::UnplugDisk(vbd)
            | Self::NoteDisk(vbd)
            | Self::SettleDisk(vbd)
            | Self::UnsettleDisk(vbd)
            | Self::DropDisk(vbd) => Some(vbd),
            _ => None,
        }
    }

    /// Whether its failure means that a domain may still use disks.
    pub(crate) fn guards_disks(self) -> bool {
        matches!(self, Self::DestroyDomain | Self::UnplugDisk(_))
    }

    /// How long it may take, and what it means if it does not.
    pub(crate) fn deadline(self, config: &crate::XenopsConfig) -> (Duration, ErrorKind) {
        match self {
            Self::AskGuest(_) => (config.acknowledge_deadline, ErrorKind::NotAcknowledged),
            Self::AwaitEnd(limit) => (limit, ErrorKind::DidNotShutDown),
            _ => (config.atom_deadline, ErrorKind::Timeout),
        }
    }
}

impl Machine {
    /// Does one atom. What is known of the VM changes only once the outside has answered, so a
    /// dropped call leaves the old knowledge and the atom can be undone.
    pub(crate) async fn perform(&mut self, call: &CallContext, atom: Atom) -> Result<(), Error> {
        match atom {
            Atom::Journal(phase) => self.journal(phase).await,
            Atom::Forget => self.forget().await,
            Atom::Attach(vbd) => self.attach(call, vbd).await.map(|_| ()),
            Atom::Activate(vbd) => {
                let disk = self.disk_ref(vbd)?;
                let result = self.shared.disks.activate(call, &disk).await;
                result.map_err(|error| self.disk_error("activate", &disk, error))
            }
            Atom::Deactivate(vbd) => {
                let disk = self.disk_ref(vbd)?;
                let result = self.shared.disks.deactivate(call, &disk).await;
                result.map_err(|error| self.disk_error("deactivate", &disk, error))
            }
            Atom::Detach(vbd) => {
                let disk = self.disk_ref(vbd)?;
                let result = self.shared.disks.detach(call, &disk).await;
                self.targets.remove(&vbd);
                result.map_err(|error| self.disk_error("detach", &disk, error))
            }
            Atom::PlugDisk(vbd) => {
                let disk = self.disk_config(call, vbd).await?;
                self.hypervisor(atom, self.shared.hypervisor.plug_disk(self.vm, &disk).await)
            }
            Atom::UnplugDisk(vbd) => {
                let device = self.disk(vbd)?.spec.device;
                let result = self.shared.hypervisor.unplug_disk(self.vm, device).await;
                self.hypervisor(atom, gone_is_done(result))
            }
            Atom::NoteDisk(_) => self.save().await,
            Atom::SettleDisk(vbd) => self.set_plugged(vbd, true).await,
            Atom::UnsettleDisk(vbd) => self.set_plugged(vbd, false).await,
            Atom::DropDisk(vbd) => {
                if let Some(record) = &mut self.record {
                    record.disks.remove(&vbd);
                }
                self.save().await
            }
            Atom::CreateDomain
            | Atom::DestroyDomain
            | Atom::Pause
            | Atom::Unpause
            | Atom::AskGuest(_)
            | Atom::AwaitEnd(_) => self.perform_on_domain(call, atom).await,
        }
    }

    async fn perform_on_domain(&mut self, call: &CallContext, atom: Atom) -> Result<(), Error> {
        let hypervisor = self.shared.hypervisor.clone();
        match atom {
            Atom::CreateDomain => return self.create_domain(call).await,
            Atom::DestroyDomain => {
                self.hypervisor(atom, hypervisor.destroy(self.vm).await)?;
                self.domid = None;
                self.console = None;
                self.power = PowerState::Halted;
            }
            Atom::Pause => {
                self.hypervisor(atom, hypervisor.pause(self.vm).await)?;
                self.power = PowerState::Paused;
            }
            Atom::Unpause => {
                self.hypervisor(atom, hypervisor.unpause(self.vm).await)?;
                self.power = PowerState::Running;
            }
            Atom::AskGuest(request) => {
                let answer = hypervisor.request_shutdown(self.vm, request).await;
                self.hypervisor(atom, answer.map(|_| ()))?;
            }
            Atom::AwaitEnd(_) => {
                let (mut events, domid) = (self.events.clone(), self.domid);
                let ended = events.wait_for(|event| event.is_some_and(|e| Some(e.domid) == domid));
                if ended.await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn create_domain(&mut self, call: &CallContext) -> Result<(), Error> {
        let record = self.record()?;
        let spec = record.spec.clone();
        let vbds: Vec<VbdUuid> = record.disks.keys().copied().collect();
        let mut disks = Vec::with_capacity(vbds.len());
        for vbd in vbds {
            disks.push(self.disk_config(call, vbd).await?);
        }
        let created = self
            .shared
            .hypervisor
            .create(&spec.domain_config(disks))
            .await;
        let created = created
            .map_err(|error| Error::hypervisor(self.vm, Atom::CreateDomain.name(), error))?;
        self.domid = Some(created.domid);
        self.power = PowerState::Paused;
        self.find_console().await;
        Ok(())
    }

    /// A VM without a console is better than no VM.
    pub(crate) async fn find_console(&mut self) {
        match self.shared.hypervisor.console(self.vm).await {
            Ok(console) => self.console = console,
            Err(error) => tracing::warn!(vm = %self.vm, %error, "console not found"),
        }
    }

    pub(crate) async fn attach(
        &mut self,
        call: &CallContext,
        vbd: VbdUuid,
    ) -> Result<hypervisor::NbdTarget, Error> {
        let disk = self.disk_ref(vbd)?;
        let target = self.shared.disks.attach(call, &disk).await;
        let target = target.map_err(|error| self.disk_error("attach", &disk, error))?;
        self.targets.insert(vbd, target.clone());
        Ok(target)
    }

    /// After an adoption that could not ask, the target is asked for now; attach is idempotent.
    async fn disk_config(&mut self, call: &CallContext, vbd: VbdUuid) -> Result<DiskConfig, Error> {
        let target = match self.targets.get(&vbd) {
            Some(target) => target.clone(),
            None => self.attach(call, vbd).await?,
        };
        Ok(self.disk(vbd)?.spec.disk_config(target))
    }

    fn disk(&self, vbd: VbdUuid) -> Result<&DiskRecord, Error> {
        self.record()?.disks.get(&vbd).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("vm {} has no vbd {vbd} on record", self.vm),
            )
        })
    }

    fn disk_ref(&self, vbd: VbdUuid) -> Result<DiskRef, Error> {
        Ok(DiskRef::new(self.vm, &self.disk(vbd)?.spec))
    }

    fn disk_error(&self, doing: &str, disk: &DiskRef, error: crate::DiskError) -> Error {
        let context = format!("{doing} of vdi {} for {} failed", disk.vdi, disk.dp);
        Error::because(ErrorKind::Disk, context, error)
    }

    fn hypervisor(&self, atom: Atom, result: Result<(), hypervisor::Error>) -> Result<(), Error> {
        result.map_err(|error| Error::hypervisor(self.vm, atom.name(), error))
    }

    async fn journal(&mut self, phase: Phase) -> Result<(), Error> {
        let now = self.shared.now_ms();
        if let Some(record) = &mut self.record {
            record.phase = phase;
            if phase == Phase::Up {
                record.started_at_ms = Some(now);
                record
                    .disks
                    .values_mut()
                    .for_each(|disk| disk.plugged = true);
            }
        }
        self.save().await
    }

    async fn set_plugged(&mut self, vbd: VbdUuid, plugged: bool) -> Result<(), Error> {
        if let Some(disk) = self
            .record
            .as_mut()
            .and_then(|record| record.disks.get_mut(&vbd))
        {
            disk.plugged = plugged;
        }
        self.save().await
    }

    async fn save(&self) -> Result<(), Error> {
        let saved = self
            .shared
            .records
            .put_async(&self.vm.to_string(), self.record()?)
            .await;
        saved.map_err(|error| database_error(self.vm, error))
    }

    async fn forget(&mut self) -> Result<(), Error> {
        let removed = self.shared.records.remove_async(&self.vm.to_string()).await;
        removed.map_err(|error| database_error(self.vm, error))?;
        self.record = None;
        self.targets.clear();
        Ok(())
    }
}

/// A disk of a domain that is gone is unplugged.
fn gone_is_done(result: Result<(), hypervisor::Error>) -> Result<(), hypervisor::Error> {
    match result {
        Err(error) if error.kind() == hypervisor::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn database_error(vm: VmUuid, error: database::Error) -> Error {
    Error::because(
        ErrorKind::Database,
        format!("the record of vm {vm} was not kept"),
        error,
    )
}

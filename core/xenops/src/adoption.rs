//! What a new daemon does with what the old one left: records and domains.
//!
//! ```text
//!   record says   domain there           domain gone
//!   up            adopted                released, halted
//!   starting      destroyed, released    released, halted
//!   stopping      destroyed, released    released, halted
//!   rebooting     destroyed, started     released, started
//!   (none)        left alone, reported
//! ```

use crate::atom::Atom;
use crate::command::Body;
use crate::error::{Error, ErrorKind};
use crate::operation::{Control, Operation, OperationKind};
use crate::owner::Owner;
use crate::plan::Plan;
use crate::record::{Phase, Record};
use crate::spec::CallContext;
use crate::state::PowerState;
use crate::xenops::Shared;
use hypervisor::{Domain, DomainState};
use std::collections::BTreeMap;
use std::sync::Arc;
use units::{VbdUuid, VmUuid};

/// What became of everything found at the start.
#[derive(Debug, Default)]
pub struct Adoption {
    /// VMs that live.
    pub live: Vec<VmUuid>,
    /// VMs that were taken down or found gone; all of theirs is released.
    pub halted: Vec<VmUuid>,
    /// VMs of which something could not be released or restarted; still on record.
    pub failed: Vec<(VmUuid, Error)>,
    /// Domains that are none of ours; left alone.
    pub foreign: Vec<Domain>,
}

/// Adoptions under way.
pub(crate) struct Pending {
    operations: Vec<(VmUuid, Operation)>,
    foreign: Vec<Domain>,
}

/// Reads what there is and queues one adoption per record.
pub(crate) async fn begin(shared: &Arc<Shared>) -> Result<Pending, Error> {
    let unreadable = |error| {
        Error::because(
            ErrorKind::Database,
            "cannot read the domains' records",
            error,
        )
    };
    let records = shared.records.all().map_err(unreadable)?;
    let unlisted = |error| Error::because(ErrorKind::Hypervisor, "cannot list the domains", error);
    let domains = shared.hypervisor.list().await.map_err(unlisted)?;
    let mut domains: BTreeMap<VmUuid, Domain> = domains
        .into_iter()
        .map(|domain| (domain.vm, domain))
        .collect();
    let call = CallContext::internal();
    let mut operations = Vec::with_capacity(records.len());
    for record in records.into_values() {
        let vm = record.spec.vm;
        let body = Body::Adopt(Box::new(record), domains.remove(&vm));
        operations.push((vm, shared.submit(&call, vm, OperationKind::Adopt, body)?));
    }
    Ok(Pending {
        operations,
        foreign: domains.into_values().collect(),
    })
}

impl Pending {
    pub(crate) async fn finish(self, shared: &Shared) -> Adoption {
        let mut adoption = Adoption {
            foreign: self.foreign,
            ..Adoption::default()
        };
        for (vm, operation) in self.operations {
            let result = operation.wait().await;
            let live = shared
                .owners
                .lock()
                .by_vm
                .get(&vm)
                .map(|owner| owner.state.borrow().power);
            match (result, live) {
                (Err(error), _) => adoption.failed.push((vm, error)),
                (Ok(()), Some(PowerState::Running | PowerState::Paused)) => adoption.live.push(vm),
                (Ok(()), Some(PowerState::Halted) | None) => adoption.halted.push(vm),
            }
        }
        adoption
    }
}

impl Owner {
    pub(crate) async fn adopt(
        &mut self,
        call: &CallContext,
        control: &Control,
        record: Record,
        domain: Option<Domain>,
    ) -> Result<(), Error> {
        let phase = record.phase;
        self.machine.record = Some(record);
        self.machine.domid = domain.as_ref().map(|domain| domain.domid);
        match (phase, domain) {
            (Phase::Up, Some(domain)) => self.adopt_live(call, control, domain).await,
            (Phase::Rebooting, _) => self.bring_down(call, control, Phase::Rebooting).await,
            (Phase::Up | Phase::Starting | Phase::Stopping, _) => {
                self.bring_down(call, control, Phase::Stopping).await
            }
        }
    }

    /// Takes a live domain over. Its disks are attached and activated once more, which is nothing
    /// if their server remembers them; a guest is not stopped because that failed.
    async fn adopt_live(
        &mut self,
        call: &CallContext,
        control: &Control,
        domain: Domain,
    ) -> Result<(), Error> {
        let machine = &mut self.machine;
        machine.power = match domain.state {
            DomainState::Running | DomainState::Shutdown(_) => PowerState::Running,
            DomainState::Paused => PowerState::Paused,
        };
        machine.find_console().await;
        let disks: Vec<(VbdUuid, bool)> = machine
            .record()?
            .disks
            .iter()
            .map(|(vbd, disk)| {
                (
                    *vbd,
                    disk.plugged && domain.disks.contains(&disk.spec.device),
                )
            })
            .collect();
        for (vbd, plugged) in disks {
            let result = if plugged {
                let doing = vec![Atom::Attach(vbd), Atom::Activate(vbd)];
                self.serve_again(call, doing).await
            } else {
                self.machine
                    .execute(call, control, Plan::release_disk(vbd))
                    .await
            };
            if let Err(error) = result {
                let vm = self.machine.vm;
                tracing::error!(%vm, %vbd, %error, "a disk could not be adopted");
            }
        }
        self.machine.publish();
        if let DomainState::Shutdown(reason) = domain.state {
            self.guest_ended(domain.domid, reason).await;
        }
        Ok(())
    }

    /// Without undo: a disk that a live guest uses is never taken down for a failed call.
    async fn serve_again(&mut self, call: &CallContext, atoms: Vec<Atom>) -> Result<(), Error> {
        for atom in atoms {
            self.machine.step(call, atom).await?;
        }
        Ok(())
    }
}

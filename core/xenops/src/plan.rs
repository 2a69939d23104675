//! Plans: which atoms in which order, and how a plan is carried out or taken back.

use crate::atom::Atom;
use crate::error::{Error, ErrorKind};
use crate::operation::{Control, Progress};
use crate::owner::Machine;
use crate::record::{Phase, Record};
use crate::spec::{CallContext, Manner, StartAs};
use hypervisor::{Access, ShutdownRequest};
use std::collections::BTreeSet;
use units::VbdUuid;

/// What is done with undo, then what is done without a way back.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Cancelled or failed: undone.
    pub(crate) doing: Vec<Atom>,
    /// Never cancelled; goes on past a failure as far as that is safe.
    pub(crate) then: Vec<Atom>,
}

/// Writable disks first: the guest's root is ready before media that may be slow.
fn by_access(record: &Record) -> Vec<VbdUuid> {
    let with = |access: Access| {
        let disks = record
            .disks
            .values()
            .filter(move |disk| disk.spec.access == access);
        disks.map(|disk| disk.spec.vbd)
    };
    with(Access::ReadWrite)
        .chain(with(Access::ReadOnly))
        .collect()
}

impl Plan {
    pub(crate) fn start(record: &Record, start_as: StartAs) -> Self {
        let mut doing = vec![Atom::Journal(record.phase)];
        for vbd in by_access(record) {
            doing.extend([Atom::Attach(vbd), Atom::Activate(vbd)]);
        }
        doing.push(Atom::CreateDomain);
        if start_as == StartAs::Running {
            doing.push(Atom::Unpause);
        }
        doing.push(Atom::Journal(Phase::Up));
        Self {
            doing,
            then: Vec::new(),
        }
    }

    /// Takes everything down; the record stays when the VM is to start again.
    pub(crate) fn stop(record: &Record, phase: Phase, manner: Manner) -> Self {
        let request = match phase {
            Phase::Rebooting => ShutdownRequest::Reboot,
            Phase::Starting | Phase::Up | Phase::Stopping => ShutdownRequest::Poweroff,
        };
        let doing = match manner {
            Manner::Clean(limit) => vec![Atom::AskGuest(request), Atom::AwaitEnd(limit)],
            Manner::Hard => Vec::new(),
        };
        let mut then = vec![Atom::Journal(phase), Atom::DestroyDomain];
        for vbd in by_access(record) {
            then.extend([Atom::Deactivate(vbd), Atom::Detach(vbd)]);
        }
        if phase != Phase::Rebooting {
            then.push(Atom::Forget);
        }
        Self { doing, then }
    }

    pub(crate) fn one(atom: Atom) -> Self {
        Self {
            doing: vec![atom],
            then: Vec::new(),
        }
    }

    pub(crate) fn plug(vbd: VbdUuid) -> Self {
        let doing = vec![
            Atom::NoteDisk(vbd),
            Atom::Attach(vbd),
            Atom::Activate(vbd),
            Atom::PlugDisk(vbd),
            Atom::SettleDisk(vbd),
        ];
        Self {
            doing,
            then: Vec::new(),
        }
    }

    pub(crate) fn unplug(vbd: VbdUuid) -> Self {
        Self {
            doing: vec![Atom::UnsettleDisk(vbd), Atom::UnplugDisk(vbd)],
            then: vec![
                Atom::Deactivate(vbd),
                Atom::Detach(vbd),
                Atom::DropDisk(vbd),
            ],
        }
    }

    /// Releases a disk whose plugging or unplugging was cut short, or that the domain lost.
    pub(crate) fn release_disk(vbd: VbdUuid) -> Self {
        let mut plan = Self::unplug(vbd);
        plan.then.insert(0, Atom::UnplugDisk(vbd));
        plan.doing.clear();
        plan
    }
}

impl Machine {
    /// Carries a plan out.
    pub(crate) async fn execute(
        &mut self,
        call: &CallContext,
        control: &Control,
        plan: Plan,
    ) -> Result<(), Error> {
        let atoms_total = count(plan.doing.len() + plan.then.len());
        for (done, atom) in plan.doing.iter().enumerate() {
            control.report(Progress {
                atoms_done: count(done),
                atoms_total,
                atom: atom.name(),
            });
            let result = tokio::select! {
                biased;
                () = control.cancel.cancelled() => Err(self.cancelled(*atom)),
                result = self.step(call, *atom) => result,
            };
            if let Err(error) = result {
                let tried = plan.doing.get(..=done).unwrap_or_default();
                let undo: Vec<Atom> = tried.iter().rev().filter_map(|atom| atom.undo()).collect();
                tracing::info!(vm = %self.vm, atom = atom.name(), %error, "undoing");
                control.report(Progress {
                    atoms_done: count(done),
                    atoms_total,
                    atom: "undoing",
                });
                // What cannot be undone stays on record and is reported in the log by `roll`; the
                // caller is told why the operation failed in the first place.
                let _ = self.roll(call, &undo, |_, _| {}).await;
                return Err(error);
            }
            self.publish();
        }
        let report = |done: usize, atom: Atom| {
            let atoms_done = count(plan.doing.len() + done);
            control.report(Progress {
                atoms_done,
                atoms_total,
                atom: atom.name(),
            });
        };
        self.roll(call, &plan.then, report).await?;
        control.report(Progress {
            atoms_done: atoms_total,
            atoms_total,
            atom: "done",
        });
        Ok(())
    }

    /// Goes down a list without a way back: past a failure it goes on with what is independent of
    /// it, and returns the first error. The record is forgotten only if nothing failed.
    async fn roll(
        &mut self,
        call: &CallContext,
        atoms: &[Atom],
        report: impl Fn(usize, Atom),
    ) -> Result<(), Error> {
        let mut first_error = None;
        let mut stuck = BTreeSet::new();
        for (done, atom) in atoms.iter().enumerate() {
            let skipped = atom.vbd().is_some_and(|vbd| stuck.contains(&vbd))
                || (*atom == Atom::Forget && first_error.is_some());
            if skipped {
                continue;
            }
            report(done, *atom);
            if let Err(error) = self.step(call, *atom).await {
                tracing::warn!(vm = %self.vm, atom = atom.name(), %error, "failed on the way down");
                stuck.extend(atom.vbd());
                first_error.get_or_insert(error);
                if atom.guards_disks() {
                    break;
                }
            }
            self.publish();
        }
        first_error.map_or(Ok(()), Err)
    }

    pub(crate) async fn step(&mut self, call: &CallContext, atom: Atom) -> Result<(), Error> {
        let (limit, kind) = atom.deadline(&self.shared.config);
        tracing::debug!(vm = %self.vm, request_id = %call.request_id, atom = atom.name(), "atom");
        let result = tokio::time::timeout(limit, self.perform(call, atom)).await;
        result.unwrap_or_else(|_| {
            let context = format!("{} of vm {} took over {limit:?}", atom.name(), self.vm);
            Err(Error::new(kind, context))
        })
    }

    fn cancelled(&self, atom: Atom) -> Error {
        let context = format!("cancelled in {} of vm {}", atom.name(), self.vm);
        Error::new(ErrorKind::Cancelled, context)
    }
}

fn count(atoms: usize) -> u32 {
    u32::try_from(atoms).unwrap_or(u32::MAX)
}

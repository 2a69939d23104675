//! Mirrors of disks in use: start, wait, prepare, switch, stop.

use super::copy::{identities, machine_plan, read_chain};
use super::{Answered, Process, engine_error, found};
use crate::copy::Mirror;
use crate::process::ReplyTo;
use crate::process::copies::Awaited;
use crate::process::engines::Mirroring;
use datapath::protocol::{Access, CopyPlan, CopyScope, Error, ErrorKind, Extent, Format, Reply};
use std::os::fd::OwnedFd;
use units::DpId;

impl Process {
    pub(super) fn mirror_start(
        &mut self,
        id: DpId,
        target: Vec<(Format, OwnedFd)>,
        extent: Extent,
        plan: &CopyPlan,
    ) -> Answered {
        let machine = machine_plan(plan)?;
        let target = read_chain(target, extent, Access::ReadWrite)?;
        let to = identities(&target);
        let disk = found(self.disks.get(&id), &id)?;
        if plan.above > 0 || disk.engine.access() == Access::ReadOnly {
            let message = format!("disk {id} takes no writes, or is not the layer that goes");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        if let Some(present) = disk.engine.mirroring() {
            let failed = present.mirror.progress().failed.is_some();
            if !failed && !present.noted && present.identities == to {
                return self.disk_state(&id);
            }
            let message = format!("disk {id} has a mirror already");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        if disk.identities == to {
            // It was switched before the caller heard of it.
            return self.disk_state(&id);
        }
        if self.is_busy(&id) {
            let message = format!("disk {id} is in another operation");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        let over = match plan.scope {
            CopyScope::Chain => None,
            CopyScope::Layer if disk.identities.get(1..) == Some(&*to) && !to.is_empty() => {
                disk.identities.first().copied()
            }
            CopyScope::Layer => {
                let message = "the target of a leaf is what lies below it";
                return Err(Error::new(ErrorKind::Chain, message));
            }
        };
        self.check_files(&to, Some(over))?;
        let chain = self.open_chain(target, Access::ReadWrite, &id)?;
        let (tag, files) = (chain.engine.tag(), chain.engine.files());
        let Some(disk) = self.disks.get_mut(&id) else {
            return self.disk_state(&id);
        };
        let begun = disk.engine.set_mirror(|engine| {
            let uuids = chain.engine.layer_uuids();
            Ok(Mirroring {
                mirror: Mirror::new(engine, chain.engine, machine, true)?,
                identities: chain.identities,
                extent,
                over,
                target: uuids,
                noted: false,
            })
        });
        if let Err(e) = begun {
            self.forget_chain(&files, tag);
            return Err(engine_error(e));
        }
        for file in files {
            disk.set_cache_of_new_file(&mut self.reactor, file);
        }
        self.copies.tags.remove(&tag);
        self.tags.insert(tag, id.clone());
        tracing::info!(disk = %id, scope = ?plan.scope, "mirroring");
        self.disk_state(&id)
    }

    pub(super) fn mirror_wait(&mut self, to: &ReplyTo, id: DpId, wait_ms: u32) -> Option<Answered> {
        match found(self.disks.get(&id), &id) {
            Ok(_) => self.wait_for(to, Awaited::InSync(id), Some(wait_ms)),
            Err(e) => return Some(Err(e)),
        }
        None
    }

    pub(super) fn mirror_prepare(&mut self, id: &DpId) -> Answered {
        let disk = found(self.disks.get_mut(id), id)?;
        match disk.engine.mirroring_mut() {
            Some(mirroring) => mirroring.mirror.prepare().map_err(engine_error)?,
            None => was_switched(disk.engine.mirror_state().is_some(), id)?,
        }
        Ok(Reply::Done)
    }

    pub(super) fn mirror_switch(
        &mut self,
        to: &ReplyTo,
        id: DpId,
        verify: bool,
    ) -> Option<Answered> {
        let begun = found(self.disks.get_mut(&id), &id).and_then(|disk| {
            let switched = disk.engine.mirror_state().is_some();
            match disk.engine.both() {
                (Some(mirroring), engine) => {
                    let begun = mirroring.mirror.switch(engine, verify);
                    begun.map_err(engine_error)
                }
                (None, _) => was_switched(switched, &id),
            }
        });
        if let Err(e) = begun {
            return Some(Err(e));
        }
        self.wait_for(to, Awaited::Switched(id), None);
        None
    }

    pub(super) fn mirror_stop(&mut self, to: &ReplyTo, id: DpId) -> Option<Answered> {
        match found(self.disks.get_mut(&id), &id) {
            Ok(disk) => {
                if let (Some(mirroring), engine) = disk.engine.both() {
                    mirroring.mirror.stop(engine);
                }
            }
            Err(e) => return Some(Err(e)),
        }
        self.wait_for(to, Awaited::Stopped(id), None);
        None
    }
}

/// For a disk without a mirror: whether its last one was switched.
fn was_switched(switched: bool, id: &DpId) -> Result<(), Error> {
    if switched {
        return Ok(());
    }
    let message = format!("disk {id} has no mirror");
    Err(Error::new(ErrorKind::NotFound, message))
}

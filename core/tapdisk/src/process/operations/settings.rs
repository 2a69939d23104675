//! What can be asked and changed of a disk in use: statistics, limits, policies.

use super::{Answered, Process, engine_error, found};
use datapath::protocol::{Limits, Policy, Reply};
use units::DpId;

impl Process {
    pub(super) fn stats(&self, id: &DpId) -> Answered {
        let disk = found(self.disks.get(id), id)?;
        Ok(Reply::Stats(Box::new(disk.engine.latencies())))
    }

    pub(super) fn set_limits(&mut self, id: &DpId, limits: Limits) -> Answered {
        let disk = found(self.disks.get_mut(id), id)?;
        disk.engine.set_limits(limits).map_err(engine_error)?;
        tracing::info!(disk = %id, ?limits, "limits set");
        Ok(Reply::Disk(Box::new(disk.state(id))))
    }

    pub(super) fn set_policy(&mut self, id: &DpId, policy: Policy) -> Answered {
        let disk = found(self.disks.get_mut(id), id)?;
        disk.engine.set_policy(policy);
        disk.note_pause(id);
        tracing::info!(disk = %id, ?policy, "policy set");
        Ok(Reply::Disk(Box::new(disk.state(id))))
    }

    pub(super) fn resume(&mut self, id: &DpId) -> Answered {
        let disk = found(self.disks.get_mut(id), id)?;
        disk.engine.resume();
        disk.note_pause(id);
        Ok(Reply::Disk(Box::new(disk.state(id))))
    }
}

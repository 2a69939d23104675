//! What can be asked and changed of a disk in use: statistics, limits.

use super::{Answered, Process, engine_error, found};
use datapath::protocol::{Limits, Reply};
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
}

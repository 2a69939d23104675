//! Removes the containers that a commit doomed. Coalescing of what is only a parent has its place
//! here too, once the data path can do it.

use crate::state::Live;
use plugin::Container;
use std::collections::BTreeSet;
use units::ContainerId;

impl Live {
    /// Removes doomed containers, children first. One that cannot be removed now stays on the list
    /// for the next time: the commit that doomed it has happened.
    pub(crate) async fn remove_doomed(&self) {
        for id in &self.record().doomed {
            match self.plugin.container_remove(&self.handle, id).await {
                Ok(()) => {
                    self.metadata.removed(id);
                    self.seen.lock().used_bytes.remove(id);
                }
                Err(e) => {
                    tracing::warn!(sr = %self.uuid, container = %id, error = %e, "not removed");
                    return;
                }
            }
        }
    }

    /// Takes in what the plugin lists; returns the containers that nothing here knows of. `ours`
    /// are those of operations under way.
    pub(crate) fn see(
        &self,
        listed: &[Container],
        ours: &BTreeSet<ContainerId>,
    ) -> Vec<ContainerId> {
        let record = self.record();
        let there: BTreeSet<_> = listed.iter().map(|c| &c.id).collect();
        let mut seen = self.seen.lock();
        seen.used_bytes = listed
            .iter()
            .map(|c| (c.id.clone(), c.used_bytes))
            .collect();
        seen.missing = record
            .images
            .keys()
            .filter(|id| !there.contains(id))
            .cloned()
            .collect();
        let known = |id: &&ContainerId| {
            record.images.contains_key(*id)
                || record.doomed.contains(id)
                || ours.contains(*id)
                || **id == crate::metadata::container()
        };
        there.into_iter().filter(|id| !known(id)).cloned().collect()
    }
}

//! Removes the containers that a commit doomed. What makes them unneeded is in [`crate::merge`] and
//! wherever a VDI goes.

use crate::state::{Host, Live};
use plugin::Container;
use std::collections::BTreeSet;
use units::ContainerId;

impl Host {
    /// Removes doomed containers, children first. One that cannot be removed now stays on the list
    /// for the next time, with those below it: the commit that doomed it has happened. Comes after
    /// whatever may have left layers to merge, so that is noticed here.
    pub(crate) async fn remove_doomed(&self, live: &Live) {
        if !live.record().merges().is_empty() {
            self.wanted.want(live.uuid);
        }
        let busy = self.merging_containers(live.uuid);
        for id in &live.record().doomed {
            if busy.contains(id) {
                return;
            }
            match live.plugin.container_remove(&live.handle, id).await {
                Ok(()) => {
                    live.metadata.removed(id);
                    live.seen.lock().used_bytes.remove(id);
                }
                Err(e) => {
                    tracing::warn!(sr = %live.uuid, container = %id, error = %e, "not removed");
                    return;
                }
            }
        }
    }
}

impl Live {
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

//! Carries what domains do by themselves to their owners. Decides nothing.

use crate::xenops::Shared;
use hypervisor::{DomainState, Event, EventKind};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use units::VmUuid;

/// How long to wait before asking a hypervisor again that could not list its domains.
const LIST_RETRY: Duration = Duration::from_secs(1);

/// Starts to follow the hypervisor; ends with the toolstack.
pub(crate) fn follow(shared: &Arc<Shared>) {
    let mut events = shared.hypervisor.subscribe();
    let stop = shared.stop.clone();
    let shared = Arc::downgrade(shared);
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        loop {
            let event = events.recv().await;
            match event {
                Ok(event) => {
                    let Some(shared) = shared.upgrade() else {
                        return;
                    };
                    shared.pass_on(event);
                }
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "events were missed; listing the domains");
                    catch_up(&shared).await;
                }
                Err(RecvError::Closed) => return,
            }
        }
    }));
}

impl Shared {
    fn pass_on(&self, event: Event) {
        let owners = self.owners.lock();
        if let Some(owner) = owners.by_vm.get(&event.vm) {
            owner
                .events
                .send_modify(|last| *last = Some(merge(*last, event)));
        }
    }
}

/// Why a guest ended is worth more than that its domain is gone afterwards.
fn merge(last: Option<Event>, new: Event) -> Event {
    match last {
        Some(last) if last.domid == new.domid && new.kind == EventKind::Gone => last,
        _ => new,
    }
}

/// Finds out what missed events would have said. Which domains there were is read before the list
/// is made: a domain created meanwhile is not in question.
async fn catch_up(shared: &Weak<Shared>) {
    loop {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let before: BTreeMap<VmUuid, u32> = shared
            .states()
            .iter()
            .filter_map(|state| Some((state.vm, state.domid?)))
            .collect();
        let domains = match shared.hypervisor.list().await {
            Ok(domains) => domains,
            Err(error) => {
                tracing::warn!(%error, "cannot list the domains");
                drop(shared);
                tokio::time::sleep(LIST_RETRY).await;
                continue;
            }
        };
        for (vm, domid) in before {
            let domain = domains
                .iter()
                .find(|domain| domain.vm == vm && domain.domid == domid);
            let kind = match domain.map(|domain| domain.state) {
                None => EventKind::Gone,
                Some(DomainState::Shutdown(reason)) => EventKind::Shutdown(reason),
                Some(DomainState::Running | DomainState::Paused) => continue,
            };
            shared.pass_on(Event { vm, domid, kind });
        }
        return;
    }
}

//! How the layer above learns of changes without asking.

use crate::state::VmState;
use crate::xenops::Shared;
use std::sync::{Arc, Weak};
use tokio::sync::broadcast;

/// Something to bring one's own picture up to date with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// One VM is now like this.
    Vm(Arc<VmState>),
    /// Changes were missed: these are all VMs that are not halted; any other one is.
    Resync(Vec<VmState>),
}

/// A stream of changes, in order for each VM.
#[derive(Debug)]
pub struct Changes {
    receiver: broadcast::Receiver<Arc<VmState>>,
    shared: Weak<Shared>,
}

impl Changes {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            receiver: shared.changes.subscribe(),
            shared: Arc::downgrade(shared),
        }
    }

    /// Waits for the next change; `None` when the toolstack has stopped. A receiver that was too
    /// slow gets one [`Change::Resync`] in place of what it missed.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn next(&mut self) -> Option<Change> {
        match self.receiver.recv().await {
            Ok(state) => Some(Change::Vm(state)),
            Err(broadcast::error::RecvError::Closed) => None,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                self.receiver = self.receiver.resubscribe();
                let shared = self.shared.upgrade()?;
                Some(Change::Resync(shared.states()))
            }
        }
    }
}

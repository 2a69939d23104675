//! What a test or a demo makes happen in the simulator: delays, faults, guests' manners.

use crate::ShutdownReason;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use units::VmUuid;

/// The calls of the trait, as the script names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is the call of its name")]
pub enum Call {
    Create,
    Destroy,
    Pause,
    Unpause,
    RequestShutdown,
    PlugDisk,
    UnplugDisk,
    List,
    Stat,
    Console,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Create,
        Self::Destroy,
        Self::Pause,
        Self::Unpause,
        Self::RequestShutdown,
        Self::PlugDisk,
        Self::UnplugDisk,
        Self::List,
        Self::Stat,
        Self::Console,
    ];
}

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An error, and nothing was done.
    FailBefore,
    /// It was done, and the answer is an error all the same.
    FailAfter,
    /// No answer ever, and nothing was done.
    HangBefore,
    /// It was done, and no answer ever comes.
    HangAfter,
}

/// How a VM's guest behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestBehaviour {
    /// Whether it answers wishes to shut down; if not, such a call waits for ever.
    pub acknowledges: bool,
    /// How long after its answer it does what it was asked; never for `None`.
    pub obeys_after: Option<Duration>,
    /// Whether it lets disks go.
    pub releases_disks: bool,
    /// Whether it ends by itself some time after each unpause, and how.
    pub ends_after: Option<(Duration, ShutdownReason)>,
}

impl Default for GuestBehaviour {
    /// A guest that does at once whatever it is asked and nothing by itself.
    fn default() -> Self {
        Self {
            acknowledges: true,
            obeys_after: Some(Duration::ZERO),
            releases_disks: true,
            ends_after: None,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Script {
    delays: BTreeMap<Call, Duration>,
    faults: BTreeMap<Call, VecDeque<Fault>>,
    counts: BTreeMap<Call, u64>,
    guests: BTreeMap<VmUuid, GuestBehaviour>,
}

impl Script {
    pub(super) fn set_delay(&mut self, call: Call, delay: Duration) {
        self.delays.insert(call, delay);
    }

    pub(super) fn inject(&mut self, call: Call, fault: Fault) {
        self.faults.entry(call).or_default().push_back(fault);
    }

    pub(super) fn count(&self, call: Call) -> u64 {
        self.counts.get(&call).copied().unwrap_or(0)
    }

    pub(super) fn set_guest(&mut self, vm: VmUuid, behaviour: GuestBehaviour) {
        self.guests.insert(vm, behaviour);
    }

    pub(super) fn guest(&self, vm: VmUuid) -> GuestBehaviour {
        self.guests.get(&vm).copied().unwrap_or_default()
    }

    pub(super) fn enter(&mut self, call: Call) -> (Option<Duration>, Option<Fault>) {
        let count = self.counts.entry(call).or_default();
        *count = count.saturating_add(1);
        let fault = self.faults.get_mut(&call).and_then(VecDeque::pop_front);
        (self.delays.get(&call).copied(), fault)
    }
}

//! The states of a datapath and of the VDI under it. Pure: no I/O, no locks.
//!
//! ```text
//!             attach(a)              activate
//!  detached ------------> attached(a) -------> activated(a)
//!     ^                    |   ^                   |
//!     +------- detach -----+   +---- deactivate ---+
//! ```
//!
//! Attaching read-write what is read-only upgrades it; the reverse keeps read-write. Detaching what
//! is activated is the one error besides activating what is not attached.
//!
//! The *superstate* of a VDI is what its datapaths want together. The data path is called when it
//! changes and only then; going between read-only and read-write while activated is one explicit
//! step ([`BackendCall::Reopen`]), so that readers and writers may come and go in any order.

use crate::model::Access;
use serde::{Deserialize, Serialize};

/// How far a datapath, or all datapaths of a VDI together, have come. Absence is detached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "access", rename_all = "kebab-case")]
pub enum DpState {
    /// Known, no I/O yet.
    Attached(Access),
    /// Served.
    Activated(Access),
}

/// What is asked of a datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DpOp {
    /// Makes it known.
    Attach(Access),
    /// Serves it.
    Activate,
    /// Stops serving it.
    Deactivate,
    /// Forgets it.
    Detach,
}

/// What the data path of a VDI has to do for a new superstate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendCall {
    /// Nothing: the superstate did not change, or changed between detached and attached, which
    /// costs no side effect.
    Nothing,
    /// Opens the chain and serves it.
    Open(Access),
    /// Closes it and opens it with another access, at the same socket.
    Reopen(Access),
    /// Stops serving and closes.
    Close,
}

/// A step the automaton has not got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {op:?} from {from:?}")]
pub struct IllegalTransition {
    /// Where it was.
    pub from: Option<DpState>,
    /// What was asked.
    pub op: DpOp,
}

impl DpState {
    /// Reads or writes.
    pub fn access(self) -> Access {
        match self {
            Self::Attached(access) | Self::Activated(access) => access,
        }
    }

    /// Whether it is served.
    pub fn is_activated(self) -> bool {
        matches!(self, Self::Activated(_))
    }
}

/// Takes one step of one datapath.
///
/// # Errors
/// Activating what is not attached and detaching what is activated.
pub fn step(from: Option<DpState>, op: DpOp) -> Result<Option<DpState>, IllegalTransition> {
    use DpState::{Activated, Attached};
    match (from, op) {
        (None, DpOp::Attach(access)) => Ok(Some(Attached(access))),
        (Some(Attached(have)), DpOp::Attach(want)) => Ok(Some(Attached(wider(have, want)))),
        (Some(Activated(have)), DpOp::Attach(want)) => Ok(Some(Activated(wider(have, want)))),
        (Some(Attached(access) | Activated(access)), DpOp::Activate) => Ok(Some(Activated(access))),
        (Some(Attached(access) | Activated(access)), DpOp::Deactivate) => {
            Ok(Some(Attached(access)))
        }
        (None, DpOp::Deactivate | DpOp::Detach) | (Some(Attached(_)), DpOp::Detach) => Ok(None),
        (None, DpOp::Activate) | (Some(Activated(_)), DpOp::Detach) => {
            Err(IllegalTransition { from, op })
        }
    }
}

/// What the datapaths of one VDI want together: activated if any is, and read-write if any of those
/// that have come as far is. An attached writer does not disturb activated readers.
pub fn superstate(dps: impl IntoIterator<Item = DpState>) -> Option<DpState> {
    dps.into_iter().fold(None, |all, dp| match (all, dp) {
        (None, dp) => Some(dp),
        (Some(DpState::Attached(a)), DpState::Attached(b)) => Some(DpState::Attached(wider(a, b))),
        (Some(DpState::Activated(a)), DpState::Activated(b)) => {
            Some(DpState::Activated(wider(a, b)))
        }
        (Some(DpState::Attached(_)), dp @ DpState::Activated(_)) => Some(dp),
        (all @ Some(DpState::Activated(_)), DpState::Attached(_)) => all,
    })
}

/// What the data path has to do when it serves `open` (`None`: nothing) and `wanted` is the new
/// superstate.
pub fn backend_call(open: Option<Access>, wanted: Option<DpState>) -> BackendCall {
    match (open, wanted) {
        (None, Some(DpState::Activated(access))) => BackendCall::Open(access),
        (Some(have), Some(DpState::Activated(want))) if have != want => BackendCall::Reopen(want),
        (Some(_), None | Some(DpState::Attached(_))) => BackendCall::Close,
        (None, None | Some(DpState::Attached(_))) | (Some(_), Some(DpState::Activated(_))) => {
            BackendCall::Nothing
        }
    }
}

fn wider(a: Access, b: Access) -> Access {
    if a == Access::ReadWrite || b == Access::ReadWrite {
        Access::ReadWrite
    } else {
        Access::ReadOnly
    }
}

#[cfg(test)]
mod tests;

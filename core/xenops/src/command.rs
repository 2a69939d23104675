//! The closed set of what an owner task can be told.

use crate::operation::Control;
use crate::record::Record;
use crate::spec::{CallContext, Manner, StartAs, VbdSpec, VmSpec};
use hypervisor::Domain;
use units::VbdUuid;

/// One entry of an owner's queue.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) call: CallContext,
    pub(crate) body: Body,
    pub(crate) control: Control,
}

#[derive(Debug)]
pub(crate) enum Body {
    Start(VmSpec, StartAs),
    Shutdown(Manner),
    Reboot(Manner),
    Pause,
    Unpause,
    Plug(VbdSpec),
    Unplug(VbdUuid),
    /// First in the queue of an owner made at the daemon's start.
    Adopt(Box<Record>, Option<Domain>),
}

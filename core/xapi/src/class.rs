//! The explicit messages, one file per class or a few.

mod event;
mod host;
mod machine;
mod message;
pub(crate) mod operations;
pub(crate) mod pbd;
mod power;
mod role;
mod session;
mod sm;
mod sr;
mod storage_rows;
mod task;
mod vbd;
mod vdi;
mod vm;
mod vm_copy;

pub(crate) use vdi::push_fields as push_vdi_fields;

use crate::methods::Entry;

/// Lists the code behind explicit messages: `Pace "Class.message" => handler`.
macro_rules! handlers {
    ($($pace:ident $name:literal => $handler:path),* $(,)?) => {
        vec![$($crate::methods::Entry {
            name: $name,
            pace: $crate::methods::Pace::$pace,
            handler: |call| Box::pin($handler(call)),
        }),*]
    };
}
use handlers;

/// Every message with code of its own.
pub(crate) fn entries() -> Vec<Entry> {
    [
        event::entries(),
        host::entries(),
        message::entries(),
        pbd::entries(),
        power::entries(),
        role::entries(),
        session::entries(),
        sr::entries(),
        task::entries(),
        vbd::entries(),
        vdi::entries(),
        vm::entries(),
        vm_copy::entries(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Explicit messages that do to the row what their name says and nothing else.
pub(crate) const PLAIN: &[&str] = &[
    "VDI.set_allow_caching",
    "VM.add_to_blocked_operations",
    "VM.add_to_other_config",
    "VM.add_to_platform",
    "VM.remove_from_blocked_operations",
    "VM.remove_from_other_config",
    "VM.remove_from_platform",
    "VM.set_HVM_boot_policy",
    "VM.set_actions_after_crash",
    "VM.set_blocked_operations",
    "VM.set_domain_type",
    "VM.set_ha_restart_priority",
    "VM.set_has_vendor_device",
    "VM.set_order",
    "VM.set_other_config",
    "VM.set_platform",
    "VM.set_shutdown_delay",
    "VM.set_start_delay",
    "message.destroy",
    "message.get_all",
    "message.get_all_records",
    "message.get_all_records_where",
    "message.get_by_uuid",
    "message.get_record",
    "task.add_to_other_config",
    "task.remove_from_other_config",
    "task.set_other_config",
];

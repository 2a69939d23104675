//! The explicit messages, one file per class or a few.

mod event;
mod message;
pub(crate) mod operations;
mod role;
mod session;
mod task;

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
        session::entries(),
        task::entries(),
        event::entries(),
        message::entries(),
        role::entries(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Explicit messages that do to the row what their name says and nothing else.
pub(crate) const PLAIN: &[&str] = &[
    "message.get_all",
    "message.get_all_records",
    "message.get_all_records_where",
    "message.get_by_uuid",
    "message.get_record",
    "message.destroy",
];

//! Short ways to make an [`Error`].

use crate::{Error, ErrorKind};

macro_rules! constructors {
    ($($(#[$doc:meta])+ $name:ident, $kind:ident;)+) => {
        impl Error {
            $(
                $(#[$doc])+
                pub fn $name(message: impl Into<String>) -> Self {
                    Self { kind: ErrorKind::$kind, message: message.into() }
                }
            )+
        }
    };
}

constructors! {
    /// The named thing does not exist.
    not_found, NotFound;
    /// The named thing exists already, with other properties.
    exists, Exists;
    /// The caller may not do this.
    denied, Denied;
    /// The plugin has not got this power.
    unsupported, Unsupported;
    /// An argument or the configuration is wrong.
    invalid, Invalid;
    /// No space is left.
    no_space, NoSpace;
    /// The storage below answered with an error.
    io, Io;
    /// In use; the same call may succeed later.
    busy, Busy;
    /// A defect.
    internal, Internal;
}

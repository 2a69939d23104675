//! The error every operation can end with.

use std::fmt;
use units::VmUuid;

/// What callers branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The VM is not in a power state in which this can be done.
    BadState,
    /// The device is taken by another disk.
    DeviceInUse,
    /// The specification cannot be.
    Invalid,
    /// Too many commands wait for this VM already.
    QueueFull,
    /// More VMs than the configured limit.
    TooManyVms,
    /// The toolstack is stopping.
    Closed,
    /// The operation was cancelled and what it had done is undone.
    Cancelled,
    /// An atom passed its deadline.
    Timeout,
    /// The guest did not answer the wish to shut down.
    NotAcknowledged,
    /// The guest answered but was not done in the time it was given.
    DidNotShutDown,
    /// The guest did not let a disk go.
    GuestRefused,
    /// The hypervisor failed; see the source.
    Hypervisor,
    /// Serving a disk failed; see the source.
    Disk,
    /// The record could not be kept; see the source.
    Database,
}

/// A failed operation: what kind, what was being done to which VM, and the cause below.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    pub(crate) fn because(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            context: context.into(),
            source: Some(source.into()),
        }
    }

    pub(crate) fn hypervisor(vm: VmUuid, doing: &str, source: hypervisor::Error) -> Self {
        let kind = match source.kind() {
            hypervisor::ErrorKind::Invalid => ErrorKind::Invalid,
            hypervisor::ErrorKind::Refused => ErrorKind::GuestRefused,
            hypervisor::ErrorKind::BadState => ErrorKind::BadState,
            _ => ErrorKind::Hypervisor,
        };
        Self::because(kind, format!("{doing} failed for vm {vm}"), source)
    }

    /// Returns what callers branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}

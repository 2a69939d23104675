//! The error every hypervisor call can end with.

use std::fmt;

/// What callers branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such domain.
    NotFound,
    /// There already, and different.
    Exists,
    /// The domain is in a state in which this cannot be done.
    BadState,
    /// The configuration or an argument cannot be.
    Invalid,
    /// The guest did not do its part.
    Refused,
    /// The hypervisor did not answer in time.
    Timeout,
    /// The channel to the hypervisor or to the domain's process broke.
    Lost,
    /// The hypervisor answered with an error.
    Failed,
    /// The host's own files, sockets or processes failed.
    Io,
}

/// A failed call: what kind, what was being done to what, and the cause below.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Makes an error with no cause below it.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
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

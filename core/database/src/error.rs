//! Why a database call failed.

use std::error::Error as StdError;
use std::fmt;

/// What callers branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The schema has no class or no field of this name, or contradicts itself.
    Schema,
    /// The value has not the type of the field, or a field without default got none.
    Type,
    /// The object to change, or one a new value refers to, does not exist.
    NotFound,
    /// The reference or the uuid is taken.
    Exists,
    /// The revision is older than the oldest deletion still remembered, or than this process:
    /// read everything again.
    RevisionTooOld,
    /// The revision has not happened yet: it comes from another database.
    RevisionUnknown,
    /// The file was written by a newer version.
    Newer,
    /// The file is not a database, or its contents contradict themselves.
    Damaged,
    /// Another process has the file open.
    Locked,
    /// More transactions wait than the limit allows.
    Overloaded,
    /// Reading or writing the file failed. After a failed write every later one fails too: what
    /// the disk holds is unknown until the file is opened again.
    Io,
    /// A record of a bucket cannot be encoded or decoded.
    Record,
}

/// A failed database call.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
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
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            context: context.into(),
            source: Some(source.into()),
        }
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

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

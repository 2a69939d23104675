//! Why an operation failed.

use crate::{FileId, Verb};
use std::fmt;

/// What callers branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The device or file system answered with an error.
    Io,
    /// No space or quota left.
    NoSpace,
    /// A read met the end of the file.
    EndOfFile,
    /// This file cannot do that (punching a hole, mostly).
    Unsupported,
    /// No file has this id.
    NoSuchFile,
    /// The offset or length cannot be addressed.
    Invalid,
}

/// A failed operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What callers branch on.
    pub kind: ErrorKind,
    /// What was being done.
    pub verb: Verb,
    /// To which file.
    pub file: FileId,
    /// Where in it, in bytes.
    pub offset: u64,
    /// The operating system's error number, where there was one.
    pub os_error: Option<i32>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.kind {
            ErrorKind::Io => "input/output error",
            ErrorKind::NoSpace => "no space left",
            ErrorKind::EndOfFile => "end of file",
            ErrorKind::Unsupported => "not supported",
            ErrorKind::NoSuchFile => "no such file",
            ErrorKind::Invalid => "range cannot be addressed",
        };
        write!(
            f,
            "{} at byte {} of file {}: {reason}",
            self.verb, self.offset, self.file.0
        )?;
        match self.os_error {
            Some(code) => write!(f, " (os error {code})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

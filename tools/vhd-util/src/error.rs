//! The one error type of the tools: an error number, which becomes the exit code, and a text.

use rustix::io::Errno;
use std::error::Error as StdError;
use std::io;
use std::path::Path;
use vhd_rs::ErrorKind;

/// Result of a command.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    errno: Errno,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A refusal of the tool's own.
    pub fn new(errno: Errno, context: impl Into<String>) -> Self {
        Self {
            errno,
            context: context.into(),
            source: None,
        }
    }

    /// A request that makes no sense.
    pub fn invalid(context: impl Into<String>) -> Self {
        Self::new(Errno::INVAL, context)
    }

    /// A failure of the medium or the file system.
    pub fn io(context: impl Into<String>, source: io::Error) -> Self {
        Self {
            errno: errno_of(&source),
            context: context.into(),
            source: Some(Box::new(source)),
        }
    }

    /// What the format's library says about a file.
    pub fn vhd(path: &Path, source: vhd_rs::Error) -> Self {
        let errno = match source.kind() {
            ErrorKind::Io => StdError::source(&source)
                .and_then(|e| e.downcast_ref::<io::Error>())
                .map_or(Errno::IO, errno_of),
            ErrorKind::Unsupported => Errno::NOSYS,
            ErrorKind::NoSpace => Errno::NOSPC,
            ErrorKind::NameTooLong => Errno::NAMETOOLONG,
            ErrorKind::ChainLoop | ErrorKind::ChainTooDeep => Errno::LOOP,
            _ => Errno::INVAL,
        };
        Self {
            errno,
            context: path.display().to_string(),
            source: Some(Box::new(source)),
        }
    }

    /// The error number.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// What a process that failed this way exits with: scripts know error numbers.
    pub fn exit_code(&self) -> u8 {
        u8::try_from(self.errno.raw_os_error()).unwrap_or(u8::MAX)
    }

    /// The error with all its causes in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = StdError::source(self);
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        text
    }
}

fn errno_of(error: &io::Error) -> Errno {
    error
        .raw_os_error()
        .map_or(Errno::IO, Errno::from_raw_os_error)
}

//! The trait and the shape of operations and completions.

use crate::{Buffer, Error, ErrorKind, SharedBuffer};
use std::fmt;
use std::time::Duration;

/// Chosen by whoever submits, returned with the completion; never looked at in between.
pub type Token = u64;

/// A file as its [`BlockIo`] knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// One operation on one file.
#[derive(Debug)]
pub struct Op {
    /// Comes back with the completion.
    pub token: Token,
    /// The file.
    pub file: FileId,
    /// What to do with it.
    pub action: Action,
}

/// What an [`Op`] does. Offsets and lengths are bytes.
#[derive(Debug)]
pub enum Action {
    /// Fills the buffer from `offset`.
    Read {
        /// Where to start.
        offset: u64,
        /// What to fill; its length is the length of the read.
        buffer: Buffer,
    },
    /// Writes the data at `offset`.
    Write {
        /// Where to start.
        offset: u64,
        /// What to write.
        data: SharedBuffer,
    },
    /// Makes what completed before durable.
    Fdatasync,
    /// Sets the file's size; what is added reads as zeros.
    Truncate {
        /// The new size.
        size_bytes: u64,
    },
    /// Reserves space so that writes there cannot run out of it; extends the file.
    Allocate {
        /// Where to start.
        offset: u64,
        /// How much.
        len_bytes: u64,
    },
    /// Makes a range inside the file read as zeros and frees its space; never extends the file.
    Punch {
        /// Where to start.
        offset: u64,
        /// How much.
        len_bytes: u64,
    },
}

/// The kind of an action, for errors and for choosing where faults strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// [`Action::Read`].
    Read,
    /// [`Action::Write`].
    Write,
    /// [`Action::Fdatasync`].
    Fdatasync,
    /// [`Action::Truncate`].
    Truncate,
    /// [`Action::Allocate`].
    Allocate,
    /// [`Action::Punch`].
    Punch,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verb::Read => "read",
            Verb::Write => "write",
            Verb::Fdatasync => "fdatasync",
            Verb::Truncate => "truncate",
            Verb::Allocate => "allocate",
            Verb::Punch => "punch",
        })
    }
}

impl Action {
    /// Its kind.
    pub fn verb(&self) -> Verb {
        match self {
            Action::Read { .. } => Verb::Read,
            Action::Write { .. } => Verb::Write,
            Action::Fdatasync => Verb::Fdatasync,
            Action::Truncate { .. } => Verb::Truncate,
            Action::Allocate { .. } => Verb::Allocate,
            Action::Punch { .. } => Verb::Punch,
        }
    }

    /// Where it starts: zero for `Fdatasync`, the new size for `Truncate`.
    pub fn offset(&self) -> u64 {
        match self {
            Action::Read { offset, .. }
            | Action::Write { offset, .. }
            | Action::Allocate { offset, .. }
            | Action::Punch { offset, .. } => *offset,
            Action::Truncate { size_bytes } => *size_bytes,
            Action::Fdatasync => 0,
        }
    }

    /// Bytes it touches.
    pub fn len_bytes(&self) -> u64 {
        match self {
            Action::Read { buffer, .. } => buffer.len() as u64,
            Action::Write { data, .. } => data.len() as u64,
            Action::Allocate { len_bytes, .. } | Action::Punch { len_bytes, .. } => *len_bytes,
            Action::Truncate { .. } | Action::Fdatasync => 0,
        }
    }

    /// Its buffer, to be given back.
    pub fn into_payload(self) -> Payload {
        match self {
            Action::Read { buffer, .. } => Payload::Read(buffer),
            Action::Write { data, .. } => Payload::Written(data),
            _ => Payload::None,
        }
    }
}

impl Op {
    /// An error of this operation.
    pub fn error(&self, kind: ErrorKind, os_error: Option<i32>) -> Error {
        let (verb, offset) = (self.action.verb(), self.action.offset());
        Error {
            kind,
            verb,
            file: self.file,
            offset,
            os_error,
        }
    }
}

/// The buffer of an operation on its way back.
#[derive(Debug)]
pub enum Payload {
    /// The operation had none.
    None,
    /// The buffer of a read; filled when the read worked, of unknown content when not.
    Read(Buffer),
    /// The data of a write.
    Written(SharedBuffer),
}

/// The end of one operation.
#[derive(Debug)]
pub struct Completion {
    /// The operation's token.
    pub token: Token,
    /// Whether all of it was done.
    pub result: Result<(), Error>,
    /// Its buffer.
    pub payload: Payload,
}

/// How long [`BlockIo::poll`] may wait for a first completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until there is one; returns at once when nothing is in flight.
    Forever,
    /// At most this long.
    AtMost(Duration),
}

/// Files that take operations and answer with completions. The crate's page has the contract.
pub trait BlockIo {
    /// Takes an operation. It may start at once or with the next `poll`.
    fn submit(&mut self, op: Op);

    /// Starts what was submitted and adds finished operations to `done`.
    ///
    /// # Errors
    /// Only when the carrier itself broke; a failed operation is a completion.
    fn poll(&mut self, wait: Wait, done: &mut Vec<Completion>) -> std::io::Result<()>;

    /// Operations submitted whose completion has not been given out.
    fn in_flight(&self) -> usize;

    /// The file's present size in bytes (a block device's capacity). May block: not for hot paths.
    ///
    /// # Errors
    /// `NoSuchFile`, or what the operating system said.
    fn size_bytes(&mut self, file: FileId) -> Result<u64, Error>;

    /// Does one operation and waits for it, giving completions of others back into `others`.
    ///
    /// # Errors
    /// The operation's own error; `Io` when the carrier broke.
    fn run(&mut self, op: Op, others: &mut Vec<Completion>) -> Result<Payload, Error> {
        let token = op.token;
        let broken = op.error(ErrorKind::Io, None);
        self.submit(op);
        loop {
            let first = others.len();
            self.poll(Wait::Forever, others).map_err(|e| Error {
                os_error: e.raw_os_error(),
                ..broken.clone()
            })?;
            let found = others.iter().skip(first).position(|c| c.token == token);
            if let Some(index) = found {
                let completion = others.remove(first.saturating_add(index));
                return completion.result.map(|()| completion.payload);
            }
            if others.len() == first {
                return Err(broken);
            }
        }
    }
}

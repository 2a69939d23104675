//! Files in memory: nothing is ever lost, operations complete in the order they came.

use crate::{
    Action, BlockIo, Completion, Error, ErrorKind, FileId, Op, Payload, SharedBuffer, SparseBytes,
    Verb, Wait,
};
use std::collections::VecDeque;

/// Largest offset a file has, as `off_t` allows it.
const OFFSET_MAX: u64 = i64::MAX as u64;

/// A change to a file, as it lies in a queue or in a volatile cache.
#[derive(Debug, Clone)]
pub(crate) enum Effect {
    Write { offset: u64, data: SharedBuffer },
    Truncate { size_bytes: u64 },
    Extend { size_bytes: u64 },
    Punch { offset: u64, len_bytes: u64 },
}

impl Effect {
    /// The change an action makes; `None` for reads and flushes.
    pub(crate) fn of(action: &Action) -> Option<Self> {
        Some(match action {
            Action::Read { .. } | Action::Fdatasync => return None,
            Action::Write { offset, data } => Effect::Write {
                offset: *offset,
                data: data.clone(),
            },
            Action::Truncate { size_bytes } => Effect::Truncate {
                size_bytes: *size_bytes,
            },
            Action::Allocate { offset, len_bytes } => Effect::Extend {
                size_bytes: offset.saturating_add(*len_bytes),
            },
            Action::Punch { offset, len_bytes } => Effect::Punch {
                offset: *offset,
                len_bytes: *len_bytes,
            },
        })
    }

    /// Makes the change.
    pub(crate) fn apply(&self, file: &mut SparseBytes) {
        match self {
            Effect::Write { offset, data } => file.write(*offset, data.as_slice()),
            Effect::Truncate { size_bytes } => file.truncate(*size_bytes),
            Effect::Extend { size_bytes } => {
                if *size_bytes > file.size_bytes() {
                    file.truncate(*size_bytes);
                }
            }
            Effect::Punch { offset, len_bytes } => {
                let inside = file.size_bytes().saturating_sub(*offset).min(*len_bytes);
                file.zero(*offset, inside);
            }
        }
    }
}

/// Refuses what no file can address.
pub(crate) fn check_range(op: &Op) -> Result<(), Error> {
    let end = op.action.offset().checked_add(op.action.len_bytes());
    match end {
        Some(end) if end <= OFFSET_MAX => Ok(()),
        _ => Err(op.error(ErrorKind::Invalid, None)),
    }
}

/// Does a read's part of an action on the present content.
pub(crate) fn read_into(op: &mut Op, file: &SparseBytes) -> Result<(), Error> {
    let short = op.error(ErrorKind::EndOfFile, None);
    if let Action::Read { offset, buffer } = &mut op.action
        && file.read(*offset, buffer.as_mut_slice()) < buffer.len()
    {
        return Err(short);
    }
    Ok(())
}

pub(crate) fn no_such_file(file: FileId) -> Error {
    Error {
        kind: ErrorKind::NoSuchFile,
        verb: Verb::Read,
        file,
        offset: 0,
        os_error: None,
    }
}

/// Sparse files in memory.
#[derive(Debug, Clone, Default)]
pub struct RamDisk {
    files: Vec<SparseBytes>,
    queue: Queue,
}

/// Queued operations; a clone of a disk starts with none, as after a power cut.
#[derive(Debug, Default)]
struct Queue(VecDeque<Op>);

impl Clone for Queue {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl RamDisk {
    /// Makes a disk without files.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file with this content.
    pub fn add_file(&mut self, content: impl Into<SparseBytes>) -> FileId {
        self.files.push(content.into());
        FileId(u32::try_from(self.files.len() - 1).unwrap_or(u32::MAX))
    }

    /// The content of a file.
    pub fn file(&self, file: FileId) -> Option<&SparseBytes> {
        self.files.get(file.0 as usize)
    }

    /// All files in order of their ids.
    pub fn files(&self) -> &[SparseBytes] {
        &self.files
    }

    fn perform(&mut self, mut op: Op) -> Completion {
        let result = self.try_perform(&mut op);
        Completion {
            token: op.token,
            result,
            payload: op.action.into_payload(),
        }
    }

    fn try_perform(&mut self, op: &mut Op) -> Result<(), Error> {
        check_range(op)?;
        let missing = op.error(ErrorKind::NoSuchFile, None);
        let file = self.files.get_mut(op.file.0 as usize).ok_or(missing)?;
        if let Some(effect) = Effect::of(&op.action) {
            effect.apply(file);
        }
        read_into(op, file)
    }
}

impl BlockIo for RamDisk {
    fn submit(&mut self, op: Op) {
        self.queue.0.push_back(op);
    }

    fn poll(&mut self, _wait: Wait, done: &mut Vec<Completion>) -> std::io::Result<()> {
        while let Some(op) = self.queue.0.pop_front() {
            done.push(self.perform(op));
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.queue.0.len()
    }

    fn size_bytes(&mut self, file: FileId) -> Result<u64, Error> {
        self.file(file)
            .map(SparseBytes::size_bytes)
            .ok_or_else(|| no_such_file(file))
    }
}

/// So that tests can look at what a helper wrote.
impl From<Vec<SparseBytes>> for RamDisk {
    fn from(files: Vec<SparseBytes>) -> Self {
        Self {
            files,
            queue: Queue::default(),
        }
    }
}

impl From<Payload> for Option<crate::Buffer> {
    fn from(payload: Payload) -> Self {
        match payload {
            Payload::Read(buffer) => Some(buffer),
            Payload::None | Payload::Written(_) => None,
        }
    }
}

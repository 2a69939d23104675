//! Plans: the writes, size changes and barriers that bring a change of metadata to disk, in the
//! order that keeps the image sound if it is cut off anywhere. Plans are data; the caller performs
//! them, or lets [`Plan::apply`] do it on anything that is [`WriteAt`].

use crate::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Writes bytes; offset and length are multiples of 512, except for the footer of a file whose
    /// size is not.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Makes a range read as zeros.
    Zero {
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
    },
    /// Sets a growing container's size, cutting off or adding zeros. Never part of a plan for a
    /// reserved container.
    SetSize {
        /// The new size in bytes.
        bytes: u64,
    },
    /// Makes everything before it durable before anything after it begins.
    Flush,
}

/// Steps to be performed in order. Between two [`Step::Flush`] the order is that of other tools,
/// and any order or subset of durable writes leaves a sound image unless the plan's maker says so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "a plan does nothing until it is performed"]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
}

impl Plan {
    pub(crate) fn write(&mut self, offset: u64, bytes: impl Into<Vec<u8>>) {
        self.steps.push(Step::Write {
            offset,
            bytes: bytes.into(),
        });
    }

    pub(crate) fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Performs the steps in order, blocking, and stops at the first that fails.
    ///
    /// # Errors
    /// `Io` with the step's place. The image is then as after a crash at that step.
    pub fn apply(&self, target: &mut impl WriteAt) -> Result<(), Error> {
        for step in &self.steps {
            match step {
                Step::Write { offset, bytes } => target
                    .write_all_at(*offset, bytes)
                    .map_err(|e| Error::io("metadata write", *offset, e))?,
                Step::Zero { offset, len } => zero(target, *offset, *len)?,
                Step::SetSize { bytes } => {
                    target
                        .set_size(*bytes)
                        .map_err(|e| Error::io("size change", *bytes, e))?;
                }
                Step::Flush => target.flush().map_err(|e| Error::io("flush", 0, e))?,
            }
        }
        Ok(())
    }
}

fn zero(target: &mut impl WriteAt, offset: u64, len: u64) -> Result<(), Error> {
    const CHUNK: usize = 1 << 20;
    let zeros = vec![0; CHUNK];
    let end = offset.saturating_add(len);
    let mut at = offset;
    while at < end {
        let chunk = (end - at).min(CHUNK as u64);
        let zeros = zeros.get(..chunk as usize).unwrap_or_default();
        target
            .write_all_at(at, zeros)
            .map_err(|e| Error::io("zeroing", at, e))?;
        at += chunk;
    }
    Ok(())
}

/// Where [`Plan::apply`] writes. Implemented for files and for bytes in memory.
pub trait WriteAt {
    /// Writes all of `bytes` at `offset`, growing a file as needed.
    ///
    /// # Errors
    /// Those of the medium; part of the bytes may have been written.
    fn write_all_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Sets the size, cutting off or adding zeros.
    ///
    /// # Errors
    /// Those of the medium.
    fn set_size(&mut self, bytes: u64) -> io::Result<()>;

    /// Makes all writes and the size durable.
    ///
    /// # Errors
    /// Those of the medium; nothing written since the last flush may then be relied on.
    fn flush(&mut self) -> io::Result<()>;
}

impl WriteAt for File {
    fn write_all_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn set_size(&mut self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

impl WriteAt for Vec<u8> {
    fn write_all_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let place = usize::try_from(offset).ok();
        let range = place.and_then(|start| Some(start..start.checked_add(bytes.len())?));
        let range = range.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        if self.len() < range.end {
            self.resize(range.end, 0);
        }
        if let Some(target) = self.get_mut(range) {
            target.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn set_size(&mut self, bytes: u64) -> io::Result<()> {
        let size =
            usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        self.resize(size, 0);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

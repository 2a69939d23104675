//! `create`: a new image without a parent.

use super::mib;
use crate::disk::{create_file, sync_folder};
use crate::{Error, Result};
use clap::Args;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;
use vhd_rs::{Content, Extent, NewImage, Plan, ReadAt, Timestamp};

/// Makes a new image; a file of that name is overwritten
#[derive(Debug, Args)]
pub(super) struct Create {
    /// File or device
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// Virtual size in MiB, rounded up to 2 MiB
    #[arg(short = 's', value_name = "MIB")]
    size_mib: u64,
    /// Make a fixed disk: all of its space is allocated now
    #[arg(short = 'r')]
    fixed: bool,
    /// Lay the metadata out for fast resizes up to this size
    #[arg(short = 'S', value_name = "MIB")]
    resize_max_mib: Option<u64>,
}

impl Create {
    pub(super) fn run(&self) -> Result<()> {
        let content = if self.fixed {
            Content::Fixed
        } else {
            Content::Dynamic
        };
        let new = New {
            virtual_bytes: mib(self.size_mib),
            resize_max_bytes: mib(self.resize_max_mib.unwrap_or(0)),
            content,
        };
        new.create(&self.name)
    }
}

/// A new image to be put into a file or on a device.
pub(super) struct New {
    pub(super) virtual_bytes: u64,
    pub(super) resize_max_bytes: u64,
    pub(super) content: Content,
}

impl New {
    /// Makes the image durable under its name.
    pub(super) fn create(self, path: &Path) -> Result<()> {
        // What is refused leaves no file behind.
        let existing = path.exists().then(|| create_file(path)).transpose()?;
        let (extent, container_bytes) = match &existing {
            None => (Extent::Grows, 0),
            Some((file, extent)) => {
                let size = file.size_bytes();
                let text = || format!("cannot measure {}", path.display());
                (*extent, size.map_err(|e| Error::io(text(), e))?)
            }
        };
        let fixed = self.content == Content::Fixed;
        let new = NewImage {
            uuid: Uuid::new_v4(),
            created: now(),
            virtual_bytes: self.virtual_bytes,
            resize_max_bytes: self.resize_max_bytes,
            content: self.content,
            extent,
            container_bytes,
        };
        let plan = new.plan().map_err(|e| Error::vhd(path, e))?;
        let (file, _) = existing.map_or_else(|| create_file(path), Ok)?;
        if extent == Extent::Reserved {
            return write(file, path, &plan);
        }
        // The plan is known to be good: what was in the file goes now.
        file.set_len(0)
            .map_err(|e| Error::io(format!("cannot empty {}", path.display()), e))?;
        if fixed {
            let bytes = new.rounded_bytes().map_err(|e| Error::vhd(path, e))?;
            reserve(&file, path, bytes)?;
        }
        write(file, path, &plan)?;
        sync_folder(path)
    }
}

fn write(mut file: File, path: &Path, plan: &Plan) -> Result<()> {
    plan.apply(&mut file).map_err(|e| Error::vhd(path, e))
}

/// Allocates a fixed disk's space, so that it cannot run out later. Where the file system cannot,
/// the file has holes and the same content.
fn reserve(file: &File, path: &Path, bytes: u64) -> Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => {
            let text = format!("cannot allocate {bytes} bytes for {}", path.display());
            Err(Error::new(errno, text))
        }
    }
}

/// The present time; a clock before 2000 gives the format's first second.
pub(super) fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

/// A file's time as the format stores it.
pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_s(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

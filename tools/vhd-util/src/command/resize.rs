//! `resize`: another virtual size, within the layout or with another one under a journal.

use super::mib;
use crate::disk::{create_file, sync_folder};
use crate::journal::{Named, perform};
use crate::{Disk, Error, Result};
use clap::Args;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use vhd_rs::{Access, BLOCK_BYTES, DiskType, Extent, Image};

/// Changes the virtual size
#[derive(Debug, Args)]
pub(super) struct Resize {
    /// File or device
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// New virtual size in MiB, rounded up to 2 MiB
    #[arg(short = 's', value_name = "MIB")]
    size_mib: u64,
    /// Grow within what the metadata was laid out for
    #[arg(short = 'f', required_unless_present = "journal")]
    fast: bool,
    /// Keep an undo journal in this file or on this device, and move blocks where need be
    #[arg(short = 'j', value_name = "JOURNAL", conflicts_with = "fast")]
    journal: Option<PathBuf>,
}

impl Resize {
    pub(super) fn run(&self) -> Result<()> {
        let mut disk = Disk::open(&self.name, Access::ReadWrite)?;
        match &self.journal {
            None => disk.change(|image| image.resize_plan(mib(self.size_mib))),
            Some(journal) => self.resize_under(journal, disk),
        }
    }

    fn resize_under(&self, journal: &Path, mut disk: Disk) -> Result<()> {
        let size = mib(self.size_mib);
        let image = &disk.image;
        if size.checked_next_multiple_of(u64::from(BLOCK_BYTES)) == Some(image.virtual_bytes()) {
            return Ok(());
        }
        let sparse = image.disk_type() != DiskType::Fixed;
        if sparse && (image.virtual_bytes()..=image.resize_max_bytes()).contains(&size) {
            return disk.change(|image| image.resize_plan(size));
        }
        if !disk.image.is_clean() {
            disk.change(Image::close_plan)?;
        }
        let relayout = disk.image.relayout(size);
        let relayout = relayout.map_err(|e| Error::vhd(&self.name, e))?;
        let (mut file, extent) = open_journal(journal)?;
        let whose = (disk.image.uuid(), disk.image.options().extent);
        let mut target = Named {
            name: "image",
            medium: &mut disk.file,
        };
        let mut undo = Named {
            name: "journal",
            medium: &mut file,
        };
        perform(&mut target, &mut undo, whose, &relayout)
            .map_err(|failure| Error::from((self.name.as_path(), failure)))?;
        remove_journal(journal, extent)
    }
}

/// Opens a journal, new or not; one in a file is emptied.
fn open_journal(path: &Path) -> Result<(File, Extent)> {
    let (file, extent) = create_file(path)?;
    if extent == Extent::Grows {
        let emptied = file.set_len(0);
        emptied.map_err(|e| Error::io(format!("cannot empty {}", path.display()), e))?;
        sync_folder(path)?;
    }
    Ok((file, extent))
}

/// Removes a journal's file when it is of no more use. One on a device stays, as good as empty.
pub(super) fn remove_journal(path: &Path, extent: Extent) -> Result<()> {
    if extent == Extent::Reserved {
        return Ok(());
    }
    fs::remove_file(path).map_err(|e| Error::io(format!("cannot remove {}", path.display()), e))?;
    sync_folder(path)
}

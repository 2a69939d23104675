//! A VHD in a file or on a block device, opened: the place where plans of the format's library
//! meet the kernel.

use crate::{Error, Result};
use rustix::fs::{Advice, fadvise};
use std::fs::{File, OpenOptions as FileOptions};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use vhd_rs::{Access, Allow, Extent, Image, OpenOptions, Plan};

/// Images of encrypted disks are opened like others: what the tools move about stays ciphertext.
pub(crate) const ALLOW: Allow = Allow {
    encrypted: true,
    poisoned: false,
    footer_copy: false,
};

/// An opened image and its file.
#[derive(Debug)]
pub struct Disk {
    /// The path it was opened by.
    pub path: PathBuf,
    /// The file or device.
    pub file: File,
    /// The image in it.
    pub image: Image,
}

impl Disk {
    /// Opens an image, encrypted or not.
    ///
    /// # Errors
    /// Those of the file system, and what the format's library refuses.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        Self::open_with(path, access, ALLOW)
    }

    /// Opens an image with more or less tolerance.
    ///
    /// # Errors
    /// Those of the file system, and what the format's library refuses.
    pub fn open_with(path: &Path, access: Access, allow: Allow) -> Result<Self> {
        let (file, extent) = open_file(path, access)?;
        let options = OpenOptions { extent, access };
        let image = Image::open_with(&file, options, allow).map_err(|e| Error::vhd(path, e))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            image,
        })
    }

    /// Performs a plan, with fdatasync where it asks for a flush.
    ///
    /// # Errors
    /// `Io` of the step that failed; the image is then as after a crash there.
    pub fn apply(&mut self, plan: &Plan) -> Result<()> {
        plan.apply(&mut self.file)
            .map_err(|e| Error::vhd(&self.path, e))
    }

    /// Makes a plan from the image and performs it.
    ///
    /// # Errors
    /// Those of making and of performing it.
    pub fn change(
        &mut self,
        make: impl FnOnce(&mut Image) -> Result<Plan, vhd_rs::Error>,
    ) -> Result<()> {
        let plan = make(&mut self.image).map_err(|e| Error::vhd(&self.path, e))?;
        self.apply(&plan)
    }

    /// Reads at a place of the file.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|e| self.io("cannot read", offset, e))
    }

    /// Writes at a place of the file.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|e| self.io("cannot write", offset, e))
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn flush(&self) -> Result<()> {
        let flushed = self.file.sync_data();
        flushed.map_err(|e| Error::io(format!("cannot flush {}", self.path.display()), e))
    }

    fn io(&self, what: &str, offset: u64, source: std::io::Error) -> Error {
        Error::io(
            format!("{what} {} at byte {offset}", self.path.display()),
            source,
        )
    }
}

/// Opens a file or device for images, and tells how an image in it ends.
///
/// # Errors
/// Those of the file system; `EINVAL` for anything that is neither a file nor a block device.
pub fn open_file(path: &Path, access: Access) -> Result<(File, Extent)> {
    let opened = FileOptions::new()
        .read(true)
        .write(access == Access::ReadWrite)
        .open(path);
    let file = opened.map_err(|e| Error::io(format!("cannot open {}", path.display()), e))?;
    let extent = extent_of(path, &file)?;
    Ok((file, extent))
}

/// Opens a file or device for reading and writing, and makes a file if there is none; what is in
/// it stays.
///
/// # Errors
/// Those of the file system; `EINVAL` for anything that is neither a file nor a block device.
pub fn create_file(path: &Path) -> Result<(File, Extent)> {
    let opened = FileOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let file = opened.map_err(|e| Error::io(format!("cannot create {}", path.display()), e))?;
    let extent = extent_of(path, &file)?;
    Ok((file, extent))
}

/// How an image in this file ends. A device's cached pages are dropped on the way, as another host
/// may have written it since they were read.
///
/// # Errors
/// Those of the file system; `EINVAL` for anything that is neither a file nor a block device.
fn extent_of(path: &Path, file: &File) -> Result<Extent> {
    let metadata = file
        .metadata()
        .map_err(|e| Error::io(format!("cannot stat {}", path.display()), e))?;
    let kind = metadata.file_type();
    if kind.is_block_device() {
        // Advice only: where it is not taken, pages are as fresh as they are.
        let _ = fadvise(file, 0, None, Advice::DontNeed);
        return Ok(Extent::Reserved);
    }
    if kind.is_file() {
        return Ok(Extent::Grows);
    }
    let text = format!("{} is neither a file nor a block device", path.display());
    Err(Error::invalid(text))
}

/// Makes a new file's name durable.
///
/// # Errors
/// Those of the file system.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|e| Error::io(format!("cannot flush {}", folder.display()), e))
}

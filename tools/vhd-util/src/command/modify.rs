//! `modify`: another parent, another container, no data.

use super::snapshot::link;
use crate::chain::{Layer, RawDisk};
use crate::paths::folder_of;
use crate::{Disk, Error, Result};
use clap::Args;
use std::path::PathBuf;
use vhd_rs::Access;

/// Changes what an image rests on
#[derive(Debug, Args)]
pub(super) struct Modify {
    /// File or device
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// Give it another parent, which must hold the same
    #[arg(short = 'p', value_name = "PARENT")]
    parent: Option<PathBuf>,
    /// The new parent is a raw disk
    #[arg(short = 'm', requires = "parent")]
    raw: bool,
    /// Write the footers anew for a container of so many bytes
    #[arg(short = 's', value_name = "BYTES")]
    container_bytes: Option<u64>,
    /// Drop all data: the image then holds zeros, or what its parent holds
    #[arg(short = 'z')]
    drop_data: bool,
}

impl Modify {
    pub(super) fn run(&self) -> Result<()> {
        if self.parent.is_none() && self.container_bytes.is_none() && !self.drop_data {
            return Err(Error::invalid("nothing to modify: give -p, -s or -z"));
        }
        let mut disk = Disk::open(&self.name, Access::ReadWrite)?;
        if self.drop_data {
            disk.change(vhd_rs::Image::drop_data_plan)?;
        }
        if let Some(bytes) = self.container_bytes {
            self.check_room(&disk, bytes)?;
            disk.change(|image| image.container_plan(bytes))?;
        }
        if let Some(path) = &self.parent {
            let parent = if self.raw {
                Layer::Raw(RawDisk::open(path)?)
            } else {
                Layer::Vhd(Box::new(Disk::open(path, Access::ReadOnly)?))
            };
            let link = link(&folder_of(&self.name)?, &parent)?;
            disk.change(|image| image.reparent_plan(&link))?;
        }
        Ok(())
    }

    fn check_room(&self, disk: &Disk, bytes: u64) -> Result<()> {
        let size = vhd_rs::ReadAt::size_bytes(&disk.file)
            .map_err(|e| Error::io(format!("cannot measure {}", self.name.display()), e))?;
        let on_device = disk.image.options().extent == vhd_rs::Extent::Reserved;
        if on_device && bytes > size {
            let text = format!("{} has {size} bytes, not {bytes}", self.name.display());
            return Err(Error::invalid(text));
        }
        Ok(())
    }
}

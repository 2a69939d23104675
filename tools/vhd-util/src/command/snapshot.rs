//! `snapshot`: a new image on top of an existing one, which is not touched.

use super::create::{New, timestamp};
use super::mib;
use crate::chain::{Chain, Layer, RawDisk, open_parent};
use crate::disk::ALLOW;
use crate::paths::{canonical, relative};
use crate::{Disk, Error, Result};
use clap::Args;
use rustix::io::Errno;
use std::fs;
use std::path::{Path, PathBuf};
use uuid::Uuid;
use vhd_rs::{Access, Content, ParentLink};

/// Makes a new image that holds what its parent holds
#[derive(Debug, Args)]
pub(super) struct Snapshot {
    /// File or device of the new image; a file of that name is overwritten
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// The parent
    #[arg(short = 'p', value_name = "PARENT")]
    parent: PathBuf,
    /// The parent is a raw disk
    #[arg(short = 'm')]
    raw: bool,
    /// Lay the metadata out for fast resizes up to this size
    #[arg(short = 'S', value_name = "MIB")]
    resize_max_mib: Option<u64>,
    /// Refuse if the chain would become longer than this
    #[arg(short = 'l', value_name = "IMAGES")]
    depth_max: Option<usize>,
    /// Keep an empty parent in the chain, where its own parent would do
    #[arg(short = 'e')]
    keep_empty: bool,
}

impl Snapshot {
    pub(super) fn run(&self) -> Result<()> {
        self.check_target(&self.parent)?;
        let (parent, virtual_bytes) = self.open()?;
        self.check_depth(&parent)?;
        let child = self.name.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = canonical(child.unwrap_or(Path::new(".")))?;
        let new = New {
            virtual_bytes,
            resize_max_bytes: mib(self.resize_max_mib.unwrap_or(0)),
            content: Content::Differencing(link(&folder, &parent)?),
        };
        self.check_target(parent.path())?;
        new.create(&self.name)?;
        let keyhash = match &parent {
            Layer::Vhd(disk) => disk.image.keyhash(),
            Layer::Raw(_) => None,
        };
        if let Some(keyhash) = keyhash {
            let mut child = Disk::open(&self.name, Access::ReadWrite)?;
            child.change(|image| image.keyhash_plan(Some(&keyhash)))?;
        }
        Ok(())
    }

    /// The image to link to, and the size of the one that was named.
    fn open(&self) -> Result<(Layer, u64)> {
        if self.raw {
            let raw = RawDisk::open(&self.parent)?;
            let size = raw.size_bytes()?;
            return Ok((Layer::Raw(raw), size));
        }
        let named = Disk::open(&self.parent, Access::ReadOnly)?;
        if named.image.uuid().is_nil() {
            let text = format!("{} has no uuid to be named by", self.parent.display());
            return Err(Error::invalid(text));
        }
        let size = named.image.virtual_bytes();
        let mut parent = Layer::Vhd(Box::new(named));
        while let Some(next) = self.skips_to(&parent)? {
            parent = next;
        }
        Ok((parent, size))
    }

    /// The parent of an empty image, which does in its place; also if it is shorter, as beyond its
    /// end both read as zeros.
    fn skips_to(&self, layer: &Layer) -> Result<Option<Layer>> {
        match layer {
            Layer::Vhd(disk) if !self.keep_empty && disk.image.allocated_blocks() == 0 => {
                open_parent(disk, ALLOW)
            }
            Layer::Vhd(_) | Layer::Raw(_) => Ok(None),
        }
    }

    fn check_depth(&self, parent: &Layer) -> Result<()> {
        let Some(limit) = self.depth_max else {
            return Ok(());
        };
        let depth = match parent {
            Layer::Raw(_) => 1,
            Layer::Vhd(disk) => Chain::open(&disk.path)?.depth(),
        };
        if depth < limit {
            return Ok(());
        }
        let text = format!(
            "{} has {depth} images below it of {limit} allowed in all",
            self.name.display()
        );
        Err(Error::new(Errno::NOSPC, text))
    }

    /// The new image must not take the place of its parent.
    fn check_target(&self, parent: &Path) -> Result<()> {
        let parent = canonical(parent)?;
        if canonical(&self.name).is_ok_and(|name| name == parent) {
            let text = format!("{} cannot be its own parent", self.name.display());
            return Err(Error::invalid(text));
        }
        Ok(())
    }
}

/// How a child in a folder names its parent.
pub(super) fn link(child_folder: &Path, parent: &Layer) -> Result<ParentLink> {
    let path = canonical(parent.path())?;
    let modified = fs::metadata(&path)
        .and_then(|metadata| metadata.modified())
        .map_err(|e| Error::io(format!("cannot stat {}", path.display()), e))?;
    let uuid = match parent {
        Layer::Vhd(disk) => disk.image.uuid(),
        Layer::Raw(_) => Uuid::nil(),
    };
    Ok(ParentLink {
        path: relative(child_folder, &path)?,
        uuid,
        modified: timestamp(modified),
    })
}

//! Chains of files: an image, its parent, and so on, found by locators; and what a guest reads
//! from the top of one.

use crate::paths::{canonical, find_parent};
use crate::{Disk, Error, Result};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vhd_rs::{
    Access, Allow, Block, CHAIN_DEPTH_MAX, Cipher, Layer as Link, SECTOR_BYTES, bitmap, check_chain,
};

/// Sectors in a block.
pub const BLOCK_SECTORS: u32 = vhd_rs::BLOCK_BYTES / SECTOR_BYTES as u32;

/// One image of a chain.
#[derive(Debug)]
pub enum Layer {
    /// A VHD.
    Vhd(Box<Disk>),
    /// A raw disk at the bottom.
    Raw(RawDisk),
}

/// A raw disk.
#[derive(Debug)]
pub struct RawDisk {
    /// Its path.
    pub path: PathBuf,
    file: File,
}

/// A chain, leaf first.
#[derive(Debug)]
pub struct Chain {
    /// The layers; the first is the leaf.
    pub layers: Vec<Layer>,
    cipher: Option<Cipher>,
}

impl Chain {
    /// Opens an image and all its ancestors for reading.
    ///
    /// # Errors
    /// Those of opening each; `ENOENT` if a parent is not found, `ELOOP` for chains that bite
    /// their tail or are too long, `EINVAL` if a parent is not the one that its child names.
    pub fn open(leaf: &Path) -> Result<Self> {
        Self::open_with(leaf, crate::disk::ALLOW)
    }

    /// Opens a chain with more or less tolerance.
    ///
    /// # Errors
    /// As [`Chain::open`].
    pub fn open_with(leaf: &Path, allow: Allow) -> Result<Self> {
        let disk = Disk::open_with(leaf, Access::ReadOnly, allow)?;
        let chain = Self {
            layers: vec![Layer::Vhd(Box::new(disk))],
            cipher: None,
        };
        chain.complete(allow)
    }

    /// Opens a chain to read its content in clear, with a key if it is encrypted.
    ///
    /// # Errors
    /// As [`Chain::open`]; `EINVAL` unless each image is encrypted with the key given, or, if none
    /// is given, none is.
    pub fn open_clear(leaf: &Path, key: Option<&[u8]>) -> Result<Self> {
        let mut chain = Self::open(leaf)?;
        for layer in &chain.layers {
            if let Layer::Vhd(disk) = layer {
                let checked = disk.image.check_key(key);
                checked.map_err(|e| Error::vhd(&disk.path, e))?;
            }
        }
        let cipher = key.map(Cipher::new).transpose();
        chain.cipher = cipher.map_err(|e| Error::vhd(leaf, e))?;
        Ok(chain)
    }

    fn complete(mut self, allow: Allow) -> Result<Self> {
        while let Some(Layer::Vhd(disk)) = self.layers.last() {
            if self.layers.len() > CHAIN_DEPTH_MAX {
                break;
            }
            match open_parent(disk, allow)? {
                Some(layer) => self.layers.push(layer),
                None => break,
            }
        }
        self.check()?;
        Ok(self)
    }

    fn check(&self) -> Result<()> {
        let Some(leaf) = self.layers.first() else {
            return Ok(());
        };
        let links: Vec<Link<'_>> = self.layers.iter().map(Layer::link).collect();
        check_chain(&links, CHAIN_DEPTH_MAX).map_err(|e| Error::vhd(leaf.path(), e))
    }

    /// Images in the chain, a raw one included.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Reads a range of one block as a guest sees it; what is encrypted, and was not opened in clear,
    /// stays so. Returns whether any of it is in any image.
    ///
    /// # Errors
    /// Those of the media.
    pub fn read(&self, block: u32, sectors: Range<u32>, buffer: &mut [u8]) -> Result<bool> {
        buffer.fill(0);
        let mut missing = vec![sectors.clone()];
        let mut found = false;
        for layer in &self.layers {
            let mut still = Vec::new();
            for part in &missing {
                for run in layer.read(block, part.clone(), &sectors, buffer, &mut still)? {
                    found = true;
                    let data = window(buffer, &sectors, &run);
                    self.decrypt(layer, block, run.start, data)?;
                }
            }
            missing = still;
            if missing.is_empty() {
                break;
            }
        }
        Ok(found)
    }

    fn decrypt(&self, layer: &Layer, block: u32, first: u32, data: &mut [u8]) -> Result<()> {
        let (Some(cipher), Layer::Vhd(disk)) = (&self.cipher, layer) else {
            return Ok(());
        };
        let sector = u64::from(block) * u64::from(BLOCK_SECTORS) + u64::from(first);
        let decrypted = cipher.decrypt(sector, data);
        decrypted.map_err(|e| Error::vhd(&disk.path, e))
    }
}

/// Opens an image's parent, if it has one.
///
/// # Errors
/// Those of finding and opening it.
pub fn open_parent(disk: &Disk, allow: Allow) -> Result<Option<Layer>> {
    let Some(uuid) = disk.image.parent_uuid() else {
        return Ok(None);
    };
    let path = find_parent(&disk.path, &disk.image)?;
    if uuid.is_nil() {
        return RawDisk::open(&path).map(|raw| Some(Layer::Raw(raw)));
    }
    let parent = Disk::open_with(&path, Access::ReadOnly, allow)?;
    Ok(Some(Layer::Vhd(Box::new(parent))))
}

impl RawDisk {
    /// Opens a raw disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path) -> Result<Self> {
        let path = canonical(path)?;
        let (file, _) = crate::open_file(&path, Access::ReadOnly)?;
        Ok(Self { path, file })
    }

    /// Its size.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn size_bytes(&self) -> Result<u64> {
        vhd_rs::ReadAt::size_bytes(&self.file)
            .map_err(|e| Error::io(format!("cannot measure {}", self.path.display()), e))
    }

    /// Reads, with zeros beyond its end.
    fn read(&self, offset: u64, mut buffer: &mut [u8]) -> Result<()> {
        let mut at = offset;
        while !buffer.is_empty() {
            let got = match self.file.read_at(buffer, at) {
                Ok(0) => break,
                Ok(got) => got,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    let text = format!("cannot read {} at byte {at}", self.path.display());
                    return Err(Error::io(text, e));
                }
            };
            at += got as u64;
            buffer = buffer.get_mut(got..).unwrap_or_default();
        }
        Ok(())
    }
}

impl Layer {
    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        match self {
            Self::Vhd(disk) => &disk.path,
            Self::Raw(raw) => &raw.path,
        }
    }

    fn link(&self) -> Link<'_> {
        match self {
            Self::Vhd(disk) => Link::Vhd(&disk.image),
            Self::Raw(_) => Link::Raw,
        }
    }

    /// Reads what this layer has of `part` into its place in a buffer that holds `whole`, and adds
    /// what it has not to `missing`. Returns what was read.
    fn read(
        &self,
        block: u32,
        part: Range<u32>,
        whole: &Range<u32>,
        buffer: &mut [u8],
        missing: &mut Vec<Range<u32>>,
    ) -> Result<Vec<Range<u32>>> {
        let disk = match self {
            Self::Raw(raw) => {
                let first = u64::from(block) * u64::from(BLOCK_SECTORS) + u64::from(part.start);
                raw.read(first * SECTOR_BYTES, window(buffer, whole, &part))?;
                return Ok(vec![part]);
            }
            Self::Vhd(disk) => disk,
        };
        let mut found = Vec::new();
        for run in present_runs(disk, block, part, missing)? {
            disk.read_at(run.data_offset, window(buffer, whole, &run.sectors))?;
            found.push(run.sectors);
        }
        Ok(found)
    }
}

/// The bytes of `part` in a buffer that holds `whole`.
fn window<'a>(buffer: &'a mut [u8], whole: &Range<u32>, part: &Range<u32>) -> &'a mut [u8] {
    let place = |sector: u32| (sector.saturating_sub(whole.start) as usize) * 512;
    buffer
        .get_mut(place(part.start)..place(part.end))
        .unwrap_or_default()
}

/// Sectors that an image has, and where their data is.
pub(crate) struct PresentRun {
    pub(crate) sectors: Range<u32>,
    pub(crate) data_offset: u64,
}

/// Finds the runs of `part` that an image has; adds those that its parent must be asked for to
/// `missing`. What lies beyond the image's end is in neither: it is zero.
pub(crate) fn present_runs(
    disk: &Disk,
    block: u32,
    part: Range<u32>,
    missing: &mut Vec<Range<u32>>,
) -> Result<Vec<PresentRun>> {
    let part = inside(disk, block, part);
    if part.is_empty() {
        return Ok(Vec::new());
    }
    let run = |data: u64, sectors: Range<u32>| PresentRun {
        data_offset: data + u64::from(sectors.start) * SECTOR_BYTES,
        sectors,
    };
    match disk.image.block(block) {
        Block::Unallocated => {
            missing.push(part);
            Ok(Vec::new())
        }
        Block::Fixed { data_offset } => Ok(vec![run(data_offset, part)]),
        Block::Allocated {
            data_offset,
            full: true,
            ..
        } => Ok(vec![run(data_offset, part)]),
        Block::Allocated {
            bitmap_offset,
            data_offset,
            full: false,
        } => {
            let mut bits = [0; 512];
            disk.read_at(bitmap_offset, &mut bits)?;
            let mut runs = Vec::new();
            for found in bitmap::runs(&bits, part) {
                if found.present {
                    runs.push(run(data_offset, found.sectors));
                } else {
                    missing.push(found.sectors);
                }
            }
            Ok(runs)
        }
    }
}

/// The part of a range that lies inside the image's virtual size.
fn inside(disk: &Disk, block: u32, part: Range<u32>) -> Range<u32> {
    let sectors = disk.image.virtual_bytes() / SECTOR_BYTES;
    let left = sectors.saturating_sub(u64::from(block) * u64::from(BLOCK_SECTORS));
    let end = u32::try_from(left).unwrap_or(u32::MAX).min(part.end);
    part.start.min(end)..end
}

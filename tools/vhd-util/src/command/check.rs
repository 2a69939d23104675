//! `check`: whether an image is what every tool takes for sound. Stricter than opening one: what
//! an open heals or looks past is told here.

use super::printing;
use crate::chain::{BLOCK_SECTORS, Layer, open_parent};
use crate::{Disk, Error, Result};
use clap::Args;
use std::io::Write;
use std::path::{Path, PathBuf};
use vhd_rs::{Access, Allow, BLOCK_BYTES, Block, Extent, Image, OpenOptions, ReadAt, bitmap};

mod fields;

/// Checks an image; prints what is wrong, and fails if anything is
///
/// That blocks do not overlap is always tested; it takes no time worth saving.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// File or device
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// Go by the footer's copy; the one at the end may be missing
    #[arg(short = 'i')]
    ignore_footer: bool,
    /// Do not compare the parent's uuid
    #[arg(short = 'I')]
    ignore_parent_uuid: bool,
    /// Accept times in the future
    #[arg(short = 't')]
    ignore_timestamps: bool,
    /// Accepted for scripts, of no effect
    #[arg(short = 'B')]
    skip_overlap: bool,
    /// Check the parents too
    #[arg(short = 'p')]
    parents: bool,
    /// Read all blocks: data under clear bits, complete blocks that are not
    #[arg(short = 'b')]
    bitmaps: bool,
    /// Print how much is allocated
    #[arg(short = 's')]
    stats: bool,
}

impl Check {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<()> {
        let mut next = Some(self.name.clone());
        let mut depth = 0;
        while let Some(path) = next.take() {
            let parent = self.check(&path, out)?;
            depth += 1;
            next = parent.filter(|_| self.parents && depth < vhd_rs::CHAIN_DEPTH_MAX);
        }
        Ok(())
    }

    /// Checks one image; returns its parent if that is one to be checked.
    fn check(&self, path: &Path, out: &mut dyn Write) -> Result<Option<PathBuf>> {
        let (file, extent) = crate::open_file(path, Access::ReadOnly)?;
        let mut found = Findings::default();
        fields::check(&file, path, extent, self, &mut found)?;
        let options = OpenOptions {
            extent,
            access: Access::ReadOnly,
        };
        let allow = Allow {
            encrypted: true,
            poisoned: false,
            footer_copy: self.ignore_footer,
        };
        let mut parent = None;
        match Image::open_with(&file, options, allow) {
            Err(error) => found.add(error.to_string()),
            Ok(image) => {
                let disk = Disk {
                    path: path.to_owned(),
                    file,
                    image,
                };
                found.look_at_batmap(&disk.image);
                found.look_at_locators(&disk.image);
                parent = self.check_parent(&disk, &mut found);
                if self.bitmaps {
                    found.look_at_blocks(&disk)?;
                }
                if self.stats {
                    self.print_stats(&disk, out)?;
                }
            }
        }
        if found.problems.is_empty() {
            writeln!(out, "{} is valid", path.display()).map_err(printing)?;
            return Ok(parent);
        }
        for problem in &found.problems {
            writeln!(out, "{}: {problem}", path.display()).map_err(printing)?;
        }
        let count = found.problems.len();
        let text = format!("{} is not valid, {count} problems", path.display());
        Err(Error::invalid(text))
    }

    fn check_parent(&self, disk: &Disk, found: &mut Findings) -> Option<PathBuf> {
        if self.ignore_parent_uuid && !self.parents {
            return None;
        }
        let layer = match open_parent(disk, crate::disk::ALLOW) {
            Ok(None) => return None,
            Ok(Some(layer)) => layer,
            Err(error) => {
                found.add(format!("parent: {}", error.chain()));
                return None;
            }
        };
        let Layer::Vhd(parent) = layer else {
            return None;
        };
        let link = vhd_rs::check_link(&disk.image, vhd_rs::Layer::Vhd(&parent.image));
        if let (false, Err(error)) = (self.ignore_parent_uuid, link) {
            found.add(error.to_string());
        }
        Some(parent.path)
    }

    fn print_stats(&self, disk: &Disk, out: &mut dyn Write) -> Result<()> {
        let image = &disk.image;
        let complete = match image.batmap() {
            Some(batmap) => (0..image.blocks()).filter(|&b| batmap.get(b)).count(),
            None => 0,
        };
        let (blocks, allocated) = (image.blocks(), image.allocated_blocks());
        let mut line = |name: &str, value: u64| writeln!(out, "{name}: {value}").map_err(printing);
        line("blocks", u64::from(blocks))?;
        line("allocated blocks", u64::from(allocated))?;
        line("complete blocks", complete as u64)?;
        line("bytes used", image.size_needed_bytes())
    }
}

/// What is wrong with an image.
#[derive(Debug, Default)]
struct Findings {
    problems: Vec<String>,
}

impl Findings {
    fn add(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    fn want(&mut self, good: bool, problem: impl FnOnce() -> String) {
        if !good {
            self.add(problem());
        }
    }

    fn look_at_batmap(&mut self, image: &Image) {
        if let Some(problem) = image.batmap_problem() {
            self.add(format!("batmap is invalid: {problem}"));
        }
        let Some(batmap) = image.batmap() else {
            return;
        };
        let unallocated = |block: &u32| image.block(*block) == Block::Unallocated;
        let lost = (0..image.blocks())
            .filter(|&block| batmap.get(block))
            .find(unallocated);
        if let Some(block) = lost {
            self.add(format!("batmap has block {block}, which is not allocated"));
        }
    }

    fn look_at_locators(&mut self, image: &Image) {
        let name = image.header().map(|header| header.parent_name.as_str());
        for locator in image.locators() {
            let index = locator.index;
            match locator.path() {
                Err(error) => self.add(error.to_string()),
                Ok(path) => self.want(path.rsplit('/').next() == name, || {
                    format!("header.locator[{index}] is {path}, the name is {name:?}")
                }),
            }
        }
    }

    fn look_at_blocks(&mut self, disk: &Disk) -> Result<()> {
        let mut data = vec![0; BLOCK_BYTES as usize];
        for block in 0..disk.image.blocks() {
            let Block::Allocated {
                bitmap_offset,
                data_offset,
                full,
            } = disk.image.block(block)
            else {
                continue;
            };
            let mut bits = [0; 512];
            disk.read_at(bitmap_offset, &mut bits)?;
            self.want(!full || bitmap::is_full(&bits), || {
                format!("block {block} is complete in the batmap, not in its bitmap")
            });
            disk.read_at(data_offset, &mut data)?;
            let clear = bitmap::runs(&bits, 0..BLOCK_SECTORS).filter(|run| !run.present);
            let sectors = clear.flat_map(|run| run.sectors);
            let stale = sectors.filter(|&sector| {
                let at = sector as usize * 512;
                let bytes = data.get(at..at + 512).unwrap_or_default();
                bytes.iter().any(|&byte| byte != 0)
            });
            if let Some(sector) = stale.take(1).next() {
                self.add(format!(
                    "block {block} has data in sector {sector}, which its bitmap does not have"
                ));
            }
        }
        Ok(())
    }
}

/// The bytes at the end that should be a footer, and those of an old 511-byte one with a zero.
fn end_sectors(file: &impl ReadAt, size: u64, extent: Extent) -> std::io::Result<Vec<[u8; 512]>> {
    let mut sector = [0; 512];
    let at = match extent {
        Extent::Grows => size - 512,
        Extent::Reserved => (size / 512 - 1) * 512,
    };
    file.read_exact_at(at, &mut sector)?;
    let mut found = vec![sector];
    if extent == Extent::Grows && size % 512 == 511 {
        sector.copy_within(1.., 0);
        sector[511] = 0;
        found.push(sector);
    }
    Ok(found)
}

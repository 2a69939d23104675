//! `coalesce`: an image's own sectors into its parent. Idempotent, so a crash is cured by doing it
//! again; the child is not changed.

use super::printing;
use crate::chain::Layer;
use crate::chain::{BLOCK_SECTORS, open_parent, present_runs};
use crate::disk::ALLOW;
use crate::{Disk, Error, Fresh, Result, Writer};
use clap::Args;
use rustix::io::Errno;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vhd_rs::{Access, BLOCK_BYTES, SECTOR_BYTES};

/// Copies what an image holds itself into its parent; prints "Coalesced N sectors"
#[derive(Debug, Args)]
pub(super) struct Coalesce {
    /// The child
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// Do not zero new blocks of the parent before a part of them is written
    #[arg(short = 's')]
    sparse: bool,
    /// Show progress
    #[arg(short = 'p')]
    progress: bool,
}

/// Writes a run of sectors: block, first sector in it, data.
type WriteRun<'a> = dyn FnMut(u32, u32, &[u8]) -> Result<()> + 'a;

impl Coalesce {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<()> {
        let child = Disk::open(&self.name, Access::ReadOnly)?;
        let parent = open_parent(&child, ALLOW)?;
        let sectors = match parent {
            None => {
                let text = format!("{} has no parent", self.name.display());
                return Err(Error::invalid(text));
            }
            Some(Layer::Vhd(parent)) => self.copy_to_vhd(&child, &parent, out)?,
            Some(Layer::Raw(parent)) => self.copy_to_raw(&child, &parent.path, out)?,
        };
        write!(out, "Coalesced {sectors} sectors").map_err(printing)
    }

    fn copy_to_vhd(&self, child: &Disk, parent: &Disk, out: &mut dyn Write) -> Result<u64> {
        vhd_rs::check_link(&child.image, vhd_rs::Layer::Vhd(&parent.image))
            .map_err(|e| Error::vhd(&child.path, e))?;
        if child.image.keyhash() != parent.image.keyhash() {
            let text = format!(
                "{} is encrypted otherwise than its parent",
                self.name.display()
            );
            return Err(Error::invalid(text));
        }
        let mut parent = Disk::open(&parent.path, Access::ReadWrite)?;
        let limit = parent.image.virtual_bytes() / SECTOR_BYTES;
        let fresh = if self.sparse {
            Fresh::Stale
        } else {
            Fresh::Zeroed
        };
        let mut writer = Writer::new(&mut parent, fresh);
        let copied = self.copy(child, limit, out, &mut |block, first, data| {
            writer.write(block, first, data)
        });
        // What has been copied is worth keeping, whatever came after it.
        writer.finish()?;
        copied
    }

    fn copy_to_raw(&self, child: &Disk, path: &Path, out: &mut dyn Write) -> Result<u64> {
        let (file, _): (File, _) = crate::open_file(path, Access::ReadWrite)?;
        let failed = |e| Error::io(format!("cannot write {}", path.display()), e);
        let size = vhd_rs::ReadAt::size_bytes(&file).map_err(failed)?;
        let copied = self.copy(
            child,
            size / SECTOR_BYTES,
            out,
            &mut |block, first, data| {
                let sector = u64::from(block) * u64::from(BLOCK_SECTORS) + u64::from(first);
                file.write_all_at(data, sector * SECTOR_BYTES)
                    .map_err(failed)
            },
        );
        file.sync_data().map_err(failed)?;
        copied
    }

    /// Hands every run of the child's own sectors to `write`; returns how many there were.
    fn copy(
        &self,
        child: &Disk,
        limit_sectors: u64,
        out: &mut dyn Write,
        write: &mut WriteRun<'_>,
    ) -> Result<u64> {
        let mut buffer = vec![0; BLOCK_BYTES as usize];
        let mut copied = 0;
        let blocks = child.image.blocks();
        for block in 0..blocks {
            for run in present_runs(child, block, 0..BLOCK_SECTORS, &mut Vec::new())? {
                let count = run.sectors.end - run.sectors.start;
                let end = u64::from(block) * u64::from(BLOCK_SECTORS) + u64::from(run.sectors.end);
                if end > limit_sectors {
                    let text = format!(
                        "{} has data up to sector {end}, its parent ends at {limit_sectors}",
                        self.name.display()
                    );
                    return Err(Error::new(Errno::RANGE, text));
                }
                let data = buffer.get_mut(..count as usize * 512).unwrap_or_default();
                child.read_at(run.data_offset, data)?;
                write(block, run.sectors.start, data)?;
                copied += u64::from(count);
            }
            if self.progress {
                let percent = u64::from(block + 1) * 100 / u64::from(blocks);
                write!(out, "\r{percent:3} %").map_err(printing)?;
            }
        }
        if self.progress {
            writeln!(out).map_err(printing)?;
        }
        Ok(copied)
    }
}

//! `fill`: every block allocated, from the chain or without touching data.

use crate::chain::{BLOCK_SECTORS, Chain};
use crate::{Disk, Error, Fresh, Result, Writer};
use clap::Args;
use rustix::io::Errno;
use std::path::PathBuf;
use vhd_rs::{Access, BLOCK_BYTES, Block, SECTOR_BYTES};

/// Allocates every block and fills it with what a guest reads there
#[derive(Debug, Args)]
pub(super) struct Fill {
    /// File or device
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// Only enter blocks into the table and call them complete; data is what lies there
    #[arg(short = 'b')]
    bitmaps_only: bool,
    /// First sector
    #[arg(short = 'f', value_name = "SECTOR", requires = "bitmaps_only")]
    from: Option<u64>,
    /// Sector to stop before
    #[arg(short = 't', value_name = "SECTOR", requires = "bitmaps_only")]
    to: Option<u64>,
    /// Go on as far as the format's 2 TiB of data reach, instead of refusing
    #[arg(short = 'B', requires = "bitmaps_only")]
    ignore_limit: bool,
}

impl Fill {
    pub(super) fn run(&self) -> Result<()> {
        if self.bitmaps_only {
            self.mark()
        } else {
            self.write()
        }
    }

    fn write(&self) -> Result<()> {
        let mut disk = Disk::open(&self.name, Access::ReadWrite)?;
        // What is in no image is zeros in clear; entered into an encrypted one it were rubbish.
        let chain = Chain::open_clear(&self.name, None)?;
        let blocks = disk.image.blocks();
        let sectors = disk.image.virtual_bytes() / SECTOR_BYTES;
        let mut writer = Writer::new(&mut disk, Fresh::Zeroed);
        let mut buffer = vec![0; BLOCK_BYTES as usize];
        for block in 0..blocks {
            let complete = matches!(
                writer.disk().image.block(block),
                Block::Fixed { .. } | Block::Allocated { full: true, .. }
            );
            if complete {
                continue;
            }
            // A last block that reaches beyond the disk is complete too: the rest is zeros.
            let left = sectors.saturating_sub(u64::from(block) * u64::from(BLOCK_SECTORS));
            let inside = BLOCK_SECTORS.min(u32::try_from(left).unwrap_or(u32::MAX));
            buffer.fill(0);
            let part = buffer.get_mut(..inside as usize * 512).unwrap_or_default();
            chain.read(block, 0..inside, part)?;
            writer.write(block, 0, &buffer)?;
        }
        writer.finish()
    }

    fn mark(&self) -> Result<()> {
        let mut disk = Disk::open(&self.name, Access::ReadWrite)?;
        let all = u64::from(disk.image.blocks()) * u64::from(BLOCK_SECTORS);
        let from = self.from.unwrap_or(0);
        let to = self.to.unwrap_or(all).min(all);
        if from > to {
            let text = format!("sectors {from} to {to} of {all} are no range");
            return Err(Error::invalid(text));
        }
        let mut writer = Writer::new(&mut disk, Fresh::Stale);
        let per_block = u64::from(BLOCK_SECTORS);
        let mut at = from;
        while at < to {
            let block = u32::try_from(at / per_block).unwrap_or(u32::MAX);
            let end = to.min((at / per_block + 1) * per_block);
            let inside = |sector: u64| (sector - at / per_block * per_block) as u32;
            match writer.mark(block, inside(at)..inside(end)) {
                Err(e) if e.errno() == Errno::NOSPC && self.ignore_limit => break,
                marked => marked?,
            }
            at = end;
        }
        writer.finish()
    }
}

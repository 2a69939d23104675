//! `read`: parts of an image for people to look at, or raw for other programs.

use super::printing;
use crate::chain::{BLOCK_SECTORS, Chain};
use crate::{Disk, Error, Result};
use clap::Args;
use std::io::Write;
use std::path::PathBuf;
use vhd_rs::{Access, Allow, Block, SECTOR_BYTES, bitmap};

mod headers;

/// Prints parts of an image
#[derive(Debug, Args)]
pub(super) struct Read {
    /// File or device
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// Footer, header, locators and batmap header
    #[arg(short = 'p')]
    headers: bool,
    /// Where a sector is
    #[arg(short = 't', value_name = "SECTOR")]
    translate: Option<u64>,
    /// Entries of the block table from here on
    #[arg(short = 'b', value_name = "BLOCK")]
    table: Option<u32>,
    /// The block table as a raw bitmap, top bit of byte 0 first: which blocks are allocated
    #[arg(short = 'B')]
    table_bitmap: bool,
    /// Bitmaps of blocks from here on
    #[arg(short = 'm', value_name = "BLOCK")]
    bitmap: Option<u32>,
    /// Whether sectors from here on are in the image
    #[arg(short = 'i', value_name = "SECTOR")]
    present: Option<u64>,
    /// Runs of sectors in the image from here on
    #[arg(short = 'e', value_name = "SECTOR")]
    extents: Option<u64>,
    /// The batmap: blocks that are complete
    #[arg(short = 'a')]
    batmap: bool,
    /// Whether blocks from here on are complete
    #[arg(short = 'j', value_name = "BLOCK")]
    complete: Option<u32>,
    /// Data of blocks from here on, as it is in this image
    #[arg(short = 'd', value_name = "BLOCK")]
    data: Option<u32>,
    /// How many of them
    #[arg(short = 'c', value_name = "COUNT", default_value_t = 1)]
    count: u64,
    /// Sectors from here on, as a guest reads them
    #[arg(short = 'r', value_name = "SECTOR")]
    sectors: Option<u64>,
    /// Bytes from here on, as a guest reads them
    #[arg(short = 'R', value_name = "BYTE")]
    bytes: Option<u64>,
    /// Print data in hexadecimal
    #[arg(short = 'x')]
    hex: bool,
}

const ALLOW: Allow = Allow {
    encrypted: true,
    poisoned: true,
    footer_copy: false,
};

impl Read {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<()> {
        let disk = Disk::open_with(&self.name, Access::ReadOnly, ALLOW)?;
        if self.headers {
            headers::print(&disk, out).map_err(printing)?;
        }
        if let Some(sector) = self.translate {
            self.print_place(&disk, sector, out)?;
        }
        if let Some(block) = self.table {
            self.each_block(&disk, block, &mut |block| print_entry(&disk, block, out))?;
        }
        if self.table_bitmap {
            out.write_all(&allocated_bits(&disk)).map_err(printing)?;
        }
        if let Some(block) = self.bitmap {
            self.each_block(&disk, block, &mut |block| print_bitmap(&disk, block, out))?;
        }
        if let Some(sector) = self.present {
            self.print_extents(&disk, sector, 1, out)?;
        }
        if let Some(sector) = self.extents {
            self.print_extents(&disk, sector, u64::MAX, out)?;
        }
        if self.batmap {
            self.print_batmap(&disk, 0, u64::from(disk.image.blocks()), out)?;
        }
        if let Some(block) = self.complete {
            self.print_batmap(&disk, block, self.count, out)?;
        }
        if let Some(block) = self.data {
            self.each_block(&disk, block, &mut |block| {
                self.print_data(&disk, block, out)
            })?;
        }
        if let Some(sector) = self.sectors {
            let first = sector.saturating_mul(SECTOR_BYTES);
            self.print_content(first, self.count.saturating_mul(SECTOR_BYTES), out)?;
        }
        if let Some(byte) = self.bytes {
            self.print_content(byte, self.count, out)?;
        }
        Ok(())
    }

    fn each_block(
        &self,
        disk: &Disk,
        first: u32,
        print: &mut dyn FnMut(u32) -> Result<()>,
    ) -> Result<()> {
        let blocks = disk.image.blocks();
        if first >= blocks {
            let text = format!("block {first} is beyond the {blocks} of the disk");
            return Err(Error::invalid(text));
        }
        let end = u64::from(first).saturating_add(self.count);
        let end = u32::try_from(end).unwrap_or(blocks).min(blocks);
        (first..end).try_for_each(print)
    }

    /// The sectors asked for that lie inside the disk.
    fn sectors(&self, disk: &Disk, first: u64) -> Result<u64> {
        let sectors = disk.image.virtual_bytes() / SECTOR_BYTES;
        if first >= sectors {
            let text = format!("sector {first} is beyond the {sectors} of the disk");
            return Err(Error::invalid(text));
        }
        Ok(first.saturating_add(self.count).min(sectors))
    }

    fn print_place(&self, disk: &Disk, first: u64, out: &mut dyn Write) -> Result<()> {
        for sector in first..self.sectors(disk, first)? {
            let (block, inside) = split(sector);
            let place = match disk.image.block(block) {
                Block::Unallocated => "not allocated".to_owned(),
                Block::Fixed { data_offset } | Block::Allocated { data_offset, .. } => {
                    let place = data_offset / SECTOR_BYTES + u64::from(inside);
                    format!("at sector {place} of the file")
                }
            };
            writeln!(
                out,
                "sector {sector} (block {block}, sector {inside}): {place}"
            )
            .map_err(printing)?;
        }
        Ok(())
    }

    /// Runs of equal state, each at most `longest` sectors.
    fn print_extents(
        &self,
        disk: &Disk,
        first: u64,
        longest: u64,
        out: &mut dyn Write,
    ) -> Result<()> {
        let end = self.sectors(disk, first)?;
        let mut at = first;
        while at < end {
            let (block, inside) = split(at);
            let bits = bits_of(disk, block)?;
            let limit = (u64::from(inside) + (end - at).min(longest)).min(u64::from(BLOCK_SECTORS));
            let run = bitmap::runs(&bits, inside..limit as u32).next();
            let Some(run) = run else { break };
            let count = u64::from(run.sectors.end - run.sectors.start);
            let state = if run.present { "present" } else { "absent" };
            writeln!(out, "sectors {at} to {}: {state}", at + count - 1).map_err(printing)?;
            at += count;
        }
        Ok(())
    }

    fn print_batmap(&self, disk: &Disk, first: u32, count: u64, out: &mut dyn Write) -> Result<()> {
        let Some(batmap) = disk.image.batmap() else {
            let text = format!("{} has no batmap", self.name.display());
            return Err(Error::invalid(text));
        };
        let end = u64::from(first).saturating_add(count);
        for block in first
            ..disk
                .image
                .blocks()
                .min(u32::try_from(end).unwrap_or(u32::MAX))
        {
            let state = if batmap.get(block) {
                "complete"
            } else {
                "not complete"
            };
            writeln!(out, "block {block}: {state}").map_err(printing)?;
        }
        Ok(())
    }

    fn print_data(&self, disk: &Disk, block: u32, out: &mut dyn Write) -> Result<()> {
        let offset = match disk.image.block(block) {
            Block::Fixed { data_offset } | Block::Allocated { data_offset, .. } => data_offset,
            Block::Unallocated => {
                return writeln!(out, "block {block}: not allocated").map_err(printing);
            }
        };
        let first = u64::from(block) * u64::from(disk.image.block_bytes());
        let inside = (disk.image.virtual_bytes() - first).min(u64::from(disk.image.block_bytes()));
        let mut data = vec![0; inside as usize];
        disk.read_at(offset, &mut data)?;
        self.print_bytes(first, &data, out)
    }

    fn print_content(&self, first: u64, count: u64, out: &mut dyn Write) -> Result<()> {
        let chain = Chain::open_with(&self.name, ALLOW)?;
        let Some(crate::chain::Layer::Vhd(leaf)) = chain.layers.first() else {
            return Ok(());
        };
        let size = leaf.image.virtual_bytes();
        let end = first.saturating_add(count);
        if end > size {
            let text = format!("bytes {first} to {end} are beyond the {size} of the disk");
            return Err(Error::invalid(text));
        }
        let mut at = first;
        while at < end {
            let (block, inside) = split(at / SECTOR_BYTES);
            let mut data = vec![0; ((BLOCK_SECTORS - inside) as usize) * 512];
            let sectors = inside..BLOCK_SECTORS;
            chain.read(block, sectors, &mut data)?;
            let skip = (at % SECTOR_BYTES) as usize;
            let take = (end - at).min((data.len() - skip) as u64);
            let part = data.get(skip..skip + take as usize).unwrap_or_default();
            self.print_bytes(at, part, out)?;
            at += take;
        }
        Ok(())
    }

    fn print_bytes(&self, first: u64, bytes: &[u8], out: &mut dyn Write) -> Result<()> {
        if !self.hex {
            return out.write_all(bytes).map_err(printing);
        }
        for (row, bytes) in (0u64..).zip(bytes.chunks(16)) {
            let digits: String = bytes.iter().map(|byte| format!(" {byte:02x}")).collect();
            writeln!(out, "{:012x}:{digits}", first + row * 16).map_err(printing)?;
        }
        Ok(())
    }
}

/// Block and sector inside it.
fn split(sector: u64) -> (u32, u32) {
    let per_block = u64::from(BLOCK_SECTORS);
    let block = u32::try_from(sector / per_block).unwrap_or(u32::MAX);
    (block, (sector % per_block) as u32)
}

fn print_entry(disk: &Disk, block: u32, out: &mut dyn Write) -> Result<()> {
    let entry = match disk.image.bat().and_then(|bat| bat.get(block)) {
        Some(entry) => format!("sector {entry}"),
        None => "not allocated".to_owned(),
    };
    writeln!(out, "block {block}: {entry}").map_err(printing)
}

fn print_bitmap(disk: &Disk, block: u32, out: &mut dyn Write) -> Result<()> {
    if disk.image.block(block) == Block::Unallocated {
        return writeln!(out, "block {block}: not allocated").map_err(printing);
    }
    let bits = bits_of(disk, block)?;
    for run in bitmap::runs(&bits, 0..BLOCK_SECTORS).filter(|run| run.present) {
        let (first, last) = (run.sectors.start, run.sectors.end - 1);
        writeln!(out, "block {block}: sectors {first} to {last}").map_err(printing)?;
    }
    Ok(())
}

/// A block's bitmap as it counts, read or implied.
fn bits_of(disk: &Disk, block: u32) -> Result<[u8; 512]> {
    match disk.image.block(block) {
        Block::Unallocated => Ok([0; 512]),
        Block::Fixed { .. } | Block::Allocated { full: true, .. } => Ok([0xff; 512]),
        Block::Allocated { bitmap_offset, .. } => {
            let mut bits = [0; 512];
            disk.read_at(bitmap_offset, &mut bits)?;
            Ok(bits)
        }
    }
}

/// One bit per block, top bit of byte 0 first.
fn allocated_bits(disk: &Disk) -> Vec<u8> {
    let blocks = disk.image.blocks();
    let mut bits = vec![0; blocks.div_ceil(8) as usize];
    for block in (0..blocks).filter(|&b| disk.image.block(b) != Block::Unallocated) {
        bitmap::set_range(&mut bits, block..block + 1);
    }
    bits
}

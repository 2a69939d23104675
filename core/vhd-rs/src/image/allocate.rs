//! New blocks, their entries and their batmap bits. Space is only ever appended; what an unmapped
//! block occupied stays unused, because other tools count on it.

use super::{Extent, Image, last_sector};
use crate::wire::SECTOR_BYTES;
use crate::{BLOCK_BYTES, Bat, Error, ErrorKind};

/// Sectors that must be unused before the bitmap of a full block: XenServer's data path writes
/// zeros over them when it writes a full block's first sector.
const GAP_SECTORS: u64 = 7;

/// Space reserved for a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// The block.
    pub block: u32,
    /// First byte of the space, at or before the bitmap. The bytes before the bitmap are unused
    /// for ever and need no write.
    pub start_offset: u64,
    /// Byte offset of the bitmap sector.
    pub bitmap_offset: u64,
    /// Byte offset of the data; a multiple of 4096.
    pub data_offset: u64,
    /// First byte after the block.
    pub end_offset: u64,
}

/// One sector to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectorWrite {
    /// Where, in bytes; a multiple of 512.
    pub offset: u64,
    /// What.
    pub bytes: [u8; 512],
}

/// The sector for a bitmap at or after sector `next`, so that the data after it begins at a
/// multiple of 4096 bytes.
pub(crate) fn aligned_entry(next: u64) -> u64 {
    next + (8 - (next + 1) % 8) % 8
}

/// The entry of a block placed after byte `next_free`: aligned, and with a gap before it unless it
/// is the first one of the image.
pub(super) fn next_entry(next_free: u64, first_entry: u64) -> u64 {
    let next = next_free.div_ceil(SECTOR_BYTES);
    let entry = aligned_entry(next);
    if entry != first_entry && entry - next < GAP_SECTORS {
        entry + 8
    } else {
        entry
    }
}

impl Image {
    /// Reserves space for a block at the end of data. Nothing else changes: the block stays
    /// [`Block::Unallocated`](super::Block::Unallocated) until [`Image::commit`], and any number of
    /// blocks may be reserved at a time.
    ///
    /// # Errors
    /// `NoSpace` if sector numbers or a reserved container are used up; `Argument` if the block is
    /// beyond the disk or allocated, and for fixed or read-only images.
    pub fn reserve(&mut self, block: u32) -> Result<Allocation, Error> {
        let limit = self.space_limit();
        let blocks = self.blocks();
        let sparse = self.sparse_mut()?;
        if block >= blocks || sparse.bat.get(block).is_some() {
            let rule = format!("must be an unallocated block below {blocks}");
            return Err(Error::argument("block", block, rule));
        }
        let entry = next_entry(sparse.next_free, sparse.first_entry);
        let bitmap_offset = entry * SECTOR_BYTES;
        let data_offset = bitmap_offset + SECTOR_BYTES;
        let end_offset = data_offset + u64::from(BLOCK_BYTES);
        if entry >= u64::from(u32::MAX) || end_offset > limit {
            let rule = format!(
                "blocks end by byte {limit} and begin below sector {}",
                u32::MAX
            );
            let value = format!("at byte {bitmap_offset}");
            return Err(Error::new(ErrorKind::NoSpace, "next block", value, rule));
        }
        let start_offset = sparse.next_free;
        sparse.next_free = end_offset;
        Ok(Allocation {
            block,
            start_offset,
            bitmap_offset,
            data_offset,
            end_offset,
        })
    }

    /// Enters a reserved block into the table in memory. From now on [`Image::block`] finds it and
    /// [`Image::bat_sector`] shows it; see [`Image`] for what must be durable by then.
    ///
    /// # Errors
    /// `Argument` if the block has been allocated in between.
    pub fn commit(&mut self, allocation: &Allocation) -> Result<(), Error> {
        let blocks = self.blocks();
        let sparse = self.sparse_mut()?;
        let entry = u32::try_from(allocation.bitmap_offset / SECTOR_BYTES).ok();
        let free = allocation.block < blocks && sparse.bat.get(allocation.block).is_none();
        let reserved = allocation.end_offset <= sparse.next_free;
        let Some(entry) = entry.filter(|_| free && reserved) else {
            let rule = "must be reserved from this image and not allocated";
            return Err(Error::argument("block", allocation.block, rule));
        };
        sparse.bat.set(allocation.block, Some(entry));
        Ok(())
    }

    /// Gives reserved space back, if nothing was reserved after it; else it stays unused for ever.
    /// Returns whether it was given back. Not for allocations that were committed.
    pub fn release(&mut self, allocation: &Allocation) -> bool {
        let Ok(sparse) = self.sparse_mut() else {
            return false;
        };
        let committed = sparse
            .bat
            .get(allocation.block)
            .map(|e| u64::from(e) * SECTOR_BYTES);
        let last = sparse.next_free == allocation.end_offset
            && committed != Some(allocation.bitmap_offset);
        if last {
            sparse.next_free = allocation.start_offset;
        }
        last
    }

    /// Takes a block out of the table in memory; its content becomes the parent's, or zero.
    /// A growing file's space can be punched out once the BAT sector is durable.
    ///
    /// # Errors
    /// `Argument` if the block is full in the batmap (see [`Image::clear_full`]), and for fixed or
    /// read-only images.
    pub fn unmap(&mut self, block: u32) -> Result<(), Error> {
        let sparse = self.sparse_mut()?;
        if sparse
            .batmap
            .as_ref()
            .is_some_and(|batmap| batmap.get(block))
        {
            let rule = "must be cleared in the batmap before it is unmapped";
            return Err(Error::argument("block", block, rule));
        }
        sparse.bat.set(block, None);
        Ok(())
    }

    /// The sector of the table that holds a block's entry, as it is to be written now; `None` for
    /// fixed disks and for blocks beyond the disk.
    pub fn bat_sector(&self, block: u32) -> Option<SectorWrite> {
        let sparse = self.sparse.as_ref().filter(|_| block < self.blocks())?;
        let offset = sparse.header.table_offset + Bat::sector_offset(block);
        Some(SectorWrite {
            offset,
            bytes: sparse.bat.sector(block),
        })
    }

    /// Marks a block as complete in the batmap in memory, if there is a batmap, the block has a
    /// bit in it and marking is safe. Returns whether it is marked. The block's bitmap must be
    /// durable and full. The mark reaches the disk with [`Image::close_plan`] or
    /// [`Image::batmap_plan`].
    pub fn set_full(&mut self, block: u32) -> bool {
        let Ok(sparse) = self.sparse_mut() else {
            return false;
        };
        let allocated = sparse.bat.get(block).is_some();
        match &mut sparse.batmap {
            Some(batmap) if allocated => batmap.set(block),
            _ => false,
        }
    }

    /// Removes a block's mark from the batmap in memory. If it returns true, perform
    /// [`Image::batmap_plan`] before the block is unmapped or a bit of its bitmap cleared.
    #[must_use = "a mark that was removed must be durable before the block changes"]
    pub fn clear_full(&mut self, block: u32) -> bool {
        let Ok(sparse) = self.sparse_mut() else {
            return false;
        };
        sparse
            .batmap
            .as_mut()
            .is_some_and(|batmap| batmap.clear(block))
    }

    /// First byte that blocks may not reach.
    fn space_limit(&self) -> u64 {
        match self.options.extent {
            Extent::Grows => u64::MAX,
            Extent::Reserved => last_sector(self.container_bytes),
        }
    }
}

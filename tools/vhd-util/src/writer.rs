//! Payload written into an image in bulk, in the order that survives a crash at any instant:
//!
//! ```text
//!  data of a batch -> flush -> its bitmaps -> flush -> its table sectors -> flush -> (batmap bits)
//! ```

use crate::chain::BLOCK_SECTORS;
use crate::{Disk, Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use vhd_rs::{Allocation, Block, Extent, SECTOR_BYTES, bitmap};

/// Blocks whose bitmaps are kept until they are written together.
const BATCH_BLOCKS: usize = 256;

/// What the data area of a block holds where nothing has been written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fresh {
    /// Zeros, for readers that do not look at bitmaps. Costs nothing in files.
    Zeroed,
    /// Whatever the device held.
    Stale,
}

/// Writes payload into an image.
#[derive(Debug)]
pub struct Writer<'a> {
    disk: &'a mut Disk,
    fresh: Fresh,
    batch: BTreeMap<u32, Pending>,
    /// Whether what lay behind the data of a growing file has been cut off.
    trimmed: bool,
}

/// A block whose bitmap on disk is behind.
#[derive(Debug)]
struct Pending {
    bits: [u8; 512],
    bitmap_offset: u64,
    data_offset: u64,
    /// Set if the table does not have the block yet.
    place: Option<Allocation>,
}

impl<'a> Writer<'a> {
    /// Begins to write into an image opened for writing.
    pub fn new(disk: &'a mut Disk, fresh: Fresh) -> Self {
        Self {
            disk,
            fresh,
            batch: BTreeMap::new(),
            trimmed: false,
        }
    }

    /// The image being written.
    pub fn disk(&self) -> &Disk {
        self.disk
    }

    /// Writes whole sectors of a block, from sector `first` of it on.
    ///
    /// # Errors
    /// `ENOSPC` if sector numbers or the device are used up, and those of the medium.
    pub fn write(&mut self, block: u32, first: u32, data: &[u8]) -> Result<()> {
        let count = (data.len() / 512) as u32;
        let sectors = first..first.saturating_add(count);
        let whole = count == BLOCK_SECTORS;
        let data_offset = self.place(block, &sectors, whole)?;
        let offset = data_offset + u64::from(first) * SECTOR_BYTES;
        self.disk.write_at(offset, data)?;
        self.limit_batch()
    }

    /// Makes a block complete without writing its data, which becomes what lies there.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub fn mark(&mut self, block: u32, sectors: Range<u32>) -> Result<()> {
        self.place(block, &sectors, true)?;
        self.limit_batch()
    }

    /// Where the data of a block goes; notes the bits to be set.
    fn place(&mut self, block: u32, sectors: &Range<u32>, whole: bool) -> Result<u64> {
        if let Some(pending) = self.batch.get_mut(&block) {
            bitmap::set_range(&mut pending.bits, sectors.clone());
            return Ok(pending.data_offset);
        }
        let (data_offset, pending) = match self.disk.image.block(block) {
            Block::Fixed { data_offset }
            | Block::Allocated {
                data_offset,
                full: true,
                ..
            } => return Ok(data_offset),
            Block::Allocated {
                bitmap_offset,
                data_offset,
                full: false,
            } => (
                data_offset,
                self.present(bitmap_offset, data_offset, sectors)?,
            ),
            Block::Unallocated => {
                let pending = self.allocate(block, sectors, whole)?;
                (pending.data_offset, Some(pending))
            }
        };
        if let Some(pending) = pending {
            self.batch.insert(block, pending);
        }
        Ok(data_offset)
    }

    /// A block of the table; `None` if its bits are set already.
    fn present(
        &self,
        bitmap_offset: u64,
        data_offset: u64,
        sectors: &Range<u32>,
    ) -> Result<Option<Pending>> {
        let mut bits = [0; 512];
        self.disk.read_at(bitmap_offset, &mut bits)?;
        let changed = bitmap::set_range(&mut bits, sectors.clone());
        // A complete block without a batmap bit goes on, to get its bit.
        Ok((changed || bitmap::is_full(&bits)).then_some(Pending {
            bits,
            bitmap_offset,
            data_offset,
            place: None,
        }))
    }

    fn allocate(&mut self, block: u32, sectors: &Range<u32>, whole: bool) -> Result<Pending> {
        let end_before = self.disk.image.end_of_data_bytes();
        let reserved = self.disk.image.reserve(block);
        let place = reserved.map_err(|e| Error::vhd(&self.disk.path, e))?;
        match self.disk.image.options().extent {
            Extent::Grows => self.grow(end_before)?,
            Extent::Reserved if self.fresh == Fresh::Zeroed && !whole => {
                let zeros = vec![0; vhd_rs::BLOCK_BYTES as usize];
                self.disk.write_at(place.data_offset, &zeros)?;
            }
            Extent::Reserved => {}
        }
        let mut bits = [0; 512];
        bitmap::set_range(&mut bits, sectors.clone());
        Ok(Pending {
            bits,
            bitmap_offset: place.bitmap_offset,
            data_offset: place.data_offset,
            place: Some(place),
        })
    }

    /// Gives a file the size its image needs. What lay behind its data is cut off first, so that
    /// new blocks are zeros.
    fn grow(&mut self, end_before: u64) -> Result<()> {
        let needed = self.disk.image.size_needed_bytes();
        let resized = if self.trimmed {
            self.disk.file.set_len(needed)
        } else {
            let trimmed = self.disk.file.set_len(end_before);
            trimmed.and_then(|()| self.disk.file.set_len(needed))
        };
        self.trimmed = true;
        let text = || format!("cannot grow {} to {needed} bytes", self.disk.path.display());
        resized.map_err(|e| Error::io(text(), e))
    }

    fn limit_batch(&mut self) -> Result<()> {
        if self.batch.len() < BATCH_BLOCKS {
            return Ok(());
        }
        self.flush()
    }

    /// Makes everything written durable and visible.
    ///
    /// # Errors
    /// Those of the medium; the image is then as after a crash.
    pub fn flush(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        self.disk.flush()?;
        if batch.is_empty() {
            return Ok(());
        }
        for pending in batch.values() {
            self.disk.write_at(pending.bitmap_offset, &pending.bits)?;
        }
        self.disk.flush()?;
        self.commit(&batch)?;
        for (&block, pending) in &batch {
            if bitmap::is_full(&pending.bits) {
                self.disk.image.set_full(block);
            }
        }
        Ok(())
    }

    fn commit(&mut self, batch: &BTreeMap<u32, Pending>) -> Result<()> {
        let mut fresh = Vec::new();
        for (&block, pending) in batch {
            if let Some(place) = &pending.place {
                let committed = self.disk.image.commit(place);
                committed.map_err(|e| Error::vhd(&self.disk.path, e))?;
                fresh.push(block);
            }
        }
        let mut written = BTreeSet::new();
        let sectors = fresh.iter().filter_map(|&b| self.disk.image.bat_sector(b));
        for sector in sectors {
            if written.insert(sector.offset) {
                self.disk.write_at(sector.offset, &sector.bytes)?;
            }
        }
        if written.is_empty() {
            return Ok(());
        }
        self.disk.flush()
    }

    /// Makes everything durable and closes the image: footers and batmap.
    ///
    /// # Errors
    /// Those of the medium; the image is then as after a crash.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.disk.change(vhd_rs::Image::close_plan)
    }
}

//! The block allocation table in memory: where each block's bitmap begins, and the images of its
//! sectors for writing. Whether entries make sense is checked when an image is opened.

use crate::wire::SECTOR_BYTES;

const UNALLOCATED: u32 = u32::MAX;
const ENTRIES_PER_SECTOR: u32 = 128;

/// The used entries of a table. Entries beyond the disk's size are reserve, neither read nor kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bat {
    entries: Vec<u32>,
    max_entries: u32,
}

impl Bat {
    /// Takes over entries as they lie on disk; a last incomplete one is dropped.
    pub(crate) fn from_disk(bytes: &[u8], max_entries: u32) -> Self {
        let be = |four: &[u8]| u32::from_be_bytes([four[0], four[1], four[2], four[3]]);
        Self {
            entries: bytes.chunks_exact(4).map(be).collect(),
            max_entries,
        }
    }

    /// Used entries: the disk's blocks.
    pub fn len(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Whether there is no entry, which is so for fixed disks only.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sector number of the block's bitmap; `None` if it is not allocated or not there at all.
    pub fn get(&self, block: u32) -> Option<u32> {
        self.entries
            .get(block as usize)
            .copied()
            .filter(|&entry| entry != UNALLOCATED)
    }

    /// Allocated blocks with the sector numbers of their bitmaps, in order of blocks.
    pub fn allocated(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let numbered = (0u32..).zip(self.entries.iter().copied());
        numbered.filter(|&(_, entry)| entry != UNALLOCATED)
    }

    /// The same entries in a table of another size.
    pub(crate) fn grown(&self, max_entries: u32) -> Self {
        Self {
            entries: self.entries.clone(),
            max_entries,
        }
    }

    /// The whole table as it goes to disk.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let sectors = self.max_entries.div_ceil(ENTRIES_PER_SECTOR).max(1);
        (0..sectors)
            .flat_map(|sector| self.sector(sector * ENTRIES_PER_SECTOR))
            .collect()
    }

    pub(crate) fn set(&mut self, block: u32, entry: Option<u32>) {
        if let Some(slot) = self.entries.get_mut(block as usize) {
            *slot = entry.unwrap_or(UNALLOCATED);
        }
    }

    pub(crate) fn grow(&mut self, used: u32) {
        self.entries.resize(used as usize, UNALLOCATED);
    }

    /// Byte offset within the table of the sector that holds the block's entry.
    pub(crate) fn sector_offset(block: u32) -> u64 {
        u64::from(block / ENTRIES_PER_SECTOR) * SECTOR_BYTES
    }

    /// The sector that holds the block's entry, as it goes to disk: reserve entries unallocated,
    /// zeros after the table's last entry.
    pub(crate) fn sector(&self, block: u32) -> [u8; 512] {
        let mut sector = [0; 512];
        let first = block / ENTRIES_PER_SECTOR * ENTRIES_PER_SECTOR;
        for (index, slot) in (first..self.max_entries).zip(sector.chunks_exact_mut(4)) {
            let entry = self
                .entries
                .get(index as usize)
                .copied()
                .unwrap_or(UNALLOCATED);
            slot.copy_from_slice(&entry.to_be_bytes());
        }
        sector
    }
}

//! The block allocation table in memory: where each block's bitmap begins, and the images of its
//! sectors for writing. Whether entries make sense is checked when an image is opened.

mod entries;

use crate::wire::SECTOR_BYTES;
use entries::Entries;

const UNALLOCATED: u32 = u32::MAX;
const ENTRIES_PER_SECTOR: u32 = 128;

/// The used entries of a table. Entries beyond the disk's size are reserve, neither read nor kept.
#[derive(Debug, Clone)]
pub struct Bat {
    entries: Entries,
    /// Used entries, allocated or not.
    len: u32,
    max_entries: u32,
}

/// Equal if they say the same, in whatever form they keep it.
impl PartialEq for Bat {
    fn eq(&self, other: &Self) -> bool {
        (self.len, self.max_entries) == (other.len, other.max_entries)
            && self.allocated().eq(other.allocated())
    }
}

impl Eq for Bat {}

impl Bat {
    /// A table of `len` used entries, none of which is allocated.
    pub(crate) fn empty(len: u32, max_entries: u32) -> Self {
        Self {
            entries: Entries::new(),
            len,
            max_entries,
        }
    }

    /// Takes over entries as they lie on disk, from block `first` on, in order.
    pub(crate) fn take(&mut self, first: u32, bytes: &[u8]) {
        for (block, entry) in entries_of(bytes) {
            self.set(first + block, Some(entry));
        }
    }

    /// Used entries: the disk's blocks.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no entry, which is so for fixed disks only.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sector number of the block's bitmap; `None` if it is not allocated or not there at all.
    #[inline]
    pub fn get(&self, block: u32) -> Option<u32> {
        self.entries.get(block)
    }

    /// Allocated blocks with the sector numbers of their bitmaps, in order of blocks.
    pub fn allocated(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.entries.iter()
    }

    /// How many blocks are allocated.
    pub fn allocated_blocks(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Bytes of memory it takes: some for each allocated block, hardly any for the others.
    pub fn memory_bytes(&self) -> usize {
        self.entries.memory_bytes()
    }

    /// The same entries in a table of another size.
    pub(crate) fn grown(&self, max_entries: u32) -> Self {
        Self {
            max_entries,
            ..self.clone()
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
        if block < self.len {
            let entry = entry.filter(|&entry| entry != UNALLOCATED);
            self.entries.set(block, entry, self.len);
        }
    }

    pub(crate) fn grow(&mut self, used: u32) {
        self.len = self.len.max(used);
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
            let entry = self.get(index).unwrap_or(UNALLOCATED);
            slot.copy_from_slice(&entry.to_be_bytes());
        }
        sector
    }
}

/// The allocated blocks of a table on disk, most of which is usually empty.
fn entries_of(bytes: &[u8]) -> impl Iterator<Item = (u32, u32)> + '_ {
    const EMPTY: [u8; SECTOR_BYTES as usize] = [0xFF; SECTOR_BYTES as usize];
    let sectors = bytes.chunks(EMPTY.len());
    let sectors = (0u32..).step_by(ENTRIES_PER_SECTOR as usize).zip(sectors);
    let used = sectors.filter(|(_, sector)| *sector != EMPTY);
    used.flat_map(|(first, sector)| {
        let be = |four: &[u8]| u32::from_be_bytes([four[0], four[1], four[2], four[3]]);
        let entries = (first..).zip(sector.chunks_exact(4).map(be));
        entries.filter(|&(_, entry)| entry != UNALLOCATED)
    })
}

//! The batmap, XenServer's addition to the format: one bit per block saying "every sector of this
//! block is in this file", so that readers skip its bitmap. A clear bit says nothing.

use crate::wire::{bytes_at, checksum, pad_sector, put, u32_at, u64_at};
use crate::{Error, ErrorKind, Keyhash, bitmap};

/// Bytes in a batmap header.
pub const BATMAP_HEADER_BYTES: usize = 512;

const COOKIE: &[u8; 8] = b"tdbatmap";
const VERSION_SIGNED_SUM: u32 = 0x0001_0001;
const VERSION: u32 = 0x0001_0002;
const KEYHASH_AT: usize = 29;

/// The header before a batmap. It has no checksum of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatmapHeader {
    /// Byte offset of the map.
    pub map_offset: u64,
    /// Sectors reserved for the map.
    pub map_sectors: u32,
    /// 0x00010001 (the checksum sums signed bytes) or 0x00010002.
    pub version: u32,
    /// Over the used length of the map.
    pub checksum: u32,
    /// A byte for the tool stack's own use.
    pub marker: u8,
    /// Hash of the disk's encryption key; the first byte is 1 if there is one.
    pub keyhash: [u8; Keyhash::BYTES],
}

impl BatmapHeader {
    pub(crate) fn new(map_offset: u64, max_table_entries: u32) -> Self {
        let map_sectors = reserved_sectors(max_table_entries);
        let checksum = checksum(&[]);
        let keyhash = [0; Keyhash::BYTES];
        Self {
            map_offset,
            map_sectors,
            version: VERSION,
            checksum,
            marker: 0,
            keyhash,
        }
    }

    /// Parses a batmap header.
    ///
    /// # Errors
    /// `Corrupt` for cookie and place, `Unsupported` for a later version.
    pub fn parse(sector: &[u8; BATMAP_HEADER_BYTES]) -> Result<Self, Error> {
        let header = Self::parse_fields(sector)?;
        header.check_place()?;
        Ok(header)
    }

    /// Like [`BatmapHeader::parse`], for a caller who has a question before the map's place is
    /// judged.
    pub(crate) fn parse_fields(sector: &[u8; BATMAP_HEADER_BYTES]) -> Result<Self, Error> {
        let cookie: [u8; 8] = bytes_at(sector, 0);
        if &cookie != COOKIE {
            let value = format!("\"{}\"", cookie.escape_ascii());
            return Err(Error::corrupt(
                "batmap.cookie",
                value,
                "must be \"tdbatmap\"",
            ));
        }
        let version = u32_at(sector, 20);
        if !(VERSION_SIGNED_SUM..=VERSION).contains(&version) {
            let value = format!("{version:#010x}");
            let rule = "batmaps are handled in versions 0x00010001 and 0x00010002";
            return Err(Error::new(
                ErrorKind::Unsupported,
                "batmap.version",
                value,
                rule,
            ));
        }
        Ok(Self {
            map_offset: u64_at(sector, 8),
            map_sectors: u32_at(sector, 16),
            version,
            checksum: u32_at(sector, 24),
            marker: sector[28],
            keyhash: bytes_at(sector, KEYHASH_AT),
        })
    }

    pub(crate) fn check_place(&self) -> Result<(), Error> {
        let end = self
            .map_offset
            .checked_add(u64::from(self.map_sectors) * 512);
        if self.map_offset.is_multiple_of(512) && end.is_some() {
            return Ok(());
        }
        let rule = "must be a multiple of 512 inside the file";
        Err(Error::corrupt(
            "batmap.batmap_offset",
            self.map_offset,
            rule,
        ))
    }

    /// The hash of the disk's key, if the disk is encrypted.
    pub fn keyhash(&self) -> Option<Keyhash> {
        Keyhash::parse(&self.keyhash)
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; BATMAP_HEADER_BYTES] {
        let mut sector = [0; BATMAP_HEADER_BYTES];
        put(&mut sector, 0, COOKIE);
        put(&mut sector, 8, &self.map_offset.to_be_bytes());
        put(&mut sector, 16, &self.map_sectors.to_be_bytes());
        put(&mut sector, 20, &self.version.to_be_bytes());
        put(&mut sector, 24, &self.checksum.to_be_bytes());
        sector[28] = self.marker;
        put(&mut sector, KEYHASH_AT, &self.keyhash);
        sector
    }

    fn checksum_of(&self, map: &[u8]) -> u32 {
        if self.version == VERSION_SIGNED_SUM {
            signed_checksum(map)
        } else {
            checksum(map)
        }
    }
}

/// Sectors a new image reserves for the map.
pub(crate) fn reserved_sectors(max_table_entries: u32) -> u32 {
    max_table_entries.div_ceil(8 * 512).max(1)
}

/// Bytes of the map that are read, written and summed: whole sectors for `floor(size / 16 MiB)`
/// bytes. One sector short of the last one to seven blocks at some sizes, as in the tools this
/// must agree with; those blocks have no bit.
pub(crate) fn used_bytes(virtual_bytes: u64) -> u64 {
    pad_sector(virtual_bytes >> 24)
}

/// The checksum of batmap version 1.1: like [`checksum`], but of signed bytes.
fn signed_checksum(map: &[u8]) -> u32 {
    let add = |sum: u32, &byte: &u8| sum.wrapping_add_signed(i32::from(byte.cast_signed()));
    !map.iter().fold(0u32, add)
}

/// A batmap whose bits may be believed.
///
/// Bits are set late: the block's bitmap must be durable first. Bits are cleared early: before
/// the block is unmapped or any bit of its bitmap is cleared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batmap {
    header_offset: u64,
    header: BatmapHeader,
    map: Vec<u8>,
    /// Blocks that may never be set, because other tools overwrite what lies before a full block.
    barred: Vec<u32>,
    changed: bool,
}

impl Batmap {
    /// Believes `map` if the header's checksum agrees, else starts with no bit set and returns
    /// the disagreement too: a torn write leaves such a map, and clear bits are always true.
    pub(crate) fn from_disk(
        header_offset: u64,
        header: BatmapHeader,
        mut map: Vec<u8>,
    ) -> (Self, Option<Error>) {
        let computed = header.checksum_of(&map);
        let problem = (computed != header.checksum)
            .then(|| Error::checksum("batmap.checksum", header.checksum, computed));
        if problem.is_some() {
            map.fill(0);
        }
        let changed = problem.is_some();
        (
            Self {
                header_offset,
                header,
                map,
                barred: Vec::new(),
                changed,
            },
            problem,
        )
    }

    /// The header as last read or written.
    pub fn header(&self) -> &BatmapHeader {
        &self.header
    }

    /// Whether the block's bit is set.
    pub fn get(&self, block: u32) -> bool {
        bitmap::get(&self.map, block)
    }

    /// Whether the map differs from what is on disk.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// Byte range of the map's used part.
    pub(crate) fn map_region(&self) -> (u64, u64) {
        (
            self.header.map_offset,
            self.header.map_offset + self.map.len() as u64,
        )
    }

    pub(crate) fn header_offset(&self) -> u64 {
        self.header_offset
    }

    /// Bars blocks (sorted) from ever being set, and clears those that are.
    pub(crate) fn bar(&mut self, blocks: Vec<u32>) {
        for &block in &blocks {
            self.clear(block);
        }
        self.barred = blocks;
    }

    /// Sets a bit unless the block is barred or has none; returns whether it is set now.
    pub(crate) fn set(&mut self, block: u32) -> bool {
        let has_bit = (block as usize / 8) < self.map.len();
        if !has_bit || self.barred.binary_search(&block).is_ok() {
            return false;
        }
        self.changed |= bitmap::set_range(&mut self.map, block..block.saturating_add(1));
        true
    }

    /// Clears a bit; returns whether it was set.
    pub(crate) fn clear(&mut self, block: u32) -> bool {
        let was_set = bitmap::clear_range(&mut self.map, block..block.saturating_add(1));
        self.changed |= was_set;
        was_set
    }

    /// Takes over another marker.
    pub(crate) fn set_marker(&mut self, marker: u8) {
        self.header.marker = marker;
        self.changed = true;
    }

    /// Takes over another key's hash, or none.
    pub(crate) fn set_keyhash(&mut self, keyhash: Option<&Keyhash>) {
        self.header.keyhash = keyhash.map_or([0; Keyhash::BYTES], Keyhash::to_bytes);
        self.changed = true;
    }

    /// Takes over a new virtual size, which must fit the sectors reserved.
    pub(crate) fn resize(&mut self, virtual_bytes: u64) {
        self.map.resize(used_bytes(virtual_bytes) as usize, 0);
        self.changed = true;
    }

    /// The writes that make the same map at another place, given by its header and its sectors, for
    /// a disk of another size. The map in memory stays as it is.
    pub(crate) fn moved(
        &self,
        (header_offset, map_sectors): (u64, u32),
        virtual_bytes: u64,
    ) -> [(u64, Vec<u8>); 2] {
        let mut map = self.map.clone();
        map.resize(used_bytes(virtual_bytes) as usize, 0);
        let mut header = self.header.clone();
        header.map_offset = header_offset + BATMAP_HEADER_BYTES as u64;
        header.map_sectors = map_sectors;
        header.checksum = header.checksum_of(&map);
        map.resize(map_sectors as usize * 512, 0);
        [
            (header.map_offset, map),
            (header_offset, header.to_bytes().to_vec()),
        ]
    }

    /// The writes that bring the disk up to date, map first, and the checksum with them.
    pub(crate) fn take_writes(&mut self) -> [(u64, Vec<u8>); 2] {
        self.header.checksum = self.header.checksum_of(&self.map);
        self.changed = false;
        let header = self.header.to_bytes().to_vec();
        [
            (self.header.map_offset, self.map.clone()),
            (self.header_offset, header),
        ]
    }
}

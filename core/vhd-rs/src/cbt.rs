//! Changed block tracking: the log that says which 64 KiB of a disk were written since a snapshot.
//! A header and a bitmap, and nothing that reads or writes them; the log is a file of its own.
//!
//! ```text
//!  0       16      32           36    40          48
//!  +-------+-------+------------+-----+-----------+-------------------------+
//!  | parent| child | consistent | pad | disk size | bit n: 64 KiB n written |
//!  +-------+-------+------------+-----+-----------+-------------------------+
//! ```
//!
//! Unlike everything in a VHD, numbers are little-endian and bit 0 is the lowest bit of byte 0: it
//! is a data structure of a program on x86, mapped into memory.

use crate::wire::{bytes_at, put, uuid_at};
use crate::{Error, ErrorKind, VIRTUAL_BYTES_MAX};
use std::ops::Range;
use uuid::Uuid;

/// Bytes in a log's header; the bitmap follows.
pub const CBT_HEADER_BYTES: usize = 48;

/// Bytes of disk that a bit stands for.
pub const CBT_BLOCK_BYTES: u64 = 64 << 10;

/// A log's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CbtHeader {
    /// Log of the snapshot before; nil if there is none.
    pub parent: Uuid,
    /// Log of the snapshot after, or of the disk; nil if there is none.
    pub child: Uuid,
    /// Whether the bits can be believed: cleared while a disk is written, set when it was detached.
    pub consistent: bool,
    /// Size of the disk in bytes.
    pub size_bytes: u64,
}

impl CbtHeader {
    /// The header of a new log: nobody's, of unknown consistency.
    pub fn new(size_bytes: u64) -> Self {
        Self {
            parent: Uuid::nil(),
            child: Uuid::nil(),
            consistent: false,
            size_bytes,
        }
    }

    /// Parses a header.
    ///
    /// # Errors
    /// `Unsupported` for disks of more than [`VIRTUAL_BYTES_MAX`].
    pub fn parse(bytes: &[u8; CBT_HEADER_BYTES]) -> Result<Self, Error> {
        let header = Self {
            parent: uuid_at(bytes, 0),
            child: uuid_at(bytes, 16),
            consistent: bytes_at::<4, _>(bytes, 32) != [0; 4],
            size_bytes: u64::from_le_bytes(bytes_at(bytes, 40)),
        };
        if header.size_bytes > VIRTUAL_BYTES_MAX {
            let rule = format!("disks are tracked up to {VIRTUAL_BYTES_MAX} bytes");
            return Err(Error::new(
                ErrorKind::Unsupported,
                "log.size",
                header.size_bytes,
                rule,
            ));
        }
        Ok(header)
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; CBT_HEADER_BYTES] {
        let mut bytes = [0; CBT_HEADER_BYTES];
        put(&mut bytes, 0, self.parent.as_bytes());
        put(&mut bytes, 16, self.child.as_bytes());
        put(&mut bytes, 32, &u32::from(self.consistent).to_le_bytes());
        put(&mut bytes, 40, &self.size_bytes.to_le_bytes());
        bytes
    }

    /// Bytes of the bitmap.
    pub fn bitmap_bytes(&self) -> u64 {
        self.size_bytes.div_ceil(CBT_BLOCK_BYTES).div_ceil(8)
    }
}

/// Whether the 64 KiB of this number were written. Bits beyond the bitmap are clear.
pub fn get(map: &[u8], block: u64) -> bool {
    let byte = usize::try_from(block / 8).ok().and_then(|at| map.get(at));
    byte.is_some_and(|byte| byte >> (block % 8) & 1 == 1)
}

/// Notes that these bytes of the disk are written; returns whether a bit was clear. To be done
/// before they are. What lies beyond the bitmap is left out.
pub fn set_written(map: &mut [u8], bytes: Range<u64>) -> bool {
    if bytes.is_empty() {
        return false;
    }
    let first = bytes.start / CBT_BLOCK_BYTES;
    let blocks = (map.len() as u64).saturating_mul(8);
    let end = bytes.end.div_ceil(CBT_BLOCK_BYTES).min(blocks);
    let mut changed = false;
    for block in first..end {
        let at = usize::try_from(block / 8).ok();
        if let Some(byte) = at.and_then(|at| map.get_mut(at)) {
            let mask = 1 << (block % 8);
            changed |= *byte & mask == 0;
            *byte |= mask;
        }
    }
    changed
}

/// Adds what an earlier log has: what was written since the snapshot before it.
///
/// # Errors
/// `Argument` if the earlier log is longer, as disks do not shrink.
pub fn merge(map: &mut [u8], earlier: &[u8]) -> Result<(), Error> {
    if earlier.len() > map.len() {
        let rule = format!("must have at most the {} bytes of the later one", map.len());
        return Err(Error::argument("earlier bitmap", earlier.len(), rule));
    }
    for (byte, more) in map.iter_mut().zip(earlier) {
        *byte |= more;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{CBT_BLOCK_BYTES, CbtHeader, get, merge, set_written};
    use uuid::Uuid;

    #[test]
    fn a_header_is_little_endian() {
        let header = CbtHeader {
            parent: Uuid::from_u128(0x0102),
            child: Uuid::from_u128(0x0304 << 112),
            consistent: true,
            size_bytes: 0x1122_3344_5566,
        };
        let mut expected = [0; 48];
        expected[14..16].copy_from_slice(&[1, 2]);
        expected[16..18].copy_from_slice(&[3, 4]);
        expected[32] = 1;
        expected[40..46].copy_from_slice(&[0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(header.to_bytes(), expected);
        expected[45] = 0;
        let parsed = CbtHeader::parse(&expected).unwrap();
        assert_eq!((parsed.parent, parsed.child), (header.parent, header.child));
        expected[45] = 0x11;
        assert!(CbtHeader::parse(&expected).is_err());
    }

    #[test]
    fn a_bitmap_has_a_bit_per_64_kib_begun() {
        for (size, bytes) in [(1, 1), (8 << 16, 1), ((8 << 16) + 1, 2), (1 << 40, 2 << 20)] {
            assert_eq!(CbtHeader::new(size).bitmap_bytes(), bytes, "{size}");
        }
    }

    #[test]
    fn writes_set_the_bits_they_touch_lowest_bit_first() {
        let k = CBT_BLOCK_BYTES;
        for (range, expected, changed) in [
            (0..1, [0x01, 0x00], true),
            (k - 1..k + 1, [0x03, 0x00], true),
            (9 * k..10 * k, [0x00, 0x02], true),
            (7 * k..20 * k, [0x80, 0xff], true),
            (5..5, [0, 0], false),
            (16 * k..u64::MAX, [0, 0], false),
        ] {
            let mut map = [0; 2];
            assert_eq!(set_written(&mut map, range.clone()), changed, "{range:?}");
            assert_eq!(map, expected, "{range:?}");
            assert!(!set_written(&mut map, range));
            let bits: Vec<bool> = (0..17).map(|block| get(&map, block)).collect();
            let number = bits
                .iter()
                .rev()
                .fold(0u32, |n, &bit| n << 1 | u32::from(bit));
            assert_eq!(number, u32::from(u16::from_le_bytes(map)));
        }
    }

    #[test]
    fn an_earlier_log_adds_its_bits() {
        let mut map = [0x10, 0x01, 0x80];
        merge(&mut map, &[0x01, 0x81]).unwrap();
        assert_eq!(map, [0x11, 0x81, 0x80]);
        assert!(merge(&mut map, &[0; 4]).is_err());
    }
}

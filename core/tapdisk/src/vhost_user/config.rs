//! What the device offers and what its configuration says (VIRTIO 1.2, 5.2.3 and 5.2.4).

use super::{Export, QUEUES_MAX};
use units::SECTOR_BYTES;

/// Most segments of a request besides header and status: with these, one fits QEMU's usual queue of
/// 128 entries.
const SEGMENTS_MAX: u32 = 126;

/// Longest segment: with [`SEGMENTS_MAX`] of them a request stays within the engine's 32 MiB.
const SEGMENT_BYTES_MAX: u32 = 256 << 10;

/// Longest discard or write-zeroes: 2 GiB less a page, whose bytes fit a job's length.
const RANGE_SECTORS_MAX: u32 = (((1_u64 << 31) - 4096) / SECTOR_BYTES) as u32;

/// Smallest unit that costs no read before it is written, and its logarithm in sectors.
const PREFERRED_BYTES: u64 = 4096;
const PREFERRED_EXPONENT: u8 = 3;

/// Where `writeback` lies, the only field a front end may write.
pub(super) const WRITEBACK_AT: u32 = 32;

/// Bytes of configuration a front end can ask for; those past the fields we know are zero.
pub(super) const CONFIG_BYTES_MAX: u32 = 256;

/// Bits of the features. The numbers are VIRTIO's, but for `PROTOCOL_FEATURES`, which is
/// vhost-user's and never shown to a guest.
pub(super) mod feature {
    pub(crate) const SIZE_MAX: u64 = 1 << 1;
    pub(crate) const SEG_MAX: u64 = 1 << 2;
    pub(crate) const RO: u64 = 1 << 5;
    pub(crate) const BLK_SIZE: u64 = 1 << 6;
    pub(crate) const FLUSH: u64 = 1 << 9;
    pub(crate) const TOPOLOGY: u64 = 1 << 10;
    pub(crate) const CONFIG_WCE: u64 = 1 << 11;
    pub(crate) const MQ: u64 = 1 << 12;
    pub(crate) const DISCARD: u64 = 1 << 13;
    pub(crate) const WRITE_ZEROES: u64 = 1 << 14;
    pub(crate) const INDIRECT_DESC: u64 = 1 << 28;
    pub(crate) const EVENT_IDX: u64 = 1 << 29;
    pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub(crate) const VERSION_1: u64 = 1 << 32;
}

/// What a front end may choose from.
pub(super) fn features(export: &Export) -> u64 {
    let always = feature::SIZE_MAX
        | feature::SEG_MAX
        | feature::BLK_SIZE
        | feature::FLUSH
        | feature::TOPOLOGY
        | feature::CONFIG_WCE
        | feature::MQ
        | feature::INDIRECT_DESC
        | feature::EVENT_IDX
        | feature::PROTOCOL_FEATURES
        | feature::VERSION_1;
    always
        | match export.read_only {
            true => feature::RO,
            false => feature::DISCARD | feature::WRITE_ZEROES,
        }
}

/// Whether a range is one that a discard or write-zeroes may have.
pub(super) fn is_range(sectors: u32) -> bool {
    sectors > 0 && sectors <= RANGE_SECTORS_MAX
}

/// The configuration from its start, in the order of the fields.
pub(super) fn space(export: &Export, writeback: bool) -> Vec<u8> {
    let preferred_sectors = PREFERRED_BYTES / SECTOR_BYTES;
    let mut bytes = Vec::with_capacity(CONFIG_BYTES_MAX as usize);
    bytes.extend((export.size_bytes / SECTOR_BYTES).to_le_bytes());
    bytes.extend(SEGMENT_BYTES_MAX.to_le_bytes());
    bytes.extend(SEGMENTS_MAX.to_le_bytes());
    // No geometry.
    bytes.extend([0; 4]);
    bytes.extend((SECTOR_BYTES as u32).to_le_bytes());
    // Physical block (as an exponent), offset of the first, smallest and best request in sectors.
    bytes.extend([PREFERRED_EXPONENT, 0]);
    bytes.extend((preferred_sectors as u16).to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend([u8::from(writeback), 0]);
    bytes.extend(QUEUES_MAX.to_le_bytes());
    for _discard_then_write_zeroes in 0..2 {
        bytes.extend(RANGE_SECTORS_MAX.to_le_bytes());
        // One range per request, as the engine does one at a time.
        bytes.extend(1_u32.to_le_bytes());
        if bytes.len() == 44 {
            // A discard's alignment.
            bytes.extend((preferred_sectors as u32).to_le_bytes());
        }
    }
    // Write-zeroes may unmap.
    bytes.push(1);
    bytes.resize(CONFIG_BYTES_MAX as usize, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        let export = Export {
            size_bytes: 10 << 20,
            read_only: false,
            serial: [0; 20],
        };
        let bytes = space(&export, true);
        let u32_at = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        assert_eq!(u32_at(0), 20480);
        assert_eq!(u32_at(8), SEGMENT_BYTES_MAX);
        assert_eq!(u32_at(12), SEGMENTS_MAX);
        assert_eq!(u32_at(20), 512);
        assert_eq!(bytes[24..28], [3, 0, 8, 0]);
        assert_eq!(bytes[WRITEBACK_AT as usize], 1);
        assert_eq!(u16::from_le_bytes([bytes[34], bytes[35]]), QUEUES_MAX);
        assert_eq!(
            [u32_at(36), u32_at(40), u32_at(44)],
            [RANGE_SECTORS_MAX, 1, 8]
        );
        assert_eq!([u32_at(48), u32_at(52)], [RANGE_SECTORS_MAX, 1]);
        assert_eq!(bytes[56], 1);
        assert_eq!(bytes.len(), 256);
    }

    #[test]
    fn the_longest_request_is_one_the_engine_takes() {
        let longest = SEGMENTS_MAX * SEGMENT_BYTES_MAX;
        assert!(longest <= crate::engine::REQUEST_BYTES_MAX, "{longest}");
        assert!(u64::from(RANGE_SECTORS_MAX) * SECTOR_BYTES <= u64::from(u32::MAX));
    }
}

//! Sizes: what a VHD may be, how much room its container needs, and how far its metadata reaches.

use crate::error::{Result, StorageError, StorageErrorKind};
use units::{GIB, MIB, round_up};

/// Block of a VHD; sizes are multiples of it.
///
/// # Source
/// libvhd and XenServer make no other, and round sizes up to it.
const BLOCK_BYTES: u64 = 2 * MIB;

/// The largest VHD.
///
/// # Source
/// The limit of the format as the VHD specification states it; XenServer keeps to it.
pub(crate) const VIRTUAL_BYTES_MAX: u64 = 2040 * GIB;

/// Metadata reaches at least this far, at a cost of 128 KiB of block table.
const REACH_BYTES_MIN: u64 = 64 * GIB;

/// What a VDI of `bytes` is rounded up to.
pub(crate) fn virtual_bytes(bytes: u64) -> Result<u64> {
    round_up(bytes, BLOCK_BYTES)
        .filter(|b| (1..=VIRTUAL_BYTES_MAX).contains(b))
        .ok_or_else(|| {
            let context = format!("a VDI of {bytes} bytes: 1 to {VIRTUAL_BYTES_MAX} are possible");
            StorageError::new(StorageErrorKind::VdiSize, context)
        })
}

/// Size up to which an image of `virtual_bytes` gets its metadata laid out, so that it grows by
/// writing its header and nothing has to move: four times its size and at least 64 GiB, as a power
/// of two, at most 2040 GiB. The block table takes 4 bytes for each 2 MiB of this and is written
/// out whole in every layer; four times keeps it under 0.001 % of the disk.
pub(crate) fn reach_bytes(virtual_bytes: u64) -> u64 {
    virtual_bytes
        .saturating_mul(4)
        .max(REACH_BYTES_MIN)
        .checked_next_power_of_two()
        .unwrap_or(VIRTUAL_BYTES_MAX)
        .min(VIRTUAL_BYTES_MAX)
}

/// Room that a dynamic image of `virtual_bytes` takes when every block is written, in a container
/// of fixed capacity.
///
/// # Source
/// Footer copy and header, block table, batmap and its header, three locators, then blocks of 2 MiB
/// at a pitch of 2 MiB + 4 KiB, and the footer.
pub(crate) fn container_bytes(virtual_bytes: u64, reach_bytes: u64) -> u64 {
    let entries = reach_bytes.div_ceil(BLOCK_BYTES);
    let head = 512 + 1024 + entries * 4 + 512 + 512 + entries / 8 + 512 + 3 * 1024 + 4096;
    let blocks = virtual_bytes.div_ceil(BLOCK_BYTES) * (BLOCK_BYTES + 4096);
    (head + blocks + 512).next_multiple_of(MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_blocks_up_to_the_limit() {
        let cases = [
            (1, Some(2 * MIB)),
            (2 * MIB, Some(2 * MIB)),
            (2 * MIB + 1, Some(4 * MIB)),
            (2040 * GIB, Some(2040 * GIB)),
            (0, None),
            (2040 * GIB + 1, None),
            (u64::MAX, None),
        ];
        for (bytes, expected) in cases {
            let got = virtual_bytes(bytes);
            assert_eq!(got.as_ref().ok().copied(), expected, "{bytes}");
            if let Err(e) = got {
                assert_eq!(e.kind(), StorageErrorKind::VdiSize);
            }
        }
    }

    #[test]
    fn metadata_reaches_four_times_and_never_less_than_the_disk() {
        let cases = [
            (2 * MIB, 64 * GIB),
            (16 * GIB, 64 * GIB),
            (17 * GIB, 128 * GIB),
            (600 * GIB, 2040 * GIB),
        ];
        for (virtual_bytes, expected) in cases {
            assert_eq!(reach_bytes(virtual_bytes), expected);
        }
        for virtual_bytes in [2 * MIB, 500 * GIB, VIRTUAL_BYTES_MAX] {
            assert!(reach_bytes(virtual_bytes) >= virtual_bytes);
        }
    }

    #[test]
    fn a_full_image_fits_its_container() {
        // The layout of a 64 MiB image added up by hand, with its table for 64 GiB: data from 4 KiB
        // after 140 KiB of table and batmap, 32 blocks at 2 MiB + 4 KiB.
        let blocks = 32 * (2 * MIB + 4096);
        assert!(container_bytes(64 * MIB, 64 * GIB) >= 1536 + 131_072 + 512 + 4096 + 4096 + blocks);
        assert_eq!(container_bytes(64 * MIB, 64 * GIB) % MIB, 0);
    }
}

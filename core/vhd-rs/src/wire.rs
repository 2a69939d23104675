//! Big-endian fields at fixed places of fixed-size sectors, the format's checksum and its padding.
//! Places are constants of this crate, never input.

use uuid::Uuid;

/// Bytes in a sector.
pub const SECTOR_BYTES: u64 = 512;

pub(crate) fn bytes_at<const L: usize, const N: usize>(sector: &[u8; N], at: usize) -> [u8; L] {
    let mut field = [0; L];
    field.copy_from_slice(&sector[at..at + L]);
    field
}

pub(crate) fn u32_at<const N: usize>(sector: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes(bytes_at(sector, at))
}

pub(crate) fn u64_at<const N: usize>(sector: &[u8; N], at: usize) -> u64 {
    u64::from_be_bytes(bytes_at(sector, at))
}

pub(crate) fn uuid_at<const N: usize>(sector: &[u8; N], at: usize) -> Uuid {
    Uuid::from_bytes(bytes_at(sector, at))
}

pub(crate) fn put<const N: usize>(sector: &mut [u8; N], at: usize, field: &[u8]) {
    sector[at..at + field.len()].copy_from_slice(field);
}

/// One's complement of the sum of all bytes: the checksum of footers and headers (taken with
/// their own field as zero), and of the batmap from its version 1.2 on.
///
/// # Source
/// VHD 1.0, "Checksum".
pub fn checksum(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(0u32, |sum, &byte| sum.wrapping_add(u32::from(byte)))
}

/// [`checksum`] of a sector whose own four checksum bytes at `at` count as zero.
pub(crate) fn checksum_without<const N: usize>(sector: &[u8; N], at: usize) -> u32 {
    let own: [u8; 4] = bytes_at(sector, at);
    let own_sum = own.iter().fold(0u32, |sum, &byte| sum + u32::from(byte));
    !(!checksum(sector)).wrapping_sub(own_sum)
}

/// Rounds up to whole sectors, at least one: zero bytes of a map still take a sector on disk.
///
/// `bytes` must be below 2^63.
pub(crate) fn pad_sector(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(SECTOR_BYTES)
}

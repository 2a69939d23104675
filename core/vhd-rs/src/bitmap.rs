//! Sector bitmaps: which sectors of a block are in this file. Plain slices, so that a data path
//! keeps them in buffers of its own; bit 0 is the top bit of byte 0.
//!
//! Bits beyond the slice read as clear and are not set.

use std::ops::Range;

/// Whether the bit of `sector` is set.
pub fn get(bitmap: &[u8], sector: u32) -> bool {
    bitmap
        .get(sector as usize / 8)
        .is_some_and(|byte| byte & mask(sector) != 0)
}

/// Sets the bits of `sectors`; returns whether any of them was clear.
pub fn set_range(bitmap: &mut [u8], sectors: Range<u32>) -> bool {
    change(bitmap, sectors, |byte, mask| byte | mask)
}

/// Clears the bits of `sectors`; returns whether any of them was set.
pub fn clear_range(bitmap: &mut [u8], sectors: Range<u32>) -> bool {
    change(bitmap, sectors, |byte, mask| byte & !mask)
}

/// Whether every bit is set.
pub fn is_full(bitmap: &[u8]) -> bool {
    bitmap.iter().all(|&byte| byte == 0xFF)
}

/// Whether every bit is clear.
pub fn is_empty(bitmap: &[u8]) -> bool {
    bitmap.iter().all(|&byte| byte == 0)
}

/// Runs of equal bits that cover `sectors` in order, without allocating.
pub fn runs(bitmap: &[u8], sectors: Range<u32>) -> Runs<'_> {
    Runs { bitmap, sectors }
}

/// A run of sectors in the same state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The sectors, counted within the block; never empty.
    pub sectors: Range<u32>,
    /// Whether the file has them.
    pub present: bool,
}

/// Iterator of [`runs`].
#[derive(Debug, Clone)]
pub struct Runs<'a> {
    bitmap: &'a [u8],
    sectors: Range<u32>,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if self.sectors.is_empty() {
            return None;
        }
        let start = self.sectors.start;
        let present = get(self.bitmap, start);
        let end = self.end_of_run(start, present);
        self.sectors.start = end;
        Some(Run {
            sectors: start..end,
            present,
        })
    }
}

impl Runs<'_> {
    /// First sector after `start` whose state differs, or the range's end. Steps over eight equal
    /// sectors at once.
    fn end_of_run(&self, start: u32, present: bool) -> u32 {
        let uniform = if present { 0xFF } else { 0x00 };
        let mut sector = start;
        while sector < self.sectors.end {
            let byte = self.bitmap.get(sector as usize / 8).copied().unwrap_or(0);
            if sector.is_multiple_of(8) && byte == uniform {
                sector = sector.saturating_add(8);
            } else if get(self.bitmap, sector) == present {
                sector += 1;
            } else {
                return sector;
            }
        }
        self.sectors.end
    }
}

fn mask(sector: u32) -> u8 {
    0x80 >> (sector % 8)
}

fn change(bitmap: &mut [u8], sectors: Range<u32>, apply: impl Fn(u8, u8) -> u8) -> bool {
    let mut changed = false;
    let mut sector = sectors.start;
    while sector < sectors.end {
        let Some(byte) = bitmap.get_mut(sector as usize / 8) else {
            break;
        };
        let end = sectors
            .end
            .min((sector / 8).saturating_mul(8).saturating_add(8));
        let head = 0xFFu8 >> (sector % 8);
        let tail = if end.is_multiple_of(8) {
            0xFF
        } else {
            !(0xFF >> (end % 8))
        };
        let new = apply(*byte, head & tail);
        changed |= new != *byte;
        *byte = new;
        sector = end;
    }
    changed
}

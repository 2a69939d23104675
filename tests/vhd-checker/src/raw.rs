//! A file and its fields by offset: no structures, only places.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A file of which pieces are read; what lies beyond its end reads as nothing.
#[derive(Debug)]
pub(crate) struct Raw {
    file: File,
    pub(crate) len: u64,
}

impl Raw {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, len })
    }

    /// Up to `count` bytes at `at`; fewer at the end of the file.
    pub(crate) fn piece(&self, at: u64, count: u64) -> io::Result<Vec<u8>> {
        let count = count.min(self.len.saturating_sub(at));
        let mut out = Vec::new();
        let mut file = &self.file;
        file.seek(SeekFrom::Start(at))?;
        file.take(count).read_to_end(&mut out)?;
        Ok(out)
    }

    /// One sector, with zeros for what lies beyond the end of the file.
    pub(crate) fn sector(&self, number: u64) -> io::Result<[u8; 512]> {
        let mut out = [0u8; 512];
        let mut got = 0;
        while got < 512 {
            match self
                .file
                .read_at(&mut out[got..], number * 512 + got as u64)?
            {
                0 => break,
                n => got += n,
            }
        }
        Ok(out)
    }
}

/// A big-endian number of `width` bytes at `at`; bytes that are not there count as zero.
pub(crate) fn num(bytes: &[u8], at: usize, width: usize) -> u64 {
    let byte = |i| bytes.get(i).copied().unwrap_or(0);
    (at..at + width).fold(0, |n, i| n << 8 | u64::from(byte(i)))
}

/// `count` bytes at `at`, cut off at the end.
pub(crate) fn text(bytes: &[u8], at: usize, count: usize) -> &[u8] {
    let end = (at + count).min(bytes.len());
    bytes.get(at..end).unwrap_or_default()
}

/// One's complement of the byte sum, leaving out the four bytes at `skip`.
pub(crate) fn sum_without(bytes: &[u8], skip: Option<usize>) -> u64 {
    let mut total: u32 = 0;
    for (i, b) in bytes.iter().enumerate() {
        let skipped = skip.is_some_and(|s| i >= s && i < s + 4);
        if !skipped {
            total = total.wrapping_add(*b as u32);
        }
    }
    u64::from(!total)
}

/// Whether all bytes from `at` on for `count` are zero.
pub(crate) fn zero(bytes: &[u8], at: usize, count: usize) -> bool {
    text(bytes, at, count).iter().all(|b| *b == 0)
}

/// Whether bit `n`, counted from the top bit of byte 0, is set.
pub(crate) fn bit(map: &[u8], n: u64) -> bool {
    let byte = map.get((n / 8) as usize).copied().unwrap_or(0);
    byte & (1 << (7 - n % 8)) != 0
}

/// Rounds up to sectors, at least one.
pub(crate) fn sectors(bytes: u64) -> u64 {
    if bytes == 0 { 1 } else { bytes.div_ceil(512) }
}

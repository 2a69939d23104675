//! The content of a chain, one sector at a time, with nothing remembered.

use crate::check::{Report, Strictness, find_footer};
use crate::raw::{Raw, bit, num, sectors};
use std::fs::File;
use std::io::{self, Error};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

struct Layer {
    raw: Raw,
    kind: Kind,
}

enum Kind {
    /// Data from offset 0 on, so many bytes of it: a raw or fixed disk.
    Plain(u64),
    /// Place of the table, sectors per block, bytes a guest sees.
    Sparse {
        table: u64,
        per_block: u64,
        size: u64,
    },
}

/// A chain that is read slowly.
pub struct Flat {
    layers: Vec<Layer>,
    /// The size a guest sees, in bytes.
    pub size_bytes: u64,
}

/// Opens a chain, leaf first. The last layer is taken as raw if the one above it says so.
///
/// # Errors
/// Those of reading, and `InvalidData` if a layer is no VHD.
pub fn read_flat(chain: &[PathBuf]) -> io::Result<Flat> {
    let mut layers = Vec::new();
    let mut raw_next = false;
    for path in chain {
        let (layer, parent_is_raw) = open(path, raw_next)?;
        raw_next = parent_is_raw;
        layers.push(layer);
    }
    let size_bytes = match layers.first().map(|l| &l.kind) {
        None => 0,
        Some(Kind::Plain(size) | Kind::Sparse { size, .. }) => *size,
    };
    Ok(Flat { layers, size_bytes })
}

fn open(path: &Path, is_raw: bool) -> io::Result<(Layer, bool)> {
    let raw = Raw::open(path)?;
    if is_raw {
        let len = raw.len;
        return Ok((
            Layer {
                raw,
                kind: Kind::Plain(len),
            },
            false,
        ));
    }
    let footer = find_footer(&raw, Strictness::AfterCrash, &mut Report::default())?;
    let Some((footer, _)) = footer else {
        return Err(Error::other(format!("{} is no VHD", path.display())));
    };
    let size = num(&footer, 48, 8);
    if num(&footer, 60, 4) == 2 {
        return Ok((
            Layer {
                raw,
                kind: Kind::Plain(size),
            },
            false,
        ));
    }
    let header = raw.piece(num(&footer, 16, 8), 1024)?;
    let table = num(&header, 16, 8);
    let per_block = num(&header, 32, 4) / 512;
    if per_block == 0 {
        return Err(Error::other(format!("{} has empty blocks", path.display())));
    }
    let parent_is_raw = num(&footer, 60, 4) == 4 && header[40..56].iter().all(|b| *b == 0);
    Ok((
        Layer {
            raw,
            kind: Kind::Sparse {
                table,
                per_block,
                size,
            },
        },
        parent_is_raw,
    ))
}

impl Layer {
    /// The sector if this layer has it. A plain layer has all; what it ends before is zero.
    fn sector(&self, n: u64) -> io::Result<Option<[u8; 512]>> {
        match self.kind {
            Kind::Plain(size) if n * 512 < size => Ok(Some(self.raw.sector(n)?)),
            Kind::Plain(_) => Ok(Some([0; 512])),
            Kind::Sparse {
                table,
                per_block,
                size,
            } => {
                if n * 512 >= size {
                    return Ok(Some([0; 512]));
                }
                let slot = self.raw.piece(table + n / per_block * 4, 4)?;
                let entry = num(&slot, 0, 4);
                if entry == 0xFFFF_FFFF {
                    return Ok(None);
                }
                let inside = n % per_block;
                let bitmap = self.raw.sector(entry + inside / 4096)?;
                if !bit(&bitmap, inside % 4096) {
                    return Ok(None);
                }
                let bitmap_sectors = sectors(per_block.div_ceil(8));
                self.raw.sector(entry + bitmap_sectors + inside).map(Some)
            }
        }
    }
}

impl Flat {
    /// Sector `n` as a guest sees it.
    ///
    /// # Errors
    /// Those of reading.
    pub fn sector(&self, n: u64) -> io::Result<[u8; 512]> {
        for layer in &self.layers {
            if let Some(sector) = layer.sector(n)? {
                return Ok(sector);
            }
        }
        Ok([0; 512])
    }

    /// The whole content in memory.
    ///
    /// # Errors
    /// Those of reading.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        for n in 0..self.size_bytes / 512 {
            out.extend_from_slice(&self.sector(n)?);
        }
        Ok(out)
    }

    /// Writes the content into a new sparse file.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn write_to(&self, path: &Path) -> io::Result<()> {
        let out = File::create(path)?;
        out.set_len(self.size_bytes)?;
        for n in 0..self.size_bytes / 512 {
            let sector = self.sector(n)?;
            if sector != [0; 512] {
                out.write_all_at(&sector, n * 512)?;
            }
        }
        Ok(())
    }
}

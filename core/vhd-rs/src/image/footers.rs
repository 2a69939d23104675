//! Which footer counts: the one at the end, its 511-byte form, or the copy at offset 0.

use super::{Extent, last_sector};
use crate::footer::FOOTER_BYTES;
use crate::wire::SECTOR_BYTES;
use crate::{DiskType, Error, ErrorKind, Footer, ReadAt};

/// The footer that counts and what it was weighed against.
pub(super) struct Footers {
    pub(super) footer: Footer,
    /// Where the footer at the end is, if that one counts.
    pub(super) at_end: Option<u64>,
    pub(super) clean: bool,
}

impl Footers {
    pub(super) fn read(medium: &impl ReadAt, size: u64, extent: Extent) -> Result<Self, Error> {
        let (end, end_offset) = read_end(medium, size, extent)?;
        let primary = match end {
            Ok(footer) if footer.disk_type == DiskType::Fixed => {
                return Ok(Self {
                    footer,
                    at_end: Some(end_offset),
                    clean: true,
                });
            }
            Err(e) if matches!(e.kind(), ErrorKind::Poisoned | ErrorKind::Unsupported) => {
                return Err(e);
            }
            other => other,
        };
        let copy = read_copy(medium, size)?;
        match (primary, copy) {
            (_, Err(e)) if e.kind() == ErrorKind::Poisoned => Err(e),
            (Ok(mut footer), Ok(copy)) if footer.same_image(&copy) => {
                let clean = footer.to_bytes() == copy.to_bytes();
                if footer.hidden_lives_in_copy() {
                    footer.hidden = copy.hidden;
                }
                Ok(Self {
                    footer,
                    at_end: Some(end_offset),
                    clean,
                })
            }
            (Ok(footer), Err(_)) => Ok(Self {
                footer,
                at_end: Some(end_offset),
                clean: false,
            }),
            // The last sector of an unclosed file may be payload that looks like a footer, while
            // offset 0 of a sparse image never is.
            (_, Ok(copy)) => Ok(Self {
                footer: copy,
                at_end: None,
                clean: false,
            }),
            (Err(primary), Err(copy)) => Err(if primary.kind() == ErrorKind::NotVhd {
                copy
            } else {
                primary
            }),
        }
    }
}

/// The footer at the end, also in its 511-byte form of old Virtual PC versions, and its offset.
fn read_end(
    medium: &impl ReadAt,
    size: u64,
    extent: Extent,
) -> Result<(Result<Footer, Error>, u64), Error> {
    let offset = match extent {
        Extent::Grows => size.saturating_sub(SECTOR_BYTES),
        Extent::Reserved => last_sector(size),
    };
    if size < SECTOR_BYTES {
        return Ok((read_copy(medium, size)?, 0));
    }
    let mut sector = [0; FOOTER_BYTES];
    read(medium, "footer", offset, &mut sector)?;
    let footer = Footer::parse(&sector);
    if footer.is_ok() || extent == Extent::Reserved || size % SECTOR_BYTES != 511 {
        return Ok((footer, offset));
    }
    sector.copy_within(1.., 0);
    sector[FOOTER_BYTES - 1] = 0;
    Ok((Footer::parse(&sector).or(footer), offset + 1))
}

/// The copy at offset 0; it counts only if it is of a sparse disk, as a fixed one has payload there.
fn read_copy(medium: &impl ReadAt, size: u64) -> Result<Result<Footer, Error>, Error> {
    let rule = "a VHD has a footer of 512 bytes";
    if size < SECTOR_BYTES {
        return Ok(Err(Error::new(
            ErrorKind::NotVhd,
            "container size",
            size,
            rule,
        )));
    }
    let mut sector = [0; FOOTER_BYTES];
    read(medium, "footer copy", 0, &mut sector)?;
    Ok(
        Footer::parse(&sector).and_then(|copy| match copy.disk_type {
            DiskType::Fixed => {
                let rule = "a fixed disk has its footer at the end only";
                Err(Error::new(
                    ErrorKind::NotVhd,
                    "footer copy.type",
                    "2 (fixed)",
                    rule,
                ))
            }
            DiskType::Dynamic | DiskType::Differencing => Ok(copy),
        }),
    )
}

pub(super) fn read(
    medium: &impl ReadAt,
    region: &'static str,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), Error> {
    medium
        .read_exact_at(offset, buffer)
        .map_err(|e| Error::io(region, offset, e))
}

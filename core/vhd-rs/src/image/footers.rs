//! Which footer counts: the one at the end, its 511-byte form, or the copy at offset 0.

use super::{Allow, Extent, last_sector};
use crate::footer::FOOTER_BYTES;
use crate::wire::SECTOR_BYTES;
use crate::{DiskType, Error, ErrorKind, Footer, ReadAt};
use uuid::Uuid;

/// The footer that counts and what it was weighed against.
pub(super) struct Footers {
    pub(super) footer: Footer,
    /// Where the footer at the end is, if that one counts.
    pub(super) at_end: Option<u64>,
    pub(super) clean: bool,
    pub(super) poisoned: bool,
}

/// A footer that was read, and whether it says that the image is disabled.
type Found = (Footer, bool);

impl Footers {
    pub(super) fn read(
        medium: &impl ReadAt,
        size: u64,
        extent: Extent,
        allow: Allow,
    ) -> Result<Self, Error> {
        if allow.footer_copy {
            let (footer, poisoned) = read_copy(medium, size, allow)??;
            return Ok(Self {
                footer,
                at_end: None,
                clean: false,
                poisoned,
            });
        }
        let end = read_end(medium, size, extent, allow)?;
        if let Ok((footer, poisoned)) = &end.found
            && footer.disk_type == DiskType::Fixed
        {
            return Ok(Self {
                footer: footer.clone(),
                at_end: Some(end.offset),
                clean: !poisoned,
                poisoned: *poisoned,
            });
        }
        let copy = read_copy(medium, size, allow)?;
        match (end.found, copy) {
            // A footer of this image that says it must not be opened; another image's is payload.
            (Err(e), copy)
                if matches!(e.kind(), ErrorKind::Poisoned | ErrorKind::Unsupported)
                    && copy.as_ref().is_ok_and(|(copy, _)| copy.uuid == end.uuid) =>
            {
                Err(e)
            }
            (_, Err(e)) if e.kind() == ErrorKind::Poisoned => Err(e),
            (Ok((mut footer, poison)), Ok((copy, poison_copy))) if footer.uuid == copy.uuid => {
                let poisoned = poison || poison_copy;
                let clean = footer.to_bytes() == copy.to_bytes() && !poisoned;
                if footer.hidden_lives_in_copy() {
                    footer.hidden = copy.hidden;
                }
                Ok(Self {
                    footer,
                    at_end: Some(end.offset),
                    clean,
                    poisoned,
                })
            }
            (Ok((footer, poisoned)), Err(_)) => Ok(Self {
                footer,
                at_end: Some(end.offset),
                clean: false,
                poisoned,
            }),
            // The last sector of an unclosed file may be payload that looks like a footer, while
            // offset 0 of a sparse image never is.
            (_, Ok((footer, poisoned))) => Ok(Self {
                footer,
                at_end: None,
                clean: false,
                poisoned,
            }),
            (Err(primary), Err(copy)) => Err(if primary.kind() == ErrorKind::NotVhd {
                copy
            } else {
                primary
            }),
        }
    }
}

/// What is at the end of a file.
struct End {
    found: Result<Found, Error>,
    offset: u64,
    /// Whose footer it is, if it is one.
    uuid: Uuid,
}

/// The footer at the end, also in its 511-byte form of old Virtual PC versions.
fn read_end(medium: &impl ReadAt, size: u64, extent: Extent, allow: Allow) -> Result<End, Error> {
    let offset = match extent {
        Extent::Grows => size.saturating_sub(SECTOR_BYTES),
        Extent::Reserved => last_sector(size),
    };
    if size < SECTOR_BYTES {
        let found = read_copy(medium, size, allow)?;
        let uuid = Uuid::nil();
        return Ok(End {
            found,
            offset: 0,
            uuid,
        });
    }
    let mut sector = [0; FOOTER_BYTES];
    read(medium, "footer", offset, &mut sector)?;
    let mut end = End {
        found: parse(&sector, allow),
        offset,
        uuid: Footer::uuid_in(&sector),
    };
    if end.found.is_ok() || extent == Extent::Reserved || size % SECTOR_BYTES != 511 {
        return Ok(end);
    }
    sector.copy_within(1.., 0);
    sector[FOOTER_BYTES - 1] = 0;
    end.found = parse(&sector, allow).or(end.found);
    end.offset += 1;
    end.uuid = Footer::uuid_in(&sector);
    Ok(end)
}

/// The copy at offset 0; it counts only if it is of a sparse disk, as a fixed one has payload there.
fn read_copy(medium: &impl ReadAt, size: u64, allow: Allow) -> Result<Result<Found, Error>, Error> {
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
        parse(&sector, allow).and_then(|copy| match copy.0.disk_type {
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

fn parse(sector: &[u8; FOOTER_BYTES], allow: Allow) -> Result<Found, Error> {
    if !allow.poisoned {
        return Footer::parse(sector).map(|footer| (footer, false));
    }
    let found = Footer::parse_any(sector)?;
    found.0.check()?;
    Ok(found)
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

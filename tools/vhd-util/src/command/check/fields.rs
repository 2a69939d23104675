//! What the bytes of footers and header must be beyond what opening an image needs: reserved
//! areas, flags, times, that nothing is said twice.

use super::super::create::now;
use super::{Check, Findings, end_sectors};
use crate::{Error, Result};
use std::fs::File;
use std::path::Path;
use vhd_rs::{DiskType, Extent, Footer, Geometry, HEADER_BYTES, Header, LocatorCode, ReadAt};

/// How far clocks of hosts may differ.
const CLOCK_TOLERANCE_S: u32 = 1800;

/// Checks the fields of footers and header.
pub(super) fn check(
    file: &File,
    path: &Path,
    extent: Extent,
    options: &Check,
    found: &mut Findings,
) -> Result<()> {
    let io = |e| Error::io(format!("cannot read {}", path.display()), e);
    let size = file.size_bytes().map_err(io)?;
    if size < 512 {
        found.add(format!("{size} bytes are no VHD"));
        return Ok(());
    }
    let mut copy = [0; 512];
    ReadAt::read_exact_at(file, 0, &mut copy).map_err(io)?;
    let ends = end_sectors(file, size, extent).map_err(io)?;
    let end = ends.iter().find(|sector| Footer::parse(sector).is_ok());
    let end = end.or(ends.first()).unwrap_or(&copy);
    let primary = if options.ignore_footer { &copy } else { end };
    let footer = match Footer::parse(primary) {
        Ok(footer) => footer,
        Err(error) => {
            let which = if options.ignore_footer {
                "backup"
            } else {
                "primary"
            };
            found.add(format!("{which} footer invalid: {error}"));
            return Ok(());
        }
    };
    check_footer(primary, &footer, options, found);
    let Some(offset) = footer.header_offset else {
        return Ok(());
    };
    found.want(primary == &copy, || {
        "primary and backup footer differ".into()
    });
    let mut header = [0; HEADER_BYTES];
    if ReadAt::read_exact_at(file, offset, &mut header).is_ok() {
        check_header(&header, &footer, options, found);
    }
    Ok(())
}

fn check_footer(sector: &[u8; 512], footer: &Footer, options: &Check, found: &mut Findings) {
    let features = footer.features;
    found.want(features & !1 == 2, || {
        format!("footer.features is {features:#x}")
    });
    found.want(!footer.uuid.is_nil(), || "footer.uuid is nil".into());
    let hidden = footer.hidden;
    found.want(hidden < 2, || format!("footer.hidden is {hidden}"));
    found.want(is_zero(sector, 86..512), || {
        "footer.reserved is not zero".into()
    });
    let number = |g: Geometry| {
        u32::from(g.cylinders) << 16 | u32::from(g.heads) << 8 | u32::from(g.sectors_per_track)
    };
    let largest = Geometry::of_size(footer.virtual_bytes);
    found.want(number(footer.geometry) <= number(largest), || {
        format!(
            "footer.geometry is {:?}, more than {largest:?}",
            footer.geometry
        )
    });
    check_time("footer.timestamp", footer.created.0, options, found);
}

fn check_header(
    bytes: &[u8; HEADER_BYTES],
    footer: &Footer,
    options: &Check,
    found: &mut Findings,
) {
    // What makes it unreadable is told by opening the image.
    let Ok(header) = Header::parse(bytes) else {
        return;
    };
    found.want(is_zero(bytes, 60..64) && is_zero(bytes, 768..1024), || {
        "header.reserved is not zero".into()
    });
    if footer.disk_type != DiskType::Differencing {
        let orphan = is_zero(bytes, 40..60) && is_zero(bytes, 64..768);
        found.want(orphan, || "a disk without parent names one".into());
        return;
    }
    let time = header.parent_modified.0;
    check_time("header.parent_timestamp", time, options, found);
    for (index, entry) in header.locators.iter().enumerate() {
        let raw = 576 + index * 24..576 + (index + 1) * 24;
        if entry.code == LocatorCode::None {
            found.want(is_zero(bytes, raw), || {
                format!("header.locator[{index}] is not used and not zero")
            });
            continue;
        }
        let mut earlier = header.locators.iter().take(index);
        let again = earlier.any(|other| other.code == entry.code);
        found.want(!again, || {
            format!("header.locator[{index}] is a second {:?}", entry.code)
        });
    }
}

fn check_time(field: &str, seconds: u32, options: &Check, found: &mut Findings) {
    let limit = now().0.saturating_add(CLOCK_TOLERANCE_S);
    found.want(options.ignore_timestamps || seconds <= limit, || {
        format!("{field} is in the future: {seconds} seconds since 2000")
    });
}

fn is_zero(bytes: &[u8], range: std::ops::Range<usize>) -> bool {
    bytes
        .get(range)
        .is_some_and(|bytes| bytes.iter().all(|&byte| byte == 0))
}

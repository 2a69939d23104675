//! What a request asks (VIRTIO 1.2, 5.2.6).
//!
//! ```text
//! u32 type, u32 reserved, u64 sector, then data or ranges      for us to read
//! data, u8 status                                              for us to write
//! ```
//! How the guest cuts that into descriptors is its own affair.

use super::chain::{Chain, len_bytes, take_front, take_last_byte};
use super::config::{feature, is_range};
use super::memory::Memory;
use super::queue::Broken;
use super::{Export, SERIAL_BYTES};
use crate::engine::REQUEST_BYTES_MAX;
use units::SECTOR_BYTES;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;

/// In a range's flags: the space may be given back.
const RANGE_UNMAP: u32 = 1;

/// The last byte of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// A request that can be done, or the status of one that cannot. Offsets and lengths are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Read {
        offset: u64,
        length: u32,
    },
    Write {
        offset: u64,
        length: u32,
    },
    Flush,
    Trim {
        offset: u64,
        length: u32,
    },
    WriteZeroes {
        offset: u64,
        length: u32,
        may_trim: bool,
    },
    Serial,
    Refused(Status),
}

/// Takes header and status off a chain, whose segments are the data after that, and decodes it. The
/// second part is where the status goes.
///
/// # Errors
/// There is no header, or no place for a status: nobody could be told.
pub(super) fn decode(
    memory: &Memory,
    chain: &mut Chain,
    export: &Export,
    features: u64,
) -> Result<(Asked, u64), Broken> {
    let mut header = [0; HEADER_BYTES];
    take_front(memory, &mut chain.readable, &mut header)?;
    let status = take_last_byte(memory, &mut chain.writable)?;
    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let kind = u32::from_le_bytes([a, b, c, d]);
    let sector = u64::from_le_bytes(sector);
    let asked = ask(memory, chain, export, features, kind, sector);
    Ok((asked.unwrap_or_else(Asked::Refused), status))
}

fn ask(
    memory: &Memory,
    chain: &mut Chain,
    export: &Export,
    features: u64,
    kind: u32,
    sector: u64,
) -> Result<Asked, Status> {
    match kind {
        TYPE_IN => {
            let length = data_bytes(len_bytes(&chain.writable))?;
            let offset = inside(export, sector, u64::from(length))?;
            Ok(Asked::Read { offset, length })
        }
        TYPE_OUT => {
            let length = data_bytes(len_bytes(&chain.readable))?;
            let offset = inside(export, sector, u64::from(length))?;
            changeable(export)?;
            Ok(Asked::Write { offset, length })
        }
        TYPE_FLUSH => Ok(Asked::Flush),
        TYPE_GET_ID if len_bytes(&chain.writable) >= SERIAL_BYTES as u64 => Ok(Asked::Serial),
        TYPE_GET_ID => Err(Status::IoError),
        TYPE_DISCARD | TYPE_WRITE_ZEROES => {
            let needs = match kind {
                TYPE_DISCARD => feature::DISCARD,
                _ => feature::WRITE_ZEROES,
            };
            if features & needs == 0 {
                return Err(Status::Unsupported);
            }
            changeable(export)?;
            range(memory, chain, export, kind)
        }
        _ => Err(Status::Unsupported),
    }
}

/// The one range of a discard or write-zeroes.
fn range(memory: &Memory, chain: &mut Chain, export: &Export, kind: u32) -> Result<Asked, Status> {
    if len_bytes(&chain.readable) != RANGE_BYTES as u64 {
        return Err(Status::IoError);
    }
    let mut raw = [0; RANGE_BYTES];
    take_front(memory, &mut chain.readable, &mut raw).map_err(|_| Status::IoError)?;
    let [a, b, c, d, e, f, g, h, s, t, u, v, flags @ ..] = raw;
    let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let sectors = u32::from_le_bytes([s, t, u, v]);
    let flags = u32::from_le_bytes(flags);
    let unmap = flags & RANGE_UNMAP != 0;
    if flags & !RANGE_UNMAP != 0 || (unmap && kind == TYPE_DISCARD) {
        return Err(Status::Unsupported);
    }
    if !is_range(sectors) {
        return Err(Status::IoError);
    }
    let bytes = u64::from(sectors).saturating_mul(SECTOR_BYTES);
    let offset = inside(export, sector, bytes)?;
    // `is_range` keeps it below 2^31.
    let length = u32::try_from(bytes).map_err(|_| Status::IoError)?;
    Ok(match kind {
        TYPE_DISCARD => Asked::Trim { offset, length },
        _ => Asked::WriteZeroes {
            offset,
            length,
            may_trim: unmap,
        },
    })
}

fn changeable(export: &Export) -> Result<(), Status> {
    match export.read_only {
        true => Err(Status::IoError),
        false => Ok(()),
    }
}

/// Whole sectors, and no more of them than the engine takes at once.
fn data_bytes(bytes: u64) -> Result<u32, Status> {
    let fits =
        bytes > 0 && bytes.is_multiple_of(SECTOR_BYTES) && bytes <= u64::from(REQUEST_BYTES_MAX);
    let bytes = u32::try_from(bytes).ok().filter(|_| fits);
    bytes.ok_or(Status::IoError)
}

/// The offset of a range inside the disk.
fn inside(export: &Export, sector: u64, bytes: u64) -> Result<u64, Status> {
    let offset = sector.checked_mul(SECTOR_BYTES);
    let whole = export.size_bytes / SECTOR_BYTES * SECTOR_BYTES;
    offset
        .filter(|offset| offset.checked_add(bytes).is_some_and(|end| end <= whole))
        .ok_or(Status::IoError)
}

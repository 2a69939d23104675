//! A request's header, and whether the export can do what it asks.

use super::Export;
use crate::frontend::{Errno, Work};
use datapath::nbd::wire;
use units::SECTOR_BYTES;

/// Largest read or write, as advertised.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;

/// Smallest unit, as advertised: requests off this grid fail.
pub(super) const MINIMUM_BYTES: u32 = SECTOR_BYTES as u32;

/// Unit at which the data path does not have to read before it writes.
pub(super) const PREFERRED_BYTES: u32 = 4096;

/// A header's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// What the handshake settled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) no_zeroes: bool,
    pub(super) structured: bool,
    pub(super) allocation: bool,
}

impl Header {
    /// Splits a header; `None` when the magic is wrong and nothing after it can be trusted.
    pub(super) fn parse(bytes: &[u8; wire::REQUEST_BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (flags, rest) = rest.split_first_chunk()?;
        let (command, rest) = rest.split_first_chunk()?;
        let (cookie, rest) = rest.split_first_chunk()?;
        let (offset, length) = rest.split_first_chunk()?;
        (u32::from_be_bytes(*magic) == wire::REQUEST_MAGIC).then_some(())?;
        Some(Self {
            flags: u16::from_be_bytes(*flags),
            command: u16::from_be_bytes(*command),
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            length: u32::from_be_bytes(length.try_into().ok()?),
        })
    }

    /// Bytes that follow the header on the stream, whatever else is wrong with it.
    pub(super) fn payload_bytes(&self) -> u32 {
        if self.command == wire::CMD_WRITE {
            self.length
        } else {
            0
        }
    }

    /// Memory the request needs until its reply is sent.
    pub(super) fn cost_bytes(&self) -> usize {
        let carries = [wire::CMD_READ, wire::CMD_WRITE].contains(&self.command);
        if carries {
            self.length.min(REQUEST_BYTES_MAX) as usize
        } else {
            0
        }
    }

    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Says why the request must fail, if it must.
    pub(super) fn check(&self, export: &Export, agreed: Agreed) -> Result<(), Errno> {
        let writes = [wire::CMD_WRITE, wire::CMD_TRIM, wire::CMD_WRITE_ZEROES];
        if self.flags & !self.allowed_flags(agreed)? != 0 {
            return Err(Errno::Invalid);
        }
        if self.command == wire::CMD_FLUSH {
            let plain = self.offset == 0 && self.length == 0;
            return if plain { Ok(()) } else { Err(Errno::Invalid) };
        }
        if self.command == wire::CMD_BLOCK_STATUS && !agreed.allocation {
            return Err(Errno::Invalid);
        }
        if writes.contains(&self.command) && export.read_only {
            return Err(Errno::Permission);
        }
        self.check_range(export.size_bytes)
    }

    fn check_range(&self, size_bytes: u64) -> Result<(), Errno> {
        let length = u64::from(self.length);
        let unit = u64::from(MINIMUM_BYTES);
        let aligned = self.offset.is_multiple_of(unit) && length.is_multiple_of(unit);
        let too_large = self.cost_bytes() > 0 && self.length > REQUEST_BYTES_MAX;
        let end = self.offset.checked_add(length).ok_or(Errno::Invalid)?;
        if length == 0 || !aligned || too_large {
            return Err(Errno::Invalid);
        }
        if end > size_bytes {
            // The specification wants ENOSPC for writes beyond the end and EINVAL for the rest.
            let grows = [wire::CMD_WRITE, wire::CMD_WRITE_ZEROES].contains(&self.command);
            return Err(if grows {
                Errno::NoSpace
            } else {
                Errno::Invalid
            });
        }
        Ok(())
    }

    /// Flags the command may have; an unknown command has no valid form.
    fn allowed_flags(&self, agreed: Agreed) -> Result<u16, Errno> {
        // FUA is allowed on every command and means nothing on those that do not write.
        let own = match self.command {
            wire::CMD_READ if agreed.structured => wire::CMD_FLAG_DF,
            wire::CMD_READ | wire::CMD_WRITE | wire::CMD_FLUSH | wire::CMD_TRIM => 0,
            wire::CMD_WRITE_ZEROES => wire::CMD_FLAG_NO_HOLE,
            wire::CMD_BLOCK_STATUS => wire::CMD_FLAG_REQ_ONE,
            _ => return Err(Errno::Invalid),
        };
        Ok(own | wire::CMD_FLAG_FUA)
    }

    /// The work of a request without payload that passed [`Header::check`].
    pub(super) fn work(&self) -> Option<Work> {
        let Self { offset, length, .. } = *self;
        let fua = self.has(wire::CMD_FLAG_FUA);
        Some(match self.command {
            wire::CMD_READ => Work::Read { offset, length },
            wire::CMD_FLUSH => Work::Flush,
            wire::CMD_TRIM => Work::Trim {
                offset,
                length,
                fua,
            },
            wire::CMD_WRITE_ZEROES => Work::WriteZeroes {
                offset,
                length,
                fua,
                no_hole: self.has(wire::CMD_FLAG_NO_HOLE),
            },
            wire::CMD_BLOCK_STATUS => Work::BlockStatus {
                offset,
                length,
                one: self.has(wire::CMD_FLAG_REQ_ONE),
            },
            _ => return None,
        })
    }
}

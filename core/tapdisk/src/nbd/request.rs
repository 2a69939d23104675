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

/// Most of a trim or write-zeroes that is one job, 512 blocks; the rest follows as further jobs, so
/// that a request of 2^63 bytes costs no more at once than a small one.
pub(super) const CHANGE_BYTES_MAX: u64 = 1 << 30;

/// Most that one block status looks at, 32768 blocks; the client asks again for the rest.
const STATUS_BYTES_MAX: u64 = 64 << 30;

/// How replies travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Style {
    /// A code, and the data of a read.
    #[default]
    Simple,
    /// In chunks where there is something to say.
    Structured,
    /// Always in chunks, with 64 bits of length in requests and replies.
    Extended,
}

/// What the handshake settled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Agreed {
    /// The client knows options besides `EXPORT_NAME`.
    pub(super) fixed: bool,
    pub(super) no_zeroes: bool,
    /// Everything travels under TLS.
    pub(super) secured: bool,
    pub(super) style: Style,
    pub(super) allocation: bool,
}

/// A header's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// Bytes that follow the header on the stream, whatever else is wrong with it.
    pub(super) payload_bytes: u64,
}

impl Header {
    /// How long a header is.
    pub(super) fn bytes(style: Style) -> usize {
        match style {
            Style::Extended => wire::EXTENDED_REQUEST_BYTES,
            _ => wire::REQUEST_BYTES,
        }
    }

    /// Splits a header. `None` when there is not all of it, an error when the magic is wrong and
    /// nothing after it can be trusted.
    pub(super) fn parse(bytes: &[u8], style: Style) -> Option<Result<Self, WrongMagic>> {
        let expected = match style {
            Style::Extended => wire::EXTENDED_REQUEST_MAGIC,
            _ => wire::REQUEST_MAGIC,
        };
        let bytes = bytes.get(..Self::bytes(style))?;
        let (magic, rest) = bytes.split_first_chunk()?;
        let (flags, rest) = rest.split_first_chunk()?;
        let (command, rest) = rest.split_first_chunk()?;
        let (cookie, rest) = rest.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        if u32::from_be_bytes(*magic) != expected {
            return Some(Err(WrongMagic));
        }
        let length = match style {
            Style::Extended => u64::from_be_bytes(*rest.first_chunk()?),
            _ => u64::from(u32::from_be_bytes(*rest.first_chunk()?)),
        };
        let (flags, command) = (u16::from_be_bytes(*flags), u16::from_be_bytes(*command));
        let has_payload = match style {
            Style::Extended => flags & wire::CMD_FLAG_PAYLOAD_LEN != 0,
            _ => command == wire::CMD_WRITE,
        };
        let header = Self {
            flags,
            command,
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            length,
            payload_bytes: if has_payload { length } else { 0 },
        };
        Some(Ok(header))
    }

    /// Memory the request needs until its reply is sent.
    pub(super) fn cost_bytes(&self) -> usize {
        let carries = [wire::CMD_READ, wire::CMD_WRITE, wire::CMD_CACHE].contains(&self.command);
        if carries {
            self.length.min(u64::from(REQUEST_BYTES_MAX)) as usize
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
        if self.flags & !self.allowed_flags(agreed.style)? != 0 {
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
        // With extended headers a length without the flag promises no bytes to write.
        if self.command == wire::CMD_WRITE && self.payload_bytes != self.length {
            return Err(Errno::Invalid);
        }
        self.check_range(export.size_bytes)
    }

    fn check_range(&self, size_bytes: u64) -> Result<(), Errno> {
        let unit = u64::from(MINIMUM_BYTES);
        let aligned = self.offset.is_multiple_of(unit) && self.length.is_multiple_of(unit);
        let too_large = self.cost_bytes() > 0 && self.length > u64::from(REQUEST_BYTES_MAX);
        let end = self.offset.checked_add(self.length).ok_or(Errno::Invalid)?;
        if self.length == 0 || !aligned || too_large {
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
    fn allowed_flags(&self, style: Style) -> Result<u16, Errno> {
        // FUA is allowed on every command and means nothing on those that do not write.
        let own = match self.command {
            wire::CMD_READ if style >= Style::Structured => wire::CMD_FLAG_DF,
            wire::CMD_WRITE if style == Style::Extended => wire::CMD_FLAG_PAYLOAD_LEN,
            wire::CMD_READ | wire::CMD_WRITE | wire::CMD_FLUSH | wire::CMD_TRIM => 0,
            wire::CMD_CACHE => 0,
            wire::CMD_WRITE_ZEROES => wire::CMD_FLAG_NO_HOLE | wire::CMD_FLAG_FAST_ZERO,
            wire::CMD_BLOCK_STATUS => wire::CMD_FLAG_REQ_ONE,
            _ => return Err(Errno::Invalid),
        };
        Ok(own | wire::CMD_FLAG_FUA)
    }

    /// Whether the request is done in several jobs, and how much one more of them does after
    /// `worked` bytes. Zero when nothing is left.
    pub(super) fn piece_bytes(&self, worked: u64) -> u64 {
        let left = self.length.saturating_sub(worked);
        match self.command {
            wire::CMD_TRIM | wire::CMD_WRITE_ZEROES => left.min(CHANGE_BYTES_MAX),
            _ => left,
        }
    }

    /// The work of a request without payload that passed [`Header::check`], after `worked` bytes of
    /// it are done.
    pub(super) fn work(&self, worked: u64) -> Option<Work> {
        let offset = self.offset.checked_add(worked)?;
        let length = self.piece_bytes(worked);
        let fua = self.has(wire::CMD_FLAG_FUA);
        Some(match self.command {
            wire::CMD_READ | wire::CMD_CACHE => Work::Read {
                offset,
                length: u32::try_from(length).ok()?,
            },
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
                // Asked once, about everything, before the first byte changes.
                fast_bytes: if self.has(wire::CMD_FLAG_FAST_ZERO) && worked == 0 {
                    self.length
                } else {
                    0
                },
            },
            wire::CMD_BLOCK_STATUS => Work::BlockStatus {
                offset,
                length: length.min(STATUS_BYTES_MAX),
                one: self.has(wire::CMD_FLAG_REQ_ONE),
            },
            _ => return None,
        })
    }
}

/// The stream is out of step.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WrongMagic;

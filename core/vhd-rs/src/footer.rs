//! The footer: the 512 bytes every VHD has at its end, and dynamic ones again at offset 0.
//! Parsing judges the bytes alone; which of several footers counts is [`crate::Image`]'s business.

use crate::wire::{bytes_at, checksum_without, put, u32_at, u64_at, uuid_at};
use crate::{Error, ErrorKind, Geometry, VIRTUAL_BYTES_MAX};
use uuid::Uuid;

/// Bytes in a footer.
pub const FOOTER_BYTES: usize = 512;

/// `data_offset` of a fixed disk: there is no header.
const NO_HEADER: u64 = u64::MAX;
const COOKIE: &[u8; 8] = b"conectix";
const COOKIE_POISONED: &[u8; 8] = b"v_poison";
const FEATURES_RESERVED: u32 = 2;
const FORMAT_VERSION: u32 = 0x0001_0000;
const CHECKSUM_AT: usize = 64;
const HIDDEN_AT: usize = 85;

/// What sort of disk a VHD is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskType {
    /// Data from offset 0, a footer after it, nothing else.
    Fixed,
    /// Blocks allocated as they are written; what is not there is zero.
    Dynamic,
    /// Blocks allocated as they are written; what is not there is the parent's.
    Differencing,
}

/// Seconds since 2000-01-01 00:00 UTC, the epoch of every time in a VHD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u32);

impl Timestamp {
    const EPOCH_UNIX_S: i64 = 946_684_800;

    /// Converts from seconds since the Unix epoch; times outside the format's range become its
    /// first or last second.
    pub fn from_unix_s(unix_s: i64) -> Self {
        let seconds = unix_s
            .saturating_sub(Self::EPOCH_UNIX_S)
            .clamp(0, i64::from(u32::MAX));
        Self(seconds as u32)
    }

    /// Seconds since the Unix epoch.
    pub fn unix_s(self) -> i64 {
        i64::from(self.0) + Self::EPOCH_UNIX_S
    }
}

/// Which program wrote an image, and in which version of its habits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Creator {
    /// Four bytes such as `tap\0`, `qem2`, `win `.
    pub application: [u8; 4],
    /// Major version in the upper half, minor in the lower.
    pub version: u32,
    /// Host system; 0 for tap.
    pub os: u32,
}

impl Creator {
    /// What this crate writes: the conventions of XenServer's current tools, which it follows.
    pub const TAP_1_3: Self = Self {
        application: *b"tap\0",
        version: 0x0001_0003,
        os: 0,
    };

    /// Whether the image follows the conventions of XenServer's tools. They compare three bytes.
    pub fn is_tap(&self) -> bool {
        self.application.starts_with(b"tap")
    }

    /// Little-endian bitmaps (0.1) and versions from the future are refused; other creators are
    /// not version-checked.
    fn check_version(&self) -> Result<(), Error> {
        let refused = self.is_tap() && (self.version == 1 || self.version > Self::TAP_1_3.version);
        if !refused {
            return Ok(());
        }
        let value = format!("{:#010x}", self.version);
        let rule = "tap images are handled from version 0x00010001 to 0x00010003";
        Err(Error::new(
            ErrorKind::Unsupported,
            "footer.creator_version",
            value,
            rule,
        ))
    }

    /// Versions whose writers set `hidden` without renewing the checksum.
    fn forgets_hidden_in_checksum(&self) -> bool {
        self.is_tap() && matches!(self.version, 0x0000_0001 | 0x0001_0001)
    }
}

/// A footer.
///
/// The reserved area is not kept: writing a footer back normalises it to zeros, as checkers want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// Bit 1 is always set; bit 0 means "temporary".
    pub features: u32,
    /// Byte offset of the sparse header; `None` for fixed disks.
    pub header_offset: Option<u64>,
    /// When the image was made.
    pub created: Timestamp,
    /// Which program made it.
    pub creator: Creator,
    /// Size in bytes at creation.
    pub original_bytes: u64,
    /// The size a guest sees, in bytes.
    pub virtual_bytes: u64,
    /// Stored for show.
    pub geometry: Geometry,
    /// What sort of disk it is.
    pub disk_type: DiskType,
    /// The image's own id.
    pub uuid: Uuid,
    /// Non-zero when the disk belongs to a suspended Virtual PC machine.
    pub saved_state: u8,
    /// XenServer's mark of inner nodes: 0 or 1, though tools may set other values.
    pub hidden: u8,
}

impl Footer {
    /// Parses and validates a footer.
    ///
    /// # Errors
    /// `NotVhd` for another cookie, `Checksum`, `Poisoned` for a valid footer of a disabled image,
    /// `Unsupported` for versions, `Corrupt` for type, size and offsets.
    ///
    /// # Source
    /// VHD 1.0, "Hard Disk Footer Format"; `hidden` at byte 85 is XenServer's.
    pub fn parse(sector: &[u8; FOOTER_BYTES]) -> Result<Self, Error> {
        let (footer, poisoned) = Self::parse_any(sector)?;
        if poisoned {
            let rule = "the image is disabled by an unfinished resize";
            return Err(Error::new(
                ErrorKind::Poisoned,
                "footer.cookie",
                "\"v_poison\"",
                rule,
            ));
        }
        footer.check()?;
        Ok(footer)
    }

    /// The fields of a footer, and whether it says that the image is disabled. Version and sizes
    /// are not judged.
    pub(crate) fn parse_any(sector: &[u8; FOOTER_BYTES]) -> Result<(Self, bool), Error> {
        let cookie: [u8; 8] = bytes_at(sector, 0);
        if &cookie != COOKIE && &cookie != COOKIE_POISONED {
            let value = format!("\"{}\"", cookie.escape_ascii());
            return Err(Error::new(
                ErrorKind::NotVhd,
                "footer.cookie",
                value,
                "must be \"conectix\"",
            ));
        }
        Ok((Self::parse_fields(sector)?, &cookie == COOKIE_POISONED))
    }

    /// Judges what [`Footer::parse`] judges beyond the bytes themselves.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.creator.check_version()?;
        self.check_sizes()
    }

    fn parse_fields(sector: &[u8; FOOTER_BYTES]) -> Result<Self, Error> {
        let creator = Creator {
            application: bytes_at(sector, 28),
            version: u32_at(sector, 32),
            os: u32_at(sector, 36),
        };
        check_sum(sector, &creator)?;
        let format_version = u32_at(sector, 12);
        if format_version != FORMAT_VERSION {
            let value = format!("{format_version:#010x}");
            let rule = "must be 0x00010000";
            return Err(Error::new(
                ErrorKind::Unsupported,
                "footer.ff_version",
                value,
                rule,
            ));
        }
        let disk_type = match u32_at(sector, 60) {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => {
                let rule = "must be 2 (fixed), 3 (dynamic) or 4 (differencing)";
                return Err(Error::corrupt("footer.type", other, rule));
            }
        };
        let data_offset = u64_at(sector, 16);
        Ok(Self {
            features: u32_at(sector, 8),
            header_offset: (disk_type != DiskType::Fixed).then_some(data_offset),
            created: Timestamp(u32_at(sector, 24)),
            creator,
            original_bytes: u64_at(sector, 40),
            virtual_bytes: u64_at(sector, 48),
            geometry: Geometry::from_bytes(bytes_at(sector, 56)),
            disk_type,
            uuid: uuid_at(sector, 68),
            saved_state: sector[84],
            hidden: sector[HIDDEN_AT],
        })
    }

    fn check_sizes(&self) -> Result<(), Error> {
        let size = self.virtual_bytes;
        if size == 0 || !size.is_multiple_of(512) {
            let rule = "must be a multiple of 512 above zero";
            return Err(Error::corrupt("footer.curr_size", size, rule));
        }
        if self.disk_type != DiskType::Fixed && size > VIRTUAL_BYTES_MAX {
            let rule = format!("sparse images are handled up to {VIRTUAL_BYTES_MAX} bytes");
            return Err(Error::new(
                ErrorKind::Unsupported,
                "footer.curr_size",
                size,
                rule,
            ));
        }
        if let Some(offset) = self.header_offset
            && (offset < 512 || !offset.is_multiple_of(512))
        {
            let rule = "must be a multiple of 512 after the footer's copy";
            return Err(Error::corrupt("footer.data_offset", offset, rule));
        }
        Ok(())
    }

    /// The footer's bytes with a fresh checksum.
    pub fn to_bytes(&self) -> [u8; FOOTER_BYTES] {
        self.to_bytes_with(COOKIE)
    }

    /// The footer's bytes with the mark of an image whose resize is under way, which every tool
    /// refuses to open.
    pub fn to_poisoned_bytes(&self) -> [u8; FOOTER_BYTES] {
        self.to_bytes_with(COOKIE_POISONED)
    }

    fn to_bytes_with(&self, cookie: &[u8; 8]) -> [u8; FOOTER_BYTES] {
        let mut sector = [0; FOOTER_BYTES];
        put(&mut sector, 0, cookie);
        put(
            &mut sector,
            8,
            &(self.features | FEATURES_RESERVED).to_be_bytes(),
        );
        put(&mut sector, 12, &FORMAT_VERSION.to_be_bytes());
        put(
            &mut sector,
            16,
            &self.header_offset.unwrap_or(NO_HEADER).to_be_bytes(),
        );
        put(&mut sector, 24, &self.created.0.to_be_bytes());
        put(&mut sector, 28, &self.creator.application);
        put(&mut sector, 32, &self.creator.version.to_be_bytes());
        put(&mut sector, 36, &self.creator.os.to_be_bytes());
        put(&mut sector, 40, &self.original_bytes.to_be_bytes());
        put(&mut sector, 48, &self.virtual_bytes.to_be_bytes());
        put(&mut sector, 56, &self.geometry.to_bytes());
        let disk_type: u32 = match self.disk_type {
            DiskType::Fixed => 2,
            DiskType::Dynamic => 3,
            DiskType::Differencing => 4,
        };
        put(&mut sector, 60, &disk_type.to_be_bytes());
        put(&mut sector, 68, self.uuid.as_bytes());
        sector[84] = self.saved_state;
        sector[HIDDEN_AT] = self.hidden;
        let sum = checksum_without(&sector, CHECKSUM_AT);
        put(&mut sector, CHECKSUM_AT, &sum.to_be_bytes());
        sector
    }

    /// Whether `hidden` must be taken from the copy at offset 0: old tap versions updated only it.
    pub(crate) fn hidden_lives_in_copy(&self) -> bool {
        self.disk_type != DiskType::Fixed && self.creator.forgets_hidden_in_checksum()
    }

    /// The uuid in a sector that may be a footer.
    pub(crate) fn uuid_in(sector: &[u8; FOOTER_BYTES]) -> Uuid {
        uuid_at(sector, 68)
    }
}

fn check_sum(sector: &[u8; FOOTER_BYTES], creator: &Creator) -> Result<(), Error> {
    let stored = u32_at(sector, CHECKSUM_AT);
    let computed = checksum_without(sector, CHECKSUM_AT);
    if stored == computed {
        return Ok(());
    }
    if creator.forgets_hidden_in_checksum() {
        let mut unhidden = *sector;
        unhidden[HIDDEN_AT] = 0;
        if stored == checksum_without(&unhidden, CHECKSUM_AT) {
            return Ok(());
        }
    }
    Err(Error::checksum("footer.checksum", stored, computed))
}

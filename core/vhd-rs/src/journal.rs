//! Undo journals of resizes that move blocks: the format, and nothing that reads or writes one.
//!
//! ```text
//!  0         512                                                              end
//!  +---------+--------+------+--------+------+--//--+--------+-----------+-----+
//!  | header  | entry  | old  | entry  | old  |      | entry  | old block | ... |
//!  | 512     | 32     | bytes| 32     | bytes|      | 32     | bytes     |     |
//!  +---------+--------+------+--------+------+--//--+--------+-----------+-----+
//!            metadata entries: footers, header, ...  data entries: bitmaps and data
//! ```
//!
//! # Life of a resize
//!
//! ```text
//!  recorded --both footers "v_poison"--> under way --entry counts zero--> committed
//!     |                                     | revert                         | finish
//!     v                                     v                                v
//!  as before                             as before             new size, footers "conectix"
//! ```
//!
//! An image whose footers are not poisoned needs nothing from a journal, whatever that says.

use crate::footer::FOOTER_BYTES;
use crate::wire::{
    SECTOR_BYTES, bytes_at, checksum, checksum_without, put, u32_at, u64_at, uuid_at,
};
use crate::{Error, Extent, Footer, Plan, Step};
use uuid::Uuid;

/// Bytes in a journal's header.
pub const JOURNAL_HEADER_BYTES: usize = 512;

/// Bytes before an entry's data.
pub const ENTRY_HEADER_BYTES: usize = 32;

/// Longest data of an entry that is accepted: that of the largest table.
pub const ENTRY_DATA_BYTES_MAX: u32 = 32 << 20;

const COOKIE: &[u8; 8] = b"vjournal";
const ENTRY_COOKIE: u64 = 0xaaaa_1234_4321_aaaa;
const END_AT: usize = 56;
const CHECKSUM_AT: usize = 24;

/// A journal's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalHeader {
    /// The image it belongs to.
    pub image: Uuid,
    /// Where the image's footer at the end is: before the resize, or after it once committed.
    pub footer_offset: u64,
    /// Entries with old blocks.
    pub data_entries: u32,
    /// Entries with old metadata.
    pub metadata_entries: u32,
    /// Where data entries begin.
    pub data_offset: u64,
    /// Where metadata entries begin.
    pub metadata_offset: u64,
    /// First byte after the last entry.
    pub end: u64,
}

impl JournalHeader {
    /// Parses a header.
    ///
    /// # Errors
    /// `Corrupt` if it is none or its entries cannot lie where it says.
    pub fn parse(sector: &[u8; JOURNAL_HEADER_BYTES]) -> Result<Self, Error> {
        let cookie: [u8; 8] = bytes_at(sector, 0);
        if &cookie != COOKIE {
            let value = format!("\"{}\"", cookie.escape_ascii());
            let rule = "must be \"vjournal\"";
            return Err(Error::corrupt("journal.cookie", value, rule));
        }
        let header = Self {
            image: uuid_at(sector, 8),
            footer_offset: u64_at(sector, 24),
            data_entries: u32_at(sector, 32),
            metadata_entries: u32_at(sector, 36),
            data_offset: u64_at(sector, 40),
            metadata_offset: u64_at(sector, 48),
            // Written by a machine in its own byte order, which is that of every Xen host.
            end: u64::from_le_bytes(bytes_at(sector, END_AT)),
        };
        if !header.footer_offset.is_multiple_of(SECTOR_BYTES) {
            let rule = "must be a multiple of 512";
            return Err(Error::corrupt(
                "journal.footer_offset",
                header.footer_offset,
                rule,
            ));
        }
        Ok(header)
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; JOURNAL_HEADER_BYTES] {
        let mut sector = [0; JOURNAL_HEADER_BYTES];
        put(&mut sector, 0, COOKIE);
        put(&mut sector, 8, self.image.as_bytes());
        put(&mut sector, 24, &self.footer_offset.to_be_bytes());
        put(&mut sector, 32, &self.data_entries.to_be_bytes());
        put(&mut sector, 36, &self.metadata_entries.to_be_bytes());
        put(&mut sector, 40, &self.data_offset.to_be_bytes());
        put(&mut sector, 48, &self.metadata_offset.to_be_bytes());
        put(&mut sector, END_AT, &self.end.to_le_bytes());
        sector
    }

    /// Whether the resize is done and needs only its footers back.
    pub fn is_committed(&self) -> bool {
        self.data_entries == 0 && self.metadata_entries == 0
    }
}

/// What an entry restores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// The footer at the end.
    Footer,
    /// The footer's copy at offset 0.
    FooterCopy,
    /// The sparse header.
    Header,
    /// A parent locator's path.
    Locator,
    /// The block table.
    Table,
    /// The batmap's header.
    BatmapHeader,
    /// The batmap.
    Batmap,
    /// A block's bitmap or data.
    Data,
}

impl EntryKind {
    const ALL: [Self; 8] = [
        Self::Footer,
        Self::FooterCopy,
        Self::Header,
        Self::Locator,
        Self::Table,
        Self::BatmapHeader,
        Self::Batmap,
        Self::Data,
    ];

    fn parse(number: u32) -> Option<Self> {
        let place = usize::try_from(number).ok()?.checked_sub(1)?;
        Self::ALL.get(place).copied()
    }

    fn number(self) -> u32 {
        let before = Self::ALL.iter().take_while(|&&kind| kind != self);
        before.count() as u32 + 1
    }

    /// Whether it is a footer, which is restored after everything else: until then the image stays
    /// disabled.
    pub fn is_footer(self) -> bool {
        matches!(self, Self::Footer | Self::FooterCopy)
    }
}

/// What comes before an entry's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it restores.
    pub kind: EntryKind,
    /// Where, in bytes in the image's file.
    pub offset: u64,
    /// Bytes of data; a multiple of 512, not zero.
    pub len: u32,
    bytes: [u8; ENTRY_HEADER_BYTES],
}

impl Entry {
    /// The entry that restores `data` at `offset`.
    ///
    /// # Errors
    /// `Argument` for data of no or of odd length, or of more than [`ENTRY_DATA_BYTES_MAX`].
    pub fn new(kind: EntryKind, offset: u64, data: &[u8]) -> Result<Self, Error> {
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        check_len(len).map_err(|rule| Error::argument("entry.size", len, rule))?;
        let mut bytes = [0; ENTRY_HEADER_BYTES];
        put(&mut bytes, 0, &ENTRY_COOKIE.to_be_bytes());
        put(&mut bytes, 8, &kind.number().to_be_bytes());
        put(&mut bytes, 12, &len.to_be_bytes());
        put(&mut bytes, 16, &offset.to_be_bytes());
        let mut entry = Self {
            kind,
            offset,
            len,
            bytes,
        };
        let sum = entry.sum(data);
        put(&mut entry.bytes, CHECKSUM_AT, &sum.to_be_bytes());
        Ok(entry)
    }

    /// Parses what comes before an entry's data; the data itself is judged by [`Entry::check`].
    ///
    /// # Errors
    /// `Corrupt` with the field.
    pub fn parse(bytes: &[u8; ENTRY_HEADER_BYTES]) -> Result<Self, Error> {
        let cookie = u64_at(bytes, 0);
        if cookie != ENTRY_COOKIE {
            let value = format!("{cookie:#x}");
            let rule = format!("must be {ENTRY_COOKIE:#x}");
            return Err(Error::corrupt("entry.cookie", value, rule));
        }
        let number = u32_at(bytes, 8);
        let Some(kind) = EntryKind::parse(number) else {
            return Err(Error::corrupt("entry.type", number, "must be from 1 to 8"));
        };
        let len = u32_at(bytes, 12);
        check_len(len).map_err(|rule| Error::corrupt("entry.size", len, rule))?;
        let offset = u64_at(bytes, 16);
        if offset.checked_add(u64::from(len)).is_none() {
            return Err(Error::corrupt("entry.offset", offset, "must be in a file"));
        }
        Ok(Self {
            kind,
            offset,
            len,
            bytes: *bytes,
        })
    }

    /// Checks the data that follows.
    ///
    /// # Errors
    /// `Checksum`.
    pub fn check(&self, data: &[u8]) -> Result<(), Error> {
        let stored = u32_at(&self.bytes, CHECKSUM_AT);
        let computed = self.sum(data);
        if stored == computed {
            return Ok(());
        }
        Err(Error::checksum("entry.checksum", stored, computed))
    }

    /// The bytes that go before the data.
    pub fn to_bytes(&self) -> [u8; ENTRY_HEADER_BYTES] {
        self.bytes
    }

    /// The checksum, over the padding of the entry too, as other writers have anything there.
    fn sum(&self, data: &[u8]) -> u32 {
        let head = !checksum_without(&self.bytes, CHECKSUM_AT);
        !head.wrapping_add(!checksum(data))
    }
}

fn check_len(len: u32) -> Result<(), &'static str> {
    if len == 0 || !len.is_multiple_of(512) || len > ENTRY_DATA_BYTES_MAX {
        return Err("must be a multiple of 512 from 512 to 32 MiB");
    }
    Ok(())
}

/// Whether a sector is the footer of `image` in the middle of a resize: `None` if it is no footer
/// of that image at all.
pub fn poisoned_footer(sector: &[u8; FOOTER_BYTES], image: Uuid) -> Option<bool> {
    let (footer, poisoned) = Footer::parse_any(sector).ok()?;
    (footer.uuid == image).then_some(poisoned)
}

/// Ends a committed resize: cuts a growing file off after its footer and makes footers valid.
/// Performing it again does no harm as long as the image is poisoned.
///
/// # Errors
/// Those of parsing `footer`, the sector at `footer_offset`.
pub fn finish_plan(
    footer: &[u8; FOOTER_BYTES],
    footer_offset: u64,
    extent: Extent,
) -> Result<Plan, Error> {
    let (footer, _) = Footer::parse_any(footer)?;
    footer.check()?;
    let bytes = footer.to_bytes();
    let mut plan = Plan::default();
    if extent == Extent::Grows {
        plan.push(Step::SetSize {
            bytes: footer_offset.saturating_add(SECTOR_BYTES),
        });
        plan.push(Step::Flush);
    }
    plan.write(footer_offset, bytes);
    if footer.header_offset.is_some() {
        plan.write(0, bytes);
    }
    plan.push(Step::Flush);
    Ok(plan)
}

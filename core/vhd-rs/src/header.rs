//! The sparse header: where the block table is, how large blocks are, who the parent is.
//! Parsing judges the bytes alone; whether the regions fit the file is [`crate::Image`]'s business.

use crate::locator::{self, LocatorEntry};
use crate::wire::{bytes_at, checksum_without, put, u32_at, u64_at, uuid_at};
use crate::{BLOCK_BYTES, Error, ErrorKind, Timestamp};
use uuid::Uuid;

/// Bytes in a sparse header.
pub const HEADER_BYTES: usize = 1024;

const COOKIE: &[u8; 8] = b"cxsparse";
const NO_NEXT: u64 = u64::MAX;
const VERSION: u32 = 0x0001_0000;
const CHECKSUM_AT: usize = 36;
const NAME_AT: usize = 64;
const NAME_BYTES: usize = 512;
const LOCATORS_AT: usize = 576;

/// Locator entries in a header.
pub const LOCATORS: usize = 8;

/// A sparse header.
///
/// The reserved areas are not kept: writing a header back normalises them to zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Byte offset of the block table; a multiple of 512.
    pub table_offset: u64,
    /// Entries of the block table. May exceed what the disk's size needs.
    pub max_table_entries: u32,
    /// Bytes in a block: a power of two from 512 to 2 MiB.
    pub block_bytes: u32,
    /// Uuid of the parent image; nil for a raw parent, and for no parent.
    pub parent_uuid: Uuid,
    /// When the parent was last modified; never enforced.
    pub parent_modified: Timestamp,
    /// File name of the parent without its folder. Not used to find it.
    pub parent_name: String,
    /// Where the parent's paths are written.
    pub locators: [LocatorEntry; LOCATORS],
}

impl Header {
    /// Parses and validates a sparse header.
    ///
    /// # Errors
    /// `Corrupt` with the field's name, `Checksum`, or `Unsupported` for another version.
    ///
    /// # Source
    /// VHD 1.0, "Dynamic Disk Header Format".
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Error> {
        let cookie: [u8; 8] = bytes_at(bytes, 0);
        if &cookie != COOKIE {
            let value = format!("\"{}\"", cookie.escape_ascii());
            return Err(Error::corrupt(
                "header.cookie",
                value,
                "must be \"cxsparse\"",
            ));
        }
        let stored = u32_at(bytes, CHECKSUM_AT);
        let computed = checksum_without(bytes, CHECKSUM_AT);
        if stored != computed {
            return Err(Error::checksum("header.checksum", stored, computed));
        }
        let next = u64_at(bytes, 8);
        if next != NO_NEXT {
            let rule = "must be 0xffffffffffffffff";
            return Err(Error::corrupt(
                "header.data_offset",
                format_args!("{next:#x}"),
                rule,
            ));
        }
        let version = u32_at(bytes, 24);
        if version != VERSION {
            let value = format!("{version:#010x}");
            let rule = "must be 0x00010000";
            return Err(Error::new(
                ErrorKind::Unsupported,
                "header.hdr_ver",
                value,
                rule,
            ));
        }
        let header = Self {
            table_offset: u64_at(bytes, 16),
            max_table_entries: u32_at(bytes, 28),
            block_bytes: u32_at(bytes, 32),
            parent_uuid: uuid_at(bytes, 40),
            parent_modified: Timestamp(u32_at(bytes, 56)),
            parent_name: parse_name(&bytes_at(bytes, NAME_AT))?,
            locators: parse_locators(bytes)?,
        };
        header.check_numbers()?;
        Ok(header)
    }

    fn check_numbers(&self) -> Result<(), Error> {
        let offset = self.table_offset;
        if offset == 0 || !offset.is_multiple_of(512) {
            let rule = "must be a multiple of 512 above zero";
            return Err(Error::corrupt("header.table_offset", offset, rule));
        }
        let block = self.block_bytes;
        if !block.is_power_of_two() || !(512..=BLOCK_BYTES).contains(&block) {
            let rule = format!("must be a power of two from 512 to {BLOCK_BYTES}");
            return Err(Error::corrupt("header.block_size", block, rule));
        }
        Ok(())
    }

    /// The header's bytes with a fresh checksum.
    ///
    /// # Errors
    /// `NameTooLong` if the parent's name needs more than 512 bytes as UTF-16.
    pub fn to_bytes(&self) -> Result<[u8; HEADER_BYTES], Error> {
        let mut bytes = [0; HEADER_BYTES];
        put(&mut bytes, 0, COOKIE);
        put(&mut bytes, 8, &NO_NEXT.to_be_bytes());
        put(&mut bytes, 16, &self.table_offset.to_be_bytes());
        put(&mut bytes, 24, &VERSION.to_be_bytes());
        put(&mut bytes, 28, &self.max_table_entries.to_be_bytes());
        put(&mut bytes, 32, &self.block_bytes.to_be_bytes());
        put(&mut bytes, 40, self.parent_uuid.as_bytes());
        put(&mut bytes, 56, &self.parent_modified.0.to_be_bytes());
        let name: Vec<u8> = self
            .parent_name
            .encode_utf16()
            .flat_map(u16::to_be_bytes)
            .collect();
        if name.len() > NAME_BYTES {
            let rule = "must fit 512 bytes as UTF-16";
            let field = "header.parent_name";
            return Err(Error::new(
                ErrorKind::NameTooLong,
                field,
                &self.parent_name,
                rule,
            ));
        }
        put(&mut bytes, NAME_AT, &name);
        for (index, entry) in self.locators.iter().enumerate() {
            put(
                &mut bytes,
                LOCATORS_AT + index * locator::ENTRY_BYTES,
                &entry.to_bytes(),
            );
        }
        let sum = checksum_without(&bytes, CHECKSUM_AT);
        put(&mut bytes, CHECKSUM_AT, &sum.to_be_bytes());
        Ok(bytes)
    }

    /// Sectors of a block's bitmap: one for blocks of 2 MiB.
    pub(crate) fn bitmap_sectors(&self) -> u32 {
        self.block_sectors().div_ceil(8 * 512)
    }

    /// Data sectors of a block.
    pub(crate) fn block_sectors(&self) -> u32 {
        self.block_bytes / 512
    }

    /// Bytes of the block table on disk, padded to whole sectors. A batmap's header follows, in
    /// images that have one.
    pub fn table_bytes(&self) -> u64 {
        crate::wire::pad_sector(u64::from(self.max_table_entries) * 4)
    }
}

fn parse_name(bytes: &[u8; NAME_BYTES]) -> Result<String, Error> {
    let units = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let name: Result<String, _> = char::decode_utf16(units.take_while(|&unit| unit != 0)).collect();
    name.map_err(|bad| {
        let value = format!("with the lone surrogate {:#06x}", bad.unpaired_surrogate());
        Error::corrupt("header.parent_name", value, "must be UTF-16")
    })
}

fn parse_locators(bytes: &[u8; HEADER_BYTES]) -> Result<[LocatorEntry; LOCATORS], Error> {
    let mut locators = [LocatorEntry::NONE; LOCATORS];
    for (index, entry) in locators.iter_mut().enumerate() {
        let raw = bytes_at(bytes, LOCATORS_AT + index * locator::ENTRY_BYTES);
        *entry = LocatorEntry::parse(index, &raw)?;
    }
    Ok(locators)
}

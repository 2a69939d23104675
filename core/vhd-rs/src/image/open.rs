//! Opening: reading each piece of metadata and judging it against the others.

use super::footers::{Footers, read};
use super::regions::{Owner, Region, sort_disjoint};
use super::{Access, Allow, Extent, Image, OpenOptions, Sparse, aligned_entry, last_sector};
use crate::batmap::{reserved_sectors, used_bytes};
use crate::header::HEADER_BYTES;
use crate::wire::SECTOR_BYTES;
use crate::{
    BATMAP_HEADER_BYTES, BLOCK_BYTES, Bat, Batmap, BatmapHeader, DiskType, Error, ErrorKind,
    Header, Locator, LocatorCode, ReadAt, VIRTUAL_BYTES_MAX,
};

/// Entries of the largest table: those of the largest size in blocks of 2 MiB.
const TABLE_ENTRIES_MAX: u64 = VIRTUAL_BYTES_MAX / BLOCK_BYTES as u64;

/// Entries of a table that are read at once: 256 KiB of it.
const TABLE_PIECE_ENTRIES: u32 = 1 << 16;

/// Unused bytes before the bitmap that make it safe to call a block full.
const GAP_BYTES: u64 = 7 * SECTOR_BYTES;

pub(super) fn open(
    medium: &impl ReadAt,
    options: OpenOptions,
    allow: Allow,
) -> Result<Image, Error> {
    let size = medium
        .size_bytes()
        .map_err(|e| Error::io("container size", 0, e))?;
    let found = Footers::read(medium, size, options.extent, allow)?;
    if found.poisoned && options.access == Access::ReadWrite {
        let rule = "an image in the middle of a resize is only looked at";
        return Err(Error::argument("access", "read-write", rule));
    }
    let mut image = Image {
        options,
        poisoned: found.poisoned,
        container_bytes: size,
        footer_found_at: found.at_end,
        clean: found.clean,
        footer: found.footer,
        sparse: None,
    };
    match image.footer.header_offset {
        None => check_fixed(&image, size)?,
        Some(offset) => {
            let limit = match options.extent {
                Extent::Grows => size,
                Extent::Reserved => last_sector(size),
            };
            let reader = SparseReader {
                medium,
                size,
                limit,
                image: &image,
                allow,
            };
            image.sparse = Some(reader.read(offset)?);
        }
    }
    Ok(image)
}

fn check_fixed(image: &Image, size: u64) -> Result<(), Error> {
    let footer_at = image.footer_found_at.unwrap_or(size);
    if image.footer.virtual_bytes <= footer_at {
        return Ok(());
    }
    let rule = format!("must fit before the footer at byte {footer_at}");
    Err(Error::corrupt(
        "footer.curr_size",
        image.footer.virtual_bytes,
        rule,
    ))
}

/// Reads what follows the footers of a sparse image.
struct SparseReader<'a, M> {
    medium: &'a M,
    size: u64,
    /// First byte that metadata may not reach: where the footer goes on a device.
    limit: u64,
    image: &'a Image,
    allow: Allow,
}

impl<M: ReadAt> SparseReader<'_, M> {
    fn read(&self, header_offset: u64) -> Result<Sparse, Error> {
        let mut regions = vec![
            Region::new(Owner::FooterCopy, 0, SECTOR_BYTES, self.limit)?,
            Region::new(
                Owner::Header,
                header_offset,
                HEADER_BYTES as u64,
                self.limit,
            )?,
        ];
        let (header, header_is_plain) = self.read_header(header_offset)?;
        let table = (header.table_offset, header.table_bytes());
        regions.push(Region::new(Owner::Table, table.0, table.1, self.limit)?);
        let bat = self.read_table(&header)?;
        let (batmap, batmap_problem) = self.read_batmap(&header)?;
        if let Some(batmap) = &batmap {
            let (start, end) = batmap.map_region();
            let (at, len) = (batmap.header_offset(), BATMAP_HEADER_BYTES as u64);
            regions.push(Region::new(Owner::BatmapHeader, at, len, self.limit)?);
            regions.push(Region::new(Owner::Batmap, start, end - start, self.limit)?);
        }
        let locators = self.read_locators(&header, &mut regions)?;
        self.check_parent(&header, &locators)?;
        let (claimed, reserved) = batmap
            .as_ref()
            .map_or((0, 0), |batmap| reserved_ends(batmap, &header, self.size));
        let headers_end = regions
            .iter()
            .map(|region| region.end)
            .fold(reserved, u64::max);
        let mut sparse = Sparse {
            first_entry: aligned_entry(headers_end.max(claimed).div_ceil(SECTOR_BYTES)),
            headers_end,
            next_free: 0,
            header,
            header_is_plain,
            bat,
            batmap,
            batmap_problem,
            locators,
        };
        self.place_blocks(&mut sparse, regions)?;
        Ok(sparse)
    }

    fn read_header(&self, offset: u64) -> Result<(Header, bool), Error> {
        let mut bytes = [0; HEADER_BYTES];
        read(self.medium, "header", offset, &mut bytes)?;
        let header = Header::parse(&bytes)?;
        let writing = self.image.options.access == Access::ReadWrite;
        if writing && header.block_bytes != BLOCK_BYTES {
            let rule = format!("images are written only with blocks of {BLOCK_BYTES} bytes");
            let field = "header.block_size";
            return Err(Error::new(
                ErrorKind::Unsupported,
                field,
                header.block_bytes,
                rule,
            ));
        }
        let is_plain = header.to_bytes().is_ok_and(|plain| plain == bytes);
        Ok((header, is_plain))
    }

    fn read_table(&self, header: &Header) -> Result<Bat, Error> {
        let used = self
            .image
            .footer
            .virtual_bytes
            .div_ceil(u64::from(header.block_bytes));
        if used > u64::from(header.max_table_entries) {
            let rule = format!("must be at least {used} for the disk's size");
            return Err(Error::corrupt(
                "header.max_bat_size",
                header.max_table_entries,
                rule,
            ));
        }
        if used > TABLE_ENTRIES_MAX {
            let rule = format!("tables are handled up to {TABLE_ENTRIES_MAX} blocks");
            return Err(Error::new(ErrorKind::Unsupported, "blocks", used, rule));
        }
        let used = used as u32;
        let mut bat = Bat::empty(used, header.max_table_entries);
        // In pieces, as most of a large table is empty and the rest is kept in less memory.
        let mut bytes = vec![0; used.min(TABLE_PIECE_ENTRIES) as usize * 4];
        for first in (0..used).step_by(TABLE_PIECE_ENTRIES as usize) {
            bytes.truncate((used - first).min(TABLE_PIECE_ENTRIES) as usize * 4);
            let offset = header.table_offset.saturating_add(u64::from(first) * 4);
            read(self.medium, "bat", offset, &mut bytes)?;
            bat.take(first, &bytes);
        }
        Ok(bat)
    }

    /// The batmap, if there is one to be believed, and why not.
    fn read_batmap(&self, header: &Header) -> Result<(Option<Batmap>, Option<Error>), Error> {
        let creator = &self.image.footer.creator;
        if !creator.is_tap() || header.block_bytes != BLOCK_BYTES {
            return Ok((None, None));
        }
        let must_have = creator.version > 0x0001_0001;
        match self.read_batmap_strictly(header) {
            Ok((batmap, problem)) => Ok((Some(batmap), problem)),
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::Io | ErrorKind::Unsupported | ErrorKind::Key
                ) =>
            {
                Err(e)
            }
            Err(e) if must_have && self.image.options.access == Access::ReadWrite => Err(e),
            Err(e) => Ok((None, must_have.then_some(e))),
        }
    }

    fn read_batmap_strictly(&self, header: &Header) -> Result<(Batmap, Option<Error>), Error> {
        let offset = header.table_offset.saturating_add(header.table_bytes());
        Region::new(
            Owner::BatmapHeader,
            offset,
            BATMAP_HEADER_BYTES as u64,
            self.limit,
        )?;
        let mut sector = [0; BATMAP_HEADER_BYTES];
        read(self.medium, "batmap header", offset, &mut sector)?;
        let batmap = BatmapHeader::parse_fields(&sector)?;
        if batmap.keyhash().is_some() && !self.allow.encrypted {
            let rule = "the image is encrypted and was not opened for that";
            return Err(Error::new(ErrorKind::Key, "batmap.keyhash", "set", rule));
        }
        batmap.check_place()?;
        let used = used_bytes(self.image.footer.virtual_bytes);
        if u64::from(batmap.map_sectors) * SECTOR_BYTES < used {
            let rule = format!(
                "must be at least {} for the disk's size",
                used / SECTOR_BYTES
            );
            return Err(Error::corrupt(
                "batmap.batmap_size",
                batmap.map_sectors,
                rule,
            ));
        }
        Region::new(Owner::Batmap, batmap.map_offset, used, self.limit)?;
        let mut map = vec![0; used as usize];
        read(self.medium, "batmap", batmap.map_offset, &mut map)?;
        Ok(Batmap::from_disk(offset, batmap, map))
    }

    fn read_locators(
        &self,
        header: &Header,
        regions: &mut Vec<Region>,
    ) -> Result<Vec<Locator>, Error> {
        let mut locators = Vec::new();
        for (index, &entry) in header.locators.iter().enumerate() {
            if entry.code == LocatorCode::None {
                continue;
            }
            let (offset, space) = (entry.data_offset, entry.space_bytes());
            regions.push(Region::new(
                Owner::Locator(index),
                offset,
                space,
                self.limit,
            )?);
            if entry.code.is_decoded() {
                let mut data = vec![0; entry.data_len as usize];
                read(self.medium, "locator", offset, &mut data)?;
                locators.push(Locator { index, entry, data });
            }
        }
        Ok(locators)
    }

    fn check_parent(&self, header: &Header, locators: &[Locator]) -> Result<(), Error> {
        let differencing = self.image.footer.disk_type == DiskType::Differencing;
        if differencing && locators.is_empty() && header.parent_name.is_empty() {
            let rule = "a differencing image names its parent";
            return Err(Error::corrupt("header.parent_name", "empty", rule));
        }
        Ok(())
    }

    /// Checks every block's place, finds the end of data and the blocks that may not be full.
    fn place_blocks(&self, sparse: &mut Sparse, mut regions: Vec<Region>) -> Result<(), Error> {
        sort_disjoint(&mut regions)?;
        let bitmap_bytes = u64::from(sparse.header.bitmap_sectors()) * SECTOR_BYTES;
        let block_bytes = u64::from(sparse.header.block_bytes);
        let allocated = sparse.bat.allocated().count() as u64;
        let room = self.size / block_bytes + 1;
        if allocated > room {
            let rule = format!(
                "{room} blocks at most fit a container of {} bytes",
                self.size
            );
            return Err(Error::corrupt(
                "bat",
                format_args!("{allocated} blocks"),
                rule,
            ));
        }
        regions.reserve(allocated as usize);
        let (limit, may_end_short) = self.block_limit();
        for (block, entry) in sparse.bat.allocated() {
            let start = u64::from(entry) * SECTOR_BYTES;
            let full = sparse
                .batmap
                .as_ref()
                .is_some_and(|batmap| batmap.get(block));
            let whole = bitmap_bytes + block_bytes;
            let must_fit = if may_end_short && !full {
                bitmap_bytes
            } else {
                whole
            };
            Region::new(Owner::Block(block), start, must_fit, limit)?;
            regions.push(Region {
                start,
                end: start + whole,
                owner: Owner::Block(block),
            });
        }
        sort_disjoint(&mut regions)?;
        let end = regions.last().map_or(0, |region| region.end);
        sparse.next_free = end.max(sparse.headers_end).next_multiple_of(SECTOR_BYTES);
        let first = sparse.first_entry * SECTOR_BYTES;
        if let Some(batmap) = &mut sparse.batmap {
            batmap.bar(blocks_without_gap(&regions, first));
        }
        Ok(())
    }

    /// First byte that blocks may not reach, and whether the last one's data may pass it.
    fn block_limit(&self) -> (u64, bool) {
        match (self.image.options.extent, self.image.footer_found_at) {
            (Extent::Reserved, _) => (last_sector(self.size), false),
            (Extent::Grows, Some(footer_at)) => (footer_at, false),
            (Extent::Grows, None) => (self.size, true),
        }
    }
}

/// End of the sectors kept for the batmap, used or not: as its header claims, by which other tools
/// know the first block, and where blocks may begin. A claim that goes beyond the container counts
/// only as far as the table can ever need it.
fn reserved_ends(batmap: &Batmap, header: &Header, size: u64) -> (u64, u64) {
    let end = |sectors: u32| {
        let bytes = u64::from(sectors) * SECTOR_BYTES;
        batmap.header().map_offset.saturating_add(bytes)
    };
    let claimed = batmap.header().map_sectors;
    let needed = reserved_sectors(header.max_table_entries);
    if end(claimed) <= size {
        (end(claimed), end(claimed))
    } else {
        (end(claimed), end(claimed.min(needed)))
    }
}

/// Blocks, sorted, with less than seven unused sectors before their bitmaps. The first block of a
/// file as XenServer's tools place it is exempt: they know that its gap is metadata.
fn blocks_without_gap(regions: &[Region], first_start: u64) -> Vec<u32> {
    let cramped = regions.windows(2).filter_map(|pair| match pair {
        [
            before,
            Region {
                start,
                owner: Owner::Block(block),
                ..
            },
        ] if *start != first_start && start - before.end < GAP_BYTES => Some(*block),
        _ => None,
    });
    let mut blocks: Vec<u32> = cramped.collect();
    blocks.sort_unstable();
    blocks
}

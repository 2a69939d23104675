//! Resizes that a plan alone cannot make, because blocks lie where metadata must grow, or because
//! there is no copy of the only footer. They are made under an undo journal (see
//! [`crate::journal`]); this says what to save, what to move and what to write.

use super::allocate::next_entry;
use super::{Extent, Image, Sparse, aligned_entry, last_sector};
use crate::batmap::reserved_sectors;
use crate::journal::EntryKind;
use crate::wire::SECTOR_BYTES;
use crate::{
    BATMAP_HEADER_BYTES, BLOCK_BYTES, Bat, Error, ErrorKind, Footer, Geometry, HEADER_BYTES,
    Header, LocatorCode, Plan, Step, VIRTUAL_BYTES_MAX,
};

/// Bytes of a block with its bitmap.
const WHOLE_BYTES: u64 = SECTOR_BYTES + BLOCK_BYTES as u64;

/// Bytes that a journal must hold before the image is touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Save {
    /// What they are.
    pub kind: EntryKind,
    /// Where, in bytes.
    pub offset: u64,
    /// How many; a multiple of 512.
    pub len: u32,
}

/// A block with its bitmap that has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockMove {
    /// Byte offset of its bitmap now.
    pub from: u64,
    /// Byte offset of its bitmap afterwards.
    pub to: u64,
    /// Bytes to copy: bitmap and data. The two places never overlap.
    pub len: u64,
}

/// A resize under a journal. To be done in the order of the fields, each durable before the next.
///
/// The image in memory does not follow; open it anew.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "nothing is resized until it is performed"]
pub struct Relayout {
    /// Where the footer at the end is before.
    pub footer_before: u64,
    /// What the journal holds, in its order.
    pub saves: Vec<Save>,
    /// Disables the image and makes room at the end.
    pub disable: Plan,
    /// What to copy then.
    pub moves: Vec<BlockMove>,
    /// The new metadata, still disabled.
    pub rewrite: Plan,
    /// Where the footer at the end is then: for the journal's commit and
    /// [`finish_plan`](crate::journal::finish_plan).
    pub footer_after: u64,
}

impl Image {
    /// Describes a resize to any size that the disk's type allows, rounded up to 2 MiB.
    ///
    /// Sparse images grow; where [`Image::resize_plan`] will do, it costs less. Fixed disks grow
    /// and shrink; what lies beyond the new end of one is lost once the resize is finished.
    ///
    /// # Errors
    /// `Unsupported` for smaller sizes of sparse images and for images of other tools, whose layout
    /// is unknown; `Argument` for sizes out of range, images that were not closed (close them
    /// first) and read-only ones; `NoSpace` if the container or sector numbers do not suffice.
    pub fn relayout(&self, virtual_bytes: u64) -> Result<Relayout, Error> {
        self.check_writable()?;
        if virtual_bytes == 0 || virtual_bytes > VIRTUAL_BYTES_MAX {
            let rule = format!("must be from 1 to {VIRTUAL_BYTES_MAX}");
            return Err(Error::argument("resize.virtual_bytes", virtual_bytes, rule));
        }
        let size = virtual_bytes.next_multiple_of(u64::from(BLOCK_BYTES));
        let Some(footer_before) = self.footer_found_at.filter(|_| self.clean) else {
            let rule = "must be closed before it is resized";
            return Err(Error::argument("image", "not closed", rule));
        };
        let mut footer = self.footer.clone();
        footer.virtual_bytes = size;
        footer.geometry = Geometry::of_size(size);
        match &self.sparse {
            None => self.relayout_fixed(&footer, footer_before),
            Some(sparse) => self.relayout_sparse(sparse, &footer, footer_before),
        }
    }

    fn relayout_fixed(&self, footer: &Footer, footer_before: u64) -> Result<Relayout, Error> {
        let (old, new) = (self.virtual_bytes(), footer.virtual_bytes);
        let footer_after = match self.options.extent {
            Extent::Grows => new,
            Extent::Reserved => self.reserved_footer(new)?,
        };
        let mut saves = vec![save(EntryKind::Footer, footer_before, SECTOR_BYTES)];
        let mut rewrite = Plan::default();
        if new < old && footer_after != footer_before {
            // The new footer goes where data is that nobody may miss before the end.
            saves.push(save(EntryKind::Data, footer_after, SECTOR_BYTES));
        }
        rewrite.write(footer_after, footer.to_poisoned_bytes());
        rewrite.push(Step::Flush);
        if new > old {
            // Including the old footer, so only when the new one is there.
            rewrite.push(Step::Zero {
                offset: old,
                len: new - old,
            });
            rewrite.push(Step::Flush);
        }
        let mut disable = Plan::default();
        disable.write(footer_before, self.footer.to_poisoned_bytes());
        disable.push(Step::Flush);
        Ok(Relayout {
            footer_before,
            saves,
            disable,
            moves: Vec::new(),
            rewrite,
            footer_after,
        })
    }

    fn relayout_sparse(
        &self,
        sparse: &Sparse,
        footer: &Footer,
        footer_before: u64,
    ) -> Result<Relayout, Error> {
        let (old, new) = (self.virtual_bytes(), footer.virtual_bytes);
        if new < old {
            let rule = "sparse images do not shrink";
            return Err(Error::new(
                ErrorKind::Unsupported,
                "resize.virtual_bytes",
                new,
                rule,
            ));
        }
        let layout = NewLayout::of(sparse, footer)?;
        let (moves, bat, end) = layout.place_blocks(sparse)?;
        let footer_after = match self.options.extent {
            Extent::Grows => end,
            Extent::Reserved => self.reserved_footer(end)?,
        };
        let mut saves = self.saves(sparse, footer_before);
        for block in &moves {
            saves.push(save(EntryKind::Data, block.from, SECTOR_BYTES));
            let data = u64::from(BLOCK_BYTES);
            saves.push(save(EntryKind::Data, block.from + SECTOR_BYTES, data));
        }
        let poisoned = self.footer.to_poisoned_bytes();
        let mut disable = Plan::default();
        disable.write(footer_before, poisoned);
        disable.write(0, poisoned);
        disable.push(Step::Flush);
        if self.options.extent == Extent::Grows {
            // The last sector is never payload, which might look like a footer.
            disable.push(Step::SetSize {
                bytes: footer_after + SECTOR_BYTES,
            });
            disable.push(Step::Flush);
        }
        let mut rewrite = Plan::default();
        layout.rewrite(sparse, footer, &moves, &bat, &mut rewrite)?;
        rewrite.write(0, footer.to_poisoned_bytes());
        rewrite.write(footer_after, footer.to_poisoned_bytes());
        rewrite.push(Step::Flush);
        Ok(Relayout {
            footer_before,
            saves,
            disable,
            moves,
            rewrite,
            footer_after,
        })
    }

    /// The footer's place on a device on which data ends at `end`.
    fn reserved_footer(&self, end: u64) -> Result<u64, Error> {
        let place = last_sector(self.container_bytes);
        if end <= place {
            return Ok(place);
        }
        let rule = format!(
            "must be at least {} bytes",
            end.saturating_add(SECTOR_BYTES)
        );
        let field = "container size";
        Err(Error::new(
            ErrorKind::NoSpace,
            field,
            self.container_bytes,
            rule,
        ))
    }

    /// All metadata, in the order of a journal.
    fn saves(&self, sparse: &Sparse, footer_at: u64) -> Vec<Save> {
        let header_at = self.footer.header_offset.unwrap_or(SECTOR_BYTES);
        let header = &sparse.header;
        let mut saves = vec![
            save(EntryKind::Footer, footer_at, SECTOR_BYTES),
            save(EntryKind::FooterCopy, 0, SECTOR_BYTES),
            save(EntryKind::Header, header_at, HEADER_BYTES as u64),
        ];
        for locator in &sparse.locators {
            let (at, space) = (locator.entry.data_offset, locator.entry.space_bytes());
            saves.push(save(EntryKind::Locator, at, space));
        }
        let (table_at, table_bytes) = (header.table_offset, header.table_bytes());
        saves.push(save(EntryKind::Table, table_at, table_bytes));
        if let Some(batmap) = &sparse.batmap {
            let (start, end) = batmap.map_region();
            let header_bytes = BATMAP_HEADER_BYTES as u64;
            let header_at = batmap.header_offset();
            saves.push(save(EntryKind::BatmapHeader, header_at, header_bytes));
            saves.push(save(EntryKind::Batmap, start, end - start));
        }
        saves
    }
}

/// No region of an image that was opened has 4 GiB.
fn save(kind: EntryKind, offset: u64, len: u64) -> Save {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    Save { kind, offset, len }
}

/// Where the metadata of a grown image goes: as in a new one.
struct NewLayout {
    header: Header,
    batmap_at: Option<u64>,
    map_sectors: u32,
    end: u64,
}

impl NewLayout {
    fn of(sparse: &Sparse, footer: &Footer) -> Result<Self, Error> {
        let mut header = sparse.header.clone();
        let obsolete = |code| matches!(code, LocatorCode::Obsolete(_));
        let foreign = header.locators.iter().any(|entry| obsolete(entry.code));
        if !footer.creator.is_tap() || foreign {
            let creator = footer.creator.application;
            let value = format!("\"{}\"", creator.escape_ascii());
            let rule = "only images laid out by tap are laid out anew";
            return Err(Error::new(
                ErrorKind::Unsupported,
                "footer.creator_application",
                value,
                rule,
            ));
        }
        let blocks = (footer.virtual_bytes / u64::from(BLOCK_BYTES)) as u32;
        header.max_table_entries = header.max_table_entries.max(blocks);
        let map_sectors = reserved_sectors(header.max_table_entries);
        let table_end = header.table_offset + header.table_bytes();
        let batmap_at = sparse.batmap.as_ref().map(|_| table_end);
        let mut end = match batmap_at {
            Some(at) => at + SECTOR_BYTES + u64::from(map_sectors) * SECTOR_BYTES,
            None => table_end,
        };
        let used = |entry: &&mut crate::LocatorEntry| entry.code != LocatorCode::None;
        for entry in header.locators.iter_mut().filter(used) {
            entry.data_offset = end;
            end += entry.space_bytes();
        }
        Ok(Self {
            header,
            batmap_at,
            map_sectors,
            end,
        })
    }

    /// What must move out of the way and where to, the new table, and the end of data.
    fn place_blocks(&self, sparse: &Sparse) -> Result<(Vec<BlockMove>, Bat, u64), Error> {
        let first = aligned_entry(self.end.div_ceil(SECTOR_BYTES));
        let mut next = sparse.next_free.max(self.end);
        let mut bat = Bat::grown(&sparse.bat, self.header.max_table_entries);
        let mut in_the_way: Vec<(u32, u32)> = sparse
            .bat
            .allocated()
            .map(|(block, entry)| (entry, block))
            .filter(|&(entry, _)| u64::from(entry) * SECTOR_BYTES < self.end)
            .collect();
        in_the_way.sort_unstable();
        let mut moves = Vec::new();
        for (entry, block) in in_the_way {
            let target = next_entry(next, first);
            let Some(number) = u32::try_from(target).ok().filter(|&n| n != u32::MAX) else {
                let rule = "sector numbers have 32 bits";
                return Err(Error::new(ErrorKind::NoSpace, "sector", target, rule));
            };
            bat.set(block, Some(number));
            moves.push(BlockMove {
                from: u64::from(entry) * SECTOR_BYTES,
                to: target * SECTOR_BYTES,
                len: WHOLE_BYTES,
            });
            next = target * SECTOR_BYTES + WHOLE_BYTES;
        }
        Ok((moves, bat, next))
    }

    /// Everything but the footers.
    fn rewrite(
        &self,
        sparse: &Sparse,
        footer: &Footer,
        moves: &[BlockMove],
        bat: &Bat,
        plan: &mut Plan,
    ) -> Result<(), Error> {
        for block in moves {
            plan.push(Step::Zero {
                offset: block.from,
                len: block.len,
            });
        }
        for locator in &sparse.locators {
            if let Some(entry) = self.header.locators.get(locator.index) {
                let mut data = locator.data.clone();
                data.resize(entry.space_bytes() as usize, 0);
                plan.write(entry.data_offset, data);
            }
        }
        if let (Some(batmap), Some(at)) = (&sparse.batmap, self.batmap_at) {
            let place = (at, self.map_sectors);
            for (offset, bytes) in batmap.moved(place, footer.virtual_bytes) {
                plan.write(offset, bytes);
            }
        }
        plan.write(self.header.table_offset, bat.to_bytes());
        let header_at = footer.header_offset.unwrap_or(SECTOR_BYTES);
        plan.write(header_at, self.header.to_bytes()?);
        Ok(())
    }
}

//! New images: the layout and the writes that make one, in the order and to the byte as
//! XenServer's tools make theirs.

use crate::batmap::{BatmapHeader, reserved_sectors};
use crate::locator::{LocatorEntry, ParentPath};
use crate::wire::{SECTOR_BYTES, pad_sector};
use crate::{
    BLOCK_BYTES, Creator, DiskType, Error, ErrorKind, Extent, Footer, Geometry, HEADER_BYTES,
    Header, LOCATORS, Plan, Step, Timestamp, VIRTUAL_BYTES_MAX,
};
use uuid::Uuid;

/// The parent of a differencing image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentLink {
    /// Path with slashes, relative to the child's folder (`parent.vhd`, `../x/parent.vhd`) or
    /// absolute.
    pub path: String,
    /// The parent image's uuid; nil for a raw parent.
    pub uuid: Uuid,
    /// When the parent was last modified.
    pub modified: Timestamp,
}

/// What a new image holds at first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Zeros, all allocated.
    Fixed,
    /// Zeros, nothing allocated.
    Dynamic,
    /// What the parent holds.
    Differencing(ParentLink),
}

/// A new image to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewImage {
    /// Its id; not nil.
    pub uuid: Uuid,
    /// Its creation time.
    pub created: Timestamp,
    /// Size a guest sees in bytes; rounded up to 2 MiB.
    pub virtual_bytes: u64,
    /// Size up to which metadata is laid out for later [`Image::resize_plan`](crate::Image::resize_plan);
    /// the virtual size if smaller.
    pub resize_max_bytes: u64,
    /// What it holds.
    pub content: Content,
    /// How the container ends.
    pub extent: Extent,
    /// Size of a reserved container; not used for growing ones.
    pub container_bytes: u64,
}

impl NewImage {
    /// The virtual size after rounding.
    ///
    /// # Errors
    /// `Argument` for zero and for more than the format's limits.
    pub fn rounded_bytes(&self) -> Result<u64, Error> {
        rounded("new.virtual_bytes", self.virtual_bytes)
    }

    /// The writes that make the image in an empty container.
    ///
    /// The image is there once the plan is done; cut off before, the container holds nothing or an
    /// image that does not open or is empty.
    ///
    /// # Errors
    /// `Argument` for sizes, a nil uuid and paths; `NameTooLong` for a parent's long name;
    /// `NoSpace` if a reserved container is too small for the metadata (or, fixed, for the data).
    pub fn plan(&self) -> Result<Plan, Error> {
        let virtual_bytes = self.rounded_bytes()?;
        if self.uuid.is_nil() {
            return Err(Error::argument("new.uuid", self.uuid, "must not be nil"));
        }
        let mut plan = match &self.content {
            Content::Fixed => self.plan_fixed(virtual_bytes)?,
            Content::Dynamic => self.plan_sparse(virtual_bytes, None)?,
            Content::Differencing(parent) => self.plan_sparse(virtual_bytes, Some(parent))?,
        };
        plan.push(Step::Flush);
        Ok(plan)
    }

    fn footer(&self, virtual_bytes: u64) -> Footer {
        let disk_type = match self.content {
            Content::Fixed => DiskType::Fixed,
            Content::Dynamic => DiskType::Dynamic,
            Content::Differencing(_) => DiskType::Differencing,
        };
        Footer {
            features: 2,
            header_offset: (disk_type != DiskType::Fixed).then_some(SECTOR_BYTES),
            created: self.created,
            creator: Creator::TAP_1_3,
            original_bytes: virtual_bytes,
            virtual_bytes,
            geometry: Geometry::of_size(virtual_bytes),
            disk_type,
            uuid: self.uuid,
            saved_state: 0,
            hidden: 0,
        }
    }

    fn plan_fixed(&self, virtual_bytes: u64) -> Result<Plan, Error> {
        let footer_at = self.footer_offset(virtual_bytes)?;
        let mut plan = Plan::default();
        plan.push(match self.extent {
            Extent::Grows => Step::SetSize {
                bytes: virtual_bytes,
            },
            Extent::Reserved => Step::Zero {
                offset: 0,
                len: virtual_bytes,
            },
        });
        plan.write(footer_at, self.footer(virtual_bytes).to_bytes());
        Ok(plan)
    }

    fn plan_sparse(&self, virtual_bytes: u64, parent: Option<&ParentLink>) -> Result<Plan, Error> {
        let layout = Layout::new(self.resize_max(virtual_bytes)?, parent)?;
        let footer_at = self.footer_offset(layout.end)?;
        let footer = self.footer(virtual_bytes).to_bytes();
        let batmap = BatmapHeader::new(layout.batmap_at + SECTOR_BYTES, layout.entries);
        let mut table = vec![0; (layout.batmap_at - Layout::TABLE_AT) as usize];
        let used = layout.entries as usize * 4;
        table.iter_mut().take(used).for_each(|byte| *byte = 0xFF);

        let mut plan = Plan::default();
        plan.write(
            batmap.map_offset,
            vec![0; batmap.map_sectors as usize * 512],
        );
        plan.write(layout.batmap_at, batmap.to_bytes());
        plan.write(Layout::TABLE_AT, table);
        for (entry, data) in &layout.locators {
            plan.write(entry.data_offset, data.as_slice());
        }
        plan.write(0, footer);
        plan.write(SECTOR_BYTES, layout.header(parent)?);
        plan.write(footer_at, footer);
        Ok(plan)
    }

    fn resize_max(&self, virtual_bytes: u64) -> Result<u64, Error> {
        let wanted = self.resize_max_bytes.max(virtual_bytes);
        rounded("new.resize_max_bytes", wanted)
    }

    /// The footer's place in a container whose metadata or data ends at `end`.
    fn footer_offset(&self, end: u64) -> Result<u64, Error> {
        let room = self.container_bytes / SECTOR_BYTES * SECTOR_BYTES;
        match self.extent {
            Extent::Grows => Ok(end),
            Extent::Reserved if end + SECTOR_BYTES <= room => Ok(room - SECTOR_BYTES),
            Extent::Reserved => {
                let rule = format!("must be at least {} bytes", end + SECTOR_BYTES);
                let field = "new.container_bytes";
                Err(Error::new(
                    ErrorKind::NoSpace,
                    field,
                    self.container_bytes,
                    rule,
                ))
            }
        }
    }
}

fn rounded(field: &'static str, bytes: u64) -> Result<u64, Error> {
    if bytes == 0 || bytes > VIRTUAL_BYTES_MAX {
        let rule = format!("must be from 1 to {VIRTUAL_BYTES_MAX}");
        return Err(Error::argument(field, bytes, rule));
    }
    Ok(bytes.next_multiple_of(u64::from(BLOCK_BYTES)))
}

/// Where the metadata of a sparse image goes.
struct Layout {
    entries: u32,
    batmap_at: u64,
    locators: Vec<(LocatorEntry, Vec<u8>)>,
    path: Option<ParentPath>,
    end: u64,
}

impl Layout {
    const TABLE_AT: u64 = SECTOR_BYTES + HEADER_BYTES as u64;

    fn new(resize_max_bytes: u64, parent: Option<&ParentLink>) -> Result<Self, Error> {
        let entries = (resize_max_bytes / u64::from(BLOCK_BYTES)) as u32;
        let batmap_at = Self::TABLE_AT + pad_sector(u64::from(entries) * 4);
        let map_bytes = u64::from(reserved_sectors(entries)) * SECTOR_BYTES;
        let mut end = batmap_at + SECTOR_BYTES + map_bytes;
        let path = parent
            .map(|parent| ParentPath::new(&parent.path))
            .transpose()?;
        let locators = path
            .as_ref()
            .map(|path| path.lay_out(end))
            .unwrap_or_default();
        end += locators
            .iter()
            .map(|(_, data)| data.len() as u64)
            .sum::<u64>();
        Ok(Self {
            entries,
            batmap_at,
            locators,
            path,
            end,
        })
    }

    fn header(&self, parent: Option<&ParentLink>) -> Result<[u8; HEADER_BYTES], Error> {
        let mut locators = [LocatorEntry::NONE; LOCATORS];
        for (slot, (entry, _)) in locators.iter_mut().zip(&self.locators) {
            *slot = *entry;
        }
        let name = self
            .path
            .as_ref()
            .map(ParentPath::file_name)
            .unwrap_or_default();
        let header = Header {
            table_offset: Self::TABLE_AT,
            max_table_entries: self.entries,
            block_bytes: BLOCK_BYTES,
            parent_uuid: parent.map_or(Uuid::nil(), |parent| parent.uuid),
            parent_modified: parent.map_or(Timestamp(0), |parent| parent.modified),
            parent_name: name.to_owned(),
            locators,
        };
        header.to_bytes()
    }
}

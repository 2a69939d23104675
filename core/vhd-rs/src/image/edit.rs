//! Changes of a whole image as plans: closing, flags, size, parent, repair. Each method changes the
//! image in memory and returns what brings the disk there.

use super::{Extent, Image};
use crate::locator::ParentPath;
use crate::wire::SECTOR_BYTES;
use crate::{
    BLOCK_BYTES, Bat, Batmap, DiskType, Error, ErrorKind, Geometry, Keyhash, ParentLink, Plan,
    Step, VIRTUAL_BYTES_MAX,
};
use uuid::Uuid;

/// What fills the last sector of an image in use, in place of the footer.
const IN_USE: [u8; 512] = [0xC7; 512];

impl Image {
    /// Ends a period of writing: footer at the end of data (the rest of a growing file is cut
    /// off), its copy, the batmap. It begins with a flush, so that nothing in the batmap is ahead
    /// of the blocks. Everything reserved must be committed or released, or its space stays unused.
    ///
    /// # Errors
    /// `Argument` for images opened read-only.
    pub fn close_plan(&mut self) -> Result<Plan, Error> {
        self.check_writable()?;
        let mut plan = Plan::default();
        plan.push(Step::Flush);
        self.plan_footers(&mut plan);
        self.plan_batmap(&mut plan);
        plan.push(Step::Flush);
        self.clean = true;
        Ok(plan)
    }

    /// Brings the batmap on disk up to date now, durably; empty if nothing changed.
    ///
    /// # Errors
    /// `Argument` for images opened read-only.
    pub fn batmap_plan(&mut self) -> Result<Plan, Error> {
        self.check_writable()?;
        let mut plan = Plan::default();
        if self.batmap().is_some_and(|batmap| batmap.is_changed()) {
            plan.push(Step::Flush);
            self.plan_batmap(&mut plan);
            plan.push(Step::Flush);
        }
        Ok(plan)
    }

    /// Overwrites the footer at the end, as XenServer's data path does while it has an image open,
    /// so that an image not closed shows it, on reserved containers too. Empty if there is no
    /// footer to overwrite, and for fixed disks, which have no copy of it.
    ///
    /// # Errors
    /// `Argument` for images opened read-only.
    pub fn in_use_plan(&mut self) -> Result<Plan, Error> {
        self.check_writable()?;
        let mut plan = Plan::default();
        if let Some(offset) = self.footer_found_at.filter(|_| self.sparse.is_some()) {
            // The copy must be good before the footer goes.
            plan.write(0, self.footer.to_bytes());
            plan.push(Step::Flush);
            plan.write(offset, IN_USE);
            plan.push(Step::Flush);
            self.footer_found_at = None;
            self.clean = false;
        }
        Ok(plan)
    }

    /// Writes both footers anew, with `uuid_if_nil` if the image has no uuid. The image must not
    /// be in use.
    ///
    /// # Errors
    /// `Argument` for images opened read-only.
    pub fn repair_plan(&mut self, uuid_if_nil: Uuid) -> Result<Plan, Error> {
        self.check_writable()?;
        if self.footer.uuid.is_nil() {
            self.footer.uuid = uuid_if_nil;
        }
        self.close_plan()
    }

    /// Sets or clears XenServer's mark of inner nodes.
    ///
    /// # Errors
    /// `Argument` for images opened read-only.
    pub fn hide_plan(&mut self, hidden: bool) -> Result<Plan, Error> {
        self.hidden_plan(u8::from(hidden))
    }

    /// Gives the byte behind [`Image::is_hidden`] a value of the tool stack's choice.
    ///
    /// # Errors
    /// `Argument` for images opened read-only.
    pub fn hidden_plan(&mut self, hidden: u8) -> Result<Plan, Error> {
        self.check_writable()?;
        self.footer.hidden = hidden;
        self.close_plan()
    }

    /// Gives the tool stack's own byte a value.
    ///
    /// # Errors
    /// `Unsupported` for images without a batmap, `Argument` for those opened read-only.
    pub fn marker_plan(&mut self, marker: u8) -> Result<Plan, Error> {
        self.batmap_mut("marker")?.set_marker(marker);
        self.close_plan()
    }

    /// Enters the hash of the key that data will be encrypted with, or removes it.
    ///
    /// # Errors
    /// `Unsupported` for images without a batmap; `Argument` for images that hold data, which would
    /// be taken for what it is not, and for those opened read-only.
    pub fn keyhash_plan(&mut self, keyhash: Option<&Keyhash>) -> Result<Plan, Error> {
        let allocated = self.allocated_blocks();
        let batmap = self.batmap_mut("keyhash")?;
        if allocated != 0 {
            let rule = "an image must be empty when its key changes";
            return Err(Error::argument("allocated blocks", allocated, rule));
        }
        batmap.set_keyhash(keyhash);
        self.close_plan()
    }

    fn batmap_mut(&mut self, what: &'static str) -> Result<&mut Batmap, Error> {
        self.check_writable()?;
        let batmap = self.sparse.as_mut().and_then(|s| s.batmap.as_mut());
        batmap.ok_or_else(|| {
            let rule = "is kept in the batmap, which this image has not";
            Error::new(ErrorKind::Unsupported, what, "to be set", rule)
        })
    }

    /// Drops all data and keeps everything else: the image then holds zeros, or what its parent
    /// holds. Marks go before entries, entries before the space.
    ///
    /// # Errors
    /// `Argument` for fixed and read-only images.
    pub fn drop_data_plan(&mut self) -> Result<Plan, Error> {
        let sparse = self.sparse_mut()?;
        let blocks: Vec<u32> = sparse.bat.allocated().map(|(block, _)| block).collect();
        if let Some(batmap) = &mut sparse.batmap {
            blocks.iter().for_each(|&block| {
                batmap.clear(block);
            });
        }
        let mut plan = self.batmap_plan()?;
        let sparse = self.sparse_mut()?;
        blocks.iter().for_each(|&block| sparse.bat.set(block, None));
        let mut sectors: Vec<u64> = blocks.iter().map(|&b| Bat::sector_offset(b)).collect();
        sectors.dedup();
        for offset in sectors {
            let first = (offset / 4) as u32;
            plan.write(
                sparse.header.table_offset + offset,
                sparse.bat.sector(first),
            );
        }
        sparse.next_free = sparse.headers_end.next_multiple_of(SECTOR_BYTES);
        plan.steps.extend(self.close_plan()?.steps);
        Ok(plan)
    }

    /// Puts the footers where they belong in a container of another size: a logical volume that
    /// has grown, or is about to shrink. A growing file's footer stays at the end of its data.
    ///
    /// # Errors
    /// `NoSpace` if what the image holds does not fit, `Argument` for images opened read-only.
    pub fn container_plan(&mut self, container_bytes: u64) -> Result<Plan, Error> {
        self.check_writable()?;
        let needed = self.size_needed_bytes();
        if container_bytes < needed {
            let rule = format!("the image needs {needed} bytes");
            let field = "container size";
            return Err(Error::new(ErrorKind::NoSpace, field, container_bytes, rule));
        }
        self.container_bytes = container_bytes;
        self.close_plan()
    }

    /// Grows the virtual size, rounded up to 2 MiB, within what the metadata was laid out for. Works
    /// on an image being written if nothing is reserved and uncommitted and no metadata is written
    /// until the plan is done; then call [`Image::in_use_plan`] again if it was performed before.
    ///
    /// New table entries and batmap sectors are durable before the footers show the size.
    ///
    /// # Errors
    /// `NoSpace` beyond [`Image::resize_max_bytes`], `Argument` for a smaller size or a read-only
    /// image, `Unsupported` for fixed disks.
    pub fn resize_plan(&mut self, virtual_bytes: u64) -> Result<Plan, Error> {
        self.check_writable()?;
        let size = self.check_resize(virtual_bytes)?;
        let old_blocks = self.blocks();
        let mut plan = Plan::default();
        self.footer.virtual_bytes = size;
        self.footer.geometry = Geometry::of_size(size);
        let blocks = self.blocks();
        if let Some(sparse) = &mut self.sparse {
            sparse.bat.grow(blocks);
            for block in (old_blocks..blocks).filter(|&b| b == old_blocks || b.is_multiple_of(128))
            {
                let offset = sparse.header.table_offset + Bat::sector_offset(block);
                plan.write(offset, sparse.bat.sector(block));
            }
            if let Some(batmap) = &mut sparse.batmap {
                batmap.resize(size);
            }
        }
        self.plan_batmap(&mut plan);
        plan.push(Step::Flush);
        self.plan_footers(&mut plan);
        plan.push(Step::Flush);
        Ok(plan)
    }

    fn check_resize(&self, virtual_bytes: u64) -> Result<u64, Error> {
        let (present, max) = (self.virtual_bytes(), self.resize_max_bytes());
        let error =
            |kind, rule: String| Error::new(kind, "resize.virtual_bytes", virtual_bytes, rule);
        if self.disk_type() == DiskType::Fixed {
            let rule = "fixed disks are not resized".to_owned();
            return Err(error(ErrorKind::Unsupported, rule));
        }
        if virtual_bytes < present {
            let rule = format!("must be at least the present size of {present} bytes");
            return Err(error(ErrorKind::Argument, rule));
        }
        if virtual_bytes > VIRTUAL_BYTES_MAX {
            let rule = format!("sizes are handled up to {VIRTUAL_BYTES_MAX} bytes");
            return Err(error(ErrorKind::NoSpace, rule));
        }
        let size = virtual_bytes.next_multiple_of(u64::from(BLOCK_BYTES));
        if size > max && size > present {
            let rule = format!("the metadata was laid out for up to {max} bytes");
            return Err(error(ErrorKind::NoSpace, rule));
        }
        Ok(size)
    }

    /// Gives a differencing image another parent with the same content below it. Locators are
    /// rewritten in their old places, then the header. Not atomic: cut off in between, paths are
    /// new and the uuid is old; performing the plan again heals it.
    ///
    /// # Errors
    /// `NameTooLong` if a path does not fit its old space, `Argument` for other disks, for images
    /// without locators and for read-only ones.
    pub fn reparent_plan(&mut self, parent: &ParentLink) -> Result<Plan, Error> {
        self.plan_parent(parent, false)
    }

    /// As [`Image::reparent_plan`], for an image that must open after a crash anywhere: everything
    /// that changes in the header lies in its first 512 bytes, which is all that is written of it.
    /// Cut off before that, the parent is the old one and paths may be of either; performing the
    /// plan again heals it. Works on an image in use, beside other writes.
    ///
    /// # Errors
    /// Those of [`Image::reparent_plan`]; `Unsupported` when more of the header would change, as it
    /// does when the new path is of another length than the old one.
    pub fn relink_plan(&mut self, parent: &ParentLink) -> Result<Plan, Error> {
        self.plan_parent(parent, true)
    }

    fn plan_parent(&mut self, parent: &ParentLink, in_one_sector: bool) -> Result<Plan, Error> {
        self.check_writable()?;
        let path = ParentPath::new(&parent.path)?;
        let differencing = self.disk_type() == DiskType::Differencing;
        let header_offset = self.footer.header_offset.unwrap_or_default();
        let Some(sparse) = self
            .sparse
            .as_mut()
            .filter(|s| differencing && !s.locators.is_empty())
        else {
            let rule = "only differencing images with locators have a parent to change";
            return Err(Error::argument(
                "footer.type",
                format_args!("{:?}", self.disk_type()),
                rule,
            ));
        };
        let mut header = sparse.header.clone();
        header.parent_uuid = parent.uuid;
        header.parent_modified = parent.modified;
        header.parent_name = path.file_name().to_owned();
        let mut locators = sparse.locators.clone();
        let mut plan = Plan::default();
        for locator in &mut locators {
            locator.data = path.encode(locator.entry.code);
            let space = locator.entry.space_bytes();
            if locator.data.len() as u64 > space {
                let field = format!("header.locator[{}].data_space", locator.index);
                let rule = format!("the new path takes {} bytes", locator.data.len());
                return Err(Error::new(ErrorKind::NameTooLong, field, space, rule));
            }
            locator.entry.data_len = locator.data.len() as u32;
            if let Some(entry) = header.locators.get_mut(locator.index) {
                *entry = locator.entry;
            }
            let mut padded = locator.data.clone();
            padded.resize(space as usize, 0);
            plan.write(locator.entry.data_offset, padded);
        }
        let header_bytes = header.to_bytes()?;
        let old_bytes = sparse.header.to_bytes()?;
        let (first, rest) = header_bytes.split_at(SECTOR_BYTES as usize);
        let same_rest = sparse.header_is_plain && old_bytes.ends_with(rest);
        if in_one_sector && !same_rest {
            let rule = "only a parent whose path is as long as the old one can be entered in place";
            let field = "header.parent_locator";
            return Err(Error::new(
                ErrorKind::Unsupported,
                field,
                path.file_name(),
                rule,
            ));
        }
        plan.push(Step::Flush);
        let bytes = if in_one_sector { first } else { &header_bytes };
        plan.write(header_offset, bytes);
        plan.push(Step::Flush);
        sparse.header_is_plain = true;
        sparse.header = header;
        sparse.locators = locators;
        Ok(plan)
    }

    /// The footer at its place, a growing file cut off after it, and the copy.
    fn plan_footers(&mut self, plan: &mut Plan) {
        let bytes = self.footer.to_bytes();
        let offset = self.footer_offset();
        plan.write(offset, bytes);
        if self.options.extent == Extent::Grows {
            self.container_bytes = offset + SECTOR_BYTES;
            plan.push(Step::SetSize {
                bytes: self.container_bytes,
            });
        }
        if self.sparse.is_some() {
            plan.write(0, bytes);
        }
        self.footer_found_at = Some(offset);
    }

    fn plan_batmap(&mut self, plan: &mut Plan) {
        let batmap = self
            .sparse
            .as_mut()
            .and_then(|sparse| sparse.batmap.as_mut());
        if let Some(batmap) = batmap.filter(|batmap| batmap.is_changed()) {
            for (offset, bytes) in batmap.take_writes() {
                plan.write(offset, bytes);
            }
        }
    }
}

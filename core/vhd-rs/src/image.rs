//! An opened image: what its metadata says, and how it changes. Answers are pure; changes are made
//! in memory and come out as bytes to be written by the caller.

use crate::wire::SECTOR_BYTES;
use crate::{
    BLOCK_BYTES, Bat, Batmap, DiskType, Error, ErrorKind, Footer, Header, Keyhash, Locator, ReadAt,
};
use uuid::Uuid;

mod allocate;
mod edit;
mod footers;
mod open;
mod regions;
mod relayout;

pub(crate) use allocate::aligned_entry;
pub use allocate::{Allocation, SectorWrite};
pub use relayout::{BlockMove, Relayout, Save};

/// How the container of an image ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Extent {
    /// A file that grows with its content; the footer sits at the end of data.
    #[default]
    Grows,
    /// A block device or logical volume: the footer is in its last sector, its size never changes.
    Reserved,
}

/// Whether an image is opened for changing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Access {
    /// Answers only; methods that change anything are refused. Tolerates a broken batmap and other
    /// block sizes.
    #[default]
    ReadOnly,
    /// Answers and changes.
    ReadWrite,
}

/// How to open an image. The default is a file, read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct OpenOptions {
    /// How the container ends.
    pub extent: Extent,
    /// Whether the image will be changed.
    pub access: Access,
}

/// Images that [`Image::open_with`] does not refuse, though [`Image::open`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Allow {
    /// Encrypted ones: block data is ciphertext, everything else is as ever.
    pub encrypted: bool,
    /// Those in the middle of another tool's resize, for [`Access::ReadOnly`].
    pub poisoned: bool,
    /// Not a matter of refusing: the footer copy counts, whatever is at the end.
    pub footer_copy: bool,
}

/// Where a block's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Block {
    /// Not in this file: the parent's, or zero. Also the answer for blocks beyond the disk.
    Unallocated,
    /// In a sparse file.
    Allocated {
        /// Byte offset of the sector bitmap, [`Image::bitmap_bytes`] long.
        bitmap_offset: u64,
        /// Byte offset of the data.
        data_offset: u64,
        /// Every sector is present (says the batmap), so the bitmap need not be read. `false` says
        /// nothing.
        full: bool,
    },
    /// In a fixed disk: all of it is there, without a bitmap.
    Fixed {
        /// Byte offset of the data.
        data_offset: u64,
    },
}

/// An opened image's metadata.
///
/// # Life of a block, and the caller's duties
///
/// ```text
///  Unallocated --reserve--> (space is the caller's) --commit--> Allocated --set_full--> full
///                                  |release                        |unmap  <--clear_full--'
///                                  v                               v
///                              Unallocated                    Unallocated (space is lost)
/// ```
///
/// The crate keeps no queue and does no I/O, so these orders are the caller's to keep:
///
/// 1. Before [`Image::commit`]'s BAT sector is written: the block's bitmap sector is durable and
///    holds no bit of a sector that is not. [`Image::bat_sector`] shows *all* committed entries of
///    its 128, so commit a block only when its bitmap may be relied upon.
/// 2. A bitmap bit is written only after the sector's data is durable.
/// 3. A flush or FUA of a guest is answered after data, then bitmaps, then BAT sectors are
///    durable, in this order with a barrier between each two (bitmaps of fresh blocks may be
///    durable empty, then the bits and the BAT may go together).
/// 4. [`Image::set_full`] only when the full bitmap is durable. Before any bit of a full block is
///    cleared or the block unmapped: [`Image::clear_full`], and if that is true perform
///    [`Image::batmap_plan`].
/// 5. In a growing file keep its size at least [`Image::size_needed_bytes`] (a committed block
///    lies inside the file, and the last sector is never payload, so that no guest can put a
///    footer of its own at the end of a file that is not closed cleanly).
/// 6. When done: finish all writes, then perform [`Image::close_plan`].
///
/// Methods take `&mut self` for changes; one thread owns an `Image`, which is `Send` and `Sync`.
#[derive(Debug)]
pub struct Image {
    options: OpenOptions,
    /// Size of the container when it was opened or last resized by a plan.
    container_bytes: u64,
    footer: Footer,
    /// Byte offset of the footer found at the end, if one was found.
    footer_found_at: Option<u64>,
    clean: bool,
    poisoned: bool,
    sparse: Option<Sparse>,
}

/// What dynamic and differencing images have beyond a footer.
#[derive(Debug)]
struct Sparse {
    header: Header,
    /// The header's bytes on disk are exactly those it would be written with: nothing reserved is
    /// in use.
    header_is_plain: bool,
    bat: Bat,
    batmap: Option<Batmap>,
    batmap_problem: Option<Error>,
    locators: Vec<Locator>,
    /// First byte after all metadata before the blocks.
    headers_end: u64,
    /// BAT entry the first block has if it is placed as tapdisk would.
    first_entry: u64,
    /// First byte after the last block, reserved space included.
    next_free: u64,
}

impl Image {
    /// Reads and validates all metadata of an image.
    ///
    /// The footer at the end counts; if it is missing or damaged, the copy at offset 0 does, and
    /// the image is not [`clean`](Image::is_clean). Every region must lie inside the container and
    /// overlap no other. Only in a growing file without a valid footer at its end the last block's
    /// data may lie partly beyond it (a crash); see [`Image::size_needed_bytes`].
    ///
    /// A batmap with a wrong checksum is taken as empty ([`Image::batmap_problem`] tells). A batmap
    /// whose header is wrong is an error for [`Access::ReadWrite`] and left out for reading.
    ///
    /// # Errors
    /// `NotVhd`, `Checksum`, `Corrupt`, `Unsupported`, `Poisoned` and `Io`, with the field.
    pub fn open(medium: &impl ReadAt, options: OpenOptions) -> Result<Self, Error> {
        open::open(medium, options, Allow::default())
    }

    /// Like [`Image::open`], for images that need a caller who knows what they are.
    ///
    /// # Errors
    /// Those of [`Image::open`] that are not allowed for; `Argument` for a poisoned image that is
    /// to be written.
    pub fn open_with(
        medium: &impl ReadAt,
        options: OpenOptions,
        allow: Allow,
    ) -> Result<Self, Error> {
        open::open(medium, options, allow)
    }

    /// The footer that counts.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// The sparse header; `None` for fixed disks.
    pub fn header(&self) -> Option<&Header> {
        self.sparse.as_ref().map(|sparse| &sparse.header)
    }

    /// The block table; `None` for fixed disks.
    pub fn bat(&self) -> Option<&Bat> {
        self.sparse.as_ref().map(|sparse| &sparse.bat)
    }

    /// Keeps the block table and forgets the rest; `None` for fixed disks.
    pub fn into_bat(self) -> Option<Bat> {
        self.sparse.map(|sparse| sparse.bat)
    }

    /// The batmap, if the image has one that may be believed.
    pub fn batmap(&self) -> Option<&Batmap> {
        self.sparse.as_ref()?.batmap.as_ref()
    }

    /// Why the batmap on disk was not believed, if it was not.
    pub fn batmap_problem(&self) -> Option<&Error> {
        self.sparse.as_ref()?.batmap_problem.as_ref()
    }

    /// The image's own id.
    pub fn uuid(&self) -> Uuid {
        self.footer.uuid
    }

    /// What sort of disk it is.
    pub fn disk_type(&self) -> DiskType {
        self.footer.disk_type
    }

    /// How it was opened.
    pub fn options(&self) -> OpenOptions {
        self.options
    }

    /// The size a guest sees, in bytes: a multiple of 512, not always of the block size.
    pub fn virtual_bytes(&self) -> u64 {
        self.footer.virtual_bytes
    }

    /// Largest virtual size [`Image::resize_plan`] can reach; the present one for fixed disks.
    pub fn resize_max_bytes(&self) -> u64 {
        let Some(sparse) = &self.sparse else {
            return self.virtual_bytes();
        };
        sparse.resize_max_bytes().max(self.virtual_bytes())
    }

    /// Bytes in a block.
    pub fn block_bytes(&self) -> u32 {
        self.header()
            .map_or(BLOCK_BYTES, |header| header.block_bytes)
    }

    /// Bytes in a block's bitmap on disk, a multiple of 512.
    pub fn bitmap_bytes(&self) -> u32 {
        self.header()
            .map_or(0, |header| header.bitmap_sectors() * SECTOR_BYTES as u32)
    }

    /// Blocks of the disk; the last may reach beyond its end.
    pub fn blocks(&self) -> u32 {
        let blocks = self.virtual_bytes().div_ceil(u64::from(self.block_bytes()));
        u32::try_from(blocks).unwrap_or(u32::MAX)
    }

    /// Allocated blocks; all of them for a fixed disk.
    pub fn allocated_blocks(&self) -> u32 {
        self.bat().map_or(self.blocks(), Bat::allocated_blocks)
    }

    /// Where a block's content is.
    pub fn block(&self, block: u32) -> Block {
        let Some(sparse) = &self.sparse else {
            let inside = block < self.blocks();
            let data_offset = u64::from(block) * u64::from(BLOCK_BYTES);
            return if inside {
                Block::Fixed { data_offset }
            } else {
                Block::Unallocated
            };
        };
        let Some(entry) = sparse.bat.get(block) else {
            return Block::Unallocated;
        };
        let bitmap_offset = u64::from(entry) * SECTOR_BYTES;
        Block::Allocated {
            bitmap_offset,
            data_offset: bitmap_offset + u64::from(sparse.header.bitmap_sectors()) * SECTOR_BYTES,
            full: sparse
                .batmap
                .as_ref()
                .is_some_and(|batmap| batmap.get(block)),
        }
    }

    /// XenServer's mark of inner nodes of a tree.
    pub fn is_hidden(&self) -> bool {
        self.footer.hidden != 0
    }

    /// Whether the image was closed properly: the footer at its end is there, and equal to the
    /// copy at offset 0 where there is one. What is committed is sound either way. On a reserved
    /// container both stay in place while the image is written, unless
    /// [`Image::in_use_plan`] was performed.
    pub fn is_clean(&self) -> bool {
        self.clean
    }

    /// Whether a resize is under way that must be finished or reverted from its journal.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// The hash of the key the data is encrypted with; `None` for data in clear.
    pub fn keyhash(&self) -> Option<Keyhash> {
        self.batmap()?.header().keyhash()
    }

    /// Checks the key a chain is opened with against this image: every image of an encrypted chain
    /// carries the key's hash.
    ///
    /// # Errors
    /// `Key` for a key without a hash, a hash without a key, and a hash of another key.
    pub fn check_key(&self, key: Option<&[u8]>) -> Result<(), Error> {
        let (value, rule) = match (self.keyhash(), key) {
            (None, None) => return Ok(()),
            (Some(hash), Some(key)) if hash.matches(key) => return Ok(()),
            (Some(_), Some(_)) => ("of another key", "must be of the key given"),
            (Some(_), None) => ("set", "a key must be given"),
            (None, Some(_)) => ("not set", "the image is not encrypted with the key given"),
        };
        Err(Error::new(ErrorKind::Key, "batmap.keyhash", value, rule))
    }

    /// The tool stack's own byte; `None` if the image has no batmap to keep it in.
    pub fn marker(&self) -> Option<u8> {
        Some(self.batmap()?.header().marker)
    }

    /// Uuid the parent must have: `None` if the image has no parent, nil if the parent is raw.
    pub fn parent_uuid(&self) -> Option<Uuid> {
        let header = self.header()?;
        (self.disk_type() == DiskType::Differencing).then_some(header.parent_uuid)
    }

    /// The parent's locators with their data, in the order they are to be tried.
    pub fn locators(&self) -> &[Locator] {
        self.sparse.as_ref().map_or(&[], |sparse| &sparse.locators)
    }

    /// The first locator's path that can be decoded, with slashes. It is relative to the image's
    /// folder unless it begins with a slash; it may hold `..` and lead anywhere.
    pub fn parent_path(&self) -> Option<String> {
        self.locators()
            .iter()
            .find_map(|locator| locator.path().ok())
    }

    /// First byte after the last block (or after the data of a fixed disk): where a growing file's
    /// footer goes when the image is closed now. Reserved space counts until it is released.
    pub fn end_of_data_bytes(&self) -> u64 {
        match &self.sparse {
            Some(sparse) => sparse.next_free,
            None if self.options.extent == Extent::Reserved => self.virtual_bytes(),
            None => self.footer_found_at.unwrap_or(self.virtual_bytes()),
        }
    }

    /// Least size a growing file must have while it is open for writing: all reserved and
    /// committed blocks and one sector for the footer. It may be more than the file's size right
    /// after a crash; extend the file then, the missing bytes are zeros.
    pub fn size_needed_bytes(&self) -> u64 {
        self.end_of_data_bytes() + SECTOR_BYTES
    }

    /// Where the footer goes when the image is closed now.
    fn footer_offset(&self) -> u64 {
        match (self.options.extent, &self.sparse) {
            (Extent::Reserved, _) => last_sector(self.container_bytes),
            (Extent::Grows, _) => self.end_of_data_bytes(),
        }
    }

    fn check_writable(&self) -> Result<(), Error> {
        if self.options.access == Access::ReadWrite {
            return Ok(());
        }
        Err(Error::argument(
            "access",
            "read-only",
            "the image was not opened for writing",
        ))
    }

    fn sparse_mut(&mut self) -> Result<&mut Sparse, Error> {
        self.check_writable()?;
        let rule = "fixed disks have no blocks to allocate";
        self.sparse
            .as_mut()
            .ok_or_else(|| Error::argument("footer.type", "fixed", rule))
    }
}

impl Sparse {
    fn resize_max_bytes(&self) -> u64 {
        let by_table =
            u64::from(self.header.max_table_entries) * u64::from(self.header.block_bytes);
        // The map's used length is a 2^-24th of the size, in whole sectors.
        let by_batmap = self.batmap.as_ref().map_or(u64::MAX, |batmap| {
            let bytes = u64::from(batmap.header().map_sectors) * SECTOR_BYTES;
            (bytes + 1).saturating_mul(1 << 24) - 1
        });
        by_table.min(by_batmap).min(crate::VIRTUAL_BYTES_MAX)
    }
}

/// Byte offset of the last whole sector.
fn last_sector(container_bytes: u64) -> u64 {
    (container_bytes / SECTOR_BYTES).saturating_sub(1) * SECTOR_BYTES
}

//! One image of a chain as the map sees it: which blocks it has, and where.

use super::request::{Error, ErrorKind};
use super::sealed::Sealed;
use super::{LAYERS_MAX, map::Map};
use block::FileId;
use datapath::protocol::Access;
use units::SECTOR_BYTES;
use uuid::Uuid;
use vhd_rs::{DiskType, Image};

/// Sectors in a block of 2 MiB, the only block size that is served.
pub(super) const BLOCK_SECTORS: u32 = 4096;

/// A layer given to [`super::Engine::open`] or to a snapshot switch.
#[derive(Debug)]
pub struct LayerSpec {
    /// Its file, as the operations will name it.
    pub file: FileId,
    /// The file's size in bytes when the image was read.
    pub file_bytes: u64,
    /// What is in it.
    pub image: LayerImage,
}

/// What a layer's file holds. Recorded by the owner of the file, never probed for.
#[derive(Debug)]
pub enum LayerImage {
    /// The file is the disk.
    Raw,
    /// A VHD's metadata; the leaf's must be opened for writing if the disk takes writes.
    Vhd(Box<Image>),
}

/// Where a layer has a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere.
    Absent,
    /// All of it, from this sector of the file.
    Full(u64),
    /// What its bitmap says, which is at this sector; the data follows.
    Partial(u32),
}

impl Place {
    /// Where the block's first sector is in the file.
    pub(super) fn first_data_sector(self) -> Option<u64> {
        match self {
            Place::Absent => None,
            Place::Full(first) => Some(first),
            Place::Partial(entry) => Some(u64::from(entry).saturating_add(1)),
        }
    }
}

/// One bit per block.
#[derive(Debug)]
pub(super) struct BitSet(Vec<u64>);

impl BitSet {
    pub(super) fn with_len(bits: u32) -> Self {
        Self(vec![0; bits.div_ceil(64) as usize])
    }

    pub(super) fn get(&self, bit: u32) -> bool {
        self.0
            .get(bit as usize / 64)
            .is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }

    pub(super) fn set(&mut self, bit: u32, on: bool) {
        let index = bit as usize / 64;
        if index >= self.0.len() {
            self.0.resize(index + 1, 0);
        }
        if let Some(word) = self.0.get_mut(index) {
            if on {
                *word |= 1 << (bit % 64);
            } else {
                *word &= !(1 << (bit % 64));
            }
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.0.capacity() * size_of::<u64>()
    }

    fn ones(&self) -> impl Iterator<Item = u32> + '_ {
        let words = (0u32..)
            .step_by(64)
            .zip(self.0.iter().copied())
            .filter(|(_, word)| *word != 0);
        words.flat_map(|(first, word)| {
            (0..64)
                .filter(move |bit| word & (1 << bit) != 0)
                .map(move |bit| first + bit)
        })
    }
}

#[derive(Debug)]
pub(super) enum Content {
    /// The disk's bytes from offset 0 of the file: raw, or a fixed VHD.
    Flat,
    /// A dynamic or differencing VHD that is or may be written: the leaf.
    Sparse(Sparse),
    /// One below the leaf.
    Sealed(Sealed),
}

#[derive(Debug)]
pub(super) struct Sparse {
    pub(super) image: Box<Image>,
    /// Blocks known to be complete: from the batmap, or because their bitmap was seen full.
    pub(super) full: BitSet,
}

/// A layer of an open disk.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) file: FileId,
    pub(super) file_bytes: u64,
    pub(super) size_sectors: u64,
    uuid: Uuid,
    pub(super) content: Content,
}

impl Layer {
    pub(super) fn new(spec: LayerSpec) -> Result<Self, Error> {
        let LayerSpec {
            file,
            file_bytes,
            image,
        } = spec;
        let (uuid, size_bytes, content) = match image {
            LayerImage::Raw => (Uuid::nil(), file_bytes, Content::Flat),
            LayerImage::Vhd(image) => {
                let (uuid, size) = (image.uuid(), image.virtual_bytes());
                if image.disk_type() == DiskType::Fixed {
                    (uuid, size, Content::Flat)
                } else {
                    (uuid, size, Content::Sparse(Sparse::new(image)?))
                }
            }
        };
        // Raw bytes behind the last whole sector cannot be addressed by anyone.
        let size_sectors = size_bytes / SECTOR_BYTES;
        if size_sectors.div_ceil(u64::from(BLOCK_SECTORS)) >= u64::from(u32::MAX) {
            let text = format!("a disk of {size_bytes} bytes is beyond 8 PiB");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        Ok(Self {
            file,
            file_bytes,
            size_sectors,
            uuid,
            content,
        })
    }

    pub(super) fn uuid(&self) -> Uuid {
        self.uuid
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_sectors.saturating_mul(SECTOR_BYTES)
    }

    /// Blocks of the layer, the last of which may be cut short by its end.
    pub(super) fn blocks(&self) -> u32 {
        // `new` refuses layers with more.
        let blocks = self.size_sectors.div_ceil(u64::from(BLOCK_SECTORS));
        u32::try_from(blocks).unwrap_or(u32::MAX)
    }

    /// Sectors of the block that lie inside the layer.
    pub(super) fn sectors_in(&self, block: u32) -> u32 {
        let first = u64::from(block) * u64::from(BLOCK_SECTORS);
        self.size_sectors
            .saturating_sub(first)
            .min(u64::from(BLOCK_SECTORS)) as u32
    }

    pub(super) fn place(&self, block: u32) -> Place {
        match &self.content {
            Content::Flat if self.sectors_in(block) == 0 => Place::Absent,
            Content::Flat => Place::Full(u64::from(block) * u64::from(BLOCK_SECTORS)),
            Content::Sparse(sparse) => sparse.place(block),
            Content::Sealed(sealed) => sealed.place(block),
        }
    }

    /// Remembers whether the layer has every sector of the block.
    pub(super) fn set_full(&mut self, block: u32, full: bool) {
        match &mut self.content {
            Content::Flat => {}
            Content::Sparse(sparse) => sparse.full.set(block, full),
            Content::Sealed(sealed) => sealed.set_full(block, full),
        }
    }

    pub(super) fn sparse_mut(&mut self) -> Option<&mut Sparse> {
        match &mut self.content {
            Content::Flat | Content::Sealed(_) => None,
            Content::Sparse(sparse) => Some(sparse),
        }
    }

    /// Is the leaf no more: keeps only what reading needs.
    pub(super) fn seal(&mut self) {
        let Content::Sparse(_) = &self.content else {
            return;
        };
        if let Content::Sparse(sparse) = std::mem::replace(&mut self.content, Content::Flat)
            && let Some(bat) = sparse.image.into_bat()
        {
            let full = sparse.full;
            self.content = Content::Sealed(Sealed::new(bat, |block| full.get(block)));
        }
    }

    /// Bytes of memory that depend on the disk's size and content.
    pub(super) fn memory_bytes(&self) -> usize {
        match &self.content {
            Content::Flat => 0,
            Content::Sparse(sparse) => sparse.memory_bytes(),
            Content::Sealed(sealed) => sealed.memory_bytes(),
        }
    }

    pub(super) fn sparse(&self) -> Option<&Sparse> {
        match &self.content {
            Content::Flat | Content::Sealed(_) => None,
            Content::Sparse(sparse) => Some(sparse),
        }
    }
}

impl Sparse {
    fn new(image: Box<Image>) -> Result<Self, Error> {
        if image.block_bytes() != vhd_rs::BLOCK_BYTES {
            let text = format!(
                "image {} has blocks of {} bytes, only those of 2 MiB are served",
                image.uuid(),
                image.block_bytes()
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let mut full = BitSet::with_len(image.blocks());
        if let (Some(bat), Some(batmap)) = (image.bat(), image.batmap()) {
            let blocks = bat.allocated().map(|(block, _)| block);
            blocks
                .filter(|block| batmap.get(*block))
                .for_each(|block| full.set(block, true));
        }
        Ok(Self { image, full })
    }

    fn place(&self, block: u32) -> Place {
        match self.image.bat().and_then(|bat| bat.get(block)) {
            None => Place::Absent,
            Some(entry) if self.full.get(block) => Place::Full(u64::from(entry).saturating_add(1)),
            Some(entry) => Place::Partial(entry),
        }
    }

    fn memory_bytes(&self) -> usize {
        let bat = self.image.bat().map_or(0, vhd_rs::Bat::memory_bytes);
        // A bit per block each, the batmap as it lies on disk.
        let batmap = self.image.batmap().map_or(0, |_| self.image.blocks() / 8);
        bat + batmap as usize + self.full.memory_bytes()
    }

    /// Whether the batmap on disk says that the block is complete, so that others skip its bitmap.
    pub(super) fn in_batmap(&self, block: u32) -> bool {
        self.image.batmap().is_some_and(|batmap| batmap.get(block))
    }

    /// Puts what is known to be full, and durably so, into the batmap in memory.
    pub(super) fn note_full_blocks(&mut self) {
        for block in self.full.ones() {
            self.image.set_full(block);
        }
    }
}

/// Turns specifications (leaf first) into layers (base first) if they make a chain.
pub(super) fn check_chain(specs: Vec<LayerSpec>, access: Access) -> Result<Vec<Layer>, Error> {
    let links: Vec<vhd_rs::Layer<'_>> = specs.iter().map(LayerSpec::link).collect();
    vhd_rs::check_chain(&links, LAYERS_MAX)
        .map_err(|e| Error::new(ErrorKind::Chain, format!("the chain does not fit: {e}")))?;
    if let Some(leaf) = specs.first() {
        check_leaf(leaf, access)?;
    }
    specs.into_iter().rev().map(Layer::new).collect()
}

/// Checks that a new leaf is the empty child of the present one.
pub(super) fn check_new_leaf(spec: &LayerSpec, map: &Map) -> Result<(), Error> {
    let chain = |text: String| Err(Error::new(ErrorKind::Chain, text));
    let LayerImage::Vhd(image) = &spec.image else {
        return chain("a new leaf must be a differencing image, this is raw".into());
    };
    let (leaf, uuid) = (map.leaf(), image.uuid());
    if image.parent_uuid() != Some(leaf.uuid()) {
        return chain(format!("new leaf {uuid} is no child of {}", leaf.uuid()));
    }
    let allocated = image.allocated_blocks();
    if allocated > 0 {
        return chain(format!("new leaf {uuid} has {allocated} blocks already"));
    }
    if image.virtual_bytes() < leaf.size_bytes() {
        let (size, needed) = (image.virtual_bytes(), leaf.size_bytes());
        return chain(format!(
            "new leaf {uuid} has {size} bytes, the disk has {needed}"
        ));
    }
    if map.layers.len() >= LAYERS_MAX || map.layers.iter().any(|layer| layer.uuid() == uuid) {
        return chain(format!(
            "new leaf {uuid} is in the chain already, or the chain is too long"
        ));
    }
    check_image(image, Access::ReadWrite)
}

fn check_leaf(leaf: &LayerSpec, access: Access) -> Result<(), Error> {
    match &leaf.image {
        LayerImage::Raw => Ok(()),
        LayerImage::Vhd(image) => check_image(image, access),
    }
}

/// Checks that an image can be the leaf.
fn check_image(image: &Image, access: Access) -> Result<(), Error> {
    let read_only = image.options().access == vhd_rs::Access::ReadOnly;
    if access == Access::ReadWrite && read_only {
        let text = format!("leaf {} was not opened for writing", image.uuid());
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    Ok(())
}

impl LayerSpec {
    fn link(&self) -> vhd_rs::Layer<'_> {
        match &self.image {
            LayerImage::Raw => vhd_rs::Layer::Raw,
            LayerImage::Vhd(image) => vhd_rs::Layer::Vhd(image),
        }
    }
}

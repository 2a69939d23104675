//! Images to test with, ways to damage them so that checksums stay right, and a writer that does
//! payload I/O with nothing but the crate's plans.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;
use vhd_rs::{
    Access, Block, Content, Error, Extent, Image, NewImage, OpenOptions, ParentLink, Timestamp,
    bitmap, checksum,
};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const UUID: Uuid = Uuid::from_u128(0x11111111_2222_4333_8444_555555555555);
pub(crate) const PARENT: Uuid = Uuid::from_u128(0xaaaaaaaa_bbbb_4ccc_8ddd_eeeeeeeeeeee);
pub(crate) const READ_WRITE: OpenOptions = OpenOptions {
    extent: Extent::Grows,
    access: Access::ReadWrite,
};

pub(crate) fn new_image(virtual_bytes: u64, content: Content) -> NewImage {
    NewImage {
        uuid: UUID,
        created: Timestamp(0x2a00_0001),
        virtual_bytes,
        resize_max_bytes: 0,
        content,
        extent: Extent::Grows,
        container_bytes: 0,
    }
}

pub(crate) fn link(path: &str, uuid: Uuid) -> ParentLink {
    ParentLink {
        path: path.into(),
        uuid,
        modified: Timestamp(0x2a00_0000),
    }
}

pub(crate) fn bytes_of(new: &NewImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    new.plan()
        .expect("image can be made")
        .apply(&mut bytes)
        .expect("memory takes writes");
    bytes
}

/// A dynamic image of 64 MiB without blocks, 4096 + 512 bytes of metadata before the footer.
pub(crate) fn dynamic() -> Vec<u8> {
    bytes_of(&new_image(64 * MIB, Content::Dynamic))
}

pub(crate) fn differencing() -> Vec<u8> {
    bytes_of(&new_image(
        64 * MIB,
        Content::Differencing(link("a.vhd", PARENT)),
    ))
}

pub(crate) fn open(bytes: &[u8]) -> Result<Image, Error> {
    Image::open(&bytes, READ_WRITE)
}

/// A dynamic image of 64 MiB with these blocks allocated in this order, all bits clear.
pub(crate) fn dynamic_with_blocks(blocks: &[u32]) -> Vec<u8> {
    let mut bytes = dynamic();
    let mut image = open(&bytes).expect("a fresh image opens");
    for &block in blocks {
        let place = image.reserve(block).expect("there is room");
        image.commit(&place).expect("it was reserved");
        bytes.resize(image.size_needed_bytes() as usize, 0);
        let sector = image.bat_sector(block).expect("the block has an entry");
        put(&mut bytes, sector.offset as usize, &sector.bytes);
    }
    bytes_after_close(bytes, &mut image)
}

pub(crate) fn bytes_after_close(mut bytes: Vec<u8>, image: &mut Image) -> Vec<u8> {
    image
        .close_plan()
        .expect("opened for writing")
        .apply(&mut bytes)
        .expect("memory");
    bytes
}

pub(crate) fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    bytes[at..at + new.len()].copy_from_slice(new);
}

/// Changes both footers and makes their checksums right.
pub(crate) fn with_footers(mut bytes: Vec<u8>, change: impl Fn(&mut [u8])) -> Vec<u8> {
    for at in [0, bytes.len() - 512] {
        reseal(&mut bytes[at..at + 512], 64, &change);
    }
    bytes
}

/// Changes the sparse header and makes its checksum right.
pub(crate) fn with_header(mut bytes: Vec<u8>, change: impl Fn(&mut [u8])) -> Vec<u8> {
    reseal(&mut bytes[512..1536], 36, change);
    bytes
}

pub(crate) fn reseal(region: &mut [u8], checksum_at: usize, change: impl Fn(&mut [u8])) {
    change(region);
    put(region, checksum_at, &[0; 4]);
    let sum = checksum(region);
    put(region, checksum_at, &sum.to_be_bytes());
}

/// An image in a file with guest I/O by the crate's plans: every write is made durable in the
/// simplest order, one block at a time.
pub(crate) struct Writer {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) image: Image,
}

impl Writer {
    pub(crate) fn create(path: &Path, new: &NewImage) -> Self {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .expect("the folder takes files");
        if new.extent == Extent::Reserved {
            // A volume that has been used before.
            let old = vec![0x5a; new.container_bytes as usize];
            file.write_all_at(&old, 0).expect("the file takes writes");
        }
        new.plan()
            .expect("image can be made")
            .apply(&mut file)
            .expect("the file takes writes");
        Self::open_as(path, new.extent)
    }

    pub(crate) fn open(path: &Path) -> Self {
        Self::open_as(path, Extent::Grows)
    }

    pub(crate) fn open_as(path: &Path, extent: Extent) -> Self {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("the file is there");
        let options = OpenOptions {
            extent,
            ..READ_WRITE
        };
        let image = Image::open(&file, options).expect("the image opens");
        Self {
            file,
            path: path.to_owned(),
            image,
        }
    }

    /// Writes whole sectors, as a guest does.
    pub(crate) fn write(&mut self, first_sector: u64, data: &[u8]) {
        for (index, sector) in data.chunks(512).enumerate() {
            let number = first_sector + index as u64;
            let (block, inside) = ((number / 4096) as u32, (number % 4096) as u32);
            let (bitmap_offset, data_offset) = self.place(block);
            self.write_at(data_offset + u64::from(inside) * 512, sector);
            let mut bits = [0; 512];
            self.file
                .read_exact_at(&mut bits, bitmap_offset)
                .expect("the bitmap is there");
            if bitmap::set_range(&mut bits, inside..inside + 1) {
                self.write_at(bitmap_offset, &bits);
            }
            if bitmap::is_full(&bits) {
                self.image.set_full(block);
            }
        }
    }

    /// Where the block's bitmap and data are, allocating it if need be.
    fn place(&mut self, block: u32) -> (u64, u64) {
        if let Block::Allocated {
            bitmap_offset,
            data_offset,
            ..
        } = self.image.block(block)
        {
            return (bitmap_offset, data_offset);
        }
        let place = self.image.reserve(block).expect("there is room");
        if self.image.options().extent == Extent::Grows {
            self.file
                .set_len(self.image.size_needed_bytes())
                .expect("the file grows");
        }
        self.write_at(place.bitmap_offset, &[0; 512]);
        self.image.commit(&place).expect("it was reserved");
        let sector = self
            .image
            .bat_sector(block)
            .expect("the block has an entry");
        self.write_at(sector.offset, &sector.bytes);
        (place.bitmap_offset, place.data_offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) {
        self.file
            .write_all_at(bytes, offset)
            .expect("the file takes writes");
    }

    pub(crate) fn close(mut self) -> PathBuf {
        let plan = self.image.close_plan().expect("opened for writing");
        plan.apply(&mut self.file).expect("the file takes writes");
        self.path
    }
}

//! Images in memory as the code under test and as the oracles see them.

use block::SparseBytes;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use vhd_checker::{Flat, Problem, Report, Strictness, check};
use vhd_rs::{Allow, Block, Image, OpenOptions, ReadAt, WriteAt, bitmap};

/// A file in memory that is sparse, so that it can claim any size.
#[derive(Debug, Clone, Default)]
pub struct Medium(pub SparseBytes);

impl ReadAt for Medium {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.0.size_bytes())
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let inside = self.0.read(offset, buffer);
        if inside < buffer.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

impl WriteAt for Medium {
    fn write_all_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write(offset, bytes);
        Ok(())
    }

    fn set_size(&mut self, bytes: u64) -> io::Result<()> {
        self.0.truncate(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What opening an image may hold at a time: its used table twice, once as bytes, and 64 bytes for
/// each block that its size has room for. Tables lie inside the file and are read up to 32 MiB.
pub fn open_limit_bytes(medium: &Medium) -> u64 {
    let size = medium.0.size_bytes();
    let table = size.min(32 << 20);
    let blocks = (size >> 21).min(8 << 20);
    (128 << 10) + 3 * table + 64 * blocks
}

/// Opens an image within its memory.
///
/// # Errors
/// Those of the library.
pub fn open(medium: &Medium, options: OpenOptions, allow: Allow) -> Result<Image, vhd_rs::Error> {
    crate::guard::bounded("an open", open_limit_bytes(medium), || {
        Image::open_with(medium, options, allow)
    })
}

/// A copy that the oracles can open by name, as long as this is kept.
#[derive(Debug)]
pub struct OnDisk {
    file: File,
}

impl OnDisk {
    /// Copies what is not zero.
    ///
    /// # Panics
    /// If the kernel has no memory for it.
    pub fn new(content: &SparseBytes) -> Self {
        let fd = memfd_create("image", MemfdFlags::CLOEXEC).expect("memory for an image");
        let file = File::from(fd);
        file.set_len(content.size_bytes()).expect("its size");
        for (offset, bytes) in content.pages() {
            let inside = content.size_bytes().saturating_sub(offset);
            let inside = inside.min(bytes.len() as u64) as usize;
            let bytes = bytes.get(..inside).unwrap_or_default();
            file.write_all_at(bytes, offset).expect("its content");
        }
        Self { file }
    }

    /// Its name.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }
}

/// Largest file that the checker and the naive reader are asked about: they are slow, and a file in
/// memory has no more.
pub const ORACLE_BYTES_MAX: u64 = 1 << 40;

/// What the independent checker finds in one image. Places that no file can have are a finding too.
pub fn report(content: &SparseBytes, strictness: Strictness) -> Report {
    let found = check(&OnDisk::new(content).path(), strictness);
    found.unwrap_or_else(|e| Report {
        problems: vec![Problem(e.to_string())],
    })
}

/// Whether an image may have been left so by a crash, and all its blocks are there: what is missing
/// of one that a file ends in is an error to read, and zeros to the naive reader.
pub fn is_whole(content: &SparseBytes) -> bool {
    let small = content.size_bytes() <= ORACLE_BYTES_MAX;
    if !small || !report(content, Strictness::AfterCrash).is_sound() {
        return false;
    }
    let medium = Medium(content.clone());
    let image = open(&medium, OpenOptions::default(), Allow::default());
    image.is_ok_and(|image| image.end_of_data_bytes() <= content.size_bytes())
}

/// A sector of one image by the library's answers alone; `None` if it is the parent's.
///
/// # Panics
/// If the library's answer leads beyond the file where it must not.
pub fn sector_of(image: &Image, content: &SparseBytes, sector: u64) -> Option<[u8; 512]> {
    let per_block = u64::from(image.block_bytes()) / 512;
    let (block, inside) = ((sector / per_block) as u32, sector % per_block);
    let mut bytes = [0; 512];
    match image.block(block) {
        Block::Unallocated => None,
        Block::Fixed { data_offset } => {
            content.read(data_offset + inside * 512, &mut bytes);
            Some(bytes)
        }
        Block::Allocated {
            bitmap_offset,
            data_offset,
            full,
        } => {
            let mut bits = vec![0; image.bitmap_bytes() as usize];
            content.read(bitmap_offset, &mut bits);
            if !full && !bitmap::get(&bits, inside as u32) {
                return None;
            }
            content.read(data_offset + inside * 512, &mut bytes);
            Some(bytes)
        }
    }
}

/// Sectors worth a look: the edges of the first, the last and the allocated blocks.
pub fn sectors_to_see(image: &Image) -> Vec<u64> {
    let per_block = u64::from(image.block_bytes()) / 512;
    let total = image.virtual_bytes() / 512;
    let mut blocks: Vec<u64> = vec![0, u64::from(image.blocks()) - 1];
    if let Some(bat) = image.bat() {
        blocks.extend(bat.allocated().take(6).map(|(block, _)| u64::from(block)));
    }
    let inside = [0, 1, 7, 8, 63, 100, 2048, per_block - 1];
    let mut sectors: Vec<u64> = blocks
        .iter()
        .flat_map(|block| inside.map(|n| block * per_block + n.min(per_block - 1)))
        .filter(|sector| *sector < total)
        .collect();
    sectors.sort_unstable();
    sectors.dedup();
    sectors
}

/// The naive reader on a chain, leaf first.
///
/// # Errors
/// Those of the reader.
pub fn naive(chain: &[OnDisk]) -> io::Result<Flat> {
    let paths: Vec<PathBuf> = chain.iter().map(OnDisk::path).collect();
    vhd_checker::read_flat(&paths)
}

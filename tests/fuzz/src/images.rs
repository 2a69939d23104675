//! Images made by choices: laid out byte by byte from the description of the format, sharing nothing
//! with the library under test, and damaged by choices afterwards, checksums put right again.

use crate::input::Input;
use crate::oracle::Medium;
use block::SparseBytes;

mod damage;
mod locators;

pub use damage::damage;
pub use locators::encode as encode_path;

/// Bytes of a block.
pub const BLOCK: u64 = 2 << 20;
const SECTOR: u64 = 512;
const HEADER_AT: u64 = 512;

/// What an image is to be.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// Makes its uuid.
    pub number: u8,
    /// Uuid of the parent; zero for a raw one.
    pub parent: Option<[u8; 16]>,
    /// Blocks at most, but for the few that are large on purpose.
    pub blocks_max: u64,
    /// Only what tap makes, with room to grow, so that everything can be done with it.
    pub by_tap: bool,
}

/// Where things are in an image that was made.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Bytes a guest sees.
    pub size: u64,
    /// Byte offset of the table.
    pub table: u64,
    /// Byte offset of the batmap's header, if there is one.
    pub batmap: Option<u64>,
    /// Byte offset of the map.
    pub map: u64,
    /// Bytes of the map in use.
    pub map_used: u64,
    /// Byte offsets of the locators' texts.
    pub paths: Vec<u64>,
    /// Byte offsets of the blocks' bitmaps.
    pub blocks: Vec<u64>,
    /// Byte offset of the footer at the end.
    pub footer: u64,
}

/// An image that was made.
#[derive(Debug, Clone, Default)]
pub struct Made {
    /// Its bytes.
    pub medium: Medium,
    /// Where things are.
    pub layout: Layout,
}

/// The uuid of image `number`.
pub fn uuid(number: u8) -> [u8; 16] {
    let mut uuid = [0x11; 16];
    uuid[15] = number;
    uuid
}

/// Rounds up to sectors, at least one.
fn pad(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(SECTOR)
}

/// Writes the checksum of a region at `at` in it.
pub fn seal(region: &mut [u8], at: usize) {
    region[at..at + 4].fill(0);
    let sum: u32 = region.iter().map(|byte| u32::from(*byte)).sum();
    region[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

fn set(region: &mut [u8], at: usize, bytes: &[u8]) {
    region[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Creators and versions: tap's own first, then those of other programs.
const CREATORS: [(&[u8; 4], u32); 6] = [
    (b"tap\0", 0x0001_0003),
    (b"tap\0", 0x0001_0002),
    (b"tap\0", 0x0001_0001),
    (b"qem2", 0x0005_0003),
    (b"win ", 0x0006_0001),
    (b"vpc ", 0x0005_0000),
];

/// A fixed disk of a few sectors, closed.
pub fn fixed(input: &mut Input<'_>, number: u8) -> Made {
    let size = (1 + input.below(64)) * SECTOR;
    let mut content = SparseBytes::zeroed(size);
    for _ in 0..input.below(4) {
        let at = input.below(size / SECTOR) * SECTOR;
        content.write(at, &[0x40 + number; 512]);
    }
    let (application, version) = input.pick(&CREATORS);
    let footer = footer(number, (2, u64::MAX), size, (application, version));
    content.write(size, &footer);
    let layout = Layout {
        size,
        footer: size,
        ..Layout::default()
    };
    Made {
        medium: Medium(content),
        layout,
    }
}

fn footer(
    number: u8,
    (kind, header_at): (u32, u64),
    size: u64,
    (application, version): (&[u8; 4], u32),
) -> [u8; 512] {
    let mut f = [0; 512];
    set(&mut f, 0, b"conectix");
    set(&mut f, 8, &2u32.to_be_bytes());
    set(&mut f, 12, &0x0001_0000u32.to_be_bytes());
    set(&mut f, 16, &header_at.to_be_bytes());
    set(&mut f, 24, &0x2a00_0001u32.to_be_bytes());
    set(&mut f, 28, application);
    set(&mut f, 32, &version.to_be_bytes());
    set(&mut f, 40, &size.to_be_bytes());
    set(&mut f, 48, &size.to_be_bytes());
    // The smallest geometry there is: readers go by the size.
    set(&mut f, 56, &[0, 1, 4, 17]);
    set(&mut f, 60, &kind.to_be_bytes());
    set(&mut f, 68, &uuid(number));
    seal(&mut f, 64);
    f
}

/// A dynamic or differencing disk, sound and closed.
pub fn sparse(input: &mut Input<'_>, wish: Wish) -> Made {
    let mut blocks = 1 + input.below(wish.blocks_max);
    if wish.blocks_max > 1 && input.one_in(12) {
        // Where the batmap's used length is one sector short.
        blocks = 4094 + input.below(12);
    }
    let short = if input.one_in(4) {
        input.below(16) * SECTOR
    } else {
        0
    };
    let size = blocks * BLOCK - short;
    let creator = if wish.by_tap {
        CREATORS[0]
    } else {
        input.pick(&CREATORS)
    };
    let is_tap = creator.0 == b"tap\0";
    let with_map = is_tap && (creator.1 != 0x0001_0001 || input.one_in(2));
    let entries = blocks + input.pick(&[0, 0, 1, 127, 2000]);
    let mut layout = Layout {
        size,
        ..Layout::default()
    };
    layout.table = 1536
        + if wish.by_tap {
            0
        } else {
            input.below(3) * SECTOR
        };
    let mut at = layout.table + pad(entries * 4);
    let mut content = SparseBytes::default();
    let reserved = entries.div_ceil(4096).max(1) * SECTOR;
    if with_map {
        layout.batmap = Some(at);
        layout.map = at
            + SECTOR
            + if wish.by_tap {
                0
            } else {
                input.below(2) * SECTOR
            };
        layout.map_used = pad(size >> 24);
        at = layout.map + reserved.max(layout.map_used);
    }
    let mut header = header_of(wish, &layout, entries);
    if wish.parent.is_some() {
        at = locators::write(
            input,
            wish.number,
            at,
            &mut header,
            &mut content,
            &mut layout,
        );
    }
    seal(&mut header, 36);
    let full = place_blocks(
        input,
        (blocks, at, is_tap),
        &mut content,
        &mut layout,
        entries,
    );
    if let Some(batmap) = layout.batmap {
        write_batmap(
            input,
            batmap,
            reserved,
            &full,
            &mut content,
            &layout,
            creator.1,
        );
    }
    content.write(HEADER_AT, &header);
    let kind = if wish.parent.is_some() { 4 } else { 3 };
    let footer = footer(wish.number, (kind, HEADER_AT), size, creator);
    content.write(0, &footer);
    let data_end = layout.blocks.iter().map(|at| at + SECTOR + BLOCK);
    layout.footer = data_end.fold(at, u64::max);
    content.write(layout.footer, &footer);
    Made {
        medium: Medium(content),
        layout,
    }
}

fn header_of(wish: Wish, layout: &Layout, entries: u64) -> [u8; 1024] {
    let mut h = [0; 1024];
    set(&mut h, 0, b"cxsparse");
    set(&mut h, 8, &u64::MAX.to_be_bytes());
    set(&mut h, 16, &layout.table.to_be_bytes());
    set(&mut h, 24, &0x0001_0000u32.to_be_bytes());
    set(&mut h, 28, &(entries as u32).to_be_bytes());
    set(&mut h, 32, &(BLOCK as u32).to_be_bytes());
    if let Some(parent) = wish.parent {
        set(&mut h, 40, &parent);
        set(&mut h, 56, &0x2a00_0000u32.to_be_bytes());
    }
    h
}

/// Fills the table and a few blocks, and returns those that may be called full.
fn place_blocks(
    input: &mut Input<'_>,
    (blocks, headers_end, is_tap): (u64, u64, bool),
    content: &mut SparseBytes,
    layout: &mut Layout,
    entries: u64,
) -> Vec<u64> {
    let mut table = vec![0xFF; (entries * 4) as usize];
    let mut next = headers_end / SECTOR;
    let mut full = Vec::new();
    for _ in 0..input.below(6) {
        let block = if input.one_in(3) {
            blocks - 1
        } else {
            input.below(blocks)
        };
        let slot = (block * 4) as usize;
        if table[slot..slot + 4] != [0xFF; 4] {
            continue;
        }
        // tap puts data at 4096; others anywhere.
        let aligned = next + (8 - (next + 1) % 8) % 8;
        let entry = if is_tap {
            aligned
        } else {
            input.pick(&[next, aligned, next + 3])
        };
        set(&mut table, slot, &(entry as u32).to_be_bytes());
        next = entry + 1 + 4096;
        layout.blocks.push(entry * SECTOR);
        if fill_block(input, block, entry * SECTOR, content) {
            full.push(block);
        }
    }
    content.write(layout.table, &table);
    full
}

/// A bitmap, and sectors with something in them whether their bits are set or not.
fn fill_block(input: &mut Input<'_>, block: u64, at: u64, content: &mut SparseBytes) -> bool {
    let mut bitmap = [0u8; 512];
    let full = match input.below(3) {
        0 => input.one_in(2),
        1 => {
            bitmap = [0xFF; 512];
            true
        }
        _ => {
            for _ in 0..1 + input.below(4) {
                bitmap[input.below(512) as usize] = input.number() as u8;
            }
            bitmap[0] |= input.pick(&[0, 0x80, 0xC0]);
            false
        }
    };
    let full = full && bitmap == [0xFF; 512];
    content.write(at, &bitmap);
    for _ in 0..input.below(4) {
        let sector = input.pick(&[0, 1, 7, 8, 63, 100, 2048, 4095]);
        content.write(
            at + SECTOR + sector * SECTOR,
            &[0xA0 ^ block as u8 ^ sector as u8; 512],
        );
    }
    full
}

fn write_batmap(
    input: &mut Input<'_>,
    at: u64,
    reserved: u64,
    full: &[u64],
    content: &mut SparseBytes,
    layout: &Layout,
    creator_version: u32,
) {
    let mut map = vec![0u8; layout.map_used as usize];
    for block in full {
        let byte = (block / 8) as usize;
        if byte < map.len() && !input.one_in(3) {
            map[byte] |= 0x80 >> (block % 8);
        }
    }
    content.write(layout.map, &map);
    let signed = creator_version < 0x0001_0003 && input.one_in(2);
    let mut h = [0; 512];
    set(&mut h, 0, b"tdbatmap");
    set(&mut h, 8, &layout.map.to_be_bytes());
    set(
        &mut h,
        16,
        &((reserved.max(layout.map_used) / SECTOR) as u32).to_be_bytes(),
    );
    set(
        &mut h,
        20,
        &(if signed { 0x0001_0001u32 } else { 0x0001_0002 }).to_be_bytes(),
    );
    set(&mut h, 24, &map_sum(&map, signed).to_be_bytes());
    h[28] = input.pick(&[0, 1, 0xFF]);
    content.write(at, &h);
    let end = layout.map + reserved.max(layout.map_used);
    content.truncate(content.size_bytes().max(end));
}

/// The batmap's checksum in its two forms.
pub(crate) fn map_sum(map: &[u8], signed: bool) -> u32 {
    let of = |byte: &u8| {
        if signed {
            i64::from(byte.cast_signed())
        } else {
            i64::from(*byte)
        }
    };
    !(map.iter().map(of).sum::<i64>() as u32)
}

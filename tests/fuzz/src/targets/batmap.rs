//! Batmaps: any header, any sequence of marks against a model of bits, and logs of changed blocks,
//! which are bitmaps too.

use crate::images::{self, Wish};
use crate::input::Input;
use crate::oracle::{self, Medium};
use std::collections::BTreeSet;
use std::ops::Range;
use vhd_checker::Strictness;
use vhd_rs::{Access, Allow, BatmapHeader, Block, Extent, Image, OpenOptions, cbt};

const OPTIONS: OpenOptions = OpenOptions {
    extent: Extent::Grows,
    access: Access::ReadWrite,
};

/// See the module's page.
pub fn target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.below(4) {
        0 => any_header(&mut input),
        1 => any_log(&mut input),
        _ => any_marks(&mut input),
    }
}

fn any_header(input: &mut Input<'_>) {
    let mut sector = [0u8; 512];
    let given = input.bytes(512);
    sector[..given.len()].copy_from_slice(&given);
    if !input.one_in(4) {
        sector[..8].copy_from_slice(b"tdbatmap");
        let version = input.pick(&[0x0001_0002u32, 0x0001_0001, 0x0001_0003, 0]);
        sector[20..24].copy_from_slice(&version.to_be_bytes());
    }
    if let Ok(header) = BatmapHeader::parse(&sector) {
        assert_eq!(
            BatmapHeader::parse(&header.to_bytes()).expect("it was one"),
            header
        );
        assert_eq!(header.keyhash().is_some(), sector[29] == 1);
    }
}

fn any_log(input: &mut Input<'_>) {
    let mut bytes = [0u8; cbt::CBT_HEADER_BYTES];
    let given = input.bytes(48);
    bytes[..given.len()].copy_from_slice(&given);
    let size = input.odd(&[16 << 40]);
    bytes[40..].copy_from_slice(&size.to_le_bytes());
    if let Ok(header) = cbt::CbtHeader::parse(&bytes) {
        assert!(header.bitmap_bytes() <= 32 << 20);
        let again = cbt::CbtHeader::parse(&header.to_bytes()).expect("it was one");
        assert_eq!(again, header);
    }
    let mut map = vec![0; input.below(64) as usize];
    let total = map.len() as u64 * 8;
    let mut model = BTreeSet::new();
    for _ in 0..input.below(8) {
        let start = input.odd(&[total << 16]);
        let end = start.saturating_add(input.pick(&[0, 1, 512, 1 << 16, 1 << 22]));
        cbt::set_written(&mut map, start..end);
        model.extend((0..total).filter(|n| overlaps(n << 16..(n + 1) << 16, &(start..end))));
    }
    for block in 0..total {
        assert_eq!(cbt::get(&map, block), model.contains(&block), "{block}");
    }
}

fn overlaps(a: Range<u64>, b: &Range<u64>) -> bool {
    !b.is_empty() && a.start < b.end && b.start < a.end
}

/// Bits follow a model: set only for blocks that have a bit and a gap, kept by closing.
fn any_marks(input: &mut Input<'_>) {
    let wish = Wish {
        number: 1,
        parent: None,
        blocks_max: 6,
        by_tap: true,
    };
    let made = images::sparse(input, wish);
    let mut medium = made.medium;
    let mut image = open(&medium);
    let mut model = marked(&image);
    for _ in 0..24 {
        if input.is_used_up() {
            break;
        }
        let last = u64::from(image.blocks()) - 1;
        let block = if input.one_in(2) {
            last - input.below(9).min(last)
        } else {
            input.below(6)
        } as u32;
        match input.below(7) {
            0 | 1 => allocate_full(&mut image, &mut medium, block),
            2 => mark(&mut image, &medium, &mut model, block),
            3 => assert_eq!(image.clear_full(block), model.remove(&block)),
            4 => unmap(&mut image, &mut medium, &model, block),
            5 => {
                let grown = image
                    .resize_plan(image.virtual_bytes() + images::BLOCK * input.pick(&[1, 7, 4096]));
                apply(grown.ok(), &mut medium);
            }
            _ => {
                apply(image.close_plan().ok(), &mut medium);
                let mut report = oracle::report(&medium.0, Strictness::Closed);
                // The space of a block that was unmapped stays in the file.
                report
                    .problems
                    .retain(|problem| !problem.0.starts_with("file has "));
                assert!(report.is_sound(), "{:?}", report.problems);
                image = open(&medium);
            }
        }
        assert_eq!(marked(&image), model);
    }
}

fn open(medium: &Medium) -> Image {
    oracle::open(medium, OPTIONS, Allow::default()).expect("a sound image opens")
}

fn apply(plan: Option<vhd_rs::Plan>, medium: &mut Medium) {
    if let Some(plan) = plan {
        plan.apply(medium).expect("memory takes writes");
    }
}

fn marked(image: &Image) -> BTreeSet<u32> {
    (0..image.blocks())
        .filter(|block| matches!(image.block(*block), Block::Allocated { full: true, .. }))
        .collect()
}

fn allocate_full(image: &mut Image, medium: &mut Medium, block: u32) {
    let Ok(place) = image.reserve(block) else {
        return;
    };
    medium.0.write(place.bitmap_offset, &[0xFF; 512]);
    image.commit(&place).expect("just reserved");
    let needed = image.size_needed_bytes();
    medium.0.truncate(medium.0.size_bytes().max(needed));
    let sector = image.bat_sector(block).expect("an allocated block has one");
    medium.0.write(sector.offset, &sector.bytes);
}

fn mark(image: &mut Image, medium: &Medium, model: &mut BTreeSet<u32>, block: u32) {
    let Block::Allocated { bitmap_offset, .. } = image.block(block) else {
        assert!(!image.set_full(block));
        return;
    };
    let mut bitmap = [0; 512];
    medium.0.read(bitmap_offset, &mut bitmap);
    if bitmap != [0xFF; 512] {
        return;
    }
    // The used length follows the size in steps of 16 MiB, in whole sectors.
    let used = (image.virtual_bytes() >> 24).max(1).next_multiple_of(512);
    let has_bit = u64::from(block / 8) < used;
    assert_eq!(image.set_full(block), has_bit, "block {block}");
    if has_bit {
        model.insert(block);
    }
}

fn unmap(image: &mut Image, medium: &mut Medium, model: &BTreeSet<u32>, block: u32) {
    assert_eq!(image.unmap(block).is_err(), model.contains(&block));
    if let Some(sector) = image.bat_sector(block) {
        medium.0.write(sector.offset, &sector.bytes);
    }
}

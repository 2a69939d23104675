//! Damage by choice: fields, maps, texts, the end of the file. Checksums are put right afterwards, or
//! not, by choice.

use super::{HEADER_AT, Made, map_sum, seal};
use crate::input::Input;
use block::SparseBytes;

/// Offset and width of the fields of a footer.
const FOOTER_FIELDS: [(u64, u8); 14] = [
    (0, 8),
    (8, 4),
    (12, 4),
    (16, 8),
    (28, 4),
    (32, 4),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 4),
    (68, 8),
    (84, 1),
    (85, 1),
    (86, 4),
];

/// Offset and width of the fields of a sparse header.
const HEADER_FIELDS: [(u64, u8); 11] = [
    (0, 8),
    (8, 8),
    (16, 8),
    (24, 4),
    (28, 4),
    (32, 4),
    (36, 4),
    (40, 8),
    (64, 2),
    (66, 2),
    (768, 4),
];

/// Offset and width of the fields of a batmap's header.
const BATMAP_FIELDS: [(u64, u8); 7] = [(0, 8), (8, 8), (16, 4), (20, 4), (24, 4), (28, 1), (29, 1)];

/// Offset and width of the fields of a locator's entry.
const LOCATOR_FIELDS: [(u64, u8); 5] = [(0, 4), (4, 4), (8, 4), (12, 4), (16, 8)];

/// Texts that mean something where they stand.
const WORDS: [u64; 8] = [
    u64::from_be_bytes(*b"conectix"),
    u64::from_be_bytes(*b"v_poison"),
    u64::from_be_bytes(*b"cxsparse"),
    u64::from_be_bytes(*b"tdbatmap"),
    0x4d61_6358,
    0x5732_7275,
    0x4d61_6320,
    0x7461_7000,
];

/// Changes up to six places of an image.
pub fn damage(input: &mut Input<'_>, made: &mut Made) {
    for _ in 0..1 + input.below(6) {
        damage_once(input, made);
    }
}

fn damage_once(input: &mut Input<'_>, made: &mut Made) {
    let layout = made.layout.clone();
    let content = &mut made.medium.0;
    let mut near = vec![
        layout.size,
        layout.table,
        layout.map,
        layout.footer,
        content.size_bytes(),
    ];
    near.extend(layout.blocks.iter().flat_map(|at| [*at, at / 512]));
    let near = near.as_slice();
    let keep_sum = input.one_in(8);
    match input.below(10) {
        0 => {
            let (field, value) = change(input, &FOOTER_FIELDS, near);
            for at in [0, layout.footer] {
                patch(
                    content,
                    (at, 512, 64),
                    field,
                    value,
                    keep_sum || field.0 == 64,
                );
            }
        }
        1 => {
            let at = input.pick(&[layout.footer, 0]);
            let (field, value) = change(input, &FOOTER_FIELDS, near);
            patch(
                content,
                (at, 512, 64),
                field,
                value,
                keep_sum || field.0 == 64,
            );
        }
        2 => {
            let (field, value) = change(input, &HEADER_FIELDS, near);
            patch(
                content,
                (HEADER_AT, 1024, 36),
                field,
                value,
                keep_sum || field.0 == 36,
            );
        }
        3 => {
            let ((at, width), value) = change(input, &LOCATOR_FIELDS, near);
            let field = (576 + input.below(8) * 24 + at, width);
            patch(content, (HEADER_AT, 1024, 36), field, value, keep_sum);
        }
        4 => {
            let slot = layout.table + input.below(6) * 4;
            let value = input.odd(near);
            content.write(slot, &(value as u32).to_be_bytes());
        }
        5 => {
            if let Some(at) = layout.batmap {
                let (field, value) = change(input, &BATMAP_FIELDS, near);
                put(content, at + field.0, field.1, value);
            }
        }
        6 => damage_map(input, content, &layout, keep_sum),
        7 => {
            let places = [layout.paths.as_slice(), &layout.blocks].concat();
            if !places.is_empty() {
                let at = input.pick(&places) + input.below(64);
                content.write(at, &[input.number() as u8]);
            }
        }
        8 => damage_end(input, content, layout.footer),
        _ => {
            let at = input.below(8192);
            content.write(at, &[input.number() as u8]);
        }
    }
}

fn change(input: &mut Input<'_>, fields: &[(u64, u8)], near: &[u64]) -> ((u64, u8), u64) {
    let field = input.pick(fields);
    let value = match input.below(4) {
        0 => input.pick(&WORDS),
        1 => input.below(8),
        _ => input.odd(near),
    };
    (field, value)
}

fn put(content: &mut SparseBytes, at: u64, width: u8, value: u64) {
    let bytes = value.to_be_bytes();
    content.write(at, &bytes[8 - usize::from(width)..]);
}

/// Changes a field of a region that has a checksum.
fn patch(
    content: &mut SparseBytes,
    (at, len, sum_at): (u64, usize, usize),
    (field, width): (u64, u8),
    value: u64,
    keep_sum: bool,
) {
    put(content, at + field, width, value);
    if keep_sum {
        return;
    }
    let mut region = vec![0; len];
    content.read(at, &mut region);
    seal(&mut region, sum_at);
    content.write(at, &region);
}

fn damage_map(
    input: &mut Input<'_>,
    content: &mut SparseBytes,
    layout: &super::Layout,
    keep_sum: bool,
) {
    let Some(header) = layout.batmap else { return };
    let at = layout.map + input.below(layout.map_used.min(4));
    content.write(at, &[input.number() as u8]);
    if !keep_sum {
        let mut map = vec![0; layout.map_used as usize];
        content.read(layout.map, &mut map);
        let mut version = [0; 4];
        content.read(header + 20, &mut version);
        let sum = map_sum(&map, version == [0, 1, 0, 1]);
        content.write(header + 24, &sum.to_be_bytes());
    }
}

/// A footer that is not there, in use, 511 bytes long, or not at the end of the file.
fn damage_end(input: &mut Input<'_>, content: &mut SparseBytes, footer: u64) {
    match input.below(6) {
        0 => content.truncate(footer),
        1 => content.write(footer, &[0xC7; 512]),
        2 => content.truncate(footer + 511),
        3 => content.truncate(content.size_bytes() + input.below(9) * 512),
        4 => content.truncate(input.odd(&[footer]).min(1 << 45)),
        _ => content.truncate(footer.saturating_sub(input.below(3 << 20))),
    }
}

//! Parent locators: encoded paths and their entries.

use super::{Layout, SECTOR, pad, set};
use crate::input::Input;
use block::SparseBytes;

const CODES: [&[u8; 4]; 3] = [b"MacX", b"W2ku", b"W2ru"];

/// A path as a locator of this code holds it.
pub fn encode(code: &[u8; 4], path: &str) -> Vec<u8> {
    if code == b"MacX" {
        return format!("file://{path}").into_bytes();
    }
    let windows = path.replace('/', "\\");
    windows.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// Writes up to three locators from `at` on, all with the same path, and returns where they end.
pub(super) fn write(
    input: &mut Input<'_>,
    number: u8,
    mut at: u64,
    header: &mut [u8; 1024],
    content: &mut SparseBytes,
    layout: &mut Layout,
) -> u64 {
    let name = input.pick(&["p.vhd", "ä.vhd", "a b.vhd", "😀.vhd"]);
    let name = format!("{number}{name}");
    let path = format!("{}{name}", input.pick(&["./", "./../x/", "./"]));
    let count = 3 - input.below(3) as usize;
    for (index, code) in CODES.iter().take(count).enumerate() {
        let data = encode(code, &path);
        let space = pad(data.len() as u64);
        // In bytes as tap does, or in sectors as the specification wants.
        let stored = if input.one_in(4) {
            space / SECTOR
        } else {
            space
        };
        let entry = 576 + index * 24;
        set(header, entry, *code);
        set(header, entry + 4, &(stored as u32).to_be_bytes());
        set(header, entry + 8, &(data.len() as u32).to_be_bytes());
        set(header, entry + 16, &at.to_be_bytes());
        content.write(at, &data);
        layout.paths.push(at);
        at += space;
    }
    let units: Vec<u8> = name.encode_utf16().flat_map(u16::to_be_bytes).collect();
    set(header, 64, &units);
    content.truncate(content.size_bytes().max(at));
    at
}

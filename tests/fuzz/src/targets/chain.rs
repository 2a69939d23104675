//! Chains of several layers, of any sizes, with raw bases, right and wrong links: they are refused or
//! read as the naive reader reads them.

use super::write::{engine_limit_bytes, raw};
use crate::images::{self, Made, Wish};
use crate::input::Input;
use crate::oracle::{self, OnDisk};
use block::{RamDisk, SparseBytes};
use datapath::protocol::{Access, Format};
use tapdisk::engine::testing::rig::{Rig, load_chain};
use vhd_checker::check_link;

/// See the module's page.
pub fn target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let depth = 1 + input.below(5) as u8;
    let raw_base = input.one_in(3);
    let mut layers: Vec<(SparseBytes, Format)> = Vec::new();
    let mut right = true;
    for number in 1..=depth {
        let last = number == depth;
        let (made, fits) = layer(&mut input, number, last, raw_base);
        right &= fits;
        layers.push((made.medium.0, Format::Vhd));
    }
    if raw_base {
        layers.push((raw(&mut input), Format::Raw));
    }
    if input.one_in(8) {
        let (a, b) = (
            input.below(layers.len() as u64),
            input.below(layers.len() as u64),
        );
        layers.swap(a as usize, b as usize);
        right &= a == b;
    }
    judge(&mut input, &layers, right);
}

/// A layer, and whether it has what the next one is.
fn layer(input: &mut Input<'_>, number: u8, last: bool, raw_base: bool) -> (Made, bool) {
    let below = match (last, raw_base) {
        (true, true) => Some([0; 16]),
        (true, false) => None,
        (false, _) => Some(images::uuid(number + 1)),
    };
    if last && !raw_base && input.one_in(4) {
        return (images::fixed(input, number), true);
    }
    let parent = match input.below(16) {
        15 => Some(images::uuid(input.below(8) as u8)),
        14 => None,
        13 => Some([0; 16]),
        _ => below,
    };
    let wish = Wish {
        number,
        parent,
        blocks_max: 4,
        by_tap: input.one_in(2),
    };
    let mut made = images::sparse(input, wish);
    let damaged = input.one_in(10);
    if damaged {
        images::damage(input, &mut made);
    }
    (made, parent == below && !damaged)
}

fn judge(input: &mut Input<'_>, layers: &[(SparseBytes, Format)], right: bool) {
    let mut ram = RamDisk::new();
    let files: Vec<_> = layers
        .iter()
        .map(|(c, format)| (ram.add_file(c.clone()), *format))
        .collect();
    let specs = match load_chain(&ram, &files, Access::ReadOnly) {
        Ok(specs) => specs,
        Err(e) if right => panic!("a sound layer does not load: {e}"),
        Err(_) => return,
    };
    let limit = engine_limit_bytes(&ram);
    let opened = crate::guard::bounded("a chain", limit, || {
        Rig::with_layers(ram, specs, Access::ReadOnly)
    });
    let mut rig = match opened {
        Ok(rig) => rig,
        Err(e) if right => panic!("a right chain does not open: {e}"),
        Err(_) => return,
    };
    let whole = |(content, format): &(SparseBytes, Format)| {
        *format == Format::Raw || oracle::is_whole(content)
    };
    if !layers.iter().all(whole) {
        return;
    }
    let on_disk: Vec<OnDisk> = layers
        .iter()
        .map(|(content, _)| OnDisk::new(content))
        .collect();
    links_agree(layers, &on_disk);
    let naive = oracle::naive(&on_disk).expect("sound layers");
    assert_eq!(naive.size_bytes, rig.engine.size_bytes());
    let total = naive.size_bytes / 512;
    for _ in 0..12 {
        let near = input.below(4) * 4096 + input.pick(&[0, 1, 7, 8, 63, 100, 2048, 4095]);
        let first = if input.one_in(6) {
            total - 1
        } else {
            near.min(total - 1)
        };
        let count = input.pick(&[1, 3, 16]).min(total - first);
        let bytes = rig
            .read(first * 512, count * 512)
            .expect("a sound chain is read");
        for (sector, found) in (first..).zip(bytes.chunks_exact(512)) {
            let wanted = naive.sector(sector).expect("memory can be read");
            assert_eq!(found, wanted, "sector {sector}");
        }
    }
}

/// What the engine opens is linked as the checker wants it.
fn links_agree(layers: &[(SparseBytes, Format)], on_disk: &[OnDisk]) {
    for (pair, disks) in layers.windows(2).zip(on_disk.windows(2)) {
        let ([_, (_, format)], [child, parent]) = (pair, disks) else {
            continue;
        };
        let parent = (*format == Format::Vhd).then(|| parent.path());
        let report = check_link(&child.path(), parent.as_deref()).expect("memory can be read");
        assert!(report.is_sound(), "{:?}", report.problems);
    }
}

//! What a chain takes in memory: bytes of the structures, counted, not what the allocator makes of
//! them.

use super::rig::{BLOCK, Peek, Rig, SECTOR, load, uuid};
use crate::engine::{LayerImage, LiveOp};
use block::{FileId, RamDisk, SparseBytes};
use datapath::protocol::Format;
use vhd_rs::{Content, Extent, NewImage, ParentLink, Timestamp};

const TIB: u64 = 1 << 40;
const MIB: usize = 1 << 20;
const LAYERS: u32 = 30;

fn image(n: u32) -> SparseBytes {
    let created = Timestamp::from_unix_s(1_700_000_000);
    let link = |parent: u32| ParentLink {
        path: format!("{parent}.vhd"),
        uuid: uuid(parent),
        modified: created,
    };
    let image = NewImage {
        uuid: uuid(n),
        created,
        virtual_bytes: TIB,
        resize_max_bytes: TIB,
        content: n.checked_sub(1).map_or(Content::Dynamic, |parent| {
            Content::Differencing(link(parent))
        }),
        extent: Extent::Grows,
        container_bytes: 0,
    };
    let mut bytes = Vec::new();
    let plan = image.plan().expect("a plan");
    plan.apply(&mut bytes).expect("it applies to memory");
    SparseBytes::from(bytes.as_slice())
}

/// An image with these blocks in its table and nothing in them.
fn filled(ram: &mut RamDisk, n: u32, blocks: impl Iterator<Item = u32>) -> (FileId, Format) {
    let mut bytes = image(n);
    let mut scratch = RamDisk::new();
    let file = scratch.add_file(bytes.clone());
    let spec = load(&scratch, (file, Format::Vhd), vhd_rs::Access::ReadWrite).expect("it loads");
    let LayerImage::Vhd(mut image) = spec.image else {
        panic!("a VHD")
    };
    let blocks: Vec<u32> = blocks.collect();
    for block in &blocks {
        let allocation = image.reserve(*block).expect("there is room");
        image.commit(&allocation).expect("it was free");
    }
    bytes.truncate(image.size_needed_bytes());
    for sharing in blocks.chunk_by(|a, b| a / 128 == b / 128) {
        let block = sharing.first().copied().unwrap_or_default();
        let sector = image.bat_sector(block).expect("a block of the disk");
        bytes.write(sector.offset, &sector.bytes);
    }
    (ram.add_file(bytes), Format::Vhd)
}

/// Blocks all over the disk, others for each layer.
fn scattered(layer: u32, count: u32) -> impl Iterator<Item = u32> {
    let blocks = (TIB / BLOCK) as u32;
    let step = blocks / count;
    (0..count).map(move |n| n * step + (layer * 7919 + n * 31) % step)
}

fn chain(ram: &mut RamDisk, base_blocks: u32, count: u32) -> Vec<(FileId, Format)> {
    let mut files = vec![filled(ram, 0, 0..base_blocks)];
    for layer in 1..LAYERS {
        files.insert(0, filled(ram, layer, scattered(layer, count)));
    }
    files
}

#[test]
fn a_chain_of_thirty_terabyte_disks_takes_three_mebibytes() {
    let blocks = (TIB / BLOCK) as u32;
    let mut ram = RamDisk::new();
    for (base_blocks, count, most) in [
        (0, 1, MIB / 2),
        (blocks / 2, 1000, 3 * MIB),
        (blocks, 100, 3 * MIB),
    ] {
        let files = chain(&mut ram, base_blocks, count);
        let mut rig = Rig::open(ram, &files);
        let bytes = rig.engine.map_bytes();
        println!("base of {base_blocks} blocks, {count} in each other layer: {bytes} bytes");
        assert!(bytes <= most, "{base_blocks} and {count}: {bytes} bytes");
        // It stays so while the disk is used and gets a new leaf.
        for block in scattered(3, 50) {
            let _ = rig.read(u64::from(block) * BLOCK, SECTOR).expect("a read");
        }
        rig.write(5 * BLOCK, &[1; 512]).expect("a write");
        let leaf = (rig.io.add_file(image(LAYERS)), Format::Vhd);
        let spec = load(&rig.io, leaf, vhd_rs::Access::ReadWrite).expect("it loads");
        rig.run_live(LiveOp::SnapshotSwitch(Box::new(spec)))
            .expect("the switch works");
        assert_eq!(rig.read(5 * BLOCK, SECTOR).expect("a read"), [1; 512]);
        assert!(rig.engine.map_bytes() <= most);
        ram = RamDisk::new();
    }
}

#[test]
fn a_full_disk_of_a_terabyte_takes_three_mebibytes_by_itself() {
    let mut ram = RamDisk::new();
    let file = filled(&mut ram, 0, 0..(TIB / BLOCK) as u32);
    assert!(ram.peek(file.0).size_bytes() > TIB);
    let rig = Rig::open(ram, &[file]);
    let bytes = rig.engine.map_bytes();
    println!("{bytes} bytes");
    assert!(bytes <= 3 * MIB);
}

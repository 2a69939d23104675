//! Bytes measured from XenServer's own tools, and that ours are the same.

use crate::support::{
    MIB, PARENT, UUID, Writer, bytes_of, differencing, dynamic, link, new_image, open,
};
use vhd_rs::{Block, Content, Extent, Image, Step, checksum};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|c| Some(c.to_digit(16)? as u8))
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn assert_at(bytes: &[u8], at: usize, expected: &[u8]) {
    assert_eq!(&bytes[at..at + expected.len()], expected, "at {at:#x}");
}

fn utf16le(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn a_snapshot_of_64_mib_has_the_measured_bytes() {
    let child = differencing();
    assert_eq!(child.len(), 5120);
    assert_at(
        &child,
        0x200,
        &hex("63787370 61727365 ffffffff ffffffff 00000000 00000600 00010000 00000020 00200000"),
    );
    assert_at(&child, 0x228, PARENT.as_bytes());
    assert_at(&child, 0x238, &hex("2a000000 00000000"));
    assert_at(&child, 0x240, &hex("0061 002e 0076 0068 0064 0000"));
    assert_at(
        &child,
        0x440,
        &hex("4d616358 00000200 0000000e 00000000 0000000000000c00
              57326b75 00000200 0000000e 00000000 0000000000000e00
              57327275 00000200 0000000e 00000000 0000000000001000"),
    );
    assert_at(
        &child,
        0x600,
        &[[0xff; 128], [0; 128], [0; 128], [0; 128]].concat(),
    );
    assert_at(
        &child,
        0x800,
        &hex("74646261 746d6170 00000000 00000a00 00000001 00010002 ffffffff"),
    );
    assert_at(&child, 0x81c, &[0; 0x3e4]);
    assert_at(&child, 0xc00, b"file://./a.vhd\0");
    assert_at(&child, 0xe00, &utf16le(".\\a.vhd\0"));
    assert_at(&child, 0x1000, &utf16le(".\\a.vhd\0"));
    assert_at(
        &child,
        0x1200,
        &hex(
            "636f6e65 63746978 00000002 00010000 0000000000000200 2a000001 74617000 00010003
              00000000 0000000004000000 0000000004000000 03c30811 00000004",
        ),
    );
    assert_at(&child, 0x1244, UUID.as_bytes());
    assert_eq!(child[0..512], child[0x1200..]);
    // Checksums: with their own field zero, the bytes sum up to them.
    for (at, len, field) in [(0x200, 1024, 36), (0x1200, 512, 64)] {
        let mut region = child[at..at + len].to_vec();
        let stored = u32::from_be_bytes(region[field..field + 4].try_into().unwrap());
        region[field..field + 4].fill(0);
        assert_eq!(stored, checksum(&region));
    }
}

#[test]
fn blocks_go_where_tapdisk_puts_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhd");
    let mut writer = Writer::create(&path, &new_image(64 * MIB, Content::Dynamic));
    let full = vec![0x5a; 2 << 20];
    for (block, data) in [
        (5, &full[..512]),
        (0, &full[..512]),
        (2, &full),
        (10, &full[..512]),
    ] {
        writer.write(block * 4096, data);
    }
    writer.close();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 8_405_504);
    for (block, offset) in [
        (5, 3584u32),
        (0, 2_104_832),
        (2, 4_206_080),
        (10, 6_307_328),
    ] {
        assert_at(&bytes, 1536 + block * 4, &(offset / 512).to_be_bytes());
    }
    assert_at(&bytes, 0xa00, &[0x20, 0]);
    assert_at(&bytes, 0x818, &hex("ffffffdf"));
}

#[test]
fn empty_images_have_the_measured_sizes() {
    for (virtual_mib, resize_max_mib, bytes) in [(1024, 0, 5120), (64, 2 << 20, 8452 * 512 + 512)] {
        let mut new = new_image(virtual_mib * MIB, Content::Dynamic);
        new.resize_max_bytes = resize_max_mib * MIB;
        assert_eq!(bytes_of(&new).len(), bytes, "{virtual_mib} MiB");
    }
}

#[test]
fn with_metadata_for_2_tib_the_first_bitmap_is_sector_8455() {
    let mut new = new_image(64 * MIB, Content::Dynamic);
    new.resize_max_bytes = 2 << 40;
    let mut image = open(&bytes_of(&new)).unwrap();
    assert_eq!(image.reserve(0).unwrap().bitmap_offset, 8455 * 512);
    assert_eq!(image.resize_max_bytes(), 2 << 40);
}

#[test]
fn sizes_are_rounded_up_to_2_mib() {
    let image = open(&bytes_of(&new_image(MIB + 1, Content::Dynamic))).unwrap();
    assert_eq!((image.virtual_bytes(), image.blocks()), (2 * MIB, 1));
}

#[test]
fn creation_writes_in_the_order_of_the_tools_and_ends_durable() {
    let plan = new_image(64 * MIB, Content::Differencing(link("a.vhd", PARENT)))
        .plan()
        .unwrap();
    let offsets: Vec<Option<u64>> = plan
        .steps
        .iter()
        .map(|step| match step {
            Step::Write { offset, .. } => Some(*offset),
            _ => None,
        })
        .collect();
    let [
        map,
        map_header,
        table,
        mac,
        w2ku,
        w2ru,
        copy,
        header,
        footer,
    ] = [0xa00, 0x800, 0x600, 0xc00, 0xe00, 0x1000, 0, 0x200, 0x1200].map(Some);
    assert_eq!(
        offsets,
        [
            map, map_header, table, mac, w2ku, w2ru, copy, header, footer, None
        ]
    );
    assert_eq!(plan.steps.last(), Some(&Step::Flush));
}

#[test]
fn a_parent_in_another_folder_is_written_relative_in_all_three_locators() {
    let child = bytes_of(&new_image(
        64 * MIB,
        Content::Differencing(link("../x/p.vhd", PARENT)),
    ));
    assert_at(&child, 0xc00, b"file://../x/p.vhd\0");
    assert_at(&child, 0xe00, &utf16le(".\\..\\x\\p.vhd\0"));
    assert_at(&child, 0x1000, &utf16le(".\\..\\x\\p.vhd\0"));
    let image = open(&child).unwrap();
    assert_eq!(image.header().unwrap().parent_name, "p.vhd");
    let paths: Vec<String> = image.locators().iter().map(|l| l.path().unwrap()).collect();
    assert_eq!(paths, ["../x/p.vhd", "./../x/p.vhd", "./../x/p.vhd"]);
}

#[test]
fn a_fixed_image_is_data_and_a_footer() {
    let bytes = bytes_of(&new_image(4 * MIB, Content::Fixed));
    assert_eq!(bytes.len() as u64, 4 * MIB + 512);
    assert_at(
        &bytes,
        4 << 20,
        &hex("636f6e65 63746978 00000002 00010000 ffffffffffffffff"),
    );
    let image = open(&bytes).unwrap();
    assert_eq!(
        image.block(1),
        Block::Fixed {
            data_offset: 2 * MIB
        }
    );
    assert_eq!(image.block(2), Block::Unallocated);
    assert!(image.is_clean());
}

#[test]
fn on_a_device_the_footer_is_in_the_last_sector() {
    let mut new = new_image(64 * MIB, Content::Dynamic);
    (new.extent, new.container_bytes) = (Extent::Reserved, 4 * MIB);
    let mut device = vec![0xee; 4 << 20];
    new.plan().unwrap().apply(&mut device).unwrap();
    assert_eq!(device.len(), 4 << 20);
    assert_eq!(device[..512], device[(4 << 20) - 512..]);
    let mut options = crate::support::READ_WRITE;
    options.extent = Extent::Reserved;
    let mut image = Image::open(&device, options).unwrap();
    assert!(image.is_clean());
    // 4 MiB hold one block beside the metadata, not two.
    image.reserve(0).unwrap();
    assert_eq!(
        image.reserve(1).unwrap_err().kind(),
        vhd_rs::ErrorKind::NoSpace
    );
}

#[test]
fn the_checker_finds_nothing_in_what_is_made() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("dynamic", dynamic()),
        ("differencing", differencing()),
        ("fixed", bytes_of(&new_image(4 * MIB, Content::Fixed))),
        (
            "batmap a sector short",
            bytes_of(&new_image(8194 * MIB, Content::Dynamic)),
        ),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let report = vhd_checker::check(&path, vhd_checker::Strictness::Closed).unwrap();
        assert_eq!(report.problems, [], "{name}");
    }
}

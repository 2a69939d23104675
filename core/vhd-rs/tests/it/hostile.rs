//! Hostile and odd images, F50 to F62 of the fault list: each ends in its exact error, or opens and
//! means what it should.

mod batmaps;
mod footers;
mod locators;
mod odd;

use crate::support::{
    MIB, READ_WRITE, bytes_of, dynamic, dynamic_with_blocks, new_image, open, put, reseal,
    with_footers, with_header,
};
use vhd_rs::{Block, Content, ErrorKind, Extent, Image, OpenOptions};

#[track_caller]
fn refused(bytes: &[u8], kind: ErrorKind, text: &str) {
    let error = open(bytes).expect_err("the image must be refused");
    assert_eq!((error.to_string().as_str(), error.kind()), (text, kind));
}

#[track_caller]
fn corrupt(bytes: &[u8], text: &str) {
    refused(bytes, ErrorKind::Corrupt, text);
}

/// Changes table entries of an image with blocks 0 and 1 at sectors 7 and 4111.
fn with_entries(entries: &[(usize, u32)]) -> Vec<u8> {
    let mut bytes = dynamic_with_blocks(&[0, 1]);
    for (block, entry) in entries {
        put(&mut bytes, 1536 + block * 4, &entry.to_be_bytes());
    }
    bytes
}

#[test]
fn f50_block_sizes_that_are_no_power_of_two_up_to_2_mib_are_refused() {
    for size in [
        0u32,
        1,
        256,
        3 << 20,
        (2 << 20) + 512,
        4 << 20,
        1 << 31,
        u32::MAX,
    ] {
        let bytes = with_header(dynamic(), |h| put(h, 32, &size.to_be_bytes()));
        let rule = "must be a power of two from 512 to 2097152";
        corrupt(&bytes, &format!("header.block_size is {size}: {rule}"));
    }
}

#[test]
fn f50_smaller_blocks_are_read_but_not_written() {
    let mut bytes = with_header(dynamic(), |h| put(h, 32, &(512u32 << 10).to_be_bytes()));
    bytes = with_footers(bytes, |f| put(f, 48, &(16 * MIB).to_be_bytes()));
    refused(
        &bytes,
        ErrorKind::Unsupported,
        "header.block_size is 524288: images are written only with blocks of 2097152 bytes",
    );
    let image = Image::open(&bytes, Default::default()).unwrap();
    assert_eq!((image.blocks(), image.bitmap_bytes()), (32, 512));
}

#[test]
fn f51_tables_too_small_for_the_disk_or_too_large_for_the_file_are_refused() {
    for (entries, text) in [
        (
            0u32,
            "header.max_bat_size is 0: must be at least 32 for the disk's size",
        ),
        (
            31,
            "header.max_bat_size is 31: must be at least 32 for the disk's size",
        ),
        (
            0x4000_0000,
            "bat is 4294967296 bytes at byte 1536: must end by byte 3584",
        ),
        (
            u32::MAX,
            "bat is 17179869184 bytes at byte 1536: must end by byte 3584",
        ),
    ] {
        corrupt(
            &with_header(dynamic(), |h| put(h, 28, &entries.to_be_bytes())),
            text,
        );
    }
}

#[test]
fn f51_a_table_with_reserve_is_sound_and_its_reserve_is_not_read() {
    let mut new = new_image(64 * MIB, Content::Dynamic);
    new.resize_max_bytes = 1 << 30;
    let mut bytes = bytes_of(&new);
    put(&mut bytes, 1536 + 32 * 4, &[0; 64]);
    let image = open(&bytes).unwrap();
    assert_eq!((image.blocks(), image.resize_max_bytes()), (32, 1 << 30));
}

#[test]
fn f52_tables_in_impossible_places_are_refused() {
    for (offset, text) in [
        (
            0u64,
            "header.table_offset is 0: must be a multiple of 512 above zero",
        ),
        (
            1537,
            "header.table_offset is 1537: must be a multiple of 512 above zero",
        ),
        (
            512,
            "batmap.cookie is \"\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\": must be \"tdbatmap\"",
        ),
        (4096, "bat is 512 bytes at byte 4096: must end by byte 3584"),
        (
            u64::MAX - 511,
            "bat is 512 bytes at byte 18446744073709551104: must end by byte 3584",
        ),
    ] {
        corrupt(
            &with_header(dynamic(), |h| put(h, 16, &offset.to_be_bytes())),
            text,
        );
    }
}

#[test]
fn f52_metadata_where_a_device_has_its_footer_is_refused() {
    let bytes = dynamic();
    let end = 1536 + 512;
    let device = OpenOptions {
        extent: Extent::Reserved,
        ..READ_WRITE
    };
    let mut cut = with_footers(bytes, |f| put(f, 28, b"win "));
    cut.truncate(end);
    let error = Image::open(&cut, device).unwrap_err().to_string();
    assert_eq!(
        error,
        "bat is 512 bytes at byte 1536: must end by byte 1536"
    );
    cut.resize(end + 512, 0);
    assert!(Image::open(&cut, device).is_ok());
}

#[test]
fn f52_tables_over_other_metadata_are_refused() {
    // Another creator, so that no batmap is looked for.
    let foreign = with_footers(dynamic(), |f| put(f, 28, b"win "));
    let bytes = with_header(foreign, |h| put(h, 16, &1024u64.to_be_bytes()));
    corrupt(
        &bytes,
        "bat is at bytes 1024 to 1536: must not overlap header at bytes 512 to 1536",
    );
    let mut bytes = with_footers(dynamic_with_blocks(&[0]), |f| put(f, 28, b"win "));
    let table = bytes[1536..2048].to_vec();
    put(&mut bytes, 8192, &table);
    let bytes = with_header(bytes, |h| put(h, 16, &8192u64.to_be_bytes()));
    corrupt(
        &bytes,
        "bat is at bytes 8192 to 8704: must not overlap bat[0] at bytes 3584 to 2101248",
    );
}

#[test]
fn f53_blocks_that_overlap_or_lie_outside_are_refused() {
    let end = 8215 * 512 - 7 * 512;
    for (entries, text) in [
        (
            vec![(1, 7)],
            "bat[1] is at bytes 3584 to 2101248: must not overlap bat[0] at bytes 3584 to 2101248"
                .to_owned(),
        ),
        (
            vec![(1, 4103)],
            "bat[1] is at bytes 2100736 to 4198400: must not overlap bat[0] at bytes 3584 to \
             2101248"
                .to_owned(),
        ),
        (
            vec![(0, 0)],
            "bat[0] is at bytes 0 to 2097664: must not overlap footer copy at bytes 0 to 512"
                .to_owned(),
        ),
        (
            vec![(0, 1)],
            "bat[0] is at bytes 512 to 2098176: must not overlap header at bytes 512 to 1536"
                .to_owned(),
        ),
        (
            vec![(0, 3)],
            "bat[0] is at bytes 1536 to 2099200: must not overlap bat at bytes 1536 to 2048"
                .to_owned(),
        ),
        (
            vec![(0, 4)],
            "bat[0] is at bytes 2048 to 2099712: must not overlap batmap header at bytes 2048 to \
             2560"
                .to_owned(),
        ),
        (
            vec![(1, 4112)],
            format!("bat[1] is 2097664 bytes at byte 2105344: must end by byte {end}"),
        ),
        (
            vec![(0, 0xffff_fffe)],
            format!("bat[0] is 2097664 bytes at byte 2199023254528: must end by byte {end}"),
        ),
    ] {
        corrupt(&with_entries(&entries), &text);
    }
}

#[test]
fn f53_blocks_not_aligned_as_xenserver_does_are_read_where_they_are() {
    let image = open(&with_entries(&[(0, 6)])).unwrap();
    let place = Block::Allocated {
        bitmap_offset: 3072,
        data_offset: 3584,
        full: false,
    };
    assert_eq!(image.block(0), place);
}

#[test]
fn f53_more_blocks_than_the_file_has_room_for_are_refused_before_they_are_sorted() {
    let entries: Vec<(usize, u32)> = (0..32).map(|block| (block, 7)).collect();
    corrupt(
        &with_entries(&entries),
        "bat is 32 blocks: 3 blocks at most fit a container of 4203008 bytes",
    );
}

#[test]
fn f54_impossible_sizes_are_refused() {
    for (size, kind, text) in [
        (
            0u64,
            ErrorKind::Corrupt,
            "must be a multiple of 512 above zero",
        ),
        (
            64 * MIB + 1,
            ErrorKind::Corrupt,
            "must be a multiple of 512 above zero",
        ),
        (
            (16 << 40) + 512,
            ErrorKind::Unsupported,
            "sparse images are handled up to 17592186044416 bytes",
        ),
        (
            u64::MAX - 511,
            ErrorKind::Unsupported,
            "sparse images are handled up to 17592186044416 bytes",
        ),
    ] {
        // The copy must go too, or it counts.
        let bytes = with_footers(dynamic(), |f| put(f, 48, &size.to_be_bytes()));
        refused(&bytes, kind, &format!("footer.curr_size is {size}: {text}"));
    }
    let bytes = with_footers(dynamic(), |f| put(f, 48, &(3u64 << 40).to_be_bytes()));
    corrupt(
        &bytes,
        "header.max_bat_size is 32: must be at least 1572864 for the disk's size",
    );
    let mut fixed = bytes_of(&new_image(2 * MIB, Content::Fixed));
    reseal(&mut fixed[2 << 20..], 64, |f| {
        put(f, 48, &(4 * MIB).to_be_bytes())
    });
    corrupt(
        &fixed,
        "footer.curr_size is 4194304: must fit before the footer at byte 2097152",
    );
}

#[test]
fn f54_the_size_is_the_footers_whatever_geometry_and_creator_say() {
    for creator in [b"win ", b"vpc ", b"d2v ", b"tap\0", b"CTXS", b"qem2"] {
        let bytes = with_footers(dynamic(), |f| {
            put(f, 28, creator);
            put(f, 56, &[0xff, 0xff, 0x10, 0xff]);
        });
        assert_eq!(
            open(&bytes).unwrap().virtual_bytes(),
            64 * MIB,
            "{creator:?}"
        );
    }
}

#[test]
fn f54_the_last_block_of_an_odd_size_counts() {
    let bytes = with_footers(dynamic(), |f| put(f, 48, &(62 * MIB + 512).to_be_bytes()));
    assert_eq!(open(&bytes).unwrap().blocks(), 32);
}

//! Hostile and odd images, F50 to F62 of the fault list: each ends in its exact error, or opens and
//! means what it should.

use crate::support::{
    MIB, READ_WRITE, UUID, bytes_of, differencing, dynamic, dynamic_with_blocks, new_image, open,
    put, reseal, with_footers, with_header,
};
use vhd_rs::{Block, Content, DiskType, ErrorKind, Image};

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

#[test]
fn f55_without_a_footer_at_the_end_the_copy_counts_and_the_image_is_not_clean() {
    let whole = dynamic();
    let mut damaged = whole.clone();
    let end = whole.len() - 512;
    damaged[end + 8] ^= 1;
    let mut in_use = whole.clone();
    in_use[end..].fill(0xc7);
    for bytes in [&whole[..end], &damaged, &in_use] {
        let image = open(bytes).unwrap();
        assert_eq!((image.uuid(), image.is_clean()), (UUID, false));
    }
    assert!(open(&whole).unwrap().is_clean());
}

#[test]
fn f55_without_the_copy_the_footer_counts_and_the_image_is_not_clean() {
    let mut bytes = dynamic();
    bytes[3] ^= 1;
    assert!(!open(&bytes).unwrap().is_clean());
}

#[test]
fn f55_bad_checksums_are_refused() {
    let mut bytes = dynamic();
    let end = bytes.len() - 512;
    bytes[20] ^= 1;
    bytes[end + 20] ^= 1;
    let stored = u32::from_be_bytes(bytes[64..68].try_into().unwrap());
    refused(
        &bytes,
        ErrorKind::Checksum,
        &format!(
            "footer.checksum is {stored:#010x}: the bytes sum up to {:#010x}",
            stored - 1
        ),
    );
    let mut bytes = dynamic();
    bytes[512 + 100] ^= 1;
    let stored = u32::from_be_bytes(bytes[548..552].try_into().unwrap());
    refused(
        &bytes,
        ErrorKind::Checksum,
        &format!(
            "header.checksum is {stored:#010x}: the bytes sum up to {:#010x}",
            stored - 1
        ),
    );
}

#[test]
fn f55_footers_of_one_image_that_differ_are_settled_for_the_one_at_the_end() {
    let mut bytes = dynamic();
    let end = bytes.len() - 512;
    reseal(&mut bytes[end..], 64, |f| f[85] = 1);
    let image = open(&bytes).unwrap();
    assert_eq!((image.is_hidden(), image.is_clean()), (true, false));
}

#[test]
fn f55_payload_that_looks_like_a_footer_of_another_image_does_not_count() {
    let mut bytes = dynamic();
    let end = bytes.len() - 512;
    reseal(&mut bytes[end..], 64, |f| {
        put(f, 68, &[9; 16]);
        put(f, 48, &(2 * MIB).to_be_bytes());
    });
    let image = open(&bytes).unwrap();
    assert_eq!((image.uuid(), image.virtual_bytes()), (UUID, 64 * MIB));
    assert!(!image.is_clean());
}

#[test]
fn f55_a_footer_of_511_bytes_counts() {
    let mut bytes = bytes_of(&new_image(2 * MIB, Content::Fixed));
    assert_eq!(bytes.pop(), Some(0));
    let image = open(&bytes).unwrap();
    assert_eq!(
        (image.disk_type(), image.end_of_data_bytes()),
        (DiskType::Fixed, 2 * MIB)
    );
}

#[test]
fn f55_unknown_types_versions_and_poison_are_refused() {
    let text = |bytes: &[u8]| {
        let error = open(bytes).unwrap_err();
        (error.kind(), error.to_string())
    };
    for (at, field, kind, expected) in [
        (
            60,
            7u32,
            ErrorKind::Corrupt,
            "footer.type is 7: must be 2 (fixed), 3 (dynamic) or 4 (differencing)",
        ),
        (
            12,
            0x20000,
            ErrorKind::Unsupported,
            "footer.ff_version is 0x00020000: must be 0x00010000",
        ),
        (
            32,
            1,
            ErrorKind::Unsupported,
            "footer.creator_version is 0x00000001: tap images are handled from version 0x00010001 \
             to 0x00010003",
        ),
        (
            32,
            0x10004,
            ErrorKind::Unsupported,
            "footer.creator_version is 0x00010004: tap images are handled from version 0x00010001 \
             to 0x00010003",
        ),
    ] {
        let bytes = with_footers(dynamic(), |f| put(f, at, &field.to_be_bytes()));
        assert_eq!(text(&bytes), (kind, expected.to_owned()));
    }
    let poisoned = with_footers(dynamic(), |f| put(f, 0, b"v_poison"));
    assert_eq!(
        text(&poisoned),
        (
            ErrorKind::Poisoned,
            "footer.cookie is \"v_poison\": the image is disabled by an unfinished resize".into()
        )
    );
    // One of the two is enough: the other may not have been written yet.
    let mut half = dynamic();
    put(&mut half, 0, &poisoned[..512]);
    assert_eq!(text(&half).0, ErrorKind::Poisoned);
    let version = with_header(dynamic(), |h| put(h, 24, &0x20000u32.to_be_bytes()));
    assert_eq!(
        text(&version).1,
        "header.hdr_ver is 0x00020000: must be 0x00010000"
    );
}

#[test]
fn f55_what_is_no_vhd_is_refused() {
    for bytes in [&[][..], b"conectix", &[0; 511], &[0; 512], &[0xff; 5120]] {
        assert_eq!(open(bytes).unwrap_err().kind(), ErrorKind::NotVhd);
    }
    refused(
        &[0; 100],
        ErrorKind::NotVhd,
        "container size is 100: a VHD has a footer of 512 bytes",
    );
    let header_gone = with_footers(dynamic(), |f| put(f, 16, &1024u64.to_be_bytes()));
    corrupt(
        &header_gone,
        "header.cookie is \"\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\": must be \"cxsparse\"",
    );
    for offset in [0u64, 100, 513] {
        let bytes = with_footers(dynamic(), |f| put(f, 16, &offset.to_be_bytes()));
        let rule = "must be a multiple of 512 after the footer's copy";
        corrupt(&bytes, &format!("footer.data_offset is {offset}: {rule}"));
    }
}

#[test]
fn f55_hidden_set_without_a_new_checksum_by_old_versions_is_accepted_and_read_from_the_copy() {
    let mut old = with_footers(dynamic(), |f| put(f, 32, &0x10001u32.to_be_bytes()));
    old[85] = 1;
    let image = open(&old).unwrap();
    assert!(image.is_hidden());
    // Today's version is not forgiven.
    let mut new = dynamic();
    let end = new.len() - 512;
    new[85] = 1;
    new[end + 85] = 1;
    assert_eq!(open(&new).unwrap_err().field(), "footer.checksum");
}

#[test]
fn f56_a_differencing_image_that_names_no_parent_is_refused() {
    let bytes = with_footers(dynamic(), |f| put(f, 60, &4u32.to_be_bytes()));
    corrupt(
        &bytes,
        "header.parent_name is empty: a differencing image names its parent",
    );
}

#[test]
fn f57_impossible_locators_are_refused() {
    let cases: [(usize, &[u8], &str); 7] = [
        (
            0,
            b"WTF?",
            "header.locator[0].code is \"WTF?\": must be a known platform code",
        ),
        (
            4,
            &700u32.to_be_bytes(),
            "header.locator[0].data_space is 700: must be a count of sectors below 512 or a \
             multiple of 512 bytes",
        ),
        (
            8,
            &513u32.to_be_bytes(),
            "header.locator[0].data_len is 513: must fit its space of 512 bytes",
        ),
        (
            16,
            &1536u64.to_be_bytes(),
            "locator[0] is at bytes 1536 to 2048: must not overlap bat at bytes 1536 to 2048",
        ),
        (
            16,
            &0xe00u64.to_be_bytes(),
            "locator[1] is at bytes 3584 to 4096: must not overlap locator[0] at bytes 3584 to \
             4096",
        ),
        (
            16,
            &(1u64 << 40).to_be_bytes(),
            "locator[0] is 512 bytes at byte 1099511627776: must end by byte 5120",
        ),
        (
            16,
            &u64::MAX.to_be_bytes(),
            "header.locator[0].data_offset is 18446744073709551615: must lie inside the file",
        ),
    ];
    for (at, field, text) in cases {
        corrupt(
            &with_header(differencing(), |h| put(h, 576 + at, field)),
            text,
        );
    }
    let huge = with_header(differencing(), |h| {
        put(h, 576 + 4, &(1u32 << 20).to_be_bytes());
        put(h, 576 + 8, &65_537u32.to_be_bytes());
    });
    corrupt(
        &huge,
        "header.locator[0].data_len is 65537: paths are read up to 65536 bytes",
    );
}

#[test]
fn f57_space_counted_in_sectors_is_the_same_as_in_bytes() {
    let bytes = with_header(differencing(), |h| put(h, 576 + 4, &1u32.to_be_bytes()));
    let image = open(&bytes).unwrap();
    assert_eq!(image.locators()[0].entry.space_bytes(), 512);
    assert_eq!(image.parent_path().as_deref(), Some("./a.vhd"));
}

#[test]
fn f57_paths_that_do_not_decode_are_errors_and_the_next_locator_counts() {
    let path_error = |at: usize, data: &[u8], len: Option<u32>, index: usize| {
        let mut bytes = differencing();
        put(&mut bytes, at, data);
        let bytes = with_header(bytes, |h| {
            if let Some(len) = len {
                put(h, 576 + index * 24 + 8, &len.to_be_bytes());
            }
        });
        let image = open(&bytes).unwrap();
        assert_eq!(image.parent_path().as_deref(), Some("./a.vhd"));
        image.locators()[index].path().unwrap_err().to_string()
    };
    for (at, data, len, index, text) in [
        (
            0xe00,
            &b"."[..],
            Some(13),
            1,
            "13 bytes long: UTF-16 comes in pairs of bytes",
        ),
        (
            0xe00,
            &[0x00, 0xd8],
            None,
            1,
            "with the lone surrogate 0xd800: must be UTF-16",
        ),
        (
            0xc00,
            b"http",
            None,
            0,
            "\"http://./a.vhd\": must begin with file://",
        ),
        (0xc00, &[0xff], None, 0, "bad after byte 0: must be UTF-8"),
        (
            0xc00,
            b"file://",
            Some(7),
            0,
            "\"\": must be a path without NUL",
        ),
        (
            0xc00,
            b"file://a\0b",
            Some(10),
            0,
            "\"a\\0b\": must be a path without NUL",
        ),
    ] {
        // The broken URL keeps a scheme of seven bytes.
        let data = if data == b"http" {
            b"http://./a.vhd"
        } else {
            data
        };
        let len = if data.starts_with(b"http") {
            Some(14)
        } else {
            len
        };
        let expected = format!("header.locator[{index}].data is {text}");
        assert_eq!(path_error(at, data, len, index), expected);
    }
}

#[test]
fn f57_a_lone_surrogate_in_the_parents_name_is_refused() {
    let bytes = with_header(differencing(), |h| put(h, 64, &[0xdc, 0x00]));
    corrupt(
        &bytes,
        "header.parent_name is with the lone surrogate 0xdc00: must be UTF-16",
    );
}

#[test]
fn f58_a_batmap_with_a_bad_header_stops_writing_and_is_left_out_when_reading() {
    for (at, field, kind, text) in [
        (
            0x800,
            &b"xxbatmap"[..],
            ErrorKind::Corrupt,
            "batmap.cookie is \"xxbatmap\": must be \"tdbatmap\"",
        ),
        (
            0x808,
            &1u64.to_be_bytes(),
            ErrorKind::Corrupt,
            "batmap.batmap_offset is 1: must be a multiple of 512 inside the file",
        ),
        (
            0x810,
            &0u32.to_be_bytes(),
            ErrorKind::Corrupt,
            "batmap.batmap_size is 0: must be at least 1 for the disk's size",
        ),
    ] {
        let mut bytes = dynamic();
        put(&mut bytes, at, field);
        refused(&bytes, kind, text);
        let image = Image::open(&bytes, Default::default()).unwrap();
        assert!(image.batmap().is_none());
        assert_eq!(image.batmap_problem().unwrap().to_string(), text);
    }
}

#[test]
fn f58_batmaps_of_later_versions_and_encrypted_images_are_not_read_at_all() {
    for (at, field, text) in [
        (
            0x814,
            &0x10003u32.to_be_bytes()[..],
            "batmap.version is 0x00010003: batmaps are handled in versions 0x00010001 and \
             0x00010002",
        ),
        (
            0x800 + 29,
            &[1],
            "batmap.keyhash is set: encrypted images are not handled",
        ),
    ] {
        let mut bytes = dynamic();
        put(&mut bytes, at, field);
        refused(&bytes, ErrorKind::Unsupported, text);
        assert!(Image::open(&bytes, Default::default()).is_err());
    }
}

#[test]
fn f58_a_batmap_with_a_wrong_checksum_is_taken_as_empty_and_healed_by_closing() {
    let mut bytes = dynamic_with_blocks(&[0]);
    put(&mut bytes, 0xa00, &[0x80]);
    let mut image = open(&bytes).unwrap();
    assert_eq!(
        image.batmap_problem().unwrap().to_string(),
        "batmap.checksum is 0xffffffff: the bytes sum up to 0xffffff7f"
    );
    assert!(matches!(
        image.block(0),
        Block::Allocated { full: false, .. }
    ));
    let bytes = crate::support::bytes_after_close(bytes, &mut image);
    assert!(open(&bytes).unwrap().batmap_problem().is_none());
}

#[test]
fn f58_a_full_mark_on_a_block_that_is_not_allocated_means_nothing() {
    let mut bytes = dynamic();
    put(&mut bytes, 0xa00, &[0x80]);
    put(&mut bytes, 0x818, &0xffff_ff7f_u32.to_be_bytes());
    let image = open(&bytes).unwrap();
    assert_eq!(image.block(0), Block::Unallocated);
    assert!(image.batmap_problem().is_none());
}

#[test]
fn f58_batmaps_of_version_1_1_sum_signed_bytes() {
    let mut bytes = dynamic_with_blocks(&[0]);
    put(&mut bytes, 0xa00, &[0x80]);
    put(&mut bytes, 0x814, &0x10001u32.to_be_bytes());
    put(&mut bytes, 0x818, &(!(-128i32)).to_be_bytes());
    let image = open(&bytes).unwrap();
    assert!(matches!(
        image.block(0),
        Block::Allocated { full: true, .. }
    ));
}

#[test]
fn f59_batmap_sizes_and_places_that_overflow_are_refused() {
    for (at, field, text) in [
        (
            0x808,
            &(u64::MAX - 511).to_be_bytes()[..],
            "batmap.batmap_offset is 18446744073709551104: must be a multiple of 512 inside the \
             file",
        ),
        (
            0x808,
            &(1u64 << 30).to_be_bytes(),
            "batmap is 512 bytes at byte 1073741824: must end by byte 3584",
        ),
        (
            0x808,
            &1536u64.to_be_bytes(),
            "batmap is at bytes 1536 to 2048: must not overlap bat at bytes 1536 to 2048",
        ),
    ] {
        let mut bytes = dynamic();
        put(&mut bytes, at, field);
        // What the misplaced map reads as is judged after its place.
        corrupt(&bytes, text);
    }
    let mut bytes = dynamic();
    put(&mut bytes, 0x810, &u32::MAX.to_be_bytes());
    let image = open(&bytes).unwrap();
    assert_eq!(
        image.end_of_data_bytes(),
        0xc00,
        "only what the table can need is kept free"
    );
}

#[test]
fn f60_a_file_that_grows_while_open_is_not_looked_at_again() {
    let mut bytes = dynamic_with_blocks(&[0]);
    let image = open(&bytes).unwrap();
    let before = (image.block(0), image.end_of_data_bytes());
    bytes.resize(bytes.len() + (1 << 20), 0x55);
    assert_eq!((image.block(0), image.end_of_data_bytes()), before);
    let again = open(&bytes).unwrap();
    assert!(!again.is_clean(), "its end is no footer any more");
    assert_eq!(again.block(0), before.0);
}

#[test]
fn f61_holes_in_metadata_are_refused_or_harmless() {
    let hole = |range: std::ops::Range<usize>| {
        let mut bytes = dynamic_with_blocks(&[0]);
        bytes[range].fill(0);
        bytes
    };
    corrupt(
        &hole(512..1536),
        "header.cookie is \"\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\": must be \"cxsparse\"",
    );
    corrupt(
        &hole(1536..2048),
        "bat is 32 blocks: 2 blocks at most fit a container of 2101760 bytes",
    );
    corrupt(
        &hole(1540..1544),
        "bat[1] is at bytes 0 to 2097664: must not overlap footer copy at bytes 0 to 512",
    );
    assert!(!open(&hole(0..512)).unwrap().is_clean());
}

#[test]
fn f62_padding_that_is_not_zero_is_read_and_normalised_when_written() {
    let mut bytes = with_footers(dynamic(), |f| f[86..].fill(0xaa));
    bytes = with_header(bytes, |h| h[768..].fill(0xaa));
    bytes[1536 + 128..2048].fill(0x55);
    let mut image = open(&bytes).unwrap();
    assert!(image.is_clean());
    let bytes = crate::support::bytes_after_close(bytes, &mut image);
    assert!(bytes[86..512].iter().all(|&byte| byte == 0));
}

#[test]
fn after_a_crash_the_last_block_may_be_cut_short_unless_it_is_called_full() {
    let mut bytes = dynamic_with_blocks(&[0, 1]);
    bytes.truncate(4112 * 512 + 4096);
    let image = open(&bytes).unwrap();
    assert_eq!(image.size_needed_bytes(), (4111 + 4097 + 1) * 512);
    // Its bitmap must be there.
    corrupt(
        &bytes[..4111 * 512 + 100],
        "bat[1] is 512 bytes at byte 2104832: must end by byte 2104932",
    );
    put(&mut bytes, 0xa00, &[0x40]);
    put(&mut bytes, 0x818, &0xffff_ffbf_u32.to_be_bytes());
    corrupt(
        &bytes,
        "bat[1] is 2097664 bytes at byte 2104832: must end by byte 2109440",
    );
}

#[test]
fn a_block_over_the_footer_of_a_device_is_refused() {
    let mut bytes = dynamic_with_blocks(&[0]);
    bytes.truncate(bytes.len() - 1024);
    let mut options = READ_WRITE;
    options.extent = vhd_rs::Extent::Reserved;
    let error = Image::open(&bytes, options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "bat[0] is 2097664 bytes at byte 3584: must end by byte 2100224"
    );
}

//! Batmaps (F58, F59).

use super::{corrupt, refused};
use crate::support::{READ_WRITE, bytes_after_close, dynamic, dynamic_with_blocks, open, put};
use vhd_rs::{Allow, Block, ErrorKind, Image};

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
fn f58_batmaps_of_later_versions_are_not_read_at_all() {
    let mut bytes = dynamic();
    put(&mut bytes, 0x814, &0x10003u32.to_be_bytes());
    let text =
        "batmap.version is 0x00010003: batmaps are handled in versions 0x00010001 and 0x00010002";
    refused(&bytes, ErrorKind::Unsupported, text);
    assert!(Image::open(&bytes, Default::default()).is_err());
}

#[test]
fn encrypted_images_are_refused_unless_the_caller_knows_of_it() {
    let mut bytes = dynamic();
    put(&mut bytes, 0x800 + 29, &[1]);
    let text = "batmap.keyhash is set: the image is encrypted and was not opened for that";
    refused(&bytes, ErrorKind::Key, text);
    // Nor does a map that cannot be believed hide it.
    let mut torn = bytes.clone();
    put(&mut torn, 0x808, &[0xff; 8]);
    assert!(Image::open(&torn, Default::default()).is_err());
    let allow = Allow {
        encrypted: true,
        ..Allow::default()
    };
    let image = Image::open_with(&bytes, READ_WRITE, allow).unwrap();
    assert!(image.keyhash().is_some());
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
    let bytes = bytes_after_close(bytes, &mut image);
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
fn f59_blocks_inside_the_sectors_claimed_for_the_batmap_are_never_called_full() {
    // Other tools look for the first block after the claim, and write zeros before all others.
    let mut bytes = dynamic_with_blocks(&[0]);
    put(&mut bytes, 0x810, &4u32.to_be_bytes());
    let mut image = open(&bytes).unwrap();
    assert!(!image.set_full(0));
    let mut bytes = dynamic_with_blocks(&[0]);
    put(&mut bytes, 0x810, &2u32.to_be_bytes());
    assert!(
        open(&bytes).unwrap().set_full(0),
        "the claim ends where the gap does"
    );
}

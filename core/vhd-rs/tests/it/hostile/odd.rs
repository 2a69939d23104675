//! Files that change, have holes or end early (F60 to F62).

use super::corrupt;
use crate::support::{
    READ_WRITE, bytes_after_close, dynamic, dynamic_with_blocks, open, put, with_footers,
    with_header,
};
use vhd_rs::Image;

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
    let bytes = bytes_after_close(bytes, &mut image);
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

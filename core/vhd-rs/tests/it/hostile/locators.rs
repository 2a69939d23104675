//! Parents: names and locators (F56, F57).

use super::corrupt;
use crate::support::{differencing, dynamic, open, put, with_footers, with_header};

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

//! Footers: missing, damaged, contradicting, of other versions (F55).

use super::{corrupt, refused};
use crate::support::{
    MIB, UUID, bytes_of, dynamic, new_image, open, put, reseal, with_footers, with_header,
};
use vhd_rs::{Content, DiskType, ErrorKind};

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
    // Also where the other one leads nowhere.
    let mut bytes = dynamic();
    reseal(&mut bytes[..512], 64, |f| {
        put(f, 16, &(2 * MIB).to_be_bytes())
    });
    assert!(!open(&bytes).unwrap().is_clean());
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
    // Nor does one that would make the image unusable if it were its own.
    for change in [
        &|f: &mut [u8]| put(f, 12, &[0, 2, 0, 0]),
        &|f: &mut [u8]| put(f, 0, b"v_poison"),
    ] as [&dyn Fn(&mut [u8]); 2]
    {
        let mut bytes = dynamic();
        reseal(&mut bytes[end..], 64, |f| {
            put(f, 68, &[9; 16]);
            change(f);
        });
        assert_eq!(open(&bytes).unwrap().uuid(), UUID);
        reseal(&mut bytes[end..], 64, |f| put(f, 68, UUID.as_bytes()));
        let kinds = [ErrorKind::Unsupported, ErrorKind::Poisoned];
        assert!(kinds.contains(&open(&bytes).unwrap_err().kind()));
    }
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

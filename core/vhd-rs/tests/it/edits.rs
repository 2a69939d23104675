//! Changes of whole images: sizes, flags, parents, repair, and what is refused.

use crate::support::{
    MIB, PARENT, READ_WRITE, UUID, bytes_after_close, bytes_of, differencing, dynamic,
    dynamic_with_blocks, link, new_image, open, put, with_footers,
};
use uuid::Uuid;
use vhd_checker::{Strictness, check};
use vhd_rs::{Allow, Block, Content, ErrorKind, Extent, Geometry, Image, Keyhash, Step};

fn sound(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::new().expect("a folder for it");
    std::fs::write(file.path(), bytes).expect("room for it");
    let report = check(file.path(), Strictness::Closed).expect("the file is there");
    assert_eq!(report.problems, []);
}

fn laid_out_for(virtual_bytes: u64, resize_max_bytes: u64) -> Vec<u8> {
    let mut new = new_image(virtual_bytes, Content::Dynamic);
    new.resize_max_bytes = resize_max_bytes;
    bytes_of(&new)
}

#[test]
fn a_fast_resize_within_the_layout_is_sound_and_keeps_everything() {
    let mut bytes = laid_out_for(62 * MIB, 64 << 30);
    let mut image = open(&bytes).unwrap();
    let place = image.reserve(3).unwrap();
    image.commit(&place).unwrap();
    bytes.resize(image.size_needed_bytes() as usize, 0);
    let bitmap = place.bitmap_offset as usize;
    bytes[bitmap..bitmap + 512].fill(0xff);
    assert!(image.set_full(3));
    let sector = image.bat_sector(3).unwrap();
    put(&mut bytes, sector.offset as usize, &sector.bytes);
    // Reserve entries and batmap sectors hold rubbish until a resize makes them count.
    bytes[1536 + 31 * 4..1536 + 512].fill(0x11);
    let used_end = (place.start_offset as usize) & !511;
    bytes[used_end - 512..used_end].fill(0x77);

    image
        .resize_plan(33 << 30)
        .unwrap()
        .apply(&mut bytes)
        .unwrap();
    let after = open(&bytes).unwrap();
    assert_eq!(after.virtual_bytes(), 33 << 30);
    assert_eq!(after.footer().geometry, Geometry::of_size(33 << 30));
    assert_eq!(after.allocated_blocks(), 1);
    assert!(after.is_clean() && after.batmap_problem().is_none());
    assert!(matches!(
        after.block(3),
        Block::Allocated { full: true, .. }
    ));
    sound(&bytes);
}

#[test]
fn the_footers_of_a_resize_come_after_its_table_is_durable() {
    let mut image = open(&laid_out_for(64 * MIB, 1 << 30)).unwrap();
    let footer_before = image.footer().clone();
    let plan = image.resize_plan(1 << 30).unwrap();
    let barrier = plan
        .steps
        .iter()
        .position(|step| *step == Step::Flush)
        .unwrap();
    for (index, step) in plan.steps.iter().enumerate() {
        if let Step::Write { bytes, .. } = step {
            assert_eq!(
                bytes.starts_with(b"conectix"),
                index > barrier,
                "step {index}"
            );
        }
    }
    assert_ne!(footer_before, *image.footer());
}

#[test]
fn resizes_out_of_bounds_are_refused_and_change_nothing() {
    let mut image = open(&dynamic()).unwrap();
    for (bytes, kind, text) in [
        (
            62 * MIB,
            ErrorKind::Argument,
            "resize.virtual_bytes is 65011712: must be at least the present size of 67108864 bytes",
        ),
        (
            65 * MIB,
            ErrorKind::NoSpace,
            "resize.virtual_bytes is 68157440: the metadata was laid out for up to 67108864 bytes",
        ),
        (
            u64::MAX,
            ErrorKind::NoSpace,
            "resize.virtual_bytes is 18446744073709551615: sizes are handled up to 17592186044416 \
             bytes",
        ),
    ] {
        let error = image.resize_plan(bytes).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, text));
    }
    assert_eq!(image.virtual_bytes(), 64 * MIB);
    let mut fixed = open(&bytes_of(&new_image(2 * MIB, Content::Fixed))).unwrap();
    assert_eq!(
        fixed.resize_plan(4 * MIB).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

#[test]
fn hiding_is_seen_in_both_footers_and_undone() {
    let mut bytes = dynamic_with_blocks(&[4, 1]);
    for hidden in [true, false] {
        open(&bytes)
            .unwrap()
            .hide_plan(hidden)
            .unwrap()
            .apply(&mut bytes)
            .unwrap();
        let image = open(&bytes).unwrap();
        assert_eq!((image.is_hidden(), image.is_clean()), (hidden, true));
        assert_eq!(
            (bytes[85], bytes[bytes.len() - 512 + 85]),
            (u8::from(hidden), u8::from(hidden))
        );
        sound(&bytes);
    }
}

#[test]
fn reparenting_rewrites_name_uuid_and_all_locators_in_place() {
    let other = Uuid::from_u128(7);
    let mut bytes = differencing();
    let plan = open(&bytes)
        .unwrap()
        .reparent_plan(&link("../é/base.vhd", other))
        .unwrap();
    plan.apply(&mut bytes).unwrap();
    let image = open(&bytes).unwrap();
    assert_eq!(image.parent_uuid(), Some(other));
    assert_eq!(image.header().unwrap().parent_name, "base.vhd");
    let paths: Vec<String> = image.locators().iter().map(|l| l.path().unwrap()).collect();
    assert_eq!(
        paths,
        ["../é/base.vhd", "./../é/base.vhd", "./../é/base.vhd"]
    );
    let offsets: Vec<u64> = image
        .locators()
        .iter()
        .map(|l| l.entry.data_offset)
        .collect();
    assert_eq!(offsets, [0xc00, 0xe00, 0x1000]);
    sound(&bytes);
}

#[test]
fn reparenting_to_a_name_too_long_for_its_old_space_changes_nothing() {
    let mut image = open(&differencing()).unwrap();
    let long = "d/".repeat(130) + "p.vhd";
    let error = image.reparent_plan(&link(&long, PARENT)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NameTooLong);
    assert_eq!(
        error.to_string(),
        "header.locator[1].data_space is 512: the new path takes 534 bytes"
    );
    let error = image
        .reparent_plan(&link(&("n".repeat(257)), PARENT))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NameTooLong);
    assert_eq!(image.parent_path().as_deref(), Some("./a.vhd"));
    assert_eq!(image.parent_uuid(), Some(PARENT));
}

#[test]
fn only_differencing_images_have_a_parent_to_change() {
    let error = open(&dynamic())
        .unwrap()
        .reparent_plan(&link("p", PARENT))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument);
}

#[test]
fn repair_writes_both_footers_anew_and_a_uuid_if_there_is_none() {
    let fresh = Uuid::from_u128(42);
    let mut bytes = with_footers(dynamic_with_blocks(&[1]), |f| put(f, 68, &[0; 16]));
    bytes.truncate(bytes.len() - 512);
    let mut image = open(&bytes).unwrap();
    assert!(!image.is_clean());
    image.repair_plan(fresh).unwrap().apply(&mut bytes).unwrap();
    let image = open(&bytes).unwrap();
    assert_eq!((image.uuid(), image.is_clean()), (fresh, true));
    sound(&bytes);
    let mut again = dynamic();
    open(&again)
        .unwrap()
        .repair_plan(fresh)
        .unwrap()
        .apply(&mut again)
        .unwrap();
    assert_eq!(open(&again).unwrap().uuid(), UUID);
}

#[test]
fn an_image_in_use_shows_it_until_it_is_closed() {
    let mut new = new_image(64 * MIB, Content::Dynamic);
    (new.extent, new.container_bytes) = (Extent::Reserved, 8 * MIB);
    let mut device = vec![0; 8 << 20];
    new.plan().unwrap().apply(&mut device).unwrap();
    let options = vhd_rs::OpenOptions {
        extent: Extent::Reserved,
        ..READ_WRITE
    };
    let mut image = Image::open(&device, options).unwrap();
    image.in_use_plan().unwrap().apply(&mut device).unwrap();
    assert!(device.ends_with(&[0xc7; 512]));
    assert!(!Image::open(&device, options).unwrap().is_clean());
    assert!(
        image.in_use_plan().unwrap().steps.is_empty(),
        "there is no footer to overwrite"
    );
    image.close_plan().unwrap().apply(&mut device).unwrap();
    assert!(Image::open(&device, options).unwrap().is_clean());
}

#[test]
fn footers_follow_a_volume_that_grows_or_is_about_to_shrink() {
    let mut new = new_image(64 * MIB, Content::Dynamic);
    (new.extent, new.container_bytes) = (Extent::Reserved, 4 * MIB);
    let options = vhd_rs::OpenOptions {
        extent: Extent::Reserved,
        ..READ_WRITE
    };
    let mut volume = vec![0x5a; 4 << 20];
    new.plan().unwrap().apply(&mut volume).unwrap();
    // Grown: no footer at its end until it is written there.
    volume.resize(8 << 20, 0x5a);
    let mut image = Image::open(&volume, options).unwrap();
    assert!(!image.is_clean());
    image
        .container_plan(8 * MIB)
        .unwrap()
        .apply(&mut volume)
        .unwrap();
    let mut image = Image::open(&volume, options).unwrap();
    assert!(image.is_clean());
    let place = image.reserve(9).unwrap();
    image.commit(&place).unwrap();
    let too_small = image.container_plan(2 * MIB).unwrap_err();
    assert_eq!(too_small.kind(), ErrorKind::NoSpace);
    // To be cut: the footer is where the end will be.
    image
        .container_plan(3 * MIB)
        .unwrap()
        .apply(&mut volume)
        .unwrap();
    volume.truncate(3 << 20);
    assert!(Image::open(&volume, options).unwrap().is_clean());
}

#[test]
fn dropping_data_removes_marks_entries_and_space_in_this_order() {
    let mut bytes = dynamic_with_blocks(&[1, 4]);
    let mut image = open(&bytes).unwrap();
    assert!(image.set_full(1));
    image.close_plan().unwrap().apply(&mut bytes).unwrap();
    let mut image = open(&bytes).unwrap();
    let plan = image.drop_data_plan().unwrap();
    let order: Vec<u64> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Write { offset, .. } => Some(*offset),
            _ => None,
        })
        .collect();
    // Batmap and its header, the table's sector, then the footers.
    assert_eq!(order, [0xa00, 0x800, 0x600, 0xc00, 0]);
    let groups = plan.steps.split(|step| *step == Step::Flush);
    assert!(groups.filter(|group| !group.is_empty()).count() == 3);
    plan.apply(&mut bytes).unwrap();
    assert_eq!(bytes, dynamic());
}

#[test]
fn keys_are_checked_both_ways_and_change_only_while_an_image_is_empty() {
    let mut bytes = dynamic();
    let keyhash = Keyhash::of([3; 32], b"a key of any length");
    let mut image = open(&bytes).unwrap();
    image.check_key(None).unwrap();
    let kind = |image: &Image, key| image.check_key(key).unwrap_err().kind();
    assert_eq!(kind(&image, Some(b"a key of any length")), ErrorKind::Key);
    image
        .keyhash_plan(Some(&keyhash))
        .unwrap()
        .apply(&mut bytes)
        .unwrap();
    assert_eq!(open(&bytes).unwrap_err().kind(), ErrorKind::Key);
    let allow = Allow {
        encrypted: true,
        ..Allow::default()
    };
    let mut image = Image::open_with(&bytes, READ_WRITE, allow).unwrap();
    assert_eq!(image.keyhash(), Some(keyhash));
    image.check_key(Some(b"a key of any length")).unwrap();
    assert_eq!(kind(&image, Some(b"another key")), ErrorKind::Key);
    assert_eq!(kind(&image, None), ErrorKind::Key);
    let place = image.reserve(0).unwrap();
    image.commit(&place).unwrap();
    let refused = image.keyhash_plan(None).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Argument);
}

#[test]
fn fixed_disks_are_never_marked_in_use_as_they_have_one_footer() {
    let mut image = open(&bytes_of(&new_image(2 * MIB, Content::Fixed))).unwrap();
    assert!(image.in_use_plan().unwrap().steps.is_empty());
}

#[test]
fn reserved_blocks_are_invisible_until_committed_and_space_can_be_given_back() {
    let mut image = open(&dynamic()).unwrap();
    let (a, b) = (image.reserve(3).unwrap(), image.reserve(4).unwrap());
    assert_eq!(image.block(3), Block::Unallocated);
    assert_eq!(image.bat_sector(3).unwrap().bytes[12..20], [0xff; 8]);
    image.commit(&b).unwrap();
    assert_eq!(
        image.bat_sector(3).unwrap().bytes[12..16],
        [0xff; 4],
        "only what is committed"
    );
    assert!(!image.release(&a), "something lies after it");
    assert!(!image.release(&b), "it is committed");
    let c = image.reserve(5).unwrap();
    assert!(image.release(&c));
    assert_eq!(image.reserve(6).unwrap().bitmap_offset, c.bitmap_offset);
    assert_eq!(image.commit(&b).unwrap_err().kind(), ErrorKind::Argument);
}

#[test]
fn every_block_has_its_data_aligned_and_a_gap_of_seven_sectors() {
    let mut image = open(&laid_out_for(8 << 30, 0)).unwrap();
    let mut last_end = None;
    for block in (0..4096).rev() {
        let place = image.reserve(block).unwrap();
        assert!(place.data_offset.is_multiple_of(4096));
        if let Some(end) = last_end {
            assert_eq!(place.bitmap_offset - end, 7 * 512);
        }
        last_end = Some(place.end_offset);
    }
}

#[test]
fn sector_numbers_run_out_at_2_tib() {
    let mut image = open(&laid_out_for(2 << 40, 0)).unwrap();
    let fits = 1_046_530;
    for block in 0..fits {
        image.reserve(block).unwrap();
    }
    let error = image.reserve(fits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
}

#[test]
fn blocks_beyond_the_disk_and_allocated_ones_are_not_reserved() {
    let mut image = open(&dynamic_with_blocks(&[2])).unwrap();
    for block in [2, 32, u32::MAX] {
        let error = image.reserve(block).unwrap_err();
        let rule = "must be an unallocated block below 32";
        assert_eq!(error.to_string(), format!("block is {block}: {rule}"));
    }
    assert!(image.bat_sector(32).is_none());
}

#[test]
fn full_marks_follow_the_rules() {
    let mut image = open(&dynamic_with_blocks(&[2])).unwrap();
    assert!(!image.set_full(1), "not allocated");
    assert!(image.set_full(2));
    assert_eq!(image.unmap(2).unwrap_err().kind(), ErrorKind::Argument);
    assert!(image.clear_full(2));
    assert!(!image.clear_full(2));
    image.unmap(2).unwrap();
    assert_eq!(image.block(2), Block::Unallocated);
    let plan = image.batmap_plan().unwrap();
    assert_eq!(plan.steps.len(), 4, "flush, map, header, flush");
    assert!(image.batmap_plan().unwrap().steps.is_empty());
}

#[test]
fn blocks_beyond_the_used_length_of_a_batmap_have_no_bit() {
    // 4097 blocks: the map's used length is one sector, bits for 4096.
    let mut bytes = laid_out_for(8194 * MIB, 0);
    let mut image = open(&bytes).unwrap();
    for block in [4095, 4096] {
        let place = image.reserve(block).unwrap();
        image.commit(&place).unwrap();
        let sector = image.bat_sector(block).unwrap();
        put(&mut bytes, sector.offset as usize, &sector.bytes);
    }
    assert!(image.set_full(4095));
    assert!(!image.set_full(4096));
    let bytes = bytes_after_close(bytes, &mut image);
    let image = open(&bytes).unwrap();
    assert!(matches!(
        image.block(4095),
        Block::Allocated { full: true, .. }
    ));
    assert!(matches!(
        image.block(4096),
        Block::Allocated { full: false, .. }
    ));
}

#[test]
fn a_file_by_libvhd_with_its_footer_in_the_second_batmap_sector_opens() {
    let mut bytes = laid_out_for(8194 * MIB, 0);
    let footer = bytes[..512].to_vec();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend(footer);
    let mut image = open(&bytes).unwrap();
    assert!(image.is_clean());
    let place = image.reserve(0).unwrap();
    assert!(
        place.bitmap_offset >= bytes.len() as u64,
        "the reserved sector is kept free"
    );
}

#[test]
fn what_is_opened_read_only_cannot_be_changed() {
    let mut image = Image::open(&dynamic(), Default::default()).unwrap();
    for error in [
        image.reserve(0).unwrap_err(),
        image.unmap(0).unwrap_err(),
        image.close_plan().unwrap_err(),
        image.batmap_plan().unwrap_err(),
        image.in_use_plan().unwrap_err(),
        image.hide_plan(true).unwrap_err(),
        image.resize_plan(64 * MIB).unwrap_err(),
        image.repair_plan(UUID).unwrap_err(),
        image.reparent_plan(&link("p", PARENT)).unwrap_err(),
    ] {
        assert_eq!(
            error.to_string(),
            "access is read-only: the image was not opened for writing"
        );
    }
    assert!(!image.set_full(0));
}

#[test]
fn impossible_new_images_are_refused() {
    let mut nil = new_image(MIB, Content::Dynamic);
    nil.uuid = Uuid::nil();
    let mut small = new_image(64 * MIB, Content::Dynamic);
    (small.extent, small.container_bytes) = (Extent::Reserved, 3583);
    let child = |path: &str| new_image(MIB, Content::Differencing(link(path, PARENT)));
    for (new, kind, field) in [
        (
            new_image(0, Content::Dynamic),
            ErrorKind::Argument,
            "new.virtual_bytes",
        ),
        (
            new_image(u64::MAX, Content::Fixed),
            ErrorKind::Argument,
            "new.virtual_bytes",
        ),
        (nil, ErrorKind::Argument, "new.uuid"),
        (small, ErrorKind::NoSpace, "new.container_bytes"),
        (child(""), ErrorKind::Argument, "parent.path"),
        (child("a/.."), ErrorKind::Argument, "parent.path"),
        (child("a\0"), ErrorKind::Argument, "parent.path"),
        (child(&"x/".repeat(600)), ErrorKind::Argument, "parent.path"),
        (
            child(&("x/".repeat(600) + "p")),
            ErrorKind::NameTooLong,
            "parent.path",
        ),
        (
            child(&"p".repeat(257)),
            ErrorKind::NameTooLong,
            "header.parent_name",
        ),
    ] {
        let error = new.plan().unwrap_err();
        assert_eq!((error.kind(), error.field()), (kind, field));
    }
}

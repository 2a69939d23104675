//! Plans cut off anywhere: whatever subset of the writes between two flushes became durable, the
//! image opens, the checker accepts it as left by a crash, and its blocks are where they were.

use crate::support::{MIB, bytes_of, dynamic, new_image, open, put};
use vhd_checker::{Strictness, check};
use vhd_rs::{Block, Content, Image, Plan, Step, WriteAt};

/// Every state the disk may be in when power fails while `plan` is performed on `before`.
fn crash_states(before: &[u8], plan: &Plan) -> Vec<Vec<u8>> {
    let mut durable = before.to_vec();
    let mut states = Vec::new();
    for group in plan.steps.split(|step| *step == Step::Flush) {
        assert!(group.len() <= 12, "too many subsets");
        for subset in 0..1u32 << group.len() {
            let mut state = durable.clone();
            for (index, step) in group.iter().enumerate() {
                if subset >> index & 1 == 1 {
                    perform(&mut state, step);
                }
            }
            states.push(state);
        }
        group.iter().for_each(|step| perform(&mut durable, step));
    }
    states
}

fn perform(disk: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write { offset, bytes } => disk.write_all_at(*offset, bytes).expect("memory"),
        Step::Zero { offset, len } => {
            disk.write_all_at(*offset, &vec![0; *len as usize])
                .expect("memory");
        }
        Step::SetSize { bytes } => disk.set_size(*bytes).expect("memory"),
        Step::Flush => unreachable!("groups are between flushes"),
    }
}

fn assert_each_sound(states: Vec<Vec<u8>>, places: &[Block], allowed_sizes: [u64; 2]) {
    let file = tempfile::NamedTempFile::new().expect("a folder for it");
    for state in states {
        std::fs::write(file.path(), &state).expect("room for it");
        let report = check(file.path(), Strictness::AfterCrash).expect("the file is there");
        assert_eq!(report.problems, []);
        let image = open(&state).expect("the image opens after a crash");
        assert!(allowed_sizes.contains(&image.virtual_bytes()));
        for (block, place) in (0u32..).zip(places) {
            let now = image.block(block);
            let unfull = |b: Block| match b {
                Block::Allocated {
                    bitmap_offset,
                    data_offset,
                    ..
                } => Block::Allocated {
                    bitmap_offset,
                    data_offset,
                    full: false,
                },
                other => other,
            };
            assert_eq!(unfull(now), unfull(*place), "block {block}");
        }
    }
}

/// An image in use: block 1 is full and marked, block 0 is fresh, the file is longer than needed,
/// and no footer is at its end.
fn in_use(resize_max_bytes: u64) -> (Vec<u8>, Image) {
    let mut new = new_image(64 * MIB, Content::Dynamic);
    new.resize_max_bytes = resize_max_bytes;
    let mut bytes = bytes_of(&new);
    let mut image = open(&bytes).expect("a fresh image opens");
    for block in [1, 0] {
        let place = image.reserve(block).expect("there is room");
        image.commit(&place).expect("it was reserved");
        bytes.resize(image.size_needed_bytes() as usize + 8192, 0);
        let bitmap = [if block == 1 { 0xff } else { 0 }; 512];
        put(&mut bytes, place.bitmap_offset as usize, &bitmap);
        let sector = image.bat_sector(block).expect("the block has an entry");
        put(&mut bytes, sector.offset as usize, &sector.bytes);
    }
    assert!(image.set_full(1));
    (bytes, image)
}

fn places(image: &Image) -> Vec<Block> {
    (0..image.blocks())
        .map(|block| image.block(block))
        .collect()
}

#[test]
fn closing_may_be_cut_off_anywhere() {
    let (bytes, mut image) = in_use(0);
    let plan = image.close_plan().unwrap();
    assert_each_sound(crash_states(&bytes, &plan), &places(&image), [64 * MIB; 2]);
}

#[test]
fn resizing_may_be_cut_off_anywhere() {
    let (mut bytes, mut image) = in_use(9 << 30);
    // What resizing makes count holds rubbish before.
    put(&mut bytes, 1536 + 32 * 4, &[0; 96 * 4]);
    let old_places = places(&image);
    let plan = image.resize_plan(512 * MIB).unwrap();
    assert_each_sound(
        crash_states(&bytes, &plan),
        &old_places,
        [64 * MIB, 512 * MIB],
    );
}

#[test]
fn hiding_marking_in_use_and_batmap_updates_may_be_cut_off_anywhere() {
    let changes: [fn(&mut Image) -> Plan; 3] = [
        |image| image.hide_plan(true).expect("opened for writing"),
        |image| image.in_use_plan().expect("opened for writing"),
        |image| {
            assert!(image.clear_full(1));
            image.batmap_plan().expect("opened for writing")
        },
    ];
    for change in changes {
        let (mut bytes, mut image) = in_use(0);
        image.close_plan().unwrap().apply(&mut bytes).unwrap();
        let before = places(&image);
        let plan = change(&mut image);
        assert!(!plan.steps.is_empty());
        assert_each_sound(crash_states(&bytes, &plan), &before, [64 * MIB; 2]);
    }
}

#[test]
fn creation_cut_off_anywhere_leaves_nothing_or_an_empty_image() {
    let new = new_image(64 * MIB, Content::Dynamic);
    let states = crash_states(&[], &new.plan().unwrap());
    let opened = states.iter().filter_map(|state| open(state).ok());
    let opened: Vec<u32> = opened.map(|image| image.allocated_blocks()).collect();
    assert!(!opened.is_empty() && opened.len() < states.len());
    assert!(opened.iter().all(|&allocated| allocated == 0));
    assert_eq!(states.last(), Some(&dynamic()));
}

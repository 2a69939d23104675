//! Operations on the disk as a whole, while requests are under way.

use super::rig::{BLOCK, Peek, Rig, SECTOR, child, dynamic, load, ram_with_dynamic};
use crate::engine::{Error, ErrorKind, LayerImage, LiveOp, Request};
use block::{Buffer, FileId, Order, RamDisk, Rng, SimDisk, SparseBytes};
use datapath::protocol::Format;

fn sim(seed: u64) -> (SimDisk, [(FileId, Format); 1]) {
    let (ram, files) = ram_with_dynamic(3 * BLOCK);
    (
        SimDisk::from_ram(&ram, Order::Random(Rng::new(seed))),
        files,
    )
}

fn write_request(offset: u64, byte: u8) -> Request {
    Request::Write {
        offset,
        data: Buffer::copy_of(&[byte; 512]),
        fua: false,
    }
}

fn new_leaf(rig: &mut Rig<SimDisk>, n: u32, parent: u32) -> LiveOp {
    let file = rig.io.add_file(child(n, Some(parent), 3 * BLOCK));
    let spec = load(&rig.io, (file, Format::Vhd), vhd_rs::Access::ReadWrite).expect("it loads");
    LiveOp::SnapshotSwitch(Box::new(spec))
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.expect_err("refused").kind
}

#[test]
fn a_frozen_disk_finishes_what_it_has_and_holds_back_the_rest() {
    let (io, files) = sim(1);
    let mut rig = Rig::open(io, &files);
    let before = rig.submit(write_request(0, 1));
    rig.run_live(LiveOp::Freeze).expect("it freezes");
    rig.take(before)
        .expect("finished before the freeze")
        .expect("and well");
    let held = rig.submit(write_request(0, 2));
    while rig.step() {}
    assert!(rig.take(held).is_none() && rig.engine.is_frozen());
    // The group snapshot: all disks are frozen, each is switched, all are thawed.
    let op = new_leaf(&mut rig, 2, 1);
    rig.run_live(op).expect("a frozen disk can be switched");
    assert!(rig.take(held).is_none(), "the switch does not thaw");
    let sealed = rig.io.peek(files[0].0).clone();
    rig.engine.thaw();
    rig.wait(held).expect("the held write works");
    assert_eq!(rig.read(0, SECTOR).expect("read"), [2; 512]);
    assert_eq!(
        rig.io.peek(files[0].0),
        &sealed,
        "the write went to the new leaf"
    );
}

#[test]
fn a_snapshot_seals_its_layer_cleanly_while_writes_go_on() {
    for seed in 0..16 {
        let (io, files) = sim(seed);
        let mut rig = Rig::open(io, &files);
        let early: Vec<_> = (0..8)
            .map(|i| rig.submit(write_request(i * BLOCK / 4, 7)))
            .collect();
        let op = new_leaf(&mut rig, 2, 1);
        let switch = rig.start(op);
        let late = rig.submit(write_request(0, 8));
        rig.wait(switch).expect("the switch works");
        assert!(
            early
                .iter()
                .all(|ticket| rig.take(*ticket).is_some_and(|r| r.is_ok()))
        );
        rig.wait(late).expect("the late write works");
        assert_eq!(rig.read(0, SECTOR).expect("read"), [8; 512]);
        assert_eq!(rig.engine.layer_uuids().len(), 2);
        let sealed = load(&rig.io, files[0], vhd_rs::Access::ReadOnly).expect("it opens");
        let LayerImage::Vhd(image) = sealed.image else {
            panic!("a VHD")
        };
        assert!(image.is_clean());
        let ram = RamDisk::from(vec![rig.io.peek(files[0].0).clone()]);
        assert_eq!(
            Rig::open(ram, &files).read(0, SECTOR).expect("read"),
            [7; 512]
        );
    }
}

#[test]
fn a_leaf_that_does_not_belong_is_refused_and_the_disk_goes_on() {
    let (io, files) = sim(3);
    let mut rig = Rig::open(io, &files);
    let stranger = new_leaf(&mut rig, 5, 4);
    assert_eq!(kind(rig.run_live(stranger)), ErrorKind::Chain);
    let file = rig.io.add_file(child(6, Some(1), 3 * BLOCK));
    let spec = load(&rig.io, (file, Format::Vhd), vhd_rs::Access::ReadOnly).expect("it loads");
    let read_only = LiveOp::SnapshotSwitch(Box::new(spec));
    assert_eq!(kind(rig.run_live(read_only)), ErrorKind::Unsupported);
    let file = rig.io.add_file(child(7, Some(1), BLOCK));
    let spec = load(&rig.io, (file, Format::Vhd), vhd_rs::Access::ReadWrite).expect("it loads");
    let too_small = LiveOp::SnapshotSwitch(Box::new(spec));
    assert_eq!(kind(rig.run_live(too_small)), ErrorKind::Chain);
    rig.write(0, &[1; 512]).expect("the disk goes on");
    assert_eq!(rig.engine.files(), [files[0].0]);
}

#[test]
fn one_live_operation_at_a_time() {
    let (io, files) = sim(4);
    let mut rig = Rig::open(io, &files);
    let write = rig.submit(write_request(0, 1));
    let freeze = rig.start(LiveOp::Freeze);
    assert_eq!(kind(rig.run_live(LiveOp::Close)), ErrorKind::Busy);
    rig.wait(freeze).expect("it freezes");
    rig.take(write).expect("finished").expect("well");
}

#[test]
fn a_closed_disk_answers_everything_with_closed() {
    let (io, files) = sim(5);
    let mut rig = Rig::open(io, &files);
    rig.write(0, &[1; 512]).expect("write");
    let close = rig.start(LiveOp::Close);
    let late = rig.submit(Request::Flush);
    rig.wait(close).expect("it closes");
    assert_eq!(kind(rig.take(late).expect("answered")), ErrorKind::Closed);
    assert_eq!(kind(rig.read(0, SECTOR)), ErrorKind::Closed);
    assert_eq!(kind(rig.run_live(LiveOp::Close)), ErrorKind::Closed);
    let closed = load(&rig.io, files[0], vhd_rs::Access::ReadOnly).expect("it opens");
    assert!(matches!(closed.image, LayerImage::Vhd(image) if image.is_clean()));
}

#[test]
fn a_disk_that_was_only_read_is_closed_without_a_write() {
    let (io, files) = sim(6);
    let before = io.peek(files[0].0).clone();
    let mut rig = Rig::open(io, &files);
    assert_eq!(rig.read(0, SECTOR).expect("read"), [0; 512]);
    let io = rig.close();
    assert_eq!((io.volatile(), io.peek(files[0].0)), (0, &before));
}

#[test]
fn a_resized_disk_is_larger_and_the_new_part_is_zero_until_written() {
    let (io, files) = sim(7);
    let mut rig = Rig::open(io, &files);
    rig.write(3 * BLOCK - SECTOR, &[1; 512]).expect("write");
    assert_eq!(kind(rig.write(3 * BLOCK, &[2; 512])), ErrorKind::OutOfRange);
    rig.run_live(LiveOp::Resize {
        virtual_bytes: 5 * BLOCK,
    })
    .expect("it grows");
    assert_eq!(
        rig.read(3 * BLOCK - SECTOR, 2 * SECTOR).expect("read")[..512],
        [1; 512]
    );
    rig.write(5 * BLOCK - SECTOR, &[2; 512])
        .expect("write at the new end");
    assert_eq!(
        kind(rig.run_live(LiveOp::Resize {
            virtual_bytes: BLOCK
        })),
        ErrorKind::Invalid
    );
    let mut rig = Rig::open(rig.close(), &files);
    assert_eq!(rig.engine.size_bytes(), 5 * BLOCK);
    assert_eq!(
        rig.read(5 * BLOCK - SECTOR, SECTOR).expect("read"),
        [2; 512]
    );
    assert_eq!(rig.read(4 * BLOCK, SECTOR).expect("read"), [0; 512]);
}

#[test]
fn growth_beyond_the_table_is_unsupported_and_changes_nothing() {
    let (io, files) = sim(8);
    let mut rig = Rig::open(io, &files);
    rig.write(0, &[1; 512]).expect("write");
    rig.flush().expect("flush");
    let before = rig.io.peek(files[0].0).clone();
    // The table has room for four times the disk.
    for virtual_bytes in [12 * BLOCK + 1, 1000 * BLOCK, u64::MAX / 2] {
        let far = LiveOp::Resize { virtual_bytes };
        assert_eq!(kind(rig.run_live(far)), ErrorKind::Unsupported);
    }
    assert_eq!(rig.engine.size_bytes(), 3 * BLOCK);
    assert_eq!(rig.io.peek(files[0].0), &before);
    assert_eq!(kind(rig.write(3 * BLOCK, &[2; 512])), ErrorKind::OutOfRange);
    rig.write(2 * BLOCK, &[2; 512]).expect("it goes on");
    let near = LiveOp::Resize {
        virtual_bytes: 12 * BLOCK,
    };
    rig.run_live(near).expect("as far as the table reaches");
    let mut rig = Rig::open(rig.close(), &files);
    assert_eq!(rig.engine.size_bytes(), 12 * BLOCK);
    assert_eq!(rig.read(2 * BLOCK, SECTOR).expect("read"), [2; 512]);
}

#[test]
fn a_raw_disk_is_not_resized() {
    let mut ram = RamDisk::new();
    let raw = ram.add_file(SparseBytes::zeroed(BLOCK));
    let mut rig = Rig::open(ram, &[(raw, Format::Raw)]);
    let grow = LiveOp::Resize {
        virtual_bytes: 2 * BLOCK,
    };
    assert_eq!(kind(rig.run_live(grow)), ErrorKind::Unsupported);
}

#[test]
fn a_raw_base_takes_a_snapshot() {
    let mut ram = RamDisk::new();
    let raw = ram.add_file(SparseBytes::from(vec![5u8; 1 << 20].as_slice()));
    let leaf = ram.add_file(child(2, None, BLOCK));
    let unused = ram.add_file(dynamic(3, BLOCK));
    assert_ne!(leaf, unused);
    let mut rig = Rig::open(ram, &[(raw, Format::Raw)]);
    let spec = load(&rig.io, (leaf, Format::Vhd), vhd_rs::Access::ReadWrite).expect("it loads");
    rig.run_live(LiveOp::SnapshotSwitch(Box::new(spec)))
        .expect("the switch works");
    rig.write(SECTOR, &[6; 512]).expect("write");
    let bytes = rig.read((1 << 20) - SECTOR, 2 * SECTOR).expect("read");
    assert_eq!(
        (bytes[511], bytes[512]),
        (5, 0),
        "the parent is shorter than the disk"
    );
    let mut rig = Rig::open(rig.close(), &[(leaf, Format::Vhd), (raw, Format::Raw)]);
    let bytes = rig.read(0, 3 * SECTOR).expect("read");
    assert_eq!((bytes[0], bytes[512], bytes[1024]), (5, 6, 5));
}

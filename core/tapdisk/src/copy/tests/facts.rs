//! One fact each.

use super::world::{Ground, Guest, Kind, SIZE, assert_same, copy_of, ground, judge};
use crate::copy::testing::Pair;
use crate::copy::{Job, Mirror, Plan};
use crate::engine::testing::model::Model;
use crate::engine::testing::rig::{BLOCK, Rig, SECTOR, child, dynamic, load, load_chain};
use crate::engine::{ErrorKind, LiveOp, Request, Scope};
use block::{BlockIo, Buffer, Fault, FaultDisk, FaultKind, Order, RamDisk, Rng, SimDisk, Target};
use datapath::protocol::{Access, Format};

fn copied(
    ram: RamDisk,
    source: &[(block::FileId, Format)],
    target: &[(block::FileId, Format)],
    plan: Plan,
) -> (RamDisk, crate::copy::Progress) {
    let mut pair = Pair::open(ram, &source[..1.max(source.len())], Access::ReadOnly);
    pair.copy(source, target, plan).expect("it begins");
    pair.until(|pair| pair.job.as_ref().is_some_and(Job::is_over));
    let progress = pair.progress();
    (pair.io, progress)
}

#[test]
fn a_copy_of_a_chain_is_one_image_that_reads_the_same() {
    for kind in [Kind::Out, Kind::OutRaw] {
        let mut rng = Rng::new(5);
        let Ground {
            ram,
            source,
            target,
            model,
        } = ground(kind, 3, &mut rng);
        let (ram, progress) = copied(ram, &source, &target, kind.plan());
        assert!(progress.in_sync, "{kind:?}: {progress:?}");
        assert_eq!(progress.total_bytes, progress.done_bytes);
        judge(&ram, &target, &model, Model::is_current, "copy");
        assert_same(&ram, &source, &target, "copy");
    }
}

/// A chain of three: 64 KiB extents here and there in the upper two.
fn scattered() -> (RamDisk, Vec<(block::FileId, Format)>) {
    let mut ram = RamDisk::new();
    let mut files = vec![(ram.add_file(dynamic(1, SIZE)), Format::Vhd)];
    for n in [2, 3] {
        files.insert(0, (ram.add_file(child(n, Some(n - 1), SIZE)), Format::Vhd));
        let mut rig = Rig::open(ram, &files);
        for extent in (0..SIZE / 65536).step_by(5 * (n as usize - 1)) {
            let data = vec![n as u8; 65536];
            rig.write(extent * 65536, &data).expect("write");
        }
        ram = rig.close();
    }
    (ram, files)
}

fn merging(scope: u16) -> Plan {
    Plan {
        scope: Scope::Layer(scope),
        ..Plan::default()
    }
}

#[test]
fn a_merge_moves_the_sectors_of_one_layer_and_no_others() {
    let (ram, files) = scattered();
    let extents = SIZE / 65536;
    let (ram, progress) = copied(ram, &files[1..], &files[2..], merging(0));
    assert!(progress.in_sync, "{progress:?}");
    assert_eq!(progress.copied_bytes, extents.div_ceil(5) * 65536);
    assert_same(&ram, &files[1..], &files[2..], "merged");
}

#[test]
fn sectors_that_sealed_layers_above_hide_are_not_moved() {
    let (ram, files) = scattered();
    let extents = SIZE / 65536;
    let (ram, progress) = copied(ram, &files, &files[2..], merging(1));
    let visible = extents.div_ceil(5) - extents.div_ceil(10);
    assert_eq!(progress.copied_bytes, visible * 65536);
    let layers = load_chain(&ram, &files[2..], Access::ReadOnly).expect("it opens");
    let mut base = Rig::with_layers(ram, layers, Access::ReadOnly).expect("it opens");
    for extent in (0..extents).step_by(5) {
        let bytes = base.read(extent * 65536, SECTOR).expect("read");
        let expected = if extent % 10 == 0 { 0 } else { 2 };
        assert_eq!(bytes, [expected; 512], "extent {extent}");
    }
}

#[test]
fn a_merge_done_twice_is_a_merge() {
    let (ram, files) = scattered();
    let (ram, _) = copied(ram, &files[1..], &files[2..], merging(0));
    let (ram, progress) = copied(ram, &files[1..], &files[2..], merging(0));
    assert!(progress.in_sync);
    assert_same(&ram, &files[1..], &files[2..], "merged twice");
}

#[test]
fn a_smaller_parent_grows_before_it_takes_over() {
    let mut ram = RamDisk::new();
    let base = (ram.add_file(dynamic(1, SIZE - BLOCK)), Format::Vhd);
    let leaf = (ram.add_file(child(2, Some(1), SIZE)), Format::Vhd);
    let files = [leaf, base];
    let mut rig = Rig::open(ram, &files);
    rig.write(SIZE - SECTOR, &[9; 512]).expect("write");
    let (ram, progress) = copied(rig.close(), &files, &files[1..], merging(0));
    assert!(progress.in_sync, "{progress:?}");
    assert_same(&ram, &files, &files[1..], "grown");
}

#[test]
fn a_target_that_is_too_large_or_cannot_grow_is_refused() {
    let mut ram = RamDisk::new();
    let disk = [(ram.add_file(dynamic(1, SIZE)), Format::Vhd)];
    let large = [(ram.add_file(dynamic(2, SIZE + BLOCK)), Format::Vhd)];
    let small = vec![0; SIZE as usize - 512];
    let small = [(
        ram.add_file(block::SparseBytes::from(small.as_slice())),
        Format::Raw,
    )];
    let mut pair = Pair::open(ram, &disk, Access::ReadWrite);
    let error = pair
        .mirror(&large, Kind::Out.plan())
        .expect_err("too large");
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    pair.mirror(&small, Kind::Out.plan())
        .expect("it tries to grow");
    let error = pair.sync().expect_err("a raw file does not grow");
    assert!(error.message.contains("target"), "{error}");
    pair.stop();
    pair.run(Request::Flush).expect("the disk goes on");
}

#[test]
fn a_block_that_the_guest_never_leaves_alone_is_in_sync_all_the_same() {
    let mut ram = RamDisk::new();
    let disk = [(ram.add_file(dynamic(1, SIZE)), Format::Vhd)];
    let target = [(ram.add_file(dynamic(2, SIZE)), Format::Vhd)];
    let io = SimDisk::from_ram(&ram, Order::Random(Rng::new(3)));
    let mut pair = Pair::open(io, &disk, Access::ReadWrite);
    let mut guest = Guest::new(Model::default());
    guest.write(&mut pair, 0, 8, false, false);
    guest.quiesce(&mut pair);
    pair.mirror(&target, Kind::Out.plan()).expect("it begins");
    for turn in 0.. {
        assert!(turn < 5000, "never in sync: {:?}", pair.progress());
        // At any moment some write of the block is in flight.
        while guest.running.len() < 3 {
            guest.write(&mut pair, turn % 8, 4, false, false);
        }
        pair.step();
        guest.listen(&mut pair);
        if pair.progress().in_sync {
            break;
        }
    }
    pair.switch(true).expect("it switches under load");
    guest.quiesce(&mut pair);
    let end = copy_of(&pair.close(), 2);
    judge(&end, &target, &guest.model, Model::is_current, "hot block");
}

#[test]
fn a_limit_is_kept() {
    let mut ram = RamDisk::new();
    let disk = [(ram.add_file(dynamic(1, SIZE)), Format::Vhd)];
    let target = [(ram.add_file(dynamic(2, SIZE)), Format::Vhd)];
    let mut rig = Rig::open(ram, &disk);
    rig.write(0, &vec![1; SIZE as usize]).expect("write");
    let mut pair = Pair::open(rig.close(), &disk, Access::ReadWrite);
    let plan = Plan {
        limit_bytes_per_s: Some(SIZE),
        ..Kind::Out.plan()
    };
    pair.mirror(&target, plan).expect("it begins");
    // A turn is a millisecond in each of its two halves; the last piece may overdraw.
    for turn in 1..=250 {
        pair.step();
        let passed = SIZE * 2 * turn / 1000;
        let done = pair.progress().copied_bytes;
        assert!(
            done <= passed + (1 << 20),
            "{done} bytes after {turn} turns"
        );
    }
    assert!(pair.progress().copied_bytes > SIZE / 4);
    assert!(pair.mirror.as_ref().and_then(Mirror::wake_at_us).is_some());
    pair.sync().expect("it ends");
}

/// A disk of one image with its mirror in sync and prepared.
fn prepared() -> (Pair<FaultDisk<SimDisk>>, [(block::FileId, Format); 1]) {
    let mut ram = RamDisk::new();
    let disk = [(ram.add_file(dynamic(1, SIZE)), Format::Vhd)];
    let target = [(ram.add_file(dynamic(2, SIZE)), Format::Vhd)];
    let io = FaultDisk::new(SimDisk::from_ram(&ram, Order::Fifo));
    let mut pair = Pair::open(io, &disk, Access::ReadWrite);
    pair.mirror(&target, Kind::Out.plan()).expect("it begins");
    pair.sync().expect("in sync");
    (pair, target)
}

fn write(offset: u64, byte: u8, fua: bool) -> Request {
    let data = Buffer::copy_of(&[byte; 512]);
    Request::Write { offset, data, fua }
}

#[test]
fn between_prepare_and_switch_no_flush_is_answered_that_a_failed_target_has_not() {
    let (mut pair, target) = prepared();
    let fault = Fault {
        target: Target::Changes,
        nth: 0,
        times: u64::MAX,
        kind: FaultKind::Io,
    };
    pair.io.set_fault_on(target[0].0, fault);
    pair.run(write(0, 1, false))
        .expect("a write promises nothing");
    let waiting = [
        pair.submit(Request::Flush),
        pair.submit(write(512, 2, true)),
    ];
    pair.settle();
    for ticket in waiting {
        assert!(pair.take(ticket).is_none(), "a promise the target has not");
    }
    let progress = pair.progress();
    assert!(
        progress.failed.is_some() && !progress.in_sync,
        "{progress:?}"
    );
    assert_eq!(pair.switch(false).expect_err("failed").kind, ErrorKind::Io);
    pair.stop();
    for ticket in waiting {
        pair.wait(ticket).expect("the caller took its record back");
    }
    pair.run(Request::Flush).expect("the disk goes on");
}

#[test]
fn a_mirror_is_neither_prepared_nor_switched_before_it_is_in_sync() {
    let mut ram = RamDisk::new();
    let disk = [(ram.add_file(dynamic(1, SIZE)), Format::Vhd)];
    let target = [(ram.add_file(dynamic(2, SIZE)), Format::Vhd)];
    let mut pair = Pair::open(ram, &disk, Access::ReadWrite);
    pair.run(write(0, 1, false)).expect("write");
    pair.mirror(&target, Kind::Out.plan()).expect("it begins");
    let mirror = pair.mirror.as_mut().expect("it is there");
    assert_eq!(mirror.prepare().expect_err("early").kind, ErrorKind::Busy);
    let early = mirror.switch(&mut pair.engine, false);
    assert_eq!(early.expect_err("early").kind, ErrorKind::Busy);
    pair.stop();
    pair.run(Request::Flush).expect("the disk goes on");
}

#[test]
fn the_comparison_finds_what_differs_and_the_disk_stays_where_it_was() {
    let (mut pair, target) = prepared();
    pair.run(write(BLOCK + 512, 7, true)).expect("write");
    pair.until(|pair| pair.progress().in_sync);
    // Somebody else writes into the target's data, which follows its bitmap.
    let at = 512 * (1 + bitmap_sector(&pair, target[0].0));
    let data = Buffer::copy_of(&[8; 512]).share();
    let action = block::Action::Write {
        offset: at + 512,
        data,
    };
    let op = block::Op {
        token: u64::MAX,
        file: target[0].0,
        action,
    };
    pair.io.run(op, &mut Vec::new()).expect("write");
    let error = pair.switch(true).expect_err("they differ");
    assert!(error.message.contains("block 1 differs"), "{error}");
    assert!(pair.progress().failed.is_some());
    pair.stop();
    assert_eq!(pair.read(BLOCK + 512, SECTOR).expect("read"), [7; 512]);
}

/// Where the bitmap of the only block of an image is.
fn bitmap_sector(pair: &Pair<FaultDisk<SimDisk>>, file: block::FileId) -> u64 {
    let spec = load(&pair.io, (file, Format::Vhd), vhd_rs::Access::ReadOnly);
    let crate::engine::LayerImage::Vhd(image) = spec.expect("it opens").image else {
        panic!("it is a VHD");
    };
    let bat = image.bat().expect("it has a table");
    u64::from(bat.get(1).expect("block 1 is there"))
}

#[test]
fn a_disk_is_frozen_thawed_and_switched_while_it_is_mirrored() {
    let (mut pair, _) = prepared();
    let freeze = pair.start(LiveOp::Freeze);
    pair.wait(freeze).expect("it freezes");
    let held = pair.submit(write(0, 3, true));
    let mirror = pair.mirror.as_mut().expect("it is there");
    mirror
        .switch(&mut pair.engine, false)
        .expect("it is in sync");
    pair.settle();
    assert!(pair.take(held).is_none(), "a frozen disk answered");
    assert!(!pair.progress().switched, "a frozen disk was switched");
    pair.engine.thaw();
    pair.switch(false)
        .expect("it is switched when it is thawed");
    pair.wait(held).expect("and the guest answered");
    assert_eq!(pair.read(0, SECTOR).expect("read"), [3; 512]);
}

#[test]
fn what_is_counted_and_set_of_a_disk_goes_on_after_the_switch() {
    let (mut pair, _) = prepared();
    pair.engine.set_write_through(true);
    pair.run(write(0, 1, false)).expect("write");
    let before = pair.engine.stats();
    pair.switch(false).expect("it switches");
    assert!(pair.engine.is_write_through());
    let after = pair.engine.stats();
    assert_eq!(
        (after.writes, after.write_bytes),
        (before.writes, before.write_bytes)
    );
    assert_eq!(
        after.reads, 0,
        "the copy's own requests are not the guest's"
    );
}

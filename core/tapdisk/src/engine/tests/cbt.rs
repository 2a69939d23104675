//! A log of changed blocks misses nothing that a power cut leaves, costs barriers only where it
//! must, and says that it is consistent only when it is.

use super::model::{sectors_of, value_of};
use super::rig::{BLOCK, Peek, Rig, SECTOR, child, dynamic, load};
use crate::engine::{Error, ErrorKind, LiveOp, LogSpec, Request};
use block::{
    BlockIo, Buffer, Crash, Fault, FaultDisk, FaultKind, FileId, Order, RamDisk, Rng, SimDisk,
    SparseBytes, Target,
};
use datapath::protocol::Format;
use std::collections::BTreeSet;
use vhd_rs::cbt::{CBT_HEADER_BYTES, CbtHeader};

const SIZE: u64 = 3 * BLOCK;
const EXTENT: u64 = 64 << 10;

fn log_file(size_bytes: u64, consistent: bool) -> SparseBytes {
    let header = CbtHeader {
        consistent,
        ..CbtHeader::new(size_bytes)
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.resize(CBT_HEADER_BYTES + header.bitmap_bytes() as usize, 0);
    SparseBytes::from(bytes.as_slice())
}

/// What a reader makes of a log, from the format's description: flag at 32, size at 40, one bit for
/// 64 KiB from byte 48 on, the lowest first.
fn read_log(file: &SparseBytes) -> (bool, u64, BTreeSet<u64>) {
    let bytes = file.to_vec();
    let size = u64::from_le_bytes(bytes[40..48].try_into().unwrap());
    let bits = 0..size.div_ceil(EXTENT);
    assert_eq!(bytes.len() as u64, 48 + bits.end.div_ceil(8));
    let set = bits.filter(|n| bytes[48 + *n as usize / 8] >> (n % 8) & 1 == 1);
    (bytes[32..36] != [0; 4], size, set.collect())
}

fn spec(io: &impl Peek, file: FileId) -> LogSpec {
    let bytes = io.peek(file).to_vec();
    LogSpec {
        file,
        header: CbtHeader::parse(bytes.first_chunk().unwrap()).unwrap(),
        bitmap: bytes[CBT_HEADER_BYTES..].to_vec(),
    }
}

/// A leaf with the first 40 sectors of blocks 0 and 1 in it, its parent, if any, with others.
struct Bench {
    ram: RamDisk,
    files: Vec<(FileId, Format)>,
    log: FileId,
}

fn bench(with_parent: bool, consistent: bool) -> Bench {
    let mut ram = RamDisk::new();
    let mut files = vec![(ram.add_file(dynamic(1, SIZE)), Format::Vhd)];
    let fill = |ram, files: &[_], first: u64| {
        let mut rig = Rig::open(ram, files);
        for first in [first, first + 4096] {
            let values = (0..40u32).map(|i| first + 1 + u64::from(i));
            rig.write(first * SECTOR, &sectors_of(values))
                .expect("the first content");
        }
        rig.close()
    };
    if with_parent {
        ram = fill(ram, &files, 20);
        files.insert(0, (ram.add_file(child(2, Some(1), SIZE)), Format::Vhd));
    }
    ram = fill(ram, &files, 0);
    let log = ram.add_file(log_file(SIZE, consistent));
    Bench { ram, files, log }
}

impl Bench {
    fn start<I: Peek>(&self, io: I) -> Rig<I> {
        let mut rig = Rig::open(io, &self.files);
        rig.flush().expect("flush");
        let spec = spec(&rig.io, self.log);
        rig.run_live(LiveOp::CbtStart(Box::new(spec)))
            .expect("it starts");
        rig
    }
}

fn write(first: u64, byte: u8) -> Request {
    Request::Write {
        offset: first * SECTOR,
        data: Buffer::copy_of(&[byte; 512]),
        fua: false,
    }
}

fn settle<I: BlockIo>(rig: &mut Rig<I>) {
    while rig.step() {}
    for finished in rig.finished.drain(..) {
        finished.result.expect("it works");
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.expect_err("refused").kind
}

#[test]
fn a_stopped_log_has_the_blocks_that_were_changed_and_no_other() {
    for consistent in [true, false] {
        let bench = bench(true, consistent);
        let mut rig = bench.start(bench.ram.clone());
        let (flag, size, bits) = read_log(rig.io.peek(bench.log));
        assert_eq!((flag, size, bits.len()), (false, SIZE, 0), "cleared first");
        let error = rig.run_live(LiveOp::CbtStart(Box::new(spec(&rig.io, bench.log))));
        assert_eq!(kind(error), ErrorKind::Busy);
        let zero = |first: u64, sectors: u64, may_trim| Request::WriteZeroes {
            offset: first * SECTOR,
            len_bytes: sectors * SECTOR,
            may_trim,
            fua: false,
        };
        for request in [
            write(0, 1),
            write(127, 1),
            write(8192 + 128 * 7, 1),
            zero(4096, 8, true),
            zero(4096 + 128 * 9, 1, false),
            Request::Trim {
                offset: 30 * SECTOR,
                len_bytes: SECTOR,
                fua: true,
            },
            // Over the end of a block, and over the end of 64 KiB.
            Request::Write {
                offset: (4096 - 1) * SECTOR,
                data: Buffer::copy_of(&[1; 1024]),
                fua: true,
            },
            Request::Write {
                offset: (128 * 3 - 1) * SECTOR,
                data: Buffer::copy_of(&[1; 1024]),
                fua: false,
            },
        ] {
            rig.run(request).expect("it works");
        }
        let state = rig.engine.log_state().expect("a log").clone();
        rig.run_live(LiveOp::CbtStop).expect("it stops");
        rig.run(write(6000, 1)).expect("it works");
        let (flag, _, bits) = read_log(rig.io.peek(bench.log));
        let expected = [0, 2, 3, 31, 32, 41, 64 + 7];
        assert_eq!(bits, BTreeSet::from(expected));
        assert_eq!(state.changed_bytes, expected.len() as u64 * EXTENT);
        assert_eq!((flag, state.trusted), (consistent, consistent));
        assert!(rig.engine.log_state().is_none());
    }
}

#[test]
fn a_closed_disk_leaves_its_log_as_consistent_as_it_was() {
    let bench = bench(false, true);
    let mut rig = bench.start(bench.ram.clone());
    rig.run(write(0, 1)).expect("it works");
    let io = rig.close();
    let (flag, _, bits) = read_log(io.peek(bench.log));
    assert_eq!((flag, bits), (true, BTreeSet::from([0])));
}

#[test]
fn new_data_waits_for_no_log_and_overwrites_share_one_sync() {
    let bench = bench(true, true);
    let mut rig = bench.start(bench.ram.clone());
    rig.run(write(8192, 1)).expect("room is made");
    rig.run(write(4096 + 300, 1)).expect("its bitmap is read");
    settle(&mut rig);
    let before = rig.engine.stats().barriers;
    // Sectors that the leaf does not have, in old and new blocks.
    for at in 1..20 {
        rig.submit(write(128 * at, 2));
        rig.submit(write(8192 + 128 * at, 2));
    }
    settle(&mut rig);
    assert_eq!(rig.engine.stats().barriers, before, "nobody waited");
    for sector in [0, 1, 2, 4096, 4097] {
        rig.submit(write(sector, 3));
    }
    settle(&mut rig);
    assert_eq!(rig.engine.stats().barriers, before + 1, "one for all");
    for sector in [0, 10, 4100] {
        rig.submit(write(sector, 4));
    }
    settle(&mut rig);
    assert_eq!(rig.engine.stats().barriers, before + 1, "marked already");
    rig.flush().expect("flush");
    assert_eq!(
        rig.engine.stats().barriers,
        before + 3,
        "nothing to be synced"
    );
}

#[test]
fn a_snapshot_hands_over_to_a_new_log() {
    let bench = bench(false, true);
    let mut rig = bench.start(bench.ram.clone());
    rig.run(write(0, 1)).expect("it works");
    let next = rig.io.add_file(log_file(SIZE, true));
    let leaf = (rig.io.add_file(child(7, Some(1), SIZE)), Format::Vhd);
    let too_small = rig.io.add_file(log_file(BLOCK, true));
    let wrong = rig.engine.stage_log(spec(&rig.io, too_small));
    assert_eq!(kind(wrong), ErrorKind::Invalid);
    let new_leaf = load(&rig.io, leaf, vhd_rs::Access::ReadWrite).expect("it loads");
    rig.engine.stage_log(spec(&rig.io, next)).expect("it fits");
    rig.run_live(LiveOp::SnapshotSwitch(Box::new(new_leaf)))
        .expect("a switch");
    let (flag, _, bits) = read_log(rig.io.peek(bench.log));
    assert_eq!((flag, bits), (true, BTreeSet::from([0])));
    assert!(!read_log(rig.io.peek(next)).0);
    rig.run(write(4096, 1)).expect("it works");
    let io = rig.close();
    let (flag, _, bits) = read_log(io.peek(next));
    assert_eq!((flag, bits), (true, BTreeSet::from([32])));
    assert_eq!(read_log(io.peek(bench.log)).2, BTreeSet::from([0]));
}

#[test]
fn a_resized_disk_has_a_longer_log() {
    let bench = bench(false, true);
    let mut rig = bench.start(bench.ram.clone());
    let size = 5 * BLOCK;
    rig.run_live(LiveOp::Resize {
        virtual_bytes: size - SECTOR,
    })
    .expect("it grows");
    rig.run(write(5 * 4096 - 1, 1)).expect("at the new end");
    let io = rig.close();
    let (flag, log_size, bits) = read_log(io.peek(bench.log));
    assert_eq!((flag, log_size), (true, size));
    assert_eq!(bits, BTreeSet::from([5 * 32 - 1]));
}

#[test]
fn a_log_that_fails_is_broken_and_never_called_consistent_and_the_disk_goes_on() {
    for nth in 0..2 {
        let bench = bench(false, true);
        let mut rig = bench.start(FaultDisk::new(bench.ram.clone()));
        rig.run(write(300, 1)).expect("its bitmap is read");
        // The overwrite's log: a write of a page, a barrier.
        rig.io.set_fault(Some(Fault {
            target: Target::Any,
            nth,
            times: 1,
            kind: FaultKind::Io,
        }));
        rig.run(write(0, 9)).expect("the write itself works");
        let state = rig.engine.log_state().expect("it is there to be seen");
        assert!(state.broken.is_some());
        assert!(rig.engine.poisoned().is_none());
        rig.run(write(4096, 9)).expect("it works");
        assert_eq!(rig.read(0, SECTOR).expect("read"), [9; 512]);
        let io = rig.close().into_inner();
        assert!(!read_log(io.peek(bench.log)).0);
    }
}

/// Sectors that are changed: of the leaf, of its parent, of neither; near ends.
const PLACES: [u64; 8] = [0, 25, 130, 4095, 4100, 4230, 8190, 8600];
const RUN: u64 = 4;

fn content<I: BlockIo>(rig: &mut Rig<I>) -> Vec<(u64, u64)> {
    let mut content = Vec::new();
    for first in PLACES {
        let bytes = rig.read(first * SECTOR, RUN * SECTOR).expect("it reads");
        let values = bytes.chunks(SECTOR as usize);
        content.extend((first..).zip(values.map(|bytes| value_of(bytes).expect("no mixture"))));
    }
    content
}

struct World {
    rig: Rig<SimDisk>,
    files: Vec<(FileId, Format)>,
    log: FileId,
    before: Vec<(u64, u64)>,
    value: u64,
}

impl World {
    fn submit(&mut self, rng: &mut Rng) {
        self.value += 100;
        let first = PLACES[rng.below(8) as usize];
        let sectors = 1 + rng.below(RUN);
        let (offset, len_bytes) = (first * SECTOR, sectors * SECTOR);
        let fua = rng.one_in(5);
        let request = match rng.below(8) {
            0 => Request::Flush,
            1 => Request::Trim {
                offset,
                len_bytes,
                fua,
            },
            2 => Request::WriteZeroes {
                offset,
                len_bytes,
                may_trim: rng.one_in(2),
                fua,
            },
            _ => {
                let values = (0..sectors as u32).map(|i| self.value + u64::from(i));
                let data = Buffer::copy_of(&sectors_of(values));
                Request::Write { offset, data, fua }
            }
        };
        self.rig.submit(request);
    }

    /// Whatever differs from the time the log began is in it, for this crash.
    fn check(&self, crash: &Crash) -> usize {
        let left = self.rig.io.crash(crash);
        let (flag, _, bits) = read_log(left.peek(self.log));
        let now = content(&mut Rig::open(left, &self.files));
        let changed = self.before.iter().zip(&now).filter(|(a, b)| a != b);
        let mut count = 0;
        for ((sector, before), (_, value)) in changed {
            count += 1;
            let extent = sector * SECTOR / EXTENT;
            assert!(
                bits.contains(&extent),
                "{crash:?}: sector {sector} was {before}, is {value}, and the log has {bits:?}"
            );
        }
        assert!(!flag, "in use");
        count
    }
}

#[test]
fn no_power_cut_leaves_a_change_that_the_log_misses() {
    let (mut states, mut changes) = (0, 0);
    for seed in 0..60 {
        let bench = bench(seed % 2 == 0, true);
        let order = Order::Random(Rng::new(seed));
        let mut rig = bench.start(SimDisk::from_ram(&bench.ram, order));
        rig.engine.set_write_through(seed % 5 == 0);
        let before = content(&mut rig);
        let mut world = World {
            rig,
            files: bench.files,
            log: bench.log,
            before,
            value: 1000,
        };
        let mut rng = Rng::new(seed + 1000);
        for _ in 0..6 {
            for _ in 0..1 + rng.below(5) {
                world.submit(&mut rng);
            }
            for _ in 0..2 + rng.below(8) {
                world.rig.step();
                for crash in [
                    Crash::Subset(0),
                    Crash::Subset(u64::MAX),
                    Crash::Subset(rng.next_u64()),
                    Crash::Subset(rng.next_u64() & rng.next_u64()),
                    Crash::Torn(rng.next_u64()),
                ] {
                    changes += world.check(&crash);
                    states += 1;
                }
            }
        }
        settle(&mut world.rig);
    }
    println!("{states} crash states, {changes} changed sectors in them");
    assert!(states > 5000 && changes > 10_000, "{states}, {changes}");
}

//! Single facts: what requests are refused, what a flush costs, what is read from where.

use super::rig::{
    BLOCK, Peek, Rig, SECTOR, child, dynamic, load_chain, new_image, ram_with_dynamic,
};
use crate::engine::{Config, Done, Engine, Error, ErrorKind, LayerImage, LayerSpec, Request};
use block::{
    Action, BlockIo, Buffer, Completion, Crash, Fault, FaultDisk, FaultKind, FileId, Op, Order,
    RamDisk, Rng, SimDisk, SparseBytes, Target, Verb, Wait,
};
use datapath::protocol::{Access, Format};
use vhd_rs::{Content, Extent, Image, NewImage, OpenOptions, Timestamp};

/// Writes down what is done to the disk inside.
struct Logged {
    inner: RamDisk,
    log: Vec<(FileId, Verb, u64)>,
}

impl Logged {
    fn new(inner: RamDisk) -> Self {
        Self {
            inner,
            log: Vec::new(),
        }
    }

    fn count(&self, verb: Verb) -> usize {
        self.log.iter().filter(|(_, done, _)| *done == verb).count()
    }
}

impl BlockIo for Logged {
    fn submit(&mut self, op: Op) {
        self.log
            .push((op.file, op.action.verb(), op.action.offset()));
        self.inner.submit(op);
    }

    fn poll(&mut self, wait: Wait, done: &mut Vec<Completion>) -> std::io::Result<()> {
        self.inner.poll(wait, done)
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn size_bytes(&mut self, file: FileId) -> Result<u64, block::Error> {
        self.inner.size_bytes(file)
    }
}

impl Peek for Logged {
    fn peek(&self, file: FileId) -> &SparseBytes {
        self.inner.peek(file)
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.expect_err("refused").kind
}

#[test]
fn impossible_requests_are_refused_by_kind() {
    let (ram, files) = ram_with_dynamic(2 * BLOCK);
    let mut rig = Rig::open(ram, &files);
    let size = 2 * BLOCK;
    for (offset, len, expected) in [
        (1, 512, ErrorKind::Invalid),
        (0, 100, ErrorKind::Invalid),
        (0, 0, ErrorKind::Invalid),
        (0, (32 << 20) + 512, ErrorKind::Invalid),
        (size, 512, ErrorKind::OutOfRange),
        (size - 512, 1024, ErrorKind::OutOfRange),
        (u64::MAX - 511, 512, ErrorKind::OutOfRange),
    ] {
        assert_eq!(kind(rig.read(offset, len)), expected, "read {offset} {len}");
        let data = vec![1; len as usize];
        assert_eq!(
            kind(rig.write(offset, &data)),
            expected,
            "write {offset} {len}"
        );
    }
    for offset in [1, size, u64::MAX - 511] {
        let trim = Request::Trim {
            offset,
            len_bytes: 512,
            fua: false,
        };
        assert!(rig.run(trim).is_err(), "trim {offset}");
        let status = Request::BlockStatus {
            offset,
            len_bytes: 512,
            extents_max: 1,
        };
        assert!(rig.run(status).is_err(), "status {offset}");
    }
    assert_eq!(rig.engine.stats().errors, 20);
    assert_eq!(rig.engine.stats().in_flight, 0);
}

#[test]
fn a_read_only_disk_reads_and_takes_no_change() {
    let (ram, files) = ram_with_dynamic(BLOCK);
    let before = ram.peek(files[0].0).clone();
    let layers = load_chain(&ram, &files, Access::ReadOnly).expect("it loads");
    let mut rig = Rig::with_layers(ram, layers, Access::ReadOnly).expect("it opens");
    assert_eq!(kind(rig.write(0, &[1; 512])), ErrorKind::ReadOnly);
    assert_eq!(
        kind(rig.run(Request::Trim {
            offset: 0,
            len_bytes: 512,
            fua: false,
        })),
        ErrorKind::ReadOnly
    );
    rig.flush().expect("there is nothing to flush");
    assert_eq!(rig.read(0, SECTOR).expect("read"), [0; 512]);
    assert_eq!(rig.close().peek(files[0].0), &before);
}

#[test]
fn layers_that_are_no_chain_are_refused() {
    let mut ram = RamDisk::new();
    let base = (ram.add_file(dynamic(1, BLOCK)), Format::Vhd);
    let other = (ram.add_file(dynamic(9, BLOCK)), Format::Vhd);
    let leaf = (ram.add_file(child(2, Some(1), BLOCK)), Format::Vhd);
    for files in [
        &[leaf, other][..],
        &[leaf],
        &[base, other],
        &[leaf, leaf, base],
        &[],
    ] {
        let layers = load_chain(&ram, files, Access::ReadWrite).expect("each loads");
        let config = Config {
            tag: 0,
            access: Access::ReadWrite,
            write_through: false,
        };
        assert_eq!(
            kind(Engine::open(config, layers)),
            ErrorKind::Chain,
            "{files:?}"
        );
    }
    let layers = load_chain(&ram, &[leaf, base], Access::ReadOnly).expect("each loads");
    let config = Config {
        tag: 0,
        access: Access::ReadWrite,
        write_through: false,
    };
    assert_eq!(kind(Engine::open(config, layers)), ErrorKind::Unsupported);
}

#[test]
fn a_flush_costs_two_barriers_however_much_is_dirty() {
    let (ram, files) = ram_with_dynamic(300 * BLOCK);
    let mut rig = Rig::open(Logged::new(ram), &files);
    rig.write(0, &[1; 512]).expect("write");
    rig.flush().expect("flush");
    for blocks in [1, 10, 290] {
        for block in 0..blocks {
            rig.write(block * BLOCK + SECTOR * blocks, &[2; 512])
                .expect("write");
        }
        rig.io.log.clear();
        rig.flush().expect("flush");
        assert_eq!(rig.io.count(Verb::Fdatasync), 2, "{blocks} dirty blocks");
    }
    rig.write(0, &[3; 512])
        .expect("a write over data that is there");
    rig.io.log.clear();
    rig.flush().expect("flush");
    assert_eq!(rig.io.log.len(), 1, "no metadata changed: {:?}", rig.io.log);
    rig.flush().expect("flush");
    assert_eq!(rig.io.log.len(), 1, "nothing changed at all");
}

#[test]
fn flushes_that_wait_together_share_their_barriers() {
    let (ram, files) = ram_with_dynamic(4 * BLOCK);
    let mut rig = Rig::open(Logged::new(ram), &files);
    rig.write(0, &[1; 512]).expect("write");
    rig.io.log.clear();
    let tickets: Vec<_> = (0..20).map(|_| rig.submit(Request::Flush)).collect();
    for ticket in tickets {
        while rig.step() {}
        rig.take(ticket).expect("finished").expect("well");
    }
    // The first starts at once; the others wait for it and then share one, which finds nothing new.
    assert_eq!(rig.io.count(Verb::Fdatasync), 2);
}

#[test]
fn overlapping_writes_in_flight_end_with_the_last() {
    let (ram, files) = ram_with_dynamic(2 * BLOCK);
    for seed in 0..32 {
        let order = Order::Random(Rng::new(seed));
        let mut rig = Rig::open(SimDisk::from_ram(&ram, order), &files);
        let write = |fill: u8, sectors: usize| Request::Write {
            offset: BLOCK - SECTOR,
            data: Buffer::copy_of(&vec![fill; 512 * sectors]),
            fua: false,
        };
        let first: Vec<_> = (1..9).map(|fill| rig.submit(write(fill, 4))).collect();
        let last = rig.submit(write(9, 2));
        rig.wait(last).expect("write");
        assert!(
            first
                .iter()
                .all(|ticket| rig.take(*ticket).is_some_and(|r| r.is_ok()))
        );
        let bytes = rig.read(BLOCK - SECTOR, 4 * SECTOR).expect("read");
        assert_eq!(
            (bytes[0], bytes[1023], bytes[1024], bytes[2047]),
            (9, 9, 8, 8)
        );
    }
}

#[test]
fn a_block_of_many_layers_is_resolved_once_and_then_costs_one_read() {
    let mut ram = RamDisk::new();
    let mut files = vec![(ram.add_file(dynamic(1, BLOCK)), Format::Vhd)];
    for n in 1..=30 {
        let mut rig = Rig::open(ram, &files);
        rig.write(u64::from(n) * SECTOR, &[n as u8; 512])
            .expect("write");
        ram = rig.close();
        if n < 30 {
            files.insert(0, (ram.add_file(child(n + 1, Some(n), BLOCK)), Format::Vhd));
        }
    }
    let mut rig = Rig::open(Logged::new(ram), &files);
    let bytes = rig.read(0, 32 * SECTOR).expect("read");
    let fills: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
    assert_eq!(fills, (0..=30).chain([0]).collect::<Vec<u8>>());
    assert_eq!(rig.io.log.len(), 60, "thirty bitmaps and thirty pieces");
    rig.io.log.clear();
    rig.read(SECTOR, SECTOR).expect("read");
    assert_eq!(
        rig.io.log.len(),
        1,
        "the lowest layer costs as much as the highest"
    );
}

#[test]
fn a_full_block_is_read_without_its_bitmap_after_a_close() {
    let (ram, files) = ram_with_dynamic(10 * BLOCK);
    let mut rig = Rig::open(ram, &files);
    rig.write(3 * BLOCK, &vec![7; BLOCK as usize])
        .expect("write");
    let mut rig = Rig::open(Logged::new(rig.close()), &files);
    assert_eq!(rig.read(3 * BLOCK, SECTOR).expect("read"), [7; 512]);
    assert_eq!(rig.io.log.len(), 1, "{:?}", rig.io.log);
    // Its bit in the batmap stays true: the content becomes a hole, no bit is cleared.
    let zero = Request::WriteZeroes {
        offset: 3 * BLOCK,
        len_bytes: BLOCK,
        may_trim: true,
        fua: true,
    };
    rig.run(zero).expect("zeroes");
    assert_eq!(rig.io.count(Verb::Punch), 1);
    assert_eq!(rig.io.count(Verb::Write), 0);
    assert_eq!(rig.read(3 * BLOCK, SECTOR).expect("read"), [0; 512]);
}

#[test]
fn zeros_into_nothing_take_no_space() {
    let (ram, files) = ram_with_dynamic(4 * BLOCK);
    let mut rig = Rig::open(Logged::new(ram), &files);
    rig.write(0, &vec![0; BLOCK as usize]).expect("write");
    let zero = Request::WriteZeroes {
        offset: 0,
        len_bytes: 4 * BLOCK,
        may_trim: true,
        fua: false,
    };
    rig.run(zero).expect("zeroes");
    rig.run(Request::Trim {
        offset: 0,
        len_bytes: 4 * BLOCK,
        fua: false,
    })
    .expect("trim");
    assert!(rig.io.log.is_empty(), "{:?}", rig.io.log);
}

#[test]
fn fast_zeroes_are_promised_only_where_nothing_is_written() {
    let mut ram = RamDisk::new();
    let base = (ram.add_file(dynamic(1, 5 * BLOCK)), Format::Vhd);
    let mut rig = Rig::open(ram, &[base]);
    for block in [0, 2] {
        rig.write(block * BLOCK, &[9; 512]).expect("write");
    }
    let mut ram = rig.close();
    let leaf = (ram.add_file(child(2, Some(1), 5 * BLOCK)), Format::Vhd);
    let mut rig = Rig::open(Logged::new(ram), &[leaf, base]);
    for block in [1, 2] {
        rig.write(block * BLOCK, &[8; 512]).expect("write");
    }
    // First block, blocks, whether holes do: data in the leaf alone, in both, in neither, all of
    // these, and one that has data below only.
    for (first, count, fast) in [
        (1, 1, true),
        (2, 1, true),
        (3, 2, true),
        (1, 4, true),
        (0, 5, false),
    ] {
        let (offset, len_bytes) = (first * BLOCK, count * BLOCK);
        let promised = rig.engine.zeroes_are_fast(offset, len_bytes, true);
        assert_eq!(promised, fast, "{count} blocks from {first}");
        assert!(
            !rig.engine.zeroes_are_fast(offset, len_bytes, false),
            "allocated zeroes have to be written"
        );
        rig.io.log.clear();
        let zero = Request::WriteZeroes {
            offset,
            len_bytes,
            may_trim: true,
            fua: false,
        };
        rig.run(zero).expect("zeroes");
        let wrote = rig.io.count(Verb::Write) > 0;
        assert_eq!(wrote, !fast, "{count} blocks from {first}");
    }
}

#[test]
fn zeroes_over_a_parent_hide_it_on_files_without_holes_too() {
    for holes in [true, false] {
        let mut ram = RamDisk::new();
        let base = (ram.add_file(dynamic(1, 2 * BLOCK)), Format::Vhd);
        let mut rig = Rig::open(ram, &[base]);
        rig.write(0, &vec![9; BLOCK as usize + 512]).expect("write");
        let mut ram = rig.close();
        let leaf = (ram.add_file(child(2, Some(1), 2 * BLOCK)), Format::Vhd);
        let mut rig = Rig::open(FaultDisk::new(ram), &[leaf, base]);
        let target = Target::Only(Verb::Punch);
        let fault = Fault {
            target,
            nth: 0,
            times: u64::MAX,
            kind: FaultKind::Unsupported,
        };
        rig.io.set_fault((!holes).then_some(fault));
        for _ in 0..2 {
            let (offset, len_bytes) = (SECTOR, BLOCK - SECTOR);
            let zero = Request::WriteZeroes {
                offset,
                len_bytes,
                may_trim: true,
                fua: true,
            };
            rig.run(zero).expect("zeroes");
        }
        let mut rig = Rig::open(rig.close(), &[leaf, base]);
        let bytes = rig.read(0, BLOCK + SECTOR).expect("read");
        let (middle, end) = (&bytes[512..BLOCK as usize], &bytes[BLOCK as usize..]);
        assert!(
            bytes[..512] == [9; 512] && end == [9; 512],
            "holes: {holes}"
        );
        assert!(middle.iter().all(|byte| *byte == 0), "holes: {holes}");
    }
}

#[test]
fn bytes_of_blocks_that_a_crash_took_back_never_come_to_light() {
    let (mut ram, files) = ram_with_dynamic(2 * BLOCK);
    // What a crash leaves behind the last block: data whose BAT entry was lost.
    let end = ram.peek(files[0].0).size_bytes();
    let data = Buffer::copy_of(&vec![0xEE; 1 << 20]).share();
    let stale = Action::Write { offset: end, data };
    ram.run(
        Op {
            token: 0,
            file: files[0].0,
            action: stale,
        },
        &mut Vec::new(),
    )
    .expect("stale");
    let mut rig = Rig::open(ram, &files);
    rig.write(0, &[1; 512]).expect("write");
    let zero = Request::WriteZeroes {
        offset: SECTOR,
        len_bytes: BLOCK - SECTOR,
        may_trim: false,
        fua: false,
    };
    rig.run(zero).expect("zeroes");
    assert!(
        rig.read(SECTOR, BLOCK - SECTOR)
            .expect("read")
            .iter()
            .all(|byte| *byte == 0)
    );
    let closed = rig.close();
    // Nor do readers that do not look at bitmaps find them.
    let bytes = closed.peek(files[0].0).to_vec();
    assert!(!bytes.contains(&0xEE));
}

#[test]
fn what_is_written_into_a_file_that_a_kill_left_too_long_is_never_cut_off() {
    // More blocks than a file is extended ahead, so that it is extended again after the kill.
    const BLOCKS: u64 = 40;
    let (ram, files) = ram_with_dynamic(BLOCKS * BLOCK);
    let mut rig = Rig::open(ram, &files);
    rig.write(0, &[1; 512]).expect("write");
    rig.flush().expect("flush");
    let mut rig = Rig::open(rig.io, &files);
    for block in 1..BLOCKS {
        rig.write(block * BLOCK, &[2; 512]).expect("write");
        rig.flush().expect("flush");
    }
    let mut rig = Rig::open(rig.io, &files);
    for block in 1..BLOCKS {
        let read = rig.read(block * BLOCK, SECTOR).expect("read");
        assert!(read == [2; 512], "block {block} was cut off");
    }
}

#[test]
fn a_damaged_copy_of_the_footer_is_made_good_before_the_footer_goes() {
    let (mut ram, files) = ram_with_dynamic(2 * BLOCK);
    let data = Buffer::copy_of(&[0; 512]).share();
    let damage = Op {
        token: 0,
        file: files[0].0,
        action: Action::Write { offset: 0, data },
    };
    ram.run(damage, &mut Vec::new()).expect("the copy is gone");
    let mut rig = Rig::open(SimDisk::from_ram(&ram, Order::Fifo), &files);
    let write = rig.submit(Request::Write {
        offset: 0,
        data: Buffer::copy_of(&[1; 512]),
        fua: true,
    });
    while rig.take(write).is_none() {
        rig.step();
        for mask in 0..1 << rig.io.volatile().min(8) {
            let left = rig.io.crash(&Crash::Subset(mask));
            let opened = load_chain(&left, &files, Access::ReadWrite);
            assert!(opened.is_ok(), "after {mask:b}: {opened:?}");
        }
    }
}

#[test]
fn a_reserved_container_keeps_its_size_and_never_shows_what_was_in_it() {
    const CONTAINER: u64 = 4 * BLOCK;
    let image = NewImage {
        uuid: super::rig::uuid(1),
        created: Timestamp::from_unix_s(1_700_000_000),
        virtual_bytes: 8 * BLOCK,
        resize_max_bytes: 8 * BLOCK,
        content: Content::Dynamic,
        extent: Extent::Reserved,
        container_bytes: CONTAINER,
    };
    let mut bytes = vec![0xEE; CONTAINER as usize];
    image
        .plan()
        .expect("a plan")
        .apply(&mut bytes)
        .expect("it applies");
    let mut ram = RamDisk::new();
    let file = ram.add_file(bytes.as_slice());
    let open = |ram: RamDisk| {
        let options = OpenOptions {
            extent: Extent::Reserved,
            access: vhd_rs::Access::ReadWrite,
        };
        let image = Image::open(&ram.peek(file).to_vec(), options).expect("it opens");
        assert!(image.is_clean());
        let image = LayerImage::Vhd(Box::new(image));
        let layers = vec![LayerSpec {
            file,
            file_bytes: CONTAINER,
            image,
        }];
        Rig::with_layers(FaultDisk::new(ram), layers, Access::ReadWrite).expect("a chain")
    };
    let mut rig = open(ram);
    let target = Target::Only(Verb::Punch);
    let fault = Fault {
        target,
        nth: 0,
        times: u64::MAX,
        kind: FaultKind::Unsupported,
    };
    rig.io.set_fault(Some(fault));
    for block in [5, 0, 3] {
        rig.write(block * BLOCK + SECTOR, &[1; 512])
            .expect("there is room for three");
    }
    assert_eq!(kind(rig.write(7 * BLOCK, &[1; 512])), ErrorKind::NoSpace);
    let zero = Request::WriteZeroes {
        offset: 0,
        len_bytes: BLOCK,
        may_trim: true,
        fua: false,
    };
    rig.run(zero).expect("zeroes");
    let mut rig = open(rig.close().into_inner());
    for block in 0..8 {
        let bytes = rig.read(block * BLOCK, BLOCK).expect("read");
        let ones = bytes.iter().filter(|byte| **byte == 1).count();
        let zeros = bytes.iter().filter(|byte| **byte == 0).count();
        assert_eq!(
            ones,
            if [5, 3].contains(&block) { 512 } else { 0 },
            "block {block}"
        );
        assert_eq!(
            ones + zeros,
            BLOCK as usize,
            "block {block} shows old bytes"
        );
    }
    assert_eq!(rig.close().inner().peek(file).size_bytes(), CONTAINER);
}

#[test]
fn fixed_and_raw_disks_are_read_and_written_in_place() {
    let mut ram = RamDisk::new();
    let fixed = (
        ram.add_file(new_image(1, 2 * BLOCK, Content::Fixed)),
        Format::Vhd,
    );
    let raw = (ram.add_file(SparseBytes::zeroed(2 * BLOCK)), Format::Raw);
    for file in [fixed, raw] {
        let mut rig = Rig::open(ram, &[file]);
        rig.write(BLOCK - SECTOR, &[4; 1024]).expect("write");
        rig.flush().expect("flush");
        let trim = Request::Trim {
            offset: BLOCK,
            len_bytes: 512,
            fua: false,
        };
        rig.run(trim).expect("trim");
        let bytes = rig.read(BLOCK - SECTOR, 2 * SECTOR).expect("read");
        assert_eq!((bytes[0], bytes[512]), (4, 0), "{file:?}");
        let status = Request::BlockStatus {
            offset: 0,
            len_bytes: 2 * BLOCK,
            extents_max: 9,
        };
        let Ok(Done::Extents(extents)) = rig.run(status) else {
            panic!("block status")
        };
        assert_eq!(extents.len(), 1);
        ram = rig.close();
    }
    assert_eq!(
        ram.peek(fixed.0).size_bytes(),
        2 * BLOCK + 512,
        "its footer is untouched"
    );
    let layers = load_chain(&ram, &[fixed], Access::ReadOnly).expect("it still opens");
    assert_eq!(layers.len(), 1);
}

#[test]
fn block_status_answers_no_more_extents_than_asked() {
    let (ram, files) = ram_with_dynamic(BLOCK);
    let mut rig = Rig::open(ram, &files);
    for sector in (0..40).step_by(2) {
        rig.write(sector * SECTOR, &[1; 512]).expect("write");
    }
    for extents_max in [1, 2, 7, 100] {
        let status = Request::BlockStatus {
            offset: 0,
            len_bytes: BLOCK,
            extents_max,
        };
        let Ok(Done::Extents(extents)) = rig.run(status) else {
            panic!("block status")
        };
        assert_eq!(extents.len(), (extents_max as usize).min(40));
        assert_eq!(extents[0].len_bytes, SECTOR);
    }
}

#[test]
fn counts_say_what_was_done() {
    let (ram, files) = ram_with_dynamic(BLOCK);
    let mut rig = Rig::open(ram, &files);
    rig.write(0, &[1; 1024]).expect("write");
    rig.read(0, 512).expect("read");
    rig.flush().expect("flush");
    let stats = rig.engine.stats();
    assert_eq!((stats.writes, stats.write_bytes, stats.reads), (1, 1024, 1));
    assert_eq!((stats.read_bytes, stats.flushes, stats.errors), (512, 1, 0));
}

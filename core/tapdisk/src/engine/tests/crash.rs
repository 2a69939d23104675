//! Power cuts at every step of every short workload, and of random long ones with many requests in
//! flight: whatever subset of unflushed writes survives, each sector has a legal value.

use super::model::{Covered, Model, sectors_of, value_of};
use super::rig::{BLOCK, Rig, SECTOR, child, dynamic, load, load_chain};
use crate::engine::{Done, LiveOp, Request, Ticket};
use block::{Buffer, Crash, FileId, Order, RamDisk, Rng, SimDisk, SparseBytes};
use datapath::protocol::{Access, Format};
use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Up to this many volatile changes all subsets are tried, above it samples.
const EXHAUSTIVE_MAX: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    /// Into a block that the leaf does not have at first.
    WriteNew,
    /// Into a block that the leaf has from the beginning.
    WriteOld,
    /// Over the end of one block into the next.
    WriteAcross,
    WriteFua,
    Trim,
    Zeroes,
    Flush,
    Snapshot,
    Close,
}

const OPS: [Op; 9] = [
    Op::WriteNew,
    Op::WriteOld,
    Op::WriteAcross,
    Op::WriteFua,
    Op::Trim,
    Op::Zeroes,
    Op::Flush,
    Op::Snapshot,
    Op::Close,
];

/// What a running request means to the model once it is answered.
enum Meaning {
    Change(u64),
    ChangeAndFlush(u64),
    Flush(Covered),
    Snapshot {
        covered: Covered,
        leaf: (FileId, Format),
    },
    Close(Covered),
}

struct World {
    rig: Rig<SimDisk>,
    files: Vec<(FileId, Format)>,
    /// A chain that a crash may also be recovered to, while a snapshot is under way.
    also: Option<Vec<(FileId, Format)>>,
    /// What sealed layers read as: number of layers below and including it, and their content.
    sealed: Vec<(usize, Vec<(u64, u64)>)>,
    model: Model,
    running: Vec<(Ticket, Meaning)>,
    images: u32,
    value: u64,
    rng: Rng,
    seen: HashSet<u64>,
    checked: usize,
}

impl World {
    /// A disk of three blocks, one of which is there and durable, with or without a parent.
    fn new(seed: u64, with_parent: bool, order: Order) -> Self {
        let mut ram = RamDisk::new();
        let base = ram.add_file(dynamic(1, 3 * BLOCK));
        let mut files = vec![(base, Format::Vhd)];
        let mut model = Model::default();
        let images = if with_parent { 2 } else { 1 };
        let mut rig = Rig::open(ram, &files);
        let put = |rig: &mut Rig<RamDisk>, model: &mut Model, first: u64, value: u64| {
            let change = model.change((0..4).map(|i| (first + i, value + i)), false);
            rig.write(
                first * SECTOR,
                &sectors_of((0..4u32).map(|i| value + u64::from(i))),
            )
            .expect("the first content");
            model.answered(change, true);
        };
        put(&mut rig, &mut model, 0, 100);
        put(&mut rig, &mut model, 4094, 200);
        let covered = model.flush_begins();
        let mut ram = rig.close();
        model.flushed(&covered);
        if with_parent {
            files.insert(0, (ram.add_file(child(2, Some(1), 3 * BLOCK)), Format::Vhd));
            let mut rig = Rig::open(ram, &files);
            put(&mut rig, &mut model, 2, 300);
            let covered = model.flush_begins();
            ram = rig.close();
            model.flushed(&covered);
        }
        let rig = Rig::open(SimDisk::from_ram(&ram, order), &files);
        let (also, sealed, running) = (None, Vec::new(), Vec::new());
        let (rng, seen) = (Rng::new(seed), HashSet::new());
        Self {
            rig,
            files,
            also,
            sealed,
            model,
            running,
            images,
            value: 1000,
            rng,
            seen,
            checked: 0,
        }
    }

    fn write(&mut self, first: u64, sectors: u32, fua: bool) {
        self.value += 100;
        let value = self.value;
        let values = (0..sectors).map(|i| value + u64::from(i));
        let data = Buffer::copy_of(&sectors_of(values.clone()));
        let change = self.model.change((first..).zip(values), false);
        let ticket = self.rig.submit(Request::Write {
            offset: first * SECTOR,
            data,
            fua,
        });
        let meaning = if fua {
            Meaning::ChangeAndFlush(change)
        } else {
            Meaning::Change(change)
        };
        self.running.push((ticket, meaning));
    }

    fn zero(&mut self, first: u64, sectors: u64, trim: bool) {
        let change = self
            .model
            .change((first..first + sectors).map(|s| (s, 0)), trim);
        let (offset, len_bytes) = (first * SECTOR, sectors * SECTOR);
        let request = if trim {
            Request::Trim { offset, len_bytes }
        } else {
            Request::WriteZeroes {
                offset,
                len_bytes,
                may_trim: true,
                fua: false,
            }
        };
        let ticket = self.rig.submit(request);
        self.running.push((ticket, Meaning::Change(change)));
    }

    fn submit(&mut self, op: Op) {
        let shift = self.rng.below(3);
        match op {
            Op::WriteNew => self.write(2 * 4096 + shift, 3, false),
            Op::WriteOld => self.write(1 + shift, 3, false),
            Op::WriteAcross => self.write(2 * 4096 - 2, 4, false),
            Op::WriteFua => self.write(4095, 3, true),
            Op::Trim => self.zero(1, 3 + shift, true),
            Op::Zeroes => self.zero(4093 + shift, 4, false),
            Op::Flush => {
                let covered = self.model.flush_begins();
                let ticket = self.rig.submit(Request::Flush);
                self.running.push((ticket, Meaning::Flush(covered)));
            }
            Op::Snapshot => self.snapshot(),
            Op::Close => {
                let covered = self.model.flush_begins();
                let ticket = self.rig.start(LiveOp::Close);
                self.running.push((ticket, Meaning::Close(covered)));
            }
        }
    }

    fn snapshot(&mut self) {
        let parent = self.images;
        self.images += 1;
        let image = child(self.images, Some(parent), 3 * BLOCK);
        let leaf = (self.rig.io.add_file(image), Format::Vhd);
        let spec = load(&self.rig.io, leaf, vhd_rs::Access::ReadWrite).expect("it loads");
        let covered = self.model.flush_begins();
        let ticket = self.rig.start(LiveOp::SnapshotSwitch(Box::new(spec)));
        let mut with_leaf = self.files.clone();
        with_leaf.insert(0, leaf);
        self.also = Some(with_leaf);
        self.running
            .push((ticket, Meaning::Snapshot { covered, leaf }));
    }

    /// Turns the loop once, takes answers, then cuts the power in every way.
    fn step(&mut self, samples: u64) -> bool {
        let more = self.rig.step();
        for (ticket, meaning) in std::mem::take(&mut self.running) {
            match self.rig.take(ticket) {
                Some(result) => self.answered(meaning, result.is_ok()),
                None => self.running.push((ticket, meaning)),
            }
        }
        self.cut(samples);
        more || !self.running.is_empty()
    }

    fn answered(&mut self, meaning: Meaning, ok: bool) {
        match meaning {
            Meaning::Change(change) => self.model.answered(change, ok),
            Meaning::ChangeAndFlush(change) => {
                self.model.answered(change, ok);
                if ok {
                    self.model.durable(change);
                }
            }
            Meaning::Flush(covered) | Meaning::Close(covered) if ok => self.model.flushed(&covered),
            Meaning::Snapshot { covered, leaf } if ok => {
                self.model.flushed(&covered);
                self.also = None;
                // From now on the chain below the new leaf must never read otherwise.
                let frozen = self.rig.io.crash(&Crash::Subset(u64::MAX));
                let content = self
                    .content(frozen, &self.files)
                    .expect("the sealed chain opens");
                self.sealed.push((self.files.len(), content));
                self.files.insert(0, leaf);
            }
            Meaning::Flush(_) | Meaning::Close(_) | Meaning::Snapshot { .. } => {}
        }
    }

    fn cut(&mut self, samples: u64) {
        let volatile = self.rig.io.volatile() + self.rig.io_queue();
        if volatile <= EXHAUSTIVE_MAX && (1u64 << volatile) <= samples {
            for mask in 0..1 << volatile {
                self.check(&Crash::Subset(mask));
            }
        } else {
            for mask in [0, u64::MAX] {
                self.check(&Crash::Subset(mask));
            }
        }
        for _ in 0..samples.min(1 << volatile.min(20)) / 4 + 1 {
            let seed = self.rng.next_u64();
            self.check(&Crash::Torn(seed));
        }
    }

    fn check(&mut self, crash: &Crash) {
        let left = self.rig.io.crash(crash);
        let mut hasher = DefaultHasher::new();
        left.files().hash(&mut hasher);
        self.model.fingerprint().hash(&mut hasher);
        if !self.seen.insert(hasher.finish()) {
            return;
        }
        self.checked += 1;
        let chains = [Some(&self.files), self.also.as_ref()];
        for files in chains.into_iter().flatten() {
            let content = self.content(left.clone(), files);
            let content = content.unwrap_or_else(|e| panic!("after {crash:?}: {e}"));
            for (sector, value) in content {
                let known = self.model.describe(sector);
                let legal = self.model.is_legal(sector, value);
                assert!(
                    legal,
                    "after {crash:?} sector {sector} is {value}, may be {known}"
                );
            }
        }
        for (layers, expected) in &self.sealed {
            let below = &self.files[self.files.len() - layers..];
            let content = self
                .content(left.clone(), below)
                .expect("a sealed chain opens");
            let content: BTreeMap<u64, u64> = content.into_iter().collect();
            for (sector, value) in expected {
                assert_eq!(
                    content.get(sector),
                    Some(value),
                    "sealed {sector} after {crash:?}"
                );
            }
        }
    }

    /// Recovery: opens what a crash left and reads every touched sector. Sound metadata is what
    /// `Image::open` insists on: blocks inside the file, no overlaps.
    fn content(
        &self,
        disk: RamDisk,
        files: &[(FileId, Format)],
    ) -> Result<Vec<(u64, u64)>, String> {
        let layers =
            load_chain(&disk, files, Access::ReadOnly).map_err(|e| format!("open: {e}"))?;
        let mut rig =
            Rig::with_layers(disk, layers, Access::ReadOnly).map_err(|e| format!("chain: {e}"))?;
        let mut content = Vec::new();
        let touched: Vec<u64> = self.model.touched().collect();
        for run in touched.chunk_by(|a, b| a + 1 == *b) {
            let bytes = rig
                .read(run[0] * SECTOR, run.len() as u64 * SECTOR)
                .map_err(|e| format!("read: {e}"))?;
            for (sector, bytes) in run.iter().zip(bytes.chunks(SECTOR as usize)) {
                let value = value_of(bytes).ok_or_else(|| format!("mixture in {sector}"))?;
                content.push((*sector, value));
            }
        }
        Ok(content)
    }
}

impl Rig<SimDisk> {
    /// Changes submitted and not performed.
    fn io_queue(&self) -> usize {
        use block::BlockIo;
        self.io.in_flight()
    }
}

/// Runs a workload one request after the other; returns how many distinct states were checked.
fn run_in_turn(ops: &[Op], with_parent: bool, samples: u64) -> usize {
    let mut world = World::new(7, with_parent, Order::Fifo);
    for op in ops {
        world.submit(*op);
        while world.step(samples) {}
        if *op == Op::Close {
            break;
        }
    }
    world.checked
}

#[test]
fn any_power_cut_in_any_short_workload_leaves_legal_values() {
    let mut states = 0;
    for with_parent in [false, true] {
        for a in OPS {
            for b in OPS {
                states += run_in_turn(&[a, b], with_parent, 64);
            }
        }
    }
    // Three steps: those that end with the interesting ones; the pairs above are their beginnings.
    for (index, a) in OPS.into_iter().enumerate() {
        for (other, b) in OPS.into_iter().enumerate() {
            let third = OPS[(index * 5 + other * 3) % OPS.len()];
            states += run_in_turn(&[a, b, third], (index + other) % 2 == 0, 16);
        }
    }
    println!("{states} distinct crash states");
    assert!(states >= 4000, "only {states} distinct crash states");
}

#[test]
fn any_power_cut_with_many_requests_in_flight_leaves_legal_values() {
    let mut states = 0;
    for seed in 0..36 {
        let order = Order::Random(Rng::new(seed));
        let mut world = World::new(seed, seed % 2 == 0, order);
        for _ in 0..12 {
            // Live operations drain, so they are kept for the end of a burst.
            for _ in 0..1 + world.rng.below(4) {
                let op = OPS[world.rng.below(7) as usize];
                world.submit(op);
            }
            if world.rng.one_in(3) {
                while world.step(4) {}
                if world.rng.one_in(2) && world.files.len() < 4 {
                    world.submit(Op::Snapshot);
                    while world.step(4) {}
                }
            } else {
                for _ in 0..world.rng.below(6) {
                    world.step(4);
                }
            }
        }
        while world.step(4) {}
        states += world.checked;
    }
    println!("{states} distinct crash states");
    assert!(states >= 3000, "only {states} distinct crash states");
}

#[test]
fn recovery_that_is_cut_off_again_leaves_legal_values() {
    for seed in 0..20 {
        let mut world = World::new(seed, seed % 2 == 0, Order::Fifo);
        for op in [
            Op::WriteNew,
            Op::WriteAcross,
            Op::Flush,
            Op::WriteOld,
            Op::Zeroes,
        ] {
            world.submit(op);
            for _ in 0..3 + world.rng.below(4) {
                world.step(2);
            }
        }
        // Three times: crash, open for writing, write a little, crash again.
        for _ in 0..3 {
            let left = world.rig.io.crash(&Crash::Torn(world.rng.next_u64()));
            let files: Vec<SparseBytes> = left.files().to_vec();
            world.running.clear();
            world.rig = Rig::open(
                SimDisk::from_ram(&RamDisk::from(files), Order::Fifo),
                &world.files,
            );
            world.model.crashed();
            world.cut(4);
            for op in [Op::WriteNew, Op::Trim] {
                world.submit(op);
                for _ in 0..2 + world.rng.below(6) {
                    world.step(4);
                }
            }
        }
        while world.step(4) {}
        let Done::Ok = world.rig.run_live(LiveOp::Close).expect("it closes") else {
            panic!("a close finishes with nothing but success");
        };
    }
}

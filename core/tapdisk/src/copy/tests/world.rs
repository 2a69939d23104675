//! What the tests share: chains with content, a guest with a model, a second look at both sides.

use crate::copy::Plan;
use crate::copy::testing::{Files, Pair};
use crate::engine::testing::model::{Covered, Model, sectors_of, value_of};
use crate::engine::testing::rig::{BLOCK, Peek, Rig, SECTOR, child, dynamic, load_chain};
use crate::engine::{Request, Scope, Ticket};
use block::{BlockIo, Buffer, FileId, RamDisk, Rng, SparseBytes};
use datapath::protocol::{Access, Format};

pub(super) const BLOCKS: u64 = 4;
pub(super) const SIZE: u64 = BLOCKS * BLOCK;

/// Sectors that are touched: around the ends of blocks, where mistakes are.
pub(super) fn sector(rng: &mut Rng) -> u64 {
    let block = rng.below(BLOCKS);
    match rng.below(3) {
        0 => block * 4096 + rng.below(16),
        1 => block * 4096 + 2000 + rng.below(16),
        _ => block * 4096 + 4080 + rng.below(16),
    }
}

/// Which layers there are, and where a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// To a new VHD.
    Out,
    /// To a raw file that is full of something else.
    OutRaw,
    /// Of the leaf into its parent.
    Leaf,
}

impl Kind {
    pub(super) fn plan(self) -> Plan {
        let scope = match self {
            Kind::Out | Kind::OutRaw => Scope::Chain,
            Kind::Leaf => Scope::Layer(0),
        };
        Plan {
            scope,
            ..Plan::default()
        }
    }
}

/// Files and what the disk holds.
pub(super) struct Ground {
    pub(super) ram: RamDisk,
    pub(super) source: Vec<(FileId, Format)>,
    pub(super) target: Vec<(FileId, Format)>,
    pub(super) model: Model,
}

/// A chain of `layers` images with something in each, and a target; all of it durable.
pub(super) fn ground(kind: Kind, layers: u32, rng: &mut Rng) -> Ground {
    let (mut ram, mut source, mut model) = (RamDisk::new(), Vec::new(), Model::default());
    for n in 1..=layers {
        let image = match n {
            1 => dynamic(1, SIZE),
            _ => child(n, Some(n - 1), SIZE),
        };
        source.insert(0, (ram.add_file(image), Format::Vhd));
        let mut rig = Rig::open(ram, &source);
        for i in 0..6 {
            let (first, count) = (sector(rng), 1 + rng.below(12));
            let count = count.min(SIZE / SECTOR - first);
            let value = u64::from(n) * 1000 + i * 20;
            let values = (0..count as u32).map(|i| value + u64::from(i));
            let change = model.change((first..).zip(values.clone()), false);
            rig.write(first * SECTOR, &sectors_of(values))
                .expect("write");
            model.answered(change, true);
        }
        let covered = model.flush_begins();
        ram = rig.close();
        model.flushed(&covered);
    }
    let target = match kind {
        Kind::Out => vec![(ram.add_file(dynamic(90, SIZE)), Format::Vhd)],
        Kind::OutRaw => {
            let junk = vec![0xA5; usize::try_from(SIZE).expect("it fits")];
            vec![(
                ram.add_file(SparseBytes::from(junk.as_slice())),
                Format::Raw,
            )]
        }
        Kind::Leaf => source[1..].to_vec(),
    };
    Ground {
        ram,
        source,
        target,
        model,
    }
}

/// What a running request means to the model once it is answered.
pub(super) enum Meaning {
    Change(u64),
    Durable(u64),
    Flush(Covered),
}

/// A guest of a disk.
pub(super) struct Guest {
    pub(super) model: Model,
    pub(super) running: Vec<(Ticket, Meaning)>,
    value: u64,
}

impl Guest {
    pub(super) fn new(model: Model) -> Self {
        Self {
            model,
            running: Vec::new(),
            value: 100_000,
        }
    }

    /// Something random.
    pub(super) fn act<I: BlockIo>(&mut self, pair: &mut Pair<I>, rng: &mut Rng) {
        let first = sector(rng);
        let count = (1 + rng.below(12)).min(SIZE / SECTOR - first);
        match rng.below(12) {
            0..=5 => self.write(pair, first, count, rng.one_in(5), rng.one_in(6)),
            6 => self.zero(pair, first, count, false, rng.one_in(3)),
            7 => self.zero(pair, first, count, true, false),
            8 => self.zero(pair, first / 4096 * 4096, 4096, rng.one_in(2), false),
            _ => self.flush(pair),
        }
    }

    pub(super) fn write<I: BlockIo>(
        &mut self,
        pair: &mut Pair<I>,
        first: u64,
        count: u64,
        fua: bool,
        zeros: bool,
    ) {
        self.value += 100;
        let base = self.value;
        let value = move |i: u32| if zeros { 0 } else { base + u64::from(i) };
        let values = (0..count as u32).map(value);
        let change = self.model.change((first..).zip(values.clone()), false);
        let (offset, data) = (first * SECTOR, Buffer::copy_of(&sectors_of(values)));
        let ticket = pair.submit(Request::Write { offset, data, fua });
        let meaning = if fua {
            Meaning::Durable(change)
        } else {
            Meaning::Change(change)
        };
        self.running.push((ticket, meaning));
    }

    pub(super) fn zero<I: BlockIo>(
        &mut self,
        pair: &mut Pair<I>,
        first: u64,
        count: u64,
        trim: bool,
        fua: bool,
    ) {
        let change = self
            .model
            .change((first..first + count).map(|s| (s, 0)), trim);
        let (offset, len_bytes) = (first * SECTOR, count * SECTOR);
        let request = if trim {
            Request::Trim {
                offset,
                len_bytes,
                fua: false,
            }
        } else {
            Request::WriteZeroes {
                offset,
                len_bytes,
                may_trim: true,
                fua,
            }
        };
        let ticket = pair.submit(request);
        let meaning = if fua {
            Meaning::Durable(change)
        } else {
            Meaning::Change(change)
        };
        self.running.push((ticket, meaning));
    }

    pub(super) fn flush<I: BlockIo>(&mut self, pair: &mut Pair<I>) {
        let covered = self.model.flush_begins();
        let ticket = pair.submit(Request::Flush);
        self.running.push((ticket, Meaning::Flush(covered)));
    }

    /// Takes answers; how many were errors.
    pub(super) fn listen<I: BlockIo>(&mut self, pair: &mut Pair<I>) -> u32 {
        let mut errors = 0;
        for (ticket, meaning) in std::mem::take(&mut self.running) {
            let Some(result) = pair.take(ticket) else {
                self.running.push((ticket, meaning));
                continue;
            };
            errors += u32::from(result.is_err());
            match meaning {
                Meaning::Change(change) => self.model.answered(change, result.is_ok()),
                Meaning::Durable(change) => {
                    self.model.answered(change, result.is_ok());
                    if result.is_ok() {
                        self.model.durable(change);
                    }
                }
                Meaning::Flush(covered) if result.is_ok() => self.model.flushed(&covered),
                Meaning::Flush(_) => {}
            }
        }
        errors
    }

    /// Turns until everything is answered; how many answers were errors.
    pub(super) fn quiesce<I: BlockIo>(&mut self, pair: &mut Pair<I>) -> u32 {
        let mut errors = self.listen(pair);
        for _ in 0..100_000 {
            if self.running.is_empty() {
                return errors;
            }
            pair.step();
            errors += self.listen(pair);
        }
        panic!("never answered: {:?}", pair.mirror);
    }
}

pub(super) type Rule = fn(&Model, u64, u64) -> bool;

/// What files hold now, as a disk of its own.
pub(super) fn copy_of(io: &impl Peek, files: u32) -> RamDisk {
    let contents = (0..files).map(|file| io.peek(FileId(file)).clone());
    RamDisk::from(contents.collect::<Vec<SparseBytes>>())
}

/// Reads a chain as it is in its files and judges every touched sector.
pub(super) fn judge(disk: &RamDisk, files: Files<'_>, model: &Model, rule: Rule, what: &str) {
    let layers = load_chain(disk, files, Access::ReadOnly);
    let layers = layers.unwrap_or_else(|e| panic!("{what}: {e}"));
    let rig = Rig::with_layers(disk.clone(), layers, Access::ReadOnly);
    let mut rig = rig.unwrap_or_else(|e| panic!("{what}: {e}"));
    let touched: Vec<u64> = model.touched().collect();
    for run in touched.chunk_by(|a, b| a + 1 == *b) {
        let bytes = rig.read(run[0] * SECTOR, run.len() as u64 * SECTOR);
        let bytes = bytes.unwrap_or_else(|e| panic!("{what}: {e}"));
        judge_run(model, run, &bytes, rule, what);
    }
}

fn judge_run(model: &Model, run: &[u64], bytes: &[u8], rule: Rule, what: &str) {
    for (sector, bytes) in run.iter().zip(bytes.chunks(SECTOR as usize)) {
        let value = value_of(bytes);
        let value = value.unwrap_or_else(|| panic!("{what}: mixture in {sector}"));
        let known = model.describe(*sector);
        assert!(
            rule(model, *sector, value),
            "{what}: sector {sector} is {value}, may be {known}"
        );
    }
}

/// Whether two chains read the same, everywhere.
pub(super) fn assert_same(disk: &RamDisk, a: Files<'_>, b: Files<'_>, what: &str) {
    let read = |files: Files<'_>| {
        let layers = load_chain(disk, files, Access::ReadOnly).expect("the images open");
        let rig = Rig::with_layers(disk.clone(), layers, Access::ReadOnly);
        let mut rig = rig.expect("the chain opens");
        let block = |n| rig.read(n * BLOCK, BLOCK).expect("read");
        (0..BLOCKS).map(block).collect::<Vec<_>>()
    };
    assert!(read(a) == read(b), "{what}: they differ");
}

/// Judges what the guest reads now, with nothing in flight.
pub(super) fn judge_guest<I: BlockIo>(pair: &mut Pair<I>, model: &Model, what: &str) {
    let touched: Vec<u64> = model.touched().collect();
    for run in touched.chunk_by(|a, b| a + 1 == *b) {
        let bytes = pair.read(run[0] * SECTOR, run.len() as u64 * SECTOR);
        let bytes = bytes.unwrap_or_else(|e| panic!("{what}: {e}"));
        judge_run(model, run, &bytes, Model::is_current, what);
    }
}

//! Worlds whose power is cut: an engine on a [`SimDisk`], requests that run, and after each turn of
//! the loop every way (or a sample) in which a crash could leave the files.
//!
//! ```text
//!  submit ──> step ──> answers to the model ──> cut: for each subset and some tears of what is volatile
//!                                                 open what is left, read it, ask the model
//! ```
//! A violation is a panic that names the requests so far, the turn and the crash. The same start,
//! effort and requests give the same turns and crashes again.

use super::model::{Covered, Model, sectors_of, value_of};
use super::rig::{BLOCK, Rig, SECTOR, child, dynamic, load, load_chain};
use crate::engine::{LiveOp, Request, Ticket};
use block::{Buffer, Crash, FileId, Order, RamDisk, Rng, SimDisk, SparseBytes};
use datapath::protocol::{Access, Format};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::str::FromStr;

/// Blocks of the disk at first; its metadata has room for four times as many.
const BLOCKS: u64 = 3;

/// What can be asked of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Into a block that the leaf does not have at first.
    WriteNew,
    /// Into a block that the leaf has from the beginning.
    WriteOld,
    /// Over the end of one block into the next.
    WriteAcross,
    /// The last sectors of the disk, which a resize moves.
    WriteEnd,
    /// Durable when it is answered.
    WriteFua,
    /// Trims.
    Trim,
    /// Writes zeroes over the end of a block.
    Zeroes,
    /// Flushes.
    Flush,
    /// Puts a new leaf on top.
    Snapshot,
    /// Grows the disk by a block.
    Resize,
    /// Closes the disk and opens it again.
    Close,
}

impl Op {
    /// All of them with their names; the last three are those of the whole disk.
    pub const ALL: [(Op, &str); 11] = [
        (Op::WriteNew, "write-new"),
        (Op::WriteOld, "write-old"),
        (Op::WriteAcross, "write-across"),
        (Op::WriteEnd, "write-end"),
        (Op::WriteFua, "write-fua"),
        (Op::Trim, "trim"),
        (Op::Zeroes, "zeroes"),
        (Op::Flush, "flush"),
        (Op::Snapshot, "snapshot"),
        (Op::Resize, "resize"),
        (Op::Close, "close"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        let named = Self::ALL.iter().find(|(op, _)| *op == self);
        named.map_or("", |(_, name)| name)
    }

    /// Whether it is about the whole disk and waits for everything before it.
    pub fn is_live(self) -> bool {
        matches!(self, Op::Snapshot | Op::Resize | Op::Close)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.iter().find(|(_, name)| *name == text);
        named
            .map(|(op, _)| *op)
            .ok_or_else(|| format!("no operation is called {text:?}"))
    }
}

/// How many crashes are looked at in one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Up to this many volatile changes all subsets are tried.
    pub exhaustive_max: u32,
    /// Subsets tried above it, and a bound on the torn ones.
    pub samples: u32,
}

/// What a crash left, for a second opinion.
#[derive(Debug)]
pub struct Left<'a> {
    /// Tells it from every other one that is judged differently.
    pub state: u64,
    /// The files.
    pub disk: &'a RamDisk,
    /// The chain, leaf first.
    pub files: &'a [(FileId, Format)],
    /// What each sector may be.
    pub model: &'a Model,
}

/// Keeps count of the states and may judge them too.
pub trait Witness {
    /// Takes note of a state; whether it is the first time.
    fn is_new(&mut self, state: u64) -> bool;

    /// Judges a state that is new.
    ///
    /// # Errors
    /// What is wrong with it.
    fn examine(&mut self, left: &Left<'_>) -> Result<(), String>;
}

/// Counts the states of one world and leaves judging to it.
impl Witness for HashSet<u64> {
    fn is_new(&mut self, state: u64) -> bool {
        self.insert(state)
    }

    fn examine(&mut self, _: &Left<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// What a running request means to the model once it is answered.
enum Meaning {
    Change(u64),
    ChangeAndFlush(u64),
    Flush(Covered),
    Snapshot(Covered),
    Resize(Covered, u64),
    Close(Covered),
}

/// The chain that a snapshot under way leads to.
struct Next {
    files: Vec<(FileId, Format)>,
    leaf: u32,
}

/// A disk, what runs on it, and what it may be after a crash.
pub struct World<W> {
    rig: Rig<SimDisk>,
    files: Vec<(FileId, Format)>,
    /// Number of the image that is the leaf.
    leaf: u32,
    images: u32,
    /// Where a crash may also be recovered to.
    next: Option<Next>,
    /// What sealed layers read as: number of layers below and including it, and their content.
    sealed: Vec<(usize, Vec<(u64, u64)>)>,
    /// Smallest and largest size the disk may have after a crash.
    sizes: (u64, u64),
    model: Model,
    running: Vec<(Ticket, Meaning)>,
    value: u64,
    rng: Rng,
    effort: Effort,
    witness: W,
    write_through: bool,
    history: Vec<&'static str>,
    turns: u64,
    checked: u64,
}

impl<W> fmt::Debug for World<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "turn {} of {}", self.turns, self.history.join(","))
    }
}

/// Writes four sectors and takes note of them.
fn put(rig: &mut Rig<RamDisk>, model: &mut Model, first: u64, value: u64) {
    let change = model.change((0..4).map(|i| (first + i, value + i)), false);
    let data = sectors_of((0..4u32).map(|i| value + u64::from(i)));
    rig.write(first * SECTOR, &data).expect("the first content");
    model.answered(change, true);
}

impl<W: Witness> World<W> {
    /// A disk of three blocks, one of which is there and durable, with or without a parent.
    pub fn new(seed: u64, with_parent: bool, order: Order, effort: Effort, witness: W) -> Self {
        let mut ram = RamDisk::new();
        let base = ram.add_file(dynamic(1, BLOCKS * BLOCK));
        let mut files = vec![(base, Format::Vhd)];
        let mut model = Model::default();
        let mut rig = Rig::open(ram, &files);
        put(&mut rig, &mut model, 0, 100);
        put(&mut rig, &mut model, 4094, 200);
        let covered = model.flush_begins();
        let mut ram = rig.close();
        model.flushed(&covered);
        if with_parent {
            let leaf = child(2, Some(1), BLOCKS * BLOCK);
            files.insert(0, (ram.add_file(leaf), Format::Vhd));
            let mut rig = Rig::open(ram, &files);
            put(&mut rig, &mut model, 2, 300);
            let covered = model.flush_begins();
            ram = rig.close();
            model.flushed(&covered);
        }
        let images = if with_parent { 2 } else { 1 };
        Self {
            rig: Rig::open(SimDisk::from_ram(&ram, order), &files),
            files,
            leaf: images,
            images,
            next: None,
            sealed: Vec::new(),
            sizes: (BLOCKS * BLOCK, BLOCKS * BLOCK),
            model,
            running: Vec::new(),
            value: 1000,
            rng: Rng::new(seed),
            effort,
            witness,
            write_through: false,
            history: Vec::new(),
            turns: 0,
            checked: 0,
        }
    }

    /// From now on every change is durable when it is answered.
    pub fn write_through(&mut self) {
        self.write_through = true;
        self.rig.engine.set_write_through(true);
    }

    /// Where decisions of a random workload come from.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// Layers of the chain.
    pub fn layers(&self) -> usize {
        self.files.len()
    }

    /// New states that were judged.
    pub fn checked(&self) -> u64 {
        self.checked
    }

    /// Submits one; those of the whole disk wait for one another here, and a close to its end.
    pub fn submit(&mut self, op: Op) {
        if op.is_live() && self.running.iter().any(|(_, meaning)| meaning.is_live()) {
            self.settle();
        }
        self.history.push(op.name());
        let shift = self.rng.below(3);
        let end = self.rig.engine.size_bytes() / SECTOR;
        match op {
            Op::WriteNew => self.write(2 * 4096 + shift, 3, false),
            Op::WriteOld => self.write(1 + shift, 3, false),
            Op::WriteAcross => self.write(2 * 4096 - 2, 4, false),
            Op::WriteEnd => self.write(end - 3, 3, false),
            Op::WriteFua => self.write(4095, 3, true),
            Op::Trim => self.zero(1, 3 + shift, true),
            Op::Zeroes => self.zero(4093 + shift, 4, false),
            Op::Flush => {
                let covered = self.model.flush_begins();
                let ticket = self.rig.submit(Request::Flush);
                self.running.push((ticket, Meaning::Flush(covered)));
            }
            Op::Snapshot => self.snapshot(),
            Op::Resize => self.resize(),
            Op::Close => self.close(),
        }
    }

    fn write(&mut self, first: u64, sectors: u32, fua: bool) {
        self.value += 100;
        let value = self.value;
        let values = (0..sectors).map(|i| value + u64::from(i));
        let data = Buffer::copy_of(&sectors_of(values.clone()));
        let change = self.model.change((first..).zip(values), false);
        let offset = first * SECTOR;
        let ticket = self.rig.submit(Request::Write { offset, data, fua });
        let meaning = if fua || self.write_through {
            Meaning::ChangeAndFlush(change)
        } else {
            Meaning::Change(change)
        };
        self.running.push((ticket, meaning));
    }

    fn zero(&mut self, first: u64, sectors: u64, trim: bool) {
        let zeroed = (first..first + sectors).map(|sector| (sector, 0));
        let change = self.model.change(zeroed, trim);
        let (offset, len_bytes) = (first * SECTOR, sectors * SECTOR);
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
                fua: false,
            }
        };
        let ticket = self.rig.submit(request);
        let meaning = if self.write_through {
            Meaning::ChangeAndFlush(change)
        } else {
            Meaning::Change(change)
        };
        self.running.push((ticket, meaning));
    }

    fn snapshot(&mut self) {
        self.images += 1;
        let image = child(self.images, Some(self.leaf), self.rig.engine.size_bytes());
        let leaf = (self.rig.io.add_file(image), Format::Vhd);
        let spec = load(&self.rig.io, leaf, vhd_rs::Access::ReadWrite).expect("it loads");
        let covered = self.model.flush_begins();
        let ticket = self.rig.start(LiveOp::SnapshotSwitch(Box::new(spec)));
        let mut files = self.files.clone();
        files.insert(0, leaf);
        self.next = Some(Next {
            files,
            leaf: self.images,
        });
        self.running.push((ticket, Meaning::Snapshot(covered)));
    }

    fn resize(&mut self) {
        let virtual_bytes = (self.sizes.1 + BLOCK).min(BLOCKS * BLOCK * 4);
        let covered = self.model.flush_begins();
        self.sizes.1 = virtual_bytes;
        let ticket = self.rig.start(LiveOp::Resize { virtual_bytes });
        self.running
            .push((ticket, Meaning::Resize(covered, virtual_bytes)));
    }

    /// Closes what is left to its end, and opens it again with what is volatile still volatile.
    fn close(&mut self) {
        let covered = self.model.flush_begins();
        let ticket = self.rig.start(LiveOp::Close);
        self.running.push((ticket, Meaning::Close(covered)));
        self.settle();
        let io = std::mem::replace(&mut self.rig.io, SimDisk::new(Order::Fifo));
        self.rig = Rig::open(io, &self.files);
        self.rig.engine.set_write_through(self.write_through);
    }

    /// Turns until nothing is under way.
    pub fn settle(&mut self) {
        while self.step() {}
    }

    /// Turns the loop once, takes answers, then cuts the power in every way. Whether there is more.
    pub fn step(&mut self) -> bool {
        self.turns += 1;
        let more = self.rig.step();
        for (ticket, meaning) in std::mem::take(&mut self.running) {
            match self.rig.take(ticket) {
                Some(Ok(_)) => self.answered(meaning),
                Some(Err(e)) => panic!("{self:?}: a healthy disk answers: {e}"),
                None => self.running.push((ticket, meaning)),
            }
        }
        self.cut();
        more || !self.running.is_empty()
    }

    fn answered(&mut self, meaning: Meaning) {
        match meaning {
            Meaning::Change(change) => self.model.answered(change, true),
            Meaning::ChangeAndFlush(change) => {
                self.model.answered(change, true);
                self.model.durable(change);
            }
            Meaning::Flush(covered) | Meaning::Close(covered) => self.model.flushed(&covered),
            Meaning::Resize(covered, size) => {
                self.model.flushed(&covered);
                self.sizes.0 = size;
            }
            Meaning::Snapshot(covered) => {
                self.model.flushed(&covered);
                // From now on the chain below the new leaf must never read otherwise.
                let frozen = self.rig.io.crash(&Crash::Subset(u64::MAX));
                let content = self.content(frozen, &self.files);
                let content = content.unwrap_or_else(|e| panic!("{self:?}: sealed chain: {e}"));
                self.sealed.push((self.files.len(), content));
                if let Some(next) = self.next.take() {
                    (self.files, self.leaf) = (next.files, next.leaf);
                }
            }
        }
    }

    /// The power goes, for good: nothing runs any more, and the disk is opened as it was left.
    pub fn crash_and_reopen(&mut self) {
        let left = self.rig.io.crash(&Crash::Torn(self.rng.next_u64()));
        self.history.push("crash");
        self.running.clear();
        if let Some(next) = self.next.take().filter(|_| self.rng.one_in(2)) {
            (self.files, self.leaf) = (next.files, next.leaf);
        }
        let content = self.content(left.clone(), &self.files);
        for (sector, value) in content.unwrap_or_else(|e| panic!("{self:?}: recovery: {e}")) {
            self.judge(&"the crash that counts", sector, value);
            self.model.found(sector, value);
        }
        let files: Vec<SparseBytes> = left.files().to_vec();
        let order = Order::Random(Rng::new(self.rng.next_u64()));
        self.rig = Rig::open(SimDisk::from_ram(&RamDisk::from(files), order), &self.files);
        self.rig.engine.set_write_through(self.write_through);
        let size = self.rig.engine.size_bytes();
        self.sizes = (size, size);
        self.cut();
    }

    /// Cuts the power in as many ways as the effort allows.
    fn cut(&mut self) {
        let Effort {
            exhaustive_max,
            samples,
        } = self.effort;
        let volatile = u32::try_from(self.rig.io.volatile()).unwrap_or(u32::MAX);
        if volatile <= exhaustive_max {
            for mask in 0..1u64 << volatile {
                self.check(&Crash::Subset(mask));
            }
        } else {
            for mask in [0, u64::MAX] {
                self.check(&Crash::Subset(mask));
            }
            for _ in 0..samples {
                let mask = self.rng.next_u64();
                self.check(&Crash::Subset(mask));
            }
        }
        for _ in 0..u64::from(samples).min(1 << volatile.min(20)) / 4 + 1 {
            let seed = self.rng.next_u64();
            self.check(&Crash::Torn(seed));
        }
    }

    fn check(&mut self, crash: &Crash) {
        let left = self.rig.io.crash(crash);
        let next = self.next.as_ref().map(|next| next.files.clone());
        let mut hasher = DefaultHasher::new();
        left.files().hash(&mut hasher);
        (self.model.fingerprint(), self.files.len(), next.is_some()).hash(&mut hasher);
        (self.sizes, self.sealed.len()).hash(&mut hasher);
        let state = hasher.finish();
        if !self.witness.is_new(state) {
            return;
        }
        self.checked += 1;
        for files in [Some(self.files.clone()), next].into_iter().flatten() {
            let content = self.content(left.clone(), &files);
            let content = content.unwrap_or_else(|e| panic!("{self:?}: after {crash:?}: {e}"));
            for (sector, value) in content {
                self.judge(crash, sector, value);
            }
            let seen = Left {
                state,
                disk: &left,
                files: &files,
                model: &self.model,
            };
            if let Err(e) = self.witness.examine(&seen) {
                panic!("{self:?}: after {crash:?}: {e}");
            }
        }
        for (layers, expected) in &self.sealed {
            let below = &self.files[self.files.len() - layers..];
            let content = self.content(left.clone(), below);
            let content = content.unwrap_or_else(|e| panic!("{self:?}: sealed, {crash:?}: {e}"));
            let content: BTreeMap<u64, u64> = content.into_iter().collect();
            for (sector, value) in expected {
                let found = content.get(sector);
                assert_eq!(
                    found,
                    Some(value),
                    "{self:?}: sealed {sector} after {crash:?}"
                );
            }
        }
    }

    fn judge(&self, crash: &dyn fmt::Debug, sector: u64, value: u64) {
        let known = self.model.describe(sector);
        assert!(
            self.model.is_legal(sector, value),
            "{self:?}: after {crash:?} sector {sector} is {value}, may be {known}"
        );
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
        let (size, (least, most)) = (rig.engine.size_bytes(), self.sizes);
        // Layers below the leaf may be smaller, from before a resize.
        if files.len() >= self.files.len() && !(least..=most).contains(&size) {
            return Err(format!("{size} bytes, may be {least} to {most}"));
        }
        let mut content = Vec::new();
        let inside = |sector: &u64| *sector < size / SECTOR;
        let touched: Vec<u64> = self.model.touched().filter(inside).collect();
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

impl Meaning {
    fn is_live(&self) -> bool {
        matches!(
            self,
            Meaning::Snapshot(_) | Meaning::Resize(..) | Meaning::Close(_)
        )
    }
}

//! Worlds whose power is cut: a tree of images on a [`SimDisk`], disks that are in use on it, an
//! owner who changes the tree, and after each turn of the loop every way (or a sample) in which a
//! crash could leave the files.
//!
//! ```text
//!  guest ──> requests ──┐                                ┌──> answers to the models
//!                       ├──> engines ──> one SimDisk ────┤
//!  owner ──> acts ──────┘                                └──> cut: each choice of what is volatile
//!    └ keeps a record of which chains are which disk             └ open what the record names, judge
//! ```
//! The record stands for the daemon's database: a change of it is durable at once. A violation is a
//! panic that names the operations so far, the turn and the crash. The same start, effort and
//! operations give the same turns and crashes again.

mod cut;
mod faults;
mod moves;
mod owner;

pub use cut::{Effort, Expected, Left, LeftChain, States, Witness};

use crate::flaw::Flaw;
use crate::host::Host;
use crate::op::Op;
use block::{Buffer, FileId, Order, RamDisk, Rng, SimDisk};
use cut::{Content, known_to};
use datapath::protocol::Format;
use owner::{Act, Doing};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use tapdisk::engine::testing::model::{Covered, Model, sectors_of};
use tapdisk::engine::testing::rig::{BLOCK, Rig, SECTOR, child, dynamic};
use tapdisk::engine::{Request, Ticket};

/// Blocks of the disk at first; its metadata has room for four times as many.
const BLOCKS: u64 = 3;

/// Turns after which it is given up that everything comes to an end.
const TURNS_MAX: u64 = 100_000;

/// What is there at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// One image.
    Alone,
    /// A leaf on a parent.
    Parent,
    /// Three images, one on the other.
    Deep,
    /// Two disks on an image that has a parent.
    Fork,
}

impl Start {
    /// All of them with their names.
    pub const ALL: [(Start, &str); 4] = [
        (Start::Alone, "alone"),
        (Start::Parent, "parent"),
        (Start::Deep, "deep"),
        (Start::Fork, "fork"),
    ];

    /// Images and their parents; the last `disks` of them are leaves.
    fn images(self) -> (&'static [Option<u32>], usize) {
        match self {
            Start::Alone => (&[None], 1),
            Start::Parent => (&[None, Some(1)], 1),
            Start::Deep => (&[None, Some(1), Some(2)], 1),
            Start::Fork => (&[None, Some(1), Some(2), Some(2)], 2),
        }
    }
}

/// What a running request means to the model once it is answered.
#[derive(Debug)]
enum Meaning {
    Change(u64),
    ChangeAndFlush(u64),
    Flush(Covered),
}

#[derive(Debug, Clone, Copy)]
struct Node {
    file: FileId,
    parent: Option<u32>,
}

/// A disk as its guest sees it.
#[derive(Debug)]
struct Disk {
    /// What the engine serves, leaf first.
    chain: Vec<u32>,
    /// What the owner's record may have opened after a crash now: each is right.
    record: Vec<Vec<u32>>,
    /// Smallest and largest size it may have after a crash.
    sizes: (u64, u64),
    model: Model,
    running: Vec<(Ticket, Meaning)>,
    /// The engine is being closed: nothing more is asked of it.
    leaving: bool,
}

/// A snapshot that somebody may read: it must never read otherwise.
#[derive(Debug)]
struct Kept {
    image: u32,
    content: Content,
}

/// A disk that moves from one chain to another.
#[derive(Debug)]
struct Moving {
    from: Vec<u32>,
    to: Vec<u32>,
}

/// An image that is merged into its parent.
#[derive(Debug, Clone, Copy)]
struct Merging {
    gone: u32,
    /// Its children are being put on its parent: their headers say how far that is.
    relinking: bool,
}

/// Disks, what runs on them, and what they may be after a crash.
pub struct World<W> {
    host: Host,
    /// Images by their number, which tells their uuid.
    nodes: BTreeMap<u32, Node>,
    images: u32,
    /// Disks by the tag of their engine.
    disks: BTreeMap<u16, Disk>,
    kept: Vec<Kept>,
    /// Of the owner: operations not begun, the acts of the one begun, the act under way.
    asked: VecDeque<Op>,
    acts: VecDeque<Act>,
    doing: Option<Doing>,
    moving: Option<Moving>,
    /// In the record: an image whose content goes into its parent.
    merging: Option<Merging>,
    value: u64,
    rng: Rng,
    crashes: Rng,
    effort: Effort,
    looking: bool,
    write_through: bool,
    flaw: Option<Flaw>,
    /// Operations may fail; how many answers were errors.
    is_faulty: bool,
    failures: u64,
    witness: W,
    history: Vec<&'static str>,
    turns: u64,
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
    /// Durable images of three blocks; the base has one block, each image above it a part of it.
    /// With a flaw, the world does not do all it should.
    pub fn new(
        seed: u64,
        start: Start,
        order: Order,
        effort: Effort,
        flaw: Option<Flaw>,
        witness: W,
    ) -> Self {
        let (parents, leaves) = start.images();
        let mut ram = RamDisk::new();
        let mut nodes = BTreeMap::new();
        let mut models: Vec<(Vec<u32>, Model)> = Vec::new();
        for (number, parent) in (1u32..).zip(parents) {
            let below = models
                .iter()
                .find(|(chain, _)| chain.first() == parent.as_ref());
            let (mut chain, mut model) = below.cloned().unwrap_or_default();
            let file = ram.add_file(match parent {
                None => dynamic(number, BLOCKS * BLOCK),
                Some(_) => child(number, *parent, BLOCKS * BLOCK),
            });
            nodes.insert(
                number,
                Node {
                    file,
                    parent: *parent,
                },
            );
            chain.insert(0, number);
            let files: Vec<(FileId, Format)> = files_of(&nodes, &chain);
            let mut rig = Rig::open(ram, &files);
            if parent.is_none() {
                put(&mut rig, &mut model, 4094, 200);
            }
            put(
                &mut rig,
                &mut model,
                u64::from(number - 1) * 2,
                u64::from(number) * 10,
            );
            let covered = model.flush_begins();
            ram = rig.close();
            model.flushed(&covered);
            models.push((chain, model));
        }
        let images = models.len();
        let mut world = Self {
            host: Host::new(SimDisk::from_ram(&ram, order), flaw),
            nodes,
            images: u32::try_from(images).unwrap_or(u32::MAX),
            disks: BTreeMap::new(),
            kept: Vec::new(),
            asked: VecDeque::new(),
            acts: VecDeque::new(),
            doing: None,
            moving: None,
            merging: None,
            value: 1000,
            rng: Rng::new(seed),
            crashes: Rng::new(seed ^ 0xC4A5),
            effort,
            looking: true,
            write_through: false,
            flaw,
            is_faulty: false,
            failures: 0,
            witness,
            history: Vec::new(),
            turns: 0,
        };
        for (tag, (chain, model)) in (1..).zip(models.into_iter().skip(images - leaves)) {
            world.add_disk(tag, chain, model);
        }
        world
    }

    fn add_disk(&mut self, tag: u16, chain: Vec<u32>, model: Model) {
        let disk = Disk {
            record: vec![chain.clone()],
            chain,
            sizes: (0, u64::MAX),
            model,
            running: Vec::new(),
            leaving: false,
        };
        self.disks.insert(tag, disk);
        self.open(tag);
    }

    /// Opens a disk's engine on its chain; it begins with the size that this has.
    fn open(&mut self, tag: u16) {
        let Some(disk) = self.disks.get_mut(&tag) else {
            return;
        };
        let files = files_of(&self.nodes, &disk.chain);
        self.host.open(tag, &files, self.write_through);
        let size = self.host.size_bytes(tag);
        disk.sizes = (size, size);
        disk.leaving = false;
    }

    /// Where decisions of a random workload come from.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// Whether crashes are looked at from now on.
    pub fn look(&mut self, looking: bool) {
        self.looking = looking;
    }

    /// From now on every change is durable when it is answered.
    pub fn write_through(&mut self) {
        self.write_through = true;
        self.host.write_through();
    }

    /// Whether an image is being copied into its parent.
    pub fn is_copying(&self) -> bool {
        self.host.is_copying()
    }

    /// Images in the longest chain, and disks.
    pub fn extent(&self) -> (usize, usize) {
        let longest = self.disks.values().map(|disk| disk.chain.len()).max();
        (longest.unwrap_or(0), self.disks.len())
    }

    /// Submits one. The owner does one after the other; guests go on meanwhile.
    pub fn submit(&mut self, op: Op) {
        self.history.push(op.name());
        if op.is_of_owner() {
            self.asked.push_back(op);
            return self.owner();
        }
        let Some(tag) = self.pick() else { return };
        let shift = self.rng.below(3);
        let end = self.host.size_bytes(tag) / SECTOR;
        match op {
            Op::WriteNew => self.write(tag, 2 * 4096 + shift, 3, false),
            Op::WriteOld => self.write(tag, 1 + shift, 3, false),
            Op::WriteAcross => self.write(tag, 2 * 4096 - 2, 4, false),
            Op::WriteEnd => self.write(tag, end - 3, 3, false),
            Op::WriteFua => self.write(tag, 4095, 3, true),
            Op::Trim => self.zero(tag, 1, 3 + shift, true),
            Op::Zeroes => self.zero(tag, 4093 + shift, 4, false),
            _ => self.flush(tag),
        }
    }

    /// A disk that takes requests; waits if all of them are being closed.
    fn pick(&mut self) -> Option<u16> {
        for _ in 0..2 {
            let open = self.disks.iter().filter(|(_, disk)| !disk.leaving);
            let open: Vec<u16> = open.map(|(tag, _)| *tag).collect();
            let chosen = self.rng.below(open.len() as u64) as usize;
            if let Some(tag) = open.get(chosen) {
                return Some(*tag);
            }
            self.settle();
        }
        None
    }

    fn run(&mut self, tag: u16, request: Request, meaning: Meaning) {
        let ticket = self.host.submit(tag, request);
        if let Some(disk) = self.disks.get_mut(&tag) {
            disk.running.push((ticket, meaning));
        }
    }

    fn write(&mut self, tag: u16, first: u64, sectors: u32, fua: bool) {
        self.value += 100;
        let value = self.value;
        let values = (0..sectors).map(|i| value + u64::from(i));
        let data = Buffer::copy_of(&sectors_of(values.clone()));
        let Some(disk) = self.disks.get_mut(&tag) else {
            return;
        };
        let change = disk.model.change((first..).zip(values), false);
        let offset = first * SECTOR;
        let meaning = self.meaning(change, fua);
        let fua = fua && self.flaw != Some(Flaw::ForgottenFua);
        self.run(tag, Request::Write { offset, data, fua }, meaning);
    }

    fn zero(&mut self, tag: u16, first: u64, sectors: u64, trim: bool) {
        let Some(disk) = self.disks.get_mut(&tag) else {
            return;
        };
        let zeroed = (first..first + sectors).map(|sector| (sector, 0));
        let change = disk.model.change(zeroed, trim);
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
        let meaning = self.meaning(change, false);
        self.run(tag, request, meaning);
    }

    fn meaning(&self, change: u64, fua: bool) -> Meaning {
        if fua || self.write_through {
            Meaning::ChangeAndFlush(change)
        } else {
            Meaning::Change(change)
        }
    }

    fn flush(&mut self, tag: u16) {
        if let Some(disk) = self.disks.get(&tag) {
            let covered = disk.model.flush_begins();
            self.run(tag, Request::Flush, Meaning::Flush(covered));
        }
    }

    /// Turns until nothing is under way.
    ///
    /// # Panics
    /// When that does not happen.
    pub fn settle(&mut self) {
        let turns = self.turns;
        while self.step() {
            assert!(
                self.turns < turns + TURNS_MAX,
                "{self:?}: it never ends: {:?}",
                self.doing
            );
        }
    }

    /// Turns the loop once, takes answers, lets the owner act, then cuts the power in every way.
    /// Whether there is more.
    pub fn step(&mut self) -> bool {
        self.turns += 1;
        let more = self.host.step();
        let running = self.take_answers();
        self.owner();
        self.cut();
        more || running || self.is_owner_busy()
    }

    /// The power goes, for good: nothing runs any more, and every disk is opened as it was left.
    pub fn crash_and_reopen(&mut self) {
        let left = self
            .host
            .io()
            .cuts(block::Grain::Sector)
            .sample(&mut self.crashes);
        self.history.push("crash");
        self.asked.clear();
        self.acts.clear();
        self.doing = None;
        self.moving = None;
        let mut disks = std::mem::take(&mut self.disks);
        for disk in disks.values_mut() {
            let chosen = self.rng.below(disk.record.len() as u64) as usize;
            let chain = disk.record.swap_remove(chosen);
            disk.running.clear();
            let found = self.read_any(&left, &chain, &known_to(&disk.model));
            let (chain, content) = found.unwrap_or_else(|e| panic!("{self:?}: recovery: {e}"));
            self.judge_guest(&"the crash that counts", disk, &content);
            for (sector, value) in content.sectors {
                disk.model.found(sector, value);
            }
            disk.chain = chain;
        }
        let order = Order::Random(Rng::new(self.rng.next_u64()));
        self.host = Host::new(SimDisk::from_ram(&left, order), self.flaw);
        for (tag, disk) in disks {
            self.add_disk(tag, disk.chain, disk.model);
        }
        self.find_parents(&left);
        self.drop_orphans();
        self.merge_again();
        self.cut();
    }
}

impl Meaning {
    fn answered(self, model: &mut Model, ok: bool) {
        match self {
            Meaning::Change(change) => model.answered(change, ok),
            Meaning::ChangeAndFlush(change) => {
                model.answered(change, ok);
                if ok {
                    model.durable(change);
                }
            }
            Meaning::Flush(covered) if ok => model.flushed(&covered),
            Meaning::Flush(_) => {}
        }
    }
}

/// The files of a chain.
fn files_of(nodes: &BTreeMap<u32, Node>, chain: &[u32]) -> Vec<(FileId, Format)> {
    let file = |number: &u32| Some((nodes.get(number)?.file, Format::Vhd));
    chain.iter().filter_map(file).collect()
}

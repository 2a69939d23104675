//! Zeros, trims and writes where they could go wrong: at the ends of blocks, where a sector of the
//! table ends, in blocks that a parent shares, at the end of a parent that is shorter, in what a
//! resize added. Judged by the model, at rest and after power cuts.

use super::model::{Model, sectors_of, value_of};
use super::rig::{BLOCK, Rig, SECTOR, child, load, new_image};
use crate::engine::{Done, ExtentState, LiveOp, Request, Ticket};
use block::{BlockIo, Buffer, Crash, FileId, Order, RamDisk, Rng, SimDisk};
use datapath::protocol::Format;
use std::collections::BTreeSet;
use vhd_rs::Content;

/// One sector of a table has 128 entries.
const BLOCKS: u64 = 127;
const BLOCKS_MAX: u64 = 131;

/// Sectors before and behind each edge that are touched, and looked at.
const NEAR: u64 = 12;

/// The first sectors of the blocks whose neighbourhoods are used.
fn edges(blocks: u64) -> impl Iterator<Item = u64> {
    let edges = [0, 1, 2, 126, 127, 128, 129, 130, 131];
    edges
        .into_iter()
        .filter(move |edge| *edge <= blocks)
        .map(|edge| edge * 4096)
}

struct World {
    rig: Option<Rig<SimDisk>>,
    files: Vec<(FileId, Format)>,
    model: Model,
    running: Vec<(Ticket, u64, bool)>,
    images: u32,
    value: u64,
    rng: Rng,
}

impl World {
    /// A base, perhaps shorter than its child, with something at every edge.
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut ram = RamDisk::new();
        let blocks = BLOCKS - rng.below(3);
        // Not always whole blocks.
        let base_bytes = blocks * BLOCK;
        let mut files = vec![(
            ram.add_file(new_image(1, base_bytes, Content::Dynamic)),
            Format::Vhd,
        )];
        let mut model = Model::default();
        let mut rig = Rig::open(ram, &files);
        let mut value = 0;
        for edge in edges(blocks) {
            let first = edge.saturating_sub(NEAR / 2);
            let sectors = NEAR.min(base_bytes / SECTOR - first);
            let values = (0..sectors as u32).map(|i| value + 1 + u64::from(i));
            rig.write(first * SECTOR, &sectors_of(values.clone()))
                .expect("the first content");
            let change = model.change((first..).zip(values), false);
            model.answered(change, true);
            model.durable(change);
            value += 100;
        }
        let mut ram = rig.close();
        let leaf = ram.add_file(child(2, Some(1), BLOCKS * BLOCK));
        files.insert(0, (leaf, Format::Vhd));
        let io = SimDisk::from_ram(&ram, Order::Random(Rng::new(seed)));
        Self {
            rig: Some(Rig::open(io, &files)),
            files,
            model,
            running: Vec::new(),
            images: 2,
            value,
            rng,
        }
    }

    fn rig(&mut self) -> &mut Rig<SimDisk> {
        self.rig.as_mut().expect("the disk is open")
    }

    fn blocks(&mut self) -> u64 {
        self.rig().engine.size_bytes() / BLOCK
    }

    /// Some sectors around an edge, or a whole block.
    fn range(&mut self) -> (u64, u64) {
        let blocks = self.blocks();
        let edges: Vec<u64> = edges(blocks).collect();
        let edge = edges[self.rng.below(edges.len() as u64) as usize];
        let end = blocks * 4096;
        if self.rng.one_in(12) && edge < end {
            return (edge, 4096);
        }
        let first = (edge + self.rng.below(NEAR))
            .saturating_sub(NEAR / 2)
            .min(end - 1);
        (first, (1 + self.rng.below(NEAR)).min(end - first))
    }

    fn change(&mut self) {
        let (first, sectors) = self.range();
        let (offset, len_bytes) = (first * SECTOR, sectors * SECTOR);
        let fua = self.rng.one_in(6);
        self.value += 10_000;
        let value = self.value;
        let kind = self.rng.below(7);
        let zero = kind < 4;
        let values = (0..sectors as u32).map(|i| if zero { 0 } else { value + u64::from(i) });
        let change = self.model.change((first..).zip(values.clone()), kind == 0);
        let request = match kind {
            0 => Request::Trim {
                offset,
                len_bytes,
                fua,
            },
            1 | 2 => Request::WriteZeroes {
                offset,
                len_bytes,
                may_trim: kind == 1,
                fua,
            },
            // Zeros, as data.
            _ => Request::Write {
                offset,
                data: Buffer::copy_of(&sectors_of(values)),
                fua,
            },
        };
        let ticket = self.rig().submit(request);
        self.running.push((ticket, change, fua));
    }

    fn settle(&mut self) {
        while self.rig().step() {}
        for (ticket, change, fua) in std::mem::take(&mut self.running) {
            let answer = self.rig().take(ticket).expect("answered");
            answer.expect("a change on a healthy disk works");
            self.model.answered(change, true);
            if fua {
                self.model.durable(change);
            }
        }
    }

    fn flush(&mut self) {
        self.settle();
        let covered = self.model.flush_begins();
        self.rig().flush().expect("a flush works");
        self.model.flushed(&covered);
    }

    fn snapshot(&mut self) {
        self.settle();
        let size = self.rig().engine.size_bytes();
        let parent = self.images;
        self.images += 1;
        let image = child(self.images, Some(parent), size);
        let io = &mut self.rig().io;
        let file = (io.add_file(image), Format::Vhd);
        let spec = load(io, file, vhd_rs::Access::ReadWrite).expect("it loads");
        let covered = self.model.flush_begins();
        self.rig()
            .run_live(LiveOp::SnapshotSwitch(Box::new(spec)))
            .expect("the switch works");
        self.model.flushed(&covered);
        self.files.insert(0, file);
    }

    fn resize(&mut self) {
        self.settle();
        let blocks = (self.blocks() + 1 + self.rng.below(2)).min(BLOCKS_MAX);
        let covered = self.model.flush_begins();
        self.rig()
            .run_live(LiveOp::Resize {
                virtual_bytes: blocks * BLOCK,
            })
            .expect("it grows");
        self.model.flushed(&covered);
    }

    fn reopen(&mut self) {
        self.settle();
        let covered = self.model.flush_begins();
        let io = self.rig.take().expect("the disk is open").close();
        self.model.flushed(&covered);
        self.rig = Some(Rig::open(io, &self.files));
    }

    fn perform(&mut self) {
        match self.rng.below(24) {
            0 if self.files.len() < 5 => self.snapshot(),
            1 => self.resize(),
            2 => self.reopen(),
            3..6 => self.flush(),
            6..9 => {
                self.settle();
                let (model, files) = (self.model.clone(), self.files.clone());
                compare(&model, self.rig(), Model::is_current);
                no_hole_has_data(self.rig());
                for crash in [Crash::Subset(0), Crash::Torn(self.rng.next_u64())] {
                    let left = self.rig().io.crash(&crash);
                    compare(&model, &mut Rig::open(left, &files), Model::is_legal);
                }
            }
            9..11 => {
                self.rig().step();
                let left = Crash::Torn(self.rng.next_u64());
                let left = self.rig().io.crash(&left);
                let (model, files) = (self.model.clone(), self.files.clone());
                compare(&model, &mut Rig::open(left, &files), Model::is_legal);
            }
            _ => self.change(),
        }
    }
}

fn compare<I: BlockIo>(model: &Model, rig: &mut Rig<I>, rule: fn(&Model, u64, u64) -> bool) {
    let end = rig.engine.size_bytes() / SECTOR;
    for edge in edges(end / 4096) {
        let first = edge.saturating_sub(2 * NEAR);
        let sectors = (4 * NEAR).min(end - first);
        let bytes = rig
            .read(first * SECTOR, sectors * SECTOR)
            .expect("it reads");
        for (sector, bytes) in (first..).zip(bytes.chunks(SECTOR as usize)) {
            let value = value_of(bytes).expect("no mixture");
            let known = model.describe(sector);
            assert!(rule(model, sector, value), "{sector} is {value}: {known}");
        }
    }
}

/// What block status calls a hole reads as zeros, at each of its ends.
fn no_hole_has_data(rig: &mut Rig<SimDisk>) {
    let len_bytes = rig.engine.size_bytes();
    let request = Request::BlockStatus {
        offset: 0,
        len_bytes,
        extents_max: 10_000,
    };
    let Ok(Done::Extents(extents)) = rig.run(request) else {
        panic!("block status")
    };
    let mut holes = BTreeSet::new();
    let mut at = 0;
    for extent in extents {
        if extent.state == ExtentState::Zero {
            holes.extend([at, at + extent.len_bytes - SECTOR]);
        }
        at += extent.len_bytes;
    }
    assert_eq!(at, len_bytes);
    for hole in holes {
        assert_eq!(rig.read(hole, SECTOR).expect("it reads"), [0; 512]);
    }
}

#[test]
fn zeros_trims_and_writes_at_every_edge_read_back_and_survive_as_the_model_says() {
    for seed in 0..60 {
        let mut world = World::new(seed);
        for _ in 0..60 {
            world.perform();
        }
        world.reopen();
        let model = world.model.clone();
        compare(&model, world.rig(), Model::is_current);
    }
}

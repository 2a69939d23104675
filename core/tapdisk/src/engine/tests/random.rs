//! Random chains and requests on memory with completions in any order, against the model.

use super::model::{Model, sectors_of, value_of};
use super::rig::{BLOCK, Rig, SECTOR, child, dynamic, load, uuid};
use crate::engine::{Done, Extent as Run, ExtentState, LiveOp, Request, Ticket};
use block::{BlockIo, Buffer, FileId, Order, RamDisk, Rng, SimDisk, SparseBytes};
use datapath::protocol::Format;
use proptest::prelude::*;

const BLOCKS: u64 = 3;

/// Sectors that are touched: around the ends of blocks, where mistakes are.
fn sector(choice: u8) -> u64 {
    let (edge, near) = (u64::from(choice / 32), u64::from(choice % 32));
    match edge % 4 {
        0 => near,
        last @ 3 => last * 4096 - 32 + near,
        middle => middle * 4096 - 16 + near,
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write { at: u8, sectors: u8, fua: bool },
    WriteBlock { block: u8 },
    WriteZeros { at: u8, sectors: u8 },
    Zeroes { at: u8, sectors: u8, may_trim: bool },
    ZeroBlock { block: u8 },
    Trim { at: u8, sectors: u8 },
    Flush,
    Quiesce,
    Snapshot,
    Reopen,
    CloseAndReopen,
    Resize,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = 0u8..128;
    let sectors = 1u8..24;
    let step = prop_oneof![
        8 => (at.clone(), sectors.clone(), any::<bool>())
            .prop_map(|(at, sectors, fua)| Step::Write { at, sectors, fua }),
        1 => (0u8..3).prop_map(|block| Step::WriteBlock { block }),
        1 => (at.clone(), sectors.clone()).prop_map(|(at, sectors)| Step::WriteZeros { at, sectors }),
        3 => (at.clone(), sectors.clone(), any::<bool>())
            .prop_map(|(at, sectors, may_trim)| Step::Zeroes { at, sectors, may_trim }),
        1 => (0u8..3).prop_map(|block| Step::ZeroBlock { block }),
        3 => (at, sectors).prop_map(|(at, sectors)| Step::Trim { at, sectors }),
        2 => Just(Step::Flush),
        2 => Just(Step::Quiesce),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Reopen),
        1 => Just(Step::CloseAndReopen),
        1 => Just(Step::Resize),
    ];
    prop::collection::vec(step, 1..40)
}

struct World {
    rig: Option<Rig<SimDisk>>,
    files: Vec<(FileId, Format)>,
    model: Model,
    running: Vec<(Ticket, u64)>,
    images: u32,
    value: u64,
}

impl World {
    fn new(seed: u64, layers: u32, raw_base: bool) -> Self {
        let mut ram = RamDisk::new();
        let mut files = Vec::new();
        if raw_base {
            // Half a block shorter than its child.
            let base = ram.add_file(SparseBytes::zeroed(2 * BLOCK + BLOCK / 2));
            files.push((base, Format::Raw));
        }
        for n in 1..=layers {
            let image = match (n, raw_base) {
                (1, false) => dynamic(1, BLOCKS * BLOCK),
                (1, true) => child(1, None, BLOCKS * BLOCK),
                _ => child(n, Some(n - 1), BLOCKS * BLOCK),
            };
            files.insert(0, (ram.add_file(image), Format::Vhd));
        }
        let io = SimDisk::from_ram(&ram, Order::Random(Rng::new(seed)));
        let rig = Some(Rig::open(io, &files));
        let model = Model::default();
        Self {
            rig,
            files,
            model,
            running: Vec::new(),
            images: layers,
            value: 0,
        }
    }

    fn rig(&mut self) -> &mut Rig<SimDisk> {
        self.rig.as_mut().expect("the disk is open")
    }

    fn change(&mut self, first: u64, sectors: u64, zero: bool, optional: bool) -> u64 {
        let last = BLOCKS * BLOCK / SECTOR;
        let touched = first..(first + sectors).min(last);
        self.value += 1;
        let base = if zero { 0 } else { self.value * 10_000 };
        let value = move |sector: u64| if zero { 0 } else { base + (sector - first) };
        self.model
            .change(touched.map(|sector| (sector, value(sector))), optional)
    }

    fn submit_write(&mut self, first: u64, sectors: u64, zero: bool, fua: bool) {
        let sectors = sectors.min(BLOCKS * BLOCK / SECTOR - first);
        let change = self.change(first, sectors, zero, false);
        let base = if zero { 0 } else { self.value * 10_000 };
        let values = (0..sectors as u32).map(|i| if zero { 0 } else { base + u64::from(i) });
        let data = sectors_of(values);
        let data = Buffer::copy_of(&data);
        let ticket = self.rig().submit(Request::Write {
            offset: first * SECTOR,
            data,
            fua,
        });
        self.running.push((ticket, change));
    }

    fn submit_zero(&mut self, first: u64, sectors: u64, trim: bool, may_trim: bool) {
        let sectors = sectors.min(BLOCKS * BLOCK / SECTOR - first);
        let change = self.change(first, sectors, true, trim);
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
                may_trim,
                fua: false,
            }
        };
        let ticket = self.rig().submit(request);
        self.running.push((ticket, change));
    }

    fn quiesce(&mut self) {
        for (ticket, change) in std::mem::take(&mut self.running) {
            let result = match self.rig().take(ticket) {
                Some(result) => result,
                None => self.rig().wait(ticket),
            };
            result.expect("a change on a healthy disk works");
            self.model.answered(change, true);
        }
        while self.rig().step() {}
        self.compare();
    }

    /// Every touched sector, and the edges of blocks, read as the model has them.
    fn compare(&mut self) {
        for edge in 0..4u8 {
            let first = sector(edge * 32);
            let bytes = self
                .rig()
                .read(first * SECTOR, 32 * SECTOR)
                .expect("a read works");
            for (index, found) in bytes.chunks(SECTOR as usize).enumerate() {
                let sector = first + index as u64;
                let value = value_of(found).expect("no mixture of values");
                let known = self.model.describe(sector);
                assert!(
                    self.model.is_current(sector, value),
                    "{sector} is {value}: {known}"
                );
            }
        }
        self.compare_status();
    }

    /// What block status calls a hole reads as zeros, and the extents cover the disk.
    fn compare_status(&mut self) {
        let len_bytes = BLOCKS * BLOCK;
        let request = Request::BlockStatus {
            offset: 0,
            len_bytes,
            extents_max: 10_000,
        };
        let Ok(Done::Extents(extents)) = self.rig().run(request) else {
            panic!("block status")
        };
        assert_eq!(extents.iter().map(|e| e.len_bytes).sum::<u64>(), len_bytes);
        assert!(
            extents
                .windows(2)
                .all(|pair| pair[0].state != pair[1].state)
        );
        let mut offset = 0;
        for Run { len_bytes, state } in extents {
            let edge = len_bytes.min(16 * SECTOR);
            for at in [offset, offset + len_bytes - edge] {
                let bytes = self.rig().read(at, edge).expect("a read works");
                let zero = bytes.iter().all(|byte| *byte == 0);
                assert!(
                    state == ExtentState::Data || zero,
                    "hole at {at} is not zero"
                );
            }
            offset += len_bytes;
        }
    }

    fn perform(&mut self, step: &Step) {
        match *step {
            Step::Write { at, sectors, fua } => {
                self.submit_write(sector(at), u64::from(sectors), false, fua);
            }
            Step::WriteBlock { block } => {
                self.submit_write(u64::from(block) * 4096, 4096, false, false)
            }
            Step::WriteZeros { at, sectors } => {
                self.submit_write(sector(at), u64::from(sectors), true, false);
            }
            Step::Zeroes {
                at,
                sectors,
                may_trim,
            } => {
                self.submit_zero(sector(at), u64::from(sectors), false, may_trim);
            }
            Step::ZeroBlock { block } => {
                self.submit_zero(u64::from(block) * 4096, 4096, false, true)
            }
            Step::Trim { at, sectors } => {
                self.submit_zero(sector(at), u64::from(sectors), true, true);
            }
            Step::Flush => self.rig().flush().expect("a flush works"),
            Step::Quiesce => self.quiesce(),
            Step::Snapshot => self.snapshot(),
            Step::Reopen => {
                self.quiesce();
                self.rig().flush().expect("a flush works");
                self.reopen(false);
            }
            Step::CloseAndReopen => {
                self.quiesce();
                self.reopen(true);
            }
            Step::Resize => {
                let size = self.rig().engine.size_bytes() + BLOCK;
                let size = size.min(BLOCKS * BLOCK * 4);
                self.rig()
                    .run_live(LiveOp::Resize {
                        virtual_bytes: size,
                    })
                    .expect("resize");
                assert_eq!(self.rig().engine.size_bytes(), size);
            }
        }
    }

    fn snapshot(&mut self) {
        if self.files.len() >= 6 {
            return;
        }
        let size = self.rig().engine.size_bytes();
        let parent = self.images;
        self.images += 1;
        let image = child(self.images, Some(parent), size);
        let io = &mut self.rig().io;
        let file = io.add_file(image);
        // Requests may be in flight: the engine drains them itself.
        let spec = load(io, (file, Format::Vhd), vhd_rs::Access::ReadWrite).expect("it loads");
        let spec = Box::new(spec);
        self.rig()
            .run_live(LiveOp::SnapshotSwitch(spec))
            .expect("the switch works");
        self.files.insert(0, (file, Format::Vhd));
        assert_eq!(self.rig().engine.layer_uuids()[0], uuid(self.images));
    }

    /// Opens the files as they are now, after a proper close or as a killed process leaves them.
    fn reopen(&mut self, close: bool) {
        let rig = self.rig.take().expect("the disk is open");
        let io = if close { rig.close() } else { rig.io };
        self.rig = Some(Rig::open(io, &self.files));
        self.compare();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_requests_on_any_chain_read_back_as_the_model_says(
        seed in any::<u64>(),
        layers in 1u32..4,
        raw_base in any::<bool>(),
        steps in steps(),
    ) {
        let mut world = World::new(seed, layers, raw_base);
        for step in &steps {
            world.perform(step);
        }
        world.quiesce();
        world.reopen(true);
        prop_assert_eq!(world.rig().io.in_flight(), 0);
    }
}

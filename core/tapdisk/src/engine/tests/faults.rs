//! The nth operation fails, for every n: no hang, no panic, no lost answer, no wrong content, and
//! what was flushed stays flushed.

use super::model::{Model, sectors_of, value_of};
use super::rig::{BLOCK, Rig, SECTOR, child, dynamic, load};
use crate::engine::{ErrorKind, LiveOp, Request};
use block::{
    BlockIo, Buffer, Crash, Fault, FaultDisk, FaultKind, FileId, Order, RamDisk, SimDisk, Target,
    Verb,
};
use datapath::protocol::Format;

#[derive(Debug, Clone, Copy)]
enum Step {
    Write(u64, u32),
    Fua(u64, u32),
    Zero(u64, u64),
    Trim(u64, u64),
    Read(u64, u32),
    Flush,
    Snapshot,
    Resize,
    Close,
}
use Step::{Close, Flush, Fua, Read, Resize, Snapshot, Trim, Write, Zero};

const WORKLOADS: [&[Step]; 10] = [
    &[Write(0, 4), Flush],
    &[
        Write(0, 4),
        Write(4096, 4),
        Write(8192, 4),
        Flush,
        Read(0, 4),
    ],
    &[Write(4094, 4), Flush, Write(4095, 2), Flush, Close],
    &[Fua(10, 2), Fua(10, 2), Read(10, 2)],
    &[Write(0, 8), Flush, Trim(0, 4), Flush, Read(0, 8)],
    &[Write(0, 8), Zero(2, 4), Flush, Zero(4090, 12), Flush],
    &[Write(0, 4), Snapshot, Write(1, 2), Flush, Read(0, 4)],
    &[
        Snapshot,
        Zero(0, 4),
        Flush,
        Snapshot,
        Read(0, 8),
        Trim(0, 8),
    ],
    &[Write(0, 2), Resize, Write(4, 2), Flush],
    &[Write(0, 4), Close],
];

/// Those above, and every two steps after each other with a flush and a read behind them.
fn workloads() -> Vec<Vec<Step>> {
    let steps = [
        Write(2, 3),
        Write(4095, 2),
        Fua(8190, 4),
        Zero(1, 4),
        Trim(1, 4),
        Flush,
        Snapshot,
        Resize,
    ];
    let pairs = steps
        .iter()
        .flat_map(|a| steps.iter().map(|b| vec![*a, *b, Flush, Read(0, 8)]));
    let chosen = WORKLOADS.iter().map(|steps| steps.to_vec());
    chosen.chain(pairs).collect()
}

struct World {
    rig: Rig<FaultDisk<SimDisk>>,
    files: Vec<(FileId, Format)>,
    model: Model,
    images: u32,
    value: u64,
    failures: u32,
}

impl World {
    /// Two layers, the lower with something in it.
    fn new(fault: Fault) -> Self {
        let mut ram = RamDisk::new();
        let base = (ram.add_file(dynamic(1, 3 * BLOCK)), Format::Vhd);
        let mut model = Model::default();
        let mut rig = Rig::open(ram, &[base]);
        let change = model.change((0..6).map(|s| (s, 50 + s)), false);
        rig.write(0, &sectors_of((0..6u32).map(|s| 50 + u64::from(s))))
            .expect("the first content");
        model.answered(change, true);
        let covered = model.flush_begins();
        let mut ram = rig.close();
        model.flushed(&covered);
        let leaf = (ram.add_file(child(2, Some(1), 3 * BLOCK)), Format::Vhd);
        let files = vec![leaf, base];
        let disk = FaultDisk::new(SimDisk::from_ram(&ram, Order::Fifo));
        let mut rig = Rig::open(disk, &files);
        rig.io.set_fault(Some(fault));
        Self {
            rig,
            files,
            model,
            images: 2,
            value: 1000,
            failures: 0,
        }
    }

    fn change(&mut self, request: Request, change: u64) {
        let fua = matches!(request, Request::Write { fua: true, .. });
        let result = self.rig.run(request);
        self.model.answered(change, result.is_ok());
        if fua && result.is_ok() {
            self.model.durable(change);
        }
        self.failures += u32::from(result.is_err());
    }

    fn write(&mut self, first: u64, sectors: u32, fua: bool) {
        self.value += 100;
        let value = self.value;
        let values = (0..sectors).map(|i| value + u64::from(i));
        let change = self.model.change((first..).zip(values.clone()), false);
        let data = Buffer::copy_of(&sectors_of(values));
        self.change(
            Request::Write {
                offset: first * SECTOR,
                data,
                fua,
            },
            change,
        );
    }

    fn zero(&mut self, first: u64, sectors: u64, trim: bool) {
        let change = self
            .model
            .change((first..first + sectors).map(|s| (s, 0)), trim);
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
        self.change(request, change);
    }

    fn perform(&mut self, step: Step) {
        let covered = self.model.flush_begins();
        let flushed = match step {
            Write(first, sectors) => return self.write(first, sectors, false),
            Fua(first, sectors) => return self.write(first, sectors, true),
            Zero(first, sectors) => return self.zero(first, sectors, false),
            Trim(first, sectors) => return self.zero(first, sectors, true),
            Read(first, sectors) => {
                if let Ok(bytes) = self.rig.read(first * SECTOR, u64::from(sectors) * SECTOR) {
                    judge(&self.model, first, &bytes, Model::is_current);
                }
                return;
            }
            Flush => self.rig.flush().is_ok(),
            Snapshot => self.snapshot(),
            Resize => {
                let virtual_bytes = self.rig.engine.size_bytes() + BLOCK;
                self.rig.run_live(LiveOp::Resize { virtual_bytes }).is_ok()
            }
            Close => self.rig.run_live(LiveOp::Close).is_ok(),
        };
        if flushed {
            self.model.flushed(&covered);
        }
        self.failures += u32::from(!flushed);
    }

    fn snapshot(&mut self) -> bool {
        let size = self.rig.engine.size_bytes();
        let image = child(self.images + 1, Some(self.images), size);
        let leaf = (self.rig.io.inner_mut().add_file(image), Format::Vhd);
        let spec = load(&self.rig.io, leaf, vhd_rs::Access::ReadWrite).expect("it loads");
        let switched = self
            .rig
            .run_live(LiveOp::SnapshotSwitch(Box::new(spec)))
            .is_ok();
        if switched {
            self.images += 1;
            self.files.insert(0, leaf);
        }
        switched
    }

    /// The disk is healthy again: what holds now, and after a power cut that loses everything.
    fn aftermath(self) {
        let Self {
            mut rig,
            files,
            mut model,
            ..
        } = self;
        rig.io.set_fault(None);
        let lost = rig.io.inner().crash(&Crash::Subset(0));
        judge_all(&model, &mut Rig::open(lost, &files), Model::is_legal);
        if rig.engine.is_closed() {
            return;
        }
        if rig.engine.poisoned().is_some() {
            let error = rig.flush().expect_err("a poisoned disk flushes nothing");
            assert_eq!(error.kind, ErrorKind::Poisoned);
            let error = rig.write(0, &[0; 512]).expect_err("nor does it write");
            assert_eq!(error.kind, ErrorKind::Poisoned);
            return;
        }
        judge_all(&model, &mut rig, Model::is_current);
        let covered = model.flush_begins();
        rig.flush().expect("a healthy disk flushes");
        model.flushed(&covered);
        let lost = rig.io.inner().crash(&Crash::Subset(0));
        judge_all(&model, &mut Rig::open(lost, &files), Model::is_legal);
        judge_all(
            &model,
            &mut Rig::open(rig.close(), &files),
            Model::is_current,
        );
    }
}

type Rule = fn(&Model, u64, u64) -> bool;

fn judge(model: &Model, first: u64, bytes: &[u8], rule: Rule) {
    for (sector, bytes) in (first..).zip(bytes.chunks(SECTOR as usize)) {
        let value = value_of(bytes).expect("no mixture inside a sector");
        let known = model.describe(sector);
        assert!(
            rule(model, sector, value),
            "{sector} is {value}, may be {known}"
        );
    }
}

fn judge_all<I: BlockIo>(model: &Model, rig: &mut Rig<I>, rule: Rule) {
    for first in [0, 4080, 8180] {
        let bytes = rig
            .read(first * SECTOR, 32 * SECTOR)
            .expect("a healthy disk reads");
        judge(model, first, &bytes, rule);
    }
}

#[test]
fn any_nth_failure_ends_as_an_error_and_nothing_worse() {
    let mut runs = 0;
    for workload in &workloads() {
        for kind in [FaultKind::Io, FaultKind::NoSpace, FaultKind::Half] {
            for times in [1, u64::MAX] {
                runs += sweep(workload, Target::Any, kind, times);
            }
        }
        runs += sweep(workload, Target::Only(Verb::Fdatasync), FaultKind::Io, 1);
        // A file system without holes is no error at all.
        let unsupported = Target::Only(Verb::Punch);
        runs += sweep(workload, unsupported, FaultKind::Unsupported, u64::MAX);
    }
    println!("{runs} runs");
    assert!(runs > 5000, "only {runs} runs");
}

/// Fails the nth operation for each n there is; returns the number of runs.
fn sweep(workload: &[Step], target: Target, kind: FaultKind, times: u64) -> u32 {
    for nth in 0.. {
        let mut world = World::new(Fault {
            target,
            nth,
            times,
            kind,
        });
        for step in workload {
            if world.rig.engine.is_closed() {
                break;
            }
            world.perform(*step);
        }
        let struck = world.rig.io.struck() > 0;
        let sync_failed = struck && target == Target::Only(Verb::Fdatasync);
        if sync_failed {
            assert!(
                world.rig.engine.poisoned().is_some(),
                "{workload:?} {nth}: not poisoned"
            );
            assert!(
                world.failures > 0,
                "{workload:?} {nth}: a failed flush was acked"
            );
        }
        if kind == FaultKind::Unsupported {
            assert_eq!(world.failures, 0, "{workload:?} {nth}");
        }
        world.aftermath();
        if !struck {
            return nth as u32;
        }
    }
    0
}

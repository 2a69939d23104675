//! A paused disk loses nothing that was answered, answers nothing twice, and goes on where it was.

use super::model::{Covered, Model, sectors_of, value_of};
use super::rig::{BLOCK, Rig, SECTOR, child, dynamic, load};
use crate::engine::{Done, Error, ErrorKind, LiveOp, Request, Ticket};
use block::{
    Buffer, Crash, Fault, FaultDisk, FaultKind, FileId, Order, RamDisk, Rng, SimDisk, Target, Verb,
};
use datapath::protocol::{Format, OnError, Policy};
use std::collections::BTreeMap;

const PAUSE: Policy = Policy {
    on_no_space: OnError::Pause,
    on_io_error: OnError::Pause,
};

type Disk = Rig<FaultDisk<SimDisk>>;

/// A disk of three blocks with sector 0 written and durable.
fn rig(order: Order) -> (Disk, [(FileId, Format); 1]) {
    let mut ram = RamDisk::new();
    let files = [(ram.add_file(dynamic(1, 3 * BLOCK)), Format::Vhd)];
    let mut rig = Rig::open(ram, &files);
    rig.write(0, &[1; 512]).expect("the first content");
    let sim = SimDisk::from_ram(&rig.close(), order);
    let mut rig = Rig::open(FaultDisk::new(sim), &files);
    rig.engine.set_policy(PAUSE);
    (rig, files)
}

fn always(verb: Verb, kind: FaultKind) -> Option<Fault> {
    Some(Fault {
        target: Target::Only(verb),
        nth: 0,
        times: u64::MAX,
        kind,
    })
}

fn write(offset: u64, byte: u8) -> Request {
    Request::Write {
        offset,
        data: Buffer::copy_of(&[byte; 512]),
        fua: false,
    }
}

fn settle(rig: &mut Disk) {
    while rig.step() {}
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.expect_err("refused").kind
}

#[test]
fn without_space_changes_wait_in_order_and_reads_and_flushes_go_on() {
    let (mut rig, files) = rig(Order::Fifo);
    rig.io.set_fault(always(Verb::Truncate, FaultKind::NoSpace));
    rig.engine.set_now(5_000_000);
    // Two into a new block, one over the other; later ones, one of which needs no space.
    let tickets: Vec<Ticket> = [(BLOCK, 2), (BLOCK, 3), (2 * BLOCK, 4), (SECTOR, 5)]
        .map(|(offset, byte)| {
            let ticket = rig.submit(write(offset, byte));
            settle(&mut rig);
            ticket
        })
        .to_vec();
    let paused = rig.engine.paused().expect("it is paused").clone();
    assert_eq!(
        (paused.error.kind, paused.since_us),
        (ErrorKind::NoSpace, 5_000_000)
    );
    assert_eq!(rig.engine.stats().held, 4);
    assert!(rig.finished.is_empty(), "{:?}", rig.finished);
    assert_eq!(rig.read(0, SECTOR).expect("read"), [1; 512]);
    assert_eq!(rig.read(BLOCK, SECTOR).expect("read"), [0; 512]);
    rig.flush().expect("what was answered can be made durable");
    rig.io.set_fault(None);
    rig.engine.resume();
    for ticket in tickets {
        rig.wait(ticket).expect("it works in the end");
    }
    assert!(rig.engine.paused().is_none());
    assert_eq!(rig.engine.stats().errors, 0);
    rig.flush().expect("flush");
    let mut rig = Rig::open(rig.io.inner().crash(&Crash::Subset(0)), &files);
    for (offset, byte) in [(0, 1), (SECTOR, 5), (BLOCK, 3), (2 * BLOCK, 4)] {
        assert_eq!(rig.read(offset, SECTOR).expect("read"), [byte; 512]);
    }
}

#[test]
fn without_space_it_tries_again_by_itself_less_and_less_often() {
    let (mut rig, _) = rig(Order::Fifo);
    rig.io.set_fault(always(Verb::Truncate, FaultKind::NoSpace));
    let tickets = [BLOCK, 2 * BLOCK].map(|offset| rig.submit(write(offset, 2)));
    settle(&mut rig);
    let mut waits_s = Vec::new();
    let mut now_us = 0;
    for _ in 0..8 {
        let at_us = rig.engine.wake_at_us().expect("a next time");
        waits_s.push((at_us - now_us) / 1_000_000);
        rig.engine.set_now(at_us - 1);
        assert!(!rig.step(), "a microsecond early");
        now_us = at_us;
        rig.engine.set_now(now_us);
        assert_eq!(rig.engine.wake_at_us(), None, "one probe at a time");
        settle(&mut rig);
    }
    assert_eq!(waits_s, [2, 4, 8, 16, 32, 60, 60, 60]);
    let since_us = rig.engine.paused().expect("it is paused").since_us;
    assert_eq!(since_us, 0, "it is one pause");
    rig.io.set_fault(None);
    rig.engine.set_now(now_us + 60_000_000);
    for ticket in tickets {
        rig.wait(ticket).expect("it works in the end");
    }
    assert!(rig.engine.paused().is_none() && rig.engine.wake_at_us().is_none());
}

#[test]
fn an_error_of_the_storage_holds_back_everything_until_somebody_resumes() {
    let (mut rig, _) = rig(Order::Fifo);
    rig.io.set_fault(always(Verb::Read, FaultKind::Io));
    let first = rig.submit(Request::Read {
        offset: 0,
        len_bytes: 1024,
    });
    settle(&mut rig);
    let later = [write(0, 9), Request::Flush].map(|request| rig.submit(request));
    settle(&mut rig);
    assert!(rig.finished.is_empty() && rig.engine.wake_at_us().is_none());
    rig.engine.resume();
    settle(&mut rig);
    assert!(rig.engine.paused().is_some(), "it fails again");
    rig.io.set_fault(None);
    rig.engine.resume();
    let Ok(Done::Data(bytes)) = rig.wait(first) else {
        panic!("a read")
    };
    assert_eq!(bytes.as_slice()[512..], [0; 512]);
    for ticket in later {
        rig.wait(ticket).expect("it works in the end");
    }
    assert_eq!(rig.read(0, SECTOR).expect("read"), [9; 512]);
}

#[test]
fn a_barrier_that_fails_for_want_of_space_poisons_and_pauses_nothing() {
    let (mut rig, _) = rig(Order::Fifo);
    rig.io.set_fault(always(Verb::Truncate, FaultKind::NoSpace));
    let kept = rig.submit(write(BLOCK, 2));
    let held = rig.submit(write(2 * BLOCK, 2));
    settle(&mut rig);
    assert!(rig.engine.paused().is_some());
    rig.io
        .set_fault(always(Verb::Fdatasync, FaultKind::NoSpace));
    assert_eq!(kind(rig.flush()), ErrorKind::NoSpace);
    assert!(rig.engine.poisoned().is_some() && rig.engine.paused().is_none());
    for ticket in [kept, held] {
        assert_eq!(
            kind(rig.take(ticket).expect("answered")),
            ErrorKind::Poisoned
        );
    }
    assert_eq!(rig.io.struck(), 1, "no barrier is tried again");
    assert_eq!(rig.read(0, SECTOR).expect("reads go on"), [1; 512]);
}

#[test]
fn closing_a_paused_disk_answers_what_waits_with_the_error() {
    let (mut rig, files) = rig(Order::Fifo);
    rig.io.set_fault(always(Verb::Truncate, FaultKind::NoSpace));
    let waiting = [
        write(BLOCK, 2),
        write(BLOCK, 3),
        write(2 * BLOCK, 4),
        write(0, 5),
    ];
    let waiting = waiting.map(|request| rig.submit(request));
    settle(&mut rig);
    assert!(rig.engine.paused().is_some());
    // It cannot close either: its file cannot be cut to its length.
    let close = rig.start(LiveOp::Close);
    settle(&mut rig);
    for ticket in waiting {
        let answer = rig.take(ticket).expect("answered once");
        assert!(ticket == waiting[3] || kind(answer) == ErrorKind::NoSpace);
        assert!(rig.take(ticket).is_none());
    }
    assert_eq!(kind(rig.wait(close)), ErrorKind::NoSpace);
    rig.io.set_fault(None);
    let rig = Rig::open(rig.close(), &files);
    assert!(rig.engine.layer_uuids().len() == 1);
}

#[test]
fn a_paused_disk_is_frozen_and_switched_and_what_is_kept_goes_on_above() {
    let (mut rig, files) = rig(Order::Fifo);
    rig.io.set_fault(always(Verb::Truncate, FaultKind::NoSpace));
    let kept = [(BLOCK, 2), (BLOCK, 3)].map(|(offset, byte)| rig.submit(write(offset, byte)));
    settle(&mut rig);
    let freeze = rig.start(LiveOp::Freeze);
    settle(&mut rig);
    rig.take(freeze).expect("it is quiet").expect("it freezes");
    rig.io.set_fault(None);
    rig.engine.set_now(100_000_000);
    settle(&mut rig);
    assert!(rig.finished.is_empty(), "frozen is frozen");
    let image = child(2, Some(1), 3 * BLOCK);
    let leaf = (rig.io.inner_mut().add_file(image), Format::Vhd);
    let spec = load(&rig.io, leaf, vhd_rs::Access::ReadWrite).expect("it loads");
    rig.run_live(LiveOp::SnapshotSwitch(Box::new(spec)))
        .expect("a switch");
    rig.engine.thaw();
    rig.engine.resume();
    for ticket in kept {
        rig.wait(ticket).expect("it works in the end");
    }
    let ram = rig.close().into_inner().crash(&Crash::Subset(u64::MAX));
    let mut below = Rig::open(ram.clone(), &files);
    assert_eq!(below.read(BLOCK, SECTOR).expect("read"), [0; 512]);
    let mut whole = Rig::open(ram, &[leaf, files[0]]);
    assert_eq!(whole.read(BLOCK, SECTOR).expect("read"), [3; 512]);
}

#[test]
fn a_policy_that_changes_lets_go_of_what_it_would_not_keep() {
    let (mut rig, _) = rig(Order::Fifo);
    rig.io.set_fault(always(Verb::Truncate, FaultKind::NoSpace));
    let kept = rig.submit(write(BLOCK, 2));
    let held = rig.submit(write(0, 3));
    settle(&mut rig);
    rig.engine.set_policy(Policy {
        on_no_space: OnError::Report,
        on_io_error: OnError::Pause,
    });
    settle(&mut rig);
    assert_eq!(kind(rig.take(kept).expect("answered")), ErrorKind::NoSpace);
    rig.take(held)
        .expect("answered")
        .expect("it needs no space");
    assert!(rig.engine.paused().is_none());
}

/// Requests under way with what they mean, and the model they are judged by.
struct World {
    rig: Disk,
    files: [(FileId, Format); 1],
    model: Model,
    changes: BTreeMap<Ticket, (u64, bool)>,
    flushes: BTreeMap<Ticket, Covered>,
    value: u64,
}

impl World {
    fn new(order: Order, fault: Fault) -> Self {
        let (mut rig, files) = rig(order);
        rig.io.set_fault(None);
        let mut model = Model::default();
        let change = model.change([(0, u64::from_le_bytes([1; 8]))], false);
        model.answered(change, true);
        model.durable(change);
        rig.io.set_fault(Some(fault));
        Self {
            rig,
            files,
            model,
            changes: BTreeMap::new(),
            flushes: BTreeMap::new(),
            value: 100,
        }
    }

    fn submit(&mut self, rng: &mut Rng) {
        let first = [1, 4094, 8190][rng.below(3) as usize];
        let sectors = 1 + rng.below(4);
        self.value += 10;
        match rng.below(6) {
            0 => {
                let covered = self.model.flush_begins();
                let ticket = self.rig.submit(Request::Flush);
                self.flushes.insert(ticket, covered);
            }
            1 => {
                let range = (first..first + sectors).map(|sector| (sector, 0));
                let change = self.model.change(range, false);
                let ticket = self.rig.submit(Request::WriteZeroes {
                    offset: first * SECTOR,
                    len_bytes: sectors * SECTOR,
                    may_trim: rng.one_in(2),
                    fua: false,
                });
                self.changes.insert(ticket, (change, false));
            }
            _ => {
                let values = (0..sectors as u32).map(|i| self.value + u64::from(i));
                let data = Buffer::copy_of(&sectors_of(values.clone()));
                let change = self.model.change((first..).zip(values), false);
                let (offset, fua) = (first * SECTOR, rng.one_in(4));
                let ticket = self.rig.submit(Request::Write { offset, data, fua });
                self.changes.insert(ticket, (change, fua));
            }
        }
    }

    /// One turn, its answers, and two power cuts. Whether anything is still unanswered.
    fn step(&mut self, rng: &mut Rng) -> bool {
        self.rig.step();
        for finished in self.rig.finished.drain(..) {
            let ok = finished.result.is_ok();
            let poisoned = self.rig.engine.poisoned().is_some();
            assert!(ok || poisoned, "{:?}", finished.result);
            if let Some((change, fua)) = self.changes.remove(&finished.ticket) {
                self.model.answered(change, ok);
                if ok && fua {
                    self.model.durable(change);
                }
            } else {
                let covered = self.flushes.remove(&finished.ticket);
                let covered = covered.expect("no request is answered twice");
                if ok {
                    self.model.flushed(&covered);
                }
            }
        }
        for crash in [Crash::Subset(0), Crash::Torn(rng.next_u64())] {
            let left = self.rig.io.inner().crash(&crash);
            self.judge(&mut Rig::open(left, &self.files), Model::is_legal);
        }
        !(self.changes.is_empty() && self.flushes.is_empty())
    }

    fn judge<I: block::BlockIo>(&self, rig: &mut Rig<I>, rule: fn(&Model, u64, u64) -> bool) {
        for first in [0, 4090, 8186] {
            let bytes = rig.read(first * SECTOR, 16 * SECTOR).expect("it reads");
            for (sector, bytes) in (first..).zip(bytes.chunks(SECTOR as usize)) {
                let value = value_of(bytes).expect("no mixture");
                let known = self.model.describe(sector);
                assert!(
                    rule(&self.model, sector, value),
                    "{sector} is {value}: {known}"
                );
            }
        }
    }
}

#[test]
fn whichever_operation_fails_a_pausing_disk_answers_everything_well_in_the_end() {
    let (mut paused, mut poisoned) = (0, 0);
    for kind in [FaultKind::NoSpace, FaultKind::Io, FaultKind::Half] {
        for nth in 0..30 {
            let times = 1 + nth % 4;
            let fault = Fault {
                target: Target::Any,
                nth,
                times,
                kind,
            };
            let mut rng = Rng::new(nth);
            let mut world = World::new(Order::Random(Rng::new(nth)), fault);
            for _ in 0..12 {
                world.submit(&mut rng);
            }
            let mut now_us = 0;
            while world.step(&mut rng) {
                let engine = &mut world.rig.engine;
                if engine.paused().is_some() && world.rig.io.inner().volatile() < 40 {
                    paused += 1;
                    if rng.one_in(2) {
                        engine.resume();
                    } else if let Some(at_us) = engine.wake_at_us() {
                        now_us = at_us.max(now_us);
                        engine.set_now(now_us);
                    }
                }
            }
            world.rig.io.set_fault(None);
            if world.rig.engine.poisoned().is_some() {
                poisoned += 1;
                continue;
            }
            let files = world.files;
            let mut rig = std::mem::replace(&mut world.rig, super::pause::rig(Order::Fifo).0);
            world.judge(&mut rig, Model::is_current);
            world.judge(&mut Rig::open(rig.close(), &files), Model::is_current);
        }
    }
    println!("{paused} turns paused, {poisoned} runs poisoned");
    assert!(paused > 30 && poisoned > 3, "{paused}, {poisoned}");
}

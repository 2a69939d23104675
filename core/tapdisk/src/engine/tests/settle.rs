//! What is answered while changes are settled is there for the next process.

use super::rig::{BLOCK, Rig, SECTOR, ram_with_dynamic};
use crate::engine::Request;
use block::{BlockIo, Buffer, FileId, RamDisk, Rng, Wait};
use datapath::protocol::Format;
use std::collections::BTreeMap;

fn write(offset: u64, byte: u8) -> Request {
    Request::Write {
        offset,
        data: Buffer::copy_of(&[byte; SECTOR as usize]),
        fua: false,
    }
}

fn rig() -> (Rig<RamDisk>, [(FileId, Format); 1]) {
    let (ram, files) = ram_with_dynamic(64 * BLOCK);
    let mut rig = Rig::open(ram, &files);
    rig.flush().expect("what was before is durable");
    rig.engine.set_settling(true);
    (rig, files)
}

/// Kills the process: what it submitted happens, nobody hears of it, and another opens the disk.
fn killed(rig: Rig<RamDisk>, files: &[(FileId, Format)]) -> Rig<RamDisk> {
    let mut io = rig.io;
    while io.in_flight() > 0 {
        io.poll(Wait::Forever, &mut Vec::new())
            .expect("the carrier");
    }
    Rig::open(io, files)
}

#[test]
fn whatever_was_answered_is_there_after_a_kill_at_any_moment() {
    let mut checked = 0;
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let (mut rig, files) = rig();
        // By ticket: where, and what the sector holds once it is answered.
        let mut asked = BTreeMap::new();
        for number in 0..1 + rng.below(30) {
            // No sector twice, so that there is no order to know of.
            let offset = rng.below(4) * BLOCK + number * SECTOR;
            let byte = 1 + rng.below(255) as u8;
            let zero = rng.one_in(5);
            let request = match zero {
                true => Request::WriteZeroes {
                    offset,
                    len_bytes: SECTOR,
                    may_trim: true,
                    fua: false,
                },
                false => write(offset, byte),
            };
            let ticket = rig.submit(request);
            asked.insert(ticket, (offset, if zero { 0 } else { byte }));
            for _ in 0..rng.below(4) {
                rig.step();
            }
        }
        for _ in 0..rng.below(12) {
            rig.step();
        }
        let answered: Vec<_> = rig
            .finished
            .drain(..)
            .map(|f| (f.ticket, f.result))
            .collect();
        let mut next = killed(rig, &files);
        for (ticket, result) in answered {
            result.expect("nothing fails here");
            let (offset, byte) = asked[&ticket];
            assert_eq!(
                next.read(offset, SECTOR).expect("it reads"),
                [byte; SECTOR as usize],
                "seed {seed}, byte {offset}"
            );
            checked += 1;
        }
    }
    assert!(checked > 200, "only {checked} answers before a kill");
}

#[test]
fn without_settling_an_answer_may_be_gone_after_a_kill() {
    let (mut rig, files) = rig();
    rig.engine.set_settling(false);
    rig.submit(write(0, 7));
    while rig.finished.is_empty() && rig.step() {}
    assert_eq!(rig.finished.len(), 1);
    let mut next = killed(rig, &files);
    assert_eq!(next.read(0, 512).expect("it reads"), [0; 512]);
}

#[test]
fn a_sector_that_was_written_before_waits_for_nothing() {
    let (mut rig, _) = rig();
    rig.submit(write(0, 7));
    while rig.step() {}
    let before = rig.engine.stats().barriers;
    assert!(before > 0);
    rig.submit(write(0, 8));
    while rig.step() {}
    assert_eq!(rig.finished.len(), 2);
    assert_eq!(rig.engine.stats().barriers, before);
}

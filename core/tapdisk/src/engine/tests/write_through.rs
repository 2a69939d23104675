//! Without a flush from the front end: what is answered is durable, and many share the barriers.

use super::rig::{BLOCK, Rig, SECTOR, ram_with_dynamic};
use crate::engine::Request;
use block::{Buffer, RamDisk};

fn write(offset: u64) -> Request {
    Request::Write {
        offset,
        data: Buffer::copy_of(&[7; 512]),
        fua: false,
    }
}

fn rig() -> Rig<RamDisk> {
    let (ram, files) = ram_with_dynamic(64 * BLOCK);
    let mut rig = Rig::open(ram, &files);
    rig.flush().expect("what was before is durable");
    rig.engine.set_write_through(true);
    rig
}

#[test]
fn changes_that_come_together_share_two_barriers() {
    let mut rig = rig();
    let before = rig.engine.stats();
    for block in 0..32 {
        rig.submit(write(block * BLOCK));
    }
    rig.submit(Request::Trim {
        offset: 40 * BLOCK,
        len_bytes: SECTOR,
        fua: false,
    });
    while rig.step() {}
    let after = rig.engine.stats();
    assert_eq!(rig.finished.len(), 33);
    assert!(rig.finished.iter().all(|finished| finished.result.is_ok()));
    // Two for the table of 32 new blocks; room for them is not paid for by barriers each.
    let barriers = after.barriers - before.barriers;
    assert!(barriers <= 4, "{barriers} barriers for 32 writes");
    assert!(after.flushes_merged - before.flushes_merged >= 31);
}

#[test]
fn one_barrier_is_enough_where_no_metadata_changes() {
    let mut rig = rig();
    for at in 0..16 {
        rig.submit(write(at * SECTOR));
    }
    while rig.step() {}
    let before = rig.engine.stats();
    for at in 0..16 {
        rig.submit(write(at * SECTOR));
    }
    while rig.step() {}
    assert_eq!(rig.engine.stats().barriers - before.barriers, 1);
}

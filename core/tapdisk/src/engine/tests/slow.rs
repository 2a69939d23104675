//! F15: a disk with a clock, on which every operation takes a thousand ticks. It is slower and nothing
//! else: the same operations, the same content, and another disk beside it does not wait.

use super::rig::{BLOCK, Peek, Rig, ram_with_dynamic};
use crate::engine::{Request, Ticket};
use block::{BlockIo, Buffer, Completion, Error, FileId, Op, RamDisk, SparseBytes, Wait};
use std::collections::VecDeque;

/// Time goes on by one tick with each poll.
struct Slow {
    inner: RamDisk,
    ticks: u64,
    now: u64,
    late: VecDeque<(u64, Completion)>,
    operations: u64,
}

impl Slow {
    fn new(inner: RamDisk, ticks: u64) -> Self {
        let late = VecDeque::new();
        Self {
            inner,
            ticks,
            now: 0,
            late,
            operations: 0,
        }
    }
}

impl BlockIo for Slow {
    fn submit(&mut self, op: Op) {
        self.operations += 1;
        self.inner.submit(op);
    }

    fn poll(&mut self, _wait: Wait, done: &mut Vec<Completion>) -> std::io::Result<()> {
        let mut fresh = Vec::new();
        self.inner.poll(Wait::No, &mut fresh)?;
        let due = self.now + self.ticks;
        self.late
            .extend(fresh.into_iter().map(|completion| (due, completion)));
        self.now += 1;
        while self.late.front().is_some_and(|(due, _)| *due <= self.now) {
            done.extend(self.late.pop_front().map(|(_, completion)| completion));
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.late.len()
    }

    fn size_bytes(&mut self, file: FileId) -> Result<u64, Error> {
        self.inner.size_bytes(file)
    }
}

impl Peek for Slow {
    fn peek(&self, file: FileId) -> &SparseBytes {
        self.inner.peek(file)
    }
}

/// Fresh blocks, old ones, zeros and flushes, many at once.
fn submit_all(rig: &mut Rig<Slow>) -> Vec<Ticket> {
    let write = |offset, fill: u8, len| Request::Write {
        offset,
        data: Buffer::copy_of(&vec![fill; len]),
        fua: fill == 3,
    };
    let requests = [
        write(0, 1, 4096),
        write(BLOCK, 2, 512),
        write(3 * BLOCK - 1024, 3, 2048),
        Request::Flush,
        write(4096, 4, 8192),
        Request::WriteZeroes {
            offset: 512,
            len_bytes: 1024,
            may_trim: true,
            fua: false,
        },
        Request::Flush,
        Request::Read {
            offset: BLOCK,
            len_bytes: 1024,
        },
    ];
    requests
        .into_iter()
        .map(|request| rig.submit(request))
        .collect()
}

fn run(ticks: u64) -> (u64, u64, Vec<u8>) {
    let (ram, files) = ram_with_dynamic(4 * BLOCK);
    let mut rig = Rig::open(Slow::new(ram, ticks), &files);
    for ticket in submit_all(&mut rig) {
        rig.wait(ticket).expect("a slow disk works");
    }
    let (now, operations) = (rig.io.now, rig.io.operations);
    let slow = rig.close();
    (now, operations, slow.peek(files[0].0).to_vec())
}

#[test]
fn a_disk_a_thousand_times_slower_gives_the_same_by_the_same_operations() {
    let (fast_ticks, fast_operations, fast) = run(1);
    let (slow_ticks, slow_operations, slow) = run(1000);
    assert!(slow == fast, "the files differ");
    assert_eq!(
        slow_operations, fast_operations,
        "nothing is tried again for being late"
    );
    assert!(
        slow_ticks > 500 * fast_ticks,
        "{slow_ticks} ticks, {fast_ticks} if fast"
    );
}

#[test]
fn a_disk_beside_a_slow_one_does_not_wait_for_it() {
    let (ram, files) = ram_with_dynamic(4 * BLOCK);
    let mut slow = Rig::open(Slow::new(ram, 1_000_000), &files);
    let (ram, files) = ram_with_dynamic(4 * BLOCK);
    let mut fast = Rig::open(Slow::new(ram, 1), &files);
    let waiting = submit_all(&mut slow);
    let tickets = submit_all(&mut fast);
    let mut turns = 0;
    while !tickets
        .iter()
        .all(|ticket| fast.finished.iter().any(|f| f.ticket == *ticket))
    {
        slow.step();
        fast.step();
        turns += 1;
        assert!(turns < 1000, "the fast disk is held up");
    }
    // What needs no operation is answered, the first write is not.
    let written = waiting.first().expect("a write");
    assert!(slow.finished.iter().all(|f| f.ticket != *written));
    assert!(slow.engine.in_flight() > 0);
}

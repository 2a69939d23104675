//! What requests come to.

use super::*;
use vhost_driver::{Ask, Status, feature};

fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut rng = block::Rng::new(seed);
    (0..bytes).map(|_| rng.next_u64() as u8).collect()
}

#[test]
fn what_is_written_is_read_back_whatever_was_negotiated() {
    for without in [
        0,
        feature::INDIRECT_DESC,
        feature::EVENT_IDX,
        feature::INDIRECT_DESC | feature::EVENT_IDX | feature::VERSION_1,
    ] {
        let (back, mut front) = BackEnd::with(Options {
            without,
            ..Options::default()
        });
        let data = pattern(without, 12 << 10);
        assert_eq!(front.write(7, &data).unwrap(), Status::Ok);
        assert_eq!(front.flush().unwrap(), Status::Ok);
        assert!(front.read(7, 12 << 10).unwrap() == data, "{without:#x}");
        assert_eq!(front.read(6, 512).unwrap(), [0; 512]);
        assert!(back.disk.lock().bytes[7 * 512..][..data.len()] == data);
        assert_eq!(
            back.log(),
            [("write", 7), ("flush", 0), ("read", 7), ("read", 6)]
        );
    }
}

#[test]
fn a_full_queue_of_requests_on_every_queue_is_answered_once_each() {
    let (back, mut front) = BackEnd::with(Options {
        queues: 4,
        ..Options::default()
    });
    let rounds = 20;
    for round in 0..rounds {
        for (index, queue) in front.queues.iter_mut().enumerate() {
            while let Some(slot) = queue.slot() {
                let sector = (index * 500 + usize::from(slot)) as u64;
                queue.fill(slot, &[round as u8 + 1; 512]);
                let ask = match round % 2 {
                    0 => Ask::Write { sector, bytes: 512 },
                    _ => Ask::Read { sector, bytes: 512 },
                };
                queue.put(slot, ask);
            }
            queue.tell();
        }
        for queue in &mut front.queues {
            let mut done = Vec::new();
            while done.len() < 64 {
                assert!(queue.wait(&mut done, 20_000).unwrap());
            }
            assert!(done.iter().all(|d| d.status == Status::Ok));
            let mut slots: Vec<u16> = done.iter().map(|d| d.slot).collect();
            slots.sort_unstable();
            assert_eq!(slots, (0..64).collect::<Vec<u16>>());
            if round % 2 == 1 {
                assert_eq!(queue.data(5, 512), [round as u8; 512]);
            }
        }
    }
    assert_eq!(back.log().len(), 4 * 64 * rounds);
    let kicks: u64 = front.queues.iter().map(|queue| queue.kicks()).sum();
    assert!(kicks <= 4 * rounds as u64, "{kicks} kicks");
}

#[test]
fn discards_and_zeroes_reach_the_disk_as_what_they_are() {
    let (back, mut front) = BackEnd::with(Options::default());
    front.write(0, &[7; 4096]).unwrap();
    let mut one = |ask| front.one(ask, &[]).unwrap().0.status;
    let zeroes = |unmap| Ask::WriteZeroes {
        sector: 2,
        sectors: 3,
        unmap,
    };
    assert_eq!(one(zeroes(false)), Status::Ok);
    assert_eq!(one(zeroes(true)), Status::Ok);
    let discard = Ask::Discard {
        sector: 5,
        sectors: 1,
    };
    assert_eq!(one(discard), Status::Ok);
    assert_eq!(
        back.log()[1..],
        [("zero", 2), ("zero or trim", 2), ("trim", 5)]
    );
    let mut expected = [7; 4096];
    expected[1024..3072].fill(0);
    assert_eq!(front.read(0, 4096).unwrap(), expected);
}

#[test]
fn the_serial_number_is_the_disks() {
    let (_back, mut front) = BackEnd::with(Options::default());
    let (done, data) = front.one(Ask::Serial, &[]).unwrap();
    assert_eq!((done.status, done.written), (Status::Ok, 1));
    assert!(data.is_empty());
    assert_eq!(front.queues[0].data(done.slot, 20), export().serial);
}

#[test]
fn requests_that_cannot_be_are_errors_and_touch_nothing() {
    let (back, mut front) = BackEnd::with(Options::default());
    let last = DISK_BYTES as u64 / 512;
    let odd = |kind, sector, out, back| Ask::Odd {
        kind,
        sector,
        out,
        back,
    };
    let (io, unknown) = (Status::IoError, Status::Unsupported);
    for (ask, expected) in [
        // Past the end, over the end, around the end of numbers.
        (odd(0, last, 0, 512), io),
        (odd(0, last - 1, 0, 1024), io),
        (odd(1, last, 512, 0), io),
        (odd(1, u64::MAX, 512, 0), io),
        (odd(0, u64::MAX / 512 + 1, 0, 512), io),
        // Not whole sectors, nothing, data on the wrong side.
        (odd(0, 0, 0, 511), io),
        (odd(1, 0, 513, 0), io),
        (odd(0, 0, 0, 0), io),
        (odd(1, 0, 0, 0), io),
        (odd(1, 0, 0, 512), io),
        (odd(0, 0, 512, 0), io),
        // Too little room for the serial number; ranges of other sizes, empty, too long, outside.
        (odd(8, 0, 0, 19), io),
        (odd(11, 0, 15, 0), io),
        (odd(11, 0, 32, 0), io),
        (odd(11, 0, 0, 16), io),
        (
            Ask::Discard {
                sector: 0,
                sectors: 0,
            },
            io,
        ),
        (
            Ask::Discard {
                sector: 0,
                sectors: u32::MAX,
            },
            io,
        ),
        (
            Ask::WriteZeroes {
                sector: last,
                sectors: 1,
                unmap: false,
            },
            io,
        ),
        // Secure erase, lifetime, nothing known.
        (odd(14, 0, 16, 0), unknown),
        (odd(10, 0, 0, 512), unknown),
        (odd(u32::MAX, 0, 512, 512), unknown),
    ] {
        let (done, _) = front.one(ask, &[0xff; 64]).unwrap();
        assert_eq!(done.status, expected, "{ask:?}");
        assert_eq!(done.written, 1, "{ask:?}");
    }
    // Reserved flags, and a discard that wants what only zeroes can.
    for (kind, flags) in [(11, 1_u32), (11, 2), (13, 2), (13, u32::MAX)] {
        let mut range = 0_u64.to_le_bytes().to_vec();
        range.extend(1_u32.to_le_bytes());
        range.extend(flags.to_le_bytes());
        let (done, _) = front.one(odd(kind, 0, 16, 0), &range).unwrap();
        assert_eq!(done.status, unknown, "{kind} with flags {flags}");
    }
    assert!(back.log().is_empty(), "{:?}", back.log());
    assert_eq!(front.write(0, &[1; 512]).unwrap(), Status::Ok);
}

#[test]
fn a_read_only_disk_says_so_and_takes_no_change() {
    let export = Export {
        read_only: true,
        ..export()
    };
    let (back, socket) = BackEnd::start(export, &Disk::new());
    let mut front = FrontEnd::on(socket, Options::default()).unwrap();
    assert_ne!(front.features() & feature::RO, 0);
    assert_eq!(
        front.features() & (feature::DISCARD | feature::WRITE_ZEROES),
        0
    );
    assert_eq!(front.write(0, &[1; 512]).unwrap(), Status::IoError);
    let discard = Ask::Discard {
        sector: 0,
        sectors: 1,
    };
    let (done, _) = front.one(discard, &[]).unwrap();
    assert_eq!(done.status, Status::Unsupported);
    assert_eq!(front.read(0, 512).unwrap(), [0; 512]);
    assert_eq!(back.log(), [("read", 0)]);
}

#[test]
fn a_guest_that_does_not_flush_has_every_write_made_durable() {
    let (back, mut front) = BackEnd::with(Options {
        without: feature::FLUSH | feature::CONFIG_WCE,
        ..Options::default()
    });
    front.write(3, &[1; 512]).unwrap();
    assert_eq!(back.log(), [("write fua", 3)]);
}

//! F72: front ends and guests that lie about memory, queues or the inflight region.

use super::super::{Chain, Memory, Queue, Receiver};
use super::*;
use std::io::Write;
use std::sync::atomic::AtomicU16;
use vhost_driver::{Guest, Queue as Driver, Status, feature, message, number};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What a guest does to its first queue, with the offset of a free slot.
type Harm = fn(&Guest, &mut Driver, u64);

/// Puts descriptors at the front of the table, and makes the first of them available.
fn chain(queue: &mut Driver, descriptors: &[(u64, u32, u16, u16)]) {
    for (index, (at, len, flags, next)) in (0..).zip(descriptors) {
        queue.descriptor(queue.layout().table, index, *at, *len, *flags, *next);
    }
    queue.push(0);
}

/// As [`chain`], by way of an indirect table.
fn indirect(queue: &mut Driver, at: u64, descriptors: &[(u64, u32, u16, u16)]) {
    for (index, (to, len, flags, next)) in (0..).zip(descriptors) {
        queue.descriptor(at, index, *to, *len, *flags, *next);
    }
    let len = descriptors.len() as u32 * 16;
    chain(queue, &[(at, len, INDIRECT, 0)]);
}

#[test]
fn a_queue_that_makes_no_sense_is_stopped_and_reported_and_others_go_on() {
    let harms: &[(&str, Harm)] = &[
        ("a head that is no descriptor", |_, q, _| q.push(64)),
        ("more entries than the queue has", |guest, q, _| {
            let index = q.layout().available + 2;
            guest.store::<AtomicU16>(index, 65, Ordering::SeqCst);
        }),
        ("a circle", |_, q, at| {
            chain(q, &[(at, 16, NEXT, 1), (at, 16, NEXT, 0)]);
        }),
        ("a next that is no descriptor", |_, q, at| {
            chain(q, &[(at, 16, NEXT, 64)]);
        }),
        ("readable behind writable", |_, q, at| {
            chain(
                q,
                &[(at, 16, NEXT, 1), (at, 16, NEXT | WRITE, 2), (at, 16, 0, 0)],
            );
        }),
        ("no header", |_, q, at| chain(q, &[(at, 1, WRITE, 0)])),
        ("half a header", |_, q, at| {
            chain(q, &[(at, 15, NEXT, 1), (at, 1, WRITE, 0)]);
        }),
        ("no status", |_, q, at| chain(q, &[(at, 16, 0, 0)])),
        ("an empty status", |_, q, at| {
            chain(q, &[(at, 16, NEXT, 1), (at, 0, WRITE, 0)]);
        }),
        ("a header in no memory", |_, q, at| {
            chain(q, &[(1 << 40, 16, NEXT, 1), (at, 1, WRITE, 0)]);
        }),
        ("a header half in memory", |guest, q, at| {
            let end = guest.len_bytes();
            chain(q, &[(end - 8, 16, NEXT, 1), (at, 1, WRITE, 0)]);
        }),
        ("a status in no memory", |_, q, at| {
            chain(q, &[(at, 16, NEXT, 1), (1 << 40, 1, WRITE, 0)]);
        }),
        ("a status past the end of addresses", |_, q, at| {
            let last = u64::MAX - Guest::ADDRESS;
            chain(q, &[(at, 16, NEXT, 1), (last, u32::MAX, WRITE, 0)]);
        }),
        ("a table in no memory", |_, q, _| {
            chain(q, &[(1 << 40, 32, INDIRECT, 0)])
        }),
        ("a table without entries", |_, q, at| {
            chain(q, &[(at, 0, INDIRECT, 0)])
        }),
        ("a table of an odd length", |_, q, at| {
            chain(q, &[(at, 17, INDIRECT, 0)])
        }),
        ("a table without end", |_, q, at| {
            chain(q, &[(at, !15, INDIRECT, 0)]);
        }),
        ("a table and a next", |_, q, at| {
            chain(q, &[(at, 32, INDIRECT | NEXT, 1), (at, 1, WRITE, 0)]);
        }),
        ("a table in a table", |_, q, at| {
            indirect(q, at + 64, &[(at, 32, INDIRECT, 0)]);
        }),
        ("a circle in a table", |_, q, at| {
            indirect(q, at + 64, &[(at, 16, NEXT, 1), (at, 16, NEXT, 0)]);
        }),
        ("a next outside of its table", |_, q, at| {
            indirect(q, at + 64, &[(at, 16, NEXT, 2), (at, 1, WRITE, 0)]);
        }),
    ];
    for (what, harm) in harms {
        let (back, mut front) = BackEnd::with(Options {
            queues: 2,
            ..Options::default()
        });
        let guest = front.guest().clone();
        let queue = &mut front.queues[0];
        let at = queue.layout().header_of(0);
        harm(&guest, queue, at);
        queue.tell();
        queue.kick();
        let mut done = Vec::new();
        assert!(
            queue.wait(&mut done, 20_000).unwrap(),
            "{what}: nothing happens"
        );
        assert!(done.is_empty() && queue.is_broken(), "{what}: {done:?}");
        // What comes after it is not looked at; the other queue is served.
        queue.kick();
        front.queues.swap(0, 1);
        assert_eq!(front.write(0, &[1; 512]).unwrap(), Status::Ok, "{what}");
        assert_eq!(back.log(), [("write", 0)], "{what}");
    }
}

#[test]
fn a_broken_queue_works_again_once_it_is_set_up_anew() {
    let (_back, mut front) = BackEnd::with(Options::default());
    front.write(0, &[1; 512]).unwrap();
    let queue = &mut front.queues[0];
    queue.push(64);
    queue.tell();
    assert!(queue.wait(&mut Vec::new(), 20_000).unwrap());
    assert!(queue.is_broken());
    assert_eq!(front.stop_queue(0).unwrap(), 1);
    // What the guest does when it resets its driver.
    let zeroes = vec![0; front.queues[0].layout().end() as usize];
    front.guest().write(0, &zeroes);
    front.queues[0] = Driver::new(front.guest(), *front.queues[0].layout()).unwrap();
    let done = front.connection().ask_done(number::RESET_DEVICE, &[], &[]);
    assert!(done.unwrap());
    front.forget_inflight().unwrap();
    front.start_queue(0).unwrap();
    assert_eq!(front.read(0, 512).unwrap(), [1; 512]);
}

#[test]
fn data_where_no_memory_is_fails_alone() {
    let (back, mut front) = BackEnd::with(Options {
        without: feature::INDIRECT_DESC,
        ..Options::default()
    });
    let edge = front.guest().len_bytes() - 256;
    for (kind, flags, at) in [
        (0_u32, WRITE, 1 << 40),
        (1, 0, 1 << 40),
        (0, WRITE, edge),
        (1, 0, edge),
        (1, 0, u64::MAX - Guest::ADDRESS),
    ] {
        let guest = front.guest().clone();
        let queue = &mut front.queues[0];
        let slot = queue.slot().unwrap();
        let header = queue.layout().header_of(slot);
        guest.write(header, &u64::from(kind).to_le_bytes());
        let (table, first) = (queue.layout().table, slot * 3);
        queue.descriptor(table, first, header, 16, NEXT, first + 1);
        queue.descriptor(table, first + 1, at, 512, NEXT | flags, first + 2);
        queue.descriptor(table, first + 2, header + 16, 1, WRITE, 0);
        queue.push(first);
        queue.tell();
        let mut done = Vec::new();
        assert!(queue.wait(&mut done, 20_000).unwrap());
        assert_eq!(done[0].status, Status::IoError, "{kind} at {at:#x}");
    }
    assert!(
        back.log().iter().all(|(what, _)| *what == "read"),
        "{:?}",
        back.log()
    );
    assert_eq!(front.write(0, &[1; 512]).unwrap(), Status::Ok);
}

#[test]
fn half_a_message_holds_up_nothing() {
    let (_back, mut front) = BackEnd::with(Options::default());
    let whole = message(number::GET_QUEUE_NUM, 0, &[]);
    let mut socket = front.connection().socket().try_clone().unwrap();
    socket.write_all(&whole[..5]).unwrap();
    for sector in 0..10 {
        assert_eq!(front.write(sector, &[1; 512]).unwrap(), Status::Ok);
    }
    socket.write_all(&whole[5..]).unwrap();
    let (reply, _) = front.connection().reply(number::GET_QUEUE_NUM).unwrap();
    assert_eq!(reply, u64::from(QUEUES_MAX).to_le_bytes());
}

#[test]
fn messages_that_make_no_sense_end_the_connection() {
    let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let ok = message(number::SET_OWNER, 0, &[]);
    let mut other_version = ok.clone();
    other_version[4] = 2;
    let mut endless = ok.clone();
    endless[8..12].fill(0xff);
    for (what, bytes, fds) in [
        ("another version", other_version, 0),
        ("a payload without end", endless, 0),
        ("a reply", message(number::SET_OWNER, 1 << 2, &[]), 0),
        ("an unknown message", message(77, 0, &[]), 0),
        ("a payload too many", message(number::SET_OWNER, 0, &[0]), 0),
        (
            "a payload too few",
            message(number::SET_FEATURES, 0, &[0; 7]),
            0,
        ),
        ("a descriptor too many", ok.clone(), 1),
        ("descriptors too many", ok, 9),
        (
            "a kick without descriptor",
            message(number::SET_VRING_KICK, 0, &[0; 8]),
            0,
        ),
        (
            "a queue to be polled",
            message(number::SET_VRING_KICK, 0, &256_u64.to_le_bytes()),
            0,
        ),
        (
            "a queue without rings",
            message(number::SET_VRING_KICK, 0, &1_u64.to_le_bytes()),
            1,
        ),
        (
            "regions without descriptors",
            message(number::SET_MEM_TABLE, 0, &{
                let mut table = 1_u64.to_le_bytes().to_vec();
                table.extend([0; 32]);
                table
            }),
            0,
        ),
        (
            "regions without end",
            message(number::SET_MEM_TABLE, 0, &u64::MAX.to_le_bytes()),
            0,
        ),
        (
            "no such queue",
            message(number::GET_VRING_BASE, 0, &[0xff; 8]),
            0,
        ),
    ] {
        let (back, front) = BackEnd::with(Options::default());
        let fds = vec![fd.as_fd(); fds];
        front.connection().send(&bytes, &fds).unwrap();
        let ended = back.ended();
        assert!(ended.is_err(), "{what}");
        // The front end sees it: there is nobody at the other end.
        assert!(front.config(8).is_err(), "{what}");
    }
}

#[test]
fn memory_that_is_not_there_is_refused() {
    let (_back, mut front) = BackEnd::with(Options::default());
    let file = Guest::new(1 << 16, true).unwrap();
    let free = Guest::ADDRESS + front.guest().len_bytes();
    for (what, fields) in [
        ("more than its file", [0, free, (1 << 16) + 1, 0, 0]),
        ("beyond its file", [0, free, 1 << 16, 0, 4096]),
        ("beyond any file", [0, free, 1 << 16, 0, u64::MAX - 4096]),
        ("nothing", [0, free, 0, 0, 0]),
        (
            "around the end of addresses",
            [0, u64::MAX - 4096, 1 << 16, 0, 0],
        ),
        (
            "around the front end's",
            [0, free, 1 << 16, u64::MAX - 4096, 0],
        ),
        (
            "around the queue",
            [0, Guest::ADDRESS - 4096, 1 << 16, 0, 0],
        ),
    ] {
        let region = fields.map(u64::to_le_bytes).concat();
        let fds = [file.fd()];
        let done = front
            .connection()
            .ask_done(number::ADD_MEM_REG, &region, &fds);
        assert!(!done.unwrap(), "{what}");
    }
    assert_eq!(front.flush().unwrap(), Status::Ok);
}

#[test]
fn a_queue_whose_memory_is_taken_away_is_stopped() {
    let (_back, mut front) = BackEnd::with(Options::default());
    let fields = [
        0,
        Guest::ADDRESS,
        front.guest().len_bytes(),
        Guest::FRONT_ADDRESS,
        0,
    ];
    let region = fields.map(u64::to_le_bytes).concat();
    let done = front
        .connection()
        .ask_done(number::REM_MEM_REG, &region, &[]);
    assert!(done.unwrap());
    let queue = &mut front.queues[0];
    assert!(queue.wait(&mut Vec::new(), 20_000).unwrap());
    assert!(queue.is_broken());
}

#[test]
fn files_are_no_eventfds() {
    let (_back, mut front) = BackEnd::with(Options::default());
    let file = Guest::new(4096, true).unwrap();
    let numbers = [
        number::SET_VRING_KICK,
        number::SET_VRING_CALL,
        number::SET_VRING_ERR,
    ];
    for number in numbers {
        let done = front.connection().ask_done(number, &[0; 8], &[file.fd()]);
        assert!(!done.unwrap(), "{number}");
    }
    assert_eq!(front.flush().unwrap(), Status::Ok);
}

#[test]
fn inflight_regions_that_do_not_fit_are_refused() {
    let (_back, front) = BackEnd::with(Options::default());
    let connection = front.connection();
    let info = |size: u64, offset: u64, queues: u16, entries: u16| {
        let mut bytes = [size.to_le_bytes(), offset.to_le_bytes()].concat();
        bytes.extend([queues.to_le_bytes(), entries.to_le_bytes()].concat());
        bytes
    };
    let file = Guest::new(1 << 16, true).unwrap();
    for (size, offset, queues, entries) in [
        (1 << 16, 4096, 1, 64),
        (1 << 16, u64::MAX, 1, 64),
        (64, 0, 1, 64),
        (1 << 16, 0, 64, 1024),
        (1 << 16, 0, 0, 0),
        (4096, 1, 1, 64),
    ] {
        let info = info(size, offset, queues, entries);
        let fds = [file.fd()];
        let done = connection.ask_done(number::SET_INFLIGHT_FD, &info, &fds);
        assert!(!done.unwrap(), "{size} {offset} {queues} {entries}");
    }
    for (queues, entries) in [(0, 64), (1, 0), (QUEUES_MAX + 1, 64), (1, 1025)] {
        let info = info(0, 0, queues, entries);
        assert!(
            !connection
                .ask_done(number::GET_INFLIGHT_FD, &info, &[])
                .unwrap()
        );
    }
}

#[test]
fn parts_can_be_driven_on_bytes_alone() {
    let memory = Memory::of_bytes(&[0; 4096]).unwrap();
    assert!(Queue::at(&memory, 64, [0, 1024, 2048]).is_some());
    assert!(
        Queue::at(&memory, 63, [0, 1024, 2048]).is_none(),
        "no power of two"
    );
    assert!(
        Queue::at(&memory, 64, [0, 1024, 4000]).is_none(),
        "past the end"
    );
    assert!(
        Queue::at(&memory, 64, [8, 1024, 2048]).is_none(),
        "not aligned"
    );
    let mut queue = Queue::at(&memory, 64, [0, 1024, 2048]).unwrap();
    assert_eq!(queue.take(), Ok(None));
    let mut chain = Chain::default();
    assert_eq!(chain.read(&memory, &queue, 0), Ok(()));
    assert!(Receiver::default().take().unwrap().is_none());
}

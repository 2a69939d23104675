//! Negotiation, configuration, starting and stopping.

use super::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io::Read;
use vhost_driver::{Ask, Guest, Status, feature, number, protocol_feature};

fn state(queue: u32, value: u32) -> Vec<u8> {
    [queue.to_le_bytes(), value.to_le_bytes()].concat()
}

#[test]
fn the_configuration_shows_size_limits_and_queues() {
    let (_back, front) = BackEnd::with(Options::default());
    let config = front.config(60).unwrap();
    assert_eq!(config[..8], (DISK_BYTES as u64 / 512).to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    assert_eq!(config[34..36], QUEUES_MAX.to_le_bytes());
    // What is past the end of it does not exist, and the reply says so by having no bytes.
    let mut payload = [200_u32.to_le_bytes(), 57_u32.to_le_bytes(), [0; 4]].concat();
    payload.resize(12 + 57, 0);
    let (reply, _) = front
        .connection()
        .ask(number::GET_CONFIG, &payload)
        .unwrap();
    assert!(reply.is_empty());
}

#[test]
fn write_through_can_be_chosen_by_configuration() {
    let (back, mut front) = BackEnd::with(Options::default());
    let set = |value: u8| {
        let mut payload = [32_u32.to_le_bytes(), 1_u32.to_le_bytes(), [0; 4]].concat();
        payload.push(value);
        payload
    };
    let connection = front.connection();
    assert!(
        connection
            .ask_done(number::SET_CONFIG, &set(0), &[])
            .unwrap()
    );
    assert!(
        !connection
            .ask_done(number::SET_CONFIG, &set(2), &[])
            .unwrap()
    );
    front.write(0, &[1; 512]).unwrap();
    assert_eq!(front.config(33).unwrap()[32], 0);
    let connection = front.connection();
    assert!(
        connection
            .ask_done(number::SET_CONFIG, &set(1), &[])
            .unwrap()
    );
    front.write(1, &[1; 512]).unwrap();
    assert_eq!(back.log(), [("write fua", 0), ("write", 1)]);
}

#[test]
fn a_stopped_queue_says_where_it_stands_and_goes_on_from_there() {
    let (_back, mut front) = BackEnd::with(Options {
        queues: 2,
        ..Options::default()
    });
    for _ in 0..100 {
        assert_eq!(front.write(0, &[1; 512]).unwrap(), Status::Ok);
    }
    assert_eq!(front.stop_queue(0).unwrap(), 100);
    assert_eq!(front.stop_queue(1).unwrap(), 0);
    // What comes while it is stopped waits.
    let queue = &mut front.queues[0];
    let slot = queue.slot().unwrap();
    queue.put(slot, Ask::Flush);
    queue.tell();
    front.start_queue(0).unwrap();
    let mut done = Vec::new();
    assert!(front.queues[0].wait(&mut done, 20_000).unwrap());
    assert_eq!(done[0].status, Status::Ok);
    assert_eq!(front.stop_queue(0).unwrap(), 101);
}

#[test]
fn a_disabled_queue_waits_until_it_is_enabled() {
    let (back, mut front) = BackEnd::with(Options::default());
    let enable = |value| state(0, value);
    let number = number::SET_VRING_ENABLE;
    let done = front.connection().ask_done(number, &enable(0), &[]);
    assert!(done.unwrap());
    let queue = &mut front.queues[0];
    let slot = queue.slot().unwrap();
    queue.put(slot, Ask::Flush);
    queue.tell();
    queue.kick();
    // The answer to this comes after the kick was seen.
    front.config(8).unwrap();
    assert!(back.log().is_empty());
    let done = front.connection().ask_done(number, &enable(1), &[]);
    assert!(done.unwrap());
    let mut done = Vec::new();
    assert!(front.queues[0].wait(&mut done, 20_000).unwrap());
    assert_eq!(back.log(), [("flush", 0)]);
}

#[test]
fn a_new_size_is_announced_and_read() {
    let (back, mut front) = BackEnd::with(Options::default());
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let fds = [theirs.as_fd()];
    let connection = front.connection();
    assert!(
        connection
            .ask_done(number::SET_BACKEND_REQ_FD, &[], &fds)
            .unwrap()
    );
    back.resize(2 * DISK_BYTES);
    front.flush().unwrap();
    let mut message = [0; 12];
    std::fs::File::from(ours).read_exact(&mut message).unwrap();
    assert_eq!(message, *vhost_driver::message(2, 0, &[]));
    let sectors = 2 * DISK_BYTES as u64 / 512;
    assert_eq!(front.config(8).unwrap(), sectors.to_le_bytes());
    assert_eq!(front.write(sectors - 1, &[1; 512]).unwrap(), Status::Ok);
}

#[test]
fn memory_can_be_added_and_taken_back() {
    let (_back, mut front) = BackEnd::with(Options::default());
    let slots = front.connection().ask_number(number::GET_MAX_MEM_SLOTS);
    assert_eq!(slots.unwrap(), super::super::REGIONS_MAX as u64);
    let more = Guest::new(1 << 16, true).unwrap();
    let region = |address: u64| {
        let fields = [0, address, 1 << 16, 0x6000_0000_0000, 0];
        fields.map(u64::to_le_bytes).concat()
    };
    let free = Guest::ADDRESS + front.guest().len_bytes();
    let taken = Guest::ADDRESS;
    let connection = front.connection();
    let add = |region: &[u8]| {
        let fds = [more.fd()];
        connection
            .ask_done(number::ADD_MEM_REG, region, &fds)
            .unwrap()
    };
    assert!(!add(&region(taken)), "it overlaps what is there");
    assert!(add(&region(free)));
    assert!(!add(&region(free)), "it is there already");

    // A request right at the seam of two regions, in both of them.
    let layout = *front.queues[0].layout();
    let seam = front.guest().len_bytes();
    let queue = &mut front.queues[0];
    let slot = queue.slot().unwrap();
    queue.put(
        slot,
        Ask::Odd {
            kind: 1,
            sector: 9,
            out: 512,
            back: 0,
        },
    );
    let table = layout.header_of(slot) + 64;
    queue.descriptor(table, 1, seam - 256, 512, 1, 2);
    front.guest().write(seam - 256, &[5; 256]);
    more.write(0, &[6; 256]);
    let queue = &mut front.queues[0];
    queue.tell();
    let mut done = Vec::new();
    assert!(queue.wait(&mut done, 20_000).unwrap());
    assert_eq!(done[0].status, Status::Ok);
    let both = front.read(9, 512).unwrap();
    assert_eq!((both[0], both[255], both[256], both[511]), (5, 5, 6, 6));

    let connection = front.connection();
    let remove = |region: &[u8]| {
        connection
            .ask_done(number::REM_MEM_REG, region, &[])
            .unwrap()
    };
    assert!(remove(&region(free)));
    assert!(!remove(&region(free)));
    assert_eq!(front.flush().unwrap(), Status::Ok);
}

#[test]
fn reset_forgets_queues_and_a_fresh_start_follows() {
    let (_back, mut front) = BackEnd::with(Options::default());
    front.write(0, &[1; 512]).unwrap();
    let done = front.connection().ask_done(number::RESET_DEVICE, &[], &[]);
    assert!(done.unwrap());
    let enable = front
        .connection()
        .ask_done(number::SET_VRING_NUM, &state(0, 32), &[]);
    assert!(enable.unwrap(), "the queue does not run any more");
    front.forget_inflight().unwrap();
    front.start_queue(0).unwrap();
    assert_eq!(front.read(0, 512).unwrap(), [1; 512]);
}

#[test]
fn what_was_not_offered_cannot_be_chosen() {
    let (_back, front) = BackEnd::with(Options::default());
    let connection = front.connection();
    for (number, features) in [
        (number::SET_FEATURES, 1_u64 << 34),
        (number::SET_FEATURES, feature::RO),
        (number::SET_PROTOCOL_FEATURES, protocol_feature::MQ | 1 << 1),
    ] {
        let payload = features.to_le_bytes();
        assert!(!connection.ask_done(number, &payload, &[]).unwrap());
    }
    for (number, payload) in [
        (number::SET_VRING_NUM, state(99, 64)),
        (number::SET_VRING_NUM, state(1, 48)),
        (number::SET_VRING_NUM, state(1, 0)),
        (number::SET_VRING_NUM, state(1, 2048)),
        (number::SET_VRING_NUM, state(0, 64)),
        (number::SET_VRING_BASE, state(0, 1)),
        (number::SET_VRING_BASE, state(1, 1 << 16)),
    ] {
        let done = connection.ask_done(number, &payload, &[]).unwrap();
        assert!(!done, "{number} {payload:?}");
    }
}

//! Conformance of both carriers on real files, and sockets beside them.

mod again;
mod restricted;
mod streams;

use crate::{Events, Interest, PreadIo, Ring, Uring};
use block::conformance::{self, Bench};
use block::{Action, BlockIo, Buffer, FileId, Op, Payload};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Makes a carrier with one file in a temporary folder.
struct Files<F>(F);

impl<F: FnMut() -> Ring> Bench for Files<F> {
    type Io = Ring;

    fn disk_with(&mut self, content: &[u8]) -> (Ring, FileId) {
        self.on(tempfile::tempfile().expect("a temporary file"), content)
    }
}

/// The same on a file in memory.
struct InMemory<F>(F);

impl<F: FnMut() -> Ring> Bench for InMemory<F> {
    type Io = Ring;

    fn disk_with(&mut self, content: &[u8]) -> (Ring, FileId) {
        let file = tempfile::tempfile_in("/dev/shm").expect("a temporary file in memory");
        Files(&mut self.0).on(file, content)
    }
}

impl<F: FnMut() -> Ring> Files<F> {
    fn on(&mut self, mut file: std::fs::File, content: &[u8]) -> (Ring, FileId) {
        file.write_all(content).expect("its content");
        let mut ring = (self.0)();
        let id = ring.add_file(file.into());
        (ring, id)
    }
}

fn uring() -> Ring {
    Ring::Uring(Box::new(
        Uring::new().expect("io_uring is allowed where the tests run"),
    ))
}

fn pread() -> Ring {
    Ring::Pread(PreadIo::new().expect("epoll"))
}

#[test]
fn both_carriers_conform_on_files() {
    conformance::run(&mut Files(uring));
    conformance::run(&mut Files(pread));
    conformance::run(&mut InMemory(uring));
}

#[test]
fn more_operations_than_the_ring_has_entries_all_complete() {
    const OPS: usize = 3000;
    let (mut ring, file) = Files(uring).disk_with(&[7; 4096]);
    for token in 0..OPS as u64 {
        let action = Action::Read {
            offset: 0,
            buffer: Buffer::zeroed(4096),
        };
        ring.submit(Op {
            token,
            file,
            action,
        });
    }
    let mut done = Vec::new();
    while done.len() < OPS {
        ring.poll(block::Wait::Forever, &mut done).expect("poll");
    }
    for completion in &done {
        let Payload::Read(buffer) = &completion.payload else {
            panic!("a read")
        };
        assert!(completion.result.is_ok() && buffer.as_slice().iter().all(|byte| *byte == 7));
    }
}

#[test]
fn a_ring_dropped_with_operations_in_flight_waits_for_them() {
    let (mut ring, file) = Files(uring).disk_with(&[0; 1 << 20]);
    for token in 0..64 {
        let action = Action::Read {
            offset: 0,
            buffer: Buffer::zeroed(1 << 20),
        };
        ring.submit(Op {
            token,
            file,
            action,
        });
    }
    let mut done = Vec::new();
    ring.poll(block::Wait::No, &mut done).expect("poll");
    let (ours, _theirs) = UnixStream::pair().expect("a socket pair");
    ring.watch(
        1,
        ours.as_fd(),
        Interest {
            read: true,
            write: false,
        },
    )
    .expect("watch");
    ring.wait(Some(Duration::ZERO), &mut Events::default())
        .expect("wait");
    drop(ring);
}

#[test]
fn a_watched_socket_gives_one_event_and_none_after_it_is_forgotten() {
    for mut ring in [uring(), pread()] {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        let read = Interest {
            read: true,
            write: false,
        };
        let wait = |ring: &mut Ring, ms| {
            let mut events = Events::default();
            ring.wait(Some(Duration::from_millis(ms)), &mut events)
                .expect("wait");
            assert!(events.done.is_empty());
            events.ready
        };
        ring.watch(9, ours.as_fd(), read).expect("watch");
        assert_eq!(wait(&mut ring, 0), []);
        theirs.write_all(b"x").expect("send");
        let ready = wait(&mut ring, 5000);
        assert_eq!(ready.len(), 1, "{ring:?}");
        assert_eq!((ready[0].token, ready[0].interest.read), (9, true));
        assert_eq!(wait(&mut ring, 0), [], "an event disarms");
        (&ours).read_exact(&mut [0]).expect("receive");
        ring.watch(10, ours.as_fd(), read).expect("watch");
        assert_eq!(wait(&mut ring, 0), []);
        ring.unwatch(10);
        theirs.write_all(b"y").expect("send");
        assert_eq!(wait(&mut ring, 20), [], "forgotten");
        ring.watch(
            11,
            ours.as_fd(),
            Interest {
                read: true,
                write: true,
            },
        )
        .expect("watch");
        let both = wait(&mut ring, 5000);
        assert_eq!(
            both[0].interest,
            Interest {
                read: true,
                write: true
            }
        );
    }
}

#[test]
fn a_file_that_was_removed_is_not_found() {
    for make in [uring as fn() -> Ring, pread] {
        let (mut ring, file) = Files(make).disk_with(&[1; 512]);
        ring.remove_file(file);
        let result = ring.run(
            Op {
                token: 1,
                file,
                action: Action::Fdatasync,
            },
            &mut Vec::new(),
        );
        assert_eq!(
            result.expect_err("removed").kind,
            block::ErrorKind::NoSuchFile
        );
    }
}

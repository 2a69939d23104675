//! Calls that are to be tried again (F13). An eventfd that does not block is a file whose reads end
//! with EAGAIN as long as nothing was put into it, and are short.

use super::uring;
use crate::Ring;
use crate::inline::{read_all, write_all};
use block::{Action, BlockIo, Buffer, Completion, Op, Payload, Wait};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

const TOKEN: u64 = 7;

/// A read that can end once `fd` was written to twice.
fn begin(ring: &mut Ring) -> OwnedFd {
    let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("an eventfd");
    let file = ring.add_file(fd.try_clone().expect("a descriptor"));
    let action = Action::Read {
        offset: 0,
        buffer: Buffer::zeroed(16),
    };
    ring.submit(Op {
        token: TOKEN,
        file,
        action,
    });
    fd
}

fn put(fd: &OwnedFd, number: u64) {
    let count = rustix::io::write(fd, &number.to_ne_bytes()).expect("room for a number");
    assert_eq!(count, 8);
}

fn check(done: &[Completion]) {
    let [one] = done else { panic!("{done:?}") };
    let Payload::Read(buffer) = &one.payload else {
        panic!("a read")
    };
    assert!(one.token == TOKEN && one.result.is_ok(), "{:?}", one.result);
    let wanted = [3_u64.to_ne_bytes(), 5_u64.to_ne_bytes()].concat();
    assert_eq!(buffer.as_slice(), wanted);
}

#[test]
fn a_read_that_is_to_be_tried_again_is_carried_on_by_the_ring() {
    let mut ring = uring();
    let fd = begin(&mut ring);
    let mut done = Vec::new();
    for number in [3, 5] {
        // Each look submits it anew and takes the EAGAIN off.
        for _ in 0..20 {
            ring.poll(Wait::No, &mut done).expect("poll");
        }
        assert!(done.is_empty(), "{done:?}");
        put(&fd, number);
    }
    while done.is_empty() {
        ring.poll(Wait::Forever, &mut done).expect("poll");
    }
    check(&done);
}

/// What the calls come to, one after another; then as much as they are asked for.
fn calls(script: &[Result<usize, Errno>]) -> impl FnMut(usize) -> Result<usize, Errno> + '_ {
    let mut script = script.iter().copied();
    move |wanted| match script.next() {
        Some(result) => result.map(|count| count.min(wanted)),
        None => Ok(wanted),
    }
}

#[test]
fn calls_that_are_interrupted_or_stop_short_are_carried_on_without_the_ring() {
    for script in [
        &[
            Err(Errno::INTR),
            Err(Errno::AGAIN),
            Ok(3),
            Err(Errno::INTR),
            Ok(1),
        ][..],
        &[Ok(7), Err(Errno::AGAIN), Err(Errno::AGAIN)],
    ] {
        let (from, mut to) = (b"0123456789", [0; 10]);
        let mut next = calls(script);
        let read = read_all(100, &mut to, |rest, at| {
            let count = next(rest.len())?;
            let start = (at - 100) as usize;
            rest[..count].copy_from_slice(&from[start..start + count]);
            Ok(count)
        });
        assert_eq!((read, &to), (Ok(()), from));
        let (mut next, mut written) = (calls(script), Vec::new());
        let wrote = write_all(100, from, |rest, at| {
            let count = next(rest.len())?;
            assert_eq!(at, 100 + written.len() as u64);
            written.extend_from_slice(&rest[..count]);
            Ok(count)
        });
        assert_eq!((wrote, written.as_slice()), (Ok(()), &from[..]));
    }
    // Other errors end it.
    let mut next = calls(&[Ok(2), Err(Errno::IO)]);
    assert_eq!(
        write_all(0, b"abcd", |rest, _| next(rest.len())),
        Err(Some(Errno::IO))
    );
    let mut next = calls(&[Err(Errno::INTR), Ok(0)]);
    assert_eq!(
        read_all(0, &mut [0; 4], |rest, _| next(rest.len())),
        Err(None)
    );
}

//! Streams: the same facts for both carriers.

use super::{pread, uring};
use crate::{Body, Events, INPUT_BYTES_MAX, Piece, Ring, StreamEvent, StreamId};
use block::Buffer;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

const TOKEN: u64 = 7;

/// How long another thread may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A ring with one stream, its other end, and what was received.
struct Bench {
    ring: Ring,
    stream: StreamId,
    peer: UnixStream,
    seen: Vec<u8>,
    sent: usize,
    filled: Vec<(Buffer, usize)>,
    ended: bool,
}

impl Bench {
    fn each() -> impl Iterator<Item = Self> {
        [uring as fn() -> Ring, pread].into_iter().map(|make| {
            let (ours, peer) = UnixStream::pair().expect("a socket pair");
            peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let mut ring = make();
            let stream = ring.add_stream(TOKEN, ours.into()).expect("a stream");
            Self {
                ring,
                stream,
                peer,
                seen: Vec::new(),
                sent: 0,
                filled: Vec::new(),
                ended: false,
            }
        })
    }

    /// Waits once; input is left where it is.
    fn wait(&mut self, patience: Duration) {
        let mut events = Events::default();
        self.ring.wait(Some(patience), &mut events).expect("wait");
        for event in events.streams {
            assert_eq!(event.token(), TOKEN);
            assert!(!self.ended, "{event:?} after the end");
            match event {
                StreamEvent::Input { .. } => {}
                StreamEvent::Filled { buffer, filled, .. } => self.filled.push((buffer, filled)),
                StreamEvent::Sent { pieces, .. } => {
                    self.sent += pieces.len();
                }
                StreamEvent::Ended { .. } => self.ended = true,
            }
        }
    }

    /// Takes the input that is there, in bites of at most `bite` bytes.
    fn take(&mut self, bite: usize) {
        loop {
            let input = self.ring.input(self.stream);
            if input.is_empty() {
                return;
            }
            let count = input.len().min(bite);
            self.seen.extend_from_slice(&input[..count]);
            self.ring.consume(self.stream, count);
        }
    }

    fn until(&mut self, bite: usize, done: impl Fn(&Self) -> bool) {
        for _ in 0..100_000 {
            self.take(bite);
            if done(self) {
                return;
            }
            self.wait(PATIENCE);
        }
        panic!("it never happened: {:?}", self.ring);
    }
}

/// Bytes in which a lost or doubled one shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i % 251) as u8 ^ (i / 251 % 241) as u8)
        .collect()
}

fn pieces(bytes: &[u8], each: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (number, part) in (0..).zip(bytes.chunks(each)) {
        let (head, body) = part.split_at(part.len().min(16));
        let body = match number % 3 {
            0 => Body::Bytes(body.to_vec()),
            _ => Body::Shared(Buffer::copy_of(body).share()),
        };
        pieces.push(Piece::new(body, number).put(head));
    }
    pieces
}

#[test]
fn everything_comes_in_order_however_it_is_taken_and_then_the_end() {
    for (bite, len) in [(1 << 20, 3 << 20), (1000, 700_000), (1, 5000)] {
        for mut bench in Bench::each() {
            let bytes = pattern(len);
            let mut peer = bench.peer.try_clone().expect("a clone");
            let sender = thread::spawn(move || {
                let bytes = pattern(len);
                for part in bytes.chunks(777) {
                    peer.write_all(part).expect("send");
                }
                peer.shutdown(Shutdown::Write).expect("shutdown");
            });
            bench.until(bite, |bench| bench.ended);
            sender.join().expect("the sender");
            assert!(
                bench.seen == bytes,
                "{:?}: {len} bytes by {bite}",
                bench.ring
            );
        }
    }
}

#[test]
fn a_peer_that_floods_is_held_at_a_limit() {
    for mut bench in Bench::each() {
        bench.peer.set_nonblocking(true).expect("non-blocking");
        let bytes = pattern(1 << 16);
        let (mut offered, mut quiet) = (0, 0);
        // Nothing is taken: sooner or later the socket takes no more either.
        while quiet < 3 {
            match (&bench.peer).write(&bytes[offered % 251..]) {
                Ok(count) => (offered, quiet) = (offered + count, 0),
                Err(_) => quiet += 1,
            }
            bench.wait(Duration::from_millis(1));
            assert!(offered < INPUT_BYTES_MAX + (1 << 20), "{:?}", bench.ring);
        }
        bench.until(4096, |bench| bench.seen.len() == offered);
    }
}

#[test]
fn a_list_of_pieces_goes_out_whole_to_a_reader_that_is_slow() {
    // More parts than one call takes, and more bytes than a socket holds.
    for (len, each) in [(100, 40), (3 << 20, 1500), (4 << 20, 1 << 20)] {
        for mut bench in Bench::each() {
            let bytes = pattern(len);
            let list = pieces(&bytes, each);
            let count = list.len();
            bench.ring.send(bench.stream, list, true);
            let mut peer = bench.peer.try_clone().expect("a clone");
            let reader = thread::spawn(move || {
                let mut got = vec![0; len];
                peer.read_exact(&mut got).expect("receive");
                got
            });
            bench.until(1, |bench| bench.sent == count);
            assert!(
                reader.join().expect("the reader") == bytes,
                "{len} by {each}"
            );
        }
    }
}

#[test]
fn sends_that_do_not_wake_are_told_with_the_next_event() {
    for mut bench in Bench::each() {
        for round in 0..200 {
            let bytes = pattern(3000);
            bench.ring.send(bench.stream, pieces(&bytes, 1000), false);
            bench.wait(Duration::ZERO);
            let mut got = vec![0; bytes.len()];
            bench.peer.read_exact(&mut got).expect("receive");
            assert!(got == bytes);
            bench.peer.write_all(&[round]).expect("send");
            bench.until(1, |bench| bench.seen.len() == usize::from(round) + 1);
            assert_eq!(bench.sent, 3 * (usize::from(round) + 1));
        }
    }
}

#[test]
fn a_long_payload_is_received_into_the_buffer_that_was_lent() {
    for mut bench in Bench::each() {
        const ROUNDS: usize = 20;
        const PAYLOAD: usize = 300_000;
        let mut peer = bench.peer.try_clone().expect("a clone");
        let sender = thread::spawn(move || {
            for round in 0..ROUNDS {
                // Sometimes all at once, sometimes a byte late.
                let bytes = [&[round as u8; 28][..], &pattern(PAYLOAD)].concat();
                let (first, rest) = bytes.split_at(if round % 2 == 0 { 28 } else { 50_000 });
                peer.write_all(first).expect("send");
                peer.write_all(rest).expect("send");
            }
            peer.write_all(&[99; 10]).expect("send");
            peer.shutdown(Shutdown::Write).expect("shutdown");
        });
        for round in 0..ROUNDS {
            // Takes the header alone, as if the rest were a payload.
            let mut header = 28;
            while header > 0 {
                let count = bench.ring.input(bench.stream).len().min(header);
                bench.ring.consume(bench.stream, count);
                header -= count;
                if header > 0 {
                    bench.wait(PATIENCE);
                }
            }
            let mut buffer = Buffer::zeroed(PAYLOAD + 5);
            buffer.as_mut_slice()[..5].copy_from_slice(b"front");
            bench.ring.receive_into(bench.stream, buffer, 5);
            assert!(bench.ring.input(bench.stream).is_empty());
            while bench.filled.len() <= round {
                bench.wait(PATIENCE);
            }
            let (buffer, filled) = &bench.filled[round];
            assert_eq!(*filled, PAYLOAD + 5);
            assert_eq!(&buffer.as_slice()[..5], b"front");
            assert!(buffer.as_slice()[5..] == pattern(PAYLOAD), "round {round}");
        }
        bench.until(100, |bench| bench.ended);
        assert_eq!(bench.seen, [99; 10]);
        sender.join().expect("the sender");
    }
}

#[test]
fn a_stream_that_ends_inside_a_payload_gives_the_buffer_back_short() {
    for mut bench in Bench::each() {
        bench.peer.write_all(&[1; 100]).expect("send");
        bench.until(100, |bench| bench.seen.len() == 100);
        bench
            .ring
            .receive_into(bench.stream, Buffer::zeroed(1 << 20), 0);
        bench.peer.write_all(&[2; 5000]).expect("send");
        bench.wait(Duration::from_millis(1));
        bench.peer.shutdown(Shutdown::Both).expect("shutdown");
        bench.until(1, |bench| bench.ended);
        let (buffer, filled) = bench.filled.pop().expect("the buffer");
        assert_eq!((buffer.len(), filled), (1 << 20, 5000));
        assert!(buffer.as_slice()[..5000].iter().all(|byte| *byte == 2));
    }
}

#[test]
fn what_is_sent_to_a_peer_that_left_comes_back() {
    for mut bench in Bench::each() {
        let list = pieces(&pattern(4 << 20), 1 << 20);
        bench.ring.send(bench.stream, list, false);
        bench.wait(Duration::from_millis(1));
        bench.peer.shutdown(Shutdown::Both).expect("shutdown");
        let (_, other) = UnixStream::pair().expect("a socket pair");
        drop(std::mem::replace(&mut bench.peer, other));
        bench.until(1, |bench| bench.ended);
        assert_eq!(bench.sent, 4);
    }
}

#[test]
fn a_stream_that_was_removed_is_closed_and_silent_whatever_it_was_doing() {
    for what in 0..5 {
        for mut bench in Bench::each() {
            match what {
                0 => {}
                1 => bench.peer.write_all(&[1; 5000]).expect("send"),
                2 => bench
                    .ring
                    .send(bench.stream, pieces(&pattern(4 << 20), 4096), false),
                3 => bench
                    .ring
                    .receive_into(bench.stream, Buffer::zeroed(1 << 20), 0),
                _ => bench
                    .ring
                    .send(bench.stream, pieces(&pattern(40), 10), false),
            }
            if what != 4 {
                bench.wait(Duration::from_millis(1));
            }
            let before = (bench.sent, bench.filled.len(), bench.ended);
            bench.ring.remove_stream(bench.stream);
            assert!(bench.ring.input(bench.stream).is_empty());
            let mut rest = Vec::new();
            bench.peer.read_to_end(&mut rest).expect("the end");
            bench.wait(Duration::from_millis(10));
            assert_eq!(
                (bench.sent, bench.filled.len(), bench.ended),
                before,
                "{what}"
            );
            // Its place is free again, under another name.
            let (ours, mut peer) = UnixStream::pair().expect("a socket pair");
            let stale = bench.stream;
            bench.stream = bench.ring.add_stream(TOKEN, ours.into()).expect("a stream");
            assert_ne!(bench.stream, stale);
            bench.ring.remove_stream(stale);
            peer.write_all(b"hello").expect("send");
            bench.until(5, |bench| bench.seen == b"hello");
        }
    }
}

#[test]
fn what_was_handed_over_just_before_the_stream_is_removed_arrives() {
    for mut bench in Bench::each() {
        let bytes = pattern(10_000);
        bench.ring.send(bench.stream, pieces(&bytes, 1000), false);
        bench.ring.remove_stream(bench.stream);
        let mut got = Vec::new();
        bench.peer.read_to_end(&mut got).expect("the end");
        assert!(got == bytes);
    }
}

#[test]
fn a_ring_dropped_with_streams_in_use_closes_them() {
    for mut bench in Bench::each() {
        bench
            .ring
            .send(bench.stream, pieces(&pattern(4 << 20), 4096), false);
        bench.wait(Duration::ZERO);
        let Bench { ring, mut peer, .. } = bench;
        let reader = thread::spawn(move || peer.read_to_end(&mut Vec::new()));
        drop(ring);
        assert!(reader.join().expect("the reader").is_ok());
    }
}

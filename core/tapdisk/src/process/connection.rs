//! One NBD client: its stream and its session.

use super::reactor::{Key, Reactor, StreamEvent, StreamId};
use crate::frontend::{Answer, Buffers, Job, Slot};
use crate::nbd::{Export, Session};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long a client may take over its handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// One client.
#[derive(Debug)]
pub(super) struct Connection {
    stream: StreamId,
    session: Session,
    since: Instant,
    /// Pieces are with the ring.
    sending: bool,
    /// The session took not everything that came, for want of answers.
    held: bool,
}

impl Connection {
    /// Takes a client's socket over.
    pub(super) fn new(
        reactor: &mut Reactor,
        key: Key,
        socket: OwnedFd,
        export: Export,
    ) -> io::Result<Self> {
        Ok(Self {
            stream: reactor.add_stream(key, socket)?,
            session: Session::new(export),
            since: Instant::now(),
            sending: false,
            held: false,
        })
    }

    /// Takes in what happened on the stream, and adds the jobs that came of it.
    pub(super) fn take_event(
        &mut self,
        event: StreamEvent,
        reactor: &mut Reactor,
        buffers: &mut impl Buffers,
        jobs: &mut Vec<Job>,
    ) {
        match event {
            StreamEvent::Input { .. } => {}
            StreamEvent::Filled { buffer, filled, .. } => {
                self.session.payload_back(buffer, filled, buffers);
            }
            StreamEvent::Sent { pieces, .. } => {
                self.sending = false;
                self.session.sent(pieces, buffers);
            }
            StreamEvent::Ended { .. } => {
                self.receive(reactor, buffers, jobs);
                self.session.lost();
            }
        }
        self.receive(reactor, buffers, jobs);
    }

    /// Lets the session have what came, and adds the jobs that came of it.
    pub(super) fn receive(
        &mut self,
        reactor: &mut Reactor,
        buffers: &mut impl Buffers,
        jobs: &mut Vec<Job>,
    ) {
        self.held = loop {
            let input = reactor.input(self.stream);
            let (offered, taken) = (input.len(), self.session.receive(input, buffers));
            reactor.consume(self.stream, taken);
            if taken < offered {
                break true;
            }
            if offered == 0 {
                break false;
            }
        };
        jobs.extend(std::iter::from_fn(|| self.session.next_job()));
        if !self.held
            && let Some((buffer, filled)) = self.session.lend_payload()
        {
            reactor.receive_into(self.stream, buffer, filled);
        }
    }

    /// Sends what there is to say, in one go. To be called once a round, when all answers of the
    /// round are there.
    pub(super) fn send(&mut self, reactor: &mut Reactor) {
        if !self.sending && self.session.has_output() {
            self.sending = true;
            // Whoever waits for the end of this send alone would sleep through a quiet one.
            let wake = self.held || self.session.is_ending();
            reactor.send(self.stream, self.session.take_output(), wake);
        }
    }

    /// Closes the stream, after what is said already.
    pub(super) fn close(mut self, reactor: &mut Reactor) {
        self.send(reactor);
        reactor.remove_stream(self.stream);
    }

    /// Answers a job. A request that is larger than one job goes on with the next.
    pub(super) fn answer(&mut self, slot: Slot, answer: Answer) -> Option<Job> {
        self.session.answer(slot, answer);
        self.session.next_job()
    }

    pub(super) fn set_size(&mut self, size_bytes: u64) {
        self.session.set_size(size_bytes);
    }

    /// Takes no more requests.
    pub(super) fn end(&mut self) {
        self.session.end();
    }

    /// The client is cut off; what it has in flight still finishes.
    pub(super) fn cut_off(&mut self) {
        self.session.lost();
    }

    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        !self.session.is_greeted() && now.duration_since(self.since) > HANDSHAKE_MAX
    }

    pub(super) fn is_greeted(&self) -> bool {
        self.session.is_greeted()
    }

    pub(super) fn is_finished(&self) -> bool {
        self.session.is_finished()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::reactor::{Events, Keys};
    use block::BufferPool;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use uring::Ring;

    struct Bench {
        reactor: Reactor,
        connection: Connection,
        pool: BufferPool,
        peer: UnixStream,
    }

    /// On io_uring, and without it.
    fn each() -> [Bench; 2] {
        let pread = uring::PreadIo::new().unwrap();
        let rings = [Ring::new().unwrap(), Ring::Pread(pread)];
        rings.map(|ring| connected(Reactor::on(ring)))
    }

    fn connected(mut reactor: Reactor) -> Bench {
        let (server, peer) = UnixStream::pair().unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let export = Export {
            name: "d".to_owned(),
            size_bytes: 1 << 20,
            read_only: false,
            tls: None,
        };
        let key = Keys::default().next();
        Bench {
            connection: Connection::new(&mut reactor, key, server.into(), export).unwrap(),
            reactor,
            pool: BufferPool::new(0),
            peer,
        }
    }

    impl Bench {
        fn round(&mut self) -> Vec<Job> {
            let (mut events, mut jobs) = (Events::default(), Vec::new());
            self.connection.send(&mut self.reactor);
            let patience = Some(Duration::from_secs(20));
            self.reactor.wait(patience, &mut events).unwrap();
            for event in events.streams {
                self.connection
                    .take_event(event, &mut self.reactor, &mut self.pool, &mut jobs);
            }
            jobs
        }
    }

    #[test]
    fn a_client_that_does_not_finish_its_handshake_is_overdue_after_ten_seconds() {
        let mut bench = connected(Reactor::new().unwrap());
        let connection = &mut bench.connection;
        let start = connection.since;
        assert!(!connection.is_overdue(start + Duration::from_secs(10)));
        assert!(connection.is_overdue(start + Duration::from_millis(10_001)));
        connection.cut_off();
        assert!(connection.is_finished());
    }

    #[test]
    fn a_client_that_leaves_is_finished_and_its_last_requests_are_taken() {
        for mut bench in each() {
            // Flags, EXPORT_NAME "", a flush.
            let script = [
                &3_u32.to_be_bytes()[..],
                b"IHAVEOPT\0\0\0\x01\0\0\0\0",
                &[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 3],
                &[0; 20],
            ];
            bench.peer.write_all(&script.concat()).unwrap();
            bench.peer.shutdown(std::net::Shutdown::Write).unwrap();
            let mut jobs = Vec::new();
            while !bench.connection.session.is_ending() {
                jobs.extend(bench.round());
            }
            let slot = jobs.pop().expect("the flush").slot;
            assert!(jobs.is_empty() && !bench.connection.is_finished());
            assert!(bench.connection.answer(slot, Answer::Done).is_none());
            assert!(bench.connection.is_finished());
        }
    }
}

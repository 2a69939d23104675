//! An NBD session: handshake and requests, in pieces of any size, answered in any order. Clients that
//! keep to the protocol are judged by a reader of replies; others only by the rules for all.

use crate::guard::bounded;
use crate::input::Input;
use block::{Buffer, BufferPool};
use replies::Replies;
use tapdisk::frontend::{Answer, BlockRun, Errno, Failure, Job, Work};
use tapdisk::nbd::{Export, IN_FLIGHT_MAX, Session};
use uring::Piece;

mod replies;
mod script;

/// Size of the disk.
const SIZE: u64 = 64 << 10;

/// See the module's page.
pub fn target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let export = Export {
        name: "disk".to_owned(),
        size_bytes: if input.one_in(8) {
            input.odd(&[]) & ((1 << 40) - 512)
        } else {
            SIZE
        },
        read_only: input.one_in(4),
        tls: None,
    };
    let script = script::make(&mut input);
    let payload = script.bytes.len() as u64;
    // Staging, payload, and what reads give: in a buffer, in pieces sent here, in all that was sent.
    let limit = (512 << 10) + 3 * payload + 6 * script.read_bytes;
    bounded("a session", limit, || run(&mut input, export, &script));
}

fn run(input: &mut Input<'_>, export: Export, script: &script::Script) {
    let mut server = Server {
        disk: vec![0; SIZE as usize],
        pool: BufferPool::new(1 << 16),
        read_only: export.read_only,
        size: export.size_bytes,
        session: Session::new(export),
        waiting: Vec::new(),
        out: Vec::new(),
    };
    let mut rest = script.bytes.as_slice();
    let mut stuck = 0;
    while !rest.is_empty() && !server.session.is_ending() && stuck < 4 {
        let most = if input.is_used_up() {
            4096
        } else {
            1 + input.below(600)
        };
        let taken = server.receive(rest, most as usize, input.one_in(2));
        rest = rest.get(taken..).unwrap_or_default();
        stuck = if taken == 0 { stuck + 1 } else { 0 };
        if taken == 0 || input.one_in(2) {
            server.answer(input);
            if input.one_in(2) || taken == 0 {
                server.send();
            }
        }
    }
    let all = rest.is_empty();
    server.end(input, all);
    if script.keeps_to_protocol && all {
        Replies::new(&server.out, script, (server.size, server.read_only)).judge();
    }
}

struct Server {
    session: Session,
    pool: BufferPool,
    disk: Vec<u8>,
    size: u64,
    read_only: bool,
    waiting: Vec<Job>,
    out: Vec<u8>,
}

impl Server {
    /// Into the session, or into the buffer that it lends for a long payload.
    fn receive(&mut self, bytes: &[u8], most: usize, may_lend: bool) -> usize {
        let now = bytes.get(..most).unwrap_or(bytes);
        let lent = may_lend.then(|| self.session.lend_payload()).flatten();
        let count = if let Some((mut buffer, filled)) = lent {
            let place = buffer.as_mut_slice().get_mut(filled..).unwrap_or_default();
            let count = place.len().min(now.len());
            place[..count].copy_from_slice(&now[..count]);
            let pool = &mut self.pool;
            self.session.payload_back(buffer, filled + count, pool);
            count
        } else {
            self.session.receive(now, &mut self.pool)
        };
        self.take_jobs();
        assert!(self.session.in_flight() <= IN_FLIGHT_MAX);
        count
    }

    fn take_jobs(&mut self) {
        while let Some(job) = self.session.next_job() {
            self.check(&job);
            self.waiting.push(job);
        }
    }

    /// A job is inside the disk, aligned, and allowed.
    fn check(&self, job: &Job) {
        let (offset, length, writes) = match &job.work {
            Work::Read { offset, length } => (*offset, u64::from(*length), false),
            Work::BlockStatus { offset, length, .. } => (*offset, *length, false),
            Work::Write { offset, data, .. } => (*offset, data.len() as u64, true),
            Work::Trim { offset, length, .. } | Work::WriteZeroes { offset, length, .. } => {
                (*offset, *length, true)
            }
            Work::Flush => return,
        };
        let end = offset.checked_add(length).expect("a job does not wrap");
        assert!(
            length > 0 && end <= self.size,
            "a job of {length} bytes at {offset}"
        );
        assert!(offset.is_multiple_of(512) && length.is_multiple_of(512));
        assert!(!writes || !self.read_only);
    }

    /// Does and answers some of the jobs, in any order that keeps overlapping ones in theirs.
    fn answer(&mut self, input: &mut Input<'_>) {
        let jobs = std::mem::take(&mut self.waiting);
        let mut answers: Vec<_> = jobs
            .into_iter()
            .map(|job| (job.slot, self.perform(job.work, input)))
            .collect();
        while !answers.is_empty() {
            let at = input.below(answers.len() as u64) as usize;
            let (slot, answer) = answers.swap_remove(at);
            self.session.answer(slot, answer);
        }
    }

    fn perform(&mut self, work: Work, input: &mut Input<'_>) -> Answer {
        if input.one_in(16) {
            let message = "x".repeat(input.pick(&[0, 1, 1500]));
            return Answer::Failed(Failure {
                errno: Errno::Io,
                message,
            });
        }
        let range = |offset: u64, length: u64| {
            let end = (offset + length).min(SIZE) as usize;
            (offset.min(SIZE) as usize).min(end)..end
        };
        match work {
            Work::Read { offset, length } => {
                let mut data = Buffer::zeroed(length as usize);
                let held = &self.disk[range(offset, u64::from(length))];
                data.as_mut_slice()[..held.len()].copy_from_slice(held);
                Answer::Data(data)
            }
            Work::Write { offset, data, .. } => {
                let range = range(offset, data.len() as u64);
                let count = range.len();
                self.disk[range].copy_from_slice(&data.as_slice()[..count]);
                Answer::Done
            }
            Work::WriteZeroes { offset, length, .. } => {
                self.disk[range(offset, length)].fill(0);
                Answer::Done
            }
            Work::Flush | Work::Trim { .. } => Answer::Done,
            Work::BlockStatus { length, .. } => Answer::Status(runs(input, length)),
        }
    }

    fn send(&mut self) {
        let pieces = self.session.take_output();
        let bytes = pieces.iter().flat_map(Piece::parts).flatten();
        self.out.extend(bytes);
        self.session.sent(pieces, &mut self.pool);
        // What was held back for want of room goes on without another byte.
        self.receive(&[], 0, false);
    }

    /// The client is done or leaves: nothing stays behind.
    fn end(&mut self, input: &mut Input<'_>, all: bool) {
        while all && (!self.waiting.is_empty() || self.session.has_output()) {
            self.answer(input);
            self.send();
        }
        self.session.lost();
        self.answer(input);
        assert!(self.session.is_finished());
        assert_eq!(self.session.in_flight(), 0);
    }
}

/// Runs that cover the request, or more, or less.
fn runs(input: &mut Input<'_>, length: u64) -> Vec<BlockRun> {
    let mut runs = Vec::new();
    let mut covered = 0;
    while covered < length && runs.len() < 5 {
        let length_bytes = 512 * (1 + input.below(length / 512 + 3));
        let hole = input.one_in(2);
        runs.push(BlockRun {
            length_bytes,
            hole,
            zero: hole,
        });
        covered += length_bytes;
    }
    runs
}

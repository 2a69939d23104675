//! Byte scripts: what a client sends and exactly what comes back. The numbers are written out here
//! from the protocol's specification and share nothing with the code under test.

#[path = "../../tests/process/certificates.rs"]
mod certificates;
mod extended;
mod hostile;
mod options;
mod requests;
mod tls;

use super::*;
use crate::frontend::{Answer, BlockRun, Errno, Failure, Job, Slot, Work};
use block::{Buffer, BufferPool};
use uring::Piece;

const SIZE: u64 = 1 << 20;

/// A session with a client that sends scripts and reads what comes.
struct Wire {
    session: Session,
    pool: BufferPool,
    /// Largest piece the client's bytes come in.
    chunk: usize,
    /// Whether the client reads.
    reads: bool,
    /// Whether the next bytes may come by the buffer of a long payload.
    lends: bool,
}

impl Wire {
    fn new(read_only: bool) -> Self {
        let export = Export {
            name: "disk".to_owned(),
            size_bytes: SIZE,
            read_only,
            tls: None,
        };
        let session = Session::new(export);
        Self {
            session,
            pool: BufferPool::new(1 << 20),
            chunk: usize::MAX,
            reads: true,
            lends: false,
        }
    }

    /// After greeting, `GO`, and structured replies with `base:allocation` if wanted.
    fn greeted(read_only: bool, structured: bool) -> Self {
        Self::greeted_by(read_only, structured.then_some(8))
    }

    /// After greeting and `GO` with extended headers and `base:allocation`.
    fn extended(read_only: bool) -> Self {
        Self::greeted_by(read_only, Some(11))
    }

    fn greeted_by(read_only: bool, style: Option<u32>) -> Self {
        let mut wire = Self::new(read_only);
        let mut script = 3_u32.to_be_bytes().to_vec();
        if let Some(style) = style {
            script.extend(option(style, &[]));
            script.extend(option(10, &context_query("disk", &["base:allocation"])));
        }
        script.extend(option(7, &go("disk", &[])));
        assert_eq!(wire.send(&script), []);
        assert!(wire.session.is_greeted());
        wire.read();
        wire
    }

    /// Sends bytes as far as the session takes them; returns the jobs that came of them.
    fn send(&mut self, bytes: &[u8]) -> Vec<Done> {
        let mut jobs = Vec::new();
        assert_eq!(
            self.offer(bytes, &mut jobs),
            bytes.len(),
            "the session took not everything"
        );
        jobs
    }

    fn offer(&mut self, mut bytes: &[u8], jobs: &mut Vec<Done>) -> usize {
        let offered = bytes.len();
        while !bytes.is_empty() {
            // Every other time by the buffer of a long payload.
            self.lends = !self.lends;
            let lends = self.lends;
            let lent = lends.then(|| self.session.lend_payload()).flatten();
            let taken = if let Some((mut buffer, filled)) = lent {
                let place = &mut buffer.as_mut_slice()[filled..];
                let count = place.len().min(bytes.len()).min(self.chunk);
                place[..count].copy_from_slice(&bytes[..count]);
                let filled = filled + count;
                self.session.payload_back(buffer, filled, &mut self.pool);
                count
            } else {
                let (now, _) = bytes.split_at(bytes.len().min(self.chunk));
                self.session.receive(now, &mut self.pool)
            };
            bytes = &bytes[taken..];
            jobs.extend(std::iter::from_fn(|| self.session.next_job()).map(Done::of));
            if taken == 0 {
                break;
            }
        }
        offered - bytes.len()
    }

    /// Everything the server has to say now.
    fn read(&mut self) -> Vec<u8> {
        assert!(self.reads);
        let pieces = self.session.take_output();
        let bytes = pieces.iter().flat_map(Piece::parts).flatten().copied();
        let bytes = bytes.collect();
        self.session.sent(pieces, &mut self.pool);
        bytes
    }
}

/// A job in a form that compares.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Done {
    slot: Slot,
    what: String,
}

impl Done {
    fn of(job: Job) -> Self {
        let what = match job.work {
            Work::Write { offset, data, fua } => {
                let first = data.as_slice()[0];
                assert!(data.as_slice().iter().all(|b| *b == first), "mixed payload");
                format!("write {offset} {}x{first:02x} fua={fua}", data.len())
            }
            other => format!("{other:?}"),
        };
        Self {
            slot: job.slot,
            what,
        }
    }
}

fn whats(jobs: &[Done]) -> Vec<&str> {
    jobs.iter().map(|job| job.what.as_str()).collect()
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [
        b"IHAVEOPT",
        &number.to_be_bytes()[..],
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

fn string(text: &str) -> Vec<u8> {
    [
        &u32::try_from(text.len()).unwrap().to_be_bytes()[..],
        text.as_bytes(),
    ]
    .concat()
}

/// Data of `GO` and `INFO`.
fn go(name: &str, requests: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u16::try_from(requests.len()).unwrap().to_be_bytes());
    data.extend(requests.iter().flat_map(|r| r.to_be_bytes()));
    data
}

/// Data of the metadata context options.
fn context_query(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    data.extend(queries.iter().flat_map(|q| string(q)));
    data
}

fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    [
        &0x2560_9513_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

/// A request with an extended header.
fn wide(flags: u16, command: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    [
        &0x21e4_1c71_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

fn simple_reply(error: u32, cookie: u64) -> Vec<u8> {
    [
        &0x6744_6698_u32.to_be_bytes()[..],
        &error.to_be_bytes(),
        &cookie.to_be_bytes(),
    ]
    .concat()
}

/// A chunk with the DONE flag.
fn chunk(kind: u16, cookie: u64, body: &[u8]) -> Vec<u8> {
    flagged_chunk(1, kind, cookie, body)
}

fn flagged_chunk(flags: u16, kind: u16, cookie: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    [
        &0x668e_33ef_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &length.to_be_bytes(),
        body,
    ]
    .concat()
}

/// A chunk with an extended header and the DONE flag.
fn wide_chunk(kind: u16, cookie: u64, offset: u64, body: &[u8]) -> Vec<u8> {
    [
        &0x6e8a_278c_u32.to_be_bytes()[..],
        &1_u16.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &(body.len() as u64).to_be_bytes(),
        body,
    ]
    .concat()
}

fn option_reply(option: u32, kind: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    [
        &0x0003_e889_0455_65a9_u64.to_be_bytes()[..],
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
        &length.to_be_bytes(),
        body,
    ]
    .concat()
}

fn filled(length: usize, byte: u8) -> Buffer {
    Buffer::copy_of(&vec![byte; length])
}

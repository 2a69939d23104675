//! A guest: an NBD client that notes when each of its requests was sent and answered, for what
//! lasts a few milliseconds and would drown in fio's averages.
//!
//! ```text
//! ops ──> send until `depth` are in flight ──> flush to the socket ──> take one answer ──┐
//!  ^────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! It blocks, so it has a thread of its own: [`Guest::run`] on one that the caller brings,
//! [`Busy`] on one that it starts.

use crate::random::Random;
use anyhow::{Context, Result, bail, ensure};
use datapath::nbd::wire;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Room for the answers of a batch.
const BUFFER_BYTES: usize = 256 << 10;

/// Largest request made here.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// Requests noted, so that a long run does not fill the memory: ten minutes of 20k a second.
const SPANS_MAX: usize = 12_000_000;

/// What is asked of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Read { offset: u64, bytes: u32 },
    Write { offset: u64, bytes: u32 },
    Flush,
}

/// When a request was sent and answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) sent: Instant,
    pub(crate) answered: Instant,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Guest {
    input: BufReader<UnixStream>,
    output: BufWriter<UnixStream>,
    pub(crate) size_bytes: u64,
    /// What is written: random, so that nobody finds zeros in it.
    payload: Vec<u8>,
}

/// What a busy guest does, over and over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) depth: usize,
    pub(crate) request_bytes: u32,
    /// Of a hundred requests so many are reads.
    pub(crate) reads: u64,
    pub(crate) seed: u64,
}

/// A guest that is busy until it is told to stop.
#[derive(Debug)]
pub(crate) struct Busy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Span>>>>,
}

impl Guest {
    /// Connects to a URI of ours or of a peer.
    ///
    /// # Errors
    /// When nothing listens there or it is not an NBD server.
    pub(crate) fn connect(uri: &str) -> Result<Self> {
        let rest = uri.strip_prefix("nbd+unix:///").context("a URI")?;
        let (export, socket) = rest.split_once("?socket=").context("a socket in a URI")?;
        let stream = UnixStream::connect(socket).with_context(|| format!("connecting to {uri}"))?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        let mut random = Random::new(3);
        let words = std::iter::repeat_with(|| random.next().to_le_bytes());
        let mut guest = Self {
            input: BufReader::with_capacity(BUFFER_BYTES, stream.try_clone()?),
            output: BufWriter::with_capacity(BUFFER_BYTES, stream),
            size_bytes: 0,
            payload: words.take(REQUEST_BYTES_MAX / 8).flatten().collect(),
        };
        guest.greet(export).context("greeting an NBD server")?;
        Ok(guest)
    }

    /// The oldest way to choose an export is enough here and all servers have it.
    fn greet(&mut self, export: &str) -> Result<()> {
        let magics = (self.u64()?, self.u64()?);
        ensure!(
            magics == (wire::GREETING_MAGIC, wire::OPTION_MAGIC),
            "not a newstyle server"
        );
        let flags = self.u16()? & (wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES);
        self.output.write_all(&u32::from(flags).to_be_bytes())?;
        self.output.write_all(&wire::OPTION_MAGIC.to_be_bytes())?;
        self.output
            .write_all(&wire::OPT_EXPORT_NAME.to_be_bytes())?;
        let length = u32::try_from(export.len())?;
        self.output.write_all(&length.to_be_bytes())?;
        self.output.write_all(export.as_bytes())?;
        self.output.flush()?;
        self.size_bytes = self.u64()?;
        self.u16()?;
        ensure!(flags & wire::FLAG_NO_ZEROES != 0, "a server of before 2012");
        Ok(())
    }

    /// Does all of `ops` in any order, up to `depth` (at least one) at a time, and tells of each.
    ///
    /// # Errors
    /// When the connection fails or a request does.
    pub(crate) fn run(
        &mut self,
        depth: usize,
        ops: impl IntoIterator<Item = Op>,
        mut done: impl FnMut(Span),
    ) -> Result<()> {
        let mut ops = ops.into_iter().fuse();
        let mut flying: Vec<Option<(Op, Instant)>> = vec![None; depth.max(1)];
        let mut free: Vec<usize> = (0..flying.len()).collect();
        loop {
            while let Some(slot) = free.last().copied() {
                let Some(op) = ops.next() else { break };
                free.pop();
                self.send(slot, op)?;
                let place = flying.get_mut(slot).context("a slot")?;
                *place = Some((op, Instant::now()));
            }
            if free.len() == flying.len() {
                return Ok(());
            }
            // Only when there is nothing more to take does what was said have to be on its way.
            if self.input.buffer().is_empty() {
                self.output.flush()?;
            }
            let slot = self.answer()?;
            let place = flying.get_mut(slot).and_then(Option::take);
            let (op, sent) = place.with_context(|| format!("an answer to nothing: {slot}"))?;
            if let Op::Read { bytes, .. } = op {
                self.skip(bytes as usize)?;
            }
            free.push(slot);
            done(Span {
                sent,
                answered: Instant::now(),
            });
        }
    }

    fn send(&mut self, slot: usize, op: Op) -> Result<()> {
        let (command, offset, bytes) = match op {
            Op::Read { offset, bytes } => (wire::CMD_READ, offset, bytes),
            Op::Write { offset, bytes } => (wire::CMD_WRITE, offset, bytes),
            Op::Flush => (wire::CMD_FLUSH, 0, 0),
        };
        self.output.write_all(&wire::REQUEST_MAGIC.to_be_bytes())?;
        self.output.write_all(&0u16.to_be_bytes())?;
        self.output.write_all(&command.to_be_bytes())?;
        self.output.write_all(&(slot as u64).to_be_bytes())?;
        self.output.write_all(&offset.to_be_bytes())?;
        self.output.write_all(&bytes.to_be_bytes())?;
        if command == wire::CMD_WRITE {
            let payload = self.payload.get(..bytes as usize);
            self.output
                .write_all(payload.context("too large a write")?)?;
        }
        Ok(())
    }

    /// The slot of the request that was answered.
    fn answer(&mut self) -> Result<usize> {
        let magic = self.u32()?;
        ensure!(magic == wire::SIMPLE_REPLY_MAGIC, "answer {magic:#x}");
        let (error, cookie) = (self.u32()?, self.u64()?);
        if error != 0 {
            bail!("a request failed with error {error}");
        }
        Ok(usize::try_from(cookie)?)
    }

    fn skip(&mut self, mut bytes: usize) -> Result<()> {
        while bytes > 0 {
            let now = self.input.fill_buf()?.len().min(bytes);
            ensure!(now > 0, "the connection ended inside an answer");
            self.input.consume(now);
            bytes -= now;
        }
        Ok(())
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.take()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// Does all of `ops` against a server, without holding up the caller's other work.
///
/// # Errors
/// As [`Guest::run`].
///
/// # Cancel safety
/// What has been begun is done to its end.
pub(crate) async fn perform(uri: &str, depth: usize, ops: Vec<Op>) -> Result<()> {
    let uri = uri.to_owned();
    let work = move || Guest::connect(&uri)?.run(depth, ops, |_| ());
    tokio::task::spawn_blocking(work).await?
}

impl Busy {
    /// Starts a guest of its own on a thread of its own.
    ///
    /// # Errors
    /// When it cannot connect.
    pub(crate) fn start(uri: &str, load: Load) -> Result<Self> {
        let mut guest = Guest::connect(uri)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let places = guest.size_bytes / u64::from(load.request_bytes);
        let mut random = Random::new(load.seed);
        let work = move || {
            let mut spans = Vec::with_capacity(1 << 20);
            let ops = std::iter::from_fn(|| {
                let offset = random.below(places) * u64::from(load.request_bytes);
                let bytes = load.request_bytes;
                let op = match random.below(100) < load.reads {
                    true => Op::Read { offset, bytes },
                    false => Op::Write { offset, bytes },
                };
                (!stopped.load(Ordering::Relaxed)).then_some(op)
            });
            guest.run(load.depth, ops, |span| {
                if spans.len() < SPANS_MAX {
                    spans.push(span);
                }
            })?;
            Ok(spans)
        };
        Ok(Self {
            stop,
            thread: Some(
                std::thread::Builder::new()
                    .name("guest".to_owned())
                    .spawn(work)?,
            ),
        })
    }

    /// Stops it and returns what it saw, in the order of the answers.
    ///
    /// # Errors
    /// When a request of it failed.
    pub(crate) async fn stop(mut self) -> Result<Vec<Span>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a guest is stopped once")?;
        let joined = tokio::task::spawn_blocking(|| thread.join()).await?;
        joined.map_err(|_| anyhow::anyhow!("the guest's thread panicked"))?
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Span {
    /// Milliseconds from sending to the answer.
    pub(crate) fn ms(&self) -> f64 {
        self.answered.duration_since(self.sent).as_secs_f64() * 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::{Child, Command};

    /// A server that everybody has; ended when dropped.
    struct Nbdkit(Child);

    impl Nbdkit {
        fn start(socket: &Path, arguments: &[&str]) -> Self {
            let mut command = Command::new("nbdkit");
            command.args(["--foreground", "--exit-with-parent", "--unix"]);
            Self(command.arg(socket).args(arguments).spawn().unwrap())
        }
    }

    impl Drop for Nbdkit {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn connect(socket: &Path) -> Guest {
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match Guest::connect(&uri) {
                Ok(guest) => return guest,
                Err(e) => assert!(Instant::now() < until, "{e:#}"),
            }
        }
    }

    #[test]
    fn every_request_is_answered_and_told_of_once() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _server = Nbdkit::start(&socket, &["memory", "16M"]);
        let mut guest = connect(&socket);
        assert_eq!(guest.size_bytes, 16 << 20);
        let writes = (0..16u64).map(|index| Op::Write {
            offset: index << 20,
            bytes: 1 << 20,
        });
        let reads = (0..1000u64).map(|index| Op::Read {
            offset: index * 4096,
            bytes: 4096,
        });
        let mut told = 0;
        let ops = writes.chain([Op::Flush]).chain(reads);
        guest
            .run(32, ops, |span| {
                assert!(span.answered >= span.sent);
                told += 1;
            })
            .unwrap();
        assert_eq!(told, 16 + 1 + 1000);
    }

    #[test]
    fn a_request_that_fails_ends_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let arguments = [
            "--filter=error",
            "memory",
            "16M",
            "error=EIO",
            "error-rate=100%",
        ];
        let _server = Nbdkit::start(&socket, &arguments);
        let op = Op::Read {
            offset: 0,
            bytes: 4096,
        };
        let error = connect(&socket).run(1, [op], |_| ()).unwrap_err();
        assert!(error.to_string().contains("error 5"), "{error:#}");
    }

    #[tokio::test]
    async fn a_busy_guest_stops_when_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _server = Nbdkit::start(&socket, &["memory", "16M"]);
        drop(connect(&socket));
        let load = Load {
            depth: 8,
            request_bytes: 4096,
            reads: 50,
            seed: 1,
        };
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let busy = Busy::start(&uri, load).unwrap();
        // It fails if a request did, and does not end if it is not told.
        busy.stop().await.unwrap();
    }
}

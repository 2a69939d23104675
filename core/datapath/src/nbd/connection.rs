//! Requests out, replies in, matched by cookie: the two tasks behind a client.

use super::client::BlockRun;
use super::handshake::Replies;
use super::{Error, ErrorKind, IN_FLIGHT_MAX, wire};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

/// Most extents taken from one block status reply.
const RUNS_MAX: usize = 1 << 20;

/// Longest chunk that carries no data.
const MESSAGE_BYTES_MAX: u32 = 64 << 10;

/// A request before it has a cookie.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) data: Vec<u8>,
}

impl Command {
    pub(super) fn new(kind: u16, flags: u16, offset: u64, length: u64) -> Self {
        Self {
            kind,
            flags,
            offset,
            length,
            data: Vec::new(),
        }
    }

    fn header(&self, cookie: u64, extended: bool) -> Vec<u8> {
        let (magic, flags) = match (extended, self.data.is_empty()) {
            (false, _) => (wire::REQUEST_MAGIC, self.flags),
            (true, true) => (wire::EXTENDED_REQUEST_MAGIC, self.flags),
            (true, false) => (
                wire::EXTENDED_REQUEST_MAGIC,
                self.flags | wire::CMD_FLAG_PAYLOAD_LEN,
            ),
        };
        let mut header = Vec::with_capacity(wire::EXTENDED_REQUEST_BYTES);
        header.extend(magic.to_be_bytes());
        header.extend(flags.to_be_bytes());
        header.extend(self.kind.to_be_bytes());
        header.extend(cookie.to_be_bytes());
        header.extend(self.offset.to_be_bytes());
        if extended {
            header.extend(self.length.to_be_bytes());
        } else {
            let length = u32::try_from(self.length).expect("the client cuts at COMPACT_LENGTH_MAX");
            header.extend(length.to_be_bytes());
        }
        header
    }
}

/// What a request came to.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Data(Vec<u8>),
    Runs(Vec<BlockRun>),
}

impl Answer {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Done => "nothing",
            Self::Data(_) => "data",
            Self::Runs(_) => "extents",
        }
    }
}

/// Where an answer goes; holds the request's permit until then.
#[derive(Debug)]
pub(super) struct Ticket {
    answer: oneshot::Sender<Result<Answer, Error>>,
    _permit: OwnedSemaphorePermit,
}

impl Ticket {
    pub(super) fn new(
        permit: OwnedSemaphorePermit,
    ) -> (Self, oneshot::Receiver<Result<Answer, Error>>) {
        let (answer, receiver) = oneshot::channel();
        (
            Self {
                answer,
                _permit: permit,
            },
            receiver,
        )
    }
}

/// A request that waits for its reply, with what came of it so far.
#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    kind: u16,
    offset: u64,
    data: Vec<u8>,
    /// Bytes of `data` that a chunk has described; all of them at the end of a good reply.
    covered: usize,
    runs: Vec<BlockRun>,
    error: Option<Error>,
}

/// The handle of the two tasks.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    requests: mpsc::Sender<(Command, Option<Ticket>)>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<HashMap<u64, Pending>>,
    gone: watch::Sender<Option<Error>>,
}

impl Shared {
    /// Fails everything in flight; the first reason stays.
    fn end(&self, error: Error) {
        self.gone.send_if_modified(|gone| {
            let first = gone.is_none();
            if first {
                *gone = Some(error.clone());
            }
            first
        });
        for (_, pending) in self.pending.lock().drain() {
            let _ = pending.ticket.answer.send(Err(error.clone()));
        }
    }
}

impl Connection {
    pub(super) fn start(stream: UnixStream, replies: Replies) -> Self {
        let (read, write) = stream.into_split();
        let (requests, queue) = mpsc::channel(IN_FLIGHT_MAX);
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            gone: watch::Sender::new(None),
        });
        tokio::spawn(run_writer(
            write,
            queue,
            replies.extended,
            Arc::clone(&shared),
        ));
        tokio::spawn(run_reader(
            BufReader::new(read),
            replies,
            Arc::clone(&shared),
        ));
        Self { requests, shared }
    }

    pub(super) async fn send(&self, command: Command, ticket: Ticket) -> Result<(), Error> {
        self.requests
            .send((command, Some(ticket)))
            .await
            .map_err(|_| self.why_gone())
    }

    pub(super) async fn disconnect(&self) -> Result<(), Error> {
        let command = Command::new(wire::CMD_DISC, 0, 0, 0);
        self.requests
            .send((command, None))
            .await
            .map_err(|_| self.why_gone())?;
        let mut gone = self.shared.gone.subscribe();
        let _ = gone.wait_for(Option::is_some).await;
        Ok(())
    }

    pub(super) fn give_up(&self) {
        self.shared.end(Error::new(
            ErrorKind::Gone,
            "given up after a request without an answer",
        ));
    }

    pub(super) fn why_gone(&self) -> Error {
        let gone = self.shared.gone.borrow().clone();
        gone.unwrap_or_else(|| Error::new(ErrorKind::Gone, "connection closed"))
    }
}

async fn run_writer(
    mut socket: OwnedWriteHalf,
    mut queue: mpsc::Receiver<(Command, Option<Ticket>)>,
    extended: bool,
    shared: Arc<Shared>,
) {
    let mut gone = shared.gone.subscribe();
    let mut cookie = 0_u64;
    loop {
        let next = tokio::select! {
            next = queue.recv() => next,
            _ = gone.wait_for(Option::is_some) => break,
        };
        let Some((command, ticket)) = next else {
            // The last handle is gone: leave as the protocol asks, the server then closes.
            let _ = socket
                .write_all(&Command::new(wire::CMD_DISC, 0, 0, 0).header(0, extended))
                .await;
            break;
        };
        cookie += 1;
        let last = command.kind == wire::CMD_DISC;
        if let Some(ticket) = ticket {
            shared
                .pending
                .lock()
                .insert(cookie, Pending::new(ticket, &command));
        }
        let sent = async {
            socket.write_all(&command.header(cookie, extended)).await?;
            socket.write_all(&command.data).await
        };
        let sent = tokio::select! {
            sent = sent => sent,
            _ = gone.wait_for(Option::is_some) => break,
        };
        if let Err(e) = sent {
            shared.end(Error::new(ErrorKind::Gone, format!("connection lost: {e}")));
        }
        if last {
            break;
        }
    }
    // A request that slipped in after the end finds no reader: fail it here.
    queue.close();
    let error = shared.gone.borrow().clone();
    if let Some(error) = error {
        shared.end(error);
    }
}

async fn run_reader(mut socket: BufReader<OwnedReadHalf>, agreed: Replies, shared: Arc<Shared>) {
    let mut gone = shared.gone.subscribe();
    let error = tokio::select! {
        error = replies(&mut socket, agreed, &shared) => error,
        _ = gone.wait_for(Option::is_some) => return,
    };
    shared.end(error);
}

/// Takes replies until one cannot be.
async fn replies(socket: &mut (impl AsyncRead + Unpin), agreed: Replies, shared: &Shared) -> Error {
    loop {
        if let Err(e) = reply(socket, agreed, shared).await {
            return e;
        }
    }
}

async fn reply(
    socket: &mut (impl AsyncRead + Unpin),
    agreed: Replies,
    shared: &Shared,
) -> Result<(), Error> {
    match (socket.read_u32().await.map_err(lost)?, agreed.extended) {
        (wire::SIMPLE_REPLY_MAGIC, false) => {
            let code = socket.read_u32().await.map_err(lost)?;
            let cookie = socket.read_u64().await.map_err(lost)?;
            let mut pending = take(shared, cookie)?;
            if code != 0 {
                pending.error = Some(refused(code, ""));
            } else if pending.kind == wire::CMD_READ {
                read_all(socket, &mut pending.data).await?;
                pending.covered = pending.data.len();
            }
            pending.finish()
        }
        (wire::CHUNK_MAGIC, false) | (wire::EXTENDED_CHUNK_MAGIC, true) => {
            let flags = socket.read_u16().await.map_err(lost)?;
            let kind = socket.read_u16().await.map_err(lost)?;
            let cookie = socket.read_u64().await.map_err(lost)?;
            let (offset, length) = rest_of_header(socket, agreed.extended).await?;
            let mut pending = take(shared, cookie)?;
            let taken = if offset.is_none_or(|offset| offset == pending.offset) {
                chunk(socket, &mut pending, agreed, kind, length).await
            } else {
                let message = format!("reply to {cookie} has another offset than its request");
                Err(protocol(message))
            };
            if let Err(e) = taken {
                let _ = pending.ticket.answer.send(Err(e.clone()));
                return Err(e);
            }
            if flags & wire::CHUNK_DONE != 0 {
                return pending.finish();
            }
            shared.pending.lock().insert(cookie, pending);
            Ok(())
        }
        (other, _) => Err(protocol(format!("reply begins with {other:#x}"))),
    }
}

/// The request's offset, where it is repeated, and the length of the chunk's content.
async fn rest_of_header(
    socket: &mut (impl AsyncRead + Unpin),
    extended: bool,
) -> Result<(Option<u64>, u32), Error> {
    if !extended {
        return Ok((None, socket.read_u32().await.map_err(lost)?));
    }
    let offset = socket.read_u64().await.map_err(lost)?;
    let length = socket.read_u64().await.map_err(lost)?;
    let length = u32::try_from(length).map_err(|_| {
        protocol(format!(
            "chunk of {length} bytes, more than any reply needs"
        ))
    })?;
    Ok((Some(offset), length))
}

/// Takes the content of one chunk.
async fn chunk(
    socket: &mut (impl AsyncRead + Unpin),
    pending: &mut Pending,
    agreed: Replies,
    kind: u16,
    length: u32,
) -> Result<(), Error> {
    match kind {
        wire::CHUNK_NONE if length == 0 => Ok(()),
        wire::CHUNK_OFFSET_DATA if length > 8 => {
            let offset = socket.read_u64().await.map_err(lost)?;
            read_all(socket, pending.part(offset, length - 8)?).await
        }
        wire::CHUNK_OFFSET_HOLE if length == 12 => {
            let offset = socket.read_u64().await.map_err(lost)?;
            let hole = socket.read_u32().await.map_err(lost)?;
            pending.part(offset, hole)?.fill(0);
            Ok(())
        }
        wire::CHUNK_BLOCK_STATUS if length >= 12 && length % 8 == 4 => {
            runs(socket, pending, agreed, length / 8, false).await
        }
        wire::CHUNK_BLOCK_STATUS_EXT if agreed.extended && length >= 24 && length % 16 == 8 => {
            runs(socket, pending, agreed, length / 16, true).await
        }
        _ if kind & wire::CHUNK_ERROR_BIT != 0 && (6..=MESSAGE_BYTES_MAX).contains(&length) => {
            let code = socket.read_u32().await.map_err(lost)?;
            let mut rest = vec![0; length as usize - 4];
            read_all(socket, &mut rest).await?;
            let (size, text) = rest
                .split_first_chunk::<2>()
                .ok_or_else(|| protocol("short"))?;
            let text = text
                .get(..usize::from(u16::from_be_bytes(*size)))
                .unwrap_or_default();
            pending
                .error
                .get_or_insert(refused(code, &String::from_utf8_lossy(text)));
            Ok(())
        }
        _ => Err(protocol(format!(
            "chunk of type {kind:#x} with {length} bytes"
        ))),
    }
}

/// Takes `count` extents in either of their forms.
async fn runs(
    socket: &mut (impl AsyncRead + Unpin),
    pending: &mut Pending,
    agreed: Replies,
    count: u32,
    wide: bool,
) -> Result<(), Error> {
    let context = socket.read_u32().await.map_err(lost)?;
    let told = if wide {
        socket.read_u32().await.map_err(lost)?
    } else {
        0
    };
    if Some(context) != agreed.allocation
        || pending.kind != wire::CMD_BLOCK_STATUS
        || pending.runs.len() + count as usize > RUNS_MAX
        || ![0, count].contains(&told)
    {
        let message = format!("{count} extents ({told} told) of context {context}");
        return Err(protocol(message));
    }
    for _ in 0..count {
        let (length_bytes, state) = if wide {
            let length = socket.read_u64().await.map_err(lost)?;
            (length, socket.read_u64().await.map_err(lost)?)
        } else {
            let length = socket.read_u32().await.map_err(lost)?;
            let state = socket.read_u32().await.map_err(lost)?;
            (length.into(), state.into())
        };
        let has = |flag: u32| state & u64::from(flag) != 0;
        pending.runs.push(BlockRun {
            length_bytes,
            hole: has(wire::STATE_HOLE),
            zero: has(wire::STATE_ZERO),
        });
    }
    Ok(())
}

impl Pending {
    fn new(ticket: Ticket, command: &Command) -> Self {
        let is_read = command.kind == wire::CMD_READ;
        let bytes = if is_read { command.length } else { 0 };
        Self {
            ticket,
            kind: command.kind,
            offset: command.offset,
            data: vec![0; usize::try_from(bytes).unwrap_or_default()],
            covered: 0,
            runs: Vec::new(),
            error: None,
        }
    }

    /// The part of the buffer a chunk is about.
    fn part(&mut self, offset: u64, length: u32) -> Result<&mut [u8], Error> {
        let wrong = || {
            protocol(format!(
                "chunk of {length} bytes at {offset} was not asked for"
            ))
        };
        let start = offset.checked_sub(self.offset).ok_or_else(wrong)?;
        let start = usize::try_from(start).map_err(|_| wrong())?;
        let end = start.checked_add(length as usize).ok_or_else(wrong)?;
        self.covered += length as usize;
        self.data.get_mut(start..end).ok_or_else(wrong)
    }

    /// Answers the caller. A reply that leaves bytes of a read out must not pass as zeroes.
    fn finish(self) -> Result<(), Error> {
        let answer = match (self.error, self.kind) {
            (Some(error), _) => Err(error),
            (None, wire::CMD_READ) if self.covered != self.data.len() => {
                let size = self.data.len();
                let error = protocol(format!("reply has {} bytes of {size}", self.covered));
                let _ = self.ticket.answer.send(Err(error.clone()));
                return Err(error);
            }
            (None, wire::CMD_READ) => Ok(Answer::Data(self.data)),
            (None, wire::CMD_BLOCK_STATUS) if self.runs.is_empty() => {
                Err(protocol("block status without an extent"))
            }
            (None, wire::CMD_BLOCK_STATUS) => Ok(Answer::Runs(self.runs)),
            (None, _) => Ok(Answer::Done),
        };
        let _ = self.ticket.answer.send(answer);
        Ok(())
    }
}

fn take(shared: &Shared, cookie: u64) -> Result<Pending, Error> {
    let pending = shared.pending.lock().remove(&cookie);
    pending.ok_or_else(|| protocol(format!("reply to cookie {cookie}, which is not in flight")))
}

async fn read_all(socket: &mut (impl AsyncRead + Unpin), into: &mut [u8]) -> Result<(), Error> {
    socket.read_exact(into).await.map(drop).map_err(lost)
}

fn refused(code: u32, text: &str) -> Error {
    let kind = match code {
        wire::EPERM => ErrorKind::ReadOnly,
        wire::EINVAL | wire::EOVERFLOW => ErrorKind::Invalid,
        wire::ENOSPC => ErrorKind::NoSpace,
        wire::ENOTSUP => ErrorKind::Unsupported,
        wire::ESHUTDOWN => ErrorKind::Gone,
        _ => ErrorKind::Io,
    };
    let separator = if text.is_empty() { "" } else { ": " };
    Error::new(
        kind,
        format!("server answered error {code}{separator}{text}"),
    )
}

fn protocol(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Protocol, message)
}

fn lost(e: std::io::Error) -> Error {
    Error::new(ErrorKind::Gone, format!("connection lost: {e}"))
}

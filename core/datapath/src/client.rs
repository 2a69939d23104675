//! A connection to one data-path process.
//!
//! One task owns the socket; a call hands it a frame and waits for the reply with the same id. So
//! a call that is dropped half way leaves the connection in order: the operation still happens in
//! the process, and its reply is thrown away.
//!
//! ```text
//! Client::call ── queue (16) ──> task ── socket ──> process
//!        <──────── oneshot ─────  │ <─────────────
//!                                 └ end of file, bad frame: every call in flight and every later
//!                                   one fails with Gone
//! ```

mod copies;
mod operations;

pub use copies::Chain;
pub use operations::NewImage;

use crate::codec::{FrameReader, FrameWriter, Read};
use crate::protocol::{
    Error, ErrorKind, Outcome, PROTOCOL, Reply, ReplyFrame, Request, RequestFrame,
};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use units::RequestId;

/// How long a call may take before it fails with `Gone`. Longer than any flush of a healthy disk.
pub const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// How long connecting and the first exchange may take.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(5);

const QUEUED_CALLS_MAX: usize = 16;

/// A connection to one data-path process. Cheap to clone; calls may overlap.
#[derive(Debug, Clone)]
pub struct Client {
    calls: mpsc::Sender<Call>,
    gone: watch::Receiver<Option<String>>,
    pid: u32,
    version: String,
}

#[derive(Debug)]
struct Call {
    request_id: RequestId,
    request: Request,
    fds: Vec<OwnedFd>,
    reply: oneshot::Sender<Result<Reply, Error>>,
}

impl Client {
    /// Connects to the control socket of a process and exchanges `Hello`.
    ///
    /// # Errors
    /// `NotFound` when nothing listens there, `Gone` when nothing answers in [`HELLO_DEADLINE`],
    /// `Protocol` when the process speaks another version.
    pub async fn connect(socket: &Path, request_id: &RequestId) -> Result<Self, Error> {
        let stream = match timeout(HELLO_DEADLINE, UnixStream::connect(socket)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => {
                let nobody = [
                    std::io::ErrorKind::NotFound,
                    std::io::ErrorKind::ConnectionRefused,
                ];
                let absent = nobody.contains(&e.kind());
                let kind = if absent {
                    ErrorKind::NotFound
                } else {
                    ErrorKind::Gone
                };
                return Err(Error::new(
                    kind,
                    format!("cannot connect to {}: {e}", socket.display()),
                ));
            }
            Err(_) => return Err(no_answer("connect", HELLO_DEADLINE)),
        };
        let (calls, queue) = mpsc::channel(QUEUED_CALLS_MAX);
        let (end, gone) = watch::channel(None);
        tokio::spawn(async move {
            let mut connection = Connection {
                stream,
                queue,
                waiting: HashMap::new(),
                last_id: 0,
            };
            let error = connection.run().await;
            let _ = end.send(Some(error.message.clone()));
            connection.fail_all(&error);
        });
        let mut client = Self {
            calls,
            gone,
            pid: 0,
            version: String::new(),
        };
        let hello = Request::Hello {
            protocol: PROTOCOL.to_owned(),
        };
        match client
            .call_within(HELLO_DEADLINE, request_id, hello, Vec::new())
            .await?
        {
            Reply::Hello {
                protocol,
                pid,
                version,
            } if protocol == PROTOCOL => {
                client.pid = pid;
                client.version = version;
                Ok(client)
            }
            Reply::Hello { protocol, .. } => {
                let message = format!("process speaks {protocol}, this side {PROTOCOL}");
                Err(Error::new(ErrorKind::Protocol, message))
            }
            other => Err(unexpected("hello", &other)),
        }
    }

    /// Process id of the data-path process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Version of the binary that runs there; it may be older than the daemon's.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether the connection ended; a gone client stays gone.
    pub fn is_gone(&self) -> bool {
        self.gone.borrow().is_some() || self.calls.is_closed()
    }

    /// Waits until the connection ends, which it does when the process dies.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn gone(&self) {
        let mut gone = self.gone.clone();
        let _ = gone.wait_for(Option::is_some).await;
    }

    /// Asks for one operation with [`CALL_DEADLINE`].
    ///
    /// # Errors
    /// What the process answers; `Gone` when it died or did not answer in time.
    ///
    /// # Cancel safety
    /// A dropped call may still be carried out by the process.
    pub async fn call(
        &self,
        request_id: &RequestId,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<Reply, Error> {
        self.call_within(CALL_DEADLINE, request_id, request, fds)
            .await
    }

    /// As [`Client::call`] with the caller's deadline.
    ///
    /// # Errors
    /// As [`Client::call`].
    ///
    /// # Cancel safety
    /// A dropped call may still be carried out by the process.
    pub async fn call_within(
        &self,
        deadline: Duration,
        request_id: &RequestId,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<Reply, Error> {
        let op = request.name();
        let (reply, answer) = oneshot::channel();
        let call = Call {
            request_id: request_id.clone(),
            request,
            fds,
            reply,
        };
        let exchange = async {
            self.calls.send(call).await.map_err(|_| self.why_gone(op))?;
            answer.await.map_err(|_| self.why_gone(op))?
        };
        timeout(deadline, exchange)
            .await
            .unwrap_or_else(|_| Err(no_answer(op, deadline)))
    }

    fn why_gone(&self, op: &str) -> Error {
        let why = self
            .gone
            .borrow()
            .clone()
            .unwrap_or_else(|| "connection closed".to_owned());
        Error::gone(format!("{op}: process {}: {why}", self.pid))
    }
}

fn unexpected(op: &str, reply: &Reply) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("{op} was answered with {reply:?}"),
    )
}

fn no_answer(op: &str, deadline: Duration) -> Error {
    Error::gone(format!("{op}: no answer in {} s", deadline.as_secs_f32()))
}

/// The socket's side of the queue.
struct Connection {
    stream: UnixStream,
    queue: mpsc::Receiver<Call>,
    waiting: HashMap<u64, oneshot::Sender<Result<Reply, Error>>>,
    last_id: u64,
}

impl Connection {
    /// Runs until the connection is of no more use and says why.
    async fn run(&mut self) -> Error {
        let mut reader = FrameReader::default();
        let mut writer = FrameWriter::default();
        loop {
            let interest = if writer.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            tokio::select! {
                // A frame that waits to be sent holds back the next call: the queue is the limit.
                call = self.queue.recv(), if writer.is_empty() => match call {
                    Some(call) => self.send(call, &mut writer),
                    None => return Error::gone("every handle was dropped"),
                },
                ready = self.stream.ready(interest) => if let Err(e) = ready {
                    return Error::gone(format!("control connection failed: {e}"));
                },
            }
            if let Err(e) = self.exchange(&mut reader, &mut writer) {
                return e;
            }
        }
    }

    fn send(&mut self, call: Call, writer: &mut FrameWriter) {
        self.waiting.retain(|_, reply| !reply.is_closed());
        self.last_id += 1;
        let Call {
            request_id,
            request,
            fds,
            reply,
        } = call;
        match writer.push(
            &RequestFrame {
                id: self.last_id,
                request_id,
                request,
            },
            fds,
        ) {
            Ok(()) => {
                self.waiting.insert(self.last_id, reply);
            }
            Err(e) => {
                let _ = reply.send(Err(e));
            }
        }
    }

    fn exchange(
        &mut self,
        reader: &mut FrameReader,
        writer: &mut FrameWriter,
    ) -> Result<(), Error> {
        if !writer.is_empty() {
            try_io(&self.stream, Interest::WRITABLE, || {
                writer.write(&self.stream).map(|sent| sent.then_some(()))
            })?;
        }
        loop {
            let read = try_io(&self.stream, Interest::READABLE, || {
                Ok(match reader.read(&self.stream)? {
                    Read::Pending => None,
                    other => Some(other),
                })
            })?;
            match read {
                None | Some(Read::Pending) => return Ok(()),
                Some(Read::Closed) => return Err(Error::gone("process closed the connection")),
                Some(Read::Frame(frame)) => {
                    let ReplyFrame { id, result } = frame.decode()?;
                    if let Some(reply) = self.waiting.remove(&id) {
                        let _ = reply.send(match result {
                            Outcome::Ok(reply) => Ok(reply),
                            Outcome::Error(error) => Err(error),
                        });
                    }
                }
            }
        }
    }

    fn fail_all(&mut self, error: &Error) {
        self.queue.close();
        for (_, reply) in self.waiting.drain() {
            let _ = reply.send(Err(Error::gone(error.message.clone())));
        }
    }
}

/// Runs `io` and tells tokio when the socket had no more (`None`), so that it waits for the next edge.
fn try_io<T>(
    stream: &UnixStream,
    interest: Interest,
    io: impl FnOnce() -> Result<Option<T>, Error>,
) -> Result<Option<T>, Error> {
    let mut failure = None;
    let result = stream.try_io(interest, || match io() {
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err(std::io::ErrorKind::WouldBlock.into()),
        Err(e) => {
            failure = Some(e);
            Err(std::io::ErrorKind::Other.into())
        }
    });
    match (result, failure) {
        (_, Some(error)) => Err(error),
        (result, None) => Ok(result.ok()),
    }
}

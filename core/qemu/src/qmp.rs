//! QMP, QEMU's control protocol: one client of one socket. Knows no command's meaning.
//!
//! ```text
//! connect -> greeting -> qmp_capabilities -> commands and events, until the socket ends
//! ```
//!
//! # Source
//! QEMU, docs/interop/qmp-spec.

use futures_util::StreamExt;
use hypervisor::{Error, ErrorKind};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio_util::codec::{FramedRead, LinesCodec};

/// Longest line QEMU may send; its longest answers are some tens of KiB.
const LINE_BYTES_MAX: usize = 4 << 20;
/// Commands that may wait to be written.
const QUEUE: usize = 32;
/// Commands that may wait for their answer.
const ANSWERS_MAX: usize = 256;

type Lines = FramedRead<OwnedReadHalf, LinesCodec>;
type Answer = Result<Value, Error>;

struct Request {
    command: &'static str,
    arguments: Value,
    answer: oneshot::Sender<Answer>,
}

/// A connected monitor. Dropping it closes the socket.
#[derive(Debug)]
pub(crate) struct Client {
    requests: mpsc::Sender<Request>,
    task: AbortHandle,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a client tells its owner, in the order in which QEMU said it.
#[derive(Debug)]
pub(crate) enum Message {
    Event { name: String, data: Value },
    Closed,
}

fn lost(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Lost, what)
}

impl Client {
    /// Connects and gets the monitor ready. `tell` is called from the reading task for every event
    /// before the answers that follow it are given out, and once with `Closed`; it must not block.
    pub(crate) async fn connect(
        socket: &Path,
        limit: Duration,
        tell: impl Fn(Message) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let connecting = async {
            let stream = UnixStream::connect(socket).await.map_err(|error| {
                lost(format!("cannot connect to {}", socket.display())).with_source(error)
            })?;
            let (read, write) = stream.into_split();
            let mut lines = Lines::new(read, LinesCodec::new_with_max_length(LINE_BYTES_MAX));
            let greeting = next_line(&mut lines).await?;
            if greeting.get("QMP").is_none() {
                return Err(lost(format!("{} does not speak QMP", socket.display())));
            }
            Ok((lines, write))
        };
        let waited = tokio::time::timeout(limit, connecting).await;
        let (lines, write) = waited.unwrap_or_else(|_| {
            let context = format!("no greeting from {} in {limit:?}", socket.display());
            Err(Error::new(ErrorKind::Timeout, context))
        })?;
        let (requests, requests_out) = mpsc::channel(QUEUE);
        let task = tokio::spawn(async move {
            let mut session = Session {
                write,
                waiting: BTreeMap::new(),
                last_id: 0,
            };
            let end = session.serve(lines, requests_out, &tell).await;
            tracing::debug!(%end, "monitor closed");
            tell(Message::Closed);
        });
        let client = Self {
            requests,
            task: task.abort_handle(),
        };
        client.execute("qmp_capabilities", json!({}), limit).await?;
        Ok(client)
    }

    /// Runs one command.
    ///
    /// # Errors
    /// `Failed` with QEMU's own words, `Timeout`, `Lost`.
    ///
    /// # Cancel safety
    /// A dropped command may still be carried out.
    pub(crate) async fn execute(
        &self,
        command: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Answer {
        let (answer, answer_out) = oneshot::channel();
        let request = Request {
            command,
            arguments,
            answer,
        };
        let asking = async {
            let closed = || lost(format!("the monitor closed before {command}"));
            self.requests.send(request).await.map_err(|_| closed())?;
            answer_out.await.unwrap_or_else(|_| Err(closed()))
        };
        tokio::time::timeout(limit, asking)
            .await
            .unwrap_or_else(|_| {
                let context = format!("no answer to {command} in {limit:?}");
                Err(Error::new(ErrorKind::Timeout, context))
            })
    }
}

struct Session {
    write: OwnedWriteHalf,
    waiting: BTreeMap<u64, (&'static str, oneshot::Sender<Answer>)>,
    last_id: u64,
}

impl Session {
    async fn serve(
        &mut self,
        mut lines: Lines,
        mut requests: mpsc::Receiver<Request>,
        tell: &(impl Fn(Message) + Sync),
    ) -> Error {
        loop {
            let step = tokio::select! {
                line = next_line(&mut lines) => line.map(|line| self.take(line, tell)),
                request = requests.recv(), if self.waiting.len() < ANSWERS_MAX => match request {
                    Some(request) => self.send(request).await,
                    None => Err(lost("the client is gone")),
                },
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn send(&mut self, request: Request) -> Result<(), Error> {
        self.last_id = self.last_id.wrapping_add(1);
        let Request {
            command,
            arguments,
            answer,
        } = request;
        let message = json!({"execute": command, "arguments": arguments, "id": self.last_id});
        self.waiting.insert(self.last_id, (command, answer));
        let written = self
            .write
            .write_all(format!("{message}\n").as_bytes())
            .await;
        written.map_err(|error| lost(format!("cannot send {command}")).with_source(error))
    }

    fn take(&mut self, mut line: Value, tell: &impl Fn(Message)) {
        if let Some(name) = line.get("event").and_then(Value::as_str) {
            let name = name.to_owned();
            let data = line.get_mut("data").map(Value::take).unwrap_or_default();
            tell(Message::Event { name, data });
            return;
        }
        let id = line.get("id").and_then(Value::as_u64);
        let Some((command, answer)) = id.and_then(|id| self.waiting.remove(&id)) else {
            tracing::debug!(%line, "an answer that nobody waits for");
            return;
        };
        let result = match line.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => {
                let words = line.pointer("/error/desc").and_then(Value::as_str);
                let context = format!("{command}: {}", words.unwrap_or("an error without words"));
                Err(Error::new(ErrorKind::Failed, context))
            }
        };
        // A caller that gave up is no error.
        let _ = answer.send(result);
    }
}

/// Cancel safe: a line is taken whole or stays in the buffer.
async fn next_line(lines: &mut Lines) -> Result<Value, Error> {
    match lines.next().await {
        Some(Ok(line)) => serde_json::from_str(&line)
            .map_err(|error| lost("the monitor sent no JSON").with_source(error)),
        Some(Err(error)) => Err(lost("cannot read from the monitor").with_source(error)),
        None => Err(lost("the monitor closed its socket")),
    }
}

#[cfg(test)]
mod tests;

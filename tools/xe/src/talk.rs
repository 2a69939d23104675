//! The conversation: arguments, greetings, then whatever the server says, until it says how to exit.

use crate::connect::{Server, Wire};
use crate::files::Named;
use crate::options::{Debug, Options};
use crate::{terminal, transfer};
use anyhow::{Context, bail};
use std::io::Write;
use thin_cli::{Blob, Command, FRAME_BYTES_MAX, Message, ProtocolError, Response, VERSION};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};

/// Lines kept for `--debug-on-fail`.
const KEPT_LINES_MAX: usize = 1000;

/// Runs one command and returns its exit code.
pub(crate) async fn talk(options: &Options) -> anyhow::Result<i32> {
    let mut notes = Notes {
        debug: options.debug,
        kept: Vec::new(),
    };
    let outcome = converse(options, &mut notes).await;
    if !matches!(outcome, Ok(0)) {
        notes.tell()?;
    }
    outcome
}

async fn converse(options: &Options, notes: &mut Notes) -> anyhow::Result<i32> {
    let here = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let named = Named::in_args(&options.args, here);
    let (server, stream) = Server::find(options).await?;
    notes.add(&format!("connected to {}", server.place()))?;
    let (input, out) = tokio::io::split(stream);
    let mut talk = Talk {
        server,
        named,
        input: BufReader::new(input),
        out,
        beats: false,
    };
    talk.greet(options, notes).await?;
    loop {
        let message = thin_cli::read_message(&mut talk.input, FRAME_BYTES_MAX).await;
        let message = message.map_err(lost)?;
        notes.add(&format!("server says {message:?}"))?;
        match message {
            Message::Command(Command::Exit(code)) => return Ok(code),
            Message::Command(command) => talk.obey(command).await?,
            other => return Err(ProtocolError::Unexpected(Box::new(other)).into()),
        }
    }
}

fn lost(problem: ProtocolError) -> anyhow::Error {
    match problem {
        ProtocolError::Connection(io) => {
            anyhow::Error::new(io).context("lost the connection to the server")
        }
        other => other.into(),
    }
}

struct Talk {
    server: Server,
    named: Named,
    input: BufReader<ReadHalf<Box<dyn Wire>>>,
    out: WriteHalf<Box<dyn Wire>>,
    /// Whether the server knows `Wait`.
    beats: bool,
}

impl Talk {
    async fn greet(&mut self, options: &Options, notes: &mut Notes) -> anyhow::Result<()> {
        let body = options.args.join("\n");
        let trace = options
            .traceparent
            .as_ref()
            .map(|value| format!("traceparent: {value}\r\n"));
        let head = format!(
            "POST /cli HTTP/1.0\r\nUser-agent: xe-cli/Unix/{}.{}\r\n{}content-length: {}\r\n\r\n",
            VERSION.major,
            VERSION.minor,
            trace.unwrap_or_default(),
            body.len(),
        );
        self.out.write_all(head.as_bytes()).await?;
        self.out.write_all(body.as_bytes()).await?;
        self.out.flush().await?;
        let greeting = match thin_cli::read_greeting(&mut self.input).await {
            Err(ProtocolError::NoGreeting(seen)) => bail!(self.other_protocol(seen).await),
            greeting => greeting.map_err(lost)?,
        };
        notes.add(&format!(
            "server has protocol {}.{}",
            greeting.major, greeting.minor
        ))?;
        self.beats = greeting.minor >= 2;
        Ok(thin_cli::write_greeting(&mut self.out).await?)
    }

    /// Says what came instead of a greeting: most likely the answer of a web server.
    async fn other_protocol(&mut self, seen: Vec<u8>) -> String {
        let mut line = seen;
        // What cannot be read is not shown; there is an error to tell already.
        _ = (&mut self.input)
            .take(200)
            .read_until(b'\n', &mut line)
            .await;
        let line = String::from_utf8_lossy(&line);
        let place = self.server.place();
        format!(
            "{place} does not speak the protocol of xe; it said {:?}",
            line.trim_end()
        )
    }

    async fn obey(&mut self, command: Command) -> anyhow::Result<()> {
        match command {
            Command::Print(text) => print(&mut std::io::stdout(), &format!("{text}\n"))?,
            Command::PrintStderr(text) => print(&mut std::io::stderr(), &text)?,
            Command::Error { code, params } => {
                let text = format!(
                    "Error code: {code}\nError parameters: {}\n",
                    params.join(", ")
                );
                print(&mut std::io::stderr(), &text)?;
            }
            // The notes have it already; the end is the caller's.
            Command::Debug(_) | Command::Exit(_) => {}
            Command::Prompt => self.prompt().await?,
            Command::Load(filename) => self.load(&filename).await?,
            Command::HttpPut { filename, url } => {
                let path = self.named.permit(&filename)?;
                let done = transfer::with_beats(
                    transfer::put(&self.server, &url, &path),
                    &mut self.out,
                    self.beats,
                );
                let done = done.await?;
                self.answer(done).await?;
            }
            Command::HttpGet { filename, url } => {
                let path = match filename.as_str() {
                    "" => None,
                    named => Some(self.named.permit(named)?),
                };
                let done = transfer::with_beats(
                    transfer::get(&self.server, &url, path.as_deref()),
                    &mut self.out,
                    self.beats,
                );
                let done = done.await?;
                self.answer(done).await?;
            }
            Command::HttpConnect(url) => {
                let done = terminal::connect(&self.server, &url);
                let done = transfer::with_beats(done, &mut self.out, self.beats).await?;
                self.answer(done).await?;
            }
        }
        Ok(())
    }

    /// Answers a transfer. What went wrong here is told to the user here: the server cannot know it.
    async fn answer(&mut self, done: anyhow::Result<()>) -> anyhow::Result<()> {
        let answer = match done {
            Ok(()) => Response::Ok,
            Err(problem) => {
                print(&mut std::io::stderr(), &format!("Error: {problem:#}\n"))?;
                Response::Failed
            }
        };
        Ok(thin_cli::write_message(&mut self.out, answer).await?)
    }

    async fn prompt(&mut self) -> anyhow::Result<()> {
        let mut line = Vec::new();
        let typed = BufReader::new(tokio::io::stdin()).take(thin_cli::BLOB_BYTES_MAX);
        let mut typed = typed;
        typed
            .read_until(b'\n', &mut line)
            .await
            .context("cannot read the answer")?;
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        Ok(thin_cli::write_blob(&mut self.out, line).await?)
    }

    async fn load(&mut self, filename: &str) -> anyhow::Result<()> {
        let path = self.named.permit(filename)?;
        match transfer::read_small(&path).await {
            Ok(bytes) => {
                thin_cli::write_message(&mut self.out, Response::Ok).await?;
                // The existing server reads one chunk and its end.
                let length = u32::try_from(bytes.len()).context("the file is too long")?;
                thin_cli::write_message(&mut self.out, Blob::Chunk(length)).await?;
                self.out.write_all(&bytes).await?;
                Ok(thin_cli::write_message(&mut self.out, Blob::End).await?)
            }
            Err(problem) => self.answer(Err(problem)).await,
        }
    }
}

/// Prints; a reader that has gone away, as `head` does, is no error of ours but ends the command.
fn print(out: &mut impl Write, text: &str) -> anyhow::Result<()> {
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot print")
}

/// What `--debug` says.
struct Notes {
    debug: Debug,
    kept: Vec<String>,
}

impl Notes {
    fn add(&mut self, note: &str) -> anyhow::Result<()> {
        match self.debug {
            Debug::Off => Ok(()),
            Debug::On => print(&mut std::io::stderr(), &format!("xe: {note}\n")),
            Debug::OnFailure => {
                if self.kept.len() < KEPT_LINES_MAX {
                    self.kept.push(note.to_owned());
                }
                Ok(())
            }
        }
    }

    fn tell(&mut self) -> anyhow::Result<()> {
        for note in self.kept.drain(..) {
            print(&mut std::io::stderr(), &format!("xe: {note}\n"))?;
        }
        Ok(())
    }
}

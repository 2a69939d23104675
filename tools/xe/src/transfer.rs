//! Files to and from URLs: HTTP by hand, a connection for each.

use crate::connect::{Server, Wire};
use anyhow::{Context, bail, ensure};
use std::path::Path;
use std::time::Duration;
use thin_cli::{BLOB_BYTES_MAX, Response};
use tokio::fs::{File, OpenOptions};
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf,
    WriteHalf,
};

/// While a transfer goes on the server is told so often, lest it takes us for dead.
const BEAT_EVERY: Duration = Duration::from_secs(60);
/// Bytes moved at a time.
const BLOCK_BYTES: usize = 256 * 1024;
/// Bytes in the head of an HTTP answer.
const HEAD_BYTES_MAX: u64 = 64 * 1024;
/// Redirects followed.
const REDIRECTS_MAX: usize = 5;

/// Waits for `work`, telling the server meanwhile that it goes on.
pub(crate) async fn with_beats<T>(
    work: impl Future<Output = T>,
    out: &mut (impl AsyncWrite + Unpin),
    beats: bool,
) -> anyhow::Result<T> {
    tokio::pin!(work);
    let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + BEAT_EVERY, BEAT_EVERY);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            _ = beat.tick(), if beats => thin_cli::write_message(out, Response::Wait).await?,
        }
    }
}

/// Reads a file that the server wants to see whole.
pub(crate) async fn read_small(path: &Path) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", path.display());
    let file = File::open(path).await.with_context(cannot)?;
    let mut bytes = Vec::new();
    file.take(BLOB_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .await
        .with_context(cannot)?;
    ensure!(
        bytes.len() as u64 <= BLOB_BYTES_MAX,
        "{} is over {BLOB_BYTES_MAX} bytes",
        path.display()
    );
    Ok(bytes)
}

/// The head of an HTTP answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    line: String,
    location: Option<String>,
    length: Option<u64>,
}

type Input = BufReader<ReadHalf<Box<dyn Wire>>>;

impl Answer {
    /// Reads a head, up to the empty line.
    pub(crate) async fn read(input: &mut (impl AsyncBufReadExt + Unpin)) -> anyhow::Result<Self> {
        let mut head = input.take(HEAD_BYTES_MAX);
        let mut line = Vec::new();
        let mut next = async || {
            line.clear();
            head.read_until(b'\n', &mut line).await?;
            ensure!(
                line.last() == Some(&b'\n'),
                "the server's HTTP answer ends too early"
            );
            Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
        };
        let first = next().await?;
        let status = first
            .strip_prefix("HTTP/")
            .and_then(|rest| rest.split(' ').nth(1));
        let status = status.and_then(|status| status.parse().ok());
        let status =
            status.with_context(|| format!("the server answered {first:?}, which is no HTTP"))?;
        let (mut location, mut length) = (None, None);
        loop {
            let header = next().await?;
            if header.is_empty() {
                return Ok(Self {
                    status,
                    line: first,
                    location,
                    length,
                });
            }
            let (name, value) = header.split_once(':').unwrap_or((&header, ""));
            match name.to_ascii_lowercase().as_str() {
                "location" => location = Some(value.trim().to_owned()),
                "content-length" => length = value.trim().parse().ok(),
                _ => {}
            }
        }
    }

    /// Where the answer sends us, if it does; an error unless it is a success.
    pub(crate) fn redirect(self) -> anyhow::Result<Result<Self, String>> {
        match (self.status, &self.location) {
            (200, _) => Ok(Ok(self)),
            (301 | 302 | 307 | 308, Some(location)) => Ok(Err(location.clone())),
            _ => bail!("the server answered: {}", self.line),
        }
    }
}

/// Fetches a URL into a new file, or to the standard output.
pub(crate) async fn get(server: &Server, url: &str, path: Option<&Path>) -> anyhow::Result<()> {
    let mut url = url.to_owned();
    for _ in 0..REDIRECTS_MAX {
        let (stream, target) = server.follow(&url).await?;
        let (input, mut out) = tokio::io::split(stream);
        let request = format!(
            "GET {target} HTTP/1.0\r\nHost: {}\r\nConnection: close\r\n\r\n",
            server.host()
        );
        out.write_all(request.as_bytes()).await?;
        out.flush().await?;
        let mut input = BufReader::with_capacity(BLOCK_BYTES, input);
        match Answer::read(&mut input).await?.redirect()? {
            Err(elsewhere) => url = elsewhere,
            Ok(answer) => return store(input, answer.length, path).await,
        }
    }
    bail!("the server redirects in a circle")
}

async fn store(input: Input, length: Option<u64>, path: Option<&Path>) -> anyhow::Result<()> {
    let Some(path) = path else {
        return copy(input, &mut tokio::io::stdout(), length).await;
    };
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .await;
    let mut file = file.with_context(|| format!("cannot make {}", path.display()))?;
    let copied = async {
        copy(input, &mut file, length).await?;
        file.sync_all()
            .await
            .with_context(|| format!("cannot write {}", path.display()))
    };
    let copied = copied.await;
    if copied.is_err() {
        // Half a disk under the name of a whole one would be taken for it.
        _ = tokio::fs::remove_file(path).await;
    }
    copied
}

async fn copy(
    mut input: Input,
    out: &mut (impl AsyncWrite + Unpin),
    length: Option<u64>,
) -> anyhow::Result<()> {
    let copied = tokio::io::copy_buf(&mut input, out)
        .await
        .context("the download broke off")?;
    out.flush().await?;
    if let Some(length) = length {
        ensure!(
            copied == length,
            "the download ended after {copied} of {length} bytes"
        );
    }
    Ok(())
}

/// Sends a file to a URL.
///
/// Some servers answer before they take the file, others after it: the answer is listened for all
/// the time, and one that is no success ends the transfer.
pub(crate) async fn put(server: &Server, url: &str, path: &Path) -> anyhow::Result<()> {
    let mut url = url.to_owned();
    for _ in 0..REDIRECTS_MAX {
        let file = File::open(path)
            .await
            .with_context(|| format!("cannot read {}", path.display()))?;
        let about = file.metadata().await?;
        ensure!(!about.is_dir(), "{} is a directory", path.display());
        let (stream, target) = server.follow(&url).await?;
        let (input, mut out) = tokio::io::split(stream);
        // The length of a pipe is not known before its end: it goes in chunks, which HTTP/1.0 has not.
        let (version, body) = match about.is_file() {
            true => ("1.0", format!("Content-Length: {}", about.len())),
            false => ("1.1", "Transfer-Encoding: chunked".to_owned()),
        };
        let head = format!(
            "PUT {target} HTTP/{version}\r\nHost: {}\r\nConnection: close\r\n{body}\r\n\r\n",
            server.host()
        );
        out.write_all(head.as_bytes()).await?;
        out.flush().await?;
        let mut input = BufReader::new(input);
        let answer = Answer::read(&mut input);
        let sent = async {
            match about.is_file() {
                true => send_exactly(file, about.len(), &mut out).await,
                false => send_chunked(file, &mut out).await,
            }
        };
        match both(answer, sent).await?.redirect()? {
            Err(elsewhere) => url = elsewhere,
            Ok(_) => return Ok(()),
        }
    }
    bail!("the server redirects in a circle")
}

/// Waits for the answer and for the end of sending; a refusal ends both.
async fn both(
    answer: impl Future<Output = anyhow::Result<Answer>>,
    sent: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Answer> {
    tokio::pin!(answer, sent);
    tokio::select! {
        early = &mut answer => {
            let early = early?;
            if early.status == 200 {
                sent.await?;
            }
            Ok(early)
        }
        sent = &mut sent => match sent {
            Ok(()) => answer.await,
            // A server that refuses closes its end: its answer says why, if there is one.
            Err(problem) => match answer.await {
                Ok(refusal) if refusal.status != 200 => Ok(refusal),
                _ => Err(problem),
            },
        },
    }
}

type Out = WriteHalf<Box<dyn Wire>>;

/// Sends what was promised: a file that has shrunk meanwhile is an error, one that has grown is cut.
async fn send_exactly(file: File, length: u64, out: &mut Out) -> anyhow::Result<()> {
    let mut file = BufReader::with_capacity(BLOCK_BYTES, file.take(length));
    let sent = tokio::io::copy_buf(&mut file, out)
        .await
        .context("the upload broke off")?;
    ensure!(
        sent == length,
        "the file ended after {sent} of {length} bytes"
    );
    Ok(out.flush().await?)
}

async fn send_chunked(mut file: impl AsyncRead + Unpin, out: &mut Out) -> anyhow::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        let read = file
            .read(&mut block)
            .await
            .context("cannot read the file")?;
        let part = block.get(..read).unwrap_or_default();
        let broke = || "the upload broke off";
        out.write_all(format!("{read:x}\r\n").as_bytes())
            .await
            .with_context(broke)?;
        out.write_all(part).await.with_context(broke)?;
        out.write_all(b"\r\n").await.with_context(broke)?;
        if read == 0 {
            return Ok(out.flush().await?);
        }
    }
}

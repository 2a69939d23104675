//! One running `xylem-plugin`: start it, talk frames with it, end it.

use crate::PluginErrorKind;
use crate::protocol::{self, Frame, FromProcess, Hello, PREFIX_BYTES, ROOTS_MAX, ToProcess};
use crate::services::{HostServices, LogLevel};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::mpsc;

/// Time to load an artifact; a component with an interpreter inside takes ten seconds to compile.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Time to end after the socket was closed.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Frames that wait on their way to the process. It has one thread that does nothing but read.
const OUT_MAX: usize = 256;
/// Longest line taken from standard error; the rest of it is dropped.
const STDERR_LINE_BYTES_MAX: u64 = 4096;

/// Why a process could not be started, or how it ended.
pub(crate) type Failure = (PluginErrorKind, String);

/// How to start the process of one plugin.
pub(crate) struct Launch {
    pub(crate) binary: PathBuf,
    pub(crate) run_as: Option<(u32, u32)>,
    pub(crate) artifact: Arc<File>,
    pub(crate) hello: Hello,
}

/// A process that answered `Ready`.
pub(crate) struct Link {
    pub(crate) interfaces: Vec<String>,
    pub(crate) frames: mpsc::Receiver<io::Result<Frame<FromProcess>>>,
    out: mpsc::Sender<Vec<u8>>,
    child: Child,
    last_words: Arc<Mutex<String>>,
}

impl Launch {
    /// Starts the process and waits until its artifact is loaded.
    pub(crate) async fn start(&self, services: Arc<dyn HostServices>) -> Result<Link, Failure> {
        let broken = |error: io::Error| {
            (
                PluginErrorKind::Io,
                format!("cannot start {}: {error}", self.binary.display()),
            )
        };
        let roots = self.open_roots()?;
        let (ours, theirs) = StdStream::pair().map_err(broken)?;
        let mut child = self.command(theirs).spawn().map_err(broken)?;
        self.send_hello(&ours, &roots).map_err(broken)?;
        ours.set_nonblocking(true).map_err(broken)?;
        let (read, write) = UnixStream::from_std(ours).map_err(broken)?.into_split();
        let (out, to_write) = mpsc::channel(OUT_MAX);
        let (to_us, frames) = mpsc::channel(16);
        tokio::spawn(write_frames(write, to_write));
        tokio::spawn(read_frames(read, to_us));
        let last_words = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = child.stderr.take() {
            let name = self.hello.plugin.clone();
            tokio::spawn(forward_stderr(stderr, name, services, last_words.clone()));
        }
        let mut link = Link {
            interfaces: Vec::new(),
            frames,
            out,
            child,
            last_words,
        };
        let first = tokio::time::timeout(START_TIMEOUT, link.frames.recv()).await;
        match first {
            Ok(Some(Ok(Frame {
                head: FromProcess::Ready { interfaces },
                ..
            }))) => {
                link.interfaces = interfaces;
                Ok(link)
            }
            Ok(Some(Ok(Frame {
                head: FromProcess::Failed { kind, message },
                ..
            }))) => Err((kind, message)),
            Ok(Some(Ok(frame))) => {
                let message = format!("its first frame is {:?}", frame.head);
                Err((PluginErrorKind::Incompatible, message))
            }
            Ok(Some(Err(error))) => Err((PluginErrorKind::Incompatible, error.to_string())),
            Ok(None) => Err((PluginErrorKind::Crashed, link.epitaph().await)),
            Err(_) => {
                link.kill();
                let message = format!("not loaded within {} s", START_TIMEOUT.as_secs());
                Err((PluginErrorKind::Timeout, message))
            }
        }
    }

    fn command(&self, socket: StdStream) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg(&self.hello.plugin)
            .stdin(OwnedFd::from(socket))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .kill_on_drop(true);
        if let Some((uid, gid)) = self.run_as {
            command.gid(gid).uid(uid);
        }
        command
    }

    fn open_roots(&self) -> Result<Vec<OwnedFd>, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &PathBuf| {
            rustix::fs::open(path, flags, Mode::empty()).map_err(|error| {
                let message = format!("granted directory {}: {error}", path.display());
                (PluginErrorKind::Invalid, message)
            })
        };
        self.hello.roots.iter().take(ROOTS_MAX).map(open).collect()
    }

    /// Sends the first frame, with the descriptors. It is short and the socket is empty, so it
    /// goes out at once.
    fn send_hello(&self, socket: &StdStream, roots: &[OwnedFd]) -> io::Result<()> {
        let frame = protocol::encode(&ToProcess::Hello(self.hello.clone()), &[])?;
        let descriptors: Vec<BorrowedFd<'_>> = std::iter::once(self.artifact.as_fd())
            .chain(roots.iter().map(AsFd::as_fd))
            .collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ROOTS_MAX + 1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("too many descriptors"));
        }
        let sent = rustix::net::sendmsg(
            socket,
            &[IoSlice::new(&frame)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        if sent != frame.len() {
            return Err(io::Error::other(format!(
                "sent {sent} of {} bytes",
                frame.len()
            )));
        }
        Ok(())
    }
}

impl Link {
    /// Queues a frame; false if the process takes none any more.
    pub(crate) fn send(&self, head: &ToProcess, body: &[u8]) -> io::Result<bool> {
        Ok(self.out.try_send(protocol::encode(head, body)?).is_ok())
    }

    /// Returns the way to the process for tasks that answer it.
    pub(crate) fn sender(&self) -> mpsc::Sender<Vec<u8>> {
        self.out.clone()
    }

    /// Returns the process id while the process is not reaped.
    pub(crate) fn process_id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Ends the process and everything in its group, now.
    pub(crate) fn kill(&mut self) {
        let group = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = group.and_then(rustix::process::Pid::from_raw) {
            // It may be gone already; then there is nothing to do.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }

    /// Waits for a process that closed its socket and says how it ended; kills it if it did not.
    pub(crate) async fn epitaph(mut self) -> String {
        let status = match tokio::time::timeout(END_TIMEOUT, self.child.wait()).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return format!("cannot wait for the process: {error}"),
            Err(_) => {
                self.kill();
                return "the process closed its socket and did not end".to_owned();
            }
        };
        // What it wrote last is on its way through a pipe and a task.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let words = self.last_words.lock().clone();
        let how = match (status.signal(), status.code()) {
            (Some(signal), _) => format!("the process was ended by signal {signal}"),
            (None, Some(code)) => format!("the process ended with code {code}"),
            (None, None) => "the process ended".to_owned(),
        };
        if words.is_empty() {
            how
        } else {
            format!("{how}: {words}")
        }
    }

    /// Closes the socket and gives the process its time to end.
    pub(crate) async fn stop(mut self) {
        let Self { frames, out, .. } = &mut self;
        frames.close();
        let (closed, _) = mpsc::channel(1);
        *out = closed;
        if tokio::time::timeout(END_TIMEOUT, self.child.wait())
            .await
            .is_err()
        {
            self.kill();
        }
    }
}

async fn write_frames(mut socket: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        // The reader of the same socket sees that it broke.
        if socket.write_all(&frame).await.is_err() {
            return;
        }
    }
}

async fn read_frames(socket: OwnedReadHalf, frames: mpsc::Sender<io::Result<Frame<FromProcess>>>) {
    let mut socket = BufReader::new(socket);
    loop {
        let frame = match read_frame(&mut socket).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
            other => other,
        };
        let last = frame.is_err();
        if frames.send(frame).await.is_err() || last {
            return;
        }
    }
}

async fn read_frame(socket: &mut BufReader<OwnedReadHalf>) -> io::Result<Frame<FromProcess>> {
    let mut prefix = [0; PREFIX_BYTES];
    socket.read_exact(&mut prefix).await?;
    let (head, body) = protocol::lengths(prefix)?;
    let mut bytes = vec![0; head + body];
    socket.read_exact(&mut bytes).await?;
    protocol::decode(bytes, head)
}

/// Hands lines of standard error to the log and remembers the last one that says something.
async fn forward_stderr(
    stderr: ChildStderr,
    plugin: String,
    services: Arc<dyn HostServices>,
    last_words: Arc<Mutex<String>>,
) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    let mut lines_left = 10_000_u32;
    loop {
        line.clear();
        let read = (&mut stderr)
            .take(STDERR_LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
            .await;
        if !matches!(read, Ok(1..)) {
            return;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        if !text.starts_with("note:") {
            text.clone_into(&mut last_words.lock());
        }
        if lines_left > 0 {
            lines_left -= 1;
            services.log(&plugin, None, LogLevel::Warn, text);
        }
    }
}

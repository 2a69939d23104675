//! QEMU processes as the host sees them: started, alive or dead, killed, measured.

use hypervisor::{Error, ErrorKind};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// How often to look whether a process has ended or come up.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// Sets the limit that no file QEMU writes may pass, then becomes QEMU. The signal that would kill
/// it at the limit is ignored, so writing there fails instead. `ulimit -f` counts 512-byte units.
const LAUNCH: &str = r#"trap "" XFSZ; ulimit -f "$1" || exit 1; shift; exec "$@""#;

/// What a process is started from.
pub(crate) struct Launch<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) arguments: &'a [String],
    pub(crate) dir: &'a Path,
    pub(crate) file_bytes_max: u64,
}

pub(crate) fn io(what: &str, path: &Path, error: impl Into<std::io::Error>) -> Error {
    let context = format!("cannot {what} {}", path.display());
    Error::new(ErrorKind::Io, context).with_source(error.into())
}

/// The file whose lock means "alive".
pub(crate) fn life_file(dir: &Path) -> PathBuf {
    dir.join("qemu.log")
}

fn append(path: &Path) -> Result<File, Error> {
    let open = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path);
    open.map_err(|error| io("open", path, error))
}

/// Starts QEMU in a process group of its own. It holds the life lock from before its first
/// instruction, because the lock is taken here and the locked description handed over.
pub(crate) fn launch(launch: &Launch<'_>) -> Result<Child, Error> {
    let dir = launch.dir;
    let life_path = life_file(dir);
    let life = append(&life_path)?;
    rustix::fs::flock(&life, FlockOperation::NonBlockingLockExclusive)
        .map_err(|error| io("lock", &life_path, error))?;
    let events = append(&dir.join("events.log"))?;
    let input = recorder_input(&dir.join("events.in"))?;
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", LAUNCH, "qemu"])
        .arg((launch.file_bytes_max / 512).to_string());
    command.arg(launch.binary).args(launch.arguments);
    command
        .stdin(Stdio::from(input))
        .stdout(events)
        .stderr(life)
        .process_group(0);
    command
        .spawn()
        .map_err(|error| io("start", launch.binary, error))
}

/// The recording monitor reads its one command from a FIFO that QEMU itself holds open for
/// writing, so it never sees an end.
fn recorder_input(path: &Path) -> Result<OwnedFd, Error> {
    let fifo = rustix::fs::FileType::Fifo;
    match rustix::fs::mknodat(rustix::fs::CWD, path, fifo, Mode::RUSR | Mode::WUSR, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(io("make", path, error)),
    }
    let fd = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let mut file = File::from(fd.map_err(|error| io("open", path, error))?);
    let written = file.write_all(b"{\"execute\": \"qmp_capabilities\"}\n");
    written.map_err(|error| io("write to", path, error))?;
    Ok(file.into())
}

/// Waits for a child in the background, so that it leaves no zombie.
pub(crate) fn reap(mut child: Child) {
    tokio::spawn(async move {
        // How it ended is told by its files.
        let _ = child.wait().await;
    });
}

/// Whether the QEMU of a directory lives. `false` if there is no such directory.
pub(crate) fn is_alive(dir: &Path) -> Result<bool, Error> {
    let path = life_file(dir);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io("open", &path, error)),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(io("lock", &path, error)),
    }
}

/// Waits until the QEMU of a directory has ended; says whether it did.
pub(crate) async fn ended_within(dir: &Path, limit: Duration) -> Result<bool, Error> {
    let deadline = tokio::time::Instant::now() + limit;
    while is_alive(dir)? {
        if tokio::time::Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(true)
}

fn pid(dir: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(dir.join("pid")).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}

/// Kills the QEMU of a directory, if it lives and has said its pid. The process is held by a
/// descriptor before it is looked at, so that no other one of the same number is hit.
pub(crate) fn kill(dir: &Path) -> Result<(), Error> {
    let Some(pid) = pid(dir) else { return Ok(()) };
    let process = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(io("open the process of", dir, error)),
    };
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
    let marker = dir.join("pid").display().to_string().replace(',', ",,");
    let ours = line.is_ok_and(|line| {
        line.split(|byte| *byte == 0)
            .any(|argument| argument == marker.as_bytes())
    });
    if !ours {
        return Ok(());
    }
    match rustix::process::pidfd_send_signal(&process, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(io("kill the process of", dir, error)),
    }
}

/// Time a thread of the QEMU of a directory ran, in nanoseconds; 0 when it is gone.
///
/// # Source
/// Linux, Documentation/scheduler/sched-stats: the first field of schedstat.
pub(crate) fn thread_time_ns(dir: &Path, thread: u64) -> u64 {
    let read = pid(dir).and_then(|pid| {
        let pid = pid.as_raw_nonzero();
        std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).ok()
    });
    let first = read
        .as_deref()
        .and_then(|text| text.split_whitespace().next());
    first.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The end of what QEMU said on its stderr, for an error's text.
pub(crate) fn last_words(dir: &Path) -> String {
    let text = std::fs::read(life_file(dir)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = lines
        .iter()
        .rev()
        .take(3)
        .rev()
        .copied()
        .collect::<Vec<_>>()
        .join("; ");
    last.chars().take(500).collect()
}

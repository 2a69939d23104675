//! Starts data-path processes, and finds those that run already.
//!
//! A process is known by the socket it listens on, `<run_dir>/<name>.ctl`, and by nothing else: no
//! pid file, no record. The socket answers exactly as long as the process lives, because the
//! process holds the only descriptor of the listener; so adoption after a restart of the daemon
//! is to connect, and a socket that refuses is debris to remove.

use crate::client::{Client, HELLO_DEADLINE};
use crate::protocol::{Error, ErrorKind};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use units::RequestId;

/// Longest path the kernel takes for a unix socket (`sun_path` without its final zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Characters of a process name.
const NAME_BYTES_MAX: usize = 64;

/// Bytes of the log shown when a process does not come up.
const LOG_TAIL_BYTES: usize = 512;

/// Where processes and their traces are.
#[derive(Debug, Clone)]
pub struct SupervisorConfig {
    /// The `xylem-tapdisk` binary.
    pub binary: PathBuf,
    /// Directory of the control sockets, and of the NBD sockets in `nbd/` below it.
    pub run_dir: PathBuf,
    /// Directory of the processes' logs.
    pub log_dir: PathBuf,
    /// User and group a process changes to; `None` leaves it with the daemon's.
    pub run_as: Option<(u32, u32)>,
}

/// Starts and finds data-path processes. Dropping it ends none of them.
#[derive(Debug)]
pub struct Supervisor {
    config: SupervisorConfig,
    slots: Mutex<HashMap<String, Slot>>,
}

/// The lock is held while a process is started, so that two callers do not start two.
type Slot = Arc<tokio::sync::Mutex<Option<Client>>>;

impl Supervisor {
    /// Makes a supervisor; touches nothing yet.
    pub fn new(config: SupervisorConfig) -> Self {
        Self {
            config,
            slots: Mutex::default(),
        }
    }

    /// Returns a client of the process `name`, which is started when it does not run.
    ///
    /// # Errors
    /// `Unsupported` for a name or path that cannot be a socket's, `Io` when the directories or
    /// the binary fail, `Gone` when the process does not answer; the text then ends with the last
    /// lines of its log.
    ///
    /// # Cancel safety
    /// Safe: a process that was started is found by the next call.
    pub async fn client(&self, name: &str, request_id: &RequestId) -> Result<Client, Error> {
        let socket = self.control_socket(name)?;
        let slot = self.slot(name);
        let mut client = slot.lock().await;
        if let Some(known) = client.as_ref().filter(|c| !c.is_gone()) {
            return Ok(known.clone());
        }
        let fresh = match connect_to_living(&socket, request_id).await {
            Err(e) if e.kind == ErrorKind::NotFound => {
                self.start(name, &socket, request_id).await?
            }
            found => found?,
        };
        *client = Some(fresh.clone());
        Ok(fresh)
    }

    /// Names of the processes that live, in order; sockets of dead ones are removed. One that lives
    /// and does not answer is among them, as it may still write: [`Supervisor::client`] tells.
    ///
    /// # Errors
    /// `Io` when the directory cannot be read; an absent one is an empty list.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn running(&self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for name in self.sockets()? {
            let slot = self.slot(&name);
            let mut client = slot.lock().await;
            let socket = self.control_socket(&name)?;
            if client.as_ref().is_some_and(|c| !c.is_gone()) {
                names.push(name);
                continue;
            }
            match connect_to_living(&socket, &RequestId::random()).await {
                Ok(found) => {
                    *client = Some(found);
                    names.push(name);
                }
                Err(e) if e.kind == ErrorKind::NotFound => {
                    tracing::info!(process = name, "removed the socket of a dead data path");
                    let _ = std::fs::remove_file(&socket);
                    drop(client);
                    self.slots.lock().remove(&name);
                }
                Err(e) => {
                    tracing::warn!(process = name, error = %e, "a data path does not answer");
                    names.push(name);
                }
            }
        }
        names.sort();
        Ok(names)
    }

    /// Ends the process `name`, which must have no disk, and removes its socket. A process that
    /// does not run is a success.
    ///
    /// # Errors
    /// `Busy` when it has disks, `Gone` when it does not answer.
    ///
    /// # Cancel safety
    /// Safe: call again.
    pub async fn exit(&self, name: &str, request_id: &RequestId) -> Result<(), Error> {
        let socket = self.control_socket(name)?;
        let slot = self.slot(name);
        let mut client = slot.lock().await;
        let known = client.take().filter(|c| !c.is_gone());
        let found = match known {
            Some(known) => Ok(known),
            None => connect_to_living(&socket, request_id).await,
        };
        match found {
            Ok(running) => {
                if let Err(e) = running.exit(request_id).await {
                    *client = Some(running);
                    return Err(e);
                }
                // A process that answered and then does not end is left to the operator's eyes.
                let _ = tokio::time::timeout(HELLO_DEADLINE, running.gone()).await;
            }
            Err(e) if e.kind == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let _ = std::fs::remove_file(&socket);
        drop(client);
        self.slots.lock().remove(name);
        Ok(())
    }

    /// Path below the run directory for an NBD socket of that name, for [`listen`].
    ///
    /// # Errors
    /// `Unsupported` for a name or path that cannot be a socket's.
    pub fn nbd_socket(&self, name: &str) -> Result<PathBuf, Error> {
        socket_path(&self.config.run_dir.join("nbd"), name, "sock")
    }

    fn control_socket(&self, name: &str) -> Result<PathBuf, Error> {
        socket_path(&self.config.run_dir, name, "ctl")
    }

    fn slot(&self, name: &str) -> Slot {
        self.slots
            .lock()
            .entry(name.to_owned())
            .or_default()
            .clone()
    }

    fn sockets(&self) -> Result<Vec<String>, Error> {
        let dir = &self.config.run_dir;
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(io_error("read directory", dir, &e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| io_error("read directory", dir, &e))?;
            let file_name = entry.file_name();
            let name = file_name.to_str().and_then(|n| n.strip_suffix(".ctl"));
            let is_socket = entry.file_type().is_ok_and(|t| t.is_socket());
            if let Some(name) = name.filter(|n| is_socket && self.control_socket(n).is_ok()) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    async fn start(
        &self,
        name: &str,
        socket: &Path,
        request_id: &RequestId,
    ) -> Result<Client, Error> {
        make_dir(&self.config.run_dir)?;
        make_dir(&self.config.log_dir)?;
        let log_path = self.config.log_dir.join(format!("tapdisk-{name}.log"));
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(&log_path)
            .map_err(|e| io_error("open log", &log_path, &e))?;
        let listener = listen(socket)?;
        let child = self.spawn(listener, log)?;
        let pid = child.id();
        let exit = tokio::spawn(reap(name.to_owned(), child));
        tracing::info!(process = name, pid, %request_id, "started a data path");
        let connected = tokio::select! {
            connected = Client::connect(socket, request_id) => connected,
            status = exit => {
                let status = status.unwrap_or_default();
                Err(Error::gone(format!("data path {name} ended at once ({status})")))
            }
        };
        connected.map_err(|e| {
            Error::gone(format!(
                "{}; its log ends with: {}",
                e.message,
                log_tail(&log_path)
            ))
        })
    }

    fn spawn(&self, listener: OwnedFd, log: File) -> Result<Child, Error> {
        let mut command = Command::new(&self.config.binary);
        if let Some((uid, gid)) = self.config.run_as {
            command.arg("--run-as").arg(format!("{uid}:{gid}"));
        }
        command
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()
            .map_err(|e| io_error("start", &self.config.binary, &e))
    }
}

/// Connects, and tries again when the other end closes at once: a process that is about to die
/// holds its listener a moment longer than its connections.
async fn connect_to_living(socket: &Path, request_id: &RequestId) -> Result<Client, Error> {
    let until = Instant::now() + HELLO_DEADLINE;
    loop {
        match Client::connect(socket, request_id).await {
            Err(e) if e.kind == ErrorKind::Gone && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            other => return other,
        }
    }
}

/// Waits for a child so that it does not stay a zombie; returns how it ended.
async fn reap(name: String, mut child: Child) -> String {
    let status = match child.wait().await {
        Ok(status) => status.to_string(),
        Err(e) => format!("status unknown: {e}"),
    };
    tracing::info!(process = name, status, "a data path ended");
    status
}

/// Binds a listening unix socket at `path`, replacing a socket that is there in one step: a client
/// that connects meanwhile reaches the old listener or the new one. Makes the directory.
///
/// # Errors
/// `Io` when the directory or the socket cannot be made.
pub fn listen(path: &Path) -> Result<OwnedFd, Error> {
    if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    // In the same directory, so that the rename is one step.
    let fresh = path.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).map_err(|e| io_error("bind", &fresh, &e))?;
    listener
        .set_nonblocking(true)
        .map_err(|e| io_error("bind", &fresh, &e))?;
    std::fs::rename(&fresh, path).map_err(|e| io_error("bind", path, &e))?;
    Ok(listener.into())
}

fn socket_path(dir: &Path, name: &str, extension: &str) -> Result<PathBuf, Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(allowed) {
        let message = format!(
            "process name {name:?} is not 1 to {NAME_BYTES_MAX} characters of A-Z a-z 0-9 - _"
        );
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let path = dir.join(format!("{name}.{extension}"));
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_BYTES_MAX {
        let message = format!(
            "socket path {} has {length} bytes, the kernel takes {SOCKET_PATH_BYTES_MAX}",
            path.display()
        );
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    Ok(path)
}

fn make_dir(dir: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(dir)
        .map_err(|e| io_error("make directory", dir, &e))
}

fn io_error(what: &str, path: &Path, e: &std::io::Error) -> Error {
    Error::new(
        ErrorKind::Io,
        format!("cannot {what} {}: {e}", path.display()),
    )
}

fn log_tail(path: &Path) -> String {
    let log = std::fs::read(path).unwrap_or_default();
    let from = log.len().saturating_sub(LOG_TAIL_BYTES);
    String::from_utf8_lossy(log.get(from..).unwrap_or_default())
        .trim()
        .replace('\n', " | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> SupervisorConfig {
        SupervisorConfig {
            binary: "/bin/false".into(),
            run_dir: dir.join("run"),
            log_dir: dir.join("log"),
            run_as: None,
        }
    }

    #[test]
    fn names_that_leave_the_directory_or_the_kernels_limit_are_refused() {
        let supervisor = Supervisor::new(config(Path::new("/run")));
        for bad in ["", "..", "a/b", "a b", "a.b", &"x".repeat(65)] {
            let error = supervisor.nbd_socket(bad).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported, "{bad:?}");
        }
        assert_eq!(
            supervisor.nbd_socket("vm-1_a").unwrap(),
            Path::new("/run/run/nbd/vm-1_a.sock")
        );
        let deep = Supervisor::new(config(&Path::new("/run").join("x".repeat(100))));
        let error = deep.nbd_socket("a").unwrap_err();
        assert!(error.message.contains("the kernel takes 107"), "{error}");
    }

    #[tokio::test]
    async fn a_binary_that_ends_at_once_is_gone_and_leaves_no_hang() {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new(config(dir.path()));
        let error = supervisor
            .client("a", &RequestId::random())
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Gone);
        assert_eq!(supervisor.running().await.unwrap(), Vec::<String>::new());
        assert!(
            !dir.path().join("run/a.ctl").exists(),
            "the dead socket is still there"
        );
    }

    #[tokio::test]
    async fn a_binary_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.binary = "/nonexistent/xylem-tapdisk".into();
        let error = Supervisor::new(config)
            .client("a", &RequestId::random())
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Io);
        assert!(
            error.message.contains("/nonexistent/xylem-tapdisk"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_socket_nobody_listens_on_is_cleared_away_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new(config(dir.path()));
        let run = dir.path().join("run");
        drop(listen(&run.join("dead.ctl")).unwrap());
        std::fs::write(run.join("file.ctl"), "not a socket").unwrap();
        assert_eq!(supervisor.running().await.unwrap(), Vec::<String>::new());
        assert!(!run.join("dead.ctl").exists());
        assert!(run.join("file.ctl").exists());
    }

    #[test]
    fn a_new_listener_replaces_the_old_at_the_same_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let old = UnixListener::from(listen(&path).unwrap());
        let new = UnixListener::from(listen(&path).unwrap());
        let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(new.accept().is_ok());
        assert_eq!(
            old.accept().unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock
        );
    }
}

//! Servers side by side: ours and the peers, each with one disk on a unix socket.

use crate::kind::{Aio, Family, Kind};
use crate::ours::{Cache, Installed, Ours};
use crate::process;
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// How long a server may take to answer its socket.
const START: Duration = Duration::from_secs(10);

/// Starts servers; gives each a socket of its own.
pub(crate) struct Servers {
    installed: Installed,
    started: AtomicU32,
}

/// A running server; ended when dropped.
pub(crate) struct Server {
    pub(crate) pid: u32,
    pub(crate) uri: String,
    running: Running,
}

enum Running {
    Ours(Ours),
    Peer(Child),
}

impl Servers {
    pub(crate) fn new(installed: Installed) -> Self {
        Self {
            installed,
            started: AtomicU32::new(0),
        }
    }

    /// Starts our process without a disk.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) async fn ours(&self) -> Result<Ours> {
        Ours::start(&self.installed, &self.fresh_name()).await
    }

    /// Starts a server on the image `dir/kind.file()`.
    ///
    /// # Errors
    /// When it does not come up.
    ///
    /// # Cancel safety
    /// Safe: what was started is ended.
    pub(crate) async fn start(&self, kind: Kind, dir: &Path, cache: Cache) -> Result<Server> {
        let image = dir.join(kind.file());
        if kind.family == Family::Ours {
            let ours = self.ours().await?;
            ours.open(&[&image], cache).await?;
            return Ok(Server {
                pid: ours.pid(),
                uri: ours.serve().await?,
                running: Running::Ours(ours),
            });
        }
        let name = self.fresh_name();
        let socket = self.installed.run_dir.join(format!("{name}.sock"));
        let log = self.installed.run_dir.join(format!("{name}.log"));
        let child = peer(kind, &image, &socket, cache)
            .stdin(Stdio::null())
            .stderr(File::create(&log)?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", kind.name()))?;
        let mut server = Server {
            pid: child.id().context("a server that just started")?,
            uri: format!("nbd+unix:///?socket={}", socket.display()),
            running: Running::Peer(child),
        };
        let answers = server.answers(kind, &socket).await;
        answers.with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        Ok(server)
    }

    fn fresh_name(&self) -> String {
        format!("s{}", self.started.fetch_add(1, Ordering::Relaxed))
    }
}

impl Server {
    /// Ends the server in order, its image closed.
    ///
    /// # Errors
    /// When it cannot close its image or does not end.
    pub(crate) async fn stop(self) -> Result<()> {
        match self.running {
            Running::Ours(ours) => ours.stop().await,
            Running::Peer(mut child) => process::end(&mut child, Signal::TERM).await,
        }
    }

    async fn answers(&mut self, kind: Kind, socket: &Path) -> Result<()> {
        let until = Instant::now() + START;
        while UnixStream::connect(socket).await.is_err() {
            if let Running::Peer(child) = &mut self.running
                && let Some(status) = child.try_wait()?
            {
                bail!("{} ended at once with {status}", kind.name());
            }
            if Instant::now() > until {
                bail!("{} does not answer within {START:?}", kind.name());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

fn peer(kind: Kind, image: &Path, socket: &Path, cache: Cache) -> Command {
    match kind.family {
        Family::NbdkitFile | Family::NbdkitNull => nbdkit(kind.family, image, socket, cache),
        _ => qemu_nbd(kind, image, socket, cache),
    }
}

fn qemu_nbd(kind: Kind, image: &Path, socket: &Path, cache: Cache) -> Command {
    let format = match kind.family {
        Family::QemuVpc => "vpc",
        Family::QemuQcow2 => "qcow2",
        _ => "raw",
    };
    let mode = match cache {
        Cache::Direct => "none",
        Cache::Page => "writeback",
    };
    let aio = match kind.aio {
        Aio::Native => "native",
        Aio::Uring => "io_uring",
        Aio::Threads | Aio::Own => "threads",
    };
    let file = escaped(image);
    let mut command = Command::new("qemu-nbd");
    command
        .args(["--persistent", "--shared=32", "--image-opts"])
        .arg(format!("--cache={mode}"))
        .arg(format!("--aio={aio}"))
        .arg(format!("--socket={}", socket.display()))
        // Several servers have a file open at a time; only one of them is asked.
        .arg(format!(
            "driver={format},file.driver=file,file.locking=off,file.filename={file}"
        ));
    command
}

fn nbdkit(family: Family, image: &Path, socket: &Path, cache: Cache) -> Command {
    let mut command = Command::new("nbdkit");
    command
        .args(["--foreground", "--exit-with-parent", "--unix"])
        .arg(socket);
    if family == Family::NbdkitNull {
        command.args(["null", "size=1G"]);
        return command;
    }
    command.arg("file").arg(image);
    if cache == Cache::Direct {
        command.arg("cache=none");
    }
    command
}

/// A path in an option list of QEMU, where a comma is written twice.
fn escaped(path: &Path) -> String {
    PathBuf::from(path).display().to_string().replace(',', ",,")
}

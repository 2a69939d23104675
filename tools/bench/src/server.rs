//! Servers side by side: ours and the peers, each with one disk on a unix socket.

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

/// Who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// `xylem-tapdisk` with a dynamic VHD.
    Ours,
    /// `qemu-nbd` with a raw file and libaio (threads where there is a page cache).
    QemuRaw,
    /// `qemu-nbd` with a raw file and io_uring.
    QemuRawUring,
    /// `qemu-nbd` with a copy of our VHD.
    QemuVpc,
    /// `qemu-nbd` with a qcow2.
    QemuQcow2,
    /// `nbdkit` with a raw file; it has no `O_DIRECT`: on a disk it starts with nothing
    /// cached and drops what it read, but its writes stay in the page cache until a flush.
    NbdkitFile,
    /// `nbdkit` with nothing: what the protocol costs.
    NbdkitNull,
}

impl Kind {
    /// Its name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "xylem-tapdisk vhd",
            Self::QemuRaw => "qemu-nbd raw",
            Self::QemuRawUring => "qemu-nbd raw io_uring",
            Self::QemuVpc => "qemu-nbd vpc",
            Self::QemuQcow2 => "qemu-nbd qcow2",
            Self::NbdkitFile => "nbdkit file",
            Self::NbdkitNull => "nbdkit null",
        }
    }

    /// The file it serves, by the end of its name.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Ours => "ours.vhd",
            Self::QemuVpc => "peer.vhd",
            Self::QemuQcow2 => "peer.qcow2",
            Self::QemuRaw | Self::QemuRawUring | Self::NbdkitFile | Self::NbdkitNull => "peer.raw",
        }
    }
}

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
        if kind == Kind::Ours {
            let ours = self.ours().await?;
            return Ok(Server {
                pid: ours.pid(),
                uri: ours.serve(&image, cache).await?,
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
    match kind {
        Kind::NbdkitFile | Kind::NbdkitNull => nbdkit(kind, image, socket, cache),
        _ => qemu_nbd(kind, image, socket, cache),
    }
}

fn qemu_nbd(kind: Kind, image: &Path, socket: &Path, cache: Cache) -> Command {
    let format = match kind {
        Kind::QemuVpc => "vpc",
        Kind::QemuQcow2 => "qcow2",
        _ => "raw",
    };
    let (mode, aio) = match (cache, kind) {
        (Cache::Direct, Kind::QemuRawUring) => ("none", "io_uring"),
        (Cache::Direct, _) => ("none", "native"),
        (Cache::Page, Kind::QemuRawUring) => ("writeback", "io_uring"),
        (Cache::Page, _) => ("writeback", "threads"),
    };
    let file = escaped(image);
    let mut command = Command::new("qemu-nbd");
    command
        .args(["--persistent", "--shared=4", "--image-opts"])
        .arg(format!("--cache={mode}"))
        .arg(format!("--aio={aio}"))
        .arg(format!("--socket={}", socket.display()))
        // Two servers have the raw file open at a time; only one of them is asked.
        .arg(format!(
            "driver={format},file.driver=file,file.locking=off,file.filename={file}"
        ));
    command
}

fn nbdkit(kind: Kind, image: &Path, socket: &Path, cache: Cache) -> Command {
    let mut command = Command::new("nbdkit");
    command
        .args(["--foreground", "--exit-with-parent", "--unix"])
        .arg(socket);
    if kind == Kind::NbdkitNull {
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

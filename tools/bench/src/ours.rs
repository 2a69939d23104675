//! Our server: the release `xylem-tapdisk`, driven over its control socket as the daemon does.

use crate::process::signal;
use anyhow::{Context, Result};
use datapath::{Access, Client, Extent, Format, NewImage, Supervisor, SupervisorConfig, listen};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use units::{DpId, RequestId};
use uuid::Uuid;

/// Export name and datapath of the only disk a process has here.
const DISK: &str = "disk";

/// Whether a file's bytes go through the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    /// They do.
    Page,
    /// They do not: `O_DIRECT`.
    Direct,
}

/// Where the binary is and where its sockets and logs go.
#[derive(Debug, Clone)]
pub(crate) struct Installed {
    pub(crate) binary: PathBuf,
    pub(crate) run_dir: PathBuf,
}

/// One running process; killed when dropped.
pub(crate) struct Ours {
    supervisor: Supervisor,
    client: Client,
    name: String,
}

impl Ours {
    /// Starts a process of that name, without a disk.
    ///
    /// # Errors
    /// When it does not come up; the text ends with its log.
    pub(crate) async fn start(installed: &Installed, name: &str) -> Result<Self> {
        let supervisor = Supervisor::new(SupervisorConfig {
            binary: installed.binary.clone(),
            run_dir: installed.run_dir.clone(),
            log_dir: installed.run_dir.join("log"),
            run_as: None,
        });
        let client = supervisor.client(name, &RequestId::random()).await?;
        Ok(Self {
            supervisor,
            client,
            name: name.to_owned(),
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.client.pid()
    }

    /// Writes an empty dynamic VHD.
    ///
    /// # Errors
    /// Those of the file and the process.
    pub(crate) async fn create(&self, path: &Path, virtual_bytes: u64) -> Result<()> {
        let image = NewImage {
            uuid: Uuid::new_v4(),
            virtual_bytes,
            resize_max_bytes: virtual_bytes,
            parent: None,
            extent: Extent::Grows,
        };
        let file = open(path)?.into();
        self.client
            .image_create(&RequestId::random(), image, file)
            .await?;
        Ok(())
    }

    /// Opens a VHD and serves it; returns the URI.
    ///
    /// # Errors
    /// Those of the file and the process.
    pub(crate) async fn serve(&self, path: &Path, cache: Cache) -> Result<String> {
        let file = open(path)?;
        let ours = file.try_clone()?;
        let (disk, rid) = (disk()?, RequestId::random());
        let layers = vec![(Format::Vhd, file.into())];
        self.client
            .open(&rid, &disk, layers, Extent::Grows, Access::ReadWrite)
            .await?;
        if cache == Cache::Direct {
            // Metadata is read while opening with reads of any length, which O_DIRECT refuses; what
            // comes after is aligned. The flag belongs to the open file that both processes share.
            let flags = fcntl_getfl(&ours)? | OFlags::DIRECT;
            fcntl_setfl(&ours, flags).context("setting O_DIRECT")?;
        }
        let socket = self.supervisor.nbd_socket(&self.name)?;
        self.client
            .serve(&rid, &disk, DISK, listen(&socket)?)
            .await?;
        Ok(format!("nbd+unix:///{DISK}?socket={}", socket.display()))
    }

    /// Closes the disk and ends the process.
    ///
    /// # Errors
    /// When the disk cannot be closed cleanly.
    pub(crate) async fn stop(self) -> Result<()> {
        let rid = RequestId::random();
        self.client.close(&rid, &disk()?).await?;
        self.supervisor.exit(&self.name, &rid).await?;
        Ok(())
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        // After an orderly end the number is nobody's or, at worst for a moment, a zombie's.
        if !self.client.is_gone() {
            signal(self.pid(), Signal::KILL);
        }
    }
}

fn disk() -> Result<DpId> {
    DISK.parse().context("the name of the disk")
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(path);
    file.with_context(|| format!("opening {}", path.display()))
}

//! Our server: the release `xylem-tapdisk`, driven over its control socket as the daemon does.

mod copies;

use crate::process::signal;
use anyhow::{Context, Result};
use datapath::protocol::ParentRef;
use datapath::{
    Access, Client, DiskSettings, Extent, Format, NewImage, Supervisor, SupervisorConfig, listen,
};
use rustix::process::Signal;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
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

impl From<Cache> for datapath::Cache {
    fn from(cache: Cache) -> Self {
        match cache {
            Cache::Page => Self::PageCache,
            Cache::Direct => Self::Direct,
        }
    }
}

/// Where the binary is and where its sockets and logs go.
#[derive(Debug, Clone)]
pub(crate) struct Installed {
    pub(crate) binary: PathBuf,
    pub(crate) run_dir: PathBuf,
}

/// A VHD that was written here.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    pub(crate) uuid: Uuid,
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

    /// Writes an empty VHD, dynamic or on top of a parent.
    ///
    /// # Errors
    /// Those of the file and the process.
    pub(crate) async fn create(
        &self,
        path: &Path,
        virtual_bytes: u64,
        parent: Option<&Image>,
    ) -> Result<Image> {
        let uuid = Uuid::new_v4();
        let image = NewImage {
            uuid,
            virtual_bytes,
            resize_max_bytes: virtual_bytes,
            parent: parent.map(parent_ref).transpose()?,
            extent: Extent::Grows,
        };
        let file = open(path)?.into();
        self.client
            .image_create(&RequestId::random(), image, file)
            .await?;
        Ok(Image {
            path: path.to_owned(),
            uuid,
        })
    }

    /// Opens a chain, leaf first, without serving it; returns how long the process took.
    ///
    /// # Errors
    /// Those of the files and the process.
    pub(crate) async fn open(&self, chain: &[&Path], cache: Cache) -> Result<Duration> {
        self.open_for(chain, cache, Access::ReadWrite).await
    }

    /// As [`Ours::open`], of a chain that others may have open too.
    ///
    /// # Errors
    /// As [`Ours::open`].
    pub(crate) async fn open_to_read(&self, chain: &[&Path], cache: Cache) -> Result<Duration> {
        self.open_for(chain, cache, Access::ReadOnly).await
    }

    async fn open_for(&self, chain: &[&Path], cache: Cache, access: Access) -> Result<Duration> {
        let mut layers = Vec::with_capacity(chain.len());
        for path in chain {
            layers.push((Format::Vhd, open(path)?.into()));
        }
        let settings = DiskSettings {
            cache: cache.into(),
            ..DiskSettings::default()
        };
        let (rid, disk) = (RequestId::random(), disk()?);
        let begun = Instant::now();
        self.client
            .open_with(&rid, &disk, layers, Extent::Grows, access, settings)
            .await?;
        Ok(begun.elapsed())
    }

    /// Serves the open disk; returns the URI.
    ///
    /// # Errors
    /// Those of the process.
    pub(crate) async fn serve(&self) -> Result<String> {
        let socket = self.supervisor.nbd_socket(&self.name)?;
        let rid = RequestId::random();
        self.client
            .serve(&rid, &disk()?, DISK, listen(&socket)?)
            .await?;
        Ok(format!("nbd+unix:///{DISK}?socket={}", socket.display()))
    }

    /// Serves the open disk over vhost-user; returns the socket.
    ///
    /// # Errors
    /// Those of the process.
    pub(crate) async fn serve_vhost_user(&self) -> Result<PathBuf> {
        let socket = self.supervisor.nbd_socket(&format!("{}-v", self.name))?;
        let (rid, listener) = (RequestId::random(), listen(&socket)?);
        self.client
            .serve_vhost_user(&rid, &disk()?, DISK, listener)
            .await?;
        Ok(socket)
    }

    /// Puts an image that was made on top of the leaf there; returns when it was asked for and when
    /// it was done.
    ///
    /// # Errors
    /// Those of the file and the process.
    pub(crate) async fn snapshot(&self, leaf: &Image) -> Result<(Instant, Instant)> {
        let container = open(&leaf.path)?.into();
        let (rid, disk) = (RequestId::random(), disk()?);
        let asked = Instant::now();
        self.client
            .snapshot(&rid, &disk, leaf.uuid, container)
            .await?;
        Ok((asked, Instant::now()))
    }

    /// Ends the process, which has no disk.
    ///
    /// # Errors
    /// When it does not end.
    pub(crate) async fn exit(self) -> Result<()> {
        let rid = RequestId::random();
        Ok(self.supervisor.exit(&self.name, &rid).await?)
    }

    /// Closes the disk and ends the process.
    ///
    /// # Errors
    /// When the disk cannot be closed cleanly.
    pub(crate) async fn stop(self) -> Result<()> {
        let rid = RequestId::random();
        self.client.close(&rid, &disk()?).await?;
        self.exit().await
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

fn parent_ref(parent: &Image) -> Result<ParentRef> {
    let name = parent.path.file_name().context("an image without a name")?;
    Ok(ParentRef {
        name: name.to_string_lossy().into_owned(),
        uuid: parent.uuid,
        mtime_unix_s: std::fs::metadata(&parent.path)?.mtime(),
    })
}

pub(crate) fn disk() -> Result<DpId> {
    DISK.parse().context("the name of the disk")
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(path);
    file.with_context(|| format!("opening {}", path.display()))
}

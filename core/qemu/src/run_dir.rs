//! What the back end keeps on disk: its lock, domain numbers, one record per domain.

use crate::process::{self, io};
use hypervisor::{DeviceName, DiskConfig, DomainConfig, Error, ErrorKind};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use units::VmUuid;

/// The longest path of a unix socket, its final zero not counted (`unix(7)`).
const SOCKET_PATH_MAX: usize = 107;
/// The longest thing we put below the run directory: a uuid and a socket's name.
const LONGEST_BELOW: usize = 1 + 36 + 1 + "console.sock".len();
/// How long a daemon waits for the one before it to let go.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// One domain, as the next daemon must know it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stored {
    pub(crate) domid: u32,
    /// As it was created, to recognise a repeated `create`.
    pub(crate) config: DomainConfig,
    /// Disks it has or may have; which it really has, QEMU knows.
    pub(crate) disks: BTreeMap<DeviceName, DiskConfig>,
}

/// The back end's directory, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    _lock: File,
}

impl RunDir {
    /// # Errors
    /// `Invalid` for a path too long for sockets below it; `Io`, also when another daemon has it.
    pub(crate) async fn open(path: &Path) -> Result<Self, Error> {
        let room = SOCKET_PATH_MAX - LONGEST_BELOW;
        if path.as_os_str().len() > room {
            let context = format!("run directory {} is longer than {room}", path.display());
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(path)
            .map_err(|error| io("make", path, error))?;
        let lock_path = path.join("lock");
        let lock = File::create(&lock_path).map_err(|error| io("open", &lock_path, error))?;
        let deadline = tokio::time::Instant::now() + LOCK_WAIT;
        while let Err(error) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK || tokio::time::Instant::now() >= deadline {
                return Err(io("lock", &lock_path, error));
            }
            tokio::time::sleep(process::POLL).await;
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    pub(crate) fn domain(&self, vm: VmUuid) -> PathBuf {
        self.path.join(vm.to_string())
    }

    /// The VMs that have a directory, alive or not.
    pub(crate) fn domains(&self) -> Result<Vec<VmUuid>, Error> {
        let read = std::fs::read_dir(&self.path).map_err(|error| io("list", &self.path, error))?;
        let mut vms = Vec::new();
        for entry in read {
            let entry = entry.map_err(|error| io("list", &self.path, error))?;
            vms.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<VmUuid>().ok()),
            );
        }
        Ok(vms)
    }

    /// Gives a number that was never given from this directory. Callers take turns.
    pub(crate) fn next_domid(&self) -> Result<u32, Error> {
        let path = self.path.join("domids");
        let last = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().unwrap_or(0),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0u32,
            Err(error) => return Err(io("read", &path, error)),
        };
        let next = last.checked_add(1).ok_or_else(|| {
            Error::new(
                ErrorKind::Failed,
                "all domain numbers have been given".to_owned(),
            )
        })?;
        replace(&path, next.to_string().as_bytes())?;
        Ok(next)
    }

    /// Makes an empty directory for a domain; one left by a dead domain is cleared.
    pub(crate) fn make_domain(&self, vm: VmUuid) -> Result<PathBuf, Error> {
        self.remove_domain(vm)?;
        let dir = self.domain(vm);
        let made = std::fs::DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(|error| io("make", &dir, error))?;
        Ok(dir)
    }

    pub(crate) fn remove_domain(&self, vm: VmUuid) -> Result<(), Error> {
        let dir = self.domain(vm);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(io("remove", &dir, error))
            }
            _ => Ok(()),
        }
    }
}

impl Stored {
    pub(crate) fn load(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("domain.json");
        let text = std::fs::read(&path).map_err(|error| io("read", &path, error))?;
        serde_json::from_slice(&text).map_err(|error| io("understand", &path, error))
    }

    pub(crate) fn save(&self, dir: &Path) -> Result<(), Error> {
        let path = dir.join("domain.json");
        let text = serde_json::to_vec(self).map_err(|error| io("write", &path, error))?;
        replace(&path, &text)
    }
}

/// Writes a new file and renames it over the old one: a killed daemon leaves a whole file.
fn replace(path: &Path, text: &[u8]) -> Result<(), Error> {
    let new = path.with_extension("new");
    let write = || {
        std::fs::write(&new, text)?;
        std::fs::rename(&new, path)
    };
    write().map_err(|error| io("write", path, error))
}

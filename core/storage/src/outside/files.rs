//! Containers as files and block devices of this host.

use super::MetaFiles;
use crate::model::Access;
use async_trait::async_trait;
use plugin::Location;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path};

/// The real files.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostFiles;

#[async_trait]
impl MetaFiles for HostFiles {
    async fn read(&self, at: &Location, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let at = at.clone();
        blocking(move || {
            let file = open_container(&at, Access::ReadOnly)?;
            let mut bytes = vec![0; length];
            let mut done = 0;
            while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
                match file.read_at(rest, offset + done as u64) {
                    Ok(0) => break,
                    Ok(n) => done += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(bytes)
        })
        .await
    }

    async fn write(&self, at: &Location, offset: u64, bytes: Vec<u8>) -> io::Result<()> {
        let at = at.clone();
        blocking(move || {
            let file = open_container(&at, Access::ReadWrite)?;
            file.write_all_at(&bytes, offset)?;
            file.sync_data()
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(io::Error::other(e)))
}

/// Opens a container, which must be what the plugin said: a regular file or a block device at an
/// absolute path without `..` whose last part is not a symbolic link (for a file), so that a
/// plugin cannot name `/dev/mem` or a pipe.
///
/// # Errors
/// `InvalidInput` when it is something else, and those of `open(2)`.
pub fn open_container(at: &Location, access: Access) -> io::Result<File> {
    let (path, flags) = match at {
        Location::File(path) => (path, rustix::fs::OFlags::NOFOLLOW),
        // Device paths are links by custom (/dev/mapper/..); what they lead to is checked below.
        Location::BlockDevice(path) => (path, rustix::fs::OFlags::empty()),
    };
    check_path(path)?;
    let flags = flags | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let file = OpenOptions::new()
        .read(true)
        .write(access == Access::ReadWrite)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let kind = file.metadata()?.file_type();
    let expected = match at {
        Location::File(_) => kind.is_file(),
        Location::BlockDevice(_) => kind.is_block_device(),
    };
    if expected {
        Ok(file)
    } else {
        Err(refused(
            path,
            "is neither a regular file nor the block device it is said to be",
        ))
    }
}

fn check_path(path: &Path) -> io::Result<()> {
    let plain = path
        .components()
        .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && plain {
        Ok(())
    } else {
        Err(refused(path, "is not a plain absolute path"))
    }
}

fn refused(path: &Path, why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{} {why}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn only_plain_files_are_opened_as_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, "x").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(open_container(&Location::File(file.clone()), Access::ReadWrite).is_ok());
        for bad in [
            link,
            PathBuf::from("/dev/null"),
            dir.path().join("../a"),
            PathBuf::from("a"),
        ] {
            assert!(
                open_container(&Location::File(bad.clone()), Access::ReadOnly).is_err(),
                "{bad:?}"
            );
        }
        let device = Location::BlockDevice(file);
        assert!(
            open_container(&device, Access::ReadOnly).is_err(),
            "a file passed as a device"
        );
    }

    #[tokio::test]
    async fn reads_beyond_the_end_are_zeros_and_writes_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let at = Location::File(dir.path().join("m"));
        File::create(dir.path().join("m")).unwrap();
        HostFiles.write(&at, 4, b"abc".to_vec()).await.unwrap();
        assert_eq!(HostFiles.read(&at, 2, 8).await.unwrap(), b"\0\0abc\0\0\0");
    }
}

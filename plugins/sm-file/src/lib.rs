//! A storage manager that keeps each container as a file in a directory.
//!
//! The directory is marked with the SR's uuid, and every call looks for that mark: a directory
//! that is not mounted is an error, never an empty SR.

#![deny(unsafe_code)]

use xylem_sdk::files::{self, FileKind};
use xylem_sdk::storage::*;
use xylem_sdk::{Config, Error, ErrorKind, Result};

/// Holds the SR's uuid. Its name starts with a dot, so it cannot be a container.
const MARK: &str = ".xylem-sr";

/// One attached SR.
struct FileSr {
    directory: String,
}

impl FileSr {
    fn path(&self, id: &str) -> String {
        format!("{}/{id}", self.directory)
    }

    fn container(&self, id: &str, asked_bytes: u64) -> Result<Container> {
        let file = files::stat(&self.path(id))?;
        let capacity_bytes = file.size_bytes.max(asked_bytes);
        Ok(Container {
            id: file.name,
            capacity_bytes,
            used_bytes: file.used_bytes,
        })
    }
}

/// Reads a directory's mark; `None` if it has none.
fn mark(directory: &str) -> Result<Option<String>> {
    match files::read(&format!("{directory}/{MARK}")) {
        Ok(uuid) => Ok(Some(uuid.trim().to_owned())),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl StorageManager for FileSr {
    fn query() -> PluginInfo {
        plugin_info! {
            driver: "file",
            name: "Files in a directory",
            description: "Keeps each disk as a file in a directory of this host",
            vendor: "Xylem",
            copyright: "MIT OR Apache-2.0",
            configuration: { "location": "absolute path of the directory" },
        }
    }

    fn create(sr: &str, config: &Config) -> Result<Config> {
        let directory = config.require_path("location")?;
        files::create_directory(directory)?;
        match mark(directory)? {
            Some(other) if other != sr => {
                Err(Error::exists(format!("{directory} belongs to SR {other}")))
            }
            _ => files::write(&format!("{directory}/{MARK}"), sr).map(|()| config.clone()),
        }
    }

    fn attach(sr: &str, config: &Config) -> Result<String> {
        let handle = format!("{sr}:{}", config.require_path("location")?);
        Self::open(&handle).map(|_| handle)
    }

    fn open(handle: &str) -> Result<Self> {
        let (sr, directory) = handle
            .split_once(':')
            .ok_or_else(|| Error::invalid(format!("handle {handle:?}")))?;
        match mark(directory)? {
            Some(found) if found == sr => Ok(Self {
                directory: directory.to_owned(),
            }),
            Some(other) => Err(Error::not_found(format!(
                "{directory} belongs to SR {other}"
            ))),
            None => Err(Error::not_found(format!(
                "{directory} has no {MARK}: is it mounted?"
            ))),
        }
    }

    fn destroy(&self) -> Result<()> {
        for container in self.containers()? {
            files::remove(&self.path(&container.id))?;
        }
        files::remove(&self.path(MARK))
    }

    fn stat(&self) -> Result<SrStat> {
        let space = files::space(&self.directory)?;
        let files::FileSystem {
            total_bytes,
            free_bytes,
        } = space;
        Ok(SrStat {
            total_bytes,
            free_bytes,
            capacity: Capacity::Grows,
            health: Ok(()),
        })
    }

    fn containers(&self) -> Result<Vec<Container>> {
        let mut entries = files::entries(&self.directory)?;
        entries.retain(|file| file.kind == FileKind::Regular && !file.name.starts_with('.'));
        Ok(entries
            .into_iter()
            .map(|file| Container {
                id: file.name,
                capacity_bytes: file.size_bytes,
                used_bytes: file.used_bytes,
            })
            .collect())
    }

    fn container_create(&self, id: &str, capacity_bytes: u64) -> Result<Container> {
        files::create(&self.path(id))?;
        self.container(id, capacity_bytes)
    }

    fn container_remove(&self, id: &str) -> Result<()> {
        files::remove(&self.path(id))
    }

    fn container_rename(&self, source: &str, target: &str) -> Result<()> {
        files::rename(&self.path(source), &self.path(target))
    }

    fn container_grow(&self, id: &str, capacity_bytes: u64) -> Result<Container> {
        self.container(id, capacity_bytes)
    }

    fn container_locate(&self, id: &str) -> Result<Location> {
        let path = self.path(id);
        match files::stat(&path)?.kind {
            FileKind::Regular => Ok(Location::File(path)),
            other => Err(Error::invalid(format!("{path} is a {other:?}"))),
        }
    }
}

export_plugin!(FileSr);

//! Files below granted directories.
//!
//! The kernel keeps every path inside its root: a path is opened with `openat2` relative to the
//! root's descriptor, beneath it and without symbolic links. Names never go through a second
//! resolution: what happens to a file happens through its directory's descriptor.

use crate::functions::parse;
use plugin::{PluginErrorKind as Kind, ServiceError, TEXT_BYTES_MAX, is_plain_path};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;
use serde::Deserialize;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Entries that a directory may have to be listed.
const ENTRIES_MAX: usize = 100_000;
/// Mode of new files and directories.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

type Result<T> = std::result::Result<T, ServiceError>;

/// The granted directories.
pub(crate) struct Files {
    roots: Vec<(PathBuf, OwnedFd)>,
    last_temporary: AtomicU64,
}

#[derive(Deserialize)]
struct Directory {
    directory: PathBuf,
}

#[derive(Deserialize)]
struct One {
    path: PathBuf,
}

#[derive(Deserialize)]
struct SetLength {
    path: PathBuf,
    length_bytes: u64,
}

#[derive(Deserialize)]
struct Rename {
    source: PathBuf,
    target: PathBuf,
}

#[derive(Deserialize)]
struct WriteAll {
    path: PathBuf,
    content: String,
}

/// A path taken apart: the opened directory and the last component.
struct Place<'a> {
    root: &'a Path,
    path: &'a Path,
    directory: File,
    name: &'a OsStr,
}

fn refuse<T>(kind: Kind, message: String) -> Result<T> {
    Err(ServiceError::new(kind, message))
}

/// Turns an error of the system into what `wit` says.
fn failed(path: &Path) -> impl Fn(Errno) -> ServiceError + '_ {
    move |errno| {
        let kind = match errno {
            Errno::NOENT => Kind::NotFound,
            Errno::EXIST => Kind::Exists,
            Errno::ACCESS | Errno::PERM | Errno::LOOP | Errno::XDEV | Errno::ROFS => Kind::Denied,
            Errno::NOSPC | Errno::DQUOT => Kind::NoSpace,
            Errno::NOTDIR | Errno::ISDIR | Errno::INVAL | Errno::NAMETOOLONG => Kind::Invalid,
            Errno::BUSY | Errno::NOTEMPTY | Errno::TXTBSY => Kind::Busy,
            _ => Kind::Io,
        };
        ServiceError::new(kind, format!("{}: {errno}", path.display()))
    }
}

fn io_failed(path: &Path) -> impl Fn(std::io::Error) -> ServiceError + '_ {
    move |error| match Errno::from_io_error(&error) {
        Some(errno) => failed(path)(errno),
        None => ServiceError::new(Kind::Io, format!("{}: {error}", path.display())),
    }
}

/// Opens below a root and nowhere else.
fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

impl Files {
    pub(crate) fn new(roots: Vec<(PathBuf, OwnedFd)>) -> Self {
        Self {
            roots,
            last_temporary: AtomicU64::new(0),
        }
    }

    /// Calls a function of the interface `files`.
    pub(crate) fn call(&self, function: &str, body: &[u8]) -> Result<Value> {
        match function {
            "entries" => self.entries(&parse::<Directory>(body)?.directory),
            "stat" => self.stat(&parse::<One>(body)?.path),
            "create" => self.create(&parse::<One>(body)?.path).map(|()| Value::Null),
            "create_directory" => self
                .create_directory(&parse::<One>(body)?.path)
                .map(|()| Value::Null),
            "set_length" => {
                let SetLength { path, length_bytes } = parse(body)?;
                self.set_length(&path, length_bytes).map(|()| Value::Null)
            }
            "remove" => self.remove(&parse::<One>(body)?.path).map(|()| Value::Null),
            "rename" => {
                let Rename { source, target } = parse(body)?;
                self.rename(&source, &target).map(|()| Value::Null)
            }
            "space" => self.space(&parse::<One>(body)?.path),
            "read" => self.read(&parse::<One>(body)?.path),
            "write" => {
                let WriteAll { path, content } = parse(body)?;
                self.write(&path, &content).map(|()| Value::Null)
            }
            _ => refuse(
                Kind::Unsupported,
                format!("the host has no files.{function}"),
            ),
        }
    }

    /// Finds the granted directory that a path lies in.
    fn root<'a>(&'a self, path: &'a Path) -> Result<(&'a Path, BorrowedFd<'a>, &'a Path)> {
        if !is_plain_path(path) {
            let message = format!("{} is not absolute or has .. in it", path.display());
            return refuse(Kind::Invalid, message);
        }
        let inner = self
            .roots
            .iter()
            .max_by_key(|(root, _)| match path.starts_with(root) {
                true => root.as_os_str().len(),
                false => 0,
            });
        let found = inner.and_then(|(root, descriptor)| {
            Some((
                root.as_path(),
                descriptor.as_fd(),
                path.strip_prefix(root).ok()?,
            ))
        });
        match found {
            Some(found) => Ok(found),
            None => refuse(
                Kind::Denied,
                format!("{} is in no granted directory", path.display()),
            ),
        }
    }

    fn open(&self, path: &Path, flags: OFlags) -> Result<File> {
        let (_, root, rest) = self.root(path)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        open_beneath(root, rest, flags)
            .map(File::from)
            .map_err(failed(path))
    }

    /// Opens the directory that holds `path`.
    fn place<'a>(&'a self, path: &'a Path) -> Result<Place<'a>> {
        let (root_path, root, rest) = self.root(path)?;
        let Some(name) = rest.file_name() else {
            return refuse(
                Kind::Denied,
                format!("{} is granted as a whole", path.display()),
            );
        };
        let parent = rest.parent().unwrap_or(Path::new(""));
        let directory = open_beneath(root, parent, OFlags::RDONLY | OFlags::DIRECTORY)
            .map(File::from)
            .map_err(failed(path))?;
        Ok(Place {
            root: root_path,
            path,
            directory,
            name,
        })
    }

    fn entries(&self, path: &Path) -> Result<Value> {
        let directory = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&directory).map_err(failed(path))? {
            let entry = entry.map_err(failed(path))?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if name == "." || name == ".." {
                continue;
            }
            if entries.len() >= ENTRIES_MAX {
                let message = format!("{} has over {ENTRIES_MAX} entries", path.display());
                return refuse(Kind::Invalid, message);
            }
            match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => entries.push(describe(name, &stat, stat.st_size)),
                // Removed in between.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed(path)(errno)),
            }
        }
        Ok(Value::Array(entries))
    }

    fn stat(&self, path: &Path) -> Result<Value> {
        let (_, _, rest) = self.root(path)?;
        if rest.as_os_str().is_empty() {
            let directory = self.open(path, OFlags::PATH)?;
            let stat = rustix::fs::fstat(&directory).map_err(failed(path))?;
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or("/");
            return Ok(describe(name, &stat, stat.st_size));
        }
        let place = self.place(path)?;
        let stat = place.stat()?;
        let size = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => {
                let device = self.open(path, OFlags::RDONLY)?;
                let end = rustix::fs::seek(&device, SeekFrom::End(0)).map_err(failed(path))?;
                i64::try_from(end).unwrap_or(i64::MAX)
            }
            _ => stat.st_size,
        };
        Ok(describe(&place.name.to_string_lossy(), &stat, size))
    }

    fn create(&self, path: &Path) -> Result<()> {
        let place = self.place(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(FILE_MODE);
        match rustix::fs::openat(&place.directory, place.name, flags, mode) {
            Ok(_) => place.sync(),
            Err(Errno::EXIST) => match FileType::from_raw_mode(place.stat()?.st_mode) {
                FileType::RegularFile => Ok(()),
                _ => refuse(
                    Kind::Exists,
                    format!("{} is no regular file", path.display()),
                ),
            },
            Err(errno) => Err(failed(path)(errno)),
        }
    }

    fn create_directory(&self, path: &Path) -> Result<()> {
        let (_, _, rest) = self.root(path)?;
        if rest.as_os_str().is_empty() {
            return Ok(());
        }
        let place = self.place(path)?;
        let mode = Mode::from_raw_mode(DIRECTORY_MODE);
        match rustix::fs::mkdirat(&place.directory, place.name, mode) {
            Ok(()) => place.sync(),
            Err(Errno::EXIST) => match FileType::from_raw_mode(place.stat()?.st_mode) {
                FileType::Directory => Ok(()),
                _ => refuse(Kind::Exists, format!("{} is no directory", path.display())),
            },
            Err(errno) => Err(failed(path)(errno)),
        }
    }

    fn set_length(&self, path: &Path, length_bytes: u64) -> Result<()> {
        let file = self.regular(path, OFlags::WRONLY)?;
        rustix::fs::ftruncate(&file, length_bytes).map_err(failed(path))?;
        rustix::fs::fsync(&file).map_err(failed(path))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let place = match self.place(path) {
            // Its directory is not there, so neither is the file.
            Err(error) if error.kind == Kind::NotFound => return Ok(()),
            other => other?,
        };
        let unlink = |flags| rustix::fs::unlinkat(&place.directory, place.name, flags);
        match unlink(AtFlags::empty()).or_else(|errno| match errno {
            Errno::ISDIR => unlink(AtFlags::REMOVEDIR),
            other => Err(other),
        }) {
            Ok(()) => place.sync(),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(failed(path)(errno)),
        }
    }

    fn rename(&self, source: &Path, target: &Path) -> Result<()> {
        let (from, to) = (self.place(source)?, self.place(target)?);
        if from.root != to.root {
            let message = format!("{} is in another granted directory", target.display());
            return refuse(Kind::Denied, message);
        }
        let flags = RenameFlags::NOREPLACE;
        let renamed =
            rustix::fs::renameat_with(&from.directory, from.name, &to.directory, to.name, flags);
        match renamed {
            Ok(()) => {
                from.sync()?;
                to.sync()
            }
            Err(Errno::NOENT) => to.stat().map(|_| ()),
            Err(errno) => Err(failed(target)(errno)),
        }
    }

    fn space(&self, path: &Path) -> Result<Value> {
        let directory = self.open(path, OFlags::RDONLY)?;
        let found = rustix::fs::fstatvfs(&directory).map_err(failed(path))?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(json!({
            "total_bytes": bytes(found.f_blocks),
            "free_bytes": bytes(found.f_bavail.min(found.f_blocks)),
        }))
    }

    fn read(&self, path: &Path) -> Result<Value> {
        let file = self.regular(path, OFlags::RDONLY)?;
        let mut bytes = Vec::new();
        file.take(TEXT_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(io_failed(path))?;
        if bytes.len() > TEXT_BYTES_MAX {
            let message = format!("{} is longer than {TEXT_BYTES_MAX} bytes", path.display());
            return refuse(Kind::Invalid, message);
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Value::String(text)),
            Err(_) => refuse(Kind::Invalid, format!("{} is not UTF-8", path.display())),
        }
    }

    fn write(&self, path: &Path, content: &str) -> Result<()> {
        if content.len() > TEXT_BYTES_MAX {
            return refuse(Kind::Invalid, format!("content of {} bytes", content.len()));
        }
        let place = self.place(path)?;
        let number = self.last_temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = format!(".new-{}-{number}", std::process::id());
        let written = place.write_new(&temporary, content).and_then(|()| {
            rustix::fs::renameat(&place.directory, &temporary, &place.directory, place.name)
                .map_err(failed(path))
        });
        if written.is_err() {
            // The first error is the one to report.
            let _ = rustix::fs::unlinkat(&place.directory, &temporary, AtFlags::empty());
        }
        written?;
        place.sync()
    }

    fn regular(&self, path: &Path, flags: OFlags) -> Result<File> {
        let file = self.open(path, flags)?;
        let stat = rustix::fs::fstat(&file).map_err(failed(path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return refuse(
                Kind::Invalid,
                format!("{} is no regular file", path.display()),
            );
        }
        Ok(file)
    }
}

impl Place<'_> {
    fn stat(&self) -> Result<Stat> {
        rustix::fs::statat(&self.directory, self.name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed(self.path))
    }

    /// Makes what happened to the directory durable.
    fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.directory).map_err(failed(self.path))
    }

    fn write_new(&self, name: &str, content: &str) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(FILE_MODE);
        let file = rustix::fs::openat(&self.directory, name, flags, mode);
        let mut file = file.map(File::from).map_err(failed(self.path))?;
        file.write_all(content.as_bytes())
            .map_err(io_failed(self.path))?;
        file.sync_all().map_err(io_failed(self.path))
    }
}

fn describe(name: &str, stat: &Stat, size: i64) -> Value {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => "regular",
        FileType::Directory => "directory",
        FileType::BlockDevice => "block-device",
        _ => "other",
    };
    json!({
        "name": name,
        "kind": kind,
        "size_bytes": u64::try_from(size).unwrap_or(0),
        "used_bytes": u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
        "modified_unix_s": stat.st_mtime,
    })
}

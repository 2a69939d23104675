//! The commands of `cbt-util`: logs of changed blocks, made, read, changed and merged.

use crate::disk::{create_file, open_file, sync_folder};
use crate::{Error, Result};
use clap::{ArgGroup, Args, Parser, Subcommand};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;
use vhd_rs::cbt::{CBT_HEADER_BYTES, CbtHeader, merge};
use vhd_rs::{Access, Extent, VIRTUAL_BYTES_MAX};

/// Makes, reads and changes logs of changed blocks. Exits with 0 or an error number of the system.
#[derive(Debug, Parser)]
#[command(name = "cbt-util", version, disable_help_subcommand = true)]
pub struct Cli {
    /// Accepted for scripts; errors are always told in full
    #[arg(long, global = true)]
    debug: bool,
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    Create(Create),
    Get(Get),
    Set(Set),
    Coalesce(Coalesce),
}

/// Makes a new log; a file of that name is overwritten
#[derive(Debug, Args)]
struct Create {
    /// File or device
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// Size of the disk
    #[arg(short = 's', value_name = "BYTES")]
    size_bytes: u64,
}

/// The things of which `get` prints one.
const WHAT: [&str; 5] = ["parent", "child", "consistent", "size", "bitmap"];

/// Prints one thing about a log
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(WHAT))]
struct Get {
    /// File or device
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// Uuid of the parent
    #[arg(short = 'p')]
    parent: bool,
    /// Uuid of the child
    #[arg(short = 'c')]
    child: bool,
    /// Whether it is consistent: 0 or 1
    #[arg(short = 'f')]
    consistent: bool,
    /// Size of the disk in bytes
    #[arg(short = 's')]
    size: bool,
    /// The bitmap, raw
    #[arg(short = 'b')]
    bitmap: bool,
}

/// Changes a log
#[derive(Debug, Args)]
struct Set {
    /// File or device
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// Uuid of the parent
    #[arg(short = 'p', value_name = "UUID")]
    parent: Option<Uuid>,
    /// Uuid of the child
    #[arg(short = 'c', value_name = "UUID")]
    child: Option<Uuid>,
    /// Whether it is consistent
    #[arg(short = 'f', value_name = "0|1", value_parser = clap::value_parser!(u8).range(0..=1))]
    consistent: Option<u8>,
    /// Size of the disk; it only grows
    #[arg(short = 's', value_name = "BYTES")]
    size_bytes: Option<u64>,
}

/// Adds what a log has to its child
#[derive(Debug, Args)]
struct Coalesce {
    /// The earlier log
    #[arg(short = 'p', value_name = "NAME")]
    parent: PathBuf,
    /// The later log, which is changed
    #[arg(short = 'c', value_name = "NAME")]
    child: PathBuf,
}

impl Cli {
    /// Does what the command line says and prints to `out`.
    ///
    /// # Errors
    /// Those of the command.
    pub fn run(&self, out: &mut dyn Write) -> Result<()> {
        match &self.command {
            Command::Create(command) => command.run(),
            Command::Get(command) => command.run(out),
            Command::Set(command) => command.run(),
            Command::Coalesce(command) => command.run(),
        }
    }
}

/// A log that was opened.
struct Log {
    path: PathBuf,
    file: File,
    header: CbtHeader,
}

impl Log {
    fn open(path: &Path, access: Access) -> Result<Self> {
        let (file, _) = open_file(path, access)?;
        let mut bytes = [0; CBT_HEADER_BYTES];
        let read = file.read_exact_at(&mut bytes, 0);
        read.map_err(|e| no_log(path, e))?;
        let header = CbtHeader::parse(&bytes).map_err(|e| Error::vhd(path, e))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            header,
        })
    }

    fn bitmap(&self) -> Result<Vec<u8>> {
        // At most 32 MiB, as the header was accepted.
        let mut map = vec![0; self.header.bitmap_bytes() as usize];
        let read = self.file.read_exact_at(&mut map, CBT_HEADER_BYTES as u64);
        read.map_err(|e| no_log(&self.path, e))?;
        Ok(map)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(bytes, offset);
        let flushed = written.and_then(|()| self.file.sync_data());
        flushed.map_err(|e| Error::io(format!("cannot write {}", self.path.display()), e))
    }
}

fn no_log(path: &Path, error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return Error::invalid(format!("{} is too short for a log", path.display()));
    }
    Error::io(format!("cannot read {}", path.display()), error)
}

fn check_size(bytes: u64) -> Result<u64> {
    if (1..=VIRTUAL_BYTES_MAX).contains(&bytes) {
        return Ok(bytes);
    }
    let text = format!("disks are tracked from 1 to {VIRTUAL_BYTES_MAX} bytes, not {bytes}");
    Err(Error::invalid(text))
}

impl Create {
    fn run(&self) -> Result<()> {
        let header = CbtHeader::new(check_size(self.size_bytes)?);
        let (file, extent) = create_file(&self.name)?;
        let log = Log {
            path: self.name.clone(),
            file,
            header,
        };
        if extent == Extent::Grows {
            let emptied = log.file.set_len(0);
            emptied.map_err(|e| Error::io(format!("cannot empty {}", self.name.display()), e))?;
        }
        let mut bytes = log.header.to_bytes().to_vec();
        bytes.resize(CBT_HEADER_BYTES + log.header.bitmap_bytes() as usize, 0);
        log.write(0, &bytes)?;
        sync_folder(&self.name)
    }
}

impl Get {
    fn run(&self, out: &mut dyn Write) -> Result<()> {
        let log = Log::open(&self.name, Access::ReadOnly)?;
        let header = &log.header;
        let printed = if self.parent {
            writeln!(out, "{}", header.parent)
        } else if self.child {
            writeln!(out, "{}", header.child)
        } else if self.consistent {
            writeln!(out, "{}", u8::from(header.consistent))
        } else if self.size {
            writeln!(out, "{}", header.size_bytes)
        } else {
            out.write_all(&log.bitmap()?)
        };
        printed.map_err(|e| Error::io("cannot print", e))
    }
}

impl Set {
    fn run(&self) -> Result<()> {
        let mut log = Log::open(&self.name, Access::ReadWrite)?;
        if let Some(size) = self.size_bytes {
            self.grow(&mut log, check_size(size)?)?;
        }
        let header = &mut log.header;
        header.parent = self.parent.unwrap_or(header.parent);
        header.child = self.child.unwrap_or(header.child);
        header.consistent = self.consistent.map_or(header.consistent, |flag| flag == 1);
        log.write(0, &log.header.to_bytes())
    }

    /// Adds clear bits, durable before the header says that they count.
    fn grow(&self, log: &mut Log, size_bytes: u64) -> Result<()> {
        let old = log.header.clone();
        if size_bytes < old.size_bytes {
            let text = format!(
                "{} tracks {} bytes and does not shrink to {size_bytes}",
                self.name.display(),
                old.size_bytes
            );
            return Err(Error::invalid(text));
        }
        // Whatever the file or device held there does not count as written.
        log.header.size_bytes = size_bytes;
        let more = log.header.bitmap_bytes() - old.bitmap_bytes();
        let end = CBT_HEADER_BYTES as u64 + old.bitmap_bytes();
        log.write(end, &vec![0; more as usize])
    }
}

impl Coalesce {
    fn run(&self) -> Result<()> {
        let parent = Log::open(&self.parent, Access::ReadOnly)?;
        let child = Log::open(&self.child, Access::ReadWrite)?;
        if parent.header.size_bytes > child.header.size_bytes {
            let text = format!(
                "{} tracks {} bytes, more than the {} of its child {}",
                self.parent.display(),
                parent.header.size_bytes,
                child.header.size_bytes,
                self.child.display()
            );
            return Err(Error::invalid(text));
        }
        let mut map = child.bitmap()?;
        merge(&mut map, &parent.bitmap()?).map_err(|e| Error::vhd(&self.child, e))?;
        child.write(CBT_HEADER_BYTES as u64, &map)
    }
}

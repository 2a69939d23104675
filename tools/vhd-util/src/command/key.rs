//! `key`: the hash by which an image knows its encryption key. Keys are in files named after the
//! image, `NAME,aes-xts-plain,256.key` or `NAME,aes-xts-plain,512.key`, as bare bytes.

use super::printing;
use crate::{Disk, Error, Result};
use clap::Args;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use vhd_rs::{Access, Keyhash};

/// Bits in the names of key files and bytes in the files, the preferred one first.
pub(super) const SIZES: [(u32, usize); 2] = [(512, 64), (256, 32)];

/// Computes, sets, checks or prints the hash of an image's encryption key
#[derive(Debug, Args)]
pub(super) struct Key {
    /// Print the hash of a key
    #[arg(short = 'C', requires = "key", conflicts_with_all = ["set", "check", "print"])]
    compute: bool,
    /// Enter a key's hash into an empty image
    #[arg(short = 's', requires = "name", conflicts_with = "check")]
    set: bool,
    /// Fail unless the image's hash is that of the key
    #[arg(short = 'c', requires = "name", requires = "key", conflicts_with_all = ["nonce", "hash"])]
    check: bool,
    /// Print the image's nonce and hash, or "none"
    #[arg(short = 'p', requires = "name")]
    print: bool,
    /// File or device
    #[arg(short = 'n', value_name = "NAME")]
    name: Option<PathBuf>,
    /// File with the key
    #[arg(short = 'k', value_name = "FILE")]
    key: Option<PathBuf>,
    /// Nonce in hexadecimal; zeros if not given
    #[arg(short = 'N', value_name = "HEX")]
    nonce: Option<String>,
    /// Hash in hexadecimal, instead of a key
    #[arg(short = 'H', value_name = "HEX", conflicts_with = "key")]
    hash: Option<String>,
}

impl Key {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<()> {
        if let (true, Some(key)) = (self.compute, &self.key) {
            let hash = Keyhash::of(self.nonce()?, &read_key(key)?).hash;
            return writeln!(out, "{}", to_hex(&hash)).map_err(printing);
        }
        let Some(name) = self
            .name
            .as_deref()
            .filter(|_| self.set || self.check || self.print)
        else {
            return Err(Error::invalid("nothing to do: give -C, -s, -c or -p"));
        };
        if self.set {
            let keyhash = self.new_keyhash(name)?;
            let mut disk = Disk::open(name, Access::ReadWrite)?;
            disk.change(|image| image.keyhash_plan(Some(&keyhash)))?;
        }
        let disk = Disk::open(name, Access::ReadOnly)?;
        if let (true, Some(key)) = (self.check, &self.key) {
            check_name(name, key)?;
            let checked = disk.image.check_key(Some(&read_key(key)?));
            checked.map_err(|e| Error::vhd(name, e))?;
        }
        if self.print {
            let line = match disk.image.keyhash() {
                Some(found) => format!("{} {}", to_hex(&found.nonce), to_hex(&found.hash)),
                None => "none".to_owned(),
            };
            writeln!(out, "{line}").map_err(printing)?;
        }
        Ok(())
    }

    fn nonce(&self) -> Result<[u8; 32]> {
        self.nonce.as_deref().map_or(Ok([0; 32]), from_hex)
    }

    fn new_keyhash(&self, name: &Path) -> Result<Keyhash> {
        let nonce = self.nonce()?;
        match (&self.key, &self.hash) {
            (Some(key), None) => {
                check_name(name, key)?;
                Ok(Keyhash::of(nonce, &read_key(key)?))
            }
            (None, Some(hash)) => Ok(Keyhash {
                nonce,
                hash: from_hex(hash)?,
            }),
            _ => Err(Error::invalid("a key or its hash must be given: -k or -H")),
        }
    }
}

/// Reads a key's bytes.
///
/// # Errors
/// `EINVAL` unless there are 32 or 64 of them.
pub(super) fn read_key(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path)
        .map_err(|e| Error::io(format!("cannot open the key {}", path.display()), e))?;
    key_from(file, &path.display().to_string())
}

/// Reads a key to the end of its source.
pub(super) fn key_from(source: impl Read, name: &str) -> Result<Vec<u8>> {
    let mut key = Vec::new();
    let most = SIZES[0].1 as u64 + 1;
    let read = source.take(most).read_to_end(&mut key);
    read.map_err(|e| Error::io(format!("cannot read the key {name}"), e))?;
    if SIZES.iter().any(|&(_, bytes)| bytes == key.len()) {
        return Ok(key);
    }
    Err(Error::invalid(format!(
        "the key {name} must have 32 or 64 bytes"
    )))
}

/// The names that the key files of an image may have.
pub(super) fn key_names(image: &Path) -> [String; 2] {
    let name = image.file_name().unwrap_or_default().to_string_lossy();
    let base = name.split(".vhd").next().unwrap_or_default();
    SIZES.map(|(bits, _)| format!("{base},aes-xts-plain,{bits}.key"))
}

/// Checks that a key's file is named after the image and says its length.
fn check_name(image: &Path, key: &Path) -> Result<()> {
    let names = key_names(image);
    let name = key.file_name().unwrap_or_default().to_string_lossy();
    let length = key
        .metadata()
        .map_err(|e| Error::io(format!("cannot stat {}", key.display()), e))?
        .len();
    let fits = |(expected, (_, bytes)): (&String, (u32, usize))| {
        *expected == name && bytes as u64 == length
    };
    if names.iter().zip(SIZES).any(fits) {
        return Ok(());
    }
    let [long, short] = names;
    Err(Error::invalid(format!(
        "the key of {} is called {long} with 64 bytes or {short} with 32, not {name} with {length}",
        image.display()
    )))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Result<[u8; 32]> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| u8::try_from(digit.to_digit(16)?).ok())
        .collect();
    let mut bytes = [0; 32];
    match digits {
        Some(digits) if digits.len() == 64 => {
            for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
                *byte = pair.iter().fold(0, |value, digit| value << 4 | digit);
            }
            Ok(bytes)
        }
        _ => Err(Error::invalid(format!(
            "{text} is not 64 hexadecimal digits"
        ))),
    }
}

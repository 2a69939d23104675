//! `copy`: all content of a chain in one new image, encrypted with another key, or in clear.

use super::create::New;
use super::key::{key_from, key_names, read_key};
use crate::chain::{BLOCK_SECTORS, Chain, Layer};
use crate::paths::canonical;
use crate::{Disk, Error, Fresh, Result, Writer};
use clap::Args;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use vhd_rs::{Access, BLOCK_BYTES, Cipher, Content, DiskType, Image, Keyhash};

/// Where keys are looked for by the names of images.
const KEY_FOLDER: &str = "/var/xen/blktap/keys";

/// Copies what a guest reads into a new image, decrypting and encrypting on the way
#[derive(Debug, Args)]
pub(super) struct Copy {
    /// The image to copy, read through its chain
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// File or device of the copy; a file of that name is overwritten
    #[arg(short = 'N', value_name = "NAME")]
    target: PathBuf,
    /// File with the key of the copy
    #[arg(short = 'k', value_name = "FILE", conflicts_with = "key_from_input")]
    key: Option<PathBuf>,
    /// Read the key of the copy from standard input
    #[arg(short = 'E')]
    key_from_input: bool,
    /// Folder with the key of an encrypted source, in a file named after it
    #[arg(short = 'K', value_name = "FOLDER", default_value = KEY_FOLDER)]
    key_folder: PathBuf,
}

impl Copy {
    pub(super) fn run(&self) -> Result<()> {
        let key = match &self.key {
            Some(path) => Some(read_key(path)?),
            None if self.key_from_input => Some(key_from(std::io::stdin(), "on standard input")?),
            None => None,
        };
        let source_key = self.source_key()?;
        let chain = Chain::open_clear(&self.name, source_key.as_deref())?;
        let Some(Layer::Vhd(leaf)) = chain.layers.first() else {
            return Ok(());
        };
        self.check_target(&chain)?;
        self.create(&leaf.image, key.as_deref())?;
        let mut disk = Disk::open(&self.target, Access::ReadWrite)?;
        if let Some(key) = &key {
            let keyhash = Keyhash::of(nonce()?, key);
            disk.change(|image| image.keyhash_plan(Some(&keyhash)))?;
        }
        self.copy(&chain, leaf.image.blocks(), &mut disk, key.as_deref())
    }

    fn source_key(&self) -> Result<Option<Vec<u8>>> {
        let disk = Disk::open(&self.name, Access::ReadOnly)?;
        if disk.image.keyhash().is_none() {
            return Ok(None);
        }
        let names = key_names(&self.name);
        let mut paths = names.iter().map(|name| self.key_folder.join(name));
        let found = paths.find(|path| path.exists());
        let found = found.ok_or_else(|| {
            let [long, short] = &names;
            let folder = self.key_folder.display();
            Error::invalid(format!("neither {long} nor {short} is in {folder}"))
        });
        read_key(&found?).map(Some)
    }

    fn check_target(&self, chain: &Chain) -> Result<()> {
        let Ok(target) = canonical(&self.target) else {
            return Ok(());
        };
        for layer in &chain.layers {
            if canonical(layer.path())? == target {
                let text = format!("{} is part of what is copied", self.target.display());
                return Err(Error::invalid(text));
            }
        }
        Ok(())
    }

    fn create(&self, source: &Image, key: Option<&[u8]>) -> Result<()> {
        let fixed = source.disk_type() == DiskType::Fixed;
        if fixed && key.is_some() {
            let text = format!(
                "a copy of {} is fixed and keeps no key",
                self.name.display()
            );
            return Err(Error::invalid(text));
        }
        let new = New {
            virtual_bytes: source.virtual_bytes(),
            resize_max_bytes: source.resize_max_bytes(),
            content: if fixed {
                Content::Fixed
            } else {
                Content::Dynamic
            },
        };
        new.create(&self.target)
    }

    /// Copies block by block. Blocks of zeros are left out: they read the same, in clear and
    /// encrypted.
    fn copy(&self, chain: &Chain, blocks: u32, disk: &mut Disk, key: Option<&[u8]>) -> Result<()> {
        let cipher = key.map(Cipher::new).transpose();
        let cipher = cipher.map_err(|e| Error::vhd(&self.target, e))?;
        let mut writer = Writer::new(disk, Fresh::Zeroed);
        let mut buffer = vec![0; BLOCK_BYTES as usize];
        for block in 0..blocks {
            let found = chain.read(block, 0..BLOCK_SECTORS, &mut buffer)?;
            if !found || buffer.iter().all(|&byte| byte == 0) {
                continue;
            }
            if let Some(cipher) = &cipher {
                let sector = u64::from(block) * u64::from(BLOCK_SECTORS);
                let encrypted = cipher.encrypt(sector, &mut buffer);
                encrypted.map_err(|e| Error::vhd(&self.target, e))?;
            }
            writer.write(block, 0, &buffer)?;
        }
        writer.finish()
    }
}

/// Random bytes for a new key's hash.
fn nonce() -> Result<[u8; 32]> {
    const SOURCE: &str = "/dev/urandom";
    let mut nonce = [0; 32];
    let read = File::open(Path::new(SOURCE)).and_then(|mut file| file.read_exact(&mut nonce));
    read.map_err(|e| Error::io(format!("cannot read {SOURCE}"), e))?;
    Ok(nonce)
}

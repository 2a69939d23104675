//! What the owner of the images knows durably: which chains may be the disk, and what is under way.

use super::change::Change;
use super::{DISK_BYTES, rid};
use anyhow::{Context, Result, ensure};
use block::Rng;
use datapath::protocol::ParentRef;
use datapath::{Client, Extent, Format, NewImage};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use uuid::Uuid;
use vhd_rs::{Image, OpenOptions};

/// Longest chain; snapshots wait for a merge then.
const LAYERS_MAX: usize = 6;

/// A chain, leaf first.
pub(super) type Layers = Vec<Uuid>;

#[derive(Debug)]
pub(super) struct Record {
    folder: PathBuf,
    /// What may be the disk: each of them is right.
    may_be: Vec<Layers>,
    /// An image that is being merged into its parent: redone until it is done. Once its child is
    /// being relinked the child's header says whether it is still in the chain.
    merging: Option<Uuid>,
    relinking: bool,
}

/// How a child names an image.
pub(super) fn parent_ref(uuid: Uuid) -> ParentRef {
    ParentRef {
        name: format!("{uuid}.vhd"),
        uuid,
        mtime_unix_s: 1_700_000_000,
    }
}

impl Record {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            may_be: Vec::new(),
            merging: None,
            relinking: false,
        }
    }

    fn path(&self, uuid: Uuid) -> PathBuf {
        self.folder.join(format!("{uuid}.vhd"))
    }

    pub(super) fn file(&self, uuid: Uuid, writable: bool) -> Result<OwnedFd> {
        let path = self.path(uuid);
        let file = File::options().read(true).write(writable).open(&path);
        Ok(file.with_context(|| path.display().to_string())?.into())
    }

    /// The chain the disk was opened with.
    pub(super) fn chain(&self) -> Layers {
        self.may_be.first().cloned().unwrap_or_default()
    }

    /// The chain from one layer on, as a process is given it.
    pub(super) fn open_chain(&self, from: usize, writable: bool) -> Result<Vec<(Format, OwnedFd)>> {
        let chain = self.chain();
        let layers = chain.iter().skip(from).enumerate();
        let file = |(depth, uuid): (usize, &Uuid)| {
            let file = self.file(*uuid, writable && depth == 0)?;
            Ok((Format::Vhd, file))
        };
        layers.map(file).collect()
    }

    /// This chain is the disk and no other.
    pub(super) fn is_now(&mut self, chain: Layers) {
        self.may_be = vec![chain];
    }

    /// This chain is the disk as well.
    pub(super) fn may_also_be(&mut self, chain: Layers) {
        self.may_be.push(chain);
    }

    pub(super) fn merges(&mut self, gone: Uuid) {
        self.merging = Some(gone);
    }

    pub(super) fn relinks(&mut self) {
        self.relinking = true;
    }

    pub(super) fn merged(&mut self, gone: Uuid) {
        (self.merging, self.relinking) = (None, false);
        self.may_be
            .iter_mut()
            .for_each(|chain| chain.retain(|uuid| *uuid != gone));
    }

    pub(super) fn is_relinking(&self) -> bool {
        self.relinking
    }

    /// Creates an empty image.
    pub(super) async fn new_layer(
        &self,
        client: &Client,
        rng: &mut Rng,
        parent: Option<Uuid>,
    ) -> Result<Uuid> {
        let parts = (u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64());
        let uuid = uuid::Builder::from_random_bytes(parts.to_be_bytes()).into_uuid();
        let image = NewImage {
            uuid,
            virtual_bytes: DISK_BYTES,
            resize_max_bytes: DISK_BYTES,
            parent: parent.map(parent_ref),
            extent: Extent::Grows,
        };
        let path = self.path(uuid);
        let mut new = File::options();
        new.read(true).write(true).create_new(true);
        let file = new.open(&path)?;
        client.image_create(&rid(), image, file.into()).await?;
        Ok(uuid)
    }

    /// What is done next. What is on record comes first.
    pub(super) fn next_change(&self, rng: &mut Rng) -> Option<Change> {
        if let Some(gone) = self.merging {
            return Some(Change::Coalesce(gone));
        }
        let chain = self.chain();
        let inner = chain.len().saturating_sub(2) as u64;
        let change = match rng.below(6) {
            0 | 1 if chain.len() < LAYERS_MAX => Change::Snapshot,
            2 | 3 if inner > 0 => {
                let index = 1 + rng.below(inner) as usize;
                Change::Coalesce(chain.get(index).copied()?)
            }
            4 if chain.len() > 1 => Change::LeafCoalesce,
            5 => Change::Mirror,
            _ => return None,
        };
        Some(change)
    }

    /// The chains that are the disk now: those on record, as far as headers have them so.
    pub(super) fn chains(&self) -> Result<Vec<Vec<PathBuf>>> {
        let mut chains = Vec::new();
        for chain in &self.may_be {
            let chain = self.as_headers_say(chain)?;
            chains.push(chain.iter().map(|uuid| self.path(*uuid)).collect());
        }
        Ok(chains)
    }

    fn as_headers_say(&self, chain: &[Uuid]) -> Result<Layers> {
        let mut found = Layers::new();
        let mut wanted = None;
        for uuid in chain {
            let is_gone = self.relinking && Some(*uuid) == self.merging;
            if is_gone && wanted != Some(*uuid) {
                continue;
            }
            ensure!(
                wanted.is_none_or(|wanted| wanted == *uuid),
                "{} stands on {wanted:?}, not on {uuid}",
                found.last().copied().unwrap_or_default()
            );
            let file = File::open(self.path(*uuid))?;
            let image = Image::open(&file, OpenOptions::default());
            wanted = image.with_context(|| uuid.to_string())?.parent_uuid();
            found.push(*uuid);
        }
        ensure!(wanted.is_none(), "the chain ends above {wanted:?}");
        Ok(found)
    }

    /// The next start: one of the chains that may be the disk is it from now on, and files that
    /// nothing names go.
    pub(super) fn recover(&mut self, rng: &mut Rng) -> Result<()> {
        let chosen = rng.below(self.may_be.len() as u64) as usize;
        let chain = self.may_be.get(chosen).cloned().unwrap_or_default();
        let chain = self.as_headers_say(&chain)?;
        if self.merging.is_some_and(|gone| !chain.contains(&gone)) {
            (self.merging, self.relinking) = (None, false);
        }
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let is_image = path.extension().is_some_and(|extension| extension == "vhd");
            if is_image && !chain.iter().any(|uuid| self.path(*uuid) == path) {
                fs::remove_file(path)?;
            }
        }
        self.may_be = vec![chain];
        Ok(())
    }
}

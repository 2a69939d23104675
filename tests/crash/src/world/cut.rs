//! Cutting the power, and judging what is left.

use super::{Disk, World, files_of};
use block::{FileId, Grain, RamDisk};
use datapath::protocol::{Access, Format};
use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use tapdisk::engine::testing::model::{Model, value_of};
use tapdisk::engine::testing::rig::{Rig, SECTOR, load_chain};

/// Most crashes of one turn that are tried without exception, whatever the choices.
const ALL_MAX: u64 = 1 << 16;

/// How many crashes are looked at in one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Up to this many volatile changes every subset in every order is tried, and as many choices
    /// of single sectors.
    pub exhaustive_max: u32,
    /// Torn subsets tried where not all are.
    pub samples: u32,
}

/// What a chain must read as.
#[derive(Debug, Clone, Copy)]
pub enum Expected<'a> {
    /// Any legal value in each sector.
    Legal(&'a Model),
    /// Exactly these values.
    Exactly(&'a [(u64, u64)]),
}

/// A chain of files that a crash left.
#[derive(Debug)]
pub struct LeftChain<'a> {
    /// Leaf first.
    pub files: Vec<(FileId, Format)>,
    /// What it must read as.
    pub expected: Expected<'a>,
    /// Its images are being put on other parents: the paths of one may be ahead of its header.
    pub is_relinking: bool,
}

/// What a crash left, for a second opinion.
#[derive(Debug)]
pub struct Left<'a> {
    /// Tells the files from all others.
    pub state: u64,
    /// The files.
    pub disk: &'a RamDisk,
    /// Every chain that the owner may open now, and every snapshot.
    pub chains: Vec<LeftChain<'a>>,
}

/// Keeps count of what a crash left and may judge it too.
pub trait Witness {
    /// Takes note of what a crash left; whether it is the first time.
    fn is_new(&mut self, state: u64) -> bool;

    /// Takes note of what is about to be judged, files and rules together; whether it is the first
    /// time.
    fn is_unjudged(&mut self, what: u64) -> bool;

    /// Judges a state that is new.
    ///
    /// # Errors
    /// What is wrong with it.
    fn examine(&mut self, left: &Left<'_>) -> Result<(), String>;
}

/// The states of one world, and what of them was judged.
#[derive(Debug, Default)]
pub struct States {
    /// Told by their files.
    pub left: HashSet<u64>,
    judged: HashSet<u64>,
}

impl Witness for States {
    fn is_new(&mut self, state: u64) -> bool {
        self.left.insert(state)
    }

    fn is_unjudged(&mut self, what: u64) -> bool {
        self.judged.insert(what)
    }

    fn examine(&mut self, _: &Left<'_>) -> Result<(), String> {
        Ok(())
    }
}

impl<W: Witness> Witness for &mut W {
    fn is_new(&mut self, state: u64) -> bool {
        (**self).is_new(state)
    }

    fn is_unjudged(&mut self, what: u64) -> bool {
        (**self).is_unjudged(what)
    }

    fn examine(&mut self, left: &Left<'_>) -> Result<(), String> {
        (**self).examine(left)
    }
}

/// What a chain reads as where its guest ever wrote, and beside it.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub(super) size_bytes: u64,
    pub(super) sectors: Vec<(u64, u64)>,
}

impl<W: super::Witness> World<W> {
    /// Cuts the power in as many ways as the effort allows.
    pub(super) fn cut(&mut self) {
        if !self.looking {
            return;
        }
        let Effort {
            exhaustive_max,
            samples,
        } = self.effort;
        let fine = self.host.io().cuts(Grain::Sector);
        if fine.count() <= 1 << exhaustive_max {
            for index in 0..fine.count() {
                self.check(&("sectors", index), &fine.nth(index));
            }
            return;
        }
        let coarse = self.host.io().cuts(Grain::Change);
        if coarse.changes() <= exhaustive_max as usize && coarse.count() <= ALL_MAX {
            for index in 0..coarse.count() {
                self.check(&("changes", index), &coarse.nth(index));
            }
        } else {
            for index in [0, coarse.count() - 1] {
                self.check(&("changes", index), &coarse.nth(index));
            }
        }
        for sample in 0..samples {
            let left = fine.sample(&mut self.crashes);
            self.check(&("sample", u64::from(sample)), &left);
        }
    }

    fn check(&mut self, crash: &dyn fmt::Debug, left: &RamDisk) {
        let digests: Vec<u64> = left.files().iter().map(|file| file.digest()).collect();
        let digest = |number: u32| {
            let file = self.nodes.get(&number).map(|node| node.file.0 as usize);
            file.and_then(|file| digests.get(file)).copied()
        };
        let mut hasher = DefaultHasher::new();
        for number in self.nodes.keys() {
            (number, digest(*number)).hash(&mut hasher);
        }
        let state = hasher.finish();
        let is_new = self.witness.is_new(state);
        for disk in self.disks.values() {
            let rules = (disk.model.fingerprint(), disk.sizes, self.merging.is_some());
            for chain in &disk.record {
                let mut hasher = DefaultHasher::new();
                for number in chain {
                    digest(*number).hash(&mut hasher);
                }
                rules.hash(&mut hasher);
                if self.witness.is_unjudged(hasher.finish()) {
                    let found = self.read_any(left, chain, &known_to(&disk.model));
                    let (_, content) =
                        found.unwrap_or_else(|e| panic!("{self:?}: after {crash:?}: {e}"));
                    self.judge_guest(crash, disk, &content);
                }
            }
        }
        for kept in &self.kept {
            let chain = self.ancestry(kept.image);
            let mut hasher = DefaultHasher::new();
            for number in &chain {
                digest(*number).hash(&mut hasher);
            }
            (&kept.content.sectors, kept.content.size_bytes).hash(&mut hasher);
            if self.witness.is_unjudged(hasher.finish()) {
                let sectors = kept.content.sectors.iter().map(|(sector, _)| *sector);
                let sectors: Vec<u64> = sectors.collect();
                let found = self.read_any(left, &chain, &sectors);
                let (_, content) =
                    found.unwrap_or_else(|e| panic!("{self:?}: snapshot, {crash:?}: {e}"));
                self.judge_snapshot(crash, kept, &content);
            }
        }
        if is_new {
            self.examine(crash, state, left);
        }
    }

    fn examine(&mut self, crash: &dyn fmt::Debug, state: u64, left: &RamDisk) {
        let of_disks = self.disks.values().flat_map(|disk| {
            let expected = Expected::Legal(&disk.model);
            disk.record
                .iter()
                .map(move |chain| (chain.clone(), expected))
        });
        let of_kept = self.kept.iter().map(|kept| {
            let expected = Expected::Exactly(&kept.content.sectors);
            (self.ancestry(kept.image), expected)
        });
        let fitting = of_disks.chain(of_kept).filter_map(|(chain, expected)| {
            let (chain, _) = self.read_any(left, &chain, &[]).ok()?;
            let files = files_of(&self.nodes, &chain);
            Some(LeftChain {
                files,
                expected,
                is_relinking: self.merging.is_some_and(|merging| merging.relinking),
            })
        });
        let chains = fitting.collect();
        let seen = Left {
            state,
            disk: left,
            chains,
        };
        if let Err(e) = self.witness.examine(&seen) {
            panic!("{self:?}: after {crash:?}: {e}");
        }
    }

    /// What a chain of the record may be in the files: while an image is taken out of chains, the
    /// headers tell whether it still is in this one.
    fn alternatives(&self, chain: &[u32]) -> Vec<Vec<u32>> {
        let mut all = vec![chain.to_vec()];
        if let Some(merging) = self.merging.filter(|merging| merging.relinking)
            && chain.contains(&merging.gone)
        {
            let rest = chain
                .iter()
                .copied()
                .filter(|number| *number != merging.gone);
            all.push(rest.collect());
        }
        all
    }

    /// Opens a chain of the record as recovery does, and reads.
    pub(super) fn read_any(
        &self,
        left: &RamDisk,
        chain: &[u32],
        sectors: &[u64],
    ) -> Result<(Vec<u32>, Content), String> {
        let mut refused = Vec::new();
        for chain in self.alternatives(chain) {
            match read_sectors(left, &files_of(&self.nodes, &chain), sectors) {
                Ok(content) => return Ok((chain, content)),
                Err(e) => refused.push(e),
            }
        }
        Err(refused.join("; "))
    }

    pub(super) fn judge_guest(&self, crash: &dyn fmt::Debug, disk: &Disk, content: &Content) {
        let (size, (least, most)) = (content.size_bytes, disk.sizes);
        assert!(
            (least..=most).contains(&size),
            "{self:?}: after {crash:?} {size} bytes, may be {least} to {most}"
        );
        for (sector, value) in &content.sectors {
            assert!(
                disk.model.is_legal(*sector, *value),
                "{self:?}: after {crash:?} sector {sector} is {value}, may be {}",
                disk.model.describe(*sector)
            );
        }
    }

    fn judge_snapshot(&self, crash: &dyn fmt::Debug, kept: &super::Kept, content: &Content) {
        let image = kept.image;
        for (found, expected) in content.sectors.iter().zip(&kept.content.sectors) {
            assert_eq!(
                found, expected,
                "{self:?}: snapshot {image} after {crash:?}"
            );
        }
        let sizes = (content.size_bytes, kept.content.size_bytes);
        assert_eq!(
            sizes.0, sizes.1,
            "{self:?}: size of snapshot {image} after {crash:?}"
        );
    }
}

/// Every sector the model knows, and the ones beside.
pub(super) fn known_to(model: &Model) -> Vec<u64> {
    let touched = model.touched();
    let mut sectors: Vec<u64> = touched
        .flat_map(|sector| sector.saturating_sub(1)..=sector + 1)
        .collect();
    sectors.sort_unstable();
    sectors.dedup();
    sectors
}

/// Recovery: opens what a crash left and reads. Sound metadata is what `Image::open` insists on:
/// blocks inside the file, no overlaps.
pub(super) fn read_sectors(
    disk: &RamDisk,
    files: &[(FileId, Format)],
    sectors: &[u64],
) -> Result<Content, String> {
    let layers = load_chain(disk, files, Access::ReadOnly).map_err(|e| format!("open: {e}"))?;
    let rig = Rig::with_layers(disk.clone(), layers, Access::ReadOnly);
    let mut rig = rig.map_err(|e| format!("chain: {e}"))?;
    let size_bytes = rig.engine.size_bytes();
    let inside = |sector: &u64| *sector < size_bytes / SECTOR;
    let wanted: Vec<u64> = sectors.iter().copied().filter(inside).collect();
    let mut sectors = Vec::with_capacity(wanted.len());
    for run in wanted.chunk_by(|a, b| a + 1 == *b) {
        let first = run.first().copied().unwrap_or(0);
        let bytes = rig.read(first * SECTOR, run.len() as u64 * SECTOR);
        let bytes = bytes.map_err(|e| format!("read: {e}"))?;
        for (sector, bytes) in run.iter().zip(bytes.chunks(SECTOR as usize)) {
            let value = value_of(bytes).ok_or_else(|| format!("mixture in {sector}"))?;
            sectors.push((*sector, value));
        }
    }
    Ok(Content {
        size_bytes,
        sectors,
    })
}

//! The second opinion on what a crash left: the checker and the naive reader, which share no code
//! with the engine, look at it in files.

use anyhow::{Context, Result, bail};
use block::SparseBytes;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tapdisk::engine::testing::model::{Model, value_of};
use tapdisk::engine::testing::power::Left;
use vhd_checker::{Strictness, check, check_link, read_flat};

/// Judges a chain in memory by way of files in `folder`.
pub(crate) fn of_left(folder: &Path, left: &Left<'_>) -> Result<()> {
    let mut chain = Vec::new();
    for (file, _) in left.files {
        let content = left.disk.file(*file).context("a file of the chain")?;
        let path = folder.join(format!("{}.vhd", file.0));
        put(&path, content).context("cannot write the files for the checker")?;
        chain.push(path);
    }
    of_chain(&chain, left.model)
}

/// Judges a chain of files, leaf first.
pub(crate) fn of_chain(chain: &[PathBuf], model: &Model) -> Result<()> {
    for path in chain {
        let report = check(path, Strictness::AfterCrash)?;
        if !report.is_sound() {
            bail!("checker: {}: {:?}", path.display(), report.problems);
        }
    }
    for (child, parent) in chain.iter().zip(chain.iter().skip(1)) {
        let report = check_link(child, Some(parent))?;
        if !report.is_sound() {
            bail!("checker: {}: {:?}", child.display(), report.problems);
        }
    }
    let flat = read_flat(chain)?;
    for sector in model
        .touched()
        .filter(|sector| *sector < flat.size_bytes / 512)
    {
        let bytes = flat.sector(sector)?;
        let known = || model.describe(sector);
        match value_of(&bytes) {
            Some(value) if model.is_legal(sector, value) => {}
            Some(value) => bail!("naive reader: {sector} is {value}, may be {}", known()),
            None => bail!("naive reader: mixture in {sector}, may be {}", known()),
        }
    }
    Ok(())
}

fn put(path: &Path, content: &SparseBytes) -> std::io::Result<()> {
    let file = File::create(path)?;
    file.set_len(content.size_bytes())?;
    for (offset, bytes) in content.pages() {
        let inside = content.size_bytes().saturating_sub(offset);
        let len = usize::try_from(inside).map_or(bytes.len(), |inside| inside.min(bytes.len()));
        file.write_all_at(bytes.get(..len).unwrap_or(bytes), offset)?;
    }
    Ok(())
}

//! The second opinions on what a crash left: the checker and the naive reader, which share no code
//! with the engine, look at it in files; and QEMU compares what our reader and theirs make of it.

use anyhow::{Context, Result, bail, ensure};
use block::{FileId, RamDisk, SparseBytes};
use datapath::protocol::{Access, Format};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tapdisk::engine::testing::model::{Model, value_of};
use tapdisk::engine::testing::rig::{Rig, dynamic, load_chain};
use vhd_checker::{Flat, Strictness, check, check_link, read_flat};

use crate::world::{Expected, Left, LeftChain};

/// How much is read at a time while a chain is flattened.
const STEP_BYTES: u64 = 64 << 10;

/// Judges what is in memory by way of files in `folder`.
pub(crate) fn of_left(folder: &Path, left: &Left<'_>, with_qemu: bool) -> Result<()> {
    for chain in &left.chains {
        let paths = put_chain(folder, left.disk, &chain.files)?;
        let flat = sound_chain(&paths, chain.is_relinking)?;
        match chain.expected {
            Expected::Legal(model) => legal(&flat, model)?,
            Expected::Exactly(sectors) => exact(&flat, sectors)?,
        }
        if with_qemu {
            qemu_agrees(folder, left.disk, chain, &flat)?;
        }
    }
    Ok(())
}

/// Judges a chain of files, leaf first.
pub(crate) fn of_chain(chain: &[PathBuf], model: &Model, is_relinking: bool) -> Result<()> {
    legal(&sound_chain(chain, is_relinking)?, model)
}

fn put_chain(folder: &Path, disk: &RamDisk, files: &[(FileId, Format)]) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for (file, _) in files {
        let content = disk.file(*file).context("a file of the chain")?;
        let path = folder.join(format!("{}.vhd", file.0));
        put(&path, content).context("cannot write the files for the checker")?;
        paths.push(path);
    }
    Ok(paths)
}

/// The content of a chain in which the checker finds no fault. The paths in an image that is being
/// relinked are new before its header is.
fn sound_chain(chain: &[PathBuf], is_relinking: bool) -> Result<Flat> {
    for path in chain {
        let mut report = check(path, Strictness::AfterCrash)?;
        report
            .problems
            .retain(|problem| !(is_relinking && problem.0.starts_with("locator ")));
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
    Ok(read_flat(chain)?)
}

fn legal(flat: &Flat, model: &Model) -> Result<()> {
    let inside = |sector: &u64| *sector < flat.size_bytes / 512;
    for sector in model.touched().filter(inside) {
        let known = || model.describe(sector);
        match value_of(&flat.sector(sector)?) {
            Some(value) if model.is_legal(sector, value) => {}
            Some(value) => bail!("naive reader: {sector} is {value}, may be {}", known()),
            None => bail!("naive reader: mixture in {sector}, may be {}", known()),
        }
    }
    Ok(())
}

fn exact(flat: &Flat, sectors: &[(u64, u64)]) -> Result<()> {
    for (sector, expected) in sectors {
        let value = value_of(&flat.sector(*sector)?);
        ensure!(
            value == Some(*expected),
            "naive reader: {sector} of a snapshot is {value:?}, was {expected}"
        );
    }
    Ok(())
}

/// Flattens the chain with our reader into one image and with the naive one into a raw file; QEMU,
/// which knows no parents, finds them equal.
fn qemu_agrees(folder: &Path, disk: &RamDisk, chain: &LeftChain<'_>, flat: &Flat) -> Result<()> {
    let (ours, naive) = (folder.join("flat.vhd"), folder.join("flat.raw"));
    put(&ours, &flattened(disk, &chain.files)?)?;
    flat.write_to(&naive)?;
    let mut compare = Command::new("qemu-img");
    compare
        .args(["compare", "-f", "vpc", "-F", "raw"])
        .args([&ours, &naive]);
    let output = compare.output().context("cannot run qemu-img")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "qemu-img: {said} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn flattened(disk: &RamDisk, files: &[(FileId, Format)]) -> Result<SparseBytes> {
    let layers = load_chain(disk, files, Access::ReadOnly)?;
    let mut from = Rig::with_layers(disk.clone(), layers, Access::ReadOnly)?;
    let size = from.engine.size_bytes();
    let mut ram = RamDisk::new();
    let file = ram.add_file(dynamic(1, size));
    let mut into = Rig::open(ram, &[(file, Format::Vhd)]);
    for offset in (0..size).step_by(STEP_BYTES as usize) {
        let bytes = from.read(offset, STEP_BYTES.min(size - offset))?;
        if bytes.iter().any(|byte| *byte != 0) {
            into.write(offset, &bytes)?;
        }
    }
    let ram = into.close();
    ram.file(file).cloned().context("the flat image")
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

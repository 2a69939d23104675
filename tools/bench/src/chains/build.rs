//! Chains made as they come to be: a disk is written to, gets a snapshot, is written to, …

use crate::guest::{Op, perform};
use crate::images::make_empty;
use crate::kind::{Family, Kind};
use crate::ours::{Cache, Image, Ours};
use crate::process;
use crate::random::Random;
use crate::server::Servers;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

const BLOCK_BYTES: u64 = 2 << 20;

/// One extent: several of them make a block that no layer has whole.
const CHUNK_BYTES: u64 = 64 << 10;

/// Writes in flight while a layer is filled.
const DEPTH: usize = 8;

/// How long qemu-img may take.
const MAKE: Duration = Duration::from_secs(60);

/// What each layer above the base holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spread {
    /// Blocks of the disk that a layer touches.
    pub(super) blocks: u64,
    /// Random chunks of 64 KiB in each of them.
    pub(super) chunks: u64,
}

impl Spread {
    /// The writes of one layer; the same for every server.
    fn ops(self, layer: u64, disk_bytes: u64) -> Vec<Op> {
        let mut random = Random::new(1000 + layer);
        let mut ops = Vec::new();
        for block in random.some(self.blocks, disk_bytes / BLOCK_BYTES) {
            for chunk in random.some(self.chunks, BLOCK_BYTES / CHUNK_BYTES) {
                ops.push(Op::Write {
                    offset: block * BLOCK_BYTES + chunk * CHUNK_BYTES,
                    bytes: CHUNK_BYTES as u32,
                });
            }
        }
        ops.push(Op::Flush);
        ops
    }
}

/// Everything once, in order.
fn whole(disk_bytes: u64) -> impl Iterator<Item = Op> {
    let step = 1u64 << 20;
    (0..disk_bytes / step).map(move |index| Op::Write {
        offset: index * step,
        bytes: step as u32,
    })
}

/// A chain and the process that made it and has it open.
pub(super) struct Chain {
    pub(super) ours: Ours,
    pub(super) uri: String,
    /// Base first.
    pub(super) images: Vec<Image>,
}

impl Chain {
    /// Files of the layers from the leaf, which lies `depth` above the base, down to the base.
    pub(super) fn below(&self, depth: usize) -> Vec<&Path> {
        let images = self.images.iter().take(depth.saturating_add(1));
        images.rev().map(|image| image.path.as_path()).collect()
    }
}

/// Makes a chain in `dir`: a base, full or empty, and `depth` layers above it.
///
/// # Errors
/// When a file, a process or the client fails.
pub(super) async fn ours(
    servers: &Servers,
    dir: &Path,
    disk_bytes: u64,
    depth: usize,
    spread: Spread,
    full: bool,
) -> Result<Chain> {
    std::fs::create_dir_all(dir)?;
    // As in the daemon: another process writes new images than the one that serves the guest.
    let maker = servers.ours().await?;
    let base = maker.create(&dir.join("0.vhd"), disk_bytes, None).await?;
    let ours = servers.ours().await?;
    ours.open(&[&base.path], Cache::Direct).await?;
    let uri = ours.serve().await?;
    if full {
        let ops = whole(disk_bytes).chain([Op::Flush]).collect();
        perform(&uri, 4, ops).await.context("filling the base")?;
    }
    let mut images = vec![base];
    for layer in 1..=depth {
        let path = dir.join(format!("{layer}.vhd"));
        let leaf = maker.create(&path, disk_bytes, images.last()).await?;
        ours.snapshot(&leaf).await?;
        images.push(leaf);
        let ops = spread.ops(layer as u64, disk_bytes);
        let filled = perform(&uri, DEPTH, ops).await;
        filled.with_context(|| format!("filling layer {layer}"))?;
    }
    maker.exit().await?;
    Ok(Chain { ours, uri, images })
}

/// Makes the same chain of qcow2 files; returns them, base first.
///
/// # Errors
/// When a file, a process or the client fails.
pub(super) async fn qcow2(
    servers: &Servers,
    dir: &Path,
    disk_bytes: u64,
    depth: usize,
    spread: Spread,
) -> Result<Vec<PathBuf>> {
    let mut all: Vec<PathBuf> = Vec::new();
    for layer in 0..=depth {
        let folder = dir.join(layer.to_string());
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(Family::QemuQcow2.file());
        let ops = match all.last() {
            None => {
                make_empty(servers, Family::QemuQcow2, &folder, disk_bytes).await?;
                whole(disk_bytes).chain([Op::Flush]).collect()
            }
            Some(parent) => {
                let mut create = Command::new("qemu-img");
                create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]);
                create.arg(parent).arg(&path);
                process::output(create, MAKE).await?;
                spread.ops(layer as u64, disk_bytes)
            }
        };
        let kind = native_qcow2();
        let server = servers.start(kind, &folder, Cache::Direct).await?;
        let filled = perform(&server.uri, DEPTH, ops).await;
        filled.with_context(|| format!("filling layer {layer} of {}", kind.name()))?;
        server.stop().await?;
        all.push(path);
    }
    Ok(all)
}

/// The way of qcow2 that is compared here: the first one.
pub(super) fn native_qcow2() -> Kind {
    Kind {
        family: Family::QemuQcow2,
        aio: crate::kind::Aio::Native,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_layer_has_so_many_chunks_in_so_many_blocks() {
        let spread = Spread {
            blocks: 64,
            chunks: 16,
        };
        let ops = spread.ops(3, 512 << 20);
        let offsets: BTreeSet<u64> = ops
            .iter()
            .filter_map(|op| match op {
                Op::Write { offset, .. } => Some(*offset),
                _ => None,
            })
            .collect();
        let blocks: BTreeSet<u64> = offsets.iter().map(|at| at / BLOCK_BYTES).collect();
        assert_eq!((offsets.len(), blocks.len()), (64 * 16, 64));
        assert!(offsets.iter().all(|at| at + CHUNK_BYTES <= 512 << 20));
        assert_eq!(ops.last(), Some(&Op::Flush));
    }
}

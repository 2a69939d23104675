//! What an open chain of 30 disks of 1 TiB costs, and how long opening it takes with nothing of it
//! in memory.

use super::build::{self, Spread};
use crate::account::rss_bytes;
use crate::machine::drop_caches;
use crate::measure::Measuring;
use crate::ours::Cache;
use crate::plan::Aim;
use crate::row::Row;
use anyhow::Result;
use std::path::Path;

/// Files of the chain, the base among them.
const LAYERS: usize = 30;

const DISK_BYTES: u64 = 1 << 40;

/// Each layer has something in so many blocks, all over the disk.
const SPARSE: Spread = Spread {
    blocks: 16,
    chunks: 4,
};

/// Opens the chain some times, each in a process of its own.
///
/// # Errors
/// When a file or a process fails.
///
/// # Cancel safety
/// Safe: what runs is ended.
pub(crate) async fn measure(with: &Measuring<'_>, dir: &Path, medium: &str) -> Result<Vec<Row>> {
    let made = build::ours(with.servers, dir, DISK_BYTES, LAYERS - 1, SPARSE, false).await?;
    let images = made.images.clone();
    made.ours.stop().await?;
    let chain: Vec<&Path> = images
        .iter()
        .rev()
        .map(|image| image.path.as_path())
        .collect();
    let (mut ms, mut mib, mut cold) = (Vec::new(), Vec::new(), true);
    for _ in 0..with.effort.rounds {
        let ours = with.servers.ours().await?;
        let bare = rss_bytes(ours.pid())?;
        cold &= drop_caches();
        let took = ours.open(&chain, Cache::Page).await?;
        ms.push(took.as_secs_f64() * 1e3);
        let more = rss_bytes(ours.pid())?.saturating_sub(bare);
        mib.push(more as f64 / f64::from(1 << 20));
        ours.stop().await?;
    }
    let how = match cold {
        true => "nothing of it cached",
        false => "cached: only root may drop caches",
    };
    let work = format!("opening {LAYERS} layers of 1 TiB, {how}: ms");
    let opening = Row::alone("P7", &work, medium, &ms, Aim::Most(150.0));
    let work = format!("{LAYERS} open layers of 1 TiB: MiB more than without them");
    let memory = Row::alone("P7", &work, medium, &mib, Aim::Most(3.0));
    Ok(opening.into_iter().chain(memory).collect())
}

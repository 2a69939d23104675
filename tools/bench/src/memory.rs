//! P13: what one open disk of 1 TiB costs in memory.

use crate::account::{rss_bytes, rss_bytes_max};
use crate::fio::{Direction, Flush, Job, Pattern, Until};
use crate::images::make_empty;
use crate::kind::Family;
use crate::ours::Cache;
use crate::plan::Aim;
use crate::row::Row;
use crate::server::Servers;
use anyhow::Result;
use std::path::Path;

const DISK_BYTES: u64 = 1 << 40;

/// Writes that make the disk busy; nearly each touches a block of its own.
const WRITES: u64 = 20_000;

/// Measures an idle and then a busy disk; the process without a disk is taken off.
///
/// # Errors
/// When a server or the client fails.
///
/// # Cancel safety
/// Safe: what runs is ended.
pub(crate) async fn measure(servers: &Servers, dir: &Path, scratch: &Path) -> Result<Vec<Row>> {
    make_empty(servers, Family::Ours, dir, DISK_BYTES).await?;
    let image = dir.join(Family::Ours.file());
    let ours = servers.ours().await?;
    let bare = rss_bytes(ours.pid())?;
    let uri = ours.serve(&image, Cache::Page).await?;
    let idle = rss_bytes(ours.pid())?;
    let job = Job {
        pattern: Pattern::Random,
        direction: Direction::Write,
        request_bytes: 4096,
        depth: 32,
        clients: 1,
        flush: Flush::Never,
        until: Until::Requests(WRITES),
        seed: 1,
    };
    job.run(&uri, scratch).await?;
    let busy = rss_bytes_max(ours.pid())?;
    ours.stop().await?;
    std::fs::remove_file(&image)?;
    let row = |what: &str, now: u64, most_mib: f64| {
        let mib = now.saturating_sub(bare) as f64 / f64::from(1 << 20);
        let work = format!("an open disk of 1 TiB, {what}: MiB more than without it");
        Row::alone("P13", &work, "tmpfs", &[mib], Aim::Most(most_mib))
    };
    let idle = row("idle", idle, 3.0);
    let busy = row("most after 20,000 random first touches", busy, 8.0);
    Ok(idle.into_iter().chain(busy).collect())
}

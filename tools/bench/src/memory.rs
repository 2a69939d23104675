//! P13: what one open disk of 1 TiB costs in memory.

use crate::account::{rss_bytes, rss_bytes_max};
use crate::fio::{Direction, Flush, Job, Pattern, Until};
use crate::images::make_empty;
use crate::kind::Family;
use crate::measure::Measuring;
use crate::ours::Cache;
use crate::plan::Aim;
use crate::row::Row;
use anyhow::Result;
use std::path::Path;

const DISK_BYTES: u64 = 1 << 40;

/// Writes that make the disk busy; nearly each touches a block of its own.
const WRITES: u64 = 20_000;

/// Looked at so often, each time in a process of its own; there is little spread.
const TIMES: usize = 3;

/// Measures an idle and then a busy disk; the process without a disk is taken off.
///
/// # Errors
/// When a server or the client fails.
///
/// # Cancel safety
/// Safe: what runs is ended.
pub(crate) async fn measure(with: &Measuring<'_>, dir: &Path, medium: &str) -> Result<Vec<Row>> {
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        make_empty(with.servers, Family::Ours, dir, DISK_BYTES).await?;
        let ours = with.servers.ours().await?;
        let bare = rss_bytes(ours.pid())?;
        let more = |bytes: u64| bytes.saturating_sub(bare) as f64 / f64::from(1 << 20);
        let image = dir.join(Family::Ours.file());
        ours.open(&[&image], Cache::Page).await?;
        let uri = ours.serve().await?;
        idle.push(more(rss_bytes(ours.pid())?));
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
        job.run(&uri, with.scratch).await?;
        busy.push(more(rss_bytes_max(ours.pid())?));
        ours.stop().await?;
    }
    let row = |what: &str, mib: &[f64], most_mib: f64| {
        let work = format!("an open disk of 1 TiB, {what}: MiB more than without it");
        Row::alone("P13", &work, medium, mib, Aim::Most(most_mib))
    };
    let idle = row("idle", &idle, 3.0);
    let busy = row("most after 20,000 random first touches", &busy, 8.0);
    Ok(idle.into_iter().chain(busy).collect())
}

//! P11: what a guest that is busy notices of a snapshot.
//!
//! For each snapshot: of all requests that were on their way at some moment of the switch, the
//! longest wait. Beside it the same of a moment of the same length without a switch, because a
//! disk has moods of its own.

use crate::guest::{Busy, Load, Span, perform};
use crate::measure::Measuring;
use crate::offline::full;
use crate::ours::Cache;
use crate::plan::Aim;
use crate::row::{Peer, Row};
use crate::stats::part_of;
use crate::windows::Window;
use anyhow::Result;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two snapshots, so that each finds the disk as busy as ever.
const APART: Duration = Duration::from_millis(60);

/// Longest stall of a hundredth of the snapshots, milliseconds.
const STALL_MS_MAX: f64 = 5.0;

/// Takes snapshots of a disk that a guest reads and writes at depth 32.
///
/// # Errors
/// When a file, a process or the guest fails.
///
/// # Cancel safety
/// What the guest has begun is done to its end.
pub(crate) async fn measure(with: &Measuring<'_>, dir: &Path, medium: &str) -> Result<Vec<Row>> {
    let (disk_bytes, count) = match with.effort.quick {
        true => (128 << 20, 10),
        false => (1 << 30, 100),
    };
    let maker = with.servers.ours().await?;
    let mut top = maker.create(&dir.join("0.vhd"), disk_bytes, None).await?;
    let ours = with.servers.ours().await?;
    ours.open(&[&top.path], Cache::Direct).await?;
    let uri = ours.serve().await?;
    perform(&uri, 4, full(disk_bytes)).await?;
    let load = Load {
        depth: 32,
        request_bytes: 4096,
        reads: 50,
        seed: 11,
    };
    let busy = Busy::start(&uri, load)?;
    let (mut switches, mut calm) = (Vec::new(), Vec::new());
    for layer in 1..=count {
        let leaf = maker
            .create(&dir.join(format!("{layer}.vhd")), disk_bytes, Some(&top))
            .await?;
        tokio::time::sleep(APART).await;
        let asked = Instant::now();
        let switch = Window::from(ours.snapshot(&leaf).await?);
        // As long, and as far from the last switch as from the next.
        let before = asked.checked_sub(APART / 2).unwrap_or(asked);
        calm.push(Window::from((before, before + switch.length())));
        switches.push(switch);
        top = leaf;
    }
    let spans = busy.stop().await?;
    ours.stop().await?;
    maker.exit().await?;
    Ok(row(medium, &spans, &switches, &calm).into_iter().collect())
}

fn row(medium: &str, spans: &[Span], switches: &[Window], calm: &[Window]) -> Option<Row> {
    let longest = |windows: &[Window]| -> Vec<f64> {
        windows
            .iter()
            .filter_map(|window| window.longest_ms(spans))
            .collect()
    };
    let stalls = longest(switches);
    let peer = Peer {
        name: "the same without a snapshot".to_owned(),
        values: longest(calm),
        recorded: false,
    };
    let work = format!(
        "longest wait in a snapshot, depth 32, half reads: ms, p99 of {} snapshots",
        stalls.len()
    );
    let aim = Aim::Most(STALL_MS_MAX);
    let row = Row::of_part("P11", &work, medium, 0.99, &stalls, &peer, aim)?;
    let all: Vec<f64> = spans.iter().map(Span::ms).collect();
    let switching: Vec<f64> = switches.iter().map(Window::ms).collect();
    Some(row.note(format!(
        "median {:.2} ms, most {:.2}; the switch itself takes {:.2} ms, p99 {:.2}; any request p99 \
         {:.2} ms, p99.9 {:.2}",
        part_of(&stalls, 0.5)?,
        part_of(&stalls, 1.0)?,
        part_of(&switching, 0.5)?,
        part_of(&switching, 0.99)?,
        part_of(&all, 0.99)?,
        part_of(&all, 0.999)?,
    )))
}

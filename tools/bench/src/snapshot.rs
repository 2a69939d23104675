//! P11: what a guest that is busy notices of a snapshot.
//!
//! For each snapshot: of all requests that were on their way at some moment of the switch, the
//! longest wait. Beside it the same of a moment of the same length without a switch, because a
//! disk has moods of its own.

use crate::guest::{Busy, Load, Op, Span, perform};
use crate::measure::Measuring;
use crate::ours::Cache;
use crate::plan::Aim;
use crate::row::{Peer, Row};
use crate::stats::part_of;
use anyhow::Result;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two snapshots, so that each finds the disk as busy as ever.
const APART: Duration = Duration::from_millis(60);

/// Longest stall of a hundredth of the snapshots, milliseconds.
const STALL_MS_MAX: f64 = 5.0;

/// A stretch of time that is looked at.
type Window = (Instant, Instant);

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
    perform(&uri, 4, fill(disk_bytes)).await?;
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
        let (from, to): Window = ours.snapshot(&leaf).await?;
        let length = to.duration_since(from);
        switches.push((from, to));
        // As long, and as far from the last switch as from the next.
        let before = asked.checked_sub(APART / 2).unwrap_or(asked);
        calm.push((before, before + length));
        top = leaf;
    }
    let spans = busy.stop().await?;
    ours.stop().await?;
    maker.exit().await?;
    Ok(row(medium, &spans, &switches, &calm).into_iter().collect())
}

/// Everything once.
fn fill(disk_bytes: u64) -> Vec<Op> {
    let step = 1u64 << 20;
    let writes = (0..disk_bytes / step).map(|index| Op::Write {
        offset: index * step,
        bytes: step as u32,
    });
    writes.chain([Op::Flush]).collect()
}

fn row(medium: &str, spans: &[Span], switches: &[Window], calm: &[Window]) -> Option<Row> {
    let stalls = longest_waits(spans, switches);
    let peer = Peer {
        name: "the same without a snapshot".to_owned(),
        values: longest_waits(spans, calm),
        recorded: false,
    };
    let work = format!(
        "longest wait in a snapshot, depth 32, half reads: ms, p99 of {} snapshots",
        stalls.len()
    );
    let aim = Aim::Most(STALL_MS_MAX);
    let row = Row::of_part("P11", &work, medium, 0.99, &stalls, &peer, aim)?;
    let all: Vec<f64> = spans.iter().map(Span::ms).collect();
    let switching: Vec<f64> = switches.iter().map(|(from, to)| ms(*from, *to)).collect();
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

/// For each window the longest wait of a request that was on its way in it, in milliseconds.
fn longest_waits(spans: &[Span], windows: &[Window]) -> Vec<f64> {
    let longest = |(from, to): &Window| {
        let inside = spans.iter().filter(|span| span.overlaps(*from, *to));
        inside.map(Span::ms).reduce(f64::max)
    };
    windows.iter().filter_map(longest).collect()
}

fn ms(from: Instant, to: Instant) -> f64 {
    to.duration_since(from).as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_on_their_way_in_a_window_count_for_it() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let span = |sent, answered| Span {
            sent: at(sent),
            answered: at(answered),
        };
        let spans = [span(0, 100), span(40, 47), span(49, 52), span(60, 300)];
        let waits = longest_waits(
            &spans,
            &[(at(45), at(50)), (at(101), at(102)), (at(400), at(401))],
        );
        assert_eq!(waits, [100.0, 240.0]);
        let waits = longest_waits(&spans[1..], &[(at(45), at(50))]);
        assert_eq!(waits, [7.0]);
    }
}

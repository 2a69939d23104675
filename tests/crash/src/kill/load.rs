//! The guest: changes and flushes over NBD, with a note of each in the model.

use anyhow::{Context, Result, bail, ensure};
use block::Rng;
use datapath::nbd::{self, WriteFlags};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tapdisk::engine::testing::model::{Model, sectors_of, value_of};
use tapdisk::engine::testing::rig::SECTOR;

/// Clients that write at once, each to sectors of its own.
pub(super) const LANES: u64 = 4;

/// What the tasks of one life of the process share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) model: Mutex<Model>,
    /// From now on failures are expected.
    pub(super) killed: AtomicBool,
    value: AtomicU64,
    pub(super) changes: AtomicU64,
    pub(super) flushes: AtomicU64,
}

/// Changes and flushes until the process is killed.
pub(super) async fn load(lane: u64, disk: nbd::Client, shared: &Shared, seed: u64) -> Result<()> {
    let mut rng = Rng::new(seed);
    loop {
        if let Err(error) = request(lane, &disk, shared, &mut rng).await {
            if shared.killed.load(Ordering::SeqCst) {
                return Ok(());
            }
            return Err(error).context("before the process was killed");
        }
    }
}

async fn request(lane: u64, disk: &nbd::Client, shared: &Shared, rng: &mut Rng) -> Result<()> {
    if rng.one_in(8) {
        let covered = shared.model.lock().flush_begins();
        disk.flush().await?;
        shared.model.lock().flushed(&covered);
        shared.flushes.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    // Lanes lie side by side in each page, in a few places of each block.
    let (block, place) = (rng.below(super::DISK_BYTES >> 21), rng.below(5));
    let place = [0, 8, 1000, 2048, 4080].get(place as usize).copied();
    let at = block * 4096 + place.unwrap_or(0) + lane * 2;
    let (first, count) = match rng.below(3) {
        0 => (at, 1),
        1 => (at + 1, 1),
        _ => (at, 2),
    };
    let zero = rng.below(6);
    let base = if zero < 2 {
        0
    } else {
        shared.value.fetch_add(2, Ordering::Relaxed) + 1
    };
    let value = |i: u64| if base == 0 { 0 } else { base + i };
    let values = (0..count).map(|i| (first + i, value(i)));
    let change = shared.model.lock().change(values, zero == 0);
    let fua = rng.one_in(8);
    let flags = WriteFlags {
        fua,
        no_hole: rng.one_in(2),
    };
    let (offset, bytes) = (first * SECTOR, count * SECTOR);
    let result = match zero {
        0 => disk.trim(offset, bytes).await,
        1 => disk.write_zeroes(offset, bytes, flags).await,
        _ => {
            let values: Vec<u64> = (0..count).map(value).collect();
            let data = sectors_of(values.into_iter());
            let flags = WriteFlags {
                fua,
                no_hole: false,
            };
            disk.write(offset, data, flags).await
        }
    };
    let mut model = shared.model.lock();
    model.answered(change, result.is_ok());
    if result.is_ok() && fua && zero != 0 {
        model.durable(change);
    }
    shared.changes.fetch_add(1, Ordering::Relaxed);
    result.map_err(anyhow::Error::from)
}

/// Reads every touched sector through the process; what is found must stay. How many there are.
pub(super) async fn judge(disk: &nbd::Client, shared: &Shared) -> Result<u64> {
    let touched: Vec<u64> = shared.model.lock().touched().collect();
    for run in touched.chunk_by(|a, b| a + 1 == *b) {
        let first = run.first().copied().unwrap_or_default();
        let bytes = u32::try_from(run.len() as u64 * SECTOR)?;
        let bytes = disk.read(first * SECTOR, bytes).await?;
        let mut model = shared.model.lock();
        for (sector, bytes) in run.iter().zip(bytes.chunks(512)) {
            let known = model.describe(*sector);
            let Some(value) = value_of(bytes) else {
                bail!("mixture in sector {sector}, may be {known}");
            };
            ensure!(
                model.is_legal(*sector, value),
                "sector {sector} is {value}, may be {known}"
            );
            model.found(*sector, value);
        }
    }
    Ok(touched.len() as u64)
}

//! P14: how long `vhd-util check` takes for an image of 256 GiB of which every block is allocated.
//!
//! The blocks are holes of a sparse file: a check of metadata reads none of them.

use crate::measure::Measuring;
use crate::plan::Aim;
use crate::process;
use crate::row::{Peer, Row};
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::process::Command;

const DISK_BYTES: u64 = 256 << 30;

const CHECK_MS_MAX: f64 = 20.0;

/// libvhd's vhd-util 4.0.8 for the same, recorded on a quiet machine.
const LIBVHD_MS: f64 = 16_700.0;

/// How long a check may take.
const CHECK: Duration = Duration::from_secs(120);

/// 4096 sectors of data, one of bitmap, seven so that the data of the next one lie on a page.
const STRIDE_SECTORS: u64 = 4104;

/// Checks it some times.
///
/// # Errors
/// When the file cannot be made or is not valid.
///
/// # Cancel safety
/// Safe: what runs is ended.
pub(crate) async fn measure(with: &Measuring<'_>, dir: &Path, medium: &str) -> Result<Vec<Row>> {
    let path = dir.join("full.vhd");
    let maker = with.servers.ours().await?;
    maker.create(&path, DISK_BYTES, None).await?;
    maker.exit().await?;
    allocate_all(&path).context("allocating every block")?;
    let mut ms = Vec::new();
    for _ in 0..with.effort.rounds {
        let mut check = Command::new(with.vhd_util);
        check.arg("check").arg("-n").arg(&path);
        let begun = Instant::now();
        process::output(check, CHECK).await?;
        ms.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let peer = Peer {
        name: "libvhd vhd-util, recorded".to_owned(),
        values: vec![LIBVHD_MS],
        recorded: true,
    };
    let work = "vhd-util check of 256 GiB, every block allocated, its start included: ms";
    let row = Row::against("P14", work, medium, &ms, &peer, Aim::Most(CHECK_MS_MAX));
    Ok(row.into_iter().collect())
}

/// Gives every block of a dynamic image that was just made a place of its own, all holes.
///
/// Offsets are those of Microsoft's "Virtual Hard Disk Image Format Specification" 1.0: data offset
/// at 16 of the footer; table offset at 16 and number of entries at 28 of the header.
fn allocate_all(path: &Path) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut footer = [0; 512];
    file.read_exact_at(&mut footer, 0)?;
    let header_at = u64::from_be_bytes(bytes(&file, 16)?);
    let table_at = u64::from_be_bytes(bytes(&file, header_at + 16)?);
    let entries = u32::from_be_bytes(bytes(&file, header_at + 28)?);
    let old_end = file.metadata()?.len() - 512;
    // The bitmap in the last sector of a page, the data from the next one on.
    let mut sector = old_end.div_ceil(4096) * 8 + 7;
    let mut table = Vec::with_capacity(entries as usize * 4);
    for _ in 0..entries {
        table.extend_from_slice(&u32::try_from(sector)?.to_be_bytes());
        sector += STRIDE_SECTORS;
    }
    file.write_all_at(&[0; 512], old_end)?;
    file.write_all_at(&table, table_at)?;
    file.write_all_at(&footer, sector * 512)?;
    Ok(file.sync_all()?)
}

fn bytes<const N: usize>(file: &File, at: u64) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

//! Copying what one NBD server serves into another. Reads only what is not a hole, several requests
//! at a time.

use crate::model::NbdEndpoint;
use datapath::nbd::{Client, WriteFlags};
use datapath::{Error, ErrorKind, nbd};
use futures_util::{StreamExt, stream};

/// Bytes of one read and write: large enough to be sequential for a disk, and a whole VHD block.
const PIECE_BYTES: u64 = 2 << 20;

/// Pieces on their way at once; bounds the memory of a copy to 16 MiB.
const PIECES_IN_FLIGHT: usize = 8;

/// Bytes one block-status request asks about.
const STATUS_BYTES: u64 = 64 << 30;

pub(super) async fn copy(
    from: &NbdEndpoint,
    to: &NbdEndpoint,
    bytes: u64,
    progress: &(dyn Fn(f64) + Send + Sync),
) -> Result<(), Error> {
    let source = connect(from).await?;
    let target = connect(to).await?;
    for (side, client) in [("source", &source), ("target", &target)] {
        let have = client.info().size_bytes;
        if have < bytes {
            let message = format!("the copy's {side} has {have} bytes, {bytes} are to be copied");
            return Err(Error::new(ErrorKind::Io, message));
        }
    }
    progress(0.0);
    let mut offset = 0;
    while offset < bytes {
        let ask = (bytes - offset).min(STATUS_BYTES);
        for (length, is_zero) in runs(&source, offset, ask).await? {
            if !is_zero {
                copy_run(&source, &target, offset, length, |done| {
                    progress(part(offset + done, bytes));
                })
                .await?;
            }
            offset += length;
            progress(part(offset, bytes));
        }
    }
    target.flush().await.map_err(broken)?;
    // Only an orderly end is wanted; the copy is complete and durable without it.
    let _ = (source.disconnect().await, target.disconnect().await);
    Ok(())
}

/// Lengths from `offset` on and whether each reads as zeros; at least one, at most `length` bytes.
async fn runs(source: &Client, offset: u64, length: u64) -> Result<Vec<(u64, bool)>, Error> {
    if !source.info().block_status {
        return Ok(vec![(length, false)]);
    }
    let runs = source.block_status(offset, length).await.map_err(broken)?;
    let mut left = length;
    let mut found = Vec::with_capacity(runs.len());
    for run in runs {
        let length = run.length_bytes.min(left);
        if length > 0 {
            found.push((length, run.zero));
        }
        left -= length;
    }
    if found.is_empty() {
        return Err(Error::new(
            ErrorKind::Protocol,
            format!("no block status at {offset}"),
        ));
    }
    Ok(found)
}

async fn copy_run(
    source: &Client,
    target: &Client,
    start: u64,
    length: u64,
    done: impl Fn(u64) + Send,
) -> Result<(), Error> {
    let pieces = (0..length.div_ceil(PIECE_BYTES)).map(|n| n * PIECE_BYTES);
    let mut copies = stream::iter(pieces)
        .map(|piece| async move {
            let size = (length - piece).min(PIECE_BYTES);
            let size = u32::try_from(size).unwrap_or(u32::MAX);
            let data = source.read(start + piece, size).await.map_err(broken)?;
            target
                .write(start + piece, data, WriteFlags::default())
                .await
                .map_err(broken)?;
            Ok::<_, Error>(u64::from(size))
        })
        .buffer_unordered(PIECES_IN_FLIGHT);
    let mut copied = 0;
    while let Some(size) = copies.next().await {
        copied += size?;
        done(copied);
    }
    Ok(())
}

async fn connect(to: &NbdEndpoint) -> Result<Client, Error> {
    Client::connect(&to.socket, &to.export)
        .await
        .map_err(broken)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a part of a whole for people to look at"
)]
fn part(done: u64, of: u64) -> f64 {
    done as f64 / of.max(1) as f64
}

fn broken(e: nbd::Error) -> Error {
    let kind = match e.kind() {
        nbd::ErrorKind::NoSpace => ErrorKind::NoSpace,
        nbd::ErrorKind::Gone | nbd::ErrorKind::NotFound => ErrorKind::Gone,
        nbd::ErrorKind::Protocol => ErrorKind::Protocol,
        _ => ErrorKind::Io,
    };
    Error::new(kind, e.to_string())
}

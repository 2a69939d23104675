//! Sends a VDI's content as a response body.

use super::ticket::Ticket;
use super::vhd_stream::{self, BLOCK_BYTES, Piece};
use super::{CHUNK_BYTES, Format, IN_FLIGHT_MAX, moving_failed, refuse};
use crate::error::ApiError;
use crate::http::Body;
use bytes::Bytes;
use datapath::nbd::Client;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use std::io;
use storage::Transfer;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Bytes of one question about which parts of the disk hold data.
const STATUS_BYTES: u64 = 64 << 30;

/// A chunk of the stream: where it comes from.
#[derive(Debug)]
enum Chunk {
    Ready(Bytes),
    Disk { offset: u64, length: u32 },
    Zeros(usize),
}

/// Opens the VDI and answers with its content; the transfer goes on after this returns.
pub(super) async fn send(ticket: Ticket) -> Response<Body> {
    let opened = open(&ticket).await;
    let (transfer, nbd, chunks) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            ticket.finish(&Err(error.clone())).await;
            return refuse(&error);
        }
    };
    let length: u64 = chunks.iter().map(Chunk::length).sum();
    let (sender, receiver) = mpsc::channel(IN_FLIGHT_MAX);
    let mut response = Response::new(body(receiver));
    *response.status_mut() = StatusCode::OK;
    let (suffix, headers) = (ticket.format.suffix(), response.headers_mut());
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    let name = format!("attachment; filename=\"{}.{suffix}\"", ticket.vdi);
    if let Ok(name) = HeaderValue::from_str(&name) {
        headers.insert(CONTENT_DISPOSITION, name);
    }
    tokio::spawn(async move {
        let sent = produce(&ticket, &nbd, chunks, length, &sender).await;
        if let Err(error) = &sent {
            // The body must not look complete.
            let broken = io::Error::other(error.to_string());
            drop(sender.send(Err(broken)).await);
        }
        drop((nbd, sender));
        let closed = transfer
            .close(&ticket.ctx)
            .await
            .map_err(|error| ticket.about.explain(error));
        ticket.finish(&sent.and(closed)).await;
    });
    response
}

async fn open(ticket: &Ticket) -> Result<(Transfer, Client, Vec<Chunk>), ApiError> {
    let opened = ticket
        .storage
        .export_open(&ticket.ctx, ticket.sr, ticket.vdi)
        .await;
    let transfer = opened.map_err(|error| ticket.about.explain(error))?;
    let prepared = async {
        let nbd = Client::connect(&transfer.nbd.socket, &transfer.nbd.export)
            .await
            .map_err(|error| moving_failed("cannot read the disk", &error))?;
        let size = nbd.info().size_bytes;
        let has_data = data_blocks(&nbd, size).await?;
        let chunks = match ticket.format {
            Format::Raw => raw_chunks(size, &has_data),
            Format::Vhd => vhd_chunks(size, &has_data)?,
        };
        Ok((nbd, chunks))
    };
    match prepared.await {
        Ok((nbd, chunks)) => Ok((transfer, nbd, chunks)),
        Err(error) => {
            drop(transfer.close(&ticket.ctx).await);
            Err(error)
        }
    }
}

/// Which blocks of 2 MiB hold anything but zeros, as far as the data path's map knows.
async fn data_blocks(nbd: &Client, size: u64) -> Result<Vec<bool>, ApiError> {
    let blocks = usize::try_from(size.div_ceil(BLOCK_BYTES)).map_err(ApiError::internal)?;
    if !nbd.info().block_status {
        return Ok(vec![true; blocks]);
    }
    let mut has_data = vec![false; blocks];
    let mut offset = 0;
    while offset < size {
        let length = STATUS_BYTES.min(size - offset);
        let runs = nbd
            .block_status(offset, length)
            .await
            .map_err(|error| moving_failed("cannot read the disk's map", &error))?;
        for run in runs {
            let end = offset.saturating_add(run.length_bytes).min(size);
            if !run.zero && end > offset {
                let (first, last) = (offset / BLOCK_BYTES, (end - 1) / BLOCK_BYTES);
                for block in has_data
                    .iter_mut()
                    .take(last as usize + 1)
                    .skip(first as usize)
                {
                    *block = true;
                }
            }
            offset = end;
        }
    }
    Ok(has_data)
}

fn raw_chunks(size: u64, has_data: &[bool]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for (index, data) in has_data.iter().enumerate() {
        let offset = index as u64 * BLOCK_BYTES;
        push_range(&mut chunks, offset, BLOCK_BYTES.min(size - offset), *data);
    }
    chunks
}

fn vhd_chunks(size: u64, has_data: &[bool]) -> Result<Vec<Chunk>, ApiError> {
    if size > vhd_stream::VIRTUAL_BYTES_MAX {
        return Err(ApiError::new(
            "INVALID_VALUE",
            ["format", "the disk is too large for a VHD"],
        ));
    }
    let now_s = crate::datetime::now_ms() / 1000;
    let pieces = vhd_stream::plan(Uuid::new_v4(), now_s, size, has_data);
    let mut chunks = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => chunks.push(Chunk::Ready(bytes.into())),
            Piece::Block(index) => {
                let offset = index * BLOCK_BYTES;
                let there = BLOCK_BYTES.min(size - offset);
                push_range(&mut chunks, offset, there, true);
                if there < BLOCK_BYTES {
                    chunks.push(Chunk::Zeros((BLOCK_BYTES - there) as usize));
                }
            }
        }
    }
    Ok(chunks)
}

fn push_range(chunks: &mut Vec<Chunk>, offset: u64, length: u64, data: bool) {
    let mut at = 0;
    while at < length {
        let step = (CHUNK_BYTES as u64).min(length - at);
        chunks.push(match data {
            true => Chunk::Disk {
                offset: offset + at,
                length: step as u32,
            },
            false => Chunk::Zeros(step as usize),
        });
        at += step;
    }
}

impl Chunk {
    fn length(&self) -> u64 {
        match self {
            Chunk::Ready(bytes) => bytes.len() as u64,
            Chunk::Disk { length, .. } => u64::from(*length),
            Chunk::Zeros(length) => *length as u64,
        }
    }

    async fn read(self, nbd: &Client) -> Result<Bytes, ApiError> {
        match self {
            Chunk::Ready(bytes) => Ok(bytes),
            Chunk::Zeros(length) => Ok(Bytes::from(vec![0; length])),
            Chunk::Disk { offset, length } => {
                let read = nbd.read(offset, length).await.map(Bytes::from);
                read.map_err(|error| moving_failed(&format!("cannot read at {offset}"), &error))
            }
        }
    }
}

impl Format {
    fn suffix(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Vhd => "vhd",
        }
    }
}

/// Reads ahead and hands chunks to the response in order, until all are sent, the client leaves or
/// the task is cancelled.
async fn produce(
    ticket: &Ticket,
    nbd: &Client,
    chunks: Vec<Chunk>,
    length: u64,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), ApiError> {
    let cancel: &CancellationToken = ticket.task.cancel_token();
    let mut reads = stream::iter(chunks)
        .map(|chunk| chunk.read(nbd))
        .buffered(IN_FLIGHT_MAX);
    let mut sent = 0u64;
    loop {
        let chunk = tokio::select! {
            chunk = reads.next() => chunk,
            () = cancel.cancelled() => return ticket.task.check_cancelled(),
        };
        let Some(chunk) = chunk else { return Ok(()) };
        let chunk = chunk?;
        sent = sent.saturating_add(chunk.len() as u64);
        tokio::select! {
            taken = sender.send(Ok(chunk)) => {
                if taken.is_err() {
                    return Err(ApiError::internal("the client left before the end"));
                }
            }
            () = cancel.cancelled() => return ticket.task.check_cancelled(),
        }
        ticket
            .task
            .set_progress(sent as f64 / length.max(1) as f64)
            .await;
    }
}

fn body(receiver: mpsc::Receiver<io::Result<Bytes>>) -> Body {
    let frames = stream::unfold(receiver, |mut receiver| async move {
        let chunk = receiver.recv().await?;
        Some((chunk.map(Frame::data), receiver))
    });
    StreamBody::new(frames).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chunks_of_a_raw_stream_cover_the_disk_once_and_in_order() {
        let size = 3 * BLOCK_BYTES + 512;
        let chunks = raw_chunks(size, &[true, false, true, true]);
        assert_eq!(chunks.iter().map(Chunk::length).sum::<u64>(), size);
        let mut at = 0;
        for chunk in &chunks {
            if let Chunk::Disk { offset, .. } = chunk {
                assert_eq!(*offset, at);
            }
            at += chunk.length();
        }
    }

    #[test]
    fn a_disk_that_ends_inside_a_block_is_filled_up_in_a_vhd() {
        let size = BLOCK_BYTES + 4096;
        let chunks = vhd_chunks(size, &[true, true]).unwrap();
        let zeros: usize = chunks
            .iter()
            .filter_map(|chunk| match chunk {
                Chunk::Zeros(length) => Some(*length),
                _ => None,
            })
            .sum();
        assert_eq!(zeros as u64, BLOCK_BYTES - 4096);
    }
}

//! Takes a VDI's content from a request body.

use super::ticket::Ticket;
use super::{CHUNK_BYTES, Format, IN_FLIGHT_MAX, moving_failed};
use crate::error::{ApiError, chain};
use bytes::{Bytes, BytesMut};
use datapath::nbd::{Client, WriteFlags};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::CONTENT_LENGTH;
use std::panic::AssertUnwindSafe;
use storage::{NewVdi, StorageErrorKind, Transfer, VdiFields};
use tokio::io::AsyncWriteExt;

/// The length that clients give when they do not know it. The body then ends with the connection.
const UNKNOWN_BYTES: u64 = 1 << 50;

/// Largest part of a disk that is zeroed by one request; a multiple of every chunk.
const ZEROES_BYTES_MAX: u64 = 1 << 30;

/// Name of the VDI that a VHD is read through while it is taken in.
const TEMPORARY_NAME: &str = "import in progress";

/// Takes the body. Runs to its end even when the client leaves, and closes the disk before the
/// task ends.
pub(super) async fn take(ticket: Ticket, request: Request<Incoming>) -> Result<(), ApiError> {
    let work = async move {
        let format = ticket.format;
        let taken = async {
            match format {
                Format::Raw => take_raw(&ticket, Stream::new(request)).await,
                Format::Vhd => take_vhd(&ticket, Stream::new(request)).await,
            }
        };
        let ended = AssertUnwindSafe(taken).catch_unwind().await;
        let result = ended.unwrap_or_else(|_| Err(ApiError::internal("the transfer panicked")));
        ticket.finish(&result).await;
        result
    };
    tokio::spawn(work).await.map_err(ApiError::internal)?
}

/// The body, with the exact end where that is known.
struct Stream {
    body: Incoming,
    /// What the client said; `None` for a chunked body.
    length: Option<u64>,
}

impl Stream {
    fn new(request: Request<Incoming>) -> Self {
        let length = request.headers().get(CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
        Self {
            body: request.into_body(),
            length,
        }
    }

    fn known_bytes(&self) -> Option<u64> {
        self.length.filter(|length| *length < UNKNOWN_BYTES)
    }

    /// The next bytes, `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            return match self.body.frame().await {
                None => Ok(None),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => Ok(Some(data)),
                    Err(_) => continue,
                },
                Some(Err(_)) if self.length.is_some() && self.known_bytes().is_none() => Ok(None),
                Some(Err(_)) => Err(ApiError::new("IMPORT_ERROR_PREMATURE_EOF", [])),
            };
        }
    }
}

async fn take_raw(ticket: &Ticket, mut stream: Stream) -> Result<(), ApiError> {
    if stream
        .known_bytes()
        .is_some_and(|length| length > ticket.virtual_bytes)
    {
        return Err(too_large(ticket));
    }
    let transfer = open(ticket).await?;
    let written = async {
        let disk = Disk::connect(&transfer).await?;
        let mut writer = Writer::new(ticket, &disk, stream.known_bytes());
        while let Some(data) = stream.next().await? {
            writer.add(data).await?;
        }
        writer.end().await
    };
    let written = written.await;
    close(ticket, transfer, written).await
}

/// Stores the VHD as it comes, lets the data path open it, and copies what it holds.
async fn take_vhd(ticket: &Ticket, mut stream: Stream) -> Result<(), ApiError> {
    // A full image of this size: data, bitmaps, tables, and some room for other layouts.
    let limit = ticket
        .virtual_bytes
        .saturating_add(ticket.virtual_bytes >> 6)
        .saturating_add(64 << 20);
    let explain = |error| ticket.about.explain(error);
    let container = ticket
        .storage
        .vdi_import_container(&ticket.ctx, ticket.sr, limit)
        .await
        .map_err(explain)?;
    let stored = async {
        let mut file = tokio::fs::File::from_std(container.open().map_err(explain)?);
        let mut stored = 0u64;
        while let Some(data) = stream.next().await? {
            ticket.task.check_cancelled()?;
            stored = stored.saturating_add(data.len() as u64);
            if stored > limit {
                return Err(too_large(ticket));
            }
            file.write_all(&data).await.map_err(writing_failed)?;
            // Storing is one half of the work, copying the other.
            let all = stream.known_bytes().unwrap_or(limit).max(1);
            ticket
                .task
                .set_progress(stored as f64 / all as f64 / 2.0)
                .await;
        }
        file.flush().await.map_err(writing_failed)?;
        file.sync_data().await.map_err(writing_failed)
    };
    if let Err(error) = stored.await {
        drop(ticket.storage.import_abort(&ticket.ctx, container).await);
        return Err(error);
    }
    let fields = VdiFields {
        name_label: TEMPORARY_NAME.to_owned(),
        ..VdiFields::default()
    };
    let new = NewVdi {
        uuid: None,
        virtual_bytes: 0,
        fields,
    };
    let adopted = ticket
        .storage
        .adopt_image(&ticket.ctx, container.clone(), new)
        .await;
    let temporary = match adopted {
        Ok(temporary) => temporary,
        Err(error) => {
            drop(ticket.storage.import_abort(&ticket.ctx, container).await);
            return Err(match error.kind() {
                // Not the storage's fault: the client sent something else than a VHD we take.
                StorageErrorKind::ImageInvalid => ApiError::new("IMPORT_ERROR", [&chain(&error)]),
                _ => explain(error),
            });
        }
    };
    let copied = match temporary.virtual_bytes <= ticket.virtual_bytes {
        true => copy(ticket, &temporary).await,
        false => Err(too_large(ticket)),
    };
    let gone = ticket
        .storage
        .vdi_destroy(&ticket.ctx, temporary.sr, temporary.vdi)
        .await;
    copied.and(gone.map_err(explain))
}

async fn copy(ticket: &Ticket, from: &storage::VdiInfo) -> Result<(), ApiError> {
    let source = ticket
        .storage
        .export_open(&ticket.ctx, from.sr, from.vdi)
        .await;
    let source = source.map_err(|error| ticket.about.explain(error))?;
    let copied = async {
        let target = open(ticket).await?;
        let copied = async {
            let (from, to) = (Disk::connect(&source).await?, Disk::connect(&target).await?);
            from.copy_to(&to, ticket).await
        };
        let copied = copied.await;
        close(ticket, target, copied).await
    };
    let copied = copied.await;
    close(ticket, source, copied).await
}

async fn open(ticket: &Ticket) -> Result<Transfer, ApiError> {
    let opened = ticket
        .storage
        .import_open(&ticket.ctx, ticket.sr, ticket.vdi)
        .await;
    opened.map_err(|error| ticket.about.explain(error))
}

async fn close(
    ticket: &Ticket,
    transfer: Transfer,
    result: Result<(), ApiError>,
) -> Result<(), ApiError> {
    let closed = transfer
        .close(&ticket.ctx)
        .await
        .map_err(|error| ticket.about.explain(error));
    result.and(closed)
}

fn too_large(ticket: &Ticket) -> ApiError {
    ApiError::new(
        "VDI_TOO_LARGE",
        [ticket.vdi_ref.as_str(), &ticket.virtual_bytes.to_string()],
    )
}

fn writing_failed(error: std::io::Error) -> ApiError {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            ApiError::new("SR_FULL", ["the image", ""])
        }
        _ => ApiError::new(
            "SR_BACKEND_FAILURE",
            ["failed", "", &format!("storing: {error}")],
        ),
    }
}

/// A disk that a datapath serves.
struct Disk(Client);

impl Disk {
    async fn connect(transfer: &Transfer) -> Result<Self, ApiError> {
        let connected = Client::connect(&transfer.nbd.socket, &transfer.nbd.export).await;
        connected
            .map(Self)
            .map_err(|error| moving_failed("cannot reach the disk", &error))
    }

    /// Writes one chunk; zeros become a hole where the format has holes.
    async fn put(&self, offset: u64, data: Vec<u8>) -> Result<(), ApiError> {
        if data.iter().all(|byte| *byte == 0) && self.0.info().can_write_zeroes {
            return self.zero(offset, data.len() as u64).await;
        }
        let written = self.0.write(offset, data, WriteFlags::default()).await;
        written.map_err(|error| moving_failed(&format!("cannot write at {offset}"), &error))
    }

    async fn zero(&self, offset: u64, length: u64) -> Result<(), ApiError> {
        let mut at = 0;
        while at < length {
            let step = ZEROES_BYTES_MAX.min(length - at);
            let zeroed = self
                .0
                .write_zeroes(offset + at, step, WriteFlags::default())
                .await;
            zeroed.map_err(|error| {
                moving_failed(&format!("cannot zero at {}", offset + at), &error)
            })?;
            at += step;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), ApiError> {
        self.0
            .flush()
            .await
            .map_err(|error| moving_failed("cannot flush", &error))
    }

    /// Copies everything this disk holds to the beginning of another one and zeroes the rest.
    async fn copy_to(&self, to: &Disk, ticket: &Ticket) -> Result<(), ApiError> {
        let size = self.0.info().size_bytes;
        let mut offset = 0;
        while offset < size {
            ticket.task.check_cancelled()?;
            let length = (CHUNK_BYTES as u64 * 16).min(size - offset);
            let runs = self.0.block_status(offset, length).await;
            let runs =
                runs.map_err(|error| moving_failed("cannot read the image's map", &error))?;
            for run in runs {
                let end = offset.saturating_add(run.length_bytes).min(size);
                while offset < end {
                    let step = (CHUNK_BYTES as u64).min(end - offset);
                    if run.zero {
                        to.zero(offset, step).await?;
                    } else {
                        let data = self.0.read(offset, step as u32).await;
                        let data =
                            data.map_err(|error| moving_failed("cannot read the image", &error))?;
                        to.put(offset, data).await?;
                    }
                    offset += step;
                }
            }
            ticket
                .task
                .set_progress(0.5 + offset as f64 / size.max(1) as f64 / 2.0)
                .await;
        }
        let target_bytes = to.0.info().size_bytes;
        to.zero(size, target_bytes.saturating_sub(size)).await?;
        to.flush().await
    }
}

/// Cuts a stream into chunks and writes several at once.
struct Writer<'a> {
    ticket: &'a Ticket,
    disk: &'a Disk,
    expected: u64,
    /// Where the next chunk goes.
    offset: u64,
    pending: BytesMut,
    writes: FuturesUnordered<futures_util::future::BoxFuture<'a, Result<(), ApiError>>>,
}

impl<'a> Writer<'a> {
    fn new(ticket: &'a Ticket, disk: &'a Disk, expected: Option<u64>) -> Self {
        let expected = expected.unwrap_or(ticket.virtual_bytes).max(1);
        let pending = BytesMut::with_capacity(2 * CHUNK_BYTES);
        Self {
            ticket,
            disk,
            expected,
            offset: 0,
            pending,
            writes: FuturesUnordered::new(),
        }
    }

    async fn add(&mut self, data: Bytes) -> Result<(), ApiError> {
        self.ticket.task.check_cancelled()?;
        self.pending.extend_from_slice(&data);
        while self.pending.len() >= CHUNK_BYTES {
            let chunk = self.pending.split_to(CHUNK_BYTES).to_vec();
            self.write(chunk).await?;
        }
        Ok(())
    }

    async fn write(&mut self, chunk: Vec<u8>) -> Result<(), ApiError> {
        let end = self.offset.saturating_add(chunk.len() as u64);
        if end > self.disk.0.info().size_bytes {
            return Err(too_large(self.ticket));
        }
        while self.writes.len() >= IN_FLIGHT_MAX {
            self.writes.next().await.unwrap_or(Ok(()))?;
        }
        self.writes.push(self.disk.put(self.offset, chunk).boxed());
        self.offset = end;
        self.ticket
            .task
            .set_progress(end as f64 / self.expected as f64)
            .await;
        Ok(())
    }

    /// Writes what is left, filled up to a whole sector, and makes everything durable.
    async fn end(mut self) -> Result<(), ApiError> {
        if !self.pending.is_empty() {
            let mut last = self.pending.split().to_vec();
            last.resize(last.len().next_multiple_of(units::SECTOR_BYTES as usize), 0);
            self.write(last).await?;
        }
        while let Some(written) = self.writes.next().await {
            written?;
        }
        self.disk.flush().await
    }
}

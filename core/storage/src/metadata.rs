//! The container `xylem-meta`: how an [`SrRecord`] lies on the storage, and its atomic replacement.
//!
//! ```text
//! 0                      8 MiB                    16 MiB
//! | slot 0               | slot 1                  |
//! | head 64 | JSON ...   | head 64 | JSON ...      |
//!
//! head, little endian:  0 "XYLEM-SR"   8 version u32   12 payload bytes u32   16 sequence u64
//!                      24 zero         32 SHA-256 of head (this field zero) and payload
//! ```
//!
//! The valid slot of the highest sequence counts. A write goes to the other slot and is one write
//! and one flush, so a torn one leaves the old record in force. After a failed write nobody knows
//! what that slot holds; it is written again before anything is decided (see
//! [`Metadata::settle`]).

use crate::error::{Result, StorageError, StorageErrorKind};
use crate::outside::MetaFiles;
use crate::record::{Change, SrRecord};
use parking_lot::RwLock;
use plugin::Location;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use units::{ContainerId, MIB, SrUuid};

const MAGIC: &[u8; 8] = b"XYLEM-SR";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 64;
const SUM_OFFSET: usize = 32;
const SLOT_BYTES: u64 = 8 * MIB;

/// What is written at creation, so that a full SR can still commit the removal of a VDI.
const ALLOCATED_BYTES: usize = 1 << 20;

/// Capacity of the metadata container.
pub(crate) const CAPACITY_BYTES: u64 = 2 * SLOT_BYTES;

/// Name of the metadata container.
pub(crate) fn container() -> ContainerId {
    "xylem-meta"
        .parse()
        .expect("a constant container id is valid")
}

/// An SR's records, in memory and on the storage.
pub(crate) struct Metadata {
    files: Arc<dyn MetaFiles>,
    at: Location,
    record: RwLock<Arc<SrRecord>>,
    writer: tokio::sync::Mutex<Writer>,
}

/// What the next write needs to know.
struct Writer {
    /// The slot that holds the newest durable record; never written.
    durable_slot: u64,
    /// The highest sequence that may be on the storage.
    sequence: u64,
    /// Whether the last write failed: the other slot then holds the old, the new or no record.
    uncertain: bool,
}

/// What a metadata container turned out to hold.
struct Slot {
    index: u64,
    sequence: u64,
    record: SrRecord,
}

impl Metadata {
    /// Lays out the metadata of a new SR, or finds that of the same SR.
    pub(crate) async fn create(
        files: Arc<dyn MetaFiles>,
        at: Location,
        record: SrRecord,
    ) -> Result<Self> {
        if let Some(slot) = newest(&*files, &at).await? {
            return Self::checked(files, at, slot, record.sr);
        }
        for index in [1, 0] {
            let zeros = vec![0; ALLOCATED_BYTES];
            files
                .write(&at, index * SLOT_BYTES, zeros)
                .await
                .map_err(|e| write_error(&at, e))?;
        }
        let metadata = Self {
            files,
            at,
            record: RwLock::new(Arc::new(record.clone())),
            writer: Writer {
                durable_slot: 1,
                sequence: 0,
                uncertain: false,
            }
            .into(),
        };
        metadata.commit(|_| Ok(())).await?;
        Ok(metadata)
    }

    /// Reads the metadata of `sr`.
    pub(crate) async fn load(files: Arc<dyn MetaFiles>, at: Location, sr: SrUuid) -> Result<Self> {
        let slot = newest(&*files, &at).await?.ok_or_else(|| {
            let context = format!("the metadata of SR {sr} holds no readable record");
            StorageError::new(StorageErrorKind::SrMetadata, context)
        })?;
        Self::checked(files, at, slot, sr)
    }

    fn checked(files: Arc<dyn MetaFiles>, at: Location, slot: Slot, sr: SrUuid) -> Result<Self> {
        if slot.record.sr != sr {
            let context = format!("SR {} lies where SR {sr} was expected", slot.record.sr);
            return Err(StorageError::new(StorageErrorKind::SrForeign, context));
        }
        let writer = Writer {
            durable_slot: slot.index,
            sequence: slot.sequence,
            uncertain: false,
        }
        .into();
        Ok(Self {
            files,
            at,
            record: RwLock::new(Arc::new(slot.record)),
            writer,
        })
    }

    /// The records as last committed.
    pub(crate) fn record(&self) -> Arc<SrRecord> {
        Arc::clone(&self.record.read())
    }

    /// Changes the records, in memory and durably, or not at all. What no VDI needs afterwards is
    /// doomed in the same write. After an error it is not known what a reader of the storage would
    /// find, until [`Metadata::settle`] or another commit works.
    pub(crate) async fn commit<T>(
        &self,
        change: impl FnOnce(&mut SrRecord) -> Result<T>,
    ) -> Result<T> {
        let mut writer = self.writer.lock().await;
        let mut record = SrRecord::clone(&self.record());
        let value = change(&mut record)?;
        record.collect();
        self.write(&mut writer, &record).await?;
        let mut current = self.record.write();
        // Containers removed meanwhile are not doomed again.
        record
            .doomed
            .retain(|id| current.doomed.contains(id) || current.images.contains_key(id));
        *current = Arc::new(record);
        Ok(value)
    }

    /// Commits what an operation adds.
    pub(crate) async fn apply(&self, change: &Change) -> Result<()> {
        self.commit(|record| {
            record.apply(change);
            Ok(())
        })
        .await
    }

    /// Makes sure that the storage says what memory says, after a failed commit.
    pub(crate) async fn settle(&self) -> Result<()> {
        let mut writer = self.writer.lock().await;
        if !writer.uncertain {
            return Ok(());
        }
        let record = self.record();
        self.write(&mut writer, &record).await
    }

    /// Takes containers that are gone off the list; the next commit carries it to the storage.
    pub(crate) fn removed(&self, id: &ContainerId) {
        let mut current = self.record.write();
        let mut record = SrRecord::clone(&current);
        record.doomed.retain(|doomed| doomed != id);
        *current = Arc::new(record);
    }

    async fn write(&self, writer: &mut Writer, record: &SrRecord) -> Result<()> {
        let slot = 1 - writer.durable_slot;
        writer.sequence += 1;
        let bytes = encode(record, writer.sequence)?;
        writer.uncertain = true;
        let written = self.files.write(&self.at, slot * SLOT_BYTES, bytes).await;
        written.map_err(|e| write_error(&self.at, e))?;
        writer.uncertain = false;
        writer.durable_slot = slot;
        Ok(())
    }
}

fn write_error(at: &Location, e: std::io::Error) -> StorageError {
    let kind = match e.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            StorageErrorKind::SrFull
        }
        _ => StorageErrorKind::Backend,
    };
    StorageError::because(kind, format!("cannot write SR metadata at {at:?}"), e)
}

async fn newest(files: &dyn MetaFiles, at: &Location) -> Result<Option<Slot>> {
    let mut newest: Option<Slot> = None;
    for index in [0, 1] {
        if let Some(slot) = read_slot(files, at, index).await?
            && newest
                .as_ref()
                .is_none_or(|found| found.sequence < slot.sequence)
        {
            newest = Some(slot);
        }
    }
    Ok(newest)
}

async fn read_slot(files: &dyn MetaFiles, at: &Location, index: u64) -> Result<Option<Slot>> {
    let offset = index * SLOT_BYTES;
    let read = |length| async move {
        files.read(at, offset, length).await.map_err(|e| {
            let context = format!("cannot read SR metadata at {at:?}");
            StorageError::because(StorageErrorKind::SrMetadata, context, e)
        })
    };
    let Some(payload_bytes) = payload_bytes(&read(HEAD_BYTES).await?) else {
        return Ok(None);
    };
    let slot = read(HEAD_BYTES + payload_bytes).await?;
    let decoded = decode(&slot)?;
    Ok(decoded.map(|(sequence, record)| Slot {
        index,
        sequence,
        record,
    }))
}

/// The payload's length when `head` may be the head of a slot.
fn payload_bytes(head: &[u8]) -> Option<usize> {
    let length = u32::from_le_bytes(head.get(12..16)?.try_into().ok()?);
    let fits = u64::from(length) <= SLOT_BYTES - HEAD_BYTES as u64;
    (head.starts_with(MAGIC) && fits).then_some(usize::try_from(length).ok()?)
}

fn encode(record: &SrRecord, sequence: u64) -> Result<Vec<u8>> {
    let payload = serde_json::to_vec(record).map_err(|e| {
        StorageError::because(StorageErrorKind::Internal, "cannot encode SR metadata", e)
    })?;
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|length| u64::from(*length) <= SLOT_BYTES - HEAD_BYTES as u64);
    let Some(length) = length else {
        let context = format!("{} bytes of SR metadata exceed {SLOT_BYTES}", payload.len());
        return Err(StorageError::new(StorageErrorKind::SrFull, context));
    };
    let mut slot = Vec::with_capacity(HEAD_BYTES + payload.len());
    slot.extend_from_slice(MAGIC);
    slot.extend_from_slice(&VERSION.to_le_bytes());
    slot.extend_from_slice(&length.to_le_bytes());
    slot.extend_from_slice(&sequence.to_le_bytes());
    slot.resize(HEAD_BYTES, 0);
    slot.extend_from_slice(&payload);
    let sum = checksum(&slot);
    slot.splice(SUM_OFFSET..HEAD_BYTES, sum);
    Ok(slot)
}

/// The sequence and record of a slot; `None` for one that was not written whole.
///
/// # Errors
/// `SrMetadata` for one that was written whole by a later version, or that makes no sense: this
/// is never taken for an older state of the SR.
fn decode(slot: &[u8]) -> Result<Option<(u64, SrRecord)>> {
    let (Some(sum), Some(version), Some(sequence), Some(payload)) = (
        slot.get(SUM_OFFSET..HEAD_BYTES),
        slot.get(8..12)
            .and_then(|b| Some(u32::from_le_bytes(b.try_into().ok()?))),
        slot.get(16..24)
            .and_then(|b| Some(u64::from_le_bytes(b.try_into().ok()?))),
        slot.get(HEAD_BYTES..),
    ) else {
        return Ok(None);
    };
    if sum != checksum(slot) {
        return Ok(None);
    }
    if version != VERSION {
        let context = format!("SR metadata has version {version}, this program reads {VERSION}");
        return Err(StorageError::new(StorageErrorKind::SrMetadata, context));
    }
    let record = serde_json::from_slice(payload).map_err(|e| {
        StorageError::because(
            StorageErrorKind::SrMetadata,
            "SR metadata makes no sense",
            e,
        )
    })?;
    Ok(Some((sequence, record)))
}

fn checksum(slot: &[u8]) -> [u8; 32] {
    let (head, rest) = slot.split_at(SUM_OFFSET.min(slot.len()));
    let payload = rest.get(HEAD_BYTES - SUM_OFFSET..).unwrap_or_default();
    let zero = [0; HEAD_BYTES - SUM_OFFSET];
    Sha256::new()
        .chain_update(head)
        .chain_update(zero)
        .chain_update(payload)
        .finalize()
        .into()
}

#[cfg(test)]
mod tests;

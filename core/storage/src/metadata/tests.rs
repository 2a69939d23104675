//! Torn, failed and foreign metadata, on a file in memory that keeps only what it is told to.

use super::*;
use crate::record::ImageRecord;
use async_trait::async_trait;
use parking_lot::Mutex;
use std::io;

/// What the next write does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Works,
    /// Keeps this many bytes and then fails, or says that it worked.
    Torn {
        kept: usize,
        says_ok: bool,
    },
    /// Keeps all and fails.
    KeepsAndFails,
}

#[derive(Debug)]
struct Memory {
    bytes: Mutex<Vec<u8>>,
    fate: Mutex<Fate>,
}

impl Memory {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::default(),
            fate: Mutex::new(Fate::Works),
        })
    }

    fn keep(&self, offset: u64, bytes: &[u8]) {
        let mut all = self.bytes.lock();
        let start = usize::try_from(offset).unwrap();
        let end = start + bytes.len();
        if all.len() < end {
            all.resize(end, 0);
        }
        all[start..end].copy_from_slice(bytes);
    }
}

#[async_trait]
impl MetaFiles for Memory {
    async fn read(&self, _: &Location, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let all = self.bytes.lock();
        let start = usize::try_from(offset).unwrap();
        let mut bytes: Vec<_> = all.iter().skip(start).take(length).copied().collect();
        bytes.resize(length, 0);
        Ok(bytes)
    }

    async fn write(&self, _: &Location, offset: u64, bytes: Vec<u8>) -> io::Result<()> {
        let failed = Err(io::Error::other("made to fail"));
        match std::mem::replace(&mut *self.fate.lock(), Fate::Works) {
            Fate::Works => {
                self.keep(offset, &bytes);
                Ok(())
            }
            Fate::Torn { kept, says_ok } => {
                self.keep(offset, &bytes[..kept.min(bytes.len())]);
                if says_ok { Ok(()) } else { failed }
            }
            Fate::KeepsAndFails => {
                self.keep(offset, &bytes);
                failed
            }
        }
    }
}

fn at() -> Location {
    Location::File("/sr/xylem-meta".into())
}

fn sr() -> SrUuid {
    uuid::Uuid::from_u128(7).into()
}

async fn create(files: &Arc<Memory>) -> Metadata {
    let record = SrRecord::new(sr(), "label".into(), String::new());
    Metadata::create(files.clone(), at(), record).await.unwrap()
}

async fn load(files: &Arc<Memory>) -> Result<Metadata> {
    Metadata::load(files.clone(), at(), sr()).await
}

async fn rename(metadata: &Metadata, label: &str) -> Result<()> {
    let label = label.to_owned();
    metadata
        .commit(|record| {
            record.name_label = label;
            Ok(())
        })
        .await
}

#[tokio::test]
async fn a_commit_is_there_after_loading_and_a_refused_one_is_not() {
    let files = Memory::new();
    let metadata = create(&files).await;
    for label in ["one", "two", "three"] {
        rename(&metadata, label).await.unwrap();
        assert_eq!(load(&files).await.unwrap().record(), metadata.record());
    }
    let refused = metadata.commit(|record| {
        record.name_label.clear();
        Err::<(), _>(StorageError::no_sr(sr()))
    });
    assert_eq!(
        refused.await.unwrap_err().kind(),
        StorageErrorKind::SrNotAttached
    );
    assert_eq!(load(&files).await.unwrap().record().name_label, "three");
    assert_eq!(metadata.record().name_label, "three");
}

#[tokio::test]
async fn a_torn_write_leaves_the_record_before_it_wherever_it_is_torn() {
    let files = Memory::new();
    let metadata = create(&files).await;
    rename(&metadata, "before").await.unwrap();
    let whole = encode(&metadata.record(), 9).unwrap().len();
    let before = files.bytes.lock().clone();
    for kept in 0..whole {
        *files.bytes.lock() = before.clone();
        let metadata = load(&files).await.unwrap();
        *files.fate.lock() = Fate::Torn {
            kept,
            says_ok: true,
        };
        rename(&metadata, "after!").await.unwrap();
        let found = load(&files).await.unwrap().record().name_label.clone();
        assert_eq!(found, "before", "torn after {kept} of {whole} bytes");
    }
}

#[tokio::test]
async fn after_a_failed_write_settling_brings_the_storage_to_what_memory_says() {
    for fate in [
        Fate::KeepsAndFails,
        Fate::Torn {
            kept: 100,
            says_ok: false,
        },
    ] {
        let files = Memory::new();
        let metadata = create(&files).await;
        rename(&metadata, "before").await.unwrap();
        *files.fate.lock() = fate;
        assert_eq!(
            rename(&metadata, "after!").await.unwrap_err().kind(),
            StorageErrorKind::Backend
        );
        assert_eq!(metadata.record().name_label, "before", "{fate:?}");
        metadata.settle().await.unwrap();
        assert_eq!(
            load(&files).await.unwrap().record().name_label,
            "before",
            "{fate:?}"
        );
        rename(&metadata, "after!").await.unwrap();
        assert_eq!(
            load(&files).await.unwrap().record().name_label,
            "after!",
            "{fate:?}"
        );
    }
}

#[tokio::test]
async fn a_failed_write_never_costs_the_last_good_record() {
    let files = Memory::new();
    let metadata = create(&files).await;
    rename(&metadata, "good").await.unwrap();
    for kept in [0, 40, 70, 100] {
        *files.fate.lock() = Fate::Torn {
            kept,
            says_ok: false,
        };
        rename(&metadata, "bad").await.unwrap_err();
        assert_eq!(
            load(&files).await.unwrap().record().name_label,
            "good",
            "kept {kept}"
        );
    }
}

#[tokio::test]
async fn missing_foreign_later_and_senseless_metadata_are_errors_and_never_an_empty_sr() {
    let empty = Memory::new();
    assert_eq!(
        load(&empty).await.err().unwrap().kind(),
        StorageErrorKind::SrMetadata
    );

    let files = Memory::new();
    create(&files).await;
    let foreign = Metadata::load(files.clone(), at(), SrUuid::random()).await;
    assert_eq!(foreign.err().unwrap().kind(), StorageErrorKind::SrForeign);
    let other = SrRecord::new(SrUuid::random(), String::new(), String::new());
    let over = Metadata::create(files.clone(), at(), other).await;
    assert_eq!(over.err().unwrap().kind(), StorageErrorKind::SrForeign);

    // Whole slots with a right checksum: a later version, and JSON of another shape.
    let good = encode(&SrRecord::new(sr(), String::new(), String::new()), 99).unwrap();
    let mut later = good.clone();
    later[8] = 2;
    let mut senseless = good[..HEAD_BYTES].to_vec();
    senseless.extend_from_slice(b"{}");
    senseless[12..16].copy_from_slice(&2u32.to_le_bytes());
    for mut slot in [later, senseless] {
        let sum = checksum(&slot);
        slot.splice(SUM_OFFSET..HEAD_BYTES, sum);
        files.keep(SLOT_BYTES, &slot);
        assert_eq!(
            load(&files).await.err().unwrap().kind(),
            StorageErrorKind::SrMetadata
        );
    }
}

#[tokio::test]
async fn a_length_beyond_the_slot_is_not_read() {
    let files = Memory::new();
    create(&files).await;
    let mut head = encode(&SrRecord::new(sr(), String::new(), String::new()), 99).unwrap();
    head[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    files.keep(SLOT_BYTES, &head);
    assert_eq!(load(&files).await.unwrap().record().name_label, "label");
}

#[tokio::test]
async fn containers_removed_while_a_commit_is_written_are_not_doomed_again() {
    let files = Memory::new();
    let metadata = create(&files).await;
    let gone: ContainerId = "gone.vhd".parse().unwrap();
    let unused = ImageRecord {
        uuid: uuid::Uuid::nil(),
        parent: None,
        virtual_bytes: 0,
        format: datapath::Format::Vhd,
    };
    let change = Change {
        images: [(gone.clone(), unused)].into(),
        ..Change::default()
    };
    metadata.apply(&change).await.unwrap();
    assert_eq!(
        load(&files).await.unwrap().record().doomed,
        std::slice::from_ref(&gone)
    );
    metadata.removed(&gone);
    rename(&metadata, "next").await.unwrap();
    assert!(load(&files).await.unwrap().record().doomed.is_empty());
}

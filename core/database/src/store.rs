//! The file: redb tables, what goes in and how it comes out again.
//!
//! | table     | key             | value |
//! |-----------|-----------------|-------|
//! | `meta`    | name            | `format`, `schema` (version), `ceiling` (no revision was ever above it) |
//! | `rows`    | class, ref      | postcard of [`StoredRow`]; persistent fields by name |
//! | `records` | bucket, key     | JSON |
//!
//! redb checksums its pages; [`Store::open`] has it check all of them.

use crate::error::{Error, ErrorKind};
use crate::row::Row;
use crate::schema::{Class, Classes};
use crate::state::State;
use crate::value::{Ref, Value};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const ROWS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("rows");
const RECORDS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("records");

/// Grows when older programs would misread the tables.
const FORMAT: u64 = 1;
/// Revisions reserved at a time. A transaction that changes no persistent field is not written, so
/// the last revision is not on the disk; the reserved ceiling keeps a restart from using one again.
const REVISIONS_RESERVED: u64 = 1 << 20;

/// One thing to be written.
pub(crate) enum Write {
    PutRow(Arc<Row>),
    RemoveRow(Arc<str>, Ref),
    PutRecord(Arc<str>, String, Arc<[u8]>),
    RemoveRecord(Arc<str>, String),
}

#[derive(Serialize, Deserialize)]
struct StoredRow {
    created: u64,
    modified: u64,
    fields: BTreeMap<String, Value>,
}

/// The open file.
pub(crate) struct Store {
    database: redb::Database,
    ceiling: u64,
}

impl Store {
    /// Opens or makes the file and reads all of it.
    pub(crate) fn open(path: &Path, classes: Arc<Classes>) -> Result<(Self, State), Error> {
        Self::load(open_checked(path)?, path, classes)
    }

    pub(crate) fn load(
        database: redb::Database,
        path: &Path,
        classes: Arc<Classes>,
    ) -> Result<(Self, State), Error> {
        let meta = read_meta(&database, path)?;
        let fresh = meta.is_empty();
        let known = |name: &str| meta.get(name).copied();
        check_version(
            path,
            "format",
            if fresh {
                FORMAT
            } else {
                known("format").unwrap_or(0)
            },
            FORMAT,
        )?;
        let current = u64::from(classes.version);
        let found = if fresh {
            current
        } else {
            known("schema").unwrap_or(0)
        };
        check_version(path, "schema", found, current)?;
        let revision = if fresh {
            1
        } else {
            known("ceiling").unwrap_or(0)
        };
        if revision == 0 {
            return Err(damaged(path, "it has no revision"));
        }
        let mut state = State::empty(classes, revision);
        let mut stale = Vec::new();
        if !fresh {
            let upgrade = found < current;
            stale = read_rows(&database, path, &mut state, upgrade)?;
            read_records(&database, path, &mut state)?;
        }
        let ceiling = revision.saturating_add(REVISIONS_RESERVED);
        begin(&database, current, ceiling, &stale).map_err(|e| io(path, "write", e))?;
        Ok((Self { database, ceiling }, state))
    }

    /// Writes a batch whose last transaction has `revision`. Returns when it is on the disk.
    pub(crate) fn write<'a>(
        &mut self,
        revision: u64,
        writes: impl Iterator<Item = &'a Write>,
    ) -> Result<(), Error> {
        let mut writes = writes.peekable();
        if writes.peek().is_none() && revision <= self.ceiling {
            return Ok(());
        }
        self.commit_writes(revision, writes).map_err(|source| {
            Error::because(
                ErrorKind::Io,
                format!("cannot write revision {revision}: {source}"),
                source,
            )
        })
    }

    fn commit_writes<'a>(
        &mut self,
        revision: u64,
        writes: impl Iterator<Item = &'a Write>,
    ) -> Result<(), redb::Error> {
        let ceiling = revision.saturating_add(REVISIONS_RESERVED);
        let transaction = self.database.begin_write()?;
        {
            let mut rows = transaction.open_table(ROWS)?;
            let mut records = transaction.open_table(RECORDS)?;
            for write in writes {
                match write {
                    Write::PutRow(row) => {
                        let key = (&*row.class.name, row.reference.as_str());
                        let bytes =
                            encode(row).map_err(|e| redb::Error::Corrupted(e.to_string()))?;
                        rows.insert(key, bytes.as_slice())?;
                    }
                    Write::RemoveRow(class, reference) => {
                        rows.remove((&**class, reference.as_str()))?;
                    }
                    Write::PutRecord(bucket, key, bytes) => {
                        records.insert((&**bucket, key.as_str()), &**bytes)?;
                    }
                    Write::RemoveRecord(bucket, key) => {
                        records.remove((&**bucket, key.as_str()))?;
                    }
                }
            }
            if revision > self.ceiling {
                transaction.open_table(META)?.insert("ceiling", ceiling)?;
            }
        }
        transaction.commit()?;
        if revision > self.ceiling {
            self.ceiling = ceiling;
        }
        Ok(())
    }
}

/// Writes down who opened the file and takes rows of vanished classes out.
fn begin(
    database: &redb::Database,
    schema: u64,
    ceiling: u64,
    stale: &[(String, String)],
) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("schema", schema)?;
        meta.insert("ceiling", ceiling)?;
        let mut rows = transaction.open_table(ROWS)?;
        for (class, reference) in stale {
            rows.remove((class.as_str(), reference.as_str()))?;
        }
        transaction.open_table(RECORDS)?;
    }
    transaction.commit()?;
    Ok(())
}

fn open_checked(path: &Path) -> Result<redb::Database, Error> {
    let is_new = !path.exists();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| {
            Error::because(
                ErrorKind::Io,
                format!("cannot open {}: {e}", path.display()),
                e,
            )
        })?;
    // redb asserts on some of what it reads from a damaged file.
    let opened = std::panic::catch_unwind(|| {
        let mut database = redb::Builder::new().create_file(file)?;
        let intact = is_new || database.check_integrity()?;
        Ok((database, intact))
    });
    let opened = opened.map_err(|_| damaged(path, "its pages contradict each other"))?;
    let (database, intact) = opened.map_err(|e| open_error(path, e))?;
    if !intact {
        return Err(damaged(path, "the checksums of its pages do not match"));
    }
    if is_new {
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let synced = File::open(directory.unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all());
        synced.map_err(|e| io(path, "sync the directory of", e.into()))?;
    }
    Ok(database)
}

fn open_error(path: &Path, source: redb::DatabaseError) -> Error {
    use redb::{DatabaseError, StorageError};
    let kind = match &source {
        DatabaseError::DatabaseAlreadyOpen => ErrorKind::Locked,
        DatabaseError::UpgradeRequired(_)
        | DatabaseError::RepairAborted
        | DatabaseError::Storage(StorageError::Corrupted(_)) => ErrorKind::Damaged,
        DatabaseError::Storage(StorageError::Io(e))
            if matches!(
                e.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            ErrorKind::Damaged
        }
        _ => ErrorKind::Io,
    };
    let what = match kind {
        ErrorKind::Locked => format!("{} is in use by another process", path.display()),
        ErrorKind::Damaged => format!("{} is damaged or no database: {source}", path.display()),
        _ => format!("cannot open {}: {source}", path.display()),
    };
    Error::because(kind, what, source)
}

fn read_meta(database: &redb::Database, path: &Path) -> Result<BTreeMap<String, u64>, Error> {
    let read = || -> Result<_, redb::Error> {
        let transaction = database.begin_read()?;
        let table = match transaction.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(BTreeMap::new()),
            opened => opened?,
        };
        let mut found = BTreeMap::new();
        for entry in table.iter()? {
            let (name, number) = entry?;
            found.insert(name.value().to_owned(), number.value());
        }
        Ok(found)
    };
    read().map_err(|e| io(path, "read", e))
}

fn check_version(path: &Path, what: &str, found: u64, known: u64) -> Result<(), Error> {
    if found == 0 && known != 0 {
        return Err(damaged(path, &format!("it has no {what} version")));
    }
    if found > known {
        let what = format!(
            "{} has {what} version {found}, newer than {known}",
            path.display()
        );
        return Err(Error::new(ErrorKind::Newer, what));
    }
    Ok(())
}

/// Reads all objects into `state` and lists the keys that belong to no class any more.
fn read_rows(
    database: &redb::Database,
    path: &Path,
    state: &mut State,
    upgrade: bool,
) -> Result<Vec<(String, String)>, Error> {
    let transaction = database
        .begin_read()
        .map_err(|e| io(path, "read", e.into()))?;
    let table = transaction
        .open_table(ROWS)
        .map_err(|e| io(path, "read", e.into()))?;
    let mut stale = Vec::new();
    for entry in table.iter().map_err(|e| io(path, "read", e.into()))? {
        let (key, value) = entry.map_err(|e| io(path, "read", e.into()))?;
        let (class_name, reference) = key.value();
        let name = || format!("{class_name} {reference}");
        let Some(class) = state.classes.get(class_name).cloned() else {
            if !upgrade {
                return Err(damaged(
                    path,
                    &format!("it has {}, a class that is not known", name()),
                ));
            }
            stale.push((class_name.to_owned(), reference.to_owned()));
            continue;
        };
        let stored: StoredRow = postcard::from_bytes(value.value())
            .map_err(|e| damaged(path, &format!("{} cannot be decoded: {e}", name())))?;
        let row = restore(&class, reference.into(), stored, upgrade)
            .map_err(|problem| damaged(path, &format!("{}: {problem}", name())))?;
        state
            .insert(row)
            .map_err(|problem| damaged(path, &problem.to_string()))?;
    }
    state.drop_dangling()?;
    Ok(stale)
}

fn read_records(database: &redb::Database, path: &Path, state: &mut State) -> Result<(), Error> {
    let transaction = database
        .begin_read()
        .map_err(|e| io(path, "read", e.into()))?;
    let table = transaction
        .open_table(RECORDS)
        .map_err(|e| io(path, "read", e.into()))?;
    let buckets = Arc::make_mut(&mut state.buckets);
    for entry in table.iter().map_err(|e| io(path, "read", e.into()))? {
        let (key, value) = entry.map_err(|e| io(path, "read", e.into()))?;
        let (bucket, key) = key.value();
        buckets
            .entry(bucket.into())
            .or_default()
            .insert(key.to_owned(), value.value().into(), 0);
    }
    Ok(())
}

fn encode(row: &Row) -> Result<Vec<u8>, postcard::Error> {
    let kept = row
        .class
        .fields
        .iter()
        .zip(&row.values)
        .filter(|(field, _)| field.persistent);
    let fields = kept
        .map(|(field, value)| (field.name.clone(), value.clone()))
        .collect();
    postcard::to_stdvec(&StoredRow {
        created: row.created,
        modified: row.modified,
        fields,
    })
}

fn restore(
    class: &Arc<Class>,
    reference: Ref,
    mut stored: StoredRow,
    upgrade: bool,
) -> Result<Row, String> {
    let mut values = Vec::with_capacity(class.fields.len());
    for field in &class.fields {
        let initial = || field.default.clone().unwrap_or_else(|| field.ty.zero());
        let kept = if field.persistent {
            stored.fields.remove(&field.name)
        } else {
            None
        };
        values.push(match kept {
            Some(value) if field.ty.accepts(&value) => value,
            Some(value) if !upgrade => {
                return Err(format!("{} is a {}, not {value:?}", field.name, field.ty));
            }
            None if field.persistent && !upgrade => {
                return Err(format!("{} is missing", field.name));
            }
            _ => initial(),
        });
    }
    Ok(Row::new(
        class.clone(),
        reference,
        values,
        (stored.created, stored.modified),
    ))
}

fn damaged(path: &Path, how: &str) -> Error {
    Error::new(
        ErrorKind::Damaged,
        format!("{} is damaged: {how}", path.display()),
    )
}

fn io(path: &Path, verb: &str, source: redb::Error) -> Error {
    let kind = if matches!(source, redb::Error::Corrupted(_)) {
        ErrorKind::Damaged
    } else {
        ErrorKind::Io
    };
    Error::because(
        kind,
        format!("cannot {verb} {}: {source}", path.display()),
        source,
    )
}

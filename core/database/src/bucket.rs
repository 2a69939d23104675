//! Small private records beside the objects: journals, domain records. Not in the change feed.

use crate::database::Database;
use crate::error::{Error, ErrorKind};
use crate::state::State;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

/// Named records of one type, kept as JSON so that a record may grow fields with
/// `#[serde(default)]`. Cheap to clone; two handles of one name see the same records.
///
/// Writing calls come in two forms: plain ones block the thread until the record is on the disk,
/// `_async` ones wait without blocking. Dropping the future of the latter does not take the write back.
/// [`Database::transact`] combines records of several buckets and objects in one step.
pub struct Bucket<T> {
    pub(crate) name: Arc<str>,
    database: Database,
    records: PhantomData<fn(T) -> T>,
}

impl<T> Clone for Bucket<T> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            database: self.database.clone(),
            records: PhantomData,
        }
    }
}

impl<T> Bucket<T> {
    pub(crate) fn new(database: Database, name: &str) -> Self {
        Self {
            name: name.into(),
            database,
            records: PhantomData,
        }
    }

    /// Takes a record out; says whether it was there.
    ///
    /// # Errors
    /// `Io`, `Overloaded`.
    pub fn remove(&self, key: &str) -> Result<bool, Error> {
        self.database
            .transact(|tx| Ok(tx.remove_record(self, key)))
            .map(|(was_there, _)| was_there)
    }

    /// As [`Self::remove`].
    ///
    /// # Errors
    /// `Io`, `Overloaded`.
    pub async fn remove_async(&self, key: &str) -> Result<bool, Error> {
        let done = self
            .database
            .transact_async(|tx| Ok(tx.remove_record(self, key)));
        done.await.map(|(was_there, _)| was_there)
    }

    fn error(&self, key: &str, source: serde_json::Error) -> Error {
        let what = format!("record {key:?} of bucket {} has another shape", self.name);
        Error::because(ErrorKind::Record, what, source)
    }
}

impl<T: DeserializeOwned> Bucket<T> {
    /// Reads a record.
    ///
    /// # Errors
    /// `Record` when it cannot be decoded.
    pub fn get(&self, key: &str) -> Result<Option<T>, Error> {
        self.decode_from(&self.database.snapshot().state, key)
    }

    /// Reads all records.
    ///
    /// # Errors
    /// `Record` when one cannot be decoded.
    pub fn all(&self) -> Result<BTreeMap<String, T>, Error> {
        let snapshot = self.database.snapshot();
        let records = snapshot
            .state
            .buckets
            .get(&self.name)
            .into_iter()
            .flat_map(|all| all.iter());
        records
            .map(|(key, bytes)| Ok((key.clone(), self.decode(key, bytes)?)))
            .collect()
    }

    pub(crate) fn decode_from(&self, state: &State, key: &str) -> Result<Option<T>, Error> {
        let bytes = state
            .buckets
            .get(&self.name)
            .and_then(|records| records.get(key));
        bytes.map(|bytes| self.decode(key, bytes)).transpose()
    }

    fn decode(&self, key: &str, bytes: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(bytes).map_err(|source| self.error(key, source))
    }
}

impl<T: Serialize> Bucket<T> {
    /// Puts a record in place, new or not.
    ///
    /// # Errors
    /// `Record` when it cannot be encoded; `Io`, `Overloaded`.
    pub fn put(&self, key: &str, record: &T) -> Result<(), Error> {
        self.put_many([(key, record)])
    }

    /// As [`Self::put`].
    ///
    /// # Errors
    /// `Record` when it cannot be encoded; `Io`, `Overloaded`.
    pub async fn put_async(&self, key: &str, record: &T) -> Result<(), Error> {
        self.database
            .transact_async(|tx| tx.put_record(self, key, record))
            .await
            .map(|_| ())
    }

    /// Puts several records in place, all or none.
    ///
    /// # Errors
    /// `Record` when one cannot be encoded; `Io`, `Overloaded`.
    pub fn put_many<'a>(
        &self,
        records: impl IntoIterator<Item = (&'a str, &'a T)>,
    ) -> Result<(), Error>
    where
        T: 'a,
    {
        let mut records = records.into_iter();
        let done = self
            .database
            .transact(|tx| records.try_for_each(|(key, record)| tx.put_record(self, key, record)));
        done.map(|_| ())
    }

    pub(crate) fn encode(&self, key: &str, record: &T) -> Result<Arc<[u8]>, Error> {
        let bytes = serde_json::to_vec(record).map_err(|source| self.error(key, source))?;
        Ok(bytes.into())
    }
}

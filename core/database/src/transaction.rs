//! A transaction at work: reads see its own changes, nobody else does until it is committed.

use crate::bucket::Bucket;
use crate::error::{Error, ErrorKind};
use crate::row::Row;
use crate::schema::{Class, FieldSchema};
use crate::state::{Dirty, State};
use crate::store::Write;
use crate::value::{Ref, Type, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// A transaction. It starts from all transactions before it, and is committed whole or not at all.
///
/// The type of a value is checked when it is set; that its references name objects of the right
/// class is checked at the end, so objects may be made in any order.
pub struct Tx {
    pub(crate) state: State,
    /// Objects to write to, or take from, the disk.
    disk: Dirty,
    /// Objects whose references are to be checked.
    unchecked: Dirty,
    records: Vec<Write>,
    changed: bool,
}

impl Tx {
    pub(crate) fn new(head: &State) -> Self {
        let mut state = head.clone();
        state.revision += 1;
        let (disk, unchecked) = (Dirty::new(), Dirty::new());
        Self {
            state,
            disk,
            unchecked,
            records: Vec::new(),
            changed: false,
        }
    }

    /// Returns the revision this transaction will have.
    pub fn revision(&self) -> u64 {
        self.state.revision
    }

    /// Makes an object. Fields that are not given take their default.
    ///
    /// # Errors
    /// `Schema` for an unknown class or field, or a computed one; `Type` for a value of the wrong
    /// type or a missing one; `Exists` when the reference or the uuid is taken.
    pub fn create<K: AsRef<str>>(
        &mut self,
        class: &str,
        reference: Ref,
        fields: impl IntoIterator<Item = (K, Value)>,
    ) -> Result<(), Error> {
        let class = self.state.classes.require(class)?.clone();
        let mut given: Vec<Option<Value>> = class.fields.iter().map(|_| None).collect();
        for (name, value) in fields {
            let at = settable(&class, name.as_ref(), &value)?;
            if let Some(place) = given.get_mut(at) {
                *place = Some(value);
            }
        }
        let mut values = Vec::with_capacity(given.len());
        for (field, value) in class.fields.iter().zip(given) {
            values.push(value.or_else(|| field.default.clone()).ok_or_else(|| {
                let what = format!("{}.{} needs a value", class.name, field.name);
                Error::new(ErrorKind::Type, what)
            })?);
        }
        let revision = self.state.revision;
        let id = class.id;
        let row = Row::new(class, reference.clone(), values, (revision, revision));
        self.state.insert(row)?;
        self.note(id, &reference, true);
        Ok(())
    }

    /// Sets one field. Setting the value it has already changes nothing.
    ///
    /// # Errors
    /// `Schema` for an unknown class or field, or a computed one; `Type`; `NotFound`; `Exists` for
    /// a uuid that is taken.
    pub fn set(
        &mut self,
        class: &str,
        reference: &Ref,
        field: &str,
        value: Value,
    ) -> Result<(), Error> {
        let row = self.require(class, reference)?;
        let at = settable(&row.class, field, &value)?;
        if row.values.get(at) == Some(&value) {
            return Ok(());
        }
        let persistent = row
            .class
            .fields
            .get(at)
            .is_some_and(|field| field.persistent);
        self.state.update(&row, |values| {
            if let Some(place) = values.get_mut(at) {
                *place = value;
            }
        })?;
        self.note(row.class.id, reference, persistent);
        Ok(())
    }

    /// Removes an object. References to it become null or disappear from their set or map.
    ///
    /// # Errors
    /// `Schema` for an unknown class; `NotFound`.
    pub fn remove(&mut self, class: &str, reference: &Ref) -> Result<(), Error> {
        let row = self.require(class, reference)?;
        self.disk.extend(self.state.remove(&row)?);
        self.changed = true;
        Ok(())
    }

    /// Marks an object as modified without changing it, so that the change feed mentions it.
    ///
    /// # Errors
    /// `Schema` for an unknown class; `NotFound`.
    pub fn touch(&mut self, class: &str, reference: &Ref) -> Result<(), Error> {
        let row = self.require(class, reference)?;
        self.state.update(&row, |_| ())?;
        self.changed = true;
        Ok(())
    }

    /// Returns one object.
    pub fn row(&self, class: &str, reference: &Ref) -> Option<Arc<Row>> {
        self.state.row(class, reference).cloned()
    }

    /// Lists the objects of a class, sorted by reference; nothing for an unknown class.
    pub fn rows<'a>(&'a self, class: &str) -> impl Iterator<Item = &'a Arc<Row>> + use<'a> {
        self.state.rows(class)
    }

    /// Finds an object by its uuid.
    pub fn by_uuid(&self, class: &str, uuid: &str) -> Option<Arc<Row>> {
        self.state.by_uuid(class, uuid)
    }

    /// Finds the objects with this `name_label`, sorted by reference.
    pub fn by_name_label(&self, class: &str, name: &str) -> Vec<Arc<Row>> {
        self.state.by_name_label(class, name)
    }

    /// Reads a record of a bucket.
    ///
    /// # Errors
    /// `Record` when it cannot be decoded.
    pub fn record<T: DeserializeOwned>(
        &self,
        bucket: &Bucket<T>,
        key: &str,
    ) -> Result<Option<T>, Error> {
        bucket.decode_from(&self.state, key)
    }

    /// Puts a record in a bucket.
    ///
    /// # Errors
    /// `Record` when it cannot be encoded.
    pub fn put_record<T: Serialize>(
        &mut self,
        bucket: &Bucket<T>,
        key: &str,
        record: &T,
    ) -> Result<(), Error> {
        let bytes = bucket.encode(key, record)?;
        let buckets = Arc::make_mut(&mut self.state.buckets);
        buckets
            .entry(bucket.name.clone())
            .or_default()
            .insert(key.to_owned(), bytes.clone(), 0);
        self.records
            .push(Write::PutRecord(bucket.name.clone(), key.to_owned(), bytes));
        Ok(())
    }

    /// Takes a record out of a bucket; says whether it was there.
    pub fn remove_record<T>(&mut self, bucket: &Bucket<T>, key: &str) -> bool {
        let Some(records) = Arc::make_mut(&mut self.state.buckets).get_mut(&bucket.name) else {
            return false;
        };
        let was_there = records.remove(key).is_some();
        if was_there {
            self.records
                .push(Write::RemoveRecord(bucket.name.clone(), key.to_owned()));
        }
        was_there
    }

    fn require(&self, class: &str, reference: &Ref) -> Result<Arc<Row>, Error> {
        let class = self.state.classes.require(class)?;
        self.row(&class.name, reference).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("there is no {} {reference}", class.name),
            )
        })
    }

    fn note(&mut self, class: crate::schema::ClassId, reference: &Ref, persistent: bool) {
        self.changed = true;
        self.unchecked.insert((class, reference.clone()));
        if persistent {
            self.disk.insert((class, reference.clone()));
        }
    }

    /// Checks references and hands over the next state with what to write; the state is `None`
    /// when no object changed and no record was written.
    pub(crate) fn finish(self) -> Result<(Option<State>, Vec<Write>), Error> {
        for (_, reference) in &self.unchecked {
            if let Some(row) = self.state.find(reference) {
                check_references(&self.state, row)?;
            }
        }
        let mut writes = self.records;
        if !self.changed && writes.is_empty() {
            return Ok((None, writes));
        }
        for (id, reference) in self.disk {
            let Some(class) = self
                .state
                .classes
                .all
                .get(id.0)
                .filter(|class| class.persistent)
            else {
                continue;
            };
            writes.push(match self.state.row(&class.name, &reference) {
                Some(row) => Write::PutRow(row.clone()),
                None => Write::RemoveRow(class.name.clone(), reference),
            });
        }
        Ok((Some(self.state), writes))
    }
}

fn settable(class: &Class, name: &str, value: &Value) -> Result<usize, Error> {
    let (at, field) = class.field(name).ok_or_else(|| {
        Error::new(
            ErrorKind::Schema,
            format!("{} has no field {name}", class.name),
        )
    })?;
    if field.reverse_of.is_some() {
        let what = format!("{}.{name} is computed and cannot be set", class.name);
        return Err(Error::new(ErrorKind::Schema, what));
    }
    if !field.ty.accepts(value) {
        let what = format!("{}.{name} takes a {}, not {value:?}", class.name, field.ty);
        return Err(Error::new(ErrorKind::Type, what));
    }
    Ok(at)
}

fn check_references(state: &State, row: &Row) -> Result<(), Error> {
    for (field, value) in row.class.fields.iter().zip(&row.values) {
        check_value(state, row, field, &field.ty, value)?;
    }
    Ok(())
}

fn check_value(
    state: &State,
    row: &Row,
    field: &FieldSchema,
    ty: &Type,
    value: &Value,
) -> Result<(), Error> {
    match (ty, value) {
        (Type::Ref(class), Value::Ref(target)) if !target.is_null() => {
            if state.row(class, target).is_none() {
                let owner = format!("{} {}", row.class.name, row.reference);
                let what = format!(
                    "{}.{} of {owner}: there is no {class} {target}",
                    row.class.name, field.name
                );
                return Err(Error::new(ErrorKind::NotFound, what));
            }
            Ok(())
        }
        (Type::Set(inner), Value::Set(items)) => items
            .iter()
            .try_for_each(|item| check_value(state, row, field, inner, item)),
        (Type::Map(_, inner), Value::Map(entries)) => entries
            .values()
            .try_for_each(|item| check_value(state, row, field, inner, item)),
        _ => Ok(()),
    }
}

//! The objects in memory: tables, indexes, and the four ways to change them.
//!
//! A [`State`] is cheap to clone (it is made of shared chunks), so a transaction changes a clone of
//! its own and the clone becomes the next state, or is dropped. Kept true by every change here:
//!
//! * an index entry exists exactly for what the rows say;
//! * a computed field holds exactly the references that point at its object;
//! * `referrers` knows every reference from one object to another;
//! * a removed object leaves no reference to itself behind.

use crate::chunk_map::ChunkMap;
use crate::error::{Error, ErrorKind};
use crate::row::Row;
use crate::schema::{Class, ClassId, Classes, FieldSchema};
use crate::snapshot::Deleted;
use crate::value::{Ref, Type, Value};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Deletions remembered for the change feed. When one more comes, the older half is forgotten.
pub(crate) const TOMBSTONES_MAX: usize = 4096;

/// The objects of one class.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    pub(crate) rows: ChunkMap<Ref, Arc<Row>>,
    pub(crate) by_uuid: ChunkMap<String, Ref>,
    pub(crate) by_name_label: ChunkMap<(String, Ref), ()>,
}

/// An object that was removed, and since when it had been there.
#[derive(Clone, Debug)]
pub(crate) struct Tombstone {
    pub(crate) deleted: Deleted,
    pub(crate) created: u64,
}

/// Small records by bucket and key, encoded.
pub(crate) type Buckets = BTreeMap<Arc<str>, ChunkMap<String, Arc<[u8]>>>;

/// Everything in the database at one revision.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) classes: Arc<Classes>,
    pub(crate) revision: u64,
    /// The oldest revision whose later deletions are all in `tombstones`.
    pub(crate) oldest: u64,
    pub(crate) tables: Vec<Arc<Table>>,
    pub(crate) class_of: Arc<ChunkMap<Ref, ClassId>>,
    /// Pairs (what is referred to, what refers to it). The first need not exist while a transaction
    /// is at work.
    pub(crate) referrers: Arc<ChunkMap<(Ref, Ref), ()>>,
    pub(crate) tombstones: Arc<VecDeque<Tombstone>>,
    pub(crate) buckets: Arc<Buckets>,
}

/// What a change did, for the writer: which objects need to be written or taken from the disk.
pub(crate) type Dirty = BTreeSet<(ClassId, Ref)>;

impl State {
    pub(crate) fn empty(classes: Arc<Classes>, revision: u64) -> Self {
        let tables = classes.all.iter().map(|_| Arc::default()).collect();
        Self {
            classes,
            revision,
            oldest: revision,
            tables,
            class_of: Arc::default(),
            referrers: Arc::default(),
            tombstones: Arc::default(),
            buckets: Arc::default(),
        }
    }

    pub(crate) fn by_uuid(&self, class: &str, uuid: &str) -> Option<Arc<Row>> {
        let table = self.table(class)?;
        table.rows.get(table.by_uuid.get(uuid)?).cloned()
    }

    pub(crate) fn by_name_label(&self, class: &str, name: &str) -> Vec<Arc<Row>> {
        let Some(table) = self.table(class) else {
            return Vec::new();
        };
        let pairs = table
            .by_name_label
            .starting_at(&(name.to_owned(), Ref::from("")));
        let found = pairs
            .map(|(pair, ())| pair)
            .take_while(|(have, _)| have == name);
        found
            .filter_map(|(_, reference)| table.rows.get(reference).cloned())
            .collect()
    }

    pub(crate) fn rows<'a>(&'a self, class: &str) -> impl Iterator<Item = &'a Arc<Row>> + use<'a> {
        self.table(class)
            .into_iter()
            .flat_map(|table| table.rows.iter().map(|(_, row)| row))
    }

    pub(crate) fn row(&self, class: &str, reference: &Ref) -> Option<&Arc<Row>> {
        self.table(class)?.rows.get(reference)
    }

    pub(crate) fn table(&self, class: &str) -> Option<&Table> {
        self.tables
            .get(self.classes.get(class)?.id.0)
            .map(|table| &**table)
    }

    pub(crate) fn find(&self, reference: &Ref) -> Option<&Arc<Row>> {
        let class = self.class_of.get(reference)?;
        self.tables.get(class.0)?.rows.get(reference)
    }

    /// Lists the objects that refer to `target`.
    fn referrers_of(&self, target: &Ref) -> Vec<Ref> {
        let pairs = self.referrers.starting_at(&(target.clone(), Ref::from("")));
        pairs
            .map(|(pair, ())| pair)
            .take_while(|(to, _)| to == target)
            .map(|(_, from)| from.clone())
            .collect()
    }

    /// Puts a new object in place. The reference must be free; the values have been checked.
    pub(crate) fn insert(&mut self, row: Row) -> Result<(), Error> {
        let reference = row.reference.clone();
        if reference.is_null() || self.class_of.get(&reference).is_some() {
            let what = format!("{} {reference} exists already", row.class.name);
            return Err(Error::new(ErrorKind::Exists, what));
        }
        let class = row.class.clone();
        Arc::make_mut(&mut self.class_of).insert(reference.clone(), class.id, 0);
        let blank: Vec<_> = class.fields.iter().map(blank_value).collect();
        self.replace(&class, &blank, Arc::new(row))?;
        // Objects made earlier in the same transaction may refer to this one already.
        for from in self.referrers_of(&reference) {
            let Some(referrer) = self.find(&from).cloned() else {
                continue;
            };
            for &(at, shown_class, mirror) in &referrer.class.mirrors {
                if shown_class == class.id && refs_in(&referrer.values, at).contains(&reference) {
                    self.show(&reference, (shown_class, mirror), &from, true);
                }
            }
        }
        Ok(())
    }

    /// Changes stored fields of an object.
    pub(crate) fn update(
        &mut self,
        row: &Arc<Row>,
        change: impl FnOnce(&mut Vec<Value>),
    ) -> Result<(), Error> {
        let mut new = Row::clone(row);
        change(&mut new.values);
        new.modified = self.revision;
        self.replace(&row.class, &row.values, Arc::new(new))
    }

    /// Removes an object and every reference to it; lists whose stored fields changed.
    pub(crate) fn remove(&mut self, row: &Arc<Row>) -> Result<Dirty, Error> {
        let reference = &row.reference;
        let mut dirty = Dirty::from([(row.class.id, reference.clone())]);
        for referrer in self.referrers_of(reference) {
            if let Some(other) = self
                .find(&referrer)
                .filter(|row| row.reference != *reference)
                .cloned()
            {
                self.update(&other, |values| {
                    values
                        .iter_mut()
                        .for_each(|value| value.clear_ref(reference));
                })?;
                dirty.insert((other.class.id, referrer));
            }
        }
        // Its computed fields are empty by now unless it refers to itself; its own references go here.
        let Some(last) = self.find(reference).cloned() else {
            return Ok(dirty);
        };
        self.update(&last, |values| {
            for (value, field) in values.iter_mut().zip(&last.class.fields) {
                if field.reverse_of.is_none() {
                    *value = blank_value(field);
                }
            }
        })?;
        if let Some(table) = self.tables.get_mut(row.class.id.0) {
            Arc::make_mut(table).rows.remove(reference);
        }
        Arc::make_mut(&mut self.class_of).remove(reference);
        self.bury(row);
        Ok(dirty)
    }

    /// Takes out references to objects that are not there, e.g. of classes that live in memory only.
    pub(crate) fn drop_dangling(&mut self) -> Result<(), Error> {
        let dangling: Vec<_> = self
            .referrers
            .iter()
            .map(|(pair, ())| pair)
            .filter(|(target, _)| self.class_of.get(target).is_none())
            .cloned()
            .collect();
        for (target, from) in dangling {
            if let Some(row) = self.find(&from).cloned() {
                self.update(&row, |values| {
                    values.iter_mut().for_each(|value| value.clear_ref(&target));
                })?;
            }
        }
        Ok(())
    }

    fn bury(&mut self, row: &Row) {
        if row.created == self.revision {
            return;
        }
        let deleted = Deleted {
            class: row.class.name.clone(),
            reference: row.reference.clone(),
            uuid: row.uuid().to_owned(),
            revision: self.revision,
        };
        let tombstones = Arc::make_mut(&mut self.tombstones);
        tombstones.push_back(Tombstone {
            deleted,
            created: row.created,
        });
        if tombstones.len() > TOMBSTONES_MAX {
            let forgotten = tombstones.drain(..TOMBSTONES_MAX / 2);
            let newest = forgotten.map(|gone| gone.deleted.revision).max();
            self.oldest = self.oldest.max(newest.unwrap_or(0));
        }
    }

    /// Puts `new` where an object with the values `old` was and carries indexes along.
    fn replace(&mut self, class: &Class, old: &[Value], new: Arc<Row>) -> Result<(), Error> {
        let reference = new.reference.clone();
        if let Some(table) = self.tables.get_mut(class.id.0) {
            let table = Arc::make_mut(table);
            let text = |values: &[Value], at: Option<usize>| {
                let text = at
                    .and_then(|at| values.get(at))
                    .and_then(Value::as_str)
                    .unwrap_or("");
                text.to_owned()
            };
            let uuids = (text(old, class.uuid), text(&new.values, class.uuid));
            move_uuid(table, class, &reference, uuids)?;
            let names = (
                text(old, class.name_label),
                text(&new.values, class.name_label),
            );
            move_name_label(table, &reference, names);
            table
                .rows
                .insert(reference.clone(), new.clone(), new.modified);
        }
        self.carry_referrers(&reference, class, old, &new.values);
        self.carry_mirrors(&reference, class, old, &new.values);
        Ok(())
    }

    fn carry_referrers(&mut self, from: &Ref, class: &Class, old: &[Value], new: &[Value]) {
        let (before, after) = (targets(class, old), targets(class, new));
        if before == after {
            return;
        }
        let referrers = Arc::make_mut(&mut self.referrers);
        for target in before.difference(&after) {
            referrers.remove(&((*target).clone(), from.clone()));
        }
        for target in after.difference(&before) {
            referrers.insert(((*target).clone(), from.clone()), (), 0);
        }
    }

    fn carry_mirrors(&mut self, from: &Ref, class: &Class, old: &[Value], new: &[Value]) {
        for &(at, shown_class, mirror) in &class.mirrors {
            let (before, after) = (refs_in(old, at), refs_in(new, at));
            for target in before.difference(&after) {
                self.show(target, (shown_class, mirror), from, false);
            }
            for target in after.difference(&before) {
                self.show(target, (shown_class, mirror), from, true);
            }
        }
    }

    /// Puts `from` in, or takes it out of, the computed field `mirror` of `target`.
    fn show(&mut self, target: &Ref, mirror: (ClassId, usize), from: &Ref, present: bool) {
        let revision = self.revision;
        let Some(table) = self.tables.get_mut(mirror.0.0).map(Arc::make_mut) else {
            return;
        };
        let Some(row) = table.rows.get_mut(target, revision).map(Arc::make_mut) else {
            return;
        };
        row.modified = revision;
        row.show(mirror.1, from, present);
    }
}

/// The value an object has before it is there, as far as indexes are concerned.
fn blank_value(field: &FieldSchema) -> Value {
    if field.ty == Type::String {
        Value::from("")
    } else {
        Value::Null
    }
}

fn refs_in(values: &[Value], at: usize) -> BTreeSet<Ref> {
    let mut found = BTreeSet::new();
    if let Some(value) = values.get(at) {
        value.each_ref(&mut |reference| _ = found.insert(reference.clone()));
    }
    found
}

/// Lists what the stored fields of an object refer to.
fn targets<'a>(class: &Class, values: &'a [Value]) -> BTreeSet<&'a Ref> {
    let mut found = BTreeSet::new();
    for (value, field) in values.iter().zip(&class.fields) {
        if field.reverse_of.is_none() {
            value.each_ref(&mut |reference| _ = found.insert(reference));
        }
    }
    found
}

fn move_uuid(
    table: &mut Table,
    class: &Class,
    reference: &Ref,
    (old, new): (String, String),
) -> Result<(), Error> {
    if old == new {
        return Ok(());
    }
    if table.by_uuid.get(&new).is_some() {
        let what = format!("{} with uuid {new} exists already", class.name);
        return Err(Error::new(ErrorKind::Exists, what));
    }
    if !old.is_empty() {
        table.by_uuid.remove(&old);
    }
    if !new.is_empty() {
        table.by_uuid.insert(new, reference.clone(), 0);
    }
    Ok(())
}

fn move_name_label(table: &mut Table, reference: &Ref, (old, new): (String, String)) {
    if old == new {
        return;
    }
    if !old.is_empty() {
        table.by_name_label.remove(&(old, reference.clone()));
    }
    if !new.is_empty() {
        table.by_name_label.insert((new, reference.clone()), (), 0);
    }
}

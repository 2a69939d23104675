//! What readers see: everything as of one revision, and what changed since another.

use crate::error::{Error, ErrorKind};
use crate::row::Row;
use crate::state::{State, Tombstone};
use crate::value::Ref;
use std::sync::Arc;

/// Everything as of one revision. Cheap to clone, never changes, never blocks.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(crate) state: Arc<State>,
}

/// An object that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Its class.
    pub class: Arc<str>,
    /// Its reference.
    pub reference: Ref,
    /// Its uuid, or `""`.
    pub uuid: String,
    /// The revision that removed it.
    pub revision: u64,
}

/// What changed between two revisions. To replay: take the deleted away, then put added and
/// modified in place. An object that came and went in between is not mentioned.
#[derive(Clone, Debug)]
pub struct Changes {
    /// Objects that were not there before.
    pub added: Vec<Arc<Row>>,
    /// Objects that were there and have changed, computed fields included, or were touched.
    pub modified: Vec<Arc<Row>>,
    /// Objects that are gone, in the order they went.
    pub deleted: Vec<Deleted>,
    /// The revision to ask from the next time.
    pub revision: u64,
}

impl Snapshot {
    /// Returns the revision of this snapshot. Grows with every transaction that changes
    /// something, also over restarts of the process.
    pub fn revision(&self) -> u64 {
        self.state.revision
    }

    /// Returns one object.
    pub fn row(&self, class: &str, reference: &Ref) -> Option<Arc<Row>> {
        self.state.row(class, reference).cloned()
    }

    /// Lists the objects of a class, sorted by reference; nothing for an unknown class.
    pub fn rows<'a>(&'a self, class: &str) -> impl Iterator<Item = &'a Arc<Row>> + use<'a> {
        self.state.rows(class)
    }

    /// Counts the objects of a class.
    pub fn count(&self, class: &str) -> usize {
        self.state.table(class).map_or(0, |table| table.rows.len())
    }

    /// Finds an object by its uuid.
    pub fn by_uuid(&self, class: &str, uuid: &str) -> Option<Arc<Row>> {
        self.state.by_uuid(class, uuid)
    }

    /// Finds the objects with this `name_label`, sorted by reference.
    pub fn by_name_label(&self, class: &str, name: &str) -> Vec<Arc<Row>> {
        self.state.by_name_label(class, name)
    }

    /// Finds the class of a reference, `None` when it names no object.
    pub fn class_of(&self, reference: &Ref) -> Option<&str> {
        let class = self.state.class_of.get(reference)?;
        self.state
            .classes
            .all
            .get(class.0)
            .map(|class| &*class.name)
    }

    /// Lists what changed after `revision`, up to this snapshot. Revision 0 asks for everything.
    ///
    /// # Errors
    /// `RevisionTooOld` when deletions since then have been forgotten (their number is bounded) or
    /// the revision is older than this process; `RevisionUnknown` when it is still to come.
    pub fn changes_since(&self, revision: u64) -> Result<Changes, Error> {
        let state = &self.state;
        if revision > state.revision {
            let what = format!(
                "revision {revision} is unknown: the last one is {}",
                state.revision
            );
            return Err(Error::new(ErrorKind::RevisionUnknown, what));
        }
        if revision != 0 && revision < state.oldest {
            let what = format!(
                "changes since revision {revision} are forgotten: the oldest known is {}",
                state.oldest
            );
            return Err(Error::new(ErrorKind::RevisionTooOld, what));
        }
        let mut changes = Changes {
            added: Vec::new(),
            modified: Vec::new(),
            deleted: Vec::new(),
            revision: state.revision,
        };
        for table in &state.tables {
            for row in table
                .rows
                .stamped_after(revision)
                .filter(|row| row.modified > revision)
            {
                if row.created > revision {
                    changes.added.push(row.clone());
                } else {
                    changes.modified.push(row.clone());
                }
            }
        }
        let known =
            |gone: &&Tombstone| gone.created <= revision && gone.deleted.revision > revision;
        changes.deleted = state
            .tombstones
            .iter()
            .filter(known)
            .map(|gone| gone.deleted.clone())
            .collect();
        Ok(changes)
    }
}

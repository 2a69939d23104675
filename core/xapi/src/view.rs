//! Objects as clients see them: the rows, with what is computed from the state of others.
//!
//! `allowed_operations` is never stored: it follows from the object and its neighbours, so it
//! cannot be out of date.

use crate::class::operations;
use database::{Row, Snapshot, Value};

/// One field.
pub(crate) fn field(snapshot: &Snapshot, row: &Row, name: &str) -> Value {
    if name == "allowed_operations" {
        return allowed(snapshot, row);
    }
    row.get(name)
}

/// All fields.
pub(crate) fn record(snapshot: &Snapshot, row: &Row) -> Value {
    let mut record = row.record();
    if let Value::Record(fields) = &mut record
        && let Some(slot) = fields.get_mut("allowed_operations")
    {
        *slot = allowed(snapshot, row);
    }
    record
}

fn allowed(snapshot: &Snapshot, row: &Row) -> Value {
    Value::Set(
        operations::allowed(snapshot, row)
            .into_iter()
            .map(Value::from)
            .collect(),
    )
}

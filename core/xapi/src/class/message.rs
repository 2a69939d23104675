//! `message`: what administrators should know. Rows, of which the newest ten thousand are kept.

use super::handlers;
use crate::api::{Api, Call};
use crate::datetime::now_ms;
use crate::error::ApiError;
use crate::generic;
use crate::methods::Entry;
use crate::view;
use database::{Ref, Row, Tx, Value};
use uuid::Uuid;

/// Messages that are kept.
pub(crate) const KEPT_MAX: usize = 10_000;

pub(super) fn entries() -> Vec<Entry> {
    handlers![
        Quick "message.create" => create,
        Quick "message.destroy_many" => destroy_many,
        Quick "message.destroy_all" => destroy_all,
        Quick "message.get" => get,
        Quick "message.get_since" => get_since,
    ]
}

/// The class of database objects that a message's `cls` names.
fn class_of(cls: &str) -> &str {
    match cls {
        "Host" => "host",
        "Pool" => "pool",
        other => other,
    }
}

async fn create(call: Call) -> Result<Value, ApiError> {
    let (cls, uuid) = (call.text("cls")?, call.text("obj_uuid")?);
    if call.api.snapshot().by_uuid(class_of(cls), uuid).is_none() {
        return Err(ApiError::new("UUID_INVALID", [cls, uuid]));
    }
    let (name, body) = (call.text("name")?, call.text("body")?);
    let made = call
        .api
        .create_message(name, call.int("priority")?, cls, uuid, body);
    Ok(Value::Ref(made.await?))
}

async fn destroy_many(call: Call) -> Result<Value, ApiError> {
    let references: Vec<Ref> = call.list("messages").into_iter().map(Ref::from).collect();
    call.api
        .write(|tx| {
            references
                .iter()
                .try_for_each(|gone| generic::remove(tx, "message", gone))
        })
        .await?;
    Ok(Value::Null)
}

/// Removes messages that match every filter: `before` and `after` a moment, of a `priority`, `name`,
/// `cls` or `obj_uuid`.
async fn destroy_all(call: Call) -> Result<Value, ApiError> {
    let filters = call.strings("filters");
    for (name, value) in &filters {
        let is_good = match name.as_str() {
            "before" | "after" => crate::datetime::parse(value).is_some(),
            "priority" => value.parse::<i64>().is_ok(),
            "name" | "cls" | "obj_uuid" => true,
            _ => false,
        };
        if !is_good {
            return Err(ApiError::new("INVALID_VALUE", [name, value]));
        }
    }
    let matches = |row: &Row| {
        let moment_ms = row.get("timestamp").as_datetime();
        filters.iter().all(|(name, value)| match name.as_str() {
            "before" => moment_ms < crate::datetime::parse(value),
            "after" => moment_ms > crate::datetime::parse(value),
            "priority" => row.get("priority").as_int() == value.parse().ok(),
            name => row.get(name).as_str() == Some(value),
        })
    };
    call.api
        .write(|tx| {
            let rows = tx.rows("message").filter(|row| matches(row));
            let gone: Vec<_> = rows.map(|row| row.reference().clone()).collect();
            gone.iter()
                .try_for_each(|gone| generic::remove(tx, "message", gone))
        })
        .await?;
    Ok(Value::Null)
}

async fn get(call: Call) -> Result<Value, ApiError> {
    let (cls, uuid, since) = (call.text("cls")?, call.text("obj_uuid")?, since_ms(&call)?);
    Ok(records(&call, |row| {
        row.get("cls").as_str() == Some(cls)
            && row.get("obj_uuid").as_str() == Some(uuid)
            && row.get("timestamp").as_datetime() > Some(since)
    }))
}

async fn get_since(call: Call) -> Result<Value, ApiError> {
    let since = since_ms(&call)?;
    Ok(records(&call, |row| {
        row.get("timestamp").as_datetime() > Some(since)
    }))
}

fn since_ms(call: &Call) -> Result<i64, ApiError> {
    call.arg("since")
        .and_then(Value::as_datetime)
        .ok_or_else(|| ApiError::field_type("since"))
}

fn records(call: &Call, wanted: impl Fn(&Row) -> bool) -> Value {
    let snapshot = call.api.snapshot();
    let rows = snapshot.rows("message").filter(|row| wanted(row));
    Value::Map(
        rows.map(|row| (row.reference().to_string(), view::record(&snapshot, row)))
            .collect(),
    )
}

/// Removes the oldest tenth when the limit is reached, so that this is rare.
fn trim(tx: &mut Tx) -> Result<(), ApiError> {
    let moment = |row: &Row| row.get("timestamp").as_datetime().unwrap_or_default();
    let mut all: Vec<_> = tx
        .rows("message")
        .map(|row| (moment(row), row.reference().clone()))
        .collect();
    if all.len() < KEPT_MAX {
        return Ok(());
    }
    all.sort();
    all.iter()
        .take(KEPT_MAX / 10)
        .try_for_each(|(_, gone)| generic::remove(tx, "message", gone))
}

impl Api {
    /// Makes a message about an object. `priority` is 1 (data is being lost) to 5 (for information);
    /// `cls` is one of `VM`, `Host`, `SR`, `Pool`, `VDI`, ...
    ///
    /// # Errors
    /// When the database cannot be written, or `cls` is none of the known ones.
    pub async fn create_message(
        &self,
        name: &str,
        priority: i64,
        cls: &str,
        obj_uuid: &str,
        body: &str,
    ) -> Result<Ref, ApiError> {
        let reference = Ref::random();
        self.write(|tx| {
            trim(tx)?;
            let fields = [
                ("uuid", Value::String(Uuid::new_v4().to_string())),
                ("name", name.into()),
                ("priority", Value::Int(priority)),
                ("cls", cls.into()),
                ("obj_uuid", obj_uuid.into()),
                ("timestamp", Value::DateTime(now_ms())),
                ("body", body.into()),
            ];
            Ok(tx.create("message", reference.clone(), fields)?)
        })
        .await?;
        Ok(reference)
    }
}

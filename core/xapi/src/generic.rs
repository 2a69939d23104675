//! The messages that the model implies: getters, setters, lists, rows made and removed.

use crate::api::{Api, Call};
use crate::coerce::{check_references, constructor};
use crate::error::ApiError;
use crate::filter::Filter;
use crate::methods::{Generic, Verb};
use crate::view;
use database::{ErrorKind, Ref, Row, Snapshot, Tx, Value};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use uuid::Uuid;

/// Answers a generic message.
pub(crate) async fn run(message: &Generic, call: Call) -> Result<Value, ApiError> {
    let class = message.class.name;
    let snapshot = call.api.snapshot();
    match message.verb {
        Verb::Get => {
            let row = call.row(class, "self")?;
            Ok(view::field(&snapshot, &row, message.field))
        }
        Verb::GetRecord => {
            let row = call.row(class, "self")?;
            Ok(view::record(&snapshot, &row))
        }
        Verb::GetAll => Ok(Value::Set(
            snapshot
                .rows(class)
                .map(|row| row.reference().into())
                .collect(),
        )),
        Verb::GetAllRecords => Ok(records(&snapshot, class, &Filter::Constant(true))),
        Verb::GetAllRecordsWhere => {
            let text = call.text("expr")?;
            let filter = Filter::parse(text)
                .ok_or_else(|| ApiError::new("INVALID_VALUE", ["expr", text]))?;
            Ok(records(&snapshot, class, &filter))
        }
        Verb::GetByUuid => {
            let uuid = call.text("uuid")?;
            let row = snapshot.by_uuid(class, uuid);
            row.map(|row| row.reference().into())
                .ok_or_else(|| ApiError::new("UUID_INVALID", [class, uuid]))
        }
        Verb::GetByNameLabel => {
            let found = snapshot.by_name_label(class, call.text("label")?);
            Ok(Value::Set(
                found.iter().map(|row| row.reference().into()).collect(),
            ))
        }
        Verb::Create => create(message, &call).await,
        Verb::Destroy => {
            let reference = call.reference("self");
            call.api.write(|tx| remove(tx, class, &reference)).await?;
            Ok(Value::Null)
        }
        Verb::Set | Verb::AddToMap | Verb::RemoveFromMap | Verb::AddToSet | Verb::RemoveFromSet => {
            change(message, &call).await
        }
    }
}

/// Removes a row of a class.
///
/// # Errors
/// `HANDLE_INVALID` when it is gone.
pub(crate) fn remove(tx: &mut Tx, class: &str, reference: &Ref) -> Result<(), ApiError> {
    tx.remove(class, reference)
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => ApiError::handle_invalid(class, reference),
            _ => error.into(),
        })
}

/// Finds a row inside a transaction.
///
/// # Errors
/// `HANDLE_INVALID` when it is gone.
pub(crate) fn row(tx: &Tx, class: &str, reference: &Ref) -> Result<Arc<Row>, ApiError> {
    tx.row(class, reference)
        .ok_or_else(|| ApiError::handle_invalid(class, reference))
}

/// Turns the argument `record` into the fields of a new object with a fresh uuid.
///
/// # Errors
/// `FIELD_TYPE_ERROR`, `HANDLE_INVALID`.
pub(crate) fn new_fields(call: &Call, class: &str) -> Result<BTreeMap<String, Value>, ApiError> {
    let model = call.api.model;
    let class = model
        .class(class)
        .ok_or_else(|| ApiError::internal(format!("no {class}")))?;
    let record = call
        .arg("record")
        .and_then(Value::as_map)
        .cloned()
        .unwrap_or_default();
    let mut fields = constructor(model, class, record)?;
    let snapshot = call.api.snapshot();
    check_references(class, &fields, |class, reference| {
        snapshot.row(class, reference)
    })?;
    fields.insert("uuid".to_owned(), Value::String(Uuid::new_v4().to_string()));
    Ok(fields)
}

fn records(snapshot: &Snapshot, class: &str, filter: &Filter) -> Value {
    let rows = snapshot.rows(class);
    let passing = rows.filter(|row| {
        filter.passes(&|name| row.field(name).map(|_| view::field(snapshot, row, name)))
    });
    let pairs = passing.map(|row| (row.reference().to_string(), view::record(snapshot, row)));
    Value::Map(pairs.collect())
}

async fn create(message: &Generic, call: &Call) -> Result<Value, ApiError> {
    let class = message.class;
    if !class.served {
        return Err(ApiError::new(
            "NOT_IMPLEMENTED",
            [&format!("{}.create", class.name)],
        ));
    }
    let fields = new_fields(call, class.name)?;
    let reference = Ref::random();
    let made = reference.clone();
    call.api
        .write(|tx| Ok(tx.create(class.name, made, fields)?))
        .await?;
    Ok(Value::Ref(reference))
}

async fn change(message: &Generic, call: &Call) -> Result<Value, ApiError> {
    let (class, field) = (message.class.name, message.field);
    let reference = call.reference("self");
    call.api
        .write(|tx| {
            let row = row(tx, class, &reference)?;
            let value = match message.verb {
                Verb::Set => call.arg("value").cloned().unwrap_or_default(),
                Verb::AddToMap | Verb::RemoveFromMap => changed_map(message, call, &row)?,
                _ => changed_set(message, call, &row),
            };
            if let Value::Ref(target) = &value
                && !target.is_null()
                && let Some(field) = message.class.field(field)
                && let crate::model::Type::Ref(target_class) = field.ty
            {
                self::row(tx, target_class, target)?;
            }
            Ok(tx.set(class, &reference, field, value)?)
        })
        .await?;
    if class == "VDI" && matches!(field, "tags" | "sm_config") {
        crate::class::push_vdi_fields(call).await?;
    }
    Ok(Value::Null)
}

fn changed_map(message: &Generic, call: &Call, row: &Row) -> Result<Value, ApiError> {
    let mut entries = row
        .field(message.field)
        .and_then(Value::as_map)
        .cloned()
        .unwrap_or_default();
    let key = match call.arg("key") {
        Some(Value::Int(number)) => number.to_string(),
        Some(value) => value.as_str().unwrap_or_default().to_owned(),
        None => String::new(),
    };
    if message.verb == Verb::RemoveFromMap {
        entries.remove(&key);
        return Ok(Value::Map(entries));
    }
    match entries.entry(key) {
        Entry::Occupied(taken) => {
            let at = [
                message.class.name,
                message.field,
                row.reference().as_str(),
                taken.key().as_str(),
            ];
            return Err(ApiError::new("MAP_DUPLICATE_KEY", at));
        }
        Entry::Vacant(free) => {
            free.insert(call.arg("value").cloned().unwrap_or_default());
        }
    }
    Ok(Value::Map(entries))
}

fn changed_set(message: &Generic, call: &Call, row: &Row) -> Value {
    let mut items = row
        .field(message.field)
        .and_then(Value::as_set)
        .unwrap_or_default()
        .to_vec();
    let item = call.arg("value").cloned().unwrap_or_default();
    if message.verb == Verb::RemoveFromSet {
        items.retain(|other| *other != item);
    } else if !items.contains(&item) {
        items.push(item);
    }
    Value::Set(items)
}

impl Api {
    /// Runs a transaction and waits until it is on the disk.
    pub(crate) async fn write<T>(
        &self,
        work: impl FnOnce(&mut Tx) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.db
            .transact_async(work)
            .await
            .map(|(result, _revision)| result)
    }
}

//! What may be done to an object now: `allowed_operations`, and the entries of
//! `current_operations` that keep two operations from meeting.

use crate::api::Api;
use crate::error::ApiError;
use crate::generic;
use database::{Ref, Row, Snapshot, Value};
use std::collections::BTreeMap;

/// An operation on an object, as `current_operations` has it.
#[derive(Debug, Clone)]
pub(crate) struct Lock {
    pub(crate) class: &'static str,
    pub(crate) object: Ref,
    pub(crate) operation: &'static str,
}

impl Lock {
    pub(crate) fn new(class: &'static str, object: &Ref, operation: &'static str) -> Self {
        Self {
            class,
            object: object.clone(),
            operation,
        }
    }
}

/// Says whether two operations on one object may run at the same time.
fn agree(class: &str, one: &str, other: &str) -> bool {
    let shared = |operation: &str| match class {
        "SR" => !matches!(operation, "destroy" | "forget" | "plug" | "unplug"),
        "VDI" => operation == "copy",
        _ => false,
    };
    shared(one) && shared(other)
}

impl Api {
    /// Runs an operation with its entries in `current_operations`, and takes them out again however
    /// it ends. `task` names the entries.
    ///
    /// # Errors
    /// `OTHER_OPERATION_IN_PROGRESS` when one of the objects is busy, `HANDLE_INVALID` when it is gone,
    /// and what the operation returns.
    ///
    /// # Cancel safety
    /// Must run to its end: it is called from tasks of the runtime that nobody drops.
    pub(crate) async fn with_operation<T>(
        &self,
        task: &Ref,
        locks: &[Lock],
        operation: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        use futures_util::FutureExt;
        self.write(|tx| {
            for lock in locks {
                let row = generic::row(tx, lock.class, &lock.object)?;
                let mut current = current(&row);
                for (other_task, other) in &current {
                    let other = other.as_str().unwrap_or_default();
                    if !agree(lock.class, lock.operation, other) {
                        let at = [lock.class, lock.object.as_str(), other, other_task];
                        return Err(ApiError::new("OTHER_OPERATION_IN_PROGRESS", at));
                    }
                }
                current.insert(task.to_string(), lock.operation.into());
                tx.set(
                    lock.class,
                    &lock.object,
                    "current_operations",
                    Value::Map(current),
                )?;
            }
            Ok(())
        })
        .await?;
        let ended = std::panic::AssertUnwindSafe(operation).catch_unwind().await;
        let freed = self.write(|tx| {
            for lock in locks {
                let Some(row) = tx.row(lock.class, &lock.object) else {
                    continue;
                };
                let mut current = current(&row);
                current.remove(task.as_str());
                tx.set(
                    lock.class,
                    &lock.object,
                    "current_operations",
                    Value::Map(current),
                )?;
            }
            Ok(())
        });
        if let Err(error) = freed.await {
            tracing::error!(%error, %task, "current_operations were not taken back");
        }
        ended.unwrap_or_else(|_| Err(ApiError::internal("the operation panicked")))
    }
}

fn current(row: &Row) -> BTreeMap<String, Value> {
    row.field("current_operations")
        .and_then(Value::as_map)
        .cloned()
        .unwrap_or_default()
}

/// Lists what may be done to an object now.
pub(crate) fn allowed(snapshot: &Snapshot, row: &Row) -> Vec<&'static str> {
    let mut allowed = match row.class() {
        "VM" => vm(row),
        "VDI" => vdi(snapshot, row),
        "SR" => sr(snapshot, row),
        "VBD" => vbd(snapshot, row),
        "task" if crate::task::is_finished(row) => vec!["destroy"],
        "task" => vec!["cancel", "destroy"],
        "host" => vec!["provision", "vm_start"],
        _ => Vec::new(),
    };
    for other in current(row).values().filter_map(Value::as_str) {
        allowed.retain(|operation| agree(row.class(), operation, other));
    }
    allowed
}

fn is(row: &Row, field: &str) -> bool {
    row.field(field).and_then(Value::as_bool).unwrap_or(false)
}

fn text<'a>(row: &'a Row, field: &str) -> &'a str {
    row.field(field).and_then(Value::as_str).unwrap_or_default()
}

fn vm(row: &Row) -> Vec<&'static str> {
    if is(row, "is_control_domain") {
        return Vec::new();
    }
    if is(row, "is_a_snapshot") {
        return vec!["clone", "destroy", "revert"];
    }
    if is(row, "is_a_template") {
        return vec!["clone", "provision", "destroy"];
    }
    let mut allowed = match text(row, "power_state") {
        "Halted" => vec![
            "start",
            "start_on",
            "snapshot",
            "clone",
            "destroy",
            "make_into_template",
            "changing_static_range",
            "changing_dynamic_range",
            "changing_memory_limits",
            "changing_VCPUs",
        ],
        "Running" => vec![
            "pause",
            "clean_shutdown",
            "clean_reboot",
            "hard_shutdown",
            "hard_reboot",
            "shutdown",
            "snapshot",
        ],
        "Paused" => vec![
            "unpause",
            "hard_shutdown",
            "hard_reboot",
            "shutdown",
            "snapshot",
        ],
        _ => Vec::new(),
    };
    let blocked = row.get("blocked_operations");
    let blocked = blocked.as_map();
    allowed.retain(|operation| blocked.is_none_or(|blocked| !blocked.contains_key(*operation)));
    allowed
}

/// Lists the VBDs of a VDI that are plugged in.
pub(crate) fn plugged(snapshot: &Snapshot, vdi: &Row) -> Vec<std::sync::Arc<Row>> {
    let links = vdi
        .field("VBDs")
        .and_then(Value::as_set)
        .unwrap_or_default()
        .iter();
    let rows = links.filter_map(|link| snapshot.row("VBD", link.as_ref()?));
    rows.filter(|row| is(row, "currently_attached")).collect()
}

/// Says whether an SR is attached to a host.
pub(crate) fn sr_is_attached(snapshot: &Snapshot, sr: &Row) -> bool {
    let links = sr
        .field("PBDs")
        .and_then(Value::as_set)
        .unwrap_or_default()
        .iter();
    let mut rows = links.filter_map(|link| snapshot.row("PBD", link.as_ref()?));
    rows.any(|row| is(&row, "currently_attached"))
}

fn vdi(snapshot: &Snapshot, row: &Row) -> Vec<&'static str> {
    let sr = row
        .field("SR")
        .and_then(Value::as_ref)
        .and_then(|sr| snapshot.row("SR", sr));
    if !sr.is_some_and(|sr| sr_is_attached(snapshot, &sr)) {
        return vec!["forget"];
    }
    let plugged = plugged(snapshot, row);
    let mut allowed = vec!["snapshot", "clone", "copy", "update"];
    if plugged.is_empty() {
        allowed.extend(["destroy", "forget"]);
        if !is(row, "is_a_snapshot") && !is(row, "read_only") {
            allowed.push("resize");
        }
    }
    allowed
}

fn sr(snapshot: &Snapshot, row: &Row) -> Vec<&'static str> {
    let has_pbds = !row
        .field("PBDs")
        .and_then(Value::as_set)
        .unwrap_or_default()
        .is_empty();
    if sr_is_attached(snapshot, row) {
        return vec![
            "scan",
            "update",
            "unplug",
            "destroy",
            "vdi_create",
            "vdi_destroy",
            "vdi_clone",
            "vdi_snapshot",
            "vdi_resize",
            "vdi_copy",
            "pbd_create",
        ];
    }
    if has_pbds {
        vec!["plug", "forget", "pbd_create", "pbd_destroy"]
    } else {
        vec!["forget", "pbd_create"]
    }
}

fn vbd(snapshot: &Snapshot, row: &Row) -> Vec<&'static str> {
    let vm = row
        .field("VM")
        .and_then(Value::as_ref)
        .and_then(|vm| snapshot.row("VM", vm));
    let runs = vm.is_some_and(|vm| text(&vm, "power_state") == "Running");
    let mut allowed = vec!["attach"];
    if text(row, "type") == "CD" {
        allowed.push(if is(row, "empty") { "insert" } else { "eject" });
    }
    match (runs, is(row, "currently_attached")) {
        (true, false) => allowed.push("plug"),
        (true, true) if is(row, "unpluggable") => allowed.push("unplug"),
        _ => {}
    }
    allowed
}

//! `VM`: snapshots, clones, copies and reverts. Each is one disk operation after the other and then
//! one transaction; when one of them fails, the disks made so far are destroyed again.

use super::handlers;
use super::operations::Lock;
use super::power::{assert_state, assert_unblocked};
use super::vbd;
use super::vdi::{self, Derive, Disk};
use super::vm::create_row;
use crate::api::Call;
use crate::datetime::now_ms;
use crate::error::ApiError;
use crate::methods::Entry;
use crate::model::{Model, Qualifier};
use database::{Ref, Row, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use storage::NewName;
use uuid::Uuid;

pub(super) fn entries() -> Vec<Entry> {
    handlers![
        Long "VM.snapshot" => snapshot,
        Long "VM.clone" => clone,
        Long "VM.copy" => copy,
        Long "VM.revert" => revert,
    ]
}

/// What becomes of each disk.
enum Manner {
    Snapshot { ignored: BTreeSet<Ref> },
    Clone,
    Copy { to: Ref },
}

async fn snapshot(call: Call) -> Result<Value, ApiError> {
    let vm = call.row("VM", "vm")?;
    assert_state(&vm, &["Running", "Paused", "Halted"])?;
    let ignored = call
        .list("ignore_vdis")
        .into_iter()
        .map(Ref::from)
        .collect();
    make(&call, &vm, "snapshot", Manner::Snapshot { ignored }).await
}

async fn clone(call: Call) -> Result<Value, ApiError> {
    let vm = call.row("VM", "vm")?;
    assert_state(&vm, &["Halted"])?;
    make(&call, &vm, "clone", Manner::Clone).await
}

async fn copy(call: Call) -> Result<Value, ApiError> {
    let vm = call.row("VM", "vm")?;
    assert_state(&vm, &["Halted"])?;
    make(
        &call,
        &vm,
        "copy",
        Manner::Copy {
            to: call.reference("sr"),
        },
    )
    .await
}

async fn make(
    call: &Call,
    vm: &Arc<Row>,
    operation: &'static str,
    manner: Manner,
) -> Result<Value, ApiError> {
    if vm.get("is_control_domain").as_bool() == Some(true) {
        return Err(ApiError::not_allowed("a control domain is not copied"));
    }
    assert_unblocked(vm, operation)?;
    let locks = [Lock::new("VM", vm.reference(), operation)];
    let work = async {
        let mut made = Vec::new();
        match make_disks(call, vm, &manner, &mut made).await {
            Ok(()) => {}
            Err(error) => {
                undo(call, &made).await;
                return Err(error);
            }
        }
        let recorded = record(call, vm, &manner, &made).await;
        if recorded.is_err() {
            undo(call, &made).await;
        }
        recorded
    };
    Ok(Value::Ref(
        call.api
            .with_operation(&call.task_ref(), &locks, work)
            .await?,
    ))
}

/// A link of the source and the disk that its copy gets.
struct MadeLink {
    source: Arc<Row>,
    vdi: Ref,
    /// Whether the disk was made for this and goes when the rest fails.
    is_new: bool,
}

async fn make_disks(
    call: &Call,
    vm: &Row,
    manner: &Manner,
    made: &mut Vec<MadeLink>,
) -> Result<(), ApiError> {
    for source in vbd::of_vm(&call.api, vm) {
        if let Some(task) = &call.task {
            task.check_cancelled()?;
        }
        let old = source
            .get("VDI")
            .as_ref()
            .cloned()
            .unwrap_or_else(Ref::null);
        let is_disk = source.get("type").as_str() == Some("Disk");
        if !is_disk || old.is_null() {
            made.push(MadeLink {
                source,
                vdi: old,
                is_new: false,
            });
            continue;
        }
        let disk = Disk::find(&call.api, &old)?;
        let vdi = match manner {
            Manner::Snapshot { ignored } if ignored.contains(&old) => continue,
            Manner::Snapshot { .. } => {
                vdi::derive(call, &disk, Derive::Snapshot, NewName::default()).await?
            }
            Manner::Clone => vdi::derive(call, &disk, Derive::Clone, NewName::default()).await?,
            Manner::Copy { to } => {
                let to = if to.is_null() { &disk.sr } else { to };
                vdi::copy_disk(call, &disk, to, NewName::default()).await?
            }
        };
        made.push(MadeLink {
            source,
            vdi,
            is_new: true,
        });
    }
    Ok(())
}

async fn undo(call: &Call, made: &[MadeLink]) {
    for link in made.iter().filter(|link| link.is_new) {
        let undone = match Disk::find(&call.api, &link.vdi) {
            Ok(disk) => vdi::destroy_disk(&call.api, call, &disk).await,
            Err(error) => Err(error),
        };
        if let Err(error) = undone {
            tracing::warn!(%error, vdi = %link.vdi, "a disk of a copy that failed stays");
        }
    }
}

/// The fields that a copy of an object takes over: what its maker could have given.
fn given(class: &str, row: &Row) -> BTreeMap<String, Value> {
    let class = Model::shared().class(class);
    let fields = class.map(|class| class.fields.iter()).into_iter().flatten();
    let fields = fields.filter(|field| field.qualifier != Qualifier::Runtime);
    fields
        .map(|field| (field.name.to_owned(), row.get(field.name)))
        .collect()
}

async fn record(
    call: &Call,
    vm: &Row,
    manner: &Manner,
    made: &[MadeLink],
) -> Result<Ref, ApiError> {
    let uuid = || Value::String(Uuid::new_v4().to_string());
    let reference = Ref::random();
    let mut fields = given("VM", vm);
    fields.insert("uuid".to_owned(), uuid());
    fields.insert("name_label".to_owned(), call.text("new_name")?.into());
    if matches!(manner, Manner::Snapshot { .. }) {
        let state = vm.get("power_state");
        let info = [("power-state-at-snapshot".to_owned(), state)];
        for (name, value) in [
            ("is_a_snapshot", Value::from(true)),
            ("is_a_template", true.into()),
            ("snapshot_of", vm.reference().into()),
            ("snapshot_time", Value::DateTime(now_ms())),
            ("snapshot_info", Value::Map(BTreeMap::from(info))),
        ] {
            fields.insert(name.to_owned(), value);
        }
    }
    call.api
        .write(|tx| {
            create_row(tx, &reference, fields)?;
            for link in made {
                let mut fields = given("VBD", &link.source);
                for (name, value) in [
                    ("uuid", uuid()),
                    ("VM", Value::from(&reference)),
                    ("VDI", Value::from(&link.vdi)),
                    ("empty", link.vdi.is_null().into()),
                    ("currently_attached", false.into()),
                    ("device", "".into()),
                ] {
                    fields.insert(name.to_owned(), value);
                }
                tx.create("VBD", Ref::random(), fields)?;
            }
            Ok(())
        })
        .await?;
    Ok(reference)
}

/// Gives a VM's disks the content of a snapshot, and the VM the settings it had then. Disks that
/// the VM has got since stay as they are.
async fn revert(call: Call) -> Result<Value, ApiError> {
    let from = call.row("VM", "snapshot")?;
    let vm = from
        .get("snapshot_of")
        .as_ref()
        .cloned()
        .unwrap_or_else(Ref::null);
    let vm = call.api.snapshot().row("VM", &vm);
    let vm = vm.ok_or_else(|| ApiError::not_allowed("it is no snapshot of a VM that is there"))?;
    assert_state(&vm, &["Halted"])?;
    assert_unblocked(&vm, "revert")?;
    let locks = [
        Lock::new("VM", vm.reference(), "reverting"),
        Lock::new("VM", from.reference(), "revert"),
    ];
    let work = async {
        for link in vbd::of_vm(&call.api, &from) {
            let Some(snapshot) = link
                .get("VDI")
                .as_ref()
                .filter(|vdi| !vdi.is_null())
                .cloned()
            else {
                continue;
            };
            let snapshot = Disk::find(&call.api, &snapshot)?;
            let of = snapshot
                .row
                .get("snapshot_of")
                .as_ref()
                .cloned()
                .unwrap_or_else(Ref::null);
            if of.is_null() {
                continue;
            }
            vdi::revert_disk(&call, &Disk::find(&call.api, &of)?, &snapshot).await?;
        }
        settings_back(&call, &vm, &from).await
    };
    call.api
        .with_operation(&call.task_ref(), &locks, work)
        .await?;
    Ok(Value::Null)
}

async fn settings_back(call: &Call, vm: &Row, from: &Row) -> Result<(), ApiError> {
    const OWN: [&str; 5] = [
        "name_label",
        "is_a_template",
        "power_state",
        "suspend_VDI",
        "blocked_operations",
    ];
    let mut fields = given("VM", from);
    fields.retain(|name, _| !OWN.contains(&name.as_str()));
    call.api
        .write(|tx| {
            fields
                .into_iter()
                .try_for_each(|(name, value)| Ok(tx.set("VM", vm.reference(), &name, value)?))
        })
        .await
}

//! `VDI`: disks. What they are is the storage manager's; what people call them lies in both places.

use super::handlers;
use super::operations::{Lock, plugged};
use super::sr::{attached, uuid_of};
use super::storage_rows::put_vdi;
use crate::api::{Api, Call};
use crate::error::ApiError;
use crate::generic;
use crate::methods::Entry;
use crate::services::About;
use database::{Ref, Row, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use storage::{NewName, NewVdi, StorageError, StorageManager, VdiFields, VdiInfo, VdiUpdate};
use units::{SrUuid, VdiUuid};

pub(super) fn entries() -> Vec<Entry> {
    handlers![
        Long "VDI.create" => create,
        Long "VDI.destroy" => destroy,
        Quick "VDI.forget" => forget,
        Long "VDI.snapshot" => snapshot,
        Long "VDI.clone" => clone,
        Long "VDI.copy" => copy,
        Long "VDI.resize" => resize,
        Long "VDI.resize_online" => resize,
        Long "VDI.revert" => revert,
        Long "VDI.update" => update,
        Quick "VDI.set_name_label" => set_name_label,
        Quick "VDI.set_name_description" => set_name_description,
        Quick "VDI.set_read_only" => set_read_only,
        Quick "VDI.set_sharable" => set_sharable,
        Quick "VDI.set_on_boot" => set_on_boot,
    ]
}

/// A VDI in an attached SR, with everything that a call on it needs.
pub(crate) struct Disk {
    pub(crate) row: Arc<Row>,
    pub(crate) sr: Ref,
    pub(crate) sr_uuid: SrUuid,
    pub(crate) uuid: VdiUuid,
}

impl Disk {
    /// Finds a VDI.
    ///
    /// # Errors
    /// `HANDLE_INVALID`, `SR_HAS_NO_PBDS`, `SR_NOT_ATTACHED`.
    pub(crate) fn find(api: &Api, vdi: &Ref) -> Result<Self, ApiError> {
        let row = api.snapshot().row("VDI", vdi);
        let row = row.ok_or_else(|| ApiError::handle_invalid("VDI", vdi))?;
        let sr = row.get("SR").as_ref().cloned().unwrap_or_else(Ref::null);
        let sr_row = attached(api, &sr)?;
        Ok(Self {
            sr,
            sr_uuid: uuid_of(&sr_row)?,
            uuid: uuid_of(&row)?,
            row,
        })
    }

    pub(crate) fn reference(&self) -> &Ref {
        self.row.reference()
    }

    /// Turns an error of the storage manager about this disk into the one clients know.
    pub(crate) fn explain(&self, error: StorageError) -> ApiError {
        About::vdi(&self.sr, self.reference()).explain(error)
    }

    /// Fails with `VDI_IN_USE` while a VM has it.
    pub(crate) fn assert_unplugged(&self, api: &Api, operation: &str) -> Result<(), ApiError> {
        if plugged(&api.snapshot(), &self.row).is_empty() {
            return Ok(());
        }
        Err(ApiError::new(
            "VDI_IN_USE",
            [self.reference().as_str(), operation],
        ))
    }
}

fn vdi_size(size: i64, vdi: &Ref) -> Result<u64, ApiError> {
    let bytes = u64::try_from(size).ok().filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| ApiError::new("VDI_TOO_SMALL", [vdi.as_str(), "1"]))
}

async fn create(call: Call) -> Result<Value, ApiError> {
    let api = &call.api;
    let fields = generic::new_fields(&call, "VDI")?;
    let text = |name: &str| {
        fields
            .get(name)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .unwrap_or_default()
    };
    let truth = |name: &str| fields.get(name).and_then(Value::as_bool).unwrap_or(false);
    let sr = fields
        .get("SR")
        .and_then(Value::as_ref)
        .cloned()
        .unwrap_or_else(Ref::null);
    let sr_row = attached(api, &sr)?;
    let size = fields
        .get("virtual_size")
        .and_then(Value::as_int)
        .unwrap_or_default();
    let keys = fields
        .get("sm_config")
        .and_then(Value::as_map)
        .into_iter()
        .flatten();
    let tags = fields
        .get("tags")
        .and_then(Value::as_set)
        .unwrap_or_default()
        .iter();
    let new = NewVdi {
        uuid: None,
        virtual_bytes: vdi_size(size, &Ref::null())?,
        fields: VdiFields {
            name_label: text("name_label"),
            name_description: text("name_description"),
            kind: text("type"),
            sharable: truth("sharable"),
            read_only: truth("read_only"),
            sm_config: keys
                .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
                .collect(),
            tags: tags
                .filter_map(|tag| tag.as_str().map(str::to_owned))
                .collect(),
        },
    };
    let (storage, uuid) = (&api.services.storage, uuid_of(&sr_row)?);
    let locks = [Lock::new("SR", &sr, "vdi_create")];
    let work = async {
        let made = storage.vdi_create(&call.storage(), uuid, new).await;
        let info = made.map_err(|error| About::sr(&sr).explain(error))?;
        record(api, &sr, &info, &kept(&fields)).await
    };
    Ok(Value::Ref(
        api.with_operation(&call.task_ref(), &locks, work).await?,
    ))
}

/// The fields that only the database knows, out of those a new disk is made from.
fn kept(fields: &BTreeMap<String, Value>) -> BTreeMap<&'static str, Value> {
    ["other_config", "xenstore_data"]
        .into_iter()
        .filter_map(|name| Some((name, fields.get(name)?.clone())))
        .collect()
}

/// Writes a disk that the storage manager has made into the database.
pub(crate) async fn record(
    api: &Api,
    sr: &Ref,
    info: &VdiInfo,
    kept: &BTreeMap<&'static str, Value>,
) -> Result<Ref, ApiError> {
    api.write(|tx| {
        let reference = put_vdi(tx, sr, info)?;
        for (field, value) in kept {
            tx.set("VDI", &reference, field, value.clone())?;
        }
        Ok(reference)
    })
    .await
}

async fn destroy(call: Call) -> Result<Value, ApiError> {
    let disk = Disk::find(&call.api, &call.reference("self"))?;
    disk.assert_unplugged(&call.api, "destroy")?;
    let locks = [
        Lock::new("VDI", disk.reference(), "destroy"),
        Lock::new("SR", &disk.sr, "vdi_destroy"),
    ];
    let work = destroy_disk(&call.api, &call, &disk);
    call.api
        .with_operation(&call.task_ref(), &locks, work)
        .await?;
    Ok(Value::Null)
}

/// Destroys a disk in the storage and on record.
pub(crate) async fn destroy_disk(api: &Api, call: &Call, disk: &Disk) -> Result<(), ApiError> {
    let storage = &api.services.storage;
    let destroyed = storage
        .vdi_destroy(&call.storage(), disk.sr_uuid, disk.uuid)
        .await;
    destroyed.map_err(|error| disk.explain(error))?;
    remove_rows(api, disk.reference()).await
}

/// Removes the row of a VDI. Drives that held it are empty then; links of disks go with it.
async fn remove_rows(api: &Api, vdi: &Ref) -> Result<(), ApiError> {
    api.write(|tx| {
        // A scan may have seen that the disk is gone, and have been first.
        let Some(row) = tx.row("VDI", vdi) else {
            return Ok(());
        };
        let links = row
            .field("VBDs")
            .and_then(Value::as_set)
            .unwrap_or_default();
        for link in links.iter().filter_map(Value::as_ref) {
            let is_drive = tx
                .row("VBD", link)
                .is_some_and(|row| row.get("type").as_str() == Some("CD"));
            match is_drive {
                true => tx.set("VBD", link, "empty", true.into())?,
                false => generic::remove(tx, "VBD", link)?,
            }
        }
        generic::remove(tx, "VDI", vdi)
    })
    .await
}

async fn forget(call: Call) -> Result<Value, ApiError> {
    let row = call.row("VDI", "vdi")?;
    if !plugged(&call.api.snapshot(), &row).is_empty() {
        return Err(ApiError::new(
            "VDI_IN_USE",
            [row.reference().as_str(), "forget"],
        ));
    }
    remove_rows(&call.api, row.reference()).await?;
    Ok(Value::Null)
}

async fn snapshot(call: Call) -> Result<Value, ApiError> {
    let disk = Disk::find(&call.api, &call.reference("vdi"))?;
    let locks = [
        Lock::new("VDI", disk.reference(), "snapshot"),
        Lock::new("SR", &disk.sr, "vdi_snapshot"),
    ];
    let work = derive(&call, &disk, Derive::Snapshot, NewName::default());
    Ok(Value::Ref(
        call.api
            .with_operation(&call.task_ref(), &locks, work)
            .await?,
    ))
}

async fn clone(call: Call) -> Result<Value, ApiError> {
    let disk = Disk::find(&call.api, &call.reference("vdi"))?;
    let locks = [
        Lock::new("VDI", disk.reference(), "clone"),
        Lock::new("SR", &disk.sr, "vdi_clone"),
    ];
    let work = derive(&call, &disk, Derive::Clone, NewName::default());
    Ok(Value::Ref(
        call.api
            .with_operation(&call.task_ref(), &locks, work)
            .await?,
    ))
}

/// How one disk is made of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Derive {
    /// Read-only, and remembers what it was taken of.
    Snapshot,
    /// Writable.
    Clone,
}

/// Makes a disk of another one in the same SR, in the storage and on record.
pub(crate) async fn derive(
    call: &Call,
    disk: &Disk,
    how: Derive,
    name: NewName,
) -> Result<Ref, ApiError> {
    let storage: &StorageManager = &call.api.services.storage;
    let ctx = call.storage();
    let made = match how {
        Derive::Snapshot => {
            storage
                .vdi_snapshot(&ctx, disk.sr_uuid, disk.uuid, name)
                .await
        }
        Derive::Clone => storage.vdi_clone(&ctx, disk.sr_uuid, disk.uuid, name).await,
    };
    let info = made.map_err(|error| disk.explain(error))?;
    let kept = BTreeMap::from([("other_config", disk.row.get("other_config"))]);
    record(&call.api, &disk.sr, &info, &kept).await
}

async fn copy(call: Call) -> Result<Value, ApiError> {
    let disk = Disk::find(&call.api, &call.reference("vdi"))?;
    for unserved in ["base_vdi", "into_vdi"] {
        if !call.reference(unserved).is_null() {
            return Err(ApiError::new(
                "NOT_IMPLEMENTED",
                [&format!("VDI.copy with {unserved}")],
            ));
        }
    }
    let to = match call.reference("sr") {
        sr if sr.is_null() => disk.sr.clone(),
        sr => sr,
    };
    let locks = [
        Lock::new("VDI", disk.reference(), "copy"),
        Lock::new("SR", &to, "vdi_create"),
    ];
    let work = copy_disk(&call, &disk, &to, NewName::default());
    Ok(Value::Ref(
        call.api
            .with_operation(&call.task_ref(), &locks, work)
            .await?,
    ))
}

/// Copies a disk into an SR, with the progress in the call's task.
pub(crate) async fn copy_disk(
    call: &Call,
    disk: &Disk,
    to: &Ref,
    name: NewName,
) -> Result<Ref, ApiError> {
    let api = &call.api;
    let to_uuid = uuid_of(&*attached(api, to)?)?;
    let task = call
        .task
        .as_ref()
        .ok_or_else(|| ApiError::internal("a copy without a task"))?;
    let (ctx, storage) = (call.storage(), &api.services.storage);
    let (from_sr, from) = (disk.sr_uuid, disk.uuid);
    let copied = task
        .watched(|watch| storage.vdi_copy(&ctx, from_sr, from, to_uuid, name, watch))
        .await
        .map_err(|error| task.explain_cancel(error, |error| disk.explain(error)))?;
    let kept = BTreeMap::from([("other_config", disk.row.get("other_config"))]);
    record(api, to, &copied, &kept).await
}

async fn resize(call: Call) -> Result<Value, ApiError> {
    let disk = Disk::find(&call.api, &call.reference("vdi"))?;
    let size = vdi_size(call.int("size")?, disk.reference())?;
    let current = disk.row.get("virtual_size").as_int().unwrap_or_default();
    if i64::try_from(size).unwrap_or(i64::MAX) < current {
        let least = current.to_string();
        return Err(ApiError::new(
            "VDI_TOO_SMALL",
            [disk.reference().as_str(), &least],
        ));
    }
    let locks = [
        Lock::new("VDI", disk.reference(), "resize"),
        Lock::new("SR", &disk.sr, "vdi_resize"),
    ];
    let storage = &call.api.services.storage;
    let work = async {
        let grown = storage
            .vdi_resize(&call.storage(), disk.sr_uuid, disk.uuid, size)
            .await;
        let info = grown.map_err(|error| disk.explain(error))?;
        record(&call.api, &disk.sr, &info, &BTreeMap::new()).await
    };
    call.api
        .with_operation(&call.task_ref(), &locks, work)
        .await?;
    Ok(Value::Null)
}

async fn revert(call: Call) -> Result<Value, ApiError> {
    let from = Disk::find(&call.api, &call.reference("snapshot"))?;
    let target = from
        .row
        .get("snapshot_of")
        .as_ref()
        .cloned()
        .unwrap_or_else(Ref::null);
    if target.is_null() {
        return Err(ApiError::new("REVERT_ONLY_ALLOWED_ON_SNAPSHOT", []));
    }
    let target = Disk::find(&call.api, &target)?;
    target.assert_unplugged(&call.api, "revert_to")?;
    let locks = [
        Lock::new("VDI", from.reference(), "revert_from"),
        Lock::new("VDI", target.reference(), "revert_to"),
        Lock::new("SR", &from.sr, "vdi_revert"),
    ];
    let work = revert_disk(&call, &target, &from);
    call.api
        .with_operation(&call.task_ref(), &locks, work)
        .await?;
    Ok(Value::Null)
}

/// Gives a disk the content of its snapshot.
pub(crate) async fn revert_disk(call: &Call, target: &Disk, from: &Disk) -> Result<(), ApiError> {
    let storage = &call.api.services.storage;
    let reverted = storage
        .vdi_revert(&call.storage(), target.sr_uuid, target.uuid, from.uuid)
        .await;
    let info = reverted.map_err(|error| target.explain(error))?;
    record(&call.api, &target.sr, &info, &BTreeMap::new())
        .await
        .map(drop)
}

async fn update(call: Call) -> Result<Value, ApiError> {
    let disk = Disk::find(&call.api, &call.reference("vdi"))?;
    let info = call
        .api
        .services
        .storage
        .vdi_stat(&call.storage(), disk.sr_uuid, disk.uuid)
        .await;
    let info = info.map_err(|error| disk.explain(error))?;
    record(&call.api, &disk.sr, &info, &BTreeMap::new()).await?;
    Ok(Value::Null)
}

async fn change(call: &Call, update: VdiUpdate) -> Result<Value, ApiError> {
    let disk = Disk::find(&call.api, &call.reference("self"))?;
    let storage = &call.api.services.storage;
    let updated = storage
        .vdi_update(&call.storage(), disk.sr_uuid, disk.uuid, update)
        .await;
    let info = updated.map_err(|error| disk.explain(error))?;
    record(&call.api, &disk.sr, &info, &BTreeMap::new()).await?;
    Ok(Value::Null)
}

async fn set_name_label(call: Call) -> Result<Value, ApiError> {
    let name_label = Some(call.text("value")?.to_owned());
    change(
        &call,
        VdiUpdate {
            name_label,
            ..VdiUpdate::default()
        },
    )
    .await
}

async fn set_name_description(call: Call) -> Result<Value, ApiError> {
    let name_description = Some(call.text("value")?.to_owned());
    change(
        &call,
        VdiUpdate {
            name_description,
            ..VdiUpdate::default()
        },
    )
    .await
}

async fn set_read_only(call: Call) -> Result<Value, ApiError> {
    let read_only = Some(call.truth("value")?);
    change(
        &call,
        VdiUpdate {
            read_only,
            ..VdiUpdate::default()
        },
    )
    .await
}

async fn set_sharable(call: Call) -> Result<Value, ApiError> {
    let sharable = Some(call.truth("value")?);
    change(
        &call,
        VdiUpdate {
            sharable,
            ..VdiUpdate::default()
        },
    )
    .await
}

async fn set_on_boot(call: Call) -> Result<Value, ApiError> {
    let row = call.row("VDI", "self")?;
    if call.text("value")? != "persist" {
        let sr = row.get("SR").as_str().unwrap_or_default().to_owned();
        return Err(ApiError::new("SR_OPERATION_NOT_SUPPORTED", [&sr]));
    }
    Ok(Value::Null)
}

/// Writes tags and keys, which clients set by generic messages, into the SR as well.
pub(crate) async fn push_fields(call: &Call) -> Result<(), ApiError> {
    let Ok(disk) = Disk::find(&call.api, &call.reference("self")) else {
        // Not attached: the next scan brings back what the SR has.
        return Ok(());
    };
    let keys = disk.row.get("sm_config");
    let keys = keys.as_map().into_iter().flatten();
    let tags = disk.row.get("tags");
    let tags = tags.as_set().unwrap_or_default().iter();
    let update = VdiUpdate {
        sm_config: Some(
            keys.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
                .collect(),
        ),
        tags: Some(
            tags.filter_map(|tag| tag.as_str().map(str::to_owned))
                .collect(),
        ),
        ..VdiUpdate::default()
    };
    let storage = &call.api.services.storage;
    let updated = storage
        .vdi_update(&call.storage(), disk.sr_uuid, disk.uuid, update)
        .await;
    updated.map(drop).map_err(|error| disk.explain(error))
}

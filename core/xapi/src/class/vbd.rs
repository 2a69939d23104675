//! `VBD`: the link of a disk, or of an empty drive, to a VM.

use super::handlers;
use super::operations::Lock;
use super::power;
use super::sr::uuid_of;
use super::vdi::Disk;
use crate::api::{Api, Call};
use crate::error::ApiError;
use crate::generic;
use crate::methods::Entry;
use database::{Ref, Row, Value};
use hypervisor::{Access, DeviceName};
use std::collections::BTreeSet;
use std::sync::Arc;
use xenops::{OperationKind, VbdSpec};

/// Positions that a guest may have: `xvda` to `xvdiv`.
const POSITIONS: std::ops::RangeInclusive<u8> = 0..=254;

pub(super) fn entries() -> Vec<Entry> {
    handlers![
        Quick "VBD.create" => create,
        Quick "VBD.destroy" => destroy,
        Long "VBD.plug" => plug,
        Long "VBD.unplug" => unplug,
        Long "VBD.unplug_force" => unplug,
        Long "VBD.insert" => insert,
        Long "VBD.eject" => eject,
        Quick "VBD.set_mode" => set_mode,
        Quick "VBD.assert_attachable" => assert_attachable,
        Quick "VM.get_allowed_VBD_devices" => get_allowed_vbd_devices,
    ]
}

fn is(row: &Row, field: &str) -> bool {
    row.field(field).and_then(Value::as_bool).unwrap_or(false)
}

fn text<'a>(row: &'a Row, field: &str) -> &'a str {
    row.field(field).and_then(Value::as_str).unwrap_or_default()
}

/// The object that a field refers to.
pub(super) fn target(api: &Api, row: &Row, field: &str, class: &str) -> Result<Arc<Row>, ApiError> {
    let reference = row.get(field).as_ref().cloned().unwrap_or_else(Ref::null);
    let found = api.snapshot().row(class, &reference);
    found.ok_or_else(|| ApiError::handle_invalid(class, &reference))
}

/// The links of a VM.
pub(super) fn of_vm(api: &Api, vm: &Row) -> Vec<Arc<Row>> {
    let snapshot = api.snapshot();
    let links = vm
        .field("VBDs")
        .and_then(Value::as_set)
        .unwrap_or_default()
        .iter();
    links
        .filter_map(|link| snapshot.row("VBD", link.as_ref()?))
        .collect()
}

/// The device of a link: what clients called it, as `xvda` or as a number.
fn device_of(row: &Row) -> Option<DeviceName> {
    text(row, "userdevice").parse().ok()
}

fn free_devices(taken: &BTreeSet<DeviceName>) -> impl Iterator<Item = DeviceName> {
    POSITIONS
        .map(DeviceName::from_position)
        .filter(|device| !taken.contains(device))
}

async fn get_allowed_vbd_devices(call: Call) -> Result<Value, ApiError> {
    let vm = call.row("VM", "vm")?;
    let taken = of_vm(&call.api, &vm)
        .iter()
        .filter_map(|row| device_of(row))
        .collect();
    let free = free_devices(&taken).map(|device| device.position().to_string().into());
    Ok(Value::Set(free.collect()))
}

async fn create(call: Call) -> Result<Value, ApiError> {
    let mut fields = generic::new_fields(&call, "VBD")?;
    let text = |fields: &std::collections::BTreeMap<String, Value>, name: &str| {
        fields
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let truth = |name: &str| fields.get(name).and_then(Value::as_bool).unwrap_or(false);
    let (kind, mode) = (text(&fields, "type"), text(&fields, "mode"));
    if kind == "CD" && mode == "RW" {
        return Err(ApiError::new("VBD_CDS_MUST_BE_READONLY", []));
    }
    let vdi = Ref::from(text(&fields, "VDI"));
    if truth("empty") || vdi.is_null() {
        if kind != "CD" {
            return Err(ApiError::handle_invalid("VDI", &vdi));
        }
        fields.insert("VDI".to_owned(), Ref::null().into());
        fields.insert("empty".to_owned(), true.into());
    } else if mode == "RW" {
        assert_writable(&call.api, &vdi)?;
    }
    fields.insert("currently_attached".to_owned(), false.into());
    let vm = Ref::from(text(&fields, "VM"));
    let wanted = text(&fields, "userdevice");
    let reference = Ref::random();
    call.api
        .write(|tx| {
            let same_vm = tx
                .rows("VBD")
                .filter(|row| row.field("VM").and_then(Value::as_ref) == Some(&vm));
            let taken: BTreeSet<_> = same_vm.filter_map(|row| device_of(row)).collect();
            let device = match wanted.as_str() {
                "" | "autodetect" => free_devices(&taken).next(),
                named => named.parse::<DeviceName>().ok(),
            };
            let device = device.ok_or_else(|| ApiError::new("INVALID_DEVICE", [&wanted]))?;
            if taken.contains(&device) {
                return Err(ApiError::new("DEVICE_ALREADY_EXISTS", [&wanted]));
            }
            fields.insert("device".to_owned(), "".into());
            fields.insert(
                "userdevice".to_owned(),
                device.position().to_string().into(),
            );
            Ok(tx.create("VBD", reference.clone(), fields)?)
        })
        .await?;
    Ok(Value::Ref(reference))
}

fn assert_writable(api: &Api, vdi: &Ref) -> Result<(), ApiError> {
    let row = api.snapshot().row("VDI", vdi);
    let row = row.ok_or_else(|| ApiError::handle_invalid("VDI", vdi))?;
    if is(&row, "read_only") || is(&row, "is_a_snapshot") {
        return Err(ApiError::new("VDI_READONLY", [vdi.as_str()]));
    }
    Ok(())
}

async fn destroy(call: Call) -> Result<Value, ApiError> {
    let reference = call.reference("self");
    call.api
        .write(|tx| {
            if is(&*generic::row(tx, "VBD", &reference)?, "currently_attached") {
                return Err(ApiError::not_allowed("the VBD is plugged"));
            }
            generic::remove(tx, "VBD", &reference)
        })
        .await?;
    Ok(Value::Null)
}

/// Describes a link to the domain manager.
///
/// # Errors
/// `VBD_IS_EMPTY`, `INVALID_DEVICE`, and what is wrong with the disk's SR.
pub(super) fn spec(api: &Api, vbd: &Row) -> Result<VbdSpec, ApiError> {
    let vdi = vbd.get("VDI").as_ref().cloned().unwrap_or_else(Ref::null);
    if vdi.is_null() {
        return Err(ApiError::new("VBD_IS_EMPTY", [vbd.reference().as_str()]));
    }
    let disk = Disk::find(api, &vdi)?;
    let name = text(vbd, "userdevice");
    Ok(VbdSpec {
        vbd: uuid_of(vbd)?,
        device: name
            .parse()
            .map_err(|_| ApiError::new("INVALID_DEVICE", [name]))?,
        sr: disk.sr_uuid,
        vdi: disk.uuid,
        access: match text(vbd, "mode") {
            "RW" => Access::ReadWrite,
            _ => Access::ReadOnly,
        },
    })
}

async fn assert_attachable(call: Call) -> Result<Value, ApiError> {
    let vbd = call.row("VBD", "self")?;
    let spec = spec(&call.api, &vbd)?;
    if spec.access == Access::ReadWrite {
        let vdi = target(&call.api, &vbd, "VDI", "VDI")?;
        assert_writable(&call.api, vdi.reference())?;
    }
    Ok(Value::Null)
}

async fn plug(call: Call) -> Result<Value, ApiError> {
    let vbd = call.row("VBD", "self")?;
    if is(&vbd, "currently_attached") {
        return Err(ApiError::new(
            "DEVICE_ALREADY_ATTACHED",
            [vbd.reference().as_str()],
        ));
    }
    change(&call, &vbd, "plug", OperationKind::VbdPlug).await
}

async fn unplug(call: Call) -> Result<Value, ApiError> {
    let vbd = call.row("VBD", "self")?;
    if !is(&vbd, "currently_attached") {
        return Err(ApiError::new(
            "DEVICE_ALREADY_DETACHED",
            [vbd.reference().as_str()],
        ));
    }
    change(&call, &vbd, "unplug", OperationKind::VbdUnplug).await
}

/// Plugs or unplugs a link of a VM that runs.
async fn change(
    call: &Call,
    vbd: &Row,
    operation: &'static str,
    kind: OperationKind,
) -> Result<Value, ApiError> {
    let vm = target(&call.api, vbd, "VM", "VM")?;
    power::assert_state(&vm, &["Running"])?;
    let locks = [Lock::new("VBD", vbd.reference(), operation)];
    let work = async {
        let xenops = &call.api.services.xenops;
        let (ctx, vm_uuid) = (power::context(call), uuid_of(&vm)?);
        let started = match kind {
            OperationKind::VbdPlug => xenops.vbd_plug(&ctx, vm_uuid, spec(&call.api, vbd)?),
            _ => xenops.vbd_unplug(&ctx, vm_uuid, uuid_of(vbd)?),
        };
        power::finish(call, &vm, vbd.reference(), "running", started).await
    };
    call.api
        .with_operation(&call.task_ref(), &locks, work)
        .await?;
    Ok(Value::Null)
}

fn assert_drive(vbd: &Row) -> Result<(), ApiError> {
    if text(vbd, "type") == "CD" {
        return Ok(());
    }
    Err(ApiError::new(
        "VBD_NOT_REMOVABLE_MEDIA",
        [vbd.reference().as_str()],
    ))
}

async fn insert(call: Call) -> Result<Value, ApiError> {
    let vbd = call.row("VBD", "vbd")?;
    let vdi = call.row("VDI", "vdi")?;
    assert_drive(&vbd)?;
    if !is(&vbd, "empty") {
        return Err(ApiError::new("VBD_NOT_EMPTY", [vbd.reference().as_str()]));
    }
    set_medium(&call, &vbd, vdi.reference()).await?;
    let vm = target(&call.api, &vbd, "VM", "VM")?;
    if text(&vm, "power_state") == "Running" {
        let vbd = call.row("VBD", "vbd")?;
        if let Err(error) = change(&call, &vbd, "insert", OperationKind::VbdPlug).await {
            set_medium(&call, &vbd, &Ref::null()).await?;
            return Err(error);
        }
    }
    Ok(Value::Null)
}

async fn eject(call: Call) -> Result<Value, ApiError> {
    let vbd = call.row("VBD", "vbd")?;
    assert_drive(&vbd)?;
    if is(&vbd, "empty") {
        return Err(ApiError::new("VBD_IS_EMPTY", [vbd.reference().as_str()]));
    }
    if is(&vbd, "currently_attached") {
        change(&call, &vbd, "eject", OperationKind::VbdUnplug).await?;
    }
    set_medium(&call, &vbd, &Ref::null()).await?;
    Ok(Value::Null)
}

async fn set_medium(call: &Call, vbd: &Row, vdi: &Ref) -> Result<(), ApiError> {
    call.api
        .write(|tx| {
            tx.set("VBD", vbd.reference(), "VDI", vdi.into())?;
            Ok(tx.set("VBD", vbd.reference(), "empty", vdi.is_null().into())?)
        })
        .await
}

async fn set_mode(call: Call) -> Result<Value, ApiError> {
    let (vbd, mode) = (call.row("VBD", "self")?, call.text("value")?);
    if is(&vbd, "currently_attached") {
        return Err(ApiError::not_allowed("the VBD is plugged"));
    }
    if mode == "RW" && text(&vbd, "type") == "CD" {
        return Err(ApiError::new("VBD_CDS_MUST_BE_READONLY", []));
    }
    if mode == "RW" && !is(&vbd, "empty") {
        assert_writable(
            &call.api,
            target(&call.api, &vbd, "VDI", "VDI")?.reference(),
        )?;
    }
    call.api
        .write(|tx| Ok(tx.set("VBD", vbd.reference(), "mode", mode.into())?))
        .await?;
    Ok(Value::Null)
}

//! Commands on VMs.

use super::context::{Context, Job};
use super::errors::CliError;
use super::kinds;
use super::select::{self, Selected};
use super::storage::new_record;
use database::{Ref, Row, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Memory of a VM that says nothing about it.
const MEMORY_BYTES: i64 = 256 << 20;

/// What a list of drives and disks shows when nothing else is asked for.
const VBD_SHOWN: &str = "uuid,vm-name-label,userdevice";
const VDI_SHOWN: &str = "uuid,name-label,sr-name-label,virtual-size";

/// Runs a message for each selected VM: those it fails for are told together.
async fn each(
    context: &mut Context<'_>,
    message: &str,
    rest: impl Fn() -> Vec<Value>,
) -> Result<(), CliError> {
    let mut failed = Vec::new();
    let selected = select::some(context, "vm").await?;
    let alone = selected.len() == 1;
    for vm in selected {
        let params = std::iter::once(vm.value()).chain(rest()).collect();
        match context.call_long(message, params).await {
            Ok(_) => {}
            Err(problem) if alone => return Err(problem),
            Err(CliError::Protocol(problem)) => return Err(problem.into()),
            Err(problem) => failed.push((vm.uuid(), problem.one_line())),
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(CliError::Several(failed))
    }
}

pub(super) async fn start(context: &mut Context<'_>) -> Result<(), CliError> {
    let [paused, force] = ["paused", "force"].map(|name| Value::Bool(context.params.flag(name)));
    match host_of(context, "on")? {
        Some(host) => {
            each(context, "VM.start_on", || {
                vec![host.clone(), paused.clone(), force.clone()]
            })
            .await
        }
        None => each(context, "VM.start", || vec![paused.clone(), force.clone()]).await,
    }
}

pub(super) async fn resume(context: &mut Context<'_>) -> Result<(), CliError> {
    let force = Value::Bool(context.params.flag("force"));
    let paused = Value::Bool(false);
    match host_of(context, "on")? {
        Some(host) => {
            each(context, "VM.resume_on", || {
                vec![host.clone(), paused.clone(), force.clone()]
            })
            .await
        }
        None => each(context, "VM.resume", || vec![paused.clone(), force.clone()]).await,
    }
}

/// The host that a parameter names, by its uuid or its name.
fn host_of(job: &Job, name: &str) -> Result<Option<Value>, CliError> {
    let Some(wanted) = job.params.get(name) else {
        return Ok(None);
    };
    let snapshot = job.snapshot();
    let found = snapshot.by_uuid("host", wanted);
    let found = found.or_else(|| snapshot.by_name_label("host", wanted).into_iter().next());
    let host = found.ok_or_else(|| CliError::failure(format!("No host is named {wanted}")))?;
    Ok(Some(Value::from(host.reference())))
}

pub(super) async fn shutdown(context: &mut Context<'_>) -> Result<(), CliError> {
    let force = context.params.flag("force");
    each(
        context,
        if force {
            "VM.hard_shutdown"
        } else {
            "VM.clean_shutdown"
        },
        Vec::new,
    )
    .await
}

pub(super) async fn reboot(context: &mut Context<'_>) -> Result<(), CliError> {
    let force = context.params.flag("force");
    each(
        context,
        if force {
            "VM.hard_reboot"
        } else {
            "VM.clean_reboot"
        },
        Vec::new,
    )
    .await
}

pub(super) async fn pause(context: &mut Context<'_>) -> Result<(), CliError> {
    each(context, "VM.pause", Vec::new).await
}

pub(super) async fn unpause(context: &mut Context<'_>) -> Result<(), CliError> {
    each(context, "VM.unpause", Vec::new).await
}

pub(super) async fn suspend(context: &mut Context<'_>) -> Result<(), CliError> {
    each(context, "VM.suspend", Vec::new).await
}

pub(super) async fn reset_power_state(context: &mut Context<'_>) -> Result<(), CliError> {
    let warning =
        ["If the VM still runs, its disks are destroyed when it is started again.".to_owned()];
    if !context.confirm(&warning).await? {
        return Err(CliError::failure("nothing was changed"));
    }
    each(context, "VM.power_state_reset", Vec::new).await
}

pub(super) async fn snapshot(context: &mut Context<'_>) -> Result<(), CliError> {
    let mut ignored = Vec::new();
    for uuid in context
        .params
        .get("ignore-vdi-uuids")
        .into_iter()
        .flat_map(|all| all.split(','))
    {
        let vdi = context.snapshot().by_uuid("VDI", uuid);
        let vdi = vdi.ok_or_else(|| CliError::uuid_invalid("VDI", uuid))?;
        ignored.push(Value::from(vdi.reference()));
    }
    // Servers of an older interface know the call with two parameters only.
    let ignored = (!ignored.is_empty()).then_some(Value::Set(ignored));
    make(context, "VM.snapshot", ignored).await
}

pub(super) async fn clone(context: &mut Context<'_>) -> Result<(), CliError> {
    make(context, "VM.clone", None).await
}

pub(super) async fn copy(context: &mut Context<'_>) -> Result<(), CliError> {
    let sr = context.optional_reference("SR", "sr-uuid")?;
    make(context, "VM.copy", Some(sr)).await
}

/// Makes a VM from another, names it and prints its uuid.
async fn make(
    context: &mut Context<'_>,
    message: &str,
    more: Option<Value>,
) -> Result<(), CliError> {
    let vm = source(context).await?;
    let params = [vm.value(), context.text("new-name-label")]
        .into_iter()
        .chain(more)
        .collect();
    let made = context.call_long(message, params).await?;
    if context.params.get("new-name-description").is_some() {
        let description = vec![made.clone(), context.text("new-name-description")];
        context.call("VM.set_name_description", description).await?;
    }
    context.print_uuid("VM", &made).await
}

/// The VM to make another from; `uuid=` may also be a template or a snapshot.
async fn source(job: &Job) -> Result<Selected, CliError> {
    if job.params.get("uuid").is_none() {
        return select::one(job, "vm").await;
    }
    let row = job.object("VM", "uuid")?;
    Ok(Selected {
        reference: row.reference().clone(),
        record: row.record(),
    })
}

pub(super) async fn create(context: &mut Context<'_>) -> Result<(), CliError> {
    let params = &context.params;
    let memory = Value::Int(params.bytes_or("memory", MEMORY_BYTES)?);
    let vcpus = Value::Int(params.int_or("vcpus", 1)?);
    let empty = || Value::Map(BTreeMap::new());
    let record = new_record([
        ("name_label", context.text("name-label")),
        ("name_description", context.text("name-description")),
        ("user_version", Value::Int(1)),
        ("is_a_template", Value::Bool(false)),
        ("affinity", Value::Ref(Ref::null())),
        ("memory_static_max", memory.clone()),
        ("memory_dynamic_max", memory.clone()),
        ("memory_dynamic_min", memory.clone()),
        ("memory_static_min", memory),
        ("VCPUs_params", empty()),
        ("VCPUs_max", vcpus.clone()),
        ("VCPUs_at_startup", vcpus),
        ("actions_after_shutdown", Value::from("destroy")),
        ("actions_after_reboot", Value::from("restart")),
        ("actions_after_crash", Value::from("restart")),
        ("PV_bootloader", Value::from("")),
        ("PV_kernel", context.text("kernel")),
        ("PV_ramdisk", context.text("ramdisk")),
        ("PV_args", context.text("args")),
        ("PV_bootloader_args", Value::from("")),
        ("PV_legacy_args", Value::from("")),
        ("HVM_boot_policy", Value::from("")),
        ("HVM_boot_params", empty()),
        ("platform", empty()),
        ("PCI_bus", Value::from("")),
        ("other_config", empty()),
        ("recommendations", Value::from("")),
    ]);
    let vm = context.call("VM.create", vec![record]).await?;
    context.print_uuid("VM", &vm).await
}

pub(super) async fn destroy(context: &mut Context<'_>) -> Result<(), CliError> {
    let vm = context.reference("VM", "uuid")?;
    context.call("VM.destroy", vec![vm]).await.map(|_| ())
}

/// The drives of a VM with the disks in them.
fn drives(job: &Job, vm: &Ref) -> Vec<(Arc<Row>, Option<Arc<Row>>)> {
    let snapshot = job.snapshot();
    let vbds = snapshot
        .row("VM", vm)
        .map(|vm| vm.get("VBDs"))
        .unwrap_or_default();
    let vbds = vbds.as_set().unwrap_or_default().iter();
    let mut drives: Vec<_> = vbds
        .filter_map(|vbd| snapshot.row("VBD", vbd.as_ref()?))
        .map(|vbd| {
            let vdi = vbd
                .get("VDI")
                .as_ref()
                .and_then(|vdi| snapshot.row("VDI", vdi));
            (vbd, vdi)
        })
        .collect();
    drives.sort_by_cached_key(|(vbd, _)| vbd.get("userdevice").as_str().map(str::to_owned));
    drives
}

fn is_disk(vbd: &Row) -> bool {
    vbd.get("type").as_str() == Some("Disk")
}

/// Removes VMs and the disks that only they use.
pub(super) async fn uninstall(context: &mut Context<'_>) -> Result<(), CliError> {
    let vms = select::some(context, "vm").await?;
    let mut warning = vec!["The following items are about to be destroyed".to_owned()];
    let mut disks = BTreeMap::new();
    for vm in &vms {
        let name = vm.get("name_label");
        warning.push(format!(
            "VM : {} ({})",
            vm.uuid(),
            name.as_str().unwrap_or_default()
        ));
        for (vbd, vdi) in drives(context, &vm.reference) {
            let Some(vdi) = vdi.filter(|_| is_disk(&vbd)) else {
                continue;
            };
            let users = vdi.get("VBDs").as_set().map_or(0, <[_]>::len);
            if users == 1 {
                let name = vdi.get("name_label");
                warning.push(format!(
                    "VDI: {} ({})",
                    vdi.uuid(),
                    name.as_str().unwrap_or_default()
                ));
                disks.insert(vdi.reference().clone(), ());
            }
        }
    }
    if !context.confirm(&warning).await? {
        return Err(CliError::failure("nothing was destroyed"));
    }
    for vm in &vms {
        context.call("VM.destroy", vec![vm.value()]).await?;
    }
    for vdi in disks.keys() {
        context.call("VDI.destroy", vec![Value::from(vdi)]).await?;
    }
    Ok(context.output.remark("All objects destroyed").await?)
}

pub(super) async fn disk_list(context: &mut Context<'_>) -> Result<(), CliError> {
    let vms = select::some(context, "vm").await?;
    for vm in vms {
        for (number, (vbd, vdi)) in drives(context, &vm.reference).into_iter().enumerate() {
            if !is_disk(&vbd) {
                continue;
            }
            show(context, number, "vbd", &vbd).await?;
            if let Some(vdi) = vdi {
                show(context, number, "vdi", &vdi).await?;
            }
        }
    }
    Ok(())
}

async fn show(
    context: &mut Context<'_>,
    number: usize,
    kind_name: &str,
    row: &Row,
) -> Result<(), CliError> {
    let default = if kind_name == "vbd" {
        VBD_SHOWN
    } else {
        VDI_SHOWN
    };
    let asked = context
        .params
        .get(&format!("{kind_name}-params"))
        .unwrap_or(default);
    let kind = kinds::kind(kind_name)
        .ok_or_else(|| CliError::failure(format!("there are no {kind_name}s")))?;
    if asked == "none" {
        return Ok(());
    }
    let snapshot = context.snapshot();
    let names: Vec<_> = asked.split(',').collect();
    let wanted = |name: &str| asked == "all" || names.contains(&name);
    let record: Vec<_> = kind
        .columns
        .iter()
        .filter(|column| wanted(&column.name))
        .map(|column| (column.heading(), column.text(&snapshot, &row.record())))
        .collect();
    let title = if kind_name == "vbd" { "VBD" } else { "VDI" };
    context
        .output
        .remark(&format!("Disk {number} {title}:"))
        .await?;
    Ok(context.output.record(&record).await?)
}

/// Makes a disk on `sr-uuid`, or on the pool's default SR, and gives it to a VM.
pub(super) async fn disk_add(context: &mut Context<'_>) -> Result<(), CliError> {
    let vm = select::one(context, "vm").await?;
    let size = Value::Int(context.params.bytes_or("disk-size", 0)?);
    let sr = match context.params.get("sr-uuid") {
        Some(_) => context.reference("SR", "sr-uuid")?,
        None => default_sr(context)?,
    };
    let empty = || Value::Map(BTreeMap::new());
    let disk = new_record([
        ("name_label", Value::from("Created by xe")),
        ("name_description", Value::from("")),
        ("SR", sr),
        ("virtual_size", size),
        ("type", Value::from("user")),
        ("sharable", Value::Bool(false)),
        ("read_only", Value::Bool(false)),
        ("other_config", empty()),
    ]);
    let vdi = context.call("VDI.create", vec![disk]).await?;
    let drive = new_record([
        ("VM", vm.value()),
        ("VDI", vdi.clone()),
        ("userdevice", context.text("device")),
        ("bootable", Value::Bool(false)),
        ("mode", Value::from("RW")),
        ("type", Value::from("Disk")),
        ("empty", Value::Bool(false)),
        ("other_config", empty()),
        ("qos_algorithm_type", Value::from("")),
        ("qos_algorithm_params", empty()),
    ]);
    if let Err(problem) = context.call("VBD.create", vec![drive]).await {
        // A disk that nobody can find by its VM is of no use.
        _ = context.call("VDI.destroy", vec![vdi]).await;
        return Err(problem);
    }
    Ok(())
}

fn default_sr(job: &Job) -> Result<Value, CliError> {
    let snapshot = job.snapshot();
    let sr = snapshot
        .rows("pool")
        .next()
        .map(|pool| pool.get("default_SR"));
    let found = sr.filter(|sr| {
        sr.as_ref()
            .is_some_and(|sr| snapshot.row("SR", sr).is_some())
    });
    found.ok_or_else(|| CliError::failure("The pool has no default SR; give sr-uuid"))
}

pub(super) async fn disk_remove(context: &mut Context<'_>) -> Result<(), CliError> {
    let vm = select::one(context, "vm").await?;
    let device = context.params.require("device")?;
    let of_device = |vbd: &Row| {
        is_disk(vbd)
            && ["userdevice", "device"]
                .iter()
                .any(|name| vbd.get(name).as_str() == Some(device))
    };
    let found = drives(context, &vm.reference)
        .into_iter()
        .find(|(vbd, _)| of_device(vbd));
    let (vbd, vdi) = found
        .ok_or_else(|| CliError::failure(format!("The VM has no disk with device {device}")))?;
    context
        .call("VBD.destroy", vec![Value::from(vbd.reference())])
        .await?;
    if let Some(vdi) = vdi {
        context
            .call("VDI.destroy", vec![Value::from(vdi.reference())])
            .await?;
    }
    Ok(())
}

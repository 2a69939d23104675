//! `VM`: power. Every message here becomes one operation of the domain manager.

use super::handlers;
use super::operations::Lock;
use super::sr::uuid_of;
use super::vbd;
use crate::api::{Api, Call};
use crate::error::ApiError;
use crate::follow;
use crate::methods::Entry;
use crate::services::Wanted;
use database::{Ref, Row, Value};
use hypervisor::Boot;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use units::MIB;
use xenops::{CallContext, GuestEndAction, Manner, Operation, StartAs, VmSpec};

/// How long a guest may take to shut down when asked to.
const CLEAN_TIME_MAX: Duration = Duration::from_secs(1200);

pub(super) fn entries() -> Vec<Entry> {
    handlers![
        Long "VM.start" => start,
        Long "VM.start_on" => start,
        Long "VM.pause" => pause,
        Long "VM.unpause" => unpause,
        Long "VM.clean_shutdown" => clean_shutdown,
        Long "VM.hard_shutdown" => hard_shutdown,
        Long "VM.shutdown" => shutdown,
        Long "VM.clean_reboot" => clean_reboot,
        Long "VM.hard_reboot" => hard_reboot,
        Long "VM.power_state_reset" => power_state_reset,
    ]
}

fn text<'a>(row: &'a Row, field: &str) -> &'a str {
    row.field(field).and_then(Value::as_str).unwrap_or_default()
}

fn is(row: &Row, field: &str) -> bool {
    row.field(field).and_then(Value::as_bool).unwrap_or(false)
}

/// The context of a call for the domain manager.
pub(super) fn context(call: &Call) -> CallContext {
    CallContext {
        request_id: call.caller.request_id.clone(),
    }
}

/// Fails with `VM_BAD_POWER_STATE` unless a VM is in one of these states.
pub(super) fn assert_state(vm: &Row, states: &[&str]) -> Result<(), ApiError> {
    let actual = text(vm, "power_state");
    if states.contains(&actual) {
        return Ok(());
    }
    let expected = states
        .first()
        .copied()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let actual = actual.to_ascii_lowercase();
    Err(ApiError::new(
        "VM_BAD_POWER_STATE",
        [vm.reference().as_str(), &expected, &actual],
    ))
}

/// Fails unless a VM may do `operation` at all, whatever its power state.
pub(super) fn assert_usable(vm: &Row, operation: &str) -> Result<(), ApiError> {
    let reference = vm.reference().as_str();
    if is(vm, "is_control_domain") {
        return Err(ApiError::not_allowed(format!(
            "{reference} is a control domain"
        )));
    }
    if is(vm, "is_a_snapshot") {
        return Err(ApiError::new("VM_IS_SNAPSHOT", []));
    }
    if is(vm, "is_a_template") {
        return Err(ApiError::new("VM_IS_TEMPLATE", [reference]));
    }
    assert_unblocked(vm, operation)
}

/// Fails with `OPERATION_BLOCKED` when someone has blocked the operation.
pub(super) fn assert_unblocked(vm: &Row, operation: &str) -> Result<(), ApiError> {
    let blocked = vm.get("blocked_operations");
    match blocked.as_map().and_then(|blocked| blocked.get(operation)) {
        None => Ok(()),
        Some(code) => {
            let code = code.as_str().unwrap_or_default();
            Err(ApiError::new(
                "OPERATION_BLOCKED",
                [vm.reference().as_str(), code],
            ))
        }
    }
}

/// Waits for an operation of the domain manager, with its progress and its cancelling bound to the
/// call's task, then brings the VM's rows up to date.
pub(super) async fn finish(
    call: &Call,
    vm: &Row,
    vbd: &Ref,
    expected: &str,
    started: Result<Operation, xenops::Error>,
) -> Result<(), ApiError> {
    let task = call
        .task
        .as_ref()
        .ok_or_else(|| ApiError::internal("power without a task"))?;
    let actual = text(vm, "power_state").to_ascii_lowercase();
    let wanted = Wanted {
        vm: vm.reference(),
        power_state: expected,
        actual: &actual,
        task: task.reference(),
        vbd,
    };
    let operation = started.map_err(|error| wanted.explain(error))?;
    let (canceller, mut progress) = (operation.canceller(), operation.watch_progress());
    let mut waiting = std::pin::pin!(operation.wait());
    let ended = loop {
        tokio::select! {
            ended = &mut waiting => break ended,
            () = task.cancel_token().cancelled(), if !canceller.is_cancelled() => canceller.cancel(),
            changed = progress.changed() => {
                if changed.is_err() {
                    break waiting.await;
                }
                let now = *progress.borrow_and_update();
                let total = f64::from(now.atoms_total.max(1));
                task.set_progress(f64::from(now.atoms_done) / total).await;
            }
        }
    };
    follow::sync_vm(&call.api, &call.api.services.xenops.state(uuid_of(vm)?)).await?;
    ended.map_err(|error| wanted.explain(error))
}

/// Runs one power operation of the VM in argument `vm`.
async fn operate(
    call: &Call,
    operation: &'static str,
    states: &[&str],
    begin: impl FnOnce(&Api, &CallContext, &Row) -> Result<Result<Operation, xenops::Error>, ApiError>,
) -> Result<Value, ApiError> {
    let vm = call.row("VM", "vm")?;
    assert_usable(&vm, operation)?;
    assert_state(&vm, states)?;
    let expected = states
        .first()
        .copied()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let locks = [Lock::new("VM", vm.reference(), operation)];
    let work = async {
        let started = begin(&call.api, &context(call), &vm)?;
        finish(call, &vm, &Ref::null(), &expected, started).await
    };
    call.api
        .with_operation(&call.task_ref(), &locks, work)
        .await?;
    Ok(Value::Null)
}

/// Makes a message about what was done to a VM.
async fn tell(call: &Call, name: &str, what: &str) {
    let Ok(vm) = call.row("VM", "vm") else { return };
    let body = format!("VM '{}' {what}", text(&vm, "name_label"));
    if let Err(error) = call
        .api
        .create_message(name, 5, "VM", vm.uuid(), &body)
        .await
    {
        tracing::warn!(%error, name, "a message was not made");
    }
}

async fn start(call: Call) -> Result<Value, ApiError> {
    let manner = if call.truth("start_paused")? {
        StartAs::Paused
    } else {
        StartAs::Running
    };
    if let Ok(host) = call.row("host", "host").or_else(|_| this_host(&call))
        && !is(&host, "enabled")
    {
        return Err(ApiError::new("HOST_DISABLED", [host.reference().as_str()]));
    }
    operate(&call, "start", &["Halted"], |api, ctx, vm| {
        Ok(api.services.xenops.start(ctx, vm_spec(api, vm)?, manner))
    })
    .await?;
    tell(&call, "VM_STARTED", "has started").await;
    Ok(Value::Null)
}

fn this_host(call: &Call) -> Result<std::sync::Arc<Row>, ApiError> {
    let host = call.api.host();
    let row = call.api.snapshot().row("host", &host);
    row.ok_or_else(|| ApiError::handle_invalid("host", &host))
}

async fn pause(call: Call) -> Result<Value, ApiError> {
    operate(&call, "pause", &["Running"], |api, ctx, vm| {
        Ok(api.services.xenops.pause(ctx, uuid_of(vm)?))
    })
    .await
}

async fn unpause(call: Call) -> Result<Value, ApiError> {
    operate(&call, "unpause", &["Paused"], |api, ctx, vm| {
        Ok(api.services.xenops.unpause(ctx, uuid_of(vm)?))
    })
    .await
}

async fn stop(call: &Call, operation: &'static str, manner: Manner) -> Result<Value, ApiError> {
    let states: &[&str] = match manner {
        Manner::Clean(_) => &["Running"],
        Manner::Hard => &["Running", "Paused"],
    };
    operate(call, operation, states, |api, ctx, vm| {
        Ok(api.services.xenops.shutdown(ctx, uuid_of(vm)?, manner))
    })
    .await?;
    tell(call, "VM_SHUTDOWN", "was shut down").await;
    Ok(Value::Null)
}

async fn clean_shutdown(call: Call) -> Result<Value, ApiError> {
    stop(&call, "clean_shutdown", Manner::Clean(CLEAN_TIME_MAX)).await
}

async fn hard_shutdown(call: Call) -> Result<Value, ApiError> {
    stop(&call, "hard_shutdown", Manner::Hard).await
}

/// Asks the guest first, and does not ask when it does not answer.
async fn shutdown(call: Call) -> Result<Value, ApiError> {
    let vm = call.row("VM", "vm")?;
    if text(&vm, "power_state") == "Running" {
        match stop(&call, "shutdown", Manner::Clean(CLEAN_TIME_MAX)).await {
            Err(error)
                if matches!(
                    error.code(),
                    "VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT" | "VM_SHUTDOWN_TIMEOUT"
                ) => {}
            ended => return ended,
        }
    }
    stop(&call, "shutdown", Manner::Hard).await
}

async fn reboot(call: &Call, operation: &'static str, manner: Manner) -> Result<Value, ApiError> {
    let states: &[&str] = match manner {
        Manner::Clean(_) => &["Running"],
        Manner::Hard => &["Running", "Paused"],
    };
    operate(call, operation, states, |api, ctx, vm| {
        Ok(api.services.xenops.reboot(ctx, uuid_of(vm)?, manner))
    })
    .await?;
    tell(call, "VM_REBOOTED", "was rebooted").await;
    Ok(Value::Null)
}

async fn clean_reboot(call: Call) -> Result<Value, ApiError> {
    reboot(&call, "clean_reboot", Manner::Clean(CLEAN_TIME_MAX)).await
}

async fn hard_reboot(call: Call) -> Result<Value, ApiError> {
    reboot(&call, "hard_reboot", Manner::Hard).await
}

/// Halts a VM whatever state it is thought to be in, and writes down what it is then.
async fn power_state_reset(call: Call) -> Result<Value, ApiError> {
    operate(
        &call,
        "power_state_reset",
        &["Halted", "Running", "Paused", "Suspended"],
        |api, ctx, vm| {
            Ok(api
                .services
                .xenops
                .shutdown(ctx, uuid_of(vm)?, Manner::Hard))
        },
    )
    .await
}

/// Describes a VM to the domain manager.
fn vm_spec(api: &Api, vm: &Row) -> Result<VmSpec, ApiError> {
    let int = |field: &str| vm.get(field).as_int().unwrap_or_default();
    let vcpus = u32::try_from(int("VCPUs_at_startup")).unwrap_or(0);
    if vcpus == 0 {
        return Err(ApiError::new("VM_NO_VCPUS", [vm.reference().as_str()]));
    }
    let memory = [int("memory_dynamic_max"), int("memory_static_max")];
    let memory = memory
        .into_iter()
        .find(|bytes| *bytes > 0)
        .unwrap_or_default();
    let memory_mib = u64::try_from(memory).unwrap_or_default() / MIB;
    let disks = vbd::of_vm(api, vm);
    let disks = disks.iter().filter(|vbd| !is(vbd, "empty"));
    Ok(VmSpec {
        vm: uuid_of(vm)?,
        name: text(vm, "name_label")
            .chars()
            .filter(|c| !c.is_control())
            .take(60)
            .collect(),
        memory_bytes: memory_mib.max(1).saturating_mul(MIB),
        vcpus,
        boot: boot(api, vm)?,
        serial_console: true,
        vbds: disks
            .map(|vbd| vbd::spec(api, vbd))
            .collect::<Result<_, _>>()?,
        on_poweroff: end_action(text(vm, "actions_after_shutdown")),
        on_reboot: end_action(text(vm, "actions_after_reboot")),
        on_crash: end_action(text(vm, "actions_after_crash")),
    })
}

fn end_action(name: &str) -> GuestEndAction {
    match name {
        "restart" | "coredump_and_restart" | "rename_restart" => GuestEndAction::Restart,
        "preserve" => GuestEndAction::Preserve,
        _ => GuestEndAction::Destroy,
    }
}

/// `PV_kernel` is the kernel to load; without one the firmware boots the first disk.
fn boot(api: &Api, vm: &Row) -> Result<Boot, ApiError> {
    let kernel = text(vm, "PV_kernel");
    if kernel.is_empty() {
        return Ok(Boot::Disk);
    }
    let ramdisk = text(vm, "PV_ramdisk");
    Ok(Boot::Kernel {
        kernel: host_file(api, "PV_kernel", kernel)?,
        ramdisk: match ramdisk {
            "" => None,
            path => Some(host_file(api, "PV_ramdisk", path)?),
        },
        cmdline: text(vm, "PV_args").to_owned(),
    })
}

/// A guest gets to read what it boots: only files where the administrator keeps kernels will do.
fn host_file(api: &Api, field: &str, path: &str) -> Result<PathBuf, ApiError> {
    let file = Path::new(path);
    let is_plain = file.is_absolute()
        && file
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let allowed = &api.config.guest_kernel_dirs;
    if is_plain && allowed.iter().any(|dir| file.starts_with(dir)) {
        return Ok(file.to_owned());
    }
    let why = "not below a directory of guest kernels";
    Err(ApiError::new("VALUE_NOT_SUPPORTED", [field, path, why]))
}

//! `VM`: records, settings, and the questions clients ask. Power is `power`, copies are `vm_copy`.

use super::handlers;
use super::operations;
use super::power::{assert_state, assert_unblocked};
use crate::api::Call;
use crate::error::ApiError;
use crate::generic;
use crate::methods::Entry;
use database::{Ref, Row, Tx, Value};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Most virtual CPUs a VM may be given.
const VCPUS_MAX: i64 = hypervisor::DomainConfig::VCPUS_MAX as i64;

pub(super) fn entries() -> Vec<Entry> {
    handlers![
        Quick "VM.create" => create,
        Quick "VM.destroy" => destroy,
        Quick "VM.provision" => provision,
        Quick "VM.set_VCPUs_max" => set_vcpus_max,
        Quick "VM.set_VCPUs_at_startup" => set_vcpus_at_startup,
        Quick "VM.set_memory" => set_memory,
        Quick "VM.set_memory_static_max" => set_memory_static_max,
        Quick "VM.set_memory_static_min" => set_memory_static_min,
        Quick "VM.set_memory_static_range" => set_memory_static_range,
        Quick "VM.set_memory_dynamic_max" => set_memory_dynamic_max,
        Quick "VM.set_memory_dynamic_min" => set_memory_dynamic_min,
        Quick "VM.set_memory_dynamic_range" => set_memory_dynamic_range,
        Quick "VM.set_memory_limits" => set_memory_limits,
        Quick "VM.assert_operation_valid" => assert_operation_valid,
        Quick "VM.assert_can_boot_here" => assert_can_boot_here,
        Quick "VM.get_possible_hosts" => get_possible_hosts,
        Quick "VM.update_allowed_operations" => update_allowed_operations,
        Quick "VM.compute_memory_overhead" => compute_memory_overhead,
    ]
}

/// What every new VM has, whatever it is made of: its own metrics, and no domain.
pub(super) fn create_row(
    tx: &mut Tx,
    reference: &Ref,
    mut fields: BTreeMap<String, Value>,
) -> Result<(), ApiError> {
    let metrics = Ref::random();
    let uuid = Value::String(Uuid::new_v4().to_string());
    tx.create("VM_metrics", metrics.clone(), [("uuid", uuid)])?;
    for (name, value) in [
        ("power_state", Value::from("Halted")),
        ("domid", Value::Int(-1)),
        ("is_control_domain", false.into()),
        ("metrics", metrics.into()),
        ("suspend_VDI", Ref::null().into()),
    ] {
        fields.insert(name.to_owned(), value);
    }
    Ok(tx.create("VM", reference.clone(), fields)?)
}

async fn create(call: Call) -> Result<Value, ApiError> {
    let fields = generic::new_fields(&call, "VM")?;
    let int = |name: &str| fields.get(name).and_then(Value::as_int).unwrap_or_default();
    assert_vcpus(int("VCPUs_at_startup"), int("VCPUs_max"))?;
    Limits {
        static_min: int("memory_static_min"),
        dynamic_min: int("memory_dynamic_min"),
        dynamic_max: int("memory_dynamic_max"),
        static_max: int("memory_static_max"),
    }
    .check()?;
    let reference = Ref::random();
    call.api
        .write(|tx| create_row(tx, &reference, fields))
        .await?;
    Ok(Value::Ref(reference))
}

async fn destroy(call: Call) -> Result<Value, ApiError> {
    let vm = call.row("VM", "self")?;
    assert_unblocked(&vm, "destroy")?;
    if vm.get("is_control_domain").as_bool() == Some(true) {
        return Err(ApiError::not_allowed("a control domain is not destroyed"));
    }
    let reference = vm.reference().clone();
    call.api
        .write(|tx| {
            let vm = generic::row(tx, "VM", &reference)?;
            assert_state(&vm, &["Halted"])?;
            remove_rows(tx, &vm)
        })
        .await?;
    Ok(Value::Null)
}

/// Removes a VM and what belongs to it alone. Its disks stay.
pub(super) fn remove_rows(tx: &mut Tx, vm: &Row) -> Result<(), ApiError> {
    for (field, class) in [("VBDs", "VBD"), ("VIFs", "VIF"), ("consoles", "console")] {
        let parts = vm.field(field).and_then(Value::as_set).unwrap_or_default();
        for part in parts.iter().filter_map(Value::as_ref) {
            generic::remove(tx, class, part)?;
        }
    }
    for (field, class) in [
        ("metrics", "VM_metrics"),
        ("guest_metrics", "VM_guest_metrics"),
    ] {
        if let Some(part) = vm.field(field).and_then(Value::as_ref)
            && tx.row(class, part).is_some()
        {
            generic::remove(tx, class, part)?;
        }
    }
    generic::remove(tx, "VM", vm.reference())
}

/// Makes a VM of what was a template. Disks that a template asks for in XML are not made.
async fn provision(call: Call) -> Result<Value, ApiError> {
    let vm = call.row("VM", "vm")?;
    let other = vm.get("other_config");
    if other
        .as_map()
        .is_some_and(|other| other.contains_key("disks"))
    {
        return Err(ApiError::new(
            "NOT_IMPLEMENTED",
            ["VM.provision with other_config:disks"],
        ));
    }
    set(&call, "vm", |_| Ok(vec![("is_a_template", false.into())])).await
}

/// Sets fields of the VM in argument `arg`, by what they are now, in one transaction.
async fn set(
    call: &Call,
    arg: &str,
    new: impl FnOnce(&Row) -> Result<Vec<(&'static str, Value)>, ApiError>,
) -> Result<Value, ApiError> {
    let reference = call.reference(arg);
    call.api
        .write(|tx| {
            let vm = generic::row(tx, "VM", &reference)?;
            for (field, value) in new(&vm)? {
                tx.set("VM", &reference, field, value)?;
            }
            Ok(())
        })
        .await?;
    Ok(Value::Null)
}

fn int(row: &Row, field: &str) -> i64 {
    row.field(field).and_then(Value::as_int).unwrap_or_default()
}

fn assert_vcpus(at_startup: i64, max: i64) -> Result<(), ApiError> {
    let invalid =
        |field: &str, value: i64| Err(ApiError::new("INVALID_VALUE", [field, &value.to_string()]));
    if !(1..=VCPUS_MAX).contains(&max) {
        return invalid("VCPUs_max", max);
    }
    if !(1..=max).contains(&at_startup) {
        return invalid("VCPUs_at_startup", at_startup);
    }
    Ok(())
}

async fn set_vcpus_max(call: Call) -> Result<Value, ApiError> {
    let max = call.int("value")?;
    set(&call, "self", |vm| {
        assert_state(vm, &["Halted"])?;
        assert_vcpus(int(vm, "VCPUs_at_startup"), max)?;
        Ok(vec![("VCPUs_max", Value::Int(max))])
    })
    .await
}

async fn set_vcpus_at_startup(call: Call) -> Result<Value, ApiError> {
    let count = call.int("value")?;
    set(&call, "self", |vm| {
        assert_state(vm, &["Halted"])?;
        assert_vcpus(count, int(vm, "VCPUs_max"))?;
        Ok(vec![("VCPUs_at_startup", Value::Int(count))])
    })
    .await
}

/// The four numbers of bytes that bound a VM's memory, each at most the next.
#[derive(Debug, Clone, Copy)]
struct Limits {
    static_min: i64,
    dynamic_min: i64,
    dynamic_max: i64,
    static_max: i64,
}

impl Limits {
    fn of(vm: &Row) -> Self {
        Self {
            static_min: int(vm, "memory_static_min"),
            dynamic_min: int(vm, "memory_dynamic_min"),
            dynamic_max: int(vm, "memory_dynamic_max"),
            static_max: int(vm, "memory_static_max"),
        }
    }

    fn check(self) -> Result<(), ApiError> {
        let order = [
            0,
            self.static_min,
            self.dynamic_min,
            self.dynamic_max,
            self.static_max,
        ];
        if order.is_sorted() {
            return Ok(());
        }
        let rule = "0 <= static_min <= dynamic_min <= dynamic_max <= static_max";
        Err(ApiError::new("MEMORY_CONSTRAINT_VIOLATION", [rule]))
    }

    fn fields(self) -> Vec<(&'static str, Value)> {
        vec![
            ("memory_static_min", Value::Int(self.static_min)),
            ("memory_dynamic_min", Value::Int(self.dynamic_min)),
            ("memory_dynamic_max", Value::Int(self.dynamic_max)),
            ("memory_static_max", Value::Int(self.static_max)),
            ("memory_target", Value::Int(self.dynamic_max)),
        ]
    }
}

async fn set_limits(call: &Call, change: impl FnOnce(&mut Limits)) -> Result<Value, ApiError> {
    set(call, "self", |vm| {
        assert_state(vm, &["Halted"])?;
        let mut limits = Limits::of(vm);
        change(&mut limits);
        limits.check()?;
        Ok(limits.fields())
    })
    .await
}

async fn set_memory(call: Call) -> Result<Value, ApiError> {
    let bytes = call.int("value")?;
    set_limits(&call, |limits| {
        (limits.dynamic_min, limits.dynamic_max, limits.static_max) = (bytes, bytes, bytes);
        limits.static_min = limits.static_min.min(bytes);
    })
    .await
}

async fn set_memory_static_max(call: Call) -> Result<Value, ApiError> {
    let bytes = call.int("value")?;
    set_limits(&call, |limits| limits.static_max = bytes).await
}

async fn set_memory_static_min(call: Call) -> Result<Value, ApiError> {
    let bytes = call.int("value")?;
    set_limits(&call, |limits| limits.static_min = bytes).await
}

async fn set_memory_static_range(call: Call) -> Result<Value, ApiError> {
    let (min, max) = (call.int("min")?, call.int("max")?);
    set_limits(&call, |limits| {
        (limits.static_min, limits.static_max) = (min, max)
    })
    .await
}

async fn set_memory_dynamic_max(call: Call) -> Result<Value, ApiError> {
    let bytes = call.int("value")?;
    set_limits(&call, |limits| limits.dynamic_max = bytes).await
}

async fn set_memory_dynamic_min(call: Call) -> Result<Value, ApiError> {
    let bytes = call.int("value")?;
    set_limits(&call, |limits| limits.dynamic_min = bytes).await
}

async fn set_memory_dynamic_range(call: Call) -> Result<Value, ApiError> {
    let (min, max) = (call.int("min")?, call.int("max")?);
    set_limits(&call, |limits| {
        (limits.dynamic_min, limits.dynamic_max) = (min, max)
    })
    .await
}

async fn set_memory_limits(call: Call) -> Result<Value, ApiError> {
    let given = Limits {
        static_min: call.int("static_min")?,
        dynamic_min: call.int("dynamic_min")?,
        dynamic_max: call.int("dynamic_max")?,
        static_max: call.int("static_max")?,
    };
    set_limits(&call, |limits| *limits = given).await
}

/// Answers nothing when the operation could start now, and with the reason when not.
async fn assert_operation_valid(call: Call) -> Result<Value, ApiError> {
    let (vm, operation) = (call.row("VM", "self")?, call.text("op")?);
    assert_unblocked(&vm, operation)?;
    if operations::allowed(&call.api.snapshot(), &vm).contains(&operation) {
        return Ok(Value::Null);
    }
    let state = vm.get("power_state");
    let state = state.as_str().unwrap_or_default();
    Err(ApiError::not_allowed(format!(
        "{operation} of a VM that is {state}"
    )))
}

async fn assert_can_boot_here(call: Call) -> Result<Value, ApiError> {
    let (vm, host) = (call.row("VM", "self")?, call.row("host", "host")?);
    if host.get("enabled").as_bool() != Some(true) {
        return Err(ApiError::new("HOST_DISABLED", [host.reference().as_str()]));
    }
    assert_state(&vm, &["Halted"])?;
    Ok(Value::Null)
}

async fn get_possible_hosts(call: Call) -> Result<Value, ApiError> {
    call.row("VM", "vm")?;
    let snapshot = call.api.snapshot();
    let enabled = snapshot
        .rows("host")
        .filter(|row| row.get("enabled").as_bool() == Some(true));
    Ok(Value::Set(
        enabled.map(|row| row.reference().into()).collect(),
    ))
}

/// There is nothing to update: they are computed whenever someone looks. Clients that watch get an
/// event, as they expect.
async fn update_allowed_operations(call: Call) -> Result<Value, ApiError> {
    let vm = call.row("VM", "self")?;
    call.api
        .write(|tx| Ok(tx.touch("VM", vm.reference())?))
        .await?;
    Ok(Value::Null)
}

async fn compute_memory_overhead(call: Call) -> Result<Value, ApiError> {
    Ok(call.row("VM", "vm")?.get("memory_overhead"))
}

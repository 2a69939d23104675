//! `host` and `pool`: the records every host has, made and brought up to date when it starts.

use super::handlers;
use super::machine::Machine;
use crate::api::{Api, Call};
use crate::datetime::now_ms;
use crate::error::ApiError;
use crate::methods::Entry;
use database::{Ref, Tx, Value};
use std::collections::BTreeMap;
use uuid::Uuid;

/// The version of the interface, major and minor.
const API_VERSION: (i64, i64) = (2, 21);

pub(super) fn entries() -> Vec<Entry> {
    handlers![
        Quick "host.get_servertime" => get_servertime,
        Quick "host.get_server_localtime" => get_servertime,
        Quick "host.compute_free_memory" => compute_free_memory,
        Quick "host.compute_memory_overhead" => compute_memory_overhead,
        Quick "host.enable" => enable,
        Quick "host.disable" => disable,
        Quick "host.list_methods" => list_methods,
    ]
}

async fn get_servertime(call: Call) -> Result<Value, ApiError> {
    call.row("host", "host")?;
    Ok(Value::DateTime(now_ms()))
}

async fn compute_free_memory(call: Call) -> Result<Value, ApiError> {
    call.row("host", "host")?;
    let machine = Machine::read();
    let snapshot = call.api.snapshot();
    // Guests that run have their memory from the host's, whatever of it they have touched.
    let running = snapshot.rows("VM").filter(|vm| {
        vm.get("power_state").as_str() != Some("Halted")
            && vm.get("is_control_domain").as_bool() == Some(false)
    });
    let taken: i64 = running
        .filter_map(|vm| vm.get("memory_dynamic_max").as_int())
        .sum();
    Ok(Value::Int(
        machine.memory_total_bytes.saturating_sub(taken).max(0),
    ))
}

async fn compute_memory_overhead(call: Call) -> Result<Value, ApiError> {
    Ok(call.row("host", "host")?.get("memory_overhead"))
}

async fn enable(call: Call) -> Result<Value, ApiError> {
    set_enabled(&call, true).await
}

async fn disable(call: Call) -> Result<Value, ApiError> {
    set_enabled(&call, false).await
}

async fn set_enabled(call: &Call, enabled: bool) -> Result<Value, ApiError> {
    let row = call.row("host", "host")?;
    call.api
        .write(|tx| Ok(tx.set("host", row.reference(), "enabled", enabled.into())?))
        .await?;
    Ok(Value::Null)
}

async fn list_methods(call: Call) -> Result<Value, ApiError> {
    Ok(Value::Set(
        call.api.method_names().map(Value::from).collect(),
    ))
}

/// A map from text to text.
pub(super) fn map<const N: usize>(entries: [(&str, &str); N]) -> Value {
    let entries = entries.into_iter();
    Value::Map(
        entries
            .map(|(key, value)| (key.to_owned(), Value::from(value)))
            .collect(),
    )
}

fn fresh_uuid() -> Value {
    Value::String(Uuid::new_v4().to_string())
}

/// Finds the object of a class with this uuid, or makes it.
fn ensure(tx: &mut Tx, class: &str, uuid: &str) -> Result<(Ref, bool), ApiError> {
    if let Some(row) = tx.by_uuid(class, uuid) {
        return Ok((row.reference().clone(), false));
    }
    let reference = Ref::random();
    tx.create(class, reference.clone(), [("uuid", uuid.into())])?;
    Ok((reference, true))
}

/// Finds the object that a field refers to, or makes it and puts the reference in place.
fn ensure_part(
    tx: &mut Tx,
    (class, owner): (&str, &Ref),
    field: &str,
    part: &str,
) -> Result<Ref, ApiError> {
    let current = tx
        .row(class, owner)
        .and_then(|row| row.get(field).as_ref().cloned());
    if let Some(current) = current.filter(|current| !current.is_null()) {
        return Ok(current);
    }
    let reference = Ref::random();
    tx.create(part, reference.clone(), [("uuid", fresh_uuid())])?;
    tx.set(class, owner, field, Value::from(&reference))?;
    Ok(reference)
}

fn set_all(
    tx: &mut Tx,
    (class, reference): (&str, &Ref),
    fields: impl IntoIterator<Item = (&'static str, Value)>,
) -> Result<(), ApiError> {
    for (field, value) in fields {
        tx.set(class, reference, field, value)?;
    }
    Ok(())
}

impl Api {
    /// Makes the host, its metrics and processors, its control domain and the pool, and writes into
    /// them what may have changed since the last start.
    pub(crate) async fn make_host(&self) -> Result<(), ApiError> {
        let machine = Machine::read();
        self.write(|tx| {
            let (host, is_new) = ensure(tx, "host", &self.config.host_uuid.to_string())?;
            if is_new {
                let name = || Value::from(self.config.hostname.as_str());
                let fields = [
                    ("name_label", name()),
                    ("hostname", name()),
                    ("enabled", true.into()),
                ];
                set_all(tx, ("host", &host), fields)?;
            }
            set_all(tx, ("host", &host), self.host_fields(&machine))?;
            let metrics = ensure_part(tx, ("host", &host), "metrics", "host_metrics")?;
            let fields = [
                ("memory_total", Value::Int(machine.memory_total_bytes)),
                ("memory_free", Value::Int(machine.memory_free_bytes)),
                ("live", true.into()),
                ("last_updated", Value::DateTime(now_ms())),
            ];
            set_all(tx, ("host_metrics", &metrics), fields)?;
            make_cpus(tx, &host, &machine)?;
            self.make_control_domain(tx, &host, &machine)?;
            make_pool(tx, &host)
        })
        .await
    }

    fn host_fields(&self, machine: &Machine) -> Vec<(&'static str, Value)> {
        let version = self.config.version.as_str();
        vec![
            ("API_version_major", Value::Int(API_VERSION.0)),
            ("API_version_minor", Value::Int(API_VERSION.1)),
            ("API_version_vendor", "Xylem".into()),
            ("address", self.config.address.as_str().into()),
            ("edition", "xylem".into()),
            ("sched_policy", "credit".into()),
            (
                "software_version",
                map([
                    ("product_brand", "Xylem"),
                    ("product_version", version),
                    ("xapi", "2.21"),
                    ("xylem", version),
                ]),
            ),
            (
                "capabilities",
                Value::Set(vec!["hvm-3.0-x86_64".into(), "pvh-3.0-x86_64".into()]),
            ),
            ("cpu_info", Value::Map(machine.cpu_info())),
        ]
    }

    fn make_control_domain(
        &self,
        tx: &mut Tx,
        host: &Ref,
        machine: &Machine,
    ) -> Result<(), ApiError> {
        let vm = ensure_part(tx, ("host", host), "control_domain", "VM")?;
        let name = format!("Control domain on host: {}", self.config.hostname);
        let memory = || Value::Int(machine.memory_total_bytes);
        let fields = [
            ("name_label", Value::String(name)),
            ("is_control_domain", true.into()),
            ("power_state", "Running".into()),
            ("resident_on", host.into()),
            ("affinity", host.into()),
            ("domid", Value::Int(0)),
            ("memory_static_max", memory()),
            ("memory_dynamic_max", memory()),
            ("memory_dynamic_min", memory()),
            ("VCPUs_max", Value::Int(machine.cpu_count())),
            ("VCPUs_at_startup", Value::Int(machine.cpu_count())),
        ];
        set_all(tx, ("VM", &vm), fields)?;
        let metrics = ensure_part(tx, ("VM", &vm), "metrics", "VM_metrics")?;
        let fields = [
            ("memory_actual", memory()),
            ("VCPUs_number", Value::Int(machine.cpu_count())),
            ("last_updated", Value::DateTime(now_ms())),
        ];
        set_all(tx, ("VM_metrics", &metrics), fields)
    }
}

fn make_cpus(tx: &mut Tx, host: &Ref, machine: &Machine) -> Result<(), ApiError> {
    let number_of = |row: &database::Row| row.get("number").as_int().unwrap_or_default();
    let known: BTreeMap<i64, Ref> = tx
        .rows("host_cpu")
        .map(|row| (number_of(row), row.reference().clone()))
        .collect();
    for (number, cpu) in (0_i64..).zip(&machine.cpus) {
        let reference = match known.get(&number) {
            Some(reference) => reference.clone(),
            None => {
                let reference = Ref::random();
                tx.create("host_cpu", reference.clone(), [("uuid", fresh_uuid())])?;
                reference
            }
        };
        let fields = [
            ("host", host.into()),
            ("number", Value::Int(number)),
            ("vendor", cpu.vendor.as_str().into()),
            ("modelname", cpu.model_name.as_str().into()),
            ("speed", Value::Int(cpu.speed_mhz)),
            ("flags", cpu.flags.as_str().into()),
        ];
        set_all(tx, ("host_cpu", &reference), fields)?;
    }
    for (number, reference) in known {
        if usize::try_from(number).is_ok_and(|number| number >= machine.cpus.len()) {
            tx.remove("host_cpu", &reference)?;
        }
    }
    Ok(())
}

fn make_pool(tx: &mut Tx, host: &Ref) -> Result<(), ApiError> {
    let known = tx.rows("pool").next().map(|row| row.reference().clone());
    if let Some(reference) = known {
        return Ok(tx.set("pool", &reference, "master", host.into())?);
    }
    let fields = [("uuid", fresh_uuid()), ("master", host.into())];
    Ok(tx.create("pool", Ref::random(), fields)?)
}

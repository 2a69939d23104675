//! Rows follow what runs: power states and disks from the domain manager, and, when the daemon
//! starts, which SRs are attached.
//!
//! ```text
//!  start ─┬─> adopt domains ─> every VM's rows ─> follow changes ──(stop)──> end
//!         └─> plug each PBD that was plugged ─> what fails: a message, and again every minute
//! ```

use crate::api::Api;
use crate::class::pbd;
use crate::datetime::now_ms;
use crate::error::ApiError;
use database::{Ref, Row, Tx, Value};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use storage::CallContext;
use tokio::task::JoinSet;
use uuid::Uuid;
use xenops::{Change, PowerState, VmState};

/// How often a PBD that could not be plugged is tried again.
const PLUG_AGAIN_EVERY: Duration = Duration::from_secs(60);

impl Api {
    /// Begins to follow, in the background.
    pub(crate) fn start_following(self: &Arc<Self>) {
        let api = self.clone();
        self.spawn(async move {
            let stopping = api.stopping().clone();
            tokio::select! {
                () = follow_vms(&api) => {}
                () = stopping.cancelled() => {}
            }
        });
        let api = self.clone();
        self.spawn(async move {
            let stopping = api.stopping().clone();
            tokio::select! {
                () = plug_all(&api) => {}
                () = stopping.cancelled() => {}
            }
        });
    }
}

async fn follow_vms(api: &Api) {
    let xenops = &api.services.xenops;
    // Subscribed before anything is read: what changes in between is told again, not lost.
    let mut changes = xenops.subscribe();
    let adoption = xenops.adopt().await;
    tracing::info!(?adoption, "domains adopted");
    resync(api, &xenops.states()).await;
    while let Some(change) = changes.next().await {
        match change {
            Change::Vm(state) => note(api, &state).await,
            Change::Resync(states) => resync(api, &states).await,
        }
    }
}

/// Writes the states of all VMs; those that are not mentioned are halted.
async fn resync(api: &Api, states: &[VmState]) {
    for row in api.snapshot().rows("VM") {
        if row.get("is_control_domain").as_bool() == Some(true) {
            continue;
        }
        let Ok(uuid) = row.uuid().parse() else {
            continue;
        };
        let known = states.iter().find(|state| state.vm == uuid);
        match known {
            Some(state) => note(api, state).await,
            None => note(api, &api.services.xenops.state(uuid)).await,
        }
    }
}

async fn note(api: &Api, state: &VmState) {
    if let Err(error) = sync_vm(api, state).await {
        tracing::error!(%error, vm = %state.vm, "the state of a VM was not written");
    }
}

/// Writes the state of a VM into its row and those of its disks, console and metrics.
pub(crate) async fn sync_vm(api: &Api, state: &VmState) -> Result<(), ApiError> {
    let host = api.host();
    let uuid = state.vm.to_string();
    let address = &api.config.address;
    api.write(|tx| {
        let Some(vm) = tx.by_uuid("VM", &uuid) else {
            return Ok(());
        };
        let reference = vm.reference().clone();
        let power = match state.power {
            PowerState::Halted => "Halted",
            PowerState::Running => "Running",
            PowerState::Paused => "Paused",
        };
        let is_live = state.power != PowerState::Halted;
        let domid = state.domid.map_or(-1, i64::from);
        let resident = if is_live { host.clone() } else { Ref::null() };
        tx.set("VM", &reference, "power_state", power.into())?;
        tx.set("VM", &reference, "domid", Value::Int(domid))?;
        tx.set("VM", &reference, "resident_on", resident.into())?;
        sync_links(
            tx,
            &vm,
            state,
            power != vm.get("power_state").as_str().unwrap_or_default(),
        )?;
        sync_metrics(tx, &vm, state)?;
        sync_console(tx, &vm, state, address)
    })
    .await
}

fn parts(row: &Row, field: &str) -> Vec<Ref> {
    let parts = row.field(field).and_then(Value::as_set).unwrap_or_default();
    parts
        .iter()
        .filter_map(|part| part.as_ref().cloned())
        .collect()
}

/// Writes which disks the guest has. What may be done to a disk depends on its links and on
/// whether the VM runs, so that watchers of the disk are told as well.
fn sync_links(tx: &mut Tx, vm: &Row, state: &VmState, power_changed: bool) -> Result<(), ApiError> {
    let plugged: BTreeSet<String> = state
        .vbds
        .iter()
        .filter(|vbd| vbd.plugged)
        .map(|vbd| vbd.vbd.to_string())
        .collect();
    for reference in parts(vm, "VBDs") {
        let Some(vbd) = tx.row("VBD", &reference) else {
            continue;
        };
        let is_plugged = plugged.contains(vbd.uuid());
        let device = state
            .vbds
            .iter()
            .find(|known| known.vbd.to_string() == vbd.uuid());
        let device = device
            .filter(|_| is_plugged)
            .map(|known| known.device.to_string());
        let changed = vbd.get("currently_attached").as_bool() != Some(is_plugged);
        tx.set("VBD", &reference, "currently_attached", is_plugged.into())?;
        tx.set(
            "VBD",
            &reference,
            "device",
            Value::String(device.unwrap_or_default()),
        )?;
        if changed || power_changed {
            tx.touch("VBD", &reference)?;
        }
        let vdi = vbd.get("VDI").as_ref().cloned().unwrap_or_else(Ref::null);
        if changed && tx.row("VDI", &vdi).is_some() {
            tx.touch("VDI", &vdi)?;
        }
    }
    Ok(())
}

fn sync_metrics(tx: &mut Tx, vm: &Row, state: &VmState) -> Result<(), ApiError> {
    let Some(metrics) = vm.get("metrics").as_ref().cloned() else {
        return Ok(());
    };
    let Some(row) = tx.row("VM_metrics", &metrics) else {
        return Ok(());
    };
    let live = |field: &str| match state.power {
        PowerState::Halted => Value::Int(0),
        _ => vm.get(field),
    };
    let start = state
        .started_at_ms
        .map_or_else(|| row.get("start_time"), Value::DateTime);
    let fields = [
        ("start_time", start),
        ("VCPUs_number", live("VCPUs_at_startup")),
        ("memory_actual", live("memory_dynamic_max")),
        ("hvm", true.into()),
    ];
    let changed = fields
        .iter()
        .any(|(field, value)| row.field(field) != Some(value));
    for (field, value) in fields {
        tx.set("VM_metrics", &metrics, field, value)?;
    }
    if changed {
        tx.set(
            "VM_metrics",
            &metrics,
            "last_updated",
            Value::DateTime(now_ms()),
        )?;
    }
    Ok(())
}

fn sync_console(tx: &mut Tx, vm: &Row, state: &VmState, address: &str) -> Result<(), ApiError> {
    let known = parts(vm, "consoles");
    if state.console.is_none() {
        return known
            .iter()
            .try_for_each(|console| Ok(tx.remove("console", console)?));
    }
    if !known.is_empty() {
        return Ok(());
    }
    let uuid = Uuid::new_v4().to_string();
    let fields = [
        (
            "location",
            Value::String(format!("https://{address}/console?uuid={uuid}")),
        ),
        ("uuid", Value::String(uuid)),
        ("protocol", "vt100".into()),
        ("VM", vm.reference().into()),
    ];
    Ok(tx.create("console", Ref::random(), fields)?)
}

fn is_wanted(row: &Row) -> bool {
    let other = row.get("other_config");
    row.get("currently_attached").as_bool() == Some(true)
        || other
            .as_map()
            .is_some_and(|other| other.contains_key(pbd::WANTED))
}

/// Plugs what was plugged, all at once: one SR that hangs must not keep the others.
async fn plug_all(api: &Arc<Api>) {
    let mut is_first = true;
    loop {
        let snapshot = api.snapshot();
        let rows = snapshot.rows("PBD").filter(|row| is_wanted(row));
        let due =
            rows.filter(|row| is_first || row.get("currently_attached").as_bool() != Some(true));
        let mut plugging = JoinSet::new();
        for row in due {
            plugging.spawn(plug(api.clone(), row.clone(), is_first));
        }
        while plugging.join_next().await.is_some() {}
        is_first = false;
        tokio::time::sleep(PLUG_AGAIN_EVERY).await;
    }
}

async fn plug(api: Arc<Api>, pbd: Arc<Row>, is_first: bool) {
    let reference = pbd.reference();
    let Err(error) = pbd::attach(&api, &CallContext::background(), reference).await else {
        return;
    };
    tracing::warn!(%error, pbd = pbd.uuid(), "a PBD could not be plugged");
    if let Err(error) = pbd::note(&api, reference, false, true).await {
        tracing::error!(%error, pbd = pbd.uuid(), "the state of a PBD was not written");
    }
    if !is_first {
        return;
    }
    let host = api.config.host_uuid.to_string();
    let body = format!("PBD {} could not be plugged: {error}", pbd.uuid());
    let told = api
        .create_message("PBD_PLUG_FAILED_ON_SERVER_START", 3, "Host", &host, &body)
        .await;
    if let Err(error) = told {
        tracing::warn!(%error, "a message was not made");
    }
}

//! Commands on the drives of VMs.

use super::context::{Context, Job};
use super::errors::CliError;
use super::storage::new_record;
use crate::error::ApiError;
use database::{Ref, Value};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How often an unplug that was refused is tried again within its timeout.
const RETRY_EVERY: Duration = Duration::from_secs(1);

pub(super) async fn create(context: &mut Context<'_>) -> Result<(), CliError> {
    let params = &context.params;
    let vdi = context.optional_reference("VDI", "vdi-uuid")?;
    let is_empty = vdi == Value::Ref(Ref::null());
    let default_type = if is_empty { "CD" } else { "Disk" };
    let ty = params.get("type").unwrap_or(default_type);
    let ty = if ty.eq_ignore_ascii_case("cd") {
        "CD"
    } else {
        "Disk"
    };
    if is_empty && ty == "Disk" {
        return Err(CliError::failure(
            "Only a drive of type CD can be empty; give vdi-uuid",
        ));
    }
    let mode = match params.get("mode").map(str::to_ascii_uppercase) {
        Some(mode) => mode,
        None if ty == "CD" => "RO".to_owned(),
        None => "RW".to_owned(),
    };
    let record = new_record([
        ("VM", context.reference("VM", "vm-uuid")?),
        ("VDI", vdi),
        ("userdevice", context.text("device")),
        ("bootable", Value::Bool(params.bool_or("bootable", false)?)),
        ("mode", Value::String(mode)),
        ("type", Value::from(ty)),
        (
            "unpluggable",
            Value::Bool(params.bool_or("unpluggable", true)?),
        ),
        ("empty", Value::Bool(is_empty)),
        ("other_config", Value::Map(BTreeMap::new())),
        ("qos_algorithm_type", Value::from("")),
        ("qos_algorithm_params", Value::Map(BTreeMap::new())),
    ]);
    let vbd = context.call("VBD.create", vec![record]).await?;
    context.print_uuid("VBD", &vbd).await
}

pub(super) async fn destroy(context: &mut Context<'_>) -> Result<(), CliError> {
    send(context, "VBD.destroy", vec![]).await
}

pub(super) async fn plug(context: &mut Context<'_>) -> Result<(), CliError> {
    send(context, "VBD.plug", vec![]).await
}

pub(super) async fn eject(context: &mut Context<'_>) -> Result<(), CliError> {
    send(context, "VBD.eject", vec![]).await
}

pub(super) async fn insert(context: &mut Context<'_>) -> Result<(), CliError> {
    let vdi = context.reference("VDI", "vdi-uuid")?;
    send(context, "VBD.insert", vec![vdi]).await
}

/// Unplugs; a guest that refuses is asked again until `timeout` seconds are over.
pub(super) async fn unplug(context: &mut Context<'_>) -> Result<(), CliError> {
    let seconds = context.params.int_or("timeout", 0)?;
    let deadline = Instant::now() + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let message = if context.params.flag("force") {
        "VBD.unplug_force"
    } else {
        "VBD.unplug"
    };
    loop {
        match send(context, message, vec![]).await {
            Err(CliError::Api(ApiError { code, .. }))
                if code == "DEVICE_DETACH_REJECTED" && Instant::now() + RETRY_EVERY < deadline =>
            {
                tokio::time::sleep(RETRY_EVERY).await;
            }
            outcome => return outcome,
        }
    }
}

async fn send(job: &Job, message: &str, rest: Vec<Value>) -> Result<(), CliError> {
    let vbd = job.reference("VBD", "uuid")?;
    job.call(message, std::iter::once(vbd).chain(rest).collect())
        .await
        .map(|_| ())
}

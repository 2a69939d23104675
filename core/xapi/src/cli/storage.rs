//! Commands on storage repositories, their links to hosts, and disks.

use super::context::{Context, Job};
use super::errors::CliError;
use database::{Ref, Value};
use std::collections::BTreeMap;

/// Sends a message that takes the object `uuid` and nothing else.
async fn send(context: &mut Context<'_>, class: &str, message: &str) -> Result<(), CliError> {
    let object = context.reference(class, "uuid")?;
    context
        .call(&format!("{class}.{message}"), vec![object])
        .await
        .map(|_| ())
}

/// `name(class.message);` for commands that take a uuid and nothing else.
macro_rules! simple {
    ($($name:ident $class:literal $message:literal;)*) => {$(
        pub(super) async fn $name(context: &mut Context<'_>) -> Result<(), CliError> {
            send(context, $class, $message).await
        }
    )*};
}

simple! {
    pbd_destroy "PBD" "destroy";
    pbd_plug "PBD" "plug";
    pbd_unplug "PBD" "unplug";
    sr_destroy "SR" "destroy";
    sr_forget "SR" "forget";
    sr_scan "SR" "scan";
    sr_update "SR" "update";
    vdi_destroy "VDI" "destroy";
    vdi_forget "VDI" "forget";
    vdi_revert "VDI" "revert";
    vdi_update "VDI" "update";
}

pub(super) async fn sr_create(context: &mut Context<'_>) -> Result<(), CliError> {
    let params = &context.params;
    let made = vec![
        context.host_or_this("host-uuid")?,
        params.map("device-config"),
        Value::Int(params.bytes_or("physical-size", 0)?),
        context.text("name-label"),
        context.text("name-description"),
        context.text("type"),
        context.text("content-type"),
        Value::Bool(params.bool_or("shared", false)?),
        params.map("sm-config"),
    ];
    let sr = context.call_long("SR.create", made).await?;
    context.print_uuid("SR", &sr).await
}

pub(super) async fn sr_introduce(context: &mut Context<'_>) -> Result<(), CliError> {
    let params = &context.params;
    let known = vec![
        context.text("uuid"),
        context.text("name-label"),
        context.text("name-description"),
        context.text("type"),
        context.text("content-type"),
        Value::Bool(params.bool_or("shared", false)?),
        params.map("sm-config"),
    ];
    let sr = context.call("SR.introduce", known).await?;
    context.print_uuid("SR", &sr).await
}

fn probe_params(job: &Job) -> Result<Vec<Value>, CliError> {
    let (config, sm_config) = (job.params.map("device-config"), job.params.map("sm-config"));
    Ok(vec![
        job.host_or_this("host-uuid")?,
        config,
        job.text("type"),
        sm_config,
    ])
}

pub(super) async fn sr_probe(context: &mut Context<'_>) -> Result<(), CliError> {
    let found = context.call("SR.probe", probe_params(context)?).await?;
    Ok(context
        .output
        .value(found.as_str().unwrap_or_default())
        .await?)
}

pub(super) async fn sr_probe_ext(context: &mut Context<'_>) -> Result<(), CliError> {
    let found = context.call("SR.probe_ext", probe_params(context)?).await?;
    for result in found.as_set().unwrap_or_default() {
        let fields = result.as_map().into_iter().flatten();
        let mut record = Vec::new();
        for (name, value) in fields {
            flatten(name, value, &mut record);
        }
        context.output.record(&record).await?;
    }
    Ok(())
}

/// Puts nested parts behind one another: `configuration:location`.
fn flatten(name: &str, value: &Value, record: &mut Vec<(String, String)>) {
    let text = match value {
        Value::Map(parts) | Value::Record(parts) => {
            for (part, value) in parts {
                flatten(&format!("{name}:{part}"), value, record);
            }
            return;
        }
        Value::String(text) => text.clone(),
        Value::Bool(truth) => truth.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Null => return,
        other => format!("{other:?}"),
    };
    record.push((name.to_owned(), text));
}

pub(super) async fn pbd_create(context: &mut Context<'_>) -> Result<(), CliError> {
    let record = [
        ("host", context.reference("host", "host-uuid")?),
        ("SR", context.reference("SR", "sr-uuid")?),
        ("device_config", context.params.map("device-config")),
        ("other_config", Value::Map(BTreeMap::new())),
    ];
    let pbd = context.call("PBD.create", vec![new_record(record)]).await?;
    context.print_uuid("PBD", &pbd).await
}

pub(super) async fn vdi_create(context: &mut Context<'_>) -> Result<(), CliError> {
    let params = &context.params;
    let tags = match params.map("tags") {
        Value::Map(tags) => tags.into_values().collect(),
        _ => Vec::new(),
    };
    let record = [
        ("name_label", context.text("name-label")),
        ("name_description", context.text("name-description")),
        ("SR", context.reference("SR", "sr-uuid")?),
        (
            "virtual_size",
            Value::Int(params.bytes_or("virtual-size", 0)?),
        ),
        ("type", vdi_type(params.get("type").unwrap_or("user"))),
        ("sharable", Value::Bool(params.bool_or("sharable", false)?)),
        ("read_only", Value::Bool(false)),
        ("other_config", params.map("other-config")),
        ("xenstore_data", Value::Map(BTreeMap::new())),
        ("sm_config", params.map("sm-config")),
        ("tags", Value::Set(tags)),
    ];
    let vdi = context
        .call_long("VDI.create", vec![new_record(record)])
        .await?;
    context.print_uuid("VDI", &vdi).await
}

/// `User` and `user` are the same: lists print the first, the interface takes the second.
fn vdi_type(text: &str) -> Value {
    Value::String(text.to_ascii_lowercase().replace(' ', "_"))
}

/// The record of a `create`.
pub(super) fn new_record<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Record(
        fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

pub(super) async fn vdi_introduce(context: &mut Context<'_>) -> Result<(), CliError> {
    let params = &context.params;
    let known = vec![
        context.text("uuid"),
        context.text("name-label"),
        context.text("name-description"),
        context.reference("SR", "sr-uuid")?,
        vdi_type(params.require("type")?),
        Value::Bool(params.bool_or("sharable", false)?),
        Value::Bool(params.bool_or("read-only", false)?),
        params.map("other-config"),
        context.text("location"),
        params.map("xenstore-data"),
        params.map("sm-config"),
        Value::Bool(params.bool_or("managed", true)?),
    ];
    let vdi = context.call("VDI.introduce", known).await?;
    context.print_uuid("VDI", &vdi).await
}

pub(super) async fn vdi_snapshot(context: &mut Context<'_>) -> Result<(), CliError> {
    let params = vec![
        context.reference("VDI", "uuid")?,
        context.params.map("driver-params"),
    ];
    let made = context.call("VDI.snapshot", params).await?;
    context.print_uuid("VDI", &made).await
}

pub(super) async fn vdi_clone(context: &mut Context<'_>) -> Result<(), CliError> {
    let params = vec![
        context.reference("VDI", "uuid")?,
        context.params.map("driver-params"),
    ];
    let made = context.call("VDI.clone", params).await?;
    for (param, message) in [
        ("new-name-label", "VDI.set_name_label"),
        ("new-name-description", "VDI.set_name_description"),
    ] {
        if context.params.get(param).is_some() {
            context
                .call(message, vec![made.clone(), context.text(param)])
                .await?;
        }
    }
    context.print_uuid("VDI", &made).await
}

pub(super) async fn vdi_resize(context: &mut Context<'_>) -> Result<(), CliError> {
    let size = Value::Int(context.params.bytes_or("disk-size", 0)?);
    let online = context.params.bool_or("online", false)?;
    let message = if online {
        "VDI.resize_online"
    } else {
        "VDI.resize"
    };
    let params = vec![context.reference("VDI", "uuid")?, size];
    context.call_long(message, params).await.map(|_| ())
}

pub(super) async fn vdi_copy(context: &mut Context<'_>) -> Result<(), CliError> {
    let targets = [
        ("SR", "sr-uuid"),
        ("VDI", "base-vdi-uuid"),
        ("VDI", "into-vdi-uuid"),
    ];
    let mut params = vec![context.reference("VDI", "uuid")?];
    for (class, name) in targets {
        params.push(context.optional_reference(class, name)?);
    }
    let [sr, into] = ["sr-uuid", "into-vdi-uuid"].map(|name| context.params.get(name).is_some());
    if sr == into {
        return Err(CliError::failure("Give one of sr-uuid and into-vdi-uuid"));
    }
    // Trailing parameters that are not meant are left out: null is not the same as absent.
    while params.last() == Some(&Value::Ref(Ref::null())) {
        params.pop();
    }
    let made = context.call_long("VDI.copy", params).await?;
    context.print_uuid("VDI", &made).await
}

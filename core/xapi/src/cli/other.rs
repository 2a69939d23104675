//! Commands on hosts, tasks, messages and events, and on the user.

use super::context::Context;
use super::errors::CliError;
use super::kinds;
use super::select::{self, Selected};
use crate::datetime;
use database::Value;
use std::collections::BTreeMap;

pub(super) async fn host_enable(context: &mut Context<'_>) -> Result<(), CliError> {
    each_host(context, "host.enable").await
}

pub(super) async fn host_disable(context: &mut Context<'_>) -> Result<(), CliError> {
    each_host(context, "host.disable").await
}

/// Runs a message for the selected hosts; for this one when nothing is said about hosts.
async fn each_host(context: &mut Context<'_>, message: &str) -> Result<(), CliError> {
    let nothing_said = context
        .params
        .iter()
        .all(|(name, _)| select::is_common(name));
    let hosts = match nothing_said {
        true => vec![Value::Ref(context.api.host())],
        false => select::some(context, "host")
            .await?
            .iter()
            .map(Selected::value)
            .collect(),
    };
    for host in hosts {
        context.call(message, vec![host]).await?;
    }
    Ok(())
}

pub(super) async fn task_cancel(context: &mut Context<'_>) -> Result<(), CliError> {
    let task = context.reference("task", "uuid")?;
    context.call("task.cancel", vec![task]).await.map(|_| ())
}

pub(super) async fn message_create(context: &mut Context<'_>) -> Result<(), CliError> {
    let about = [
        ("vm-uuid", "VM"),
        ("pool-uuid", "Pool"),
        ("sr-uuid", "SR"),
        ("host-uuid", "Host"),
    ];
    let given = about
        .into_iter()
        .find(|(name, _)| context.params.get(name).is_some());
    let (name, class) = given.ok_or_else(|| {
        CliError::failure("Need one of: vm-uuid, host-uuid, sr-uuid or pool-uuid")
    })?;
    let message = vec![
        context.text("name"),
        Value::Int(context.params.int_or("priority", 0)?),
        Value::from(class),
        context.text(name),
        context.text("body"),
    ];
    context.call("message.create", message).await.map(|_| ())
}

pub(super) async fn message_destroy(context: &mut Context<'_>) -> Result<(), CliError> {
    let uuids = match (context.params.get("uuid"), context.params.get("uuids")) {
        (Some(uuid), None) => vec![uuid],
        (None, Some(uuids)) => uuids.split(',').collect(),
        _ => return Err(CliError::failure("Need one of: uuid, uuids")),
    };
    let mut messages = Vec::new();
    for uuid in uuids {
        messages.push(
            context
                .call("message.get_by_uuid", vec![Value::from(uuid)])
                .await?,
        );
    }
    for message in messages {
        context.call("message.destroy", vec![message]).await?;
    }
    Ok(())
}

/// Removes messages by time and priority. All of them at once, so nothing is removed by half a match.
pub(super) async fn message_destroy_all(context: &mut Context<'_>) -> Result<(), CliError> {
    let params = &context.params;
    let moment = |name: &str| match params.get(name) {
        None => Ok(None),
        Some(text) => match datetime::parse(text) {
            Some(millis) => Ok(Some(millis)),
            None => Err(CliError::parse(
                name,
                "expecting a moment like 2026-01-31T12:00:00Z",
            )),
        },
    };
    let (before, after) = (moment("before")?, moment("after")?);
    let priority = params.get("priority").map(|_| params.int_or("priority", 0));
    let priority = priority.transpose()?;
    let all = context.call("message.get_all_records", vec![]).await?;
    let meant = |message: &Value| {
        let field = |name: &str| message.as_map().and_then(|fields| fields.get(name));
        let at = field("timestamp")
            .and_then(Value::as_datetime)
            .unwrap_or_default();
        before.is_none_or(|before| at < before)
            && after.is_none_or(|after| at > after)
            && priority
                .is_none_or(|wanted| field("priority").and_then(Value::as_int) == Some(wanted))
    };
    let all = all.as_map().cloned().unwrap_or_else(BTreeMap::new);
    for (reference, _) in all.into_iter().filter(|(_, message)| meant(message)) {
        context
            .call("message.destroy", vec![Value::Ref(reference.into())])
            .await?;
    }
    Ok(())
}

/// Waits until some object of a class passes all conditions, or until the client leaves.
pub(super) async fn event_wait(context: &mut Context<'_>) -> Result<(), CliError> {
    let name = context.params.require("class")?;
    let kind =
        kinds::kind(name).ok_or_else(|| CliError::failure(format!("There is no class {name}")))?;
    let mut revisions = context.api.db.subscribe();
    let stopping = context.api.stopping().clone();
    loop {
        revisions.borrow_and_update();
        if !select::list(context, kind, &["class"]).await?.is_empty() {
            return Ok(());
        }
        tokio::select! {
            changed = revisions.changed() => changed.map_err(|_| CliError::stopping())?,
            () = stopping.cancelled() => return Err(CliError::stopping()),
            () = context.output.gone() => return Err(gone()),
        }
    }
}

fn gone() -> CliError {
    let left = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    CliError::Protocol(thin_cli::ProtocolError::from(left))
}

pub(super) async fn password_change(context: &mut Context<'_>) -> Result<(), CliError> {
    let old = context
        .params
        .get("old")
        .or_else(|| context.params.get("password"));
    let passwords = vec![Value::from(old.unwrap_or_default()), context.text("new")];
    context
        .call("session.change_password", passwords)
        .await
        .map(|_| ())
}

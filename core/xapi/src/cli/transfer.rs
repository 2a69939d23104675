//! Disks to and from files of the client.
//!
//! The client is told to fetch or send a URL of this server, bound to a task; it opens a connection
//! of its own for that, and says how it went while the task says how it went here.

use super::context::{Context, Job, task_result};
use super::errors::CliError;
use database::{Ref, Value};
use std::time::Duration;
use thin_cli::Command;
use tokio::time::timeout;

/// How long the server's side has to say why, when the client says that a transfer failed.
const REASON_MAX: Duration = Duration::from_secs(2);

pub(super) async fn vdi_import(context: &mut Context<'_>) -> Result<(), CliError> {
    let url = url(context, "/import_raw_vdi", &[])?;
    let filename = context.params.require("filename")?.to_owned();
    run(context, "VDI import", url, |url| Command::HttpPut {
        filename,
        url,
    })
    .await
}

pub(super) async fn vdi_export(context: &mut Context<'_>) -> Result<(), CliError> {
    let base = match context.params.get("base") {
        Some(_) => Some(context.object("VDI", "base")?),
        None => None,
    };
    let base = base.as_ref().map(|row| ("base", row.reference().as_str()));
    let url = url(context, "/export_raw_vdi", base.as_slice())?;
    let filename = context.params.require("filename")?.to_owned();
    run(context, "VDI export", url, |url| Command::HttpGet {
        filename,
        url,
    })
    .await
}

/// The URL without the task.
fn url(job: &Job, path: &str, more: &[(&str, &str)]) -> Result<String, CliError> {
    let vdi = job.object("VDI", "uuid")?;
    let format = job.params.get("format").unwrap_or("raw");
    if !matches!(format, "raw" | "vhd") {
        return Err(CliError::parse("format", "expecting raw or vhd"));
    }
    let session = job.caller.session.as_ref().map_or("", Ref::as_str);
    let mut url = format!(
        "{path}?session_id={session}&vdi={}&format={format}",
        vdi.reference().as_str()
    );
    for (name, value) in more {
        url += &format!("&{name}={value}");
    }
    Ok(url)
}

async fn run(
    context: &mut Context<'_>,
    label: &str,
    url: String,
    command: impl FnOnce(String) -> Command,
) -> Result<(), CliError> {
    let task = context
        .call("task.create", vec![Value::from(label), Value::from("")])
        .await?;
    let task = task.as_ref().cloned().unwrap_or_else(Ref::null);
    let outcome = transfer(context, &task, command(format!("{url}&task_id={task}"))).await;
    if outcome.is_err() {
        // Nobody waits for it any more.
        _ = context.call("task.cancel", vec![Value::from(&task)]).await;
    }
    _ = context.call("task.destroy", vec![Value::from(&task)]).await;
    outcome
}

async fn transfer(context: &mut Context<'_>, task: &Ref, command: Command) -> Result<(), CliError> {
    context.output.send(command).await?;
    let show = context.params.flag("progress");
    let api = context.api.clone();
    let (answers, printer) = context.output.halves();
    let ended = super::context::follow(&api, task, printer, show);
    // Its task ends when the server stops; a client that waits for nothing does not.
    let stopping = api.stopping();
    let answered = async {
        tokio::select! {
            answer = answers.transferred() => Ok::<_, CliError>(answer?),
            () = stopping.cancelled() => Err(CliError::stopping()),
        }
    };
    tokio::pin!(ended, answered);
    let (client_ok, row) = tokio::select! {
        answer = &mut answered => match answer? {
            true => (true, ended.await?),
            false => {
                let row = timeout(REASON_MAX, ended).await.map_err(|_| client_failed())??;
                (false, row)
            }
        },
        row = &mut ended => {
            let row = row?;
            if let Err(error) = task_result(&row) {
                // The client hears of it over its own connection and says so; to close while it
                // speaks would cost it our words. It may also be waiting for us.
                _ = timeout(REASON_MAX, answered).await;
                return Err(error);
            }
            (answered.await?, row)
        }
    };
    task_result(&row)?;
    if client_ok {
        Ok(())
    } else {
        Err(client_failed())
    }
}

fn client_failed() -> CliError {
    CliError::failure("the client could not transfer the file")
}

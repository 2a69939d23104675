//! `task`: tasks that clients make, and what clients may do to the ones that run.

use super::handlers;
use crate::api::Call;
use crate::datetime::now_ms;
use crate::error::ApiError;
use crate::generic;
use crate::methods::Entry;
use crate::model::Role;
use crate::task;
use database::Value;

pub(super) fn entries() -> Vec<Entry> {
    handlers![
        Quick "task.create" => create,
        Quick "task.destroy" => destroy,
        Quick "task.cancel" => cancel,
        Quick "task.set_status" => set_status,
        Quick "task.set_progress" => set_progress,
        Quick "task.set_result" => set_result,
        Quick "task.set_error_info" => set_error_info,
    ]
}

async fn create(call: Call) -> Result<Value, ApiError> {
    let (label, text) = (call.text("label")?, call.text("description")?);
    Ok(Value::Ref(task::create(&call.api, label, text).await?))
}

async fn destroy(call: Call) -> Result<Value, ApiError> {
    let reference = call.reference("self");
    let row = call.row("task", "self")?;
    if !task::is_finished(&row) {
        // What runs goes on to its end, but hears that nobody wants it.
        cancel_running(&call, "self")?;
    }
    call.api
        .write(|tx| generic::remove(tx, "task", &reference))
        .await?;
    Ok(Value::Null)
}

async fn cancel(call: Call) -> Result<Value, ApiError> {
    let row = call.row("task", "task")?;
    if task::is_finished(&row) {
        return Err(ApiError::not_allowed(format!(
            "task {} has ended",
            row.uuid()
        )));
    }
    // A task that a client made is ended by that client, which sees the status.
    cancel_running(&call, "task")?;
    let status = Value::from("cancelling");
    call.api
        .write(|tx| Ok(tx.set("task", row.reference(), "status", status)?))
        .await?;
    Ok(Value::Null)
}

/// Fires the token of a task, when this process works on it. Tasks of other accounts are a pool
/// operator's to cancel.
fn cancel_running(call: &Call, arg: &str) -> Result<(), ApiError> {
    let Some((token, user)) = call.api.tasks.find(&call.reference(arg)) else {
        return Ok(());
    };
    let session = call.session()?;
    if session.user != user && session.role < Role::PoolOperator {
        let why = format!("the task belongs to {user}");
        return Err(ApiError::new(
            "RBAC_PERMISSION_DENIED",
            ["task.cancel", &why],
        ));
    }
    token.cancel();
    Ok(())
}

async fn set_status(call: Call) -> Result<Value, ApiError> {
    let (reference, status) = (call.reference("self"), call.text("value")?);
    let row = call.row("task", "self")?;
    let ends = !matches!(status, "pending" | "cancelling");
    let ends_now = ends && !task::is_finished(&row);
    call.api
        .write(|tx| {
            tx.set("task", &reference, "status", status.into())?;
            if ends_now {
                tx.set("task", &reference, "finished", Value::DateTime(now_ms()))?;
            }
            Ok(())
        })
        .await?;
    Ok(Value::Null)
}

async fn set_progress(call: Call) -> Result<Value, ApiError> {
    let progress = call.float("value")?;
    if !(0.0..=1.0).contains(&progress) {
        return Err(ApiError::new(
            "INVALID_VALUE",
            ["progress", &progress.to_string()],
        ));
    }
    set(&call, "progress", Value::Float(progress)).await
}

async fn set_result(call: Call) -> Result<Value, ApiError> {
    let text = call.text("value")?.to_owned();
    set(&call, "result", Value::String(text)).await
}

async fn set_error_info(call: Call) -> Result<Value, ApiError> {
    let list = call.list("value").into_iter().map(Value::String).collect();
    set(&call, "error_info", Value::Set(list)).await
}

async fn set(call: &Call, field: &str, value: Value) -> Result<Value, ApiError> {
    let row = call.row("task", "self")?;
    call.api
        .write(|tx| Ok(tx.set("task", row.reference(), field, value)?))
        .await?;
    Ok(Value::Null)
}

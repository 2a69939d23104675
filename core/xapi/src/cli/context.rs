//! What a command has around it: the call into the interface, its parameters, the client's end.

use super::errors::CliError;
use super::line::Params;
use super::output::{Output, Printer};
use super::table::Command;
use crate::api::{Api, Caller};
use database::{Ref, Row, Snapshot, Value};
use std::ops::Deref;
use std::sync::Arc;

/// Characters of a progress bar.
const BAR_WIDTH: usize = 60;

/// A command that was asked for, by whom and with which parameters.
pub(super) struct Job {
    pub(super) api: Arc<Api>,
    pub(super) caller: Caller,
    pub(super) command: Command,
    pub(super) params: Params,
}

/// A job and the client's end. Two parts, for the job may be looked at from many places while only
/// one of them prints.
pub(super) struct Context<'a> {
    job: Job,
    pub(super) output: &'a mut Output,
}

impl Deref for Context<'_> {
    type Target = Job;

    fn deref(&self) -> &Job {
        &self.job
    }
}

impl Job {
    /// Sends a message in this client's session.
    pub(super) async fn call(&self, method: &str, params: Vec<Value>) -> Result<Value, CliError> {
        Ok(self.api.call(&self.caller, method, params).await?)
    }

    /// Everything as of now, to find objects and to print names; changes go through calls.
    pub(super) fn snapshot(&self) -> Snapshot {
        self.api.snapshot()
    }

    /// Finds the object that the parameter `name` gives by its uuid.
    pub(super) fn object(&self, class: &str, name: &str) -> Result<Arc<Row>, CliError> {
        let uuid = self.params.require(name)?;
        let found = self.snapshot().by_uuid(class, uuid);
        found.ok_or_else(|| CliError::uuid_invalid(class, uuid))
    }

    /// As [`Self::object`], as a reference to pass on.
    pub(super) fn reference(&self, class: &str, name: &str) -> Result<Value, CliError> {
        self.object(class, name)
            .map(|row| Value::from(row.reference()))
    }

    /// As [`Self::reference`], null when the parameter is not given.
    pub(super) fn optional_reference(&self, class: &str, name: &str) -> Result<Value, CliError> {
        match self.params.get(name) {
            Some(_) => self.reference(class, name),
            None => Ok(Value::Ref(Ref::null())),
        }
    }

    /// The host that `name` gives, or this one.
    pub(super) fn host_or_this(&self, name: &str) -> Result<Value, CliError> {
        match self.params.get(name) {
            Some(_) => self.reference("host", name),
            None => Ok(Value::Ref(self.api.host())),
        }
    }

    /// The text of an optional parameter.
    pub(super) fn text(&self, name: &str) -> Value {
        Value::from(self.params.get(name).unwrap_or_default())
    }

    async fn uuid_of(&self, class: &str, made: &Value) -> Result<String, CliError> {
        let uuid = self
            .call(&format!("{class}.get_uuid"), vec![made.clone()])
            .await?;
        Ok(uuid.as_str().unwrap_or_default().to_owned())
    }
}

impl<'a> Context<'a> {
    pub(super) fn new(job: Job, output: &'a mut Output) -> Self {
        Self { job, output }
    }

    /// As [`Job::call`], with a progress bar on the standard error when `progress=true` is given.
    pub(super) async fn call_long(
        &mut self,
        method: &str,
        params: Vec<Value>,
    ) -> Result<Value, CliError> {
        if !self.params.flag("progress") {
            return self.call(method, params).await;
        }
        let task = self.call(&format!("Async.{method}"), params).await?;
        let task = task.as_ref().cloned().unwrap_or_else(Ref::null);
        let (_, printer) = self.output.halves();
        let ended = follow(&self.job.api, &task, printer, true).await;
        let result = ended.and_then(|row| task_result(&row));
        // It is of no use to anyone any more; it goes by itself later when this fails.
        _ = self.call("task.destroy", vec![Value::from(&task)]).await;
        result
    }

    /// Prints the uuid of the object that a call answered with.
    pub(super) async fn print_uuid(&mut self, class: &str, made: &Value) -> Result<(), CliError> {
        let uuid = self.uuid_of(class, made).await?;
        Ok(self.output.value(uuid).await?)
    }

    /// Asks the user unless `--force` is given; `Err` when they say no.
    pub(super) async fn confirm(&mut self, warning: &[String]) -> Result<bool, CliError> {
        if self.params.flag("force") {
            return Ok(true);
        }
        for line in warning {
            self.output
                .send(thin_cli::Command::Print(line.clone()))
                .await?;
        }
        let stopping = self.job.api.stopping().clone();
        tokio::select! {
            yes = self.output.confirm() => Ok(yes?),
            () = stopping.cancelled() => Err(CliError::stopping()),
        }
    }
}

/// Waits for the end of a task; `show` draws a progress bar.
pub(super) async fn follow(
    api: &Api,
    task: &Ref,
    printer: &mut Printer,
    show: bool,
) -> Result<Arc<Row>, CliError> {
    let mut revisions = api.db.subscribe();
    let mut shown = None;
    loop {
        revisions.borrow_and_update();
        let row = api.snapshot().row("task", task).ok_or_else(|| gone(task))?;
        let percent = row
            .get("progress")
            .as_float()
            .unwrap_or(0.0)
            .clamp(0.0, 1.0)
            * 100.0;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 100"
        )]
        let percent = percent as usize;
        if show && shown != Some(percent) {
            shown = Some(percent);
            printer.stderr(&bar(percent)).await?;
        }
        if crate::task::is_finished(&row) {
            if show {
                printer.stderr("\n").await?;
            }
            return Ok(row);
        }
        if revisions.changed().await.is_err() {
            return Err(CliError::stopping());
        }
    }
}

fn gone(task: &Ref) -> CliError {
    CliError::Api(crate::error::ApiError::handle_invalid("task", task))
}

/// The value that a finished task stands for.
pub(super) fn task_result(row: &Row) -> Result<Value, CliError> {
    if row.get("status").as_str() == Some("success") {
        let result = row.get("result");
        let text = result.as_str().unwrap_or_default();
        if text.is_empty() {
            return Ok(Value::Null);
        }
        // Results are kept as the wire has them: a value stands where a parameter would.
        let call = format!(
            "<methodCall><methodName>r</methodName><params><param>{text}</param></params></methodCall>"
        );
        let decoded = crate::wire::xmlrpc::decode(call.as_bytes()).ok();
        let value = decoded.and_then(|call| call.params.into_iter().next());
        return value.ok_or_else(|| CliError::failure("the task has a result that is no value"));
    }
    let info = row.get("error_info");
    let mut texts = info
        .as_set()
        .unwrap_or_default()
        .iter()
        .filter_map(Value::as_str);
    let code = texts.next().unwrap_or("INTERNAL_ERROR").to_owned().into();
    let params = texts.map(str::to_owned).collect();
    Err(CliError::Api(crate::error::ApiError { code, params }))
}

fn bar(percent: usize) -> String {
    let filled = BAR_WIDTH * percent / 100;
    format!("\r|{:<BAR_WIDTH$}| {percent:>3}%", "#".repeat(filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_has_one_width_at_every_percentage() {
        let width = bar(0).len();
        assert!((0..=100).all(|percent| bar(percent).len() == width));
        assert!(bar(100).contains(&"#".repeat(BAR_WIDTH)));
    }
}

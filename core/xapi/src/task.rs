//! Tasks: what runs, how far it is, how it ended.
//!
//! ```text
//!            ┌──────────> success   (result: <value>..</value>)
//!  pending ──┼──────────> failure   (error_info: code, parameters)
//!     │      └──────────> cancelled (error_info: TASK_CANCELLED, task)
//!     └─ cancel ─> cancelling ─┘ (any of the three: the operation decides)
//! ```
//!
//! The task of a call that the client waits for lives as long as the call; the task of an `Async.`
//! call, or one a client made, stays after its end until it is destroyed, grows old or is one too
//! many. Tasks that a former run of the daemon left unfinished are cancelled when it starts.

use crate::api::{Api, Call};
use crate::datetime::now_ms;
use crate::error::ApiError;
use crate::generic;
use crate::wire::xmlrpc;
use database::{Database, Ref, Row, Tx, Value};
use futures_util::FutureExt;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use storage::{StorageError, StorageErrorKind, Watch};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Finished tasks that are kept; beyond them the oldest go first.
pub(crate) const FINISHED_MAX: usize = 200;
/// How long a finished task is kept.
pub(crate) const FINISHED_LIFE_MS: i64 = 65 * 60 * 1000;
/// How long a task may stay unfinished without anyone in this process working on it.
pub(crate) const ABANDONED_LIFE_MS: i64 = 24 * 3600 * 1000;
/// Progress is written at most so often.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// A task that this process works on. Cheap to clone.
#[derive(Clone)]
pub struct TaskHandle(Arc<Running>);

struct Running {
    reference: Ref,
    db: Database,
    cancel: CancellationToken,
    written: Mutex<(Instant, f64)>,
}

impl TaskHandle {
    /// Makes the row of a new task.
    pub(crate) async fn start(api: &Arc<Api>, call: &Call, label: &str) -> Result<Self, ApiError> {
        let reference = create(api, label, "").await?;
        let user = call.session.as_ref().map(|session| session.user.clone());
        Ok(api.tasks.track(api, reference, user.unwrap_or_default()))
    }

    /// Returns the task's reference.
    pub fn reference(&self) -> &Ref {
        &self.0.reference
    }

    /// Returns the token that fires when someone cancels the task.
    pub fn cancel_token(&self) -> &CancellationToken {
        &self.0.cancel
    }

    /// Fails with `TASK_CANCELLED` when someone has cancelled the task.
    ///
    /// # Errors
    /// `TASK_CANCELLED`.
    pub fn check_cancelled(&self) -> Result<(), ApiError> {
        if self.0.cancel.is_cancelled() {
            return Err(ApiError::new("TASK_CANCELLED", [self.0.reference.as_str()]));
        }
        Ok(())
    }

    /// Notes how far the task is, 0 to 1. Most calls write nothing: twice a second is enough.
    pub async fn set_progress(&self, progress: f64) {
        let progress = if progress.is_finite() {
            progress.clamp(0.0, 1.0)
        } else {
            0.0
        };
        {
            let mut written = self.0.written.lock();
            if written.0.elapsed() < PROGRESS_EVERY || progress <= written.1 {
                return;
            }
            *written = (Instant::now(), progress);
        }
        let reference = &self.0.reference;
        let written = self
            .0
            .db
            .transact_async(|tx| match tx.row("task", reference) {
                Some(_) => tx.set("task", reference, "progress", Value::Float(progress)),
                None => Ok(()),
            });
        if let Err(error) = written.await {
            tracing::warn!(%error, task = %reference, "progress was not written");
        }
    }

    /// Runs a storage operation that tells how far it is, with its progress and its cancelling
    /// bound to this task.
    pub(crate) async fn watched<T, Fut>(&self, operation: impl FnOnce(Watch) -> Fut) -> T
    where
        Fut: Future<Output = T>,
    {
        let (tell, mut told) = watch::channel(0.0);
        let progress = Arc::new(move |done: f64| {
            tell.send_replace(done);
        });
        let cancel = self.0.cancel.clone();
        let mut operation = std::pin::pin!(operation(Watch { progress, cancel }));
        loop {
            tokio::select! {
                ended = &mut operation => return ended,
                changed = told.changed() => {
                    let done = *told.borrow_and_update();
                    match changed {
                        Ok(()) => self.set_progress(done).await,
                        // Nobody tells any more: only the end is left to wait for.
                        Err(_) => return operation.await,
                    }
                }
            }
        }
    }

    /// Turns the error of a storage operation into `TASK_CANCELLED` of this task, when that is what
    /// ended it.
    pub(crate) fn explain_cancel(
        &self,
        error: StorageError,
        otherwise: impl FnOnce(StorageError) -> ApiError,
    ) -> ApiError {
        match error.kind() {
            StorageErrorKind::Cancelled => {
                ApiError::new("TASK_CANCELLED", [self.0.reference.as_str()])
            }
            _ => otherwise(error),
        }
    }

    /// Runs the operation of this task to its end and notes how it ended. A panic is an
    /// `INTERNAL_ERROR`. The row stays when `keep` says so.
    pub(crate) async fn run(
        self,
        operation: impl Future<Output = Result<Value, ApiError>>,
        keep: bool,
    ) -> Result<Value, ApiError> {
        let ended = AssertUnwindSafe(operation).catch_unwind().await;
        let result = ended.unwrap_or_else(|_| Err(ApiError::internal("the operation panicked")));
        self.finish(&result, keep).await;
        result
    }

    /// Notes how the task ended.
    pub(crate) async fn finish(&self, result: &Result<Value, ApiError>, keep: bool) {
        let reference = &self.0.reference;
        let noted = self.0.db.transact_async(|tx| {
            if tx.row("task", reference).is_none() {
                return Ok(());
            }
            if !keep {
                return tx.remove("task", reference);
            }
            end(tx, reference, result)
        });
        if let Err(error) = noted.await {
            tracing::error!(%error, task = %reference, "the end of a task was not written");
        }
    }
}

fn end(tx: &mut Tx, task: &Ref, result: &Result<Value, ApiError>) -> Result<(), database::Error> {
    let mut set = |field: &str, value: Value| tx.set("task", task, field, value);
    set("finished", Value::DateTime(now_ms()))?;
    match result {
        Ok(value) => {
            let text = match value {
                Value::Null => String::new(),
                value => xmlrpc::encode_value(value),
            };
            set("result", Value::String(text))?;
            set("progress", Value::Float(1.0))?;
            set("status", "success".into())
        }
        Err(error) => {
            let list = error.to_list().into_iter().map(Value::String).collect();
            set("error_info", Value::Set(list))?;
            set("progress", Value::Float(1.0))?;
            let cancelled = error.code == "TASK_CANCELLED";
            set(
                "status",
                if cancelled { "cancelled" } else { "failure" }.into(),
            )
        }
    }
}

/// Makes the row of a new task, and takes the oldest finished ones away where there are too many.
pub(crate) async fn create(api: &Api, label: &str, text: &str) -> Result<Ref, ApiError> {
    let reference = Ref::random();
    let host = api.host();
    api.write(|tx| {
        let host = if tx.row("host", &host).is_some() {
            host
        } else {
            Ref::null()
        };
        trim(tx)?;
        tx.create(
            "task",
            reference.clone(),
            [
                ("uuid", Value::String(Uuid::new_v4().to_string())),
                ("name_label", label.into()),
                ("name_description", text.into()),
                ("created", Value::DateTime(now_ms())),
                ("status", "pending".into()),
                ("type", "<none/>".into()),
                ("resident_on", host.into()),
            ],
        )?;
        Ok(reference)
    })
    .await
}

/// Says whether a task's row tells of an end.
pub(crate) fn is_finished(row: &Row) -> bool {
    !matches!(
        row.field("status").and_then(Value::as_str),
        Some("pending" | "cancelling")
    )
}

fn trim(tx: &mut Tx) -> Result<(), ApiError> {
    let finished_ms = |row: &Row| row.get("finished").as_datetime().unwrap_or_default();
    let rows = tx.rows("task").filter(|row| is_finished(row));
    let mut finished: Vec<_> = rows
        // Of those that ended in the same millisecond the first made is the oldest.
        .map(|row| (finished_ms(row), row.created, row.reference().clone()))
        .collect();
    finished.sort();
    let surplus = finished
        .len()
        .saturating_sub(FINISHED_MAX.saturating_sub(1));
    for (_, _, reference) in finished.into_iter().take(surplus) {
        generic::remove(tx, "task", &reference)?;
    }
    Ok(())
}

struct Owned {
    handle: TaskHandle,
    user: String,
}

/// The tasks that this process works on, by reference, with the account each belongs to.
pub(crate) struct Tasks {
    running: Mutex<HashMap<Ref, Owned>>,
}

impl Tasks {
    /// Cancels in the database what a former run left unfinished.
    pub(crate) async fn recover(db: &Database) -> Result<Self, database::Error> {
        db.transact_async(|tx| {
            let rows = tx.rows("task").filter(|row| !is_finished(row));
            let left: Vec<_> = rows.map(|row| row.reference().clone()).collect();
            for task in left {
                let cancelled = ApiError::new("TASK_CANCELLED", [task.as_str()]);
                end(tx, &task, &Err(cancelled))?;
            }
            Ok::<_, database::Error>(())
        })
        .await?;
        Ok(Self {
            running: Mutex::new(HashMap::new()),
        })
    }

    /// Notes that this process works on a task whose row exists.
    pub(crate) fn track(&self, api: &Api, reference: Ref, user: String) -> TaskHandle {
        let handle = TaskHandle(Arc::new(Running {
            reference: reference.clone(),
            db: api.db.clone(),
            cancel: CancellationToken::new(),
            written: Mutex::new((Instant::now(), 0.0)),
        }));
        let mut running = self.running.lock();
        // Whoever worked on a task holds its handle; the table's own does not count.
        running.retain(|_, owned| Arc::strong_count(&owned.handle.0) > 1);
        running.insert(
            reference,
            Owned {
                handle: handle.clone(),
                user,
            },
        );
        handle
    }

    /// Finds the task's token and the account it belongs to, while this process works on it.
    pub(crate) fn find(&self, task: &Ref) -> Option<(CancellationToken, String)> {
        let running = self.running.lock();
        let owned = running.get(task)?;
        let live = Arc::strong_count(&owned.handle.0) > 1;
        live.then(|| (owned.handle.0.cancel.clone(), owned.user.clone()))
    }

    /// Asks every running task to end.
    pub(crate) fn cancel_all(&self) {
        self.running
            .lock()
            .values()
            .for_each(|owned| owned.handle.0.cancel.cancel());
    }
}

/// Takes finished tasks away that are old, and ends those that nobody finishes.
pub(crate) async fn sweep(api: &Api, now_ms: i64) -> Result<(), ApiError> {
    api.write(|tx| {
        let age = |row: &Row, field: &str| {
            now_ms.saturating_sub(row.get(field).as_datetime().unwrap_or_default())
        };
        let rows: Vec<_> = tx.rows("task").cloned().collect();
        for row in rows {
            let reference = row.reference();
            if is_finished(&row) {
                if age(&row, "finished") > FINISHED_LIFE_MS {
                    generic::remove(tx, "task", reference)?;
                }
            } else if age(&row, "created") > ABANDONED_LIFE_MS
                && api.tasks.find(reference).is_none()
            {
                generic::remove(tx, "task", reference)?;
            }
        }
        Ok(())
    })
    .await
}

//! The dispatcher: everything that is true of every call, whatever carried it here.
//!
//! Order of checks: method known, arity, session, role, types, references. Then the message runs:
//! generic ones at once, explicit ones in a task of the runtime, so that a caller who leaves does not
//! stop them half-way.

use crate::coerce::coerce;
use crate::datetime::now_ms;
use crate::error::ApiError;
use crate::generic;
use crate::methods::{Kind, Method, MethodTable, Pace};
use crate::model::{Model, Role, Type};
use crate::services::Services;
use crate::session::{Session, Sessions};
use crate::task::{TaskHandle, Tasks};
use database::{Database, Ref, Row, Snapshot, Value};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use units::{HostUuid, RequestId};

/// How long calls may go on when the interface stops, before they are asked to end.
const GRACE: Duration = Duration::from_secs(20);
/// How often old tasks are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(300);

/// What the administrator decides about the interface.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// This host.
    pub host_uuid: HostUuid,
    /// Its name, the `name_label` and `hostname` of its record.
    pub hostname: String,
    /// Where clients reach it: an address without port.
    pub address: String,
    /// Where `VM.PV_kernel` and `VM.PV_ramdisk` may lie. Whoever makes VMs can have a guest read
    /// them, so nothing else should be there.
    pub guest_kernel_dirs: Vec<PathBuf>,
    /// The version of this program, part of `host.software_version`.
    pub version: String,
}

/// Where a call comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Over the network.
    Remote(SocketAddr),
    /// Over the socket that only root of this host opens.
    LocalRoot,
    /// From the daemon itself.
    Internal,
}

/// Who calls, in which session.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The session, absent for calls that need none (`session.login_with_password`) and for the
    /// daemon's own, which it may do without.
    pub session: Option<Ref>,
    /// Follows the call through the logs of every process.
    pub request_id: RequestId,
    /// Where it comes from.
    pub origin: Origin,
}

impl Caller {
    /// A caller without a session yet, under a fresh request id.
    pub fn new(origin: Origin) -> Self {
        Self {
            session: None,
            request_id: RequestId::random(),
            origin,
        }
    }

    /// The same caller in a session.
    pub fn in_session(mut self, session: Ref) -> Self {
        self.session = Some(session);
        self
    }
}

/// The interface of one host.
pub struct Api {
    pub(crate) model: &'static Model,
    pub(crate) db: Database,
    pub(crate) config: ApiConfig,
    pub(crate) services: Services,
    pub(crate) sessions: Sessions,
    pub(crate) tasks: Tasks,
    methods: MethodTable,
    work: TaskTracker,
    stop: CancellationToken,
}

impl Api {
    /// Makes the interface over a database of [`Model::database_schema`].
    ///
    /// Cancels tasks that a former run left unfinished, makes the records every host has, and in the
    /// background brings the records of SRs and VMs up to date with what is there.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub async fn open(
        db: Database,
        config: ApiConfig,
        services: Services,
    ) -> Result<Arc<Self>, ApiError> {
        let model = Model::shared();
        let api = Arc::new(Self {
            model,
            sessions: Sessions::load(&db)?,
            tasks: Tasks::recover(&db).await?,
            methods: MethodTable::new(model),
            db,
            config,
            services,
            work: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        api.make_roles().await?;
        api.make_host().await?;
        api.make_drivers().await?;
        api.sweep_in_background();
        api.start_following();
        Ok(api)
    }

    /// Sends a message: `VM.start`, `Async.VM.start`, `VM.get_record`, `system.listMethods`.
    ///
    /// `params` are positional and do not contain the session. The result is what the message
    /// answers, [`Value::Null`] for nothing; an `Async.` message answers the task.
    ///
    /// # Errors
    /// What the message is known for, and what is true of every call: `MESSAGE_METHOD_UNKNOWN`,
    /// `MESSAGE_PARAMETER_COUNT_MISMATCH`, `SESSION_INVALID`, `RBAC_PERMISSION_DENIED`,
    /// `FIELD_TYPE_ERROR`, `HANDLE_INVALID`.
    ///
    /// # Cancel safety
    /// Once a message runs it runs to its end; dropping the future only stops waiting for it.
    pub async fn call(
        self: &Arc<Self>,
        caller: &Caller,
        method: &str,
        params: Vec<Value>,
    ) -> Result<Value, ApiError> {
        let span = tracing::info_span!("api", request_id = %caller.request_id, method);
        let result = self
            .dispatch(caller, method, params)
            .instrument(span.clone())
            .await;
        if let Err(error) = &result {
            tracing::debug!(parent: &span, %error, "call failed");
        }
        result
    }

    /// Sends a message as the wire has it: the session is the first parameter, where the method
    /// takes one.
    ///
    /// # Errors
    /// As [`Self::call`].
    ///
    /// # Cancel safety
    /// As [`Self::call`].
    pub async fn call_wire(
        self: &Arc<Self>,
        caller: Caller,
        method: &str,
        mut params: Vec<Value>,
    ) -> Result<Value, ApiError> {
        let needs_session = self
            .methods
            .find(method)
            .is_none_or(|found| found.needs_session);
        if !needs_session || method == "system.listMethods" {
            return self.call(&caller, method, params).await;
        }
        let session = if params.is_empty() {
            None
        } else {
            Some(params.remove(0))
        };
        let session = match session {
            Some(Value::String(text)) => Some(Ref::from(text)),
            Some(Value::Ref(reference)) => Some(reference),
            // What a client that has logged out sends.
            Some(Value::Null) | None => None,
            Some(_) => return Err(ApiError::field_type("session_id")),
        };
        self.call(&Caller { session, ..caller }, method, params)
            .await
    }

    /// Stops taking calls and waits for those that run; what takes long is cancelled after a while.
    pub async fn drain(&self) {
        self.stop.cancel();
        self.work.close();
        if tokio::time::timeout(GRACE, self.work.wait()).await.is_err() {
            self.tasks.cancel_all();
            self.work.wait().await;
        }
    }

    /// The token that fires when the interface stops; blocking calls end on it.
    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Runs something of the daemon's own beside the calls; [`Self::drain`] waits for it.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.work.spawn(work);
    }

    /// This host's reference, null before it has a row.
    pub(crate) fn host(&self) -> Ref {
        let row = self
            .snapshot()
            .by_uuid("host", &self.config.host_uuid.to_string());
        row.map_or_else(Ref::null, |row| row.reference().clone())
    }

    /// The permissions of a role: the names of the messages it may send.
    pub(crate) fn permissions_of(&self, role: Role) -> Vec<String> {
        self.methods.permissions_of(role)
    }

    /// The least role that may send a message.
    pub(crate) fn role_of(&self, method: &str) -> Option<Role> {
        self.methods.find(method).map(|method| method.role)
    }

    /// Every method, served or not.
    #[cfg(test)]
    pub(crate) fn all_methods(&self) -> impl Iterator<Item = &Method> {
        self.methods.all()
    }

    fn sweep_in_background(self: &Arc<Self>) {
        let api = self.clone();
        self.spawn(async move {
            let mut timer = tokio::time::interval(SWEEP_EVERY);
            loop {
                tokio::select! {
                    _ = timer.tick() => {}
                    () = api.stop.cancelled() => return,
                }
                if let Err(error) = crate::task::sweep(&api, now_ms()).await {
                    tracing::warn!(%error, "old tasks were not taken away");
                }
            }
        });
    }

    /// The database, for readers that follow its change feed.
    pub fn database(&self) -> &Database {
        &self.db
    }

    /// Everything as of now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.db.snapshot()
    }

    /// Returns the method names that [`Self::call`] takes, sorted.
    pub(crate) fn method_names(&self) -> impl Iterator<Item = &str> {
        self.methods.names()
    }

    async fn dispatch(
        self: &Arc<Self>,
        caller: &Caller,
        name: &str,
        params: Vec<Value>,
    ) -> Result<Value, ApiError> {
        if self.stop.is_cancelled() {
            return Err(ApiError::internal("the daemon is stopping"));
        }
        if name == "system.listMethods" {
            return Ok(Value::Set(self.method_names().map(Value::from).collect()));
        }
        let (is_async, bare) = match name.strip_prefix("Async.") {
            Some(bare) => (true, bare),
            None => (false, name),
        };
        let unknown = || ApiError::new("MESSAGE_METHOD_UNKNOWN", [name]);
        let method = self.methods.find(bare).ok_or_else(unknown)?;
        if is_async && !method.may_be_async() {
            return Err(unknown());
        }
        check_arity(method, params.len())?;
        if method.is_removed() {
            return Err(ApiError::new("MESSAGE_REMOVED", []));
        }
        let session = match method.needs_session {
            true if caller.session.is_none() && caller.origin == Origin::Internal => {
                Some(self.sessions.of_daemon())
            }
            true => Some(
                self.sessions
                    .check(&self.db, caller.session.as_ref())
                    .await?,
            ),
            false => None,
        };
        if let Some(session) = &session {
            check_role(method, session)?;
            if method.role > Role::ReadOnly {
                tracing::info!(target: "audit", user = session.user, "permitted");
            }
        }
        let args = self.arguments(method, params)?;
        let call = Call {
            api: self.clone(),
            caller: caller.clone(),
            session,
            args,
            task: None,
        };
        self.run(method, call, is_async).await
    }

    fn arguments(
        &self,
        method: &Method,
        params: Vec<Value>,
    ) -> Result<BTreeMap<&'static str, Value>, ApiError> {
        let snapshot = self.snapshot();
        let mut args = BTreeMap::new();
        for (param, value) in method.params.iter().zip(params) {
            let value = coerce(self.model, &param.ty, value, param.name)?;
            if let (Type::Ref(class), Value::Ref(reference)) = (&param.ty, &value)
                && !reference.is_null()
                && snapshot.row(class, reference).is_none()
            {
                return Err(ApiError::handle_invalid(class, reference));
            }
            args.insert(param.name, value);
        }
        Ok(args)
    }

    async fn run(
        self: &Arc<Self>,
        method: &Method,
        mut call: Call,
        is_async: bool,
    ) -> Result<Value, ApiError> {
        let (handler, pace) = match &method.kind {
            Kind::Generic(message) => return generic::run(message, call).await,
            Kind::Explicit(None) => {
                return Err(ApiError::new("NOT_IMPLEMENTED", [&method.full_name()]));
            }
            Kind::Explicit(Some(entry)) => (entry.handler, entry.pace),
        };
        if pace == Pace::Quick && !is_async {
            return handler(call).await;
        }
        let name = method.full_name();
        let label = if is_async {
            format!("Async.{name}")
        } else {
            name
        };
        let (begun, begins) = oneshot::channel();
        let api = self.clone();
        let running = self.work.spawn(
            async move {
                let task = TaskHandle::start(&api, &call, &label).await?;
                // Nobody listens to a call that is not asynchronous, or any more.
                drop(begun.send(task.reference().clone()));
                call.task = Some(task.clone());
                task.run(handler(call), is_async).await
            }
            .in_current_span(),
        );
        if is_async && let Ok(task) = begins.await {
            return Ok(Value::Ref(task));
        }
        running
            .await
            .unwrap_or_else(|_| Err(ApiError::internal("the call did not end")))
    }
}

fn check_arity(method: &Method, received: usize) -> Result<(), ApiError> {
    let expected = method.params.len();
    let required = method.params.iter().filter(|param| !param.optional).count();
    if (required..=expected).contains(&received) {
        return Ok(());
    }
    let (expected, received) = (expected.to_string(), received.to_string());
    let name = method.full_name();
    Err(ApiError::new(
        "MESSAGE_PARAMETER_COUNT_MISMATCH",
        [&name, &expected, &received],
    ))
}

fn check_role(method: &Method, session: &Session) -> Result<(), ApiError> {
    if session.role >= method.role {
        return Ok(());
    }
    let message = format!(
        "{} needs the role {}",
        method.full_name(),
        method.role.name()
    );
    Err(ApiError::new(
        "RBAC_PERMISSION_DENIED",
        [&method.full_name(), &message],
    ))
}

/// One message being handled: checked arguments, and what a handler needs around them.
pub(crate) struct Call {
    pub(crate) api: Arc<Api>,
    pub(crate) caller: Caller,
    pub(crate) session: Option<Arc<Session>>,
    pub(crate) args: BTreeMap<&'static str, Value>,
    pub(crate) task: Option<TaskHandle>,
}

impl Call {
    /// The session; every method but the logins has one.
    pub(crate) fn session(&self) -> Result<&Arc<Session>, ApiError> {
        self.session
            .as_ref()
            .ok_or_else(|| ApiError::internal("a call without a session"))
    }

    /// An argument that was given.
    pub(crate) fn arg(&self, name: &str) -> Option<&Value> {
        self.args.get(name)
    }

    fn required<'a, T>(
        &'a self,
        name: &str,
        as_type: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T, ApiError> {
        self.arg(name)
            .and_then(as_type)
            .ok_or_else(|| ApiError::field_type(name))
    }

    /// A text, or an enum.
    pub(crate) fn text(&self, name: &str) -> Result<&str, ApiError> {
        self.required(name, Value::as_str)
    }

    /// A number.
    pub(crate) fn int(&self, name: &str) -> Result<i64, ApiError> {
        self.required(name, Value::as_int)
    }

    /// A number with a fraction.
    pub(crate) fn float(&self, name: &str) -> Result<f64, ApiError> {
        self.required(name, Value::as_float)
    }

    /// A truth.
    pub(crate) fn truth(&self, name: &str) -> Result<bool, ApiError> {
        self.required(name, Value::as_bool)
    }

    /// A map from text to text; empty when it was left out.
    pub(crate) fn strings(&self, name: &str) -> BTreeMap<String, String> {
        let entries = self.arg(name).and_then(Value::as_map).into_iter().flatten();
        entries
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect()
    }

    /// A list of texts; empty when it was left out.
    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        let items = self.arg(name).and_then(Value::as_set).unwrap_or_default();
        items
            .iter()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect()
    }

    /// A reference, which may be null; null when it was left out.
    pub(crate) fn reference(&self, name: &str) -> Ref {
        self.arg(name)
            .and_then(Value::as_ref)
            .cloned()
            .unwrap_or_else(Ref::null)
    }

    /// The object that an argument refers to, as of now.
    pub(crate) fn row(&self, class: &str, name: &str) -> Result<Arc<Row>, ApiError> {
        let reference = self.reference(name);
        let row = self.api.snapshot().row(class, &reference);
        row.ok_or_else(|| ApiError::handle_invalid(class, &reference))
    }
}

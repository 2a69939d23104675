//! Who asks, for which VDI, in which format, under which task.

use super::Format;
use crate::api::{Api, Caller};
use crate::error::ApiError;
use crate::model::Role;
use crate::services::About;
use crate::session::{Session, is_trusted};
use crate::task::{self, TaskHandle};
use base64::Engine;
use database::{Ref, Row, Value};
use hyper::Request;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, TRANSFER_ENCODING};
use std::collections::BTreeMap;
use std::sync::Arc;
use storage::{CallContext, StorageManager};
use units::{SrUuid, VdiUuid};

/// A transfer that was checked and may begin.
pub(super) struct Ticket {
    pub(super) task: TaskHandle,
    pub(super) format: Format,
    pub(super) storage: StorageManager,
    pub(super) ctx: CallContext,
    pub(super) about: About,
    pub(super) vdi_ref: Ref,
    pub(super) sr: SrUuid,
    pub(super) vdi: VdiUuid,
    pub(super) virtual_bytes: u64,
    pub(super) request_id: units::RequestId,
    keep_task: bool,
}

/// Whether a PUT only asks if it would be taken: no task, no bytes.
pub(super) fn is_probe<B>(request: &Request<B>) -> bool {
    let empty = request
        .headers()
        .get(CONTENT_LENGTH)
        .is_none_or(|length| length == "0");
    let chunked = request.headers().contains_key(TRANSFER_ENCODING);
    empty && !chunked && !parameters(request).contains_key("task_id")
}

impl Ticket {
    /// Checks session, role, VDI and format, and binds the transfer to its task: the client's own
    /// when it names one, otherwise a new one that goes when the transfer ends.
    pub(super) async fn check<B>(
        api: &Arc<Api>,
        caller: Caller,
        request: &Request<B>,
        label: &str,
    ) -> Result<Self, ApiError> {
        let parameters = parameters(request);
        let session = session_of(api, &caller, request, &parameters).await?;
        if session.role < Role::VmAdmin {
            let message = "a transfer needs the role vm-admin";
            return Err(ApiError::new("RBAC_PERMISSION_DENIED", [label, message]));
        }
        let format = match parameters.get("format").map(String::as_str) {
            None | Some("raw") => Format::Raw,
            Some("vhd") => Format::Vhd,
            Some(other) => return Err(ApiError::new("INVALID_VALUE", ["format", other])),
        };
        if let Some(base) = parameters.get("base") {
            return Err(ApiError::new("INVALID_VALUE", ["base", base]));
        }
        let name = parameters
            .get("vdi")
            .map(String::as_str)
            .unwrap_or_default();
        let snapshot = api.snapshot();
        let row = snapshot
            .row("VDI", &Ref::from(name))
            .or_else(|| snapshot.by_uuid("VDI", name))
            .ok_or_else(|| ApiError::handle_invalid("VDI", &Ref::from(name)))?;
        let sr_ref = row.get("SR").as_ref().cloned().unwrap_or_else(Ref::null);
        let sr = snapshot
            .row("SR", &sr_ref)
            .ok_or_else(|| ApiError::handle_invalid("SR", &sr_ref))?;
        let (task, keep_task) = task_of(api, &session, &parameters, label).await?;
        Ok(Self {
            task,
            keep_task,
            format,
            storage: api.services.storage.clone(),
            ctx: CallContext::new(caller.request_id.clone()),
            about: About::vdi(&sr_ref, row.reference()),
            vdi_ref: row.reference().clone(),
            sr: uuid_of(&sr)?,
            vdi: uuid_of(&row)?,
            virtual_bytes: row
                .get("virtual_size")
                .as_int()
                .and_then(|n| n.try_into().ok())
                .unwrap_or(0),
            request_id: caller.request_id,
        })
    }

    /// Notes how the transfer ended; the last thing that happens to it.
    pub(super) async fn finish(&self, result: &Result<(), ApiError>) {
        if let Err(error) = result {
            tracing::warn!(request_id = %self.request_id, vdi = %self.vdi, %error, "transfer failed");
        }
        let result = result.clone().map(|()| Value::Null);
        self.task.finish(&result, self.keep_task).await;
    }
}

fn uuid_of<T: std::str::FromStr>(row: &Row) -> Result<T, ApiError> {
    row.uuid()
        .parse()
        .map_err(|_| ApiError::internal(format!("{} is no uuid", row.uuid())))
}

async fn session_of<B>(
    api: &Arc<Api>,
    caller: &Caller,
    request: &Request<B>,
    parameters: &BTreeMap<String, String>,
) -> Result<Arc<Session>, ApiError> {
    let given = parameters
        .get("session_id")
        .cloned()
        .or_else(|| cookie(request, "session_id"));
    if let Some(given) = given {
        return api
            .sessions
            .check(&api.db, Some(&Ref::from(given.as_str())))
            .await;
    }
    if is_trusted(caller.origin) {
        return Ok(api.sessions.of_daemon());
    }
    let Some((user, password)) = basic(request) else {
        return api.sessions.check(&api.db, None).await;
    };
    let params = [user, password, "1.0".to_owned(), "transfer".to_owned()]
        .map(Value::from)
        .to_vec();
    let opened = api
        .call(caller, "session.login_with_password", params)
        .await?;
    let reference = opened.as_ref().cloned().unwrap_or_else(Ref::null);
    let session = api.sessions.check(&api.db, Some(&reference)).await;
    // The session object stays valid for this request; nobody else needs it.
    api.sessions.close(&api.db, &reference).await?;
    session
}

async fn task_of(
    api: &Arc<Api>,
    session: &Session,
    parameters: &BTreeMap<String, String>,
    label: &str,
) -> Result<(TaskHandle, bool), ApiError> {
    let (reference, keep) = match parameters.get("task_id") {
        Some(given) => {
            let snapshot = api.snapshot();
            let row = snapshot
                .row("task", &Ref::from(given.as_str()))
                .or_else(|| snapshot.by_uuid("task", given))
                .ok_or_else(|| ApiError::handle_invalid("task", &Ref::from(given.as_str())))?;
            (row.reference().clone(), true)
        }
        None => (task::create(api, label, "").await?, false),
    };
    Ok((api.tasks.track(api, reference, session.user.clone()), keep))
}

/// The query of a request. Of two parameters with one name the last counts.
fn parameters<B>(request: &Request<B>) -> BTreeMap<String, String> {
    let query = request.uri().query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes())
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect()
}

fn cookie<B>(request: &Request<B>, name: &str) -> Option<String> {
    let cookies = request.headers().get(COOKIE)?.to_str().ok()?;
    let mut pairs = cookies
        .split(';')
        .filter_map(|pair| pair.trim().split_once('='));
    pairs
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value.to_owned())
}

fn basic<B>(request: &Request<B>) -> Option<(String, String)> {
    let value = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    let encoded = value.strip_prefix("Basic ")?.trim();
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let builder = Request::builder().method("PUT").uri(uri);
        let with = headers.iter().fold(builder, |builder, (name, value)| {
            builder.header(*name, *value)
        });
        with.body(()).unwrap()
    }

    #[test]
    fn an_empty_put_without_a_task_is_a_probe_and_nothing_else_is() {
        let uri = "/import_raw_vdi/?session_id=OpaqueRef:s&vdi=v&format=raw";
        let with_task = format!("{uri}&task_id=OpaqueRef:t");
        for (uri, headers, probe) in [
            (uri, vec![], true),
            (uri, vec![("content-length", "0")], true),
            (uri, vec![("content-length", "512")], false),
            (uri, vec![("transfer-encoding", "chunked")], false),
            (with_task.as_str(), vec![("content-length", "0")], false),
        ] {
            assert_eq!(is_probe(&put(uri, &headers)), probe, "{uri} {headers:?}");
        }
    }

    #[test]
    fn credentials_are_found_where_clients_put_them() {
        let request = put(
            "/x?session_id=OpaqueRef%3Aabc&vdi=v",
            &[
                ("cookie", "a=1; session_id=OpaqueRef:c"),
                ("authorization", "Basic cm9vdDpwOnc="),
            ],
        );
        assert_eq!(parameters(&request)["session_id"], "OpaqueRef:abc");
        assert_eq!(cookie(&request, "session_id").unwrap(), "OpaqueRef:c");
        assert_eq!(
            basic(&request).unwrap(),
            ("root".to_owned(), "p:w".to_owned())
        );
        assert_eq!(basic(&put("/x", &[("authorization", "Basic !!")])), None);
    }
}

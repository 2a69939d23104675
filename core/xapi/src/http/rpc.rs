//! Calls in the body of a POST.

use super::{Body, respond};
use crate::api::{Api, Caller};
use crate::wire::{jsonrpc, xmlrpc};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::{Request, Response, StatusCode};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Bytes that a call may have.
const BODY_BYTES_MAX: usize = 8 << 20;
/// Time in which they must come.
const BODY_TIME_MAX: Duration = Duration::from_secs(60);

/// Answers an XML-RPC call. The status is 200 also for faults, as the protocol wants it.
pub(super) async fn xml(
    api: &Arc<Api>,
    caller: Caller,
    request: Request<Incoming>,
) -> Response<Body> {
    let body = match read(request).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let text = match xmlrpc::decode(&body) {
        Ok(call) => {
            let result = api.call_wire(caller, &call.method, call.params).await;
            xmlrpc::encode(&result)
        }
        Err(fault) => xmlrpc::encode_fault(&fault),
    };
    respond(StatusCode::OK, "text/xml", text)
}

/// Answers a JSON-RPC call.
pub(super) async fn json(
    api: &Arc<Api>,
    caller: Caller,
    request: Request<Incoming>,
) -> Response<Body> {
    let body = match read(request).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let text = match jsonrpc::decode(&body) {
        Ok((envelope, call)) => {
            let result = api.call_wire(caller, &call.method, call.params).await;
            jsonrpc::encode(&envelope, &result)
        }
        Err(fault) => jsonrpc::encode_fault(&fault),
    };
    respond(StatusCode::OK, "application/json", text)
}

async fn read(request: Request<Incoming>) -> Result<Bytes, Response<Body>> {
    let too_large = || {
        respond(
            StatusCode::PAYLOAD_TOO_LARGE,
            "text/plain",
            "the call is too large\n",
        )
    };
    // Said beforehand, it need not be read first.
    if request.body().size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    match timeout(BODY_TIME_MAX, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(respond(
            StatusCode::BAD_REQUEST,
            "text/plain",
            "the call broke off\n",
        )),
        Err(_) => Err(respond(
            StatusCode::REQUEST_TIMEOUT,
            "text/plain",
            "the call is too slow\n",
        )),
    }
}

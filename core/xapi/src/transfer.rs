//! Disk contents over HTTP: `GET /export_raw_vdi` and `PUT /import_raw_vdi`.
//!
//! ```text
//!  PUT ──> ticket: who, which VDI, which task ──> incoming ──> NBD of a datapath opened read-write
//!  GET ──> ticket ──> NBD of a datapath opened read-only ──> outgoing ──> response body
//! ```
//!
//! * The task ends after the datapath is closed: a client that sees it end may destroy the VDI.
//! * A VHD that comes in is never parsed here: it is stored as it comes, the data path opens and
//!   checks it, and its content is copied over. A VHD that goes out is written by [`vhd_stream`].
//! * A client that leaves ends its transfer; what it had sent stays in the VDI.

mod incoming;
mod outgoing;
mod ticket;
mod vhd_stream;

use crate::api::{Api, Caller};
use crate::error::ApiError;
use crate::http::{Body, respond};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response, StatusCode, Version};
use std::io;
use std::sync::Arc;
use ticket::Ticket;
use tokio::task::JoinHandle;

/// Bytes moved by one request to the data path.
const CHUNK_BYTES: usize = 1 << 20;

/// Requests to the data path that one transfer has in flight.
const IN_FLIGHT_MAX: usize = 4;

/// What the bytes on the wire are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// The disk itself.
    Raw,
    /// A dynamic VHD.
    Vhd,
}

/// Sends a VDI's content.
pub(crate) async fn export(
    api: &Arc<Api>,
    caller: Caller,
    request: Request<Incoming>,
) -> Response<Body> {
    match Ticket::check(api, caller, &request, "VDI export").await {
        Ok(ticket) => outgoing::send(ticket).await,
        Err(error) => refuse(&error),
    }
}

/// Takes a VDI's content.
pub(crate) async fn import(
    api: &Arc<Api>,
    caller: Caller,
    request: Request<Incoming>,
) -> Response<Body> {
    if ticket::is_probe(&request) {
        // Clients ask first, with nothing in hand, whether they are to go to another host.
        return respond(StatusCode::OK, "text/plain", "");
    }
    let ticket = match Ticket::check(api, caller, &request, "VDI import").await {
        Ok(ticket) => ticket,
        Err(error) => return refuse(&error),
    };
    if request.version() == Version::HTTP_10 {
        // The existing `xe` sends its head and then waits for the answer before it sends a byte.
        // It learns from the task how the transfer went.
        return answer_first(tokio::spawn(incoming::take(ticket, request)));
    }
    match incoming::take(ticket, request).await {
        Ok(()) => respond(StatusCode::OK, "text/plain", ""),
        Err(error) => refuse(&error),
    }
}

/// A 200 at once, whose empty body ends when the work does.
fn answer_first(work: JoinHandle<Result<(), ApiError>>) -> Response<Body> {
    let frames = stream::unfold(work, |work| async move {
        drop(work.await);
        None::<(io::Result<Frame<Bytes>>, _)>
    });
    Response::new(StreamBody::new(frames).boxed_unsync())
}

/// The answer to a transfer that did not work: the status says who is to blame, the text has the
/// error's code and parameters.
fn refuse(error: &ApiError) -> Response<Body> {
    let status = match error.code() {
        "SESSION_INVALID" | "SESSION_AUTHENTICATION_FAILED" => StatusCode::UNAUTHORIZED,
        "RBAC_PERMISSION_DENIED" => StatusCode::FORBIDDEN,
        "HANDLE_INVALID" | "UUID_INVALID" => StatusCode::NOT_FOUND,
        "INVALID_VALUE" | "FIELD_TYPE_ERROR" => StatusCode::BAD_REQUEST,
        "VDI_IN_USE" | "OTHER_OPERATION_IN_PROGRESS" => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    respond(
        status,
        "text/plain",
        format!("{}\n", error.to_list().join(" ")),
    )
}

/// An error of the data path while bytes were moved.
fn moving_failed(what: &str, error: &datapath::nbd::Error) -> ApiError {
    match error.kind() {
        datapath::nbd::ErrorKind::NoSpace => ApiError::new("SR_FULL", [what, ""]),
        _ => ApiError::new(
            "SR_BACKEND_FAILURE",
            ["failed", "", &format!("{what}: {error}")],
        ),
    }
}

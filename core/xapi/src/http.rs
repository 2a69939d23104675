//! The HTTP server: listeners, connections, and which path goes to whom.
//!
//! ```text
//!  accept ─> (TLS) ─> first line ─┬─ POST /cli ─────> the connection itself, for the CLI protocol
//!                                 └─ anything else ─> HTTP/1, keep-alive, one of the paths below
//! ```
//!
//! Limits: connections, time to send a head, size of a head and of a call's body, time to send it.

mod connection;
mod listener;
mod rpc;
mod tls;

pub(crate) use connection::{ByteStream, RawRequest};
pub use listener::Listener;
pub use tls::TlsError;

use crate::api::{Api, Caller, Origin};
use crate::transfer;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// Connections at one time over the network.
const REMOTE_MAX: usize = 800;
/// Connections at one time over the local socket.
const LOCAL_MAX: usize = 1024;

/// What a response carries.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// The server. Stops with the [`Api`] it serves.
pub struct HttpServer {
    connections: TaskTracker,
}

impl HttpServer {
    /// Serves the interface on every listener until [`Api::drain`] is called.
    pub fn serve(listeners: Vec<Listener>, api: &Arc<Api>) -> Self {
        let connections = TaskTracker::new();
        let remote = Arc::new(Semaphore::new(REMOTE_MAX));
        let local = Arc::new(Semaphore::new(LOCAL_MAX));
        for listener in listeners {
            let permits = if listener.is_local() { &local } else { &remote };
            let accepting =
                listener::accept(listener, api.clone(), permits.clone(), connections.clone());
            connections.spawn(accepting);
        }
        connections.close();
        Self { connections }
    }

    /// Waits until the last connection has ended, after [`Api::drain`].
    pub async fn ended(&self) {
        self.connections.wait().await;
    }
}

/// Answers one request.
pub(crate) async fn answer(
    api: &Arc<Api>,
    origin: Origin,
    request: Request<Incoming>,
) -> Response<Body> {
    let caller = Caller::new(origin);
    let path = request.uri().path().to_owned();
    match (request.method().clone(), path.trim_end_matches('/')) {
        (Method::POST, "" | "/RPC2" | "/xmlrpc") => rpc::xml(api, caller, request).await,
        (Method::POST, "/json" | "/jsonrpc") => rpc::json(api, caller, request).await,
        (Method::GET, "/export_raw_vdi") => transfer::export(api, caller, request).await,
        (Method::PUT, "/import_raw_vdi") => transfer::import(api, caller, request).await,
        (Method::OPTIONS, _) => preflight(),
        (Method::GET | Method::HEAD, "") => {
            let text = format!("Xylem {} on {}\n", api.config.version, api.config.hostname);
            respond(StatusCode::OK, "text/plain", text)
        }
        (_, "" | "/RPC2" | "/xmlrpc" | "/json" | "/jsonrpc") => respond(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "the method is not taken here\n",
        ),
        _ => respond(
            StatusCode::NOT_FOUND,
            "text/plain",
            "there is nothing here\n",
        ),
    }
}

/// Makes a response that is all there at once.
pub(crate) fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Body> {
    let body = Full::new(body.into())
        .map_err(|never| match never {})
        .boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    // Browsers ask; a call needs a session, so nothing is given away by answering anyone.
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        HeaderValue::from_static("*"),
    );
    response
}

fn preflight() -> Response<Body> {
    let mut response = respond(StatusCode::OK, "text/plain", "");
    let headers = response.headers_mut();
    for (name, value) in [
        (
            header::ACCESS_CONTROL_ALLOW_METHODS,
            "GET, POST, PUT, OPTIONS",
        ),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "Content-Type, X-Requested-With",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, "86400"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

//! XenAPI: model table, wire codecs, sessions, roles, tasks, events, transfers, the CLI server.
//!
//! ```text
//!  XML-RPC ─┐                    ┌─ generic messages (get_, set_, add_to_, create, ...)
//!  JSON-RPC ┼─> Api::call ───────┤        from the model table, on the database
//!  /cli ────┘   method table:    └─ explicit messages: class/*.rs, over storage and xenops
//!               arity, types, session, role, task
//! ```
//!
//! * The [`Model`] is the only description of the interface; nothing else lists fields or roles.
//! * A call that may take long runs as a task of its own: dropping the future that waits for it, as
//!   a leaving client does, does not stop it half-way. [`Task`] rows, `current_operations` and
//!   `allowed_operations` follow from that.
//! * Events are the database's change feed, read again for each `event.from`; nothing is queued
//!   per client.
//! * Every failure is an [`ApiError`], whose code is part of the interface.
//!
//! [`Task`]: TaskHandle

#![forbid(unsafe_code)]

mod api;
mod class;
mod cli;
mod coerce;
pub mod datetime;
mod error;
mod event;
mod filter;
mod follow;
mod generic;
mod http;
mod methods;
pub mod model;
mod services;
mod session;
mod task;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transfer;
mod view;
pub mod wire;

pub use api::{Api, ApiConfig, Caller, Origin};
pub use error::ApiError;
pub use http::{HttpServer, Listener, TlsError};
pub use model::{Model, Role};
pub use services::Services;
pub use session::password::SetPasswordError;
pub use task::TaskHandle;
pub use wire::jsonrpc::wire_json;

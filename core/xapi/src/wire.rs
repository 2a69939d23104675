//! Requests and responses as bytes. Knows no class and no message: values in, values out.
//!
//! A request is a method and positional values; a response is a value, an API error, or, when the
//! bytes were no request at all, a protocol fault.

pub mod jsonrpc;
pub mod xmlrpc;

use database::Value;

/// A call as it arrived, before the model has looked at it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The method, e.g. `VM.get_all`.
    pub method: String,
    /// Every parameter, the session first where there is one.
    pub params: Vec<Value>,
}

/// Levels of nesting a request may have.
pub const DEPTH_MAX: usize = 64;
/// Values a request may hold in all.
pub const VALUES_MAX: usize = 200_000;

/// Why bytes are not a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not well formed, or not of the protocol's shape.
    #[error("not a request: {0}")]
    Syntax(String),
    /// Nested too deep or holding too many values.
    #[error("request is too large: {0}")]
    TooLarge(&'static str),
}

impl Malformed {
    /// The fault code of the XML-RPC fault interoperability convention and of JSON-RPC 2.0.
    pub fn fault_code(&self) -> i64 {
        match self {
            Malformed::Syntax(_) => -32700,
            Malformed::TooLarge(_) => -32600,
        }
    }
}

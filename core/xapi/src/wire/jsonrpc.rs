//! JSON-RPC 1.0 and 2.0 as XenAPI clients speak it.
//!
//! Integers are numbers here. In 2.0 `error.message` is the code and `error.data` its parameters;
//! in 1.0 the error is one list of both. Batches are not taken.

use super::{DEPTH_MAX, Malformed, Request, VALUES_MAX};
use crate::datetime;
use crate::error::ApiError;
use database::Value;
use serde_json::{Number, Value as Json, json};

/// Which of the two protocols a request came in, and what it calls itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    is_v2: bool,
    id: Json,
}

impl Envelope {
    /// The envelope of an answer to something unreadable.
    pub fn unknown() -> Self {
        Self {
            is_v2: true,
            id: Json::Null,
        }
    }
}

/// Reads a call.
///
/// # Errors
/// [`Malformed`] when the bytes are no JSON-RPC call.
pub fn decode(body: &[u8]) -> Result<(Envelope, Request), Malformed> {
    let syntax = |what: &str| Malformed::Syntax(what.to_owned());
    let json: Json =
        serde_json::from_slice(body).map_err(|error| Malformed::Syntax(error.to_string()))?;
    let Json::Object(mut call) = json else {
        return Err(syntax("a call is an object"));
    };
    let is_v2 = match call.get("jsonrpc").and_then(Json::as_str) {
        Some("2.0") => true,
        None | Some("1.0") => false,
        Some(_) => return Err(syntax("neither version 1.0 nor 2.0")),
    };
    let Some(Json::String(method)) = call.remove("method") else {
        return Err(syntax("a call without a method"));
    };
    let mut count = 0;
    let params = match call.remove("params") {
        None => Vec::new(),
        Some(Json::Array(items)) => items
            .into_iter()
            .map(|item| value(item, 0, &mut count))
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(syntax("parameters go by position")),
    };
    let id = call.remove("id").unwrap_or(Json::Null);
    Ok((Envelope { is_v2, id }, Request { method, params }))
}

/// Writes an answer.
pub fn encode(envelope: &Envelope, result: &Result<Value, ApiError>) -> String {
    let Envelope { is_v2, id } = envelope;
    match (result, is_v2) {
        (Ok(value), true) => json!({ "jsonrpc": "2.0", "result": to_json(value), "id": id }),
        (Ok(value), false) => json!({ "result": to_json(value), "error": null, "id": id }),
        (Err(error), true) => {
            let error = json!({ "code": 1, "message": error.code, "data": error.params });
            json!({ "jsonrpc": "2.0", "error": error, "id": id })
        }
        (Err(error), false) => json!({ "result": null, "error": error.to_list(), "id": id }),
    }
    .to_string()
}

/// Writes the answer to bytes that were no call.
pub fn encode_fault(fault: &Malformed) -> String {
    let error = json!({ "code": fault.fault_code(), "message": fault.to_string() });
    json!({ "jsonrpc": "2.0", "error": error, "id": null }).to_string()
}

fn value(json: Json, depth: usize, count: &mut usize) -> Result<Value, Malformed> {
    if depth >= DEPTH_MAX {
        return Err(Malformed::TooLarge("nested too deep"));
    }
    *count = count.saturating_add(1);
    if *count > VALUES_MAX {
        return Err(Malformed::TooLarge("too many values"));
    }
    let deeper = depth.saturating_add(1);
    Ok(match json {
        Json::Null => Value::Null,
        Json::Bool(truth) => Value::Bool(truth),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Value::Int(whole),
            (None, Some(float)) => Value::Float(float),
            (None, None) => return Err(Malformed::Syntax(format!("the number {number}"))),
        },
        Json::String(text) => Value::String(text),
        Json::Array(items) => Value::Set(
            items
                .into_iter()
                .map(|item| value(item, deeper, count))
                .collect::<Result<_, _>>()?,
        ),
        Json::Object(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(name, item)| Ok((name, value(item, deeper, count)?)))
                .collect::<Result<_, _>>()?,
        ),
    })
}

/// Turns a value into JSON. A number that JSON cannot hold becomes null.
pub fn to_json(value: &Value) -> Json {
    match value {
        Value::Null => Json::String(String::new()),
        Value::String(text) => Json::String(text.clone()),
        Value::Ref(reference) => Json::String(reference.as_str().to_owned()),
        Value::Int(number) => Json::Number((*number).into()),
        Value::Float(number) => Number::from_f64(*number).map_or(Json::Null, Json::Number),
        Value::Bool(truth) => Json::Bool(*truth),
        Value::DateTime(ms) => Json::String(datetime::format(*ms)),
        Value::Set(items) => Json::Array(items.iter().map(to_json).collect()),
        Value::Map(entries) | Value::Record(entries) => Json::Object(
            entries
                .iter()
                .map(|(name, item)| (name.clone(), to_json(item)))
                .collect(),
        ),
    }
}

/// Writes a value as JSON text, the way JSON-RPC answers have it.
pub fn wire_json(value: &Value) -> String {
    to_json(value).to_string()
}

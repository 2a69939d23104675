//! Host functions as plugins of both carriers call them: files and settings are served here, the
//! rest by the daemon.

use crate::connection::Connection;
use crate::files::Files;
use plugin::protocol::{FromProcess, Hello};
use plugin::{LogLevel, PluginErrorKind, ServiceError};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Longest line that goes to the log, in characters.
const LINE_CHARS_MAX: usize = 4096;

/// What the host offers one plugin.
pub(crate) struct Functions {
    connection: Arc<Connection>,
    files: Files,
    settings: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Log {
    level: LogLevel,
    message: String,
}

#[derive(Deserialize)]
struct Setting {
    name: String,
}

impl Functions {
    /// Takes the granted directories, whose descriptors are in the order of `hello.roots`.
    pub(crate) fn new(hello: &Hello, roots: Vec<OwnedFd>, connection: Arc<Connection>) -> Self {
        let files = Files::new(hello.roots.iter().cloned().zip(roots).collect());
        Self {
            connection,
            files,
            settings: hello.settings.clone(),
        }
    }

    /// Calls a host function with JSON parameters on behalf of call `call`; returns the JSON of its
    /// result.
    pub(crate) fn call(&self, call: u64, method: &str, body: &[u8]) -> Vec<u8> {
        let here = match method.split_once('.') {
            Some(("files", function)) => self.files.call(function, body),
            Some(("host", "log")) => parse(body).and_then(|log| self.log(call, log)),
            Some(("host", "setting")) => {
                parse(body).map(|Setting { name }| json!(self.settings.get(&name)))
            }
            _ => match self.connection.ask(call, method, body) {
                Ok(answer) => return answer,
                Err(error) => {
                    let message = format!("{method}: the daemon does not answer: {error}");
                    Err(ServiceError::new(PluginErrorKind::Io, message))
                }
            },
        };
        json!(here).to_string().into_bytes()
    }

    /// Sends a line to the daemon's log.
    pub(crate) fn write_line(&self, call: u64, level: LogLevel, line: &str) {
        let line = line.chars().take(LINE_CHARS_MAX).collect();
        // When the daemon is gone, so is the log.
        let _ = self
            .connection
            .send(&FromProcess::Log { call, level, line }, &[]);
    }

    fn log(&self, call: u64, log: Log) -> Result<Value, ServiceError> {
        self.write_line(call, log.level, &log.message);
        Ok(Value::Null)
    }
}

/// Reads parameters.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ServiceError> {
    serde_json::from_slice(body)
        .map_err(|error| ServiceError::new(PluginErrorKind::Invalid, error.to_string()))
}

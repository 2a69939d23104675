//! Host functions that the daemon serves for one plugin: grants, rates and sizes are checked here.

use crate::manifest::Limits;
use crate::protocol::{self, ASK_TIMEOUT_S, ToProcess};
use crate::services::{
    HostServices, LogLevel, Message, STATE_KEY_BYTES_MAX, ServiceError, TEXT_BYTES_MAX,
};
use crate::{Event, Monitor, PluginErrorKind as Kind};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use units::RequestId;

/// Asks that are worked on at once for one plugin.
const ASKS_MAX: usize = 64;
const TIMERS_MAX: usize = 16;
const TIMER_DELAY_MIN_MS: u64 = 100;
/// A year; later than that is a defect.
const TIMER_DELAY_MAX_MS: u64 = 366 * 24 * 3600 * 1000;
const NAME_CHARS_MAX: usize = 64;
const LINE_CHARS_MAX: usize = 4096;
const CLASSES: &[&str] = &["VM", "Host", "SR", "Pool", "VDI"];

type Answer = Result<Value, ServiceError>;

/// What one plugin may ask of the daemon, and what it used of it.
pub(crate) struct Asks {
    plugin: Arc<str>,
    services: Arc<dyn HostServices>,
    may_message: bool,
    messages: Rate,
    lines: Rate,
    working: Arc<Semaphore>,
    timers: BTreeMap<String, AbortHandle>,
    monitor: Arc<OnceLock<Monitor>>,
}

impl Drop for Asks {
    fn drop(&mut self) {
        self.timers.values().for_each(AbortHandle::abort);
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Put {
    key: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    message: Message,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetTimer {
    name: String,
    delay_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelTimer {
    name: String,
}

fn refuse<T>(kind: Kind, message: impl Into<String>) -> Result<T, ServiceError> {
    Err(ServiceError::new(kind, message))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ServiceError> {
    serde_json::from_slice(body)
        .map_err(|error| ServiceError::new(Kind::Invalid, error.to_string()))
}

/// What is left to do once the checks are passed.
enum Work {
    Get(String),
    Put(String, String),
    Delete(String),
    Message(Message),
    Nothing,
}

impl Asks {
    pub(crate) fn new(
        plugin: &str,
        limits: &Limits,
        may_message: bool,
        services: Arc<dyn HostServices>,
        monitor: Arc<OnceLock<Monitor>>,
    ) -> Self {
        Self {
            plugin: plugin.into(),
            services,
            may_message,
            messages: Rate::per_minute(limits.messages_per_minute),
            lines: Rate::per_minute(limits.log_lines_per_minute),
            working: Arc::new(Semaphore::new(ASKS_MAX)),
            timers: BTreeMap::new(),
            monitor,
        }
    }

    /// Writes a plugin's line to the log, within its rate.
    pub(crate) fn log(&mut self, request: Option<&RequestId>, level: LogLevel, line: &str) {
        match self.lines.take(Instant::now()) {
            Taken::Yes { dropped_before: 0 } => {}
            Taken::Yes { dropped_before } => {
                let note = format!("{dropped_before} lines over the rate were dropped");
                self.services
                    .log(&self.plugin, request, LogLevel::Warn, &note);
            }
            Taken::No => return,
        }
        let line: String = line.chars().take(LINE_CHARS_MAX).collect();
        self.services.log(&self.plugin, request, level, &line);
    }

    /// Serves one ask in a task of its own and sends the answer.
    pub(crate) fn serve(
        &mut self,
        id: u64,
        request: Option<&RequestId>,
        method: &str,
        body: &[u8],
        answers: mpsc::Sender<Vec<u8>>,
    ) {
        let permit = self.working.clone().try_acquire_owned();
        let work = match &permit {
            Ok(_) => self.admit(method, body),
            Err(_) => refuse(Kind::Busy, format!("{ASKS_MAX} host calls are at work")),
        };
        let plugin = self.plugin.clone();
        let services = self.services.clone();
        let request_id = request.cloned();
        let method = method.to_owned();
        tokio::spawn(async move {
            let timeout = Duration::from_secs(ASK_TIMEOUT_S);
            let answer = match work {
                Ok(work) => tokio::time::timeout(timeout, perform(work, &plugin, &*services))
                    .await
                    .unwrap_or_else(|_| refuse(Kind::Io, "the daemon did not answer in time")),
                Err(error) => Err(error),
            };
            if let Err(error) = &answer {
                let request_id = request_id.as_ref().map(RequestId::as_str);
                tracing::debug!(plugin = &*plugin, request_id, method, "refused: {error}");
            }
            let body = json!(answer).to_string();
            if let Ok(frame) = protocol::encode(&ToProcess::Answer { id }, body.as_bytes()) {
                // A process that is gone needs no answer.
                let _ = answers.send(frame).await;
            }
            drop(permit);
        });
    }

    /// Checks grants, rates and sizes; timers are done at once.
    fn admit(&mut self, method: &str, body: &[u8]) -> Result<Work, ServiceError> {
        match method {
            "host.state_get" => {
                let Key { key } = parse(body)?;
                check_key(&key).map(|()| Work::Get(key))
            }
            "host.state_put" => {
                let Put { key, value } = parse(body)?;
                check_key(&key)?;
                if value.len() > TEXT_BYTES_MAX {
                    return refuse(Kind::Invalid, format!("value of {} bytes", value.len()));
                }
                Ok(Work::Put(key, value))
            }
            "host.state_delete" => {
                let Key { key } = parse(body)?;
                check_key(&key).map(|()| Work::Delete(key))
            }
            "messages.create" => {
                if !self.may_message {
                    return refuse(Kind::Denied, "messages are not granted");
                }
                let Create { message } = parse(body)?;
                check_message(&message)?;
                match self.messages.take(Instant::now()) {
                    Taken::Yes { .. } => Ok(Work::Message(message)),
                    Taken::No => refuse(Kind::Busy, "over limits.messages_per_minute"),
                }
            }
            "timers.set" => self.set_timer(parse(body)?).map(|()| Work::Nothing),
            "timers.cancel" => {
                let CancelTimer { name } = parse(body)?;
                if let Some(timer) = self.timers.remove(&name) {
                    timer.abort();
                }
                Ok(Work::Nothing)
            }
            _ => refuse(Kind::Unsupported, format!("the host has no {method}")),
        }
    }

    fn set_timer(&mut self, SetTimer { name, delay_ms }: SetTimer) -> Result<(), ServiceError> {
        let Some(monitor) = self.monitor.get().cloned() else {
            return refuse(
                Kind::Unsupported,
                "only monitors that are loaded have timers",
            );
        };
        if name.is_empty() || name.len() > NAME_CHARS_MAX {
            return refuse(Kind::Invalid, format!("timer name of {} bytes", name.len()));
        }
        if !(TIMER_DELAY_MIN_MS..=TIMER_DELAY_MAX_MS).contains(&delay_ms) {
            return refuse(Kind::Invalid, format!("timer delay of {delay_ms} ms"));
        }
        self.timers.retain(|_, timer| !timer.is_finished());
        if !self.timers.contains_key(&name) && self.timers.len() >= TIMERS_MAX {
            return refuse(Kind::Busy, format!("{TIMERS_MAX} timers are set"));
        }
        let event = Event::Timer { name: name.clone() };
        let task = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            monitor.offer(event);
        });
        if let Some(earlier) = self.timers.insert(name, task.abort_handle()) {
            earlier.abort();
        }
        Ok(())
    }
}

async fn perform(work: Work, plugin: &str, services: &dyn HostServices) -> Answer {
    match work {
        Work::Get(key) => services
            .state_get(plugin, &key)
            .await
            .map(|value| json!(value)),
        Work::Put(key, value) => services
            .state_put(plugin, &key, value)
            .await
            .map(|()| json!(())),
        Work::Delete(key) => services
            .state_delete(plugin, &key)
            .await
            .map(|()| json!(())),
        Work::Message(message) => services
            .message_create(plugin, message)
            .await
            .map(|()| json!(())),
        Work::Nothing => Ok(json!(())),
    }
}

fn check_key(key: &str) -> Result<(), ServiceError> {
    if key.is_empty() || key.len() > STATE_KEY_BYTES_MAX {
        return refuse(Kind::Invalid, format!("key of {} bytes", key.len()));
    }
    Ok(())
}

fn check_message(message: &Message) -> Result<(), ServiceError> {
    let Message {
        name,
        priority,
        class,
        uuid,
        body,
    } = message;
    let allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.chars().all(allowed) {
        return refuse(Kind::Invalid, format!("message name {name:?}"));
    }
    if !(1..=5).contains(priority) {
        return refuse(Kind::Invalid, format!("priority {priority}, it is 1 to 5"));
    }
    if !CLASSES.contains(&class.as_str()) {
        return refuse(
            Kind::Invalid,
            format!("class {class:?}, it is one of {CLASSES:?}"),
        );
    }
    if uuid.is_empty() || uuid.len() > NAME_CHARS_MAX {
        return refuse(Kind::Invalid, format!("uuid {uuid:?}"));
    }
    if body.len() > TEXT_BYTES_MAX {
        return refuse(Kind::Invalid, format!("body of {} bytes", body.len()));
    }
    Ok(())
}

/// So many a minute, in whole minutes.
struct Rate {
    per_minute: u32,
    minute: Instant,
    used: u32,
    dropped: u64,
}

#[derive(Debug, PartialEq)]
enum Taken {
    Yes { dropped_before: u64 },
    No,
}

impl Rate {
    fn per_minute(per_minute: u32) -> Self {
        Self {
            per_minute,
            minute: Instant::now(),
            used: 0,
            dropped: 0,
        }
    }

    fn take(&mut self, now: Instant) -> Taken {
        if now.saturating_duration_since(self.minute) >= Duration::from_secs(60) {
            self.minute = now;
            self.used = 0;
        }
        if self.used >= self.per_minute {
            self.dropped = self.dropped.saturating_add(1);
            return Taken::No;
        }
        self.used += 1;
        Taken::Yes {
            dropped_before: std::mem::take(&mut self.dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_holds_for_its_minute_and_tells_what_it_dropped() {
        let mut rate = Rate::per_minute(2);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rate.take(at(0)), Taken::Yes { dropped_before: 0 });
        assert_eq!(rate.take(at(1)), Taken::Yes { dropped_before: 0 });
        assert_eq!(rate.take(at(2)), Taken::No);
        assert_eq!(rate.take(at(59)), Taken::No);
        assert_eq!(rate.take(at(61)), Taken::Yes { dropped_before: 2 });
        assert_eq!(rate.take(at(62)), Taken::Yes { dropped_before: 0 });
        assert_eq!(Rate::per_minute(0).take(at(0)), Taken::No);
    }

    #[test]
    fn a_message_that_no_client_could_read_is_refused() {
        let good = Message {
            name: "ALARM".to_owned(),
            priority: 3,
            class: "VM".to_owned(),
            uuid: "x".to_owned(),
            body: String::new(),
        };
        assert!(check_message(&good).is_ok());
        for bad in [
            Message {
                name: "alarm".to_owned(),
                ..good.clone()
            },
            Message {
                name: String::new(),
                ..good.clone()
            },
            Message {
                priority: 0,
                ..good.clone()
            },
            Message {
                priority: 6,
                ..good.clone()
            },
            Message {
                class: "vm".to_owned(),
                ..good.clone()
            },
            Message {
                uuid: String::new(),
                ..good.clone()
            },
            Message {
                body: "x".repeat(TEXT_BYTES_MAX + 1),
                ..good.clone()
            },
        ] {
            assert_eq!(
                check_message(&bad).unwrap_err().kind,
                Kind::Invalid,
                "{bad:?}"
            );
        }
    }
}

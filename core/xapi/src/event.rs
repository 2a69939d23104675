//! Events: what the database's change feed says, to whom it concerns.
//!
//! Nothing is kept per client: a token is a revision, and what changed since is read from the
//! snapshots. A client whose token is older than the feed remembers gets everything again as added;
//! `valid_ref_counts` tells it whether it missed deletions.

use crate::api::Api;
use crate::datetime::now_ms;
use crate::error::ApiError;
use crate::model::{Class, Role};
use crate::view;
use database::{Row, Snapshot, Value};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Subscriptions in one call.
const SUBSCRIPTIONS_MAX: usize = 10_000;
/// Longest time that `event.from` blocks.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// Classes whose changes are nobody's business: they would tell every session of every other.
const SILENT: [&str; 2] = ["session", "user"];

/// What a client wants to hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subscription {
    All,
    /// A class, lower case.
    Class(String),
    /// One object of a class.
    Object(String, String),
}

impl Subscription {
    /// Reads `*`, `VM` or `VM/OpaqueRef:..`; the class in any case.
    ///
    /// # Errors
    /// `EVENT_SUBSCRIPTION_PARSE_FAILURE`.
    pub(crate) fn parse(text: &str) -> Result<Self, ApiError> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("*"), None, None) => Ok(Self::All),
            (Some(class), None, None) if !class.is_empty() => {
                Ok(Self::Class(class.to_ascii_lowercase()))
            }
            (Some(class), Some(object), None) if !class.is_empty() && !object.is_empty() => {
                Ok(Self::Object(class.to_ascii_lowercase(), object.to_owned()))
            }
            _ => Err(ApiError::new("EVENT_SUBSCRIPTION_PARSE_FAILURE", [text])),
        }
    }

    /// Reads all of a call's subscriptions.
    pub(crate) fn parse_all(texts: &[String]) -> Result<Vec<Self>, ApiError> {
        if texts.len() > SUBSCRIPTIONS_MAX {
            let count = format!("{} subscriptions", texts.len());
            return Err(ApiError::new("EVENT_SUBSCRIPTION_PARSE_FAILURE", [&count]));
        }
        texts.iter().map(|text| Self::parse(text)).collect()
    }

    fn covers_class(&self, class: &str) -> bool {
        match self {
            Self::All => true,
            Self::Class(wanted) | Self::Object(wanted, _) => wanted == class,
        }
    }

    fn covers(&self, class: &str, object: &str) -> bool {
        match self {
            Self::Object(wanted, reference) => wanted == class && reference == object,
            other => other.covers_class(class),
        }
    }
}

/// A place in the change feed, `%020d,%020d`: the revision, and a second number that older servers
/// used for messages and clients hand back unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token(pub(crate) u64);

impl Token {
    /// Reads a token; the empty text is the beginning.
    ///
    /// # Errors
    /// `EVENT_FROM_TOKEN_PARSE_FAILURE`.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, ApiError> {
        if text.is_empty() {
            return Ok(None);
        }
        let parsed = text.split_once(',').and_then(|(revision, messages)| {
            messages.parse::<i64>().ok()?;
            revision.parse().ok().map(Token)
        });
        parsed
            .map(Some)
            .ok_or_else(|| ApiError::new("EVENT_FROM_TOKEN_PARSE_FAILURE", [text]))
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:020},{:020}", self.0, 0)
    }
}

/// What `event.register` asked for, and up to where `event.next` has told.
#[derive(Debug, Clone)]
pub(crate) struct Registration {
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) told: Token,
}

/// Who listens, to what.
pub(crate) struct Listener<'a> {
    pub(crate) subscriptions: &'a [Subscription],
    pub(crate) role: Role,
}

impl Listener<'_> {
    fn hears(&self, class: &Class, lower: &str) -> bool {
        !SILENT.contains(&class.name)
            && self.role >= class.read_role
            && self
                .subscriptions
                .iter()
                .any(|wanted| wanted.covers_class(lower))
    }

    fn hears_of(&self, lower: &str, object: &str) -> bool {
        self.subscriptions
            .iter()
            .any(|wanted| wanted.covers(lower, object))
    }

    /// Lists what happened after `since`, up to the snapshot. `None` when that is not known any more.
    pub(crate) fn collect(
        &self,
        api: &Api,
        snapshot: &Snapshot,
        since: Option<Token>,
    ) -> Option<Vec<Value>> {
        let mut events = Vec::new();
        let mut tell =
            |class: &str, operation: &str, reference: &str, uuid: &str, row: Option<&Row>| {
                let Some(class) = api.model.class(class) else {
                    return;
                };
                let lower = class.name.to_ascii_lowercase();
                if self.hears(class, &lower) && self.hears_of(&lower, reference) {
                    let seen = row.map(|row| view::record(snapshot, row));
                    events.push(event(
                        snapshot.revision(),
                        &lower,
                        operation,
                        reference,
                        uuid,
                        seen,
                    ));
                }
            };
        match since {
            None => {
                for class in api.model.classes.values().filter(|class| class.is_object) {
                    for row in snapshot.rows(class.name) {
                        tell(
                            class.name,
                            "add",
                            row.reference().as_str(),
                            row.uuid(),
                            Some(row),
                        );
                    }
                }
            }
            Some(Token(revision)) => {
                let changes = snapshot.changes_since(revision).ok()?;
                for gone in &changes.deleted {
                    tell(
                        &gone.class,
                        "del",
                        gone.reference.as_str(),
                        &gone.uuid,
                        None,
                    );
                }
                for (rows, operation) in [(&changes.added, "add"), (&changes.modified, "mod")] {
                    for row in rows {
                        let reference = row.reference().as_str();
                        tell(row.class(), operation, reference, row.uuid(), Some(row));
                    }
                }
            }
        }
        Some(events)
    }

    fn counts(&self, api: &Api, snapshot: &Snapshot) -> Value {
        let mut counts = BTreeMap::new();
        for class in api.model.classes.values().filter(|class| class.is_object) {
            let lower = class.name.to_ascii_lowercase();
            if self.hears(class, &lower) {
                let count = i64::try_from(snapshot.count(class.name)).unwrap_or(i64::MAX);
                counts.insert(lower, Value::Int(count));
            }
        }
        Value::Map(counts)
    }
}

/// Waits until something happens after `token` that the listener wants to hear, or until the
/// timeout; answers the batch of `event.from`.
///
/// # Cancel safety
/// Changes nothing.
pub(crate) async fn from(
    api: &Api,
    listener: &Listener<'_>,
    token: Option<Token>,
    timeout_s: f64,
) -> Value {
    let timeout = Duration::try_from_secs_f64(timeout_s.max(0.0)).unwrap_or(TIMEOUT_MAX);
    let deadline = Instant::now() + timeout.min(TIMEOUT_MAX);
    let mut revisions = api.db.subscribe();
    let mut since = token;
    loop {
        revisions.borrow_and_update();
        let snapshot = api.snapshot();
        let events = listener
            .collect(api, &snapshot, since)
            .or_else(|| listener.collect(api, &snapshot, None))
            .unwrap_or_default();
        let stopping = api.stopping();
        let is_over = !events.is_empty() || stopping.is_cancelled() || Instant::now() >= deadline;
        if !is_over {
            // What is known to be of no interest is not looked at again.
            since = Some(Token(snapshot.revision()));
            tokio::select! {
                changed = timeout_at(deadline, revisions.changed()) => {
                    if !matches!(changed, Ok(Err(_))) { continue; }
                }
                () = stopping.cancelled() => {}
            }
        }
        return Value::Record(BTreeMap::from([
            ("events".to_owned(), Value::Set(events)),
            (
                "valid_ref_counts".to_owned(),
                listener.counts(api, &snapshot),
            ),
            (
                "token".to_owned(),
                Value::String(Token(snapshot.revision()).to_string()),
            ),
        ]));
    }
}

fn event(
    revision: u64,
    class: &str,
    operation: &str,
    reference: &str,
    uuid: &str,
    seen: Option<Value>,
) -> Value {
    let id = i64::try_from(revision).unwrap_or(i64::MAX);
    let mut fields = BTreeMap::from([
        ("id".to_owned(), Value::Int(id)),
        ("timestamp".to_owned(), Value::DateTime(now_ms())),
        ("class".to_owned(), class.into()),
        ("operation".to_owned(), operation.into()),
        ("ref".to_owned(), reference.into()),
        ("obj_uuid".to_owned(), uuid.into()),
    ]);
    if let Some(seen) = seen {
        fields.insert("snapshot".to_owned(), seen);
    }
    Value::Record(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_the_form_clients_store() {
        assert_eq!(
            Token(7).to_string(),
            "00000000000000000007,00000000000000000000"
        );
        assert_eq!(
            Token::parse(&Token(u64::MAX).to_string()).unwrap(),
            Some(Token(u64::MAX))
        );
        assert_eq!(Token::parse("").unwrap(), None);
        assert_eq!(Token::parse("3,9").unwrap(), Some(Token(3)));
        for bad in [
            "x",
            "1",
            "1,",
            ",1",
            "1,2,3",
            "-1,0",
            "99999999999999999999,0",
        ] {
            let error = Token::parse(bad).unwrap_err();
            assert_eq!(error.to_list(), ["EVENT_FROM_TOKEN_PARSE_FAILURE", bad]);
        }
    }

    #[test]
    fn subscriptions_name_everything_a_class_or_an_object() {
        for (text, class, object, covers) in [
            ("*", "vm", "OpaqueRef:a", true),
            ("VM", "vm", "OpaqueRef:a", true),
            ("vm", "vdi", "OpaqueRef:a", false),
            ("VM/OpaqueRef:a", "vm", "OpaqueRef:a", true),
            ("VM/OpaqueRef:a", "vm", "OpaqueRef:b", false),
            ("VM/OpaqueRef:a", "vdi", "OpaqueRef:a", false),
        ] {
            let parsed = Subscription::parse(text).unwrap();
            assert_eq!(
                parsed.covers(class, object),
                covers,
                "{text} {class} {object}"
            );
        }
        for bad in ["", "/", "VM/", "/OpaqueRef:a", "VM/a/b"] {
            let error = Subscription::parse(bad).unwrap_err();
            assert_eq!(error.to_list(), ["EVENT_SUBSCRIPTION_PARSE_FAILURE", bad]);
        }
    }
}

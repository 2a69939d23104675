//! `event`: the messages over [`crate::event`].

use super::handlers;
use crate::api::Call;
use crate::error::ApiError;
use crate::event::{Listener, Registration, Subscription, Token, from};
use crate::generic;
use crate::methods::Entry;
use database::{Ref, Value};

pub(super) fn entries() -> Vec<Entry> {
    handlers![
        Quick "event.from" => event_from,
        Quick "event.inject" => inject,
        Quick "event.get_current_id" => get_current_id,
        Quick "event.register" => register,
        Quick "event.unregister" => unregister,
        Quick "event.next" => next,
    ]
}

async fn event_from(call: Call) -> Result<Value, ApiError> {
    let subscriptions = Subscription::parse_all(&call.list("classes"))?;
    let token = Token::parse(call.text("token")?)?;
    let listener = Listener {
        subscriptions: &subscriptions,
        role: call.session()?.role,
    };
    Ok(from(&call.api, &listener, token, call.float("timeout")?).await)
}

async fn inject(call: Call) -> Result<Value, ApiError> {
    let (class, reference) = (call.text("class")?, Ref::from(call.text("ref")?));
    let found = call
        .api
        .model
        .class_any_case(class)
        .filter(|class| class.is_object);
    let class = found
        .ok_or_else(|| ApiError::handle_invalid(class, &reference))?
        .name;
    let revision = call
        .api
        .write(|tx| {
            generic::row(tx, class, &reference)?;
            tx.touch(class, &reference)?;
            Ok(tx.revision())
        })
        .await?;
    Ok(Value::String(Token(revision).to_string()))
}

async fn get_current_id(call: Call) -> Result<Value, ApiError> {
    Ok(Value::Int(
        i64::try_from(call.api.snapshot().revision()).unwrap_or(i64::MAX),
    ))
}

async fn register(call: Call) -> Result<Value, ApiError> {
    let more = Subscription::parse_all(&call.list("classes"))?;
    let now = Token(call.api.snapshot().revision());
    let mut registration = call.session()?.registration.lock();
    let registration = registration.get_or_insert_with(|| Registration {
        subscriptions: Vec::new(),
        told: now,
    });
    for wanted in more {
        if !registration.subscriptions.contains(&wanted) {
            registration.subscriptions.push(wanted);
        }
    }
    Ok(Value::Null)
}

async fn unregister(call: Call) -> Result<Value, ApiError> {
    let fewer = Subscription::parse_all(&call.list("classes"))?;
    let mut registration = call.session()?.registration.lock();
    if let Some(registration) = registration.as_mut() {
        registration
            .subscriptions
            .retain(|held| !fewer.contains(held));
    }
    if registration
        .as_ref()
        .is_some_and(|registration| registration.subscriptions.is_empty())
    {
        *registration = None;
    }
    Ok(Value::Null)
}

/// Blocks until something happened; a client that leaves drops this future.
async fn next(call: Call) -> Result<Value, ApiError> {
    let session = call.session()?;
    let mut revisions = call.api.db.subscribe();
    loop {
        revisions.borrow_and_update();
        let registration = session.registration.lock().clone();
        let Some(Registration {
            subscriptions,
            told,
        }) = registration
        else {
            return Err(ApiError::new(
                "SESSION_NOT_REGISTERED",
                [session.reference.as_str()],
            ));
        };
        let snapshot = call.api.snapshot();
        let listener = Listener {
            subscriptions: &subscriptions,
            role: session.role,
        };
        let events = listener.collect(&call.api, &snapshot, Some(told));
        if let Some(registration) = session.registration.lock().as_mut() {
            registration.told = Token(snapshot.revision());
        }
        let events = events.ok_or_else(|| ApiError::new("EVENTS_LOST", []))?;
        let stopping = call.api.stopping();
        if !events.is_empty() || stopping.is_cancelled() {
            return Ok(Value::Set(events));
        }
        tokio::select! {
            changed = revisions.changed() => {
                if changed.is_err() { return Ok(Value::Set(Vec::new())); }
            }
            () = stopping.cancelled() => {}
        }
    }
}

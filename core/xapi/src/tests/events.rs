//! `event.from`, the older `event.next`, and messages.

use crate::testing::Host;
use database::{Ref, Value};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

struct Batch {
    token: Value,
    events: Vec<BTreeMap<String, Value>>,
    counts: BTreeMap<String, Value>,
}

async fn from(host: &Host, classes: &[&str], token: Value, timeout_s: f64) -> Batch {
    let classes = Value::Set(classes.iter().map(|class| (*class).into()).collect());
    let batch = host
        .ok("event.from", [classes, token, Value::Float(timeout_s)])
        .await;
    let batch = batch.as_map().unwrap();
    let events = batch["events"].as_set().unwrap();
    Batch {
        token: batch["token"].clone(),
        events: events
            .iter()
            .map(|event| event.as_map().unwrap().clone())
            .collect(),
        counts: batch["valid_ref_counts"].as_map().unwrap().clone(),
    }
}

fn told(batch: &Batch) -> Vec<(&str, &str, &str)> {
    let text = |event: &'_ BTreeMap<String, Value>, field: &str| -> &'static str {
        event[field].as_str().unwrap().to_owned().leak()
    };
    batch
        .events
        .iter()
        .map(|e| (text(e, "class"), text(e, "operation"), text(e, "ref")))
        .collect()
}

#[tokio::test]
async fn the_first_call_tells_of_everything_and_the_next_of_what_changed() {
    let host = Host::new().await;
    let vm = host.vm("one").await;
    let all = from(&host, &["VM"], "".into(), 0.0).await;
    assert_eq!(all.events.len(), 2, "the VM and the control domain");
    assert!(
        all.events
            .iter()
            .all(|event| event["operation"] == "add".into())
    );
    assert_eq!(
        all.counts,
        BTreeMap::from([("vm".to_owned(), Value::Int(2))])
    );

    let reference = vm.as_str().unwrap();
    host.ok("VM.set_name_label", [vm.clone(), "two".into()])
        .await;
    let changed = from(&host, &["VM"], all.token, 10.0).await;
    assert_eq!(told(&changed), [("vm", "mod", reference)]);
    let snapshot = changed.events[0]["snapshot"].as_map().unwrap();
    assert_eq!(snapshot["name_label"], "two".into());
    assert!(
        snapshot["allowed_operations"]
            .as_set()
            .unwrap()
            .contains(&"start".into())
    );

    host.ok("VM.destroy", [vm.clone()]).await;
    let gone = from(&host, &["VM"], changed.token, 10.0).await;
    assert_eq!(told(&gone), [("vm", "del", reference)]);
    assert!(!gone.events[0].contains_key("snapshot"));
    assert_eq!(gone.events[0]["obj_uuid"], snapshot["uuid"]);
    assert_eq!(gone.counts["vm"], Value::Int(1));
}

#[tokio::test]
async fn a_wait_ends_with_the_change_and_not_before() {
    let host = Host::new().await;
    let vm = host.vm("one").await;
    let token = from(&host, &["VM"], "".into(), 0.0).await.token;
    let (batch, ()) = tokio::join!(from(&host, &["vm"], token, 30.0), async {
        // Of no interest to who waits.
        host.sr("other").await;
        host.ok("VM.add_tags", [vm.clone(), "x".into()]).await;
    });
    assert_eq!(told(&batch), [("vm", "mod", vm.as_str().unwrap())]);
}

#[tokio::test]
async fn a_wait_in_vain_ends_at_its_timeout_with_a_token_that_works() {
    let host = Host::new().await;
    let token = from(&host, &["VM"], "".into(), 0.0).await.token;
    let begun = Instant::now();
    let empty = from(&host, &["VM"], token, 0.1).await;
    assert!(begun.elapsed() >= Duration::from_millis(100));
    assert_eq!(empty.events.len(), 0);
    let vm = host.vm("one").await;
    let batch = from(&host, &["VM"], empty.token, 10.0).await;
    assert_eq!(told(&batch), [("vm", "add", vm.as_str().unwrap())]);
}

#[tokio::test]
async fn subscriptions_narrow_down_to_one_object() {
    let host = Host::new().await;
    let (one, two) = (host.vm("one").await, host.vm("two").await);
    let only = format!("VM/{}", one.as_str().unwrap());
    let first = from(&host, &[&only], "".into(), 0.0).await;
    assert_eq!(told(&first), [("vm", "add", one.as_str().unwrap())]);
    host.ok("VM.add_tags", [two, "x".into()]).await;
    assert_eq!(
        from(&host, &[&only], first.token, 0.05).await.events.len(),
        0
    );
}

#[tokio::test]
async fn bad_tokens_and_subscriptions_have_their_errors() {
    let host = Host::new().await;
    let call = async |class: &str, token: &str| {
        let classes = Value::Set(vec![class.into()]);
        host.fails("event.from", [classes, token.into(), Value::Float(0.0)])
            .await
    };
    assert_eq!(
        call("VM", "soon").await,
        ["EVENT_FROM_TOKEN_PARSE_FAILURE", "soon"]
    );
    assert_eq!(
        call("VM/a/b", "").await,
        ["EVENT_SUBSCRIPTION_PARSE_FAILURE", "VM/a/b"]
    );
}

#[tokio::test]
async fn a_token_of_another_life_gets_everything_again() {
    let host = Host::new().await;
    let vm = host.vm("one").await;
    let token = from(&host, &["VM"], "".into(), 0.0).await.token;
    let host = host.restart().await;
    host.ok("VM.add_tags", [vm.clone(), "x".into()]).await;
    let batch = from(&host, &["VM"], token, 10.0).await;
    assert!(told(&batch).contains(&("vm", "add", vm.as_str().unwrap())));
    let future = "99999999999999999999".replace('9', "1") + ",0";
    assert_eq!(
        from(&host, &["VM"], future.into(), 10.0).await.events.len(),
        2
    );
}

#[tokio::test]
async fn an_injected_event_comes_after_the_token_that_was_before_it() {
    let host = Host::new().await;
    let pool = Value::from(host.all("pool")[0].clone());
    let before = from(&host, &["pool"], "".into(), 0.0).await.token;
    let token = host.ok("event.inject", ["pool".into(), pool.clone()]).await;
    let batch = from(&host, &["pool"], before, 10.0).await;
    assert_eq!(told(&batch), [("pool", "mod", pool.as_str().unwrap())]);
    assert_eq!(
        from(&host, &["pool"], token, 0.05).await.events.len(),
        0,
        "it is behind that token"
    );
    let nothing = host
        .fails("event.inject", ["pool".into(), "OpaqueRef:x".into()])
        .await;
    assert_eq!(nothing, ["HANDLE_INVALID", "pool", "OpaqueRef:x"]);
}

#[tokio::test]
async fn nobody_hears_of_sessions_nor_of_what_it_may_not_read() {
    let host = Host::new().await;
    host.ok(
        "secret.create",
        [crate::testing::map([("value", "s".into())])],
    )
    .await;
    let all = from(&host, &["*"], "".into(), 0.0).await;
    assert!(all.counts.contains_key("secret") && !all.counts.contains_key("session"));
    let here = host.api.host();
    let role = crate::model::Role::ReadOnly;
    let session = host
        .api
        .sessions
        .open(&host.api.db, &here, "eve", role, "")
        .await
        .unwrap();
    let eve = host.root.clone().in_session(session);
    let classes = Value::Set(vec!["*".into()]);
    let batch = host
        .api
        .call(
            &eve,
            "event.from",
            vec![classes, "".into(), Value::Float(0.0)],
        )
        .await;
    let batch = batch.unwrap();
    let events = batch.as_map().unwrap()["events"].as_set().unwrap().to_vec();
    assert!(!events.is_empty());
    assert!(
        events
            .iter()
            .all(|event| event.as_map().unwrap()["class"] != "secret".into())
    );
}

#[tokio::test]
async fn the_older_interface_tells_each_event_once() {
    let host = Host::new().await;
    let session = host.root.session.clone().unwrap();
    assert_eq!(
        host.fails("event.next", []).await,
        ["SESSION_NOT_REGISTERED", session.as_str()]
    );
    host.ok("event.register", [Value::Set(vec!["VM".into()])])
        .await;
    let vm = host.vm("one").await;
    let events = host.ok("event.next", []).await;
    let events = events.as_set().unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(
        events[0].as_map().unwrap()["ref"],
        vm.as_str().unwrap().into()
    );
    let (next, _) = tokio::join!(host.ok("event.next", []), host.vm("two"));
    assert_eq!(next.as_set().unwrap().len(), 1);
    host.ok("event.unregister", [Value::Set(vec!["vm".into()])])
        .await;
    assert_eq!(
        host.fails("event.next", []).await[0],
        "SESSION_NOT_REGISTERED"
    );
    let id = host.ok("event.get_current_id", []).await;
    assert_eq!(
        id.as_int(),
        i64::try_from(host.api.snapshot().revision()).ok()
    );
}

#[tokio::test]
async fn messages_are_about_objects_that_are_there() {
    let host = Host::new().await;
    let vm = host.vm("one").await;
    let uuid = host.get("VM", &vm, "uuid");
    let create = |uuid: Value| {
        [
            "ALARM".into(),
            Value::Int(1),
            "VM".into(),
            uuid,
            "hot".into(),
        ]
    };
    let unknown = host.fails("message.create", create("nobody".into())).await;
    assert_eq!(unknown, ["UUID_INVALID", "VM", "nobody"]);
    let message = host.ok("message.create", create(uuid.clone())).await;
    let record = host.ok("message.get_record", [message.clone()]).await;
    for (field, value) in [
        ("name", Value::from("ALARM")),
        ("priority", Value::Int(1)),
        ("obj_uuid", uuid.clone()),
    ] {
        assert_eq!(record.as_map().unwrap()[field], value);
    }
    let count = |found: Value| found.as_map().unwrap().len();
    let since = |ms: i64| Value::DateTime(ms);
    assert_eq!(
        count(
            host.ok("message.get", ["VM".into(), uuid.clone(), since(0)])
                .await
        ),
        1
    );
    assert_eq!(
        count(host.ok("message.get", ["SR".into(), uuid, since(0)]).await),
        0
    );
    assert_eq!(
        count(host.ok("message.get_since", [since(i64::MAX / 2)]).await),
        0
    );
    assert_eq!(count(host.ok("message.get_all_records", []).await), 1);
    let bad = host
        .fails(
            "message.destroy_all",
            [crate::testing::map([("colour", "red".into())])],
        )
        .await;
    assert_eq!(bad, ["INVALID_VALUE", "colour", "red"]);
    host.ok(
        "message.destroy_all",
        [crate::testing::map([("priority", "5".into())])],
    )
    .await;
    assert_eq!(host.all("message").len(), 1);
    host.ok("message.destroy_many", [Value::Set(vec![message])])
        .await;
    assert_eq!(host.all("message"), Vec::<Ref>::new());
}

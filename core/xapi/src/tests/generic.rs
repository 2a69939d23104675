//! What holds for every message: names, arity, types, references, and the implied messages.

use crate::testing::{Host, map};
use database::{Ref, Value};
use std::collections::BTreeMap;

#[tokio::test]
async fn calls_that_are_wrong_in_themselves_get_their_exact_error() {
    let host = Host::new().await;
    let vm = host.vm("one").await;
    let gone = "OpaqueRef:00000000-0000-4000-8000-000000000000";
    let error = |method: &'static str, params: Vec<Value>| {
        let host = &host;
        async move {
            host.api
                .call(&host.root, method, params)
                .await
                .unwrap_err()
                .to_list()
        }
    };
    for (method, params, expected) in [
        ("VM.fly", vec![], vec!["MESSAGE_METHOD_UNKNOWN", "VM.fly"]),
        ("fly", vec![], vec!["MESSAGE_METHOD_UNKNOWN", "fly"]),
        (
            "vm.get_all",
            vec![],
            vec!["MESSAGE_METHOD_UNKNOWN", "vm.get_all"],
        ),
        (
            "Async.VM.get_all",
            vec![],
            vec!["MESSAGE_METHOD_UNKNOWN", "Async.VM.get_all"],
        ),
        (
            "Async.Async.VM.start",
            vec![],
            vec!["MESSAGE_METHOD_UNKNOWN", "Async.Async.VM.start"],
        ),
        (
            "VM.get_VBD",
            vec![],
            vec!["MESSAGE_METHOD_UNKNOWN", "VM.get_VBD"],
        ),
        (
            "VM.set_uuid",
            vec![],
            vec!["MESSAGE_METHOD_UNKNOWN", "VM.set_uuid"],
        ),
        (
            "VM.get_all",
            vec!["x".into()],
            vec!["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_all", "0", "1"],
        ),
        (
            "VM.start",
            vec![vm.clone()],
            vec!["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.start", "3", "1"],
        ),
        (
            "VDI.copy",
            vec![],
            vec!["MESSAGE_PARAMETER_COUNT_MISMATCH", "VDI.copy", "4", "0"],
        ),
        (
            "VM.get_record",
            vec![Value::Int(3)],
            vec!["FIELD_TYPE_ERROR", "self"],
        ),
        (
            "VM.get_record",
            vec![gone.into()],
            vec!["HANDLE_INVALID", "VM", gone],
        ),
        (
            "VM.get_record",
            vec!["nonsense".into()],
            vec!["HANDLE_INVALID", "VM", "nonsense"],
        ),
        (
            "VM.get_record",
            vec![Ref::null().into()],
            vec!["HANDLE_INVALID", "VM", "OpaqueRef:NULL"],
        ),
        (
            "VDI.get_record",
            vec![vm.clone()],
            vec!["HANDLE_INVALID", "VDI", vm.as_str().unwrap()],
        ),
        (
            "VM.get_by_uuid",
            vec!["nonsense".into()],
            vec!["UUID_INVALID", "VM", "nonsense"],
        ),
        (
            "VM.set_name_label",
            vec![vm.clone(), map([])],
            vec!["FIELD_TYPE_ERROR", "value"],
        ),
        (
            "VM.set_affinity",
            vec![vm.clone(), gone.into()],
            vec!["HANDLE_INVALID", "host", gone],
        ),
        (
            "VM.create",
            vec![map([("user_version", "x".into())])],
            vec!["FIELD_TYPE_ERROR", "user_version"],
        ),
        (
            "VM.create",
            vec![map([])],
            vec!["FIELD_TYPE_ERROR", "affinity"],
        ),
        (
            "VM.start",
            vec![vm.clone(), "maybe".into(), false.into()],
            vec!["FIELD_TYPE_ERROR", "start_paused"],
        ),
        (
            "VMPP.protect_now",
            vec![Ref::null().into()],
            vec!["MESSAGE_REMOVED"],
        ),
        (
            "VM.checkpoint",
            vec![vm.clone(), "x".into()],
            vec!["NOT_IMPLEMENTED", "VM.checkpoint"],
        ),
        (
            "VMSS.create",
            vec![map([])],
            vec!["NOT_IMPLEMENTED", "VMSS.create"],
        ),
        (
            "VM.get_all_records_where",
            vec!["name".into()],
            vec!["INVALID_VALUE", "expr", "name"],
        ),
    ] {
        assert_eq!(error(method, params).await, expected, "{method}");
    }
}

#[tokio::test]
async fn an_underscore_may_stand_for_the_dot() {
    let host = Host::new().await;
    for name in [
        "VM_get_all",
        "VM_metrics_get_all",
        "host_metrics_get_all_records",
    ] {
        host.ok(name, []).await;
    }
    let params = [
        Value::Set(vec!["pool".into()]),
        "".into(),
        Value::Float(0.0),
    ];
    host.ok("event_from", params).await;
    assert_eq!(
        host.fails("VM_fly", []).await,
        ["MESSAGE_METHOD_UNKNOWN", "VM_fly"]
    );
}

#[tokio::test]
async fn every_listed_class_answers_get_all_records_and_what_is_not_served_is_empty() {
    let host = Host::new().await;
    let model = host.api.model;
    let listed = host.ok("system.listMethods", []).await;
    let listed: Vec<_> = listed
        .as_set()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for class in model.classes.values().filter(|class| class.listed) {
        let method = format!("{}.get_all_records", class.name);
        assert!(listed.contains(&method.as_str()), "{method}");
        let records = host.ok(&method, []).await;
        let Value::Map(records) = records else {
            panic!("{method}: {records:?}")
        };
        assert!(class.served || records.is_empty(), "{method}");
        let all = host.ok(&format!("{}.get_all", class.name), []).await;
        assert_eq!(
            all.as_set().map(<[Value]>::len),
            Some(records.len()),
            "{method}"
        );
        for record in records.values() {
            let fields = record.as_map().unwrap();
            assert_eq!(fields.len(), class.fields.len(), "{method}");
        }
    }
    for unserved in ["VM.checkpoint", "VMPP.protect_now", "VM.migrate_send"] {
        assert!(!listed.contains(&unserved), "{unserved}");
    }
    assert!(listed.contains(&"VM.start") && listed.contains(&"message.get_all_records"));
}

#[tokio::test]
async fn fields_are_read_and_written_one_by_one() {
    let host = Host::new().await;
    let vm = host.vm("one").await;
    host.ok("VM.set_name_label", [vm.clone(), "two".into()])
        .await;
    assert_eq!(
        host.ok("VM.get_name_label", [vm.clone()]).await,
        "two".into()
    );
    assert_eq!(
        host.ok("VM.get_by_name_label", ["one".into()]).await,
        Value::Set(vec![])
    );
    assert_eq!(
        host.ok("VM.get_by_name_label", ["two".into()]).await,
        Value::Set(vec![vm.clone()])
    );
    let uuid = host.ok("VM.get_uuid", [vm.clone()]).await;
    assert_eq!(host.ok("VM.get_by_uuid", [uuid]).await, vm);
    host.ok("VM.set_user_version", [vm.clone(), "7".into()])
        .await;
    assert_eq!(
        host.ok("VM.get_user_version", [vm.clone()]).await,
        Value::Int(7)
    );
}

#[tokio::test]
async fn maps_and_sets_change_key_by_key() {
    let host = Host::new().await;
    let vm = host.vm("one").await;
    let key = |key: &str| Value::from(key);
    host.ok("VM.add_to_other_config", [vm.clone(), key("a"), key("1")])
        .await;
    host.ok("VM.add_to_other_config", [vm.clone(), key("b"), key("2")])
        .await;
    let again = host
        .fails("VM.add_to_other_config", [vm.clone(), key("a"), key("3")])
        .await;
    let reference = vm.as_str().unwrap();
    assert_eq!(
        again,
        ["MAP_DUPLICATE_KEY", "VM", "other_config", reference, "a"]
    );
    host.ok("VM.remove_from_other_config", [vm.clone(), key("b")])
        .await;
    host.ok(
        "VM.remove_from_other_config",
        [vm.clone(), key("not there")],
    )
    .await;
    let left = map([("a", "1".into())]);
    assert_eq!(host.ok("VM.get_other_config", [vm.clone()]).await, left);
    for tag in ["x", "y", "x"] {
        host.ok("VM.add_tags", [vm.clone(), tag.into()]).await;
    }
    host.ok("VM.remove_tags", [vm.clone(), "y".into()]).await;
    host.ok("VM.remove_tags", [vm.clone(), "z".into()]).await;
    let tags = host.ok("VM.get_tags", [vm.clone()]).await;
    assert_eq!(tags, Value::Set(vec!["x".into()]));
    host.ok(
        "VM.add_to_blocked_operations",
        [vm.clone(), key("start"), key("no")],
    )
    .await;
    let bad = host
        .fails("VM.add_to_blocked_operations", [vm, key("fly"), key("no")])
        .await;
    assert_eq!(bad, ["FIELD_TYPE_ERROR", "key"]);
}

#[tokio::test]
async fn records_are_found_by_expression() {
    let host = Host::new().await;
    for name in ["one", "two", "three"] {
        host.vm(name).await;
    }
    let count = async |expression: &str| {
        let found = host
            .ok("VM.get_all_records_where", [expression.into()])
            .await;
        found.as_map().map(BTreeMap::len).unwrap()
    };
    assert_eq!(count("true").await, 4);
    assert_eq!(count(r#"field "is_control_domain" = "true""#).await, 1);
    assert_eq!(
        count(r#"field "name_label" = "one" or field "name_label" = "two""#).await,
        2
    );
    let mine = r#"not field "is_control_domain" = "true" and field "power_state" = "Halted""#;
    assert_eq!(count(mine).await, 3);
}

#[tokio::test]
async fn plain_objects_are_made_and_removed_by_the_model_alone() {
    let host = Host::new().await;
    let record = map([("name_label", "lan".into()), ("bridge", "xenbr0".into())]);
    let network = host.ok("network.create", [record]).await;
    assert_eq!(host.get("network", &network, "bridge"), "xenbr0".into());
    assert_eq!(host.get("network", &network, "MTU"), Value::Int(1500));
    assert_eq!(
        host.get("network", &network, "uuid").as_str().map(str::len),
        Some(36)
    );
    host.ok("network.destroy", [network.clone()]).await;
    let gone = host.fails("network.get_record", [network.clone()]).await;
    assert_eq!(
        gone,
        ["HANDLE_INVALID", "network", network.as_str().unwrap()]
    );
}

#[tokio::test]
async fn a_new_host_has_the_records_that_clients_start_from() {
    let host = Host::new().await;
    let pools = host.ok("pool.get_all_records", []).await;
    let pool = pools
        .as_map()
        .unwrap()
        .values()
        .next()
        .unwrap()
        .as_map()
        .unwrap()
        .clone();
    let this = Value::from(host.api.host());
    assert_eq!(pool["master"], this);
    for (field, expected) in [
        ("hostname", Value::from("tester")),
        ("address", "127.0.0.1".into()),
        ("enabled", true.into()),
        ("API_version_major", Value::Int(2)),
    ] {
        assert_eq!(host.get("host", &this, field), expected, "{field}");
    }
    let metrics = host.get("host", &this, "metrics");
    assert_eq!(host.get("host_metrics", &metrics, "live"), true.into());
    let dom0 = host.get("host", &this, "control_domain");
    assert_eq!(host.get("VM", &dom0, "power_state"), "Running".into());
    assert_eq!(
        host.get("VM", &dom0, "allowed_operations"),
        Value::Set(vec![])
    );
    let sm = host.ok("SM.get_all_records", []).await;
    let types: Vec<_> = sm
        .as_map()
        .unwrap()
        .values()
        .map(|sm| sm.as_map().unwrap()["type"].clone())
        .collect();
    assert_eq!(types, [Value::from(crate::testing::DRIVER)]);
    assert_eq!(host.all("role").len(), 6);
    let again = host.restart().await;
    assert_eq!(Value::from(again.api.host()), this);
    for (class, count) in [("host", 1), ("pool", 1), ("SM", 1), ("role", 6), ("VM", 1)] {
        assert_eq!(again.all(class).len(), count, "{class} after a restart");
    }
}

#[tokio::test]
async fn the_table_has_every_message_of_the_interface() {
    let host = Host::new().await;
    let all = || host.api.all_methods();
    let ours =
        all().filter(|method| method.name == "get_all_records_where" && method.class != "message");
    assert_eq!(all().count() - ours.count(), 2007);
}

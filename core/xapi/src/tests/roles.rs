//! Who may send what, for every method of the table.

use crate::api::{Caller, Origin};
use crate::model::Role;
use crate::testing::Host;
use database::Value;

#[tokio::test]
async fn every_method_is_open_from_its_role_on_and_closed_below() {
    let host = Host::new().await;
    let (caller, here) = (Caller::new(Origin::Internal), host.api.host());
    let roles = Role::GRANTABLE.into_iter().chain([Role::LocalRoot]);
    let mut sessions = Vec::new();
    for role in roles {
        let name = role.name();
        let session = host
            .api
            .sessions
            .open(&host.api.db, &here, name, role, name)
            .await
            .unwrap();
        sessions.push((role, caller.clone().in_session(session)));
    }
    let mut checked = 0;
    for method in host.api.all_methods().filter(|method| method.needs_session) {
        let name = method.full_name();
        if method.is_removed() || !method.params.iter().any(|param| !param.optional) {
            // Without a parameter that can be wrong, an allowed call would do something.
            continue;
        }
        // Nothing fits a parameter of the wrong type, so that an allowed call ends there.
        let wrong = vec![Value::Null; method.params.len()];
        for (role, caller) in &sessions {
            let error = host
                .api
                .call(caller, &name, wrong.clone())
                .await
                .unwrap_err();
            let expected = if *role >= method.role {
                "FIELD_TYPE_ERROR"
            } else {
                "RBAC_PERMISSION_DENIED"
            };
            assert_eq!(error.code(), expected, "{name} as {}", role.name());
        }
        checked += 1;
    }
    assert!(checked > 1500, "{checked} methods");
}

#[tokio::test]
async fn permissions_say_what_the_dispatcher_does() {
    let host = Host::new().await;
    let roles = host.ok("role.get_all_records", []).await;
    for (role, record) in roles.as_map().unwrap() {
        let name = record.as_map().unwrap()["name_label"].clone();
        let rank = Role::by_name(name.as_str().unwrap()).unwrap();
        let listed = host
            .ok("role.get_permissions_name_label", [role.as_str().into()])
            .await;
        let listed = listed.as_set().unwrap();
        for (method, least) in [
            ("VM.start", Role::VmOperator),
            ("host.destroy", Role::PoolOperator),
        ] {
            assert_eq!(
                listed.contains(&method.into()),
                rank >= least,
                "{method} as {name:?}"
            );
        }
    }
    let may = host
        .ok("role.get_by_permission_name_label", ["host.destroy".into()])
        .await;
    assert_eq!(may.as_set().unwrap().len(), 2);
}

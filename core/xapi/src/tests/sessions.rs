//! Logging in and out, and what becomes of sessions.

use crate::api::{Caller, Origin};
use crate::model::Role;
use crate::session::{IDLE_MAX_MS, PER_ORIGINATOR_MAX};
use crate::testing::Host;
use database::{Ref, Value};

fn remote() -> Caller {
    Caller::new(Origin::Remote("127.0.0.1:1".parse().unwrap()))
}

async fn login(host: &Host, user: &str, password: &str) -> Result<Value, Vec<String>> {
    let params = [user, password, "1.0", "test"].map(Value::from).to_vec();
    let result = host
        .api
        .call(&remote(), "session.login_with_password", params)
        .await;
    result.map_err(|error| error.to_list())
}

#[tokio::test]
async fn only_the_right_name_and_password_open_a_session() {
    let host = Host::new().await;
    assert!(!host.api.has_local_user("root").unwrap());
    host.api
        .set_local_password("root", "secret", Role::ReadOnly)
        .await
        .unwrap();
    host.api
        .set_local_password("eve", "other", Role::ReadOnly)
        .await
        .unwrap();
    for (user, password) in [
        ("root", "wrong"),
        ("root", ""),
        ("nobody", "secret"),
        ("", ""),
        ("eve", "secret"),
    ] {
        let refused = login(&host, user, password).await.unwrap_err();
        assert_eq!(
            refused,
            ["SESSION_AUTHENTICATION_FAILED"],
            "{user} {password}"
        );
    }
    let root = login(&host, "root", "secret").await.unwrap();
    assert_eq!(
        host.get("session", &root, "is_local_superuser"),
        true.into()
    );
    assert_eq!(host.get("session", &root, "originator"), "test".into());
    let eve = login(&host, "eve", "other").await.unwrap();
    assert_eq!(host.get("session", &eve, "auth_user_name"), "eve".into());
    let eve = remote().in_session(eve.as_ref().unwrap().clone());
    let denied = host
        .api
        .call(&eve, "VM.create", vec![Value::Map(Default::default())])
        .await;
    assert_eq!(denied.unwrap_err().code(), "RBAC_PERMISSION_DENIED");
}

#[tokio::test]
async fn a_call_without_a_session_that_is_open_is_refused() {
    let host = Host::new().await;
    let session = host.root.session.clone().unwrap();
    for (caller, named) in [
        (remote(), "OpaqueRef:NULL"),
        (remote().in_session("OpaqueRef:x".into()), "OpaqueRef:x"),
    ] {
        let error = host
            .api
            .call(&caller, "VM.get_all", vec![])
            .await
            .unwrap_err();
        assert_eq!(error.to_list(), ["SESSION_INVALID", named]);
    }
    host.ok("session.logout", []).await;
    let error = host.fails("VM.get_all", []).await;
    assert_eq!(error, ["SESSION_INVALID", session.as_str()]);
}

#[tokio::test]
async fn root_of_this_host_needs_no_password_and_nobody_else_does_without() {
    let host = Host::new().await;
    let local = Caller::new(Origin::LocalRoot);
    let params = || ["root", ""].map(Value::from).to_vec();
    assert!(
        host.api
            .call(&local, "session.login_with_password", params())
            .await
            .is_ok()
    );
    let error = host
        .api
        .call(&remote(), "session.login_with_password", params())
        .await;
    assert_eq!(error.unwrap_err().code(), "SESSION_AUTHENTICATION_FAILED");
    let error = host.api.login_local_root(&remote(), "x").await.unwrap_err();
    assert_eq!(error.code(), "SESSION_AUTHENTICATION_FAILED");
}

#[tokio::test]
async fn a_password_is_changed_by_who_knows_the_old_one() {
    let host = Host::new().await;
    host.api
        .set_local_password("root", "old", Role::PoolAdmin)
        .await
        .unwrap();
    let wrong = host
        .fails("session.change_password", ["guess".into(), "new".into()])
        .await;
    assert_eq!(
        wrong,
        ["CHANGE_PASSWORD_REJECTED", "the old password is wrong"]
    );
    let empty = host
        .fails("session.change_password", ["old".into(), "".into()])
        .await;
    assert_eq!(empty[0], "CHANGE_PASSWORD_REJECTED");
    host.ok("session.change_password", ["old".into(), "new".into()])
        .await;
    assert!(login(&host, "root", "old").await.is_err());
    assert!(login(&host, "root", "new").await.is_ok());
}

#[tokio::test]
async fn the_least_recently_used_session_of_an_originator_makes_room() {
    let host = Host::new().await;
    let here = host.api.host();
    let mut opened: Vec<Ref> = Vec::new();
    for _ in 0..PER_ORIGINATOR_MAX {
        let sessions = &host.api.sessions;
        opened.push(
            sessions
                .open(&host.api.db, &here, "root", Role::LocalRoot, "one")
                .await
                .unwrap(),
        );
    }
    host.api.sessions.age(&opened[3], 1000);
    let sessions = &host.api.sessions;
    sessions
        .open(&host.api.db, &here, "root", Role::LocalRoot, "one")
        .await
        .unwrap();
    let is_open = |session: &Ref| host.api.snapshot().row("session", session).is_some();
    let closed: Vec<_> = opened.iter().filter(|session| !is_open(session)).collect();
    assert_eq!(closed, [&opened[3]]);
    assert!(
        is_open(host.root.session.as_ref().unwrap()),
        "another originator's"
    );
}

#[tokio::test]
async fn a_session_that_nobody_uses_is_over_after_a_day() {
    let host = Host::new().await;
    let session = host.root.session.clone().unwrap();
    host.api.sessions.age(&session, IDLE_MAX_MS - 1000);
    host.ok("VM.get_all", []).await;
    host.api.sessions.age(&session, IDLE_MAX_MS + 1000);
    assert_eq!(
        host.fails("VM.get_all", []).await,
        ["SESSION_INVALID", session.as_str()]
    );
    assert_eq!(host.all("session"), []);
}

#[tokio::test]
async fn sessions_outlive_the_daemon() {
    let host = Host::new().await;
    let old = host.root.clone();
    let host = host.restart().await;
    assert!(host.api.call(&old, "VM.get_all", vec![]).await.is_ok());
}

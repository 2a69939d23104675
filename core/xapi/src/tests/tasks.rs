//! Tasks: the client's own, those of calls, and when they go.

use crate::api::{Caller, Origin};
use crate::datetime::now_ms;
use crate::model::Role;
use crate::task::{self, ABANDONED_LIFE_MS, FINISHED_LIFE_MS, FINISHED_MAX};
use crate::testing::{Host, wait_for};
use database::{Ref, Value};
use hypervisor::simulator::Call as SimulatorCall;
use std::time::Duration;

async fn ended(host: &Host, task: &Value) -> String {
    let status = || {
        host.get("task", task, "status")
            .as_str()
            .unwrap()
            .to_owned()
    };
    wait_for("the task ends", || {
        !matches!(status().as_str(), "pending" | "cancelling")
    })
    .await;
    status()
}

#[tokio::test]
async fn an_async_call_is_a_task_that_tells_how_it_ended() {
    let host = Host::new().await;
    let sr = host.sr("one").await;
    let vdi = host.vdi(&sr, "disk").await;
    let task = host
        .ok(
            "Async.VDI.snapshot",
            [vdi.clone(), Value::Map(Default::default())],
        )
        .await;
    assert_eq!(
        host.get("task", &task, "name_label"),
        "Async.VDI.snapshot".into()
    );
    assert_eq!(ended(&host, &task).await, "success");
    let snapshot = host.get("VDI", &vdi, "snapshots").as_set().unwrap()[0].clone();
    let result = format!("<value>{}</value>", snapshot.as_str().unwrap());
    assert_eq!(host.get("task", &task, "result"), result.into());
    assert_eq!(host.get("task", &task, "progress"), Value::Float(1.0));

    let vm = host.vm("halted").await;
    let task = host.ok("Async.VM.clean_shutdown", [vm.clone()]).await;
    assert_eq!(ended(&host, &task).await, "failure");
    let info = host.get("task", &task, "error_info");
    let expected = [
        "VM_BAD_POWER_STATE",
        vm.as_str().unwrap(),
        "running",
        "halted",
    ];
    assert_eq!(info, Value::Set(expected.map(Value::from).to_vec()));
    let allowed = host.ok("task.get_allowed_operations", [task.clone()]).await;
    assert_eq!(allowed, Value::Set(vec!["destroy".into()]));
    host.ok("task.destroy", [task.clone()]).await;
    assert!(!host.all("task").contains(task.as_ref().unwrap()));
}

#[tokio::test]
async fn the_task_of_a_call_that_was_waited_for_goes_with_it() {
    let host = Host::new().await;
    host.sr("one").await;
    assert_eq!(host.all("task"), []);
}

#[tokio::test]
async fn a_caller_that_leaves_does_not_stop_what_it_began() {
    let host = Host::new().await;
    let vm = host.vm("one").await;
    host.world
        .simulator
        .set_delay(SimulatorCall::Create, Duration::from_millis(50));
    let params = vec![vm.clone(), false.into(), false.into()];
    let starts = || host.get("VM", &vm, "current_operations") != Value::Map(Default::default());
    tokio::select! {
        ended = host.api.call(&host.root, "VM.start", params) => panic!("{ended:?}"),
        () = wait_for("it starts", starts) => {}
    }
    wait_for("it runs", || {
        host.get("VM", &vm, "power_state") == "Running".into()
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_start_leaves_a_halted_vm_and_a_cancelled_task() {
    let host = Host::new().await;
    let vm = host.vm("one").await;
    host.world
        .simulator
        .set_delay(SimulatorCall::Create, Duration::from_secs(60));
    let task = host
        .ok("Async.VM.start", [vm.clone(), false.into(), false.into()])
        .await;
    let current = || host.get("VM", &vm, "current_operations");
    wait_for("it starts", || {
        current().as_map().is_some_and(|current| current.len() == 1)
    })
    .await;
    assert_eq!(
        current().as_map().unwrap()[task.as_str().unwrap()],
        "start".into()
    );
    assert_eq!(
        host.ok("VM.get_allowed_operations", [vm.clone()]).await,
        Value::Set(vec![])
    );
    let busy = host.fails("VM.clone", [vm.clone(), "two".into()]).await;
    let expected = [
        "OTHER_OPERATION_IN_PROGRESS",
        "VM",
        vm.as_str().unwrap(),
        "start",
        task.as_str().unwrap(),
    ];
    assert_eq!(busy, expected);
    host.ok("task.cancel", [task.clone()]).await;
    assert_eq!(ended(&host, &task).await, "cancelled");
    let info = host.get("task", &task, "error_info");
    assert_eq!(
        info,
        Value::Set(vec!["TASK_CANCELLED".into(), task.as_str().unwrap().into()])
    );
    assert_eq!(host.get("VM", &vm, "power_state"), "Halted".into());
    assert_eq!(current(), Value::Map(Default::default()));
    let late = host.fails("task.cancel", [task]).await;
    assert_eq!(late[0], "OPERATION_NOT_ALLOWED");
}

#[tokio::test]
async fn tasks_of_others_are_a_pool_operators_to_cancel() {
    let host = Host::new().await;
    let vm = host.vm("one").await;
    host.world
        .simulator
        .set_delay(SimulatorCall::Create, Duration::from_secs(60));
    let task = host
        .ok("Async.VM.start", [vm, false.into(), false.into()])
        .await;
    let sessions = &host.api.sessions;
    let here = host.api.host();
    for (role, may) in [(Role::VmAdmin, false), (Role::PoolOperator, true)] {
        let session = sessions
            .open(&host.api.db, &here, "eve", role, "")
            .await
            .unwrap();
        let eve = Caller::new(Origin::Internal).in_session(session);
        let result = host.api.call(&eve, "task.cancel", vec![task.clone()]).await;
        assert_eq!(result.is_ok(), may, "{role:?}: {result:?}");
    }
}

#[tokio::test]
async fn clients_keep_tasks_of_their_own() {
    let host = Host::new().await;
    let task = host
        .ok("task.create", ["backup".into(), "of everything".into()])
        .await;
    assert_eq!(host.get("task", &task, "status"), "pending".into());
    host.ok("task.set_progress", [task.clone(), Value::Float(0.5)])
        .await;
    let bad = host
        .fails("task.set_progress", [task.clone(), Value::Float(1.5)])
        .await;
    assert_eq!(bad, ["INVALID_VALUE", "progress", "1.5"]);
    host.ok(
        "task.add_to_other_config",
        [task.clone(), "k".into(), "v".into()],
    )
    .await;
    host.ok("task.set_result", [task.clone(), "done".into()])
        .await;
    let info = Value::Set(vec!["A".into(), "B".into()]);
    host.ok("task.set_error_info", [task.clone(), info.clone()])
        .await;
    host.ok("task.set_status", [task.clone(), "success".into()])
        .await;
    assert_eq!(host.get("task", &task, "error_info"), info);
    assert!(host.get("task", &task, "finished").as_datetime() > Some(0));
}

#[tokio::test]
async fn tasks_go_when_they_are_old_or_too_many() {
    let host = Host::new().await;
    let mut made = Vec::new();
    for _ in 0..=FINISHED_MAX {
        let task = host.ok("task.create", ["t".into(), "".into()]).await;
        host.ok("task.set_status", [task.clone(), "success".into()])
            .await;
        made.push(task.as_ref().unwrap().clone());
    }
    assert_eq!(host.all("task").len(), FINISHED_MAX);
    assert!(
        !host.all("task").contains(&made[0]),
        "the oldest goes first"
    );
    let pending = host.ok("task.create", ["p".into(), "".into()]).await;
    task::sweep(&host.api, now_ms() + FINISHED_LIFE_MS - 60_000)
        .await
        .unwrap();
    assert_eq!(host.all("task").len(), FINISHED_MAX);
    task::sweep(&host.api, now_ms() + FINISHED_LIFE_MS + 60_000)
        .await
        .unwrap();
    assert_eq!(host.all("task"), [pending.as_ref().unwrap().clone()]);
    task::sweep(&host.api, now_ms() + ABANDONED_LIFE_MS + 60_000)
        .await
        .unwrap();
    assert_eq!(host.all("task"), Vec::<Ref>::new());
}

#[tokio::test]
async fn what_a_dead_daemon_left_unfinished_is_cancelled() {
    let host = Host::new().await;
    let task = host.ok("task.create", ["t".into(), "".into()]).await;
    let host = host.restart().await;
    assert_eq!(host.get("task", &task, "status"), "cancelled".into());
}

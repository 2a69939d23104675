//! Queues, cancelling, notifications and the end of the daemon.

use crate::fixture::{Host, call, clean, spec, started, stopped, until};
use crate::memory_disks::DiskCall;
use hypervisor::simulator::{Call, Fault, GuestBehaviour};
use std::time::Duration;
use xenops::{Change, ErrorKind, Manner, PowerState, StartAs};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_full_queue_is_a_typed_error_and_other_vms_do_not_feel_it() {
    let mut host = Host::new();
    host.config.queue_length = 2;
    host.config.atom_deadline = Duration::from_secs(60);
    let xenops = host.xenops().await;
    let (stuck, other) = (spec(), spec());
    host.disks.inject(DiskCall::Attach, 0, Fault::HangBefore);
    let start = xenops
        .start(&call(), stuck.clone(), StartAs::Running)
        .unwrap();
    until("the hang", SOON, || host.disks.count(DiskCall::Attach) == 1).await;
    let waiting = [(); 2].map(|()| xenops.pause(&call(), stuck.vm).unwrap());
    let refused = xenops.pause(&call(), stuck.vm).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::QueueFull);
    started(&xenops, &other).await;
    start.cancel();
    assert_eq!(start.wait().await.unwrap_err().kind(), ErrorKind::Cancelled);
    for operation in waiting {
        assert_eq!(
            operation.wait().await.unwrap_err().kind(),
            ErrorKind::BadState
        );
    }
}

#[tokio::test]
async fn the_number_of_vms_is_limited() {
    let mut host = Host::new();
    host.config.vms_max = 1;
    let xenops = host.xenops().await;
    let (first, second) = (spec(), spec());
    started(&xenops, &first).await;
    let refused = xenops
        .start(&call(), second.clone(), StartAs::Running)
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooManyVms);
    stopped(&xenops, first.vm).await;
    until("the owner to retire", SOON, || xenops.states().is_empty()).await;
    started(&xenops, &second).await;
}

#[tokio::test]
async fn a_cancelled_start_leaves_nothing_wherever_it_was() {
    crate::failures::all(crate::failures::START, |at| async move {
        let (mut host, spec) = (Host::new(), spec());
        host.config.atom_deadline = Duration::from_secs(60);
        let xenops = host.xenops().await;
        let reached = at.reached(&host);
        at.inject(&host, Fault::HangAfter);
        let start = xenops.start(&call(), spec, StartAs::Running).unwrap();
        until("the hang", SOON, || at.count(&host) >= reached).await;
        start.cancel();
        assert_eq!(start.wait().await.unwrap_err().kind(), ErrorKind::Cancelled);
        host.assert_empty().await;
    })
    .await;
}

#[tokio::test]
async fn a_hard_shutdown_does_not_wait_for_a_clean_one() {
    let (host, spec) = (Host::new(), spec());
    let xenops = host.xenops().await;
    started(&xenops, &spec).await;
    let idle = GuestBehaviour {
        obeys_after: None,
        ..GuestBehaviour::default()
    };
    host.simulator.set_guest(spec.vm, idle);
    let clean = xenops
        .shutdown(&call(), spec.vm, Manner::Clean(Duration::from_secs(600)))
        .unwrap();
    until("the wish", SOON, || {
        host.simulator.call_count(Call::RequestShutdown) == 1
    })
    .await;
    stopped(&xenops, spec.vm).await;
    assert_eq!(clean.wait().await.unwrap_err().kind(), ErrorKind::Cancelled);
    host.assert_empty().await;
}

#[tokio::test]
async fn progress_names_the_atom_under_way_and_ends_with_done() {
    let (mut host, spec) = (Host::new(), spec());
    host.config.atom_deadline = Duration::from_secs(60);
    let xenops = host.xenops().await;
    host.simulator
        .set_delay(Call::Create, Duration::from_millis(50));
    let start = xenops.start(&call(), spec, StartAs::Running).unwrap();
    let mut watch = start.watch_progress();
    let at_create = *watch
        .wait_for(|progress| progress.atom == "create-domain")
        .await
        .unwrap();
    // journal, then attach and activate of two disks
    assert_eq!((at_create.atoms_done, at_create.atoms_total), (5, 8));
    let done = *watch
        .wait_for(|progress| progress.atom == "done")
        .await
        .unwrap();
    assert_eq!(done.atoms_done, done.atoms_total);
    start.wait().await.unwrap();
}

#[tokio::test]
async fn changes_come_in_order_and_a_slow_reader_gets_the_whole_picture() {
    let mut host = Host::new();
    host.config.changes_behind_max = 4;
    let xenops = host.xenops().await;
    let (first, second) = (spec(), spec());
    let mut slow = xenops.subscribe();
    started(&xenops, &first).await;
    started(&xenops, &second).await;
    stopped(&xenops, first.vm).await;
    until("the owner to retire", SOON, || xenops.states().len() == 1).await;
    assert_eq!(slow.next().await, Some(Change::Resync(xenops.states())));

    let mut fast = xenops.subscribe();
    let watcher = tokio::spawn(async move {
        let mut powers = Vec::new();
        while let Some(change) = fast.next().await {
            let Change::Vm(state) = change else {
                panic!("lagged")
            };
            if powers.last() != Some(&state.power) {
                powers.push(state.power);
            }
            if state.operation.is_none() && state.power == PowerState::Halted {
                return powers;
            }
        }
        powers
    });
    tokio::task::yield_now().await;
    stopped(&xenops, second.vm).await;
    let powers = watcher.await.unwrap();
    assert_eq!(powers, [PowerState::Running, PowerState::Halted]);
    drop(xenops);
    let end = async { while slow.next().await.is_some() {} };
    tokio::time::timeout(SOON, end)
        .await
        .expect("the stream to end with the toolstack");
}

#[tokio::test]
async fn closing_finishes_what_is_under_way_and_takes_no_more() {
    let (host, spec) = (Host::new(), spec());
    let xenops = host.xenops().await;
    host.simulator
        .set_delay(Call::Create, Duration::from_millis(50));
    let start = xenops
        .start(&call(), spec.clone(), StartAs::Running)
        .unwrap();
    xenops.close().await;
    start.wait().await.unwrap();
    let refused = xenops.shutdown(&call(), spec.vm, clean()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
    drop(xenops);
    let (xenops, adoption) = host.daemon().await;
    assert_eq!(adoption.live, [spec.vm]);
    host.assert_runs_with(&xenops, spec.vm, &spec.vbds);
}

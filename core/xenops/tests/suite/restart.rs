//! The daemon dies in the middle of every outside call; the next one sets things right.

use crate::failures::{Outside, START, all, each};
use crate::fixture::{Host, call, clean, spec, started, until, vbd};
use crate::memory_disks::DiskCall;
use hypervisor::Access;
use hypervisor::simulator::{Call, Fault};
use std::time::Duration;
use xenops::{Manner, Operation, PowerState, StartAs, VbdSpec, VmSpec, Xenops};

const HANGS: [Fault; 2] = [Fault::HangBefore, Fault::HangAfter];

/// Kills the daemon once the operation is in the call where it hangs.
async fn killed_in(
    host: &Host,
    at: Outside,
    fault: Fault,
    xenops: Xenops,
    begin: impl FnOnce(&Xenops) -> Operation,
) {
    let reached = at.reached(host);
    at.inject(host, fault);
    let _operation = begin(&xenops);
    until(&format!("{at:?}"), Duration::from_secs(10), || {
        at.count(host) >= reached
    })
    .await;
    // The owner has made the call and waits in it: nothing it does can come later than this.
    tokio::task::yield_now().await;
    drop(xenops);
}

#[tokio::test]
async fn a_start_cut_short_anywhere_is_undone() {
    all(each(&START, &HANGS), |(at, fault)| async move {
        let (host, spec) = (Host::new(), spec());
        let (xenops, vm) = (host.xenops().await, spec.vm);
        killed_in(&host, at, fault, xenops, |xenops| {
            xenops
                .start(&call(), spec.clone(), StartAs::Running)
                .unwrap()
        })
        .await;
        let (_xenops, adoption) = host.daemon().await;
        assert_eq!(adoption.halted, [vm], "{at:?} {fault:?}");
        host.assert_empty().await;
    })
    .await;
}

#[tokio::test]
async fn a_stop_cut_short_anywhere_is_finished_and_a_reboot_ends_in_a_running_vm() {
    let stop = [
        Outside::Domain(Call::Destroy),
        Outside::Disk(DiskCall::Deactivate, 0),
        Outside::Disk(DiskCall::Detach, 0),
        Outside::Disk(DiskCall::Deactivate, 1),
        Outside::Disk(DiskCall::Detach, 1),
    ];
    all(each(&stop, &HANGS), |(at, fault)| async move {
        let (host, spec) = (Host::new(), spec());
        let xenops = host.xenops().await;
        started(&xenops, &spec).await;
        killed_in(&host, at, fault, xenops, |xenops| {
            xenops.shutdown(&call(), spec.vm, clean()).unwrap()
        })
        .await;
        let (_xenops, adoption) = host.daemon().await;
        assert_eq!(adoption.halted, [spec.vm], "{at:?} {fault:?}");
        host.assert_empty().await;
    })
    .await;
    let reboot: Vec<Outside> = stop.into_iter().chain(START).collect();
    all(each(&reboot, &HANGS), |(at, fault)| async move {
        let (host, spec) = (Host::new(), spec());
        let xenops = host.xenops().await;
        started(&xenops, &spec).await;
        killed_in(&host, at, fault, xenops, |xenops| {
            xenops.reboot(&call(), spec.vm, Manner::Hard).unwrap()
        })
        .await;
        let (xenops, adoption) = host.daemon().await;
        assert_eq!(adoption.live, [spec.vm], "{at:?} {fault:?}");
        host.assert_runs_with(&xenops, spec.vm, &spec.vbds);
    })
    .await;
}

#[tokio::test]
async fn a_plug_or_unplug_cut_short_anywhere_leaves_a_running_vm_without_that_disk() {
    let plug = [
        Outside::Disk(DiskCall::Attach, 0),
        Outside::Disk(DiskCall::Activate, 0),
        Outside::Domain(Call::PlugDisk),
    ];
    let unplug = [
        Outside::Domain(Call::UnplugDisk),
        Outside::Disk(DiskCall::Deactivate, 0),
        Outside::Disk(DiskCall::Detach, 0),
    ];
    let cases = each(&plug, &HANGS).into_iter().map(|case| (case, true));
    let cases: Vec<_> = cases
        .chain(each(&unplug, &HANGS).into_iter().map(|case| (case, false)))
        .collect();
    all(cases, |((at, fault), plugging)| async move {
        let (host, spec, extra) = (Host::new(), spec(), vbd(9, Access::ReadWrite));
        let spec = if plugging { spec } else { with(&spec, &extra) };
        let xenops = host.xenops().await;
        started(&xenops, &spec).await;
        killed_in(&host, at, fault, xenops, |xenops| match plugging {
            true => xenops.vbd_plug(&call(), spec.vm, extra.clone()).unwrap(),
            false => xenops.vbd_unplug(&call(), spec.vm, extra.vbd).unwrap(),
        })
        .await;
        let (xenops, adoption) = host.daemon().await;
        assert_eq!(adoption.live, [spec.vm], "{at:?} {fault:?}");
        let left: Vec<VbdSpec> = spec
            .vbds
            .iter()
            .filter(|vbd| vbd.vbd != extra.vbd)
            .cloned()
            .collect();
        host.assert_runs_with(&xenops, spec.vm, &left);
    })
    .await;
}

fn with(spec: &VmSpec, extra: &VbdSpec) -> VmSpec {
    let mut spec = spec.clone();
    spec.vbds.push(extra.clone());
    spec
}

#[tokio::test]
async fn live_domains_are_adopted_and_obey_the_new_daemon() {
    let (host, running, paused) = (Host::new(), spec(), spec());
    let xenops = host.xenops().await;
    started(&xenops, &running).await;
    xenops
        .start(&call(), paused.clone(), StartAs::Paused)
        .unwrap()
        .wait()
        .await
        .unwrap();
    let before = (xenops.state(running.vm), xenops.state(paused.vm));
    drop(xenops);
    let (xenops, adoption) = host.daemon().await;
    assert_eq!(adoption.live.len(), 2);
    assert_eq!((xenops.state(running.vm), xenops.state(paused.vm)), before);
    for vm in [running.vm, paused.vm] {
        xenops
            .shutdown(&call(), vm, Manner::Hard)
            .unwrap()
            .wait()
            .await
            .unwrap();
    }
    host.assert_empty().await;
}

#[tokio::test]
async fn a_domain_that_vanished_meanwhile_is_released() {
    let (host, spec) = (Host::new(), spec());
    let xenops = host.xenops().await;
    started(&xenops, &spec).await;
    drop(xenops);
    host.simulator.vanish(spec.vm);
    let (xenops, adoption) = host.daemon().await;
    assert_eq!(adoption.halted, [spec.vm]);
    assert_eq!(xenops.state(spec.vm).power, PowerState::Halted);
    host.assert_empty().await;
}

#[tokio::test]
async fn a_guest_that_ended_meanwhile_gets_what_was_agreed() {
    use hypervisor::ShutdownReason::{Crash, Poweroff};
    for reason in [Poweroff, Crash] {
        let (mut host, spec) = (Host::new(), spec());
        host.config.crash_loop_window = Duration::ZERO;
        let xenops = host.xenops().await;
        started(&xenops, &spec).await;
        drop(xenops);
        host.simulator.end_guest(spec.vm, reason);
        let (xenops, _) = host.daemon().await;
        match reason {
            Crash => host.assert_runs_with(&xenops, spec.vm, &spec.vbds),
            _ => host.assert_empty().await,
        }
    }
}

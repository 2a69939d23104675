//! What guests do by themselves.

use crate::fixture::{Host, call, spec, started, stopped, until};
use hypervisor::ShutdownReason::{Crash, Poweroff, Reboot};
use hypervisor::simulator::{Call, GuestBehaviour};
use hypervisor::{DomainState, ShutdownReason};
use std::time::Duration;
use units::VmUuid;
use xenops::{GuestEndAction, Manner, PowerState, VmSpec, Xenops};

const SOON: Duration = Duration::from_secs(10);

fn halted(xenops: &Xenops, vm: VmUuid) -> bool {
    let state = xenops.state(vm);
    state.power == PowerState::Halted && state.operation.is_none()
}

#[tokio::test]
async fn a_guest_that_ends_gets_what_its_record_says() {
    use GuestEndAction::{Destroy, Preserve, Restart};
    for reason in [Poweroff, Reboot, Crash] {
        for action in [Destroy, Preserve, Restart] {
            let mut host = Host::new();
            host.config.crash_loop_window = Duration::ZERO;
            host.config.reboot_interval_min = Duration::ZERO;
            let xenops = host.xenops().await;
            let spec = VmSpec {
                on_poweroff: action,
                on_reboot: action,
                on_crash: action,
                ..spec()
            };
            started(&xenops, &spec).await;
            let domid = xenops.state(spec.vm).domid;
            host.simulator.end_guest(spec.vm, reason);
            let what = format!("{reason:?} {action:?}");
            match action {
                Destroy => {
                    let gone = || halted(&xenops, spec.vm);
                    until(&what, SOON, gone).await;
                    host.assert_empty().await;
                }
                Restart => {
                    let back = || {
                        let state = xenops.state(spec.vm);
                        state.operation.is_none() && state.domid.is_some_and(|d| Some(d) != domid)
                    };
                    until(&what, SOON, back).await;
                    host.assert_runs_with(&xenops, spec.vm, &spec.vbds);
                }
                Preserve => {
                    let kept = || xenops.state(spec.vm).power == PowerState::Paused;
                    until(&what, SOON, kept).await;
                    let ended = DomainState::Shutdown(reason);
                    assert_eq!(host.simulator.domains()[0].state, ended);
                    assert_eq!(xenops.state(spec.vm).last_end, Some(reason));
                    stopped(&xenops, spec.vm).await;
                    host.assert_empty().await;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_guest_that_crashes_soon_after_its_start_is_not_started_for_ever() {
    let (host, spec) = (Host::new(), spec());
    let xenops = host.xenops().await;
    let crashing = GuestBehaviour {
        ends_after: Some((Duration::from_millis(5), Crash)),
        ..GuestBehaviour::default()
    };
    host.simulator.set_guest(spec.vm, crashing);
    started(&xenops, &spec).await;
    let gone = || halted(&xenops, spec.vm);
    until("the guest to be given up", SOON, gone).await;
    assert_eq!(host.simulator.call_count(Call::Create), 1);
    host.assert_empty().await;
}

#[tokio::test]
async fn a_guest_that_reboots_too_soon_waits_and_obeys_meanwhile() {
    let mut host = Host::new();
    host.config.reboot_delay = Duration::from_millis(300);
    let xenops = host.xenops().await;
    let (waiting, stopped_meanwhile) = (spec(), spec());
    for spec in [&waiting, &stopped_meanwhile] {
        started(&xenops, spec).await;
        host.simulator.end_guest(spec.vm, Reboot);
    }
    stopped(&xenops, stopped_meanwhile.vm).await;
    assert_eq!(
        host.simulator.call_count(Call::Create),
        2,
        "nobody is restarted yet"
    );
    let again = || host.simulator.call_count(Call::Create) == 3;
    until("the restart", SOON, again).await;
    let settled = || xenops.state(waiting.vm).operation.is_none();
    until("the end of it", SOON, settled).await;
    host.assert_runs_with(&xenops, waiting.vm, &waiting.vbds);
}

#[tokio::test]
async fn a_guest_that_powers_off_when_asked_to_reboot_is_started_all_the_same() {
    let (host, spec) = (Host::new(), spec());
    let xenops = host.xenops().await;
    let idle = GuestBehaviour {
        obeys_after: None,
        ..GuestBehaviour::default()
    };
    host.simulator.set_guest(spec.vm, idle);
    started(&xenops, &spec).await;
    let reboot = xenops
        .reboot(&call(), spec.vm, Manner::Clean(SOON))
        .unwrap();
    until("the wish", SOON, || {
        host.simulator.call_count(Call::RequestShutdown) == 1
    })
    .await;
    host.simulator.end_guest(spec.vm, Poweroff);
    reboot.wait().await.unwrap();
    host.assert_runs_with(&xenops, spec.vm, &spec.vbds);
}

/// More domains than the hypervisor's event queue holds vanish at once, so events are lost.
#[tokio::test]
async fn no_vanished_domain_is_missed_when_events_are_lost() {
    const DOMAINS: usize = 1100;
    let host = Host::new();
    let xenops = host.xenops().await;
    let mut starting = Vec::new();
    let mut vms = Vec::new();
    for _ in 0..DOMAINS {
        let mut spec = spec();
        spec.vbds.truncate(1);
        vms.push(spec.vm);
        starting.push(
            xenops
                .start(&call(), spec, xenops::StartAs::Running)
                .unwrap(),
        );
    }
    for start in starting {
        start.wait().await.unwrap();
    }
    for vm in &vms {
        host.simulator.vanish(*vm);
    }
    until("all to be released", Duration::from_secs(60), || {
        xenops.states().is_empty()
    })
    .await;
    host.assert_empty().await;
}

#[tokio::test]
async fn the_reason_of_the_end_is_told() {
    let (host, spec) = (Host::new(), spec());
    let xenops = host.xenops().await;
    started(&xenops, &spec).await;
    let mut changes = xenops.subscribe();
    host.simulator.end_guest(spec.vm, Poweroff);
    let mut told: Option<ShutdownReason> = None;
    while let Some(xenops::Change::Vm(state)) = changes.next().await {
        told = told.or(state.last_end);
        if state.power == PowerState::Halted && state.operation.is_none() {
            break;
        }
    }
    assert_eq!(told, Some(Poweroff));
}

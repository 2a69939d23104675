//! Every outside call of every operation goes wrong in every way: nothing may be left behind.

use crate::fixture::{Host, call, clean, spec, started, stopped, vbd};
use crate::memory_disks::DiskCall;
use hypervisor::Access;
use hypervisor::simulator::{Call, Fault, GuestBehaviour};
use std::time::Duration;
use xenops::{ErrorKind, Manner, PowerState, StartAs, VmSpec};

/// One call to the outside, the n-th of its kind.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Outside {
    Disk(DiskCall, usize),
    Domain(Call),
}

pub(crate) const FAULTS: [Fault; 4] = [
    Fault::FailBefore,
    Fault::FailAfter,
    Fault::HangBefore,
    Fault::HangAfter,
];

/// The outside calls of a start with two disks, in order.
pub(crate) const START: [Outside; 6] = [
    Outside::Disk(DiskCall::Attach, 0),
    Outside::Disk(DiskCall::Activate, 0),
    Outside::Disk(DiskCall::Attach, 1),
    Outside::Disk(DiskCall::Activate, 1),
    Outside::Domain(Call::Create),
    Outside::Domain(Call::Unpause),
];

impl Outside {
    pub(crate) fn inject(self, host: &Host, fault: Fault) {
        match self {
            Self::Disk(call, healthy) => host.disks.inject(call, healthy, fault),
            Self::Domain(call) => host.simulator.inject(call, fault),
        }
    }

    /// How often it was made.
    pub(crate) fn count(self, host: &Host) -> u64 {
        match self {
            Self::Disk(call, _) => host.disks.count(call) as u64,
            Self::Domain(call) => host.simulator.call_count(call),
        }
    }

    /// How often it will have been made when the n-th is under way, counting from now.
    pub(crate) fn reached(self, host: &Host) -> u64 {
        let healthy = match self {
            Self::Disk(_, healthy) => healthy as u64,
            Self::Domain(_) => 0,
        };
        self.count(host) + healthy + 1
    }

    fn error(self, fault: Fault) -> ErrorKind {
        match (self, fault) {
            (_, Fault::HangBefore | Fault::HangAfter) => ErrorKind::Timeout,
            (Self::Disk(..), _) => ErrorKind::Disk,
            (Self::Domain(_), _) => ErrorKind::Hypervisor,
        }
    }
}

/// Runs all cases at once: those that hang wait for their deadline together.
pub(crate) async fn all<C, F>(cases: impl IntoIterator<Item = C>, run: impl Fn(C) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let tasks: Vec<_> = cases
        .into_iter()
        .map(|case| tokio::spawn(run(case)))
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

pub(crate) fn each(outside: &[Outside], faults: &[Fault]) -> Vec<(Outside, Fault)> {
    outside
        .iter()
        .flat_map(|at| faults.iter().map(|fault| (*at, *fault)))
        .collect()
}

#[tokio::test]
async fn a_start_that_fails_anywhere_leaves_nothing_and_can_be_repeated() {
    all(each(&START, &FAULTS), |(at, fault)| async move {
        let (host, spec) = (Host::new(), spec());
        let xenops = host.xenops().await;
        at.inject(&host, fault);
        let start = xenops
            .start(&call(), spec.clone(), StartAs::Running)
            .unwrap();
        let error = start.wait().await.unwrap_err();
        assert_eq!(error.kind(), at.error(fault), "{at:?} {fault:?}: {error}");
        assert_eq!(xenops.state(spec.vm).power, PowerState::Halted);
        host.assert_empty().await;
        started(&xenops, &spec).await;
        host.assert_runs_with(&xenops, spec.vm, &spec.vbds);
    })
    .await;
}

#[tokio::test]
async fn a_reboot_that_fails_in_its_second_half_leaves_a_halted_vm_and_nothing_else() {
    all(each(&START, &FAULTS[..2]), |(at, fault)| async move {
        let (host, spec) = (Host::new(), spec());
        let xenops = host.xenops().await;
        started(&xenops, &spec).await;
        at.inject(&host, fault);
        let reboot = xenops.reboot(&call(), spec.vm, Manner::Hard).unwrap();
        assert_eq!(reboot.wait().await.unwrap_err().kind(), at.error(fault));
        assert_eq!(xenops.state(spec.vm).power, PowerState::Halted);
        host.assert_empty().await;
    })
    .await;
}

#[tokio::test]
async fn a_stop_that_fails_anywhere_can_be_repeated_until_nothing_is_left() {
    let stop = [
        Outside::Domain(Call::Destroy),
        Outside::Disk(DiskCall::Deactivate, 0),
        Outside::Disk(DiskCall::Detach, 0),
        Outside::Disk(DiskCall::Deactivate, 1),
        Outside::Disk(DiskCall::Detach, 1),
    ];
    all(each(&stop, &FAULTS), |(at, fault)| async move {
        let (host, spec) = (Host::new(), spec());
        let xenops = host.xenops().await;
        started(&xenops, &spec).await;
        at.inject(&host, fault);
        let stop = xenops.shutdown(&call(), spec.vm, Manner::Hard).unwrap();
        assert_eq!(
            stop.wait().await.unwrap_err().kind(),
            at.error(fault),
            "{at:?} {fault:?}"
        );
        host.disks.assert_contract_was_kept();
        if matches!(at, Outside::Disk(..)) {
            assert_eq!(
                xenops.state(spec.vm).power,
                PowerState::Halted,
                "{at:?} {fault:?}"
            );
            assert!(host.disks.stages().len() <= 1, "the other disk is released");
        }
        stopped(&xenops, spec.vm).await;
        host.assert_empty().await;
    })
    .await;
}

#[tokio::test]
async fn what_a_failed_stop_left_is_released_by_the_next_start() {
    let (host, spec) = (Host::new(), spec());
    let xenops = host.xenops().await;
    started(&xenops, &spec).await;
    host.disks.inject(DiskCall::Detach, 0, Fault::FailBefore);
    let stop = xenops.shutdown(&call(), spec.vm, Manner::Hard).unwrap();
    assert_eq!(stop.wait().await.unwrap_err().kind(), ErrorKind::Disk);
    let other_disks = VmSpec {
        vbds: vec![vbd(0, Access::ReadWrite)],
        ..spec
    };
    started(&xenops, &other_disks).await;
    host.assert_runs_with(&xenops, other_disks.vm, &other_disks.vbds);
}

#[tokio::test]
async fn a_plug_that_fails_anywhere_leaves_the_vm_as_it_was() {
    let plug = [
        Outside::Disk(DiskCall::Attach, 0),
        Outside::Disk(DiskCall::Activate, 0),
        Outside::Domain(Call::PlugDisk),
    ];
    all(each(&plug, &FAULTS), |(at, fault)| async move {
        let (host, spec) = (Host::new(), spec());
        let xenops = host.xenops().await;
        started(&xenops, &spec).await;
        at.inject(&host, fault);
        let plug = xenops
            .vbd_plug(&call(), spec.vm, vbd(4, Access::ReadWrite))
            .unwrap();
        assert_eq!(plug.wait().await.unwrap_err().kind(), at.error(fault));
        host.assert_runs_with(&xenops, spec.vm, &spec.vbds);
    })
    .await;
}

#[tokio::test]
async fn a_disk_that_the_guest_keeps_stays_plugged() {
    let (host, spec) = (Host::new(), spec());
    let xenops = host.xenops().await;
    started(&xenops, &spec).await;
    let stubborn = GuestBehaviour {
        releases_disks: false,
        ..GuestBehaviour::default()
    };
    host.simulator.set_guest(spec.vm, stubborn);
    let unplug = xenops
        .vbd_unplug(&call(), spec.vm, spec.vbds[0].vbd)
        .unwrap();
    assert_eq!(
        unplug.wait().await.unwrap_err().kind(),
        ErrorKind::GuestRefused
    );
    host.assert_runs_with(&xenops, spec.vm, &spec.vbds);
}

#[tokio::test]
async fn a_failed_pause_or_unpause_goes_back() {
    for fault in [Fault::FailBefore, Fault::FailAfter] {
        let (host, spec) = (Host::new(), spec());
        let xenops = host.xenops().await;
        started(&xenops, &spec).await;
        host.simulator.inject(Call::Pause, fault);
        let pause = xenops.pause(&call(), spec.vm).unwrap();
        assert_eq!(
            pause.wait().await.unwrap_err().kind(),
            ErrorKind::Hypervisor
        );
        host.assert_runs_with(&xenops, spec.vm, &spec.vbds);
    }
}

#[tokio::test]
async fn a_guest_that_does_not_shut_down_goes_on_running() {
    let silent = GuestBehaviour {
        acknowledges: false,
        ..GuestBehaviour::default()
    };
    let idle = GuestBehaviour {
        obeys_after: None,
        ..GuestBehaviour::default()
    };
    for (behaviour, kind) in [
        (silent, ErrorKind::NotAcknowledged),
        (idle, ErrorKind::DidNotShutDown),
    ] {
        let (mut host, spec) = (Host::new(), spec());
        host.config.acknowledge_deadline = Duration::from_millis(30);
        let xenops = host.xenops().await;
        started(&xenops, &spec).await;
        host.simulator.set_guest(spec.vm, behaviour);
        let manner = Manner::Clean(Duration::from_millis(30));
        let shutdown = xenops.shutdown(&call(), spec.vm, manner).unwrap();
        assert_eq!(shutdown.wait().await.unwrap_err().kind(), kind);
        host.assert_runs_with(&xenops, spec.vm, &spec.vbds);
        host.simulator.set_guest(spec.vm, GuestBehaviour::default());
        xenops
            .shutdown(&call(), spec.vm, clean())
            .unwrap()
            .wait()
            .await
            .unwrap();
        host.assert_empty().await;
    }
}

//! Every operation when nothing goes wrong, and when it is not allowed.

use crate::fixture::{Host, call, clean, spec, started, stopped, vbd};
use crate::memory_disks::DiskCall;
use hypervisor::simulator::Call;
use hypervisor::{Access, DomainState, Hypervisor};
use xenops::{ErrorKind, Manner, PowerState, StartAs};

#[tokio::test]
async fn a_started_vm_runs_with_its_disks_and_a_stopped_one_leaves_nothing() {
    for manner in [clean(), Manner::Hard] {
        let (host, spec) = (Host::new(), spec());
        let xenops = host.xenops().await;
        started(&xenops, &spec).await;
        host.assert_runs_with(&xenops, spec.vm, &spec.vbds);
        assert!(xenops.state(spec.vm).started_at_ms.is_some());
        xenops
            .shutdown(&call(), spec.vm, manner)
            .unwrap()
            .wait()
            .await
            .unwrap();
        assert_eq!(xenops.state(spec.vm).power, PowerState::Halted);
        host.assert_empty().await;
    }
}

#[tokio::test]
async fn writable_disks_come_first_and_each_is_active_before_the_next_is_attached() {
    let (host, spec) = (Host::new(), spec());
    let xenops = host.xenops().await;
    started(&xenops, &spec).await;
    let seen: Vec<String> = host
        .disks
        .calls()
        .iter()
        .map(|(call, dp)| format!("{call:?} {dp}"))
        .collect();
    let vm = spec.vm;
    let wanted = [
        "Attach xvdb",
        "Activate xvdb",
        "Attach xvda",
        "Activate xvda",
    ];
    let wanted: Vec<String> = wanted
        .iter()
        .map(|text| text.replace(' ', &format!(" vbd/{vm}/")))
        .collect();
    assert_eq!(seen, wanted);
}

#[tokio::test]
async fn a_reboot_gives_a_new_domain_with_the_same_disks() {
    for manner in [clean(), Manner::Hard] {
        let (host, spec) = (Host::new(), spec());
        let xenops = host.xenops().await;
        started(&xenops, &spec).await;
        let before = xenops.state(spec.vm).domid;
        xenops
            .reboot(&call(), spec.vm, manner)
            .unwrap()
            .wait()
            .await
            .unwrap();
        host.assert_runs_with(&xenops, spec.vm, &spec.vbds);
        assert_ne!(xenops.state(spec.vm).domid, before);
    }
}

#[tokio::test]
async fn pause_and_unpause_may_be_repeated() {
    let (host, spec) = (Host::new(), spec());
    let xenops = host.xenops().await;
    xenops
        .start(&call(), spec.clone(), StartAs::Paused)
        .unwrap()
        .wait()
        .await
        .unwrap();
    assert_eq!(xenops.state(spec.vm).power, PowerState::Paused);
    assert_eq!(host.simulator.domains()[0].state, DomainState::Paused);
    for _ in 0..2 {
        xenops
            .unpause(&call(), spec.vm)
            .unwrap()
            .wait()
            .await
            .unwrap();
        host.assert_runs_with(&xenops, spec.vm, &spec.vbds);
    }
    for _ in 0..2 {
        xenops
            .pause(&call(), spec.vm)
            .unwrap()
            .wait()
            .await
            .unwrap();
        assert_eq!(xenops.state(spec.vm).power, PowerState::Paused);
        assert_eq!(host.simulator.domains()[0].state, DomainState::Paused);
    }
}

#[tokio::test]
async fn a_disk_may_be_plugged_and_unplugged_while_the_vm_runs() {
    let (host, spec) = (Host::new(), spec());
    let xenops = host.xenops().await;
    started(&xenops, &spec).await;
    let extra = vbd(7, Access::ReadWrite);
    let mut with_extra = spec.vbds.clone();
    with_extra.push(extra.clone());
    for _ in 0..2 {
        xenops
            .vbd_plug(&call(), spec.vm, extra.clone())
            .unwrap()
            .wait()
            .await
            .unwrap();
        host.assert_runs_with(&xenops, spec.vm, &with_extra);
    }
    let other = vbd(7, Access::ReadOnly);
    let taken = xenops
        .vbd_plug(&call(), spec.vm, other)
        .unwrap()
        .wait()
        .await
        .unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::DeviceInUse);
    xenops
        .reboot(&call(), spec.vm, clean())
        .unwrap()
        .wait()
        .await
        .unwrap();
    host.assert_runs_with(&xenops, spec.vm, &with_extra);
    for _ in 0..2 {
        xenops
            .vbd_unplug(&call(), spec.vm, extra.vbd)
            .unwrap()
            .wait()
            .await
            .unwrap();
        host.assert_runs_with(&xenops, spec.vm, &spec.vbds);
    }
    stopped(&xenops, spec.vm).await;
    host.assert_empty().await;
}

#[tokio::test]
async fn operations_in_a_wrong_power_state_are_refused_and_touch_nothing() {
    let (host, spec) = (Host::new(), spec());
    let xenops = host.xenops().await;
    let refused = async |operation: xenops::Operation| {
        assert_eq!(
            operation.wait().await.unwrap_err().kind(),
            ErrorKind::BadState
        );
    };
    refused(xenops.pause(&call(), spec.vm).unwrap()).await;
    refused(xenops.unpause(&call(), spec.vm).unwrap()).await;
    refused(xenops.reboot(&call(), spec.vm, Manner::Hard).unwrap()).await;
    refused(
        xenops
            .vbd_plug(&call(), spec.vm, vbd(5, Access::ReadOnly))
            .unwrap(),
    )
    .await;
    refused(
        xenops
            .vbd_unplug(&call(), spec.vm, spec.vbds[0].vbd)
            .unwrap(),
    )
    .await;
    xenops
        .shutdown(&call(), spec.vm, clean())
        .unwrap()
        .wait()
        .await
        .unwrap();
    assert_eq!(host.disks.calls(), []);
    assert_eq!(
        xenops.stat(spec.vm).await.unwrap_err().kind(),
        ErrorKind::BadState
    );

    started(&xenops, &spec).await;
    refused(
        xenops
            .start(&call(), spec.clone(), StartAs::Running)
            .unwrap(),
    )
    .await;
    xenops
        .pause(&call(), spec.vm)
        .unwrap()
        .wait()
        .await
        .unwrap();
    refused(xenops.shutdown(&call(), spec.vm, clean()).unwrap()).await;
    assert_eq!(host.simulator.call_count(Call::Create), 1);
    assert_eq!(xenops.stat(spec.vm).await.unwrap().vcpus, 1);
}

#[tokio::test]
async fn a_specification_that_cannot_be_is_refused_before_anything_is_touched() {
    let host = Host::new();
    let xenops = host.xenops().await;
    let mut no_memory = spec();
    no_memory.memory_bytes = 0;
    let mut twice = spec();
    twice.vbds[1].device = twice.vbds[0].device;
    let mut same_vbd = spec();
    same_vbd.vbds[1].vbd = same_vbd.vbds[0].vbd;
    for wrong in [no_memory, twice, same_vbd] {
        let start = xenops.start(&call(), wrong, StartAs::Running).unwrap();
        assert_eq!(start.wait().await.unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!(host.disks.count(DiskCall::Attach), 0);
    host.assert_empty().await;
}

#[tokio::test]
async fn domains_of_others_are_reported_and_left_alone() {
    let (host, foreign) = (Host::new(), spec());
    let config = hypervisor::DomainConfig {
        vm: foreign.vm,
        name: "foreign".to_owned(),
        memory_bytes: foreign.memory_bytes,
        vcpus: 1,
        boot: foreign.boot,
        disks: Vec::new(),
        serial_console: false,
    };
    host.simulator.create(&config).await.unwrap();
    let (_xenops, adoption) = host.daemon().await;
    assert_eq!(adoption.foreign, host.simulator.domains());
    assert_eq!(adoption.foreign.len(), 1);
}

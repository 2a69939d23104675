//! What goes wrong with processes, sockets and files.

use crate::back_end::Host;
use hypervisor::conformance::Harness;
use hypervisor::{Boot, DeviceName, DomainConfig, DomainState, ErrorKind, Hypervisor};
use qemu::{Qemu, QemuConfig};
use rustix::process::Signal;
use std::time::Duration;

#[tokio::test]
async fn a_domain_that_cannot_be_made_says_why_and_leaves_no_process() {
    let host = Host::new();
    let hypervisor = host.open().await;
    let kernel = Boot::Kernel {
        kernel: "/nonexistent-kernel".into(),
        ramdisk: None,
        cmdline: String::new(),
    };
    let mut disk = host.disk(DeviceName::from_position(0));
    disk.target.socket = "/nonexistent.sock".into();
    let cases = [
        (
            DomainConfig {
                boot: kernel,
                ..host.idle()
            },
            "nonexistent-kernel",
        ),
        (
            DomainConfig {
                disks: vec![disk],
                ..host.idle()
            },
            "nonexistent.sock",
        ),
    ];
    for (config, word) in cases {
        let error = hypervisor.create(&config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Failed);
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(hypervisor.list().await.unwrap(), []);
        hypervisor.destroy(config.vm).await.unwrap();
        assert!(!host.file(config.vm, "").exists());
    }
}

#[tokio::test]
async fn a_disk_that_cannot_be_reached_is_not_plugged_and_may_be_tried_again() {
    let (host, device) = (Host::new(), DeviceName::from_position(5));
    let hypervisor = host.open().await;
    let config = host.idle();
    hypervisor.create(&config).await.unwrap();
    let mut disk = host.disk(device);
    disk.target.socket = "/nonexistent.sock".into();
    let error = hypervisor.plug_disk(config.vm, &disk).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(hypervisor.list().await.unwrap()[0].disks.is_empty());
    hypervisor
        .plug_disk(config.vm, &host.disk(device))
        .await
        .unwrap();
    assert_eq!(hypervisor.list().await.unwrap()[0].disks, [device].into());
    hypervisor.destroy(config.vm).await.unwrap();
}

#[tokio::test]
async fn a_process_that_hangs_is_listed_as_running_and_can_be_destroyed() {
    let host = Host::new();
    let config = host.guest();
    let quick = QemuConfig {
        start_deadline: Duration::from_millis(300),
        quit_deadline: Duration::from_secs(2),
        ..host.config()
    };
    let hypervisor = host.open().await;
    hypervisor.create(&config).await.unwrap();
    drop(hypervisor);
    rustix::process::kill_process(host.pid(config.vm), Signal::STOP).unwrap();
    let hypervisor = Qemu::open(quick).await.unwrap();
    let listed = hypervisor.list().await.unwrap();
    assert_eq!(
        (listed[0].vm, listed[0].state),
        (config.vm, DomainState::Running)
    );
    assert_eq!(listed[0].disks, [DeviceName::from_position(0)].into());
    let lost = hypervisor.pause(config.vm).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Lost);
    hypervisor.destroy(config.vm).await.unwrap();
    assert_eq!(hypervisor.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_creation_dropped_halfway_can_be_destroyed() {
    let host = Host::new();
    let hypervisor = host.open().await;
    for wait_ms in [1, 5, 20, 60] {
        let config = host.guest();
        let wait = Duration::from_millis(wait_ms);
        let created = tokio::time::timeout(wait, hypervisor.create(&config)).await;
        hypervisor.destroy(config.vm).await.unwrap();
        assert!(!host.file(config.vm, "").exists(), "{wait:?}: {created:?}");
        assert_eq!(hypervisor.list().await.unwrap(), []);
    }
}

#[tokio::test]
async fn one_run_directory_has_one_daemon_and_a_short_name() {
    let host = Host::new();
    let long = QemuConfig::new(host.config().run_dir.join("x".repeat(60)));
    assert_eq!(
        Qemu::open(long).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
    let first = Qemu::open(host.config()).await.unwrap();
    let second = tokio::time::timeout(Duration::from_millis(200), Qemu::open(host.config()));
    assert!(
        second.await.is_err(),
        "the second daemon waits for the first"
    );
    drop(first);
    Qemu::open(host.config()).await.unwrap();
}

#[tokio::test]
async fn qemu_is_in_a_process_group_of_its_own() {
    let host = Host::new();
    let hypervisor = host.open().await;
    let config = host.idle();
    hypervisor.create(&config).await.unwrap();
    let pid = host.pid(config.vm);
    assert_eq!(rustix::process::getpgid(Some(pid)).unwrap(), pid);
    hypervisor.destroy(config.vm).await.unwrap();
    let start = std::time::Instant::now();
    while rustix::process::test_kill_process(pid).is_ok() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "a zombie is left"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

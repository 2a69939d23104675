//! The same plans on real QEMU: a guest with a disk over NBD lives through the whole of its life
//! and through a change of daemons.

use crate::fixture::{call, spec, until, vbd};
use crate::machine::{BOOT, Lab, written};
use crate::memory_disks::{DiskCall, MemoryDisks, Stage};
use database::{Database, Schema};
use hypervisor::{Access, Hypervisor, NbdTarget, ShutdownReason};
use qemu::{Qemu, QemuConfig};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use units::{MIB, VmUuid};
use xenops::{Manner, Operation, PowerState, StartAs, VmSpec, Xenops, XenopsConfig};

struct Host {
    lab: Lab,
    disks: MemoryDisks,
    database: Database,
}

impl Host {
    fn new() -> Self {
        let lab = Lab::new();
        let schema = Schema {
            version: 1,
            classes: Vec::new(),
        };
        let database = Database::open(lab.path("db"), schema).unwrap();
        Self {
            lab,
            disks: MemoryDisks::default(),
            database,
        }
    }

    async fn daemon(&self) -> Xenops {
        let qemu = Qemu::open(QemuConfig::new(self.lab.path("run")))
            .await
            .unwrap();
        let disks = Arc::new(self.disks.clone());
        let config = XenopsConfig::default();
        let xenops = Xenops::open(config, Arc::new(qemu), &self.database, disks)
            .await
            .unwrap();
        let adoption = xenops.adopt().await;
        assert!(
            adoption.failed.is_empty() && adoption.foreign.is_empty(),
            "{adoption:?}"
        );
        xenops
    }

    fn guest(&self, socket: std::path::PathBuf) -> VmSpec {
        let root = vbd(0, Access::ReadWrite);
        self.disks.serve(
            root.vdi,
            NbdTarget {
                socket,
                export: "root".to_owned(),
            },
        );
        VmSpec {
            memory_bytes: 192 * MIB,
            boot: self.lab.boot(),
            vbds: vec![root],
            ..spec()
        }
    }

    /// Waits until the guest, in the domain it has now, has written a text on its console.
    async fn console(&self, xenops: &Xenops, vm: VmUuid, text: &str) {
        let console = xenops.state(vm).console.expect("a console");
        written(&console.log.expect("a record"), text, BOOT).await;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let dirs = std::fs::read_dir(self.lab.path("run"))
            .into_iter()
            .flatten()
            .flatten();
        for pid in dirs.filter_map(|dir| std::fs::read_to_string(dir.path().join("pid")).ok()) {
            let _ = std::process::Command::new("kill")
                .args(["-9", pid.trim()])
                .status();
        }
    }
}

async fn done(operation: Result<Operation, xenops::Error>) {
    operation.unwrap().wait().await.unwrap();
}

#[tokio::test]
async fn a_guest_lives_through_its_whole_life_and_a_change_of_daemons() {
    let host = Host::new();
    let server = host.lab.disk_server("nbd.sock");
    let guest = host.guest(server.socket.clone());
    let vm = guest.vm;
    let xenops = host.daemon().await;
    done(xenops.start(&call(), guest.clone(), StartAs::Running)).await;
    host.console(&xenops, vm, "guest ready").await;
    host.console(&xenops, vm, "disks: vda\n".trim_end()).await;

    done(xenops.pause(&call(), vm)).await;
    let stopped = xenops.stat(vm).await.unwrap().cpu_time_ns;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(
        xenops.stat(vm).await.unwrap().cpu_time_ns,
        stopped,
        "a paused guest runs"
    );
    done(xenops.unpause(&call(), vm)).await;

    let before = xenops.state(vm);
    drop(xenops);
    let xenops = host.daemon().await;
    assert_eq!(xenops.state(vm), before);

    let extra = vbd(1, Access::ReadWrite);
    let target = NbdTarget {
        socket: server.socket.clone(),
        export: "extra".to_owned(),
    };
    host.disks.serve(extra.vdi, target);
    done(xenops.vbd_plug(&call(), vm, extra.clone())).await;
    host.console(&xenops, vm, "disks: vda vdb").await;
    done(xenops.vbd_unplug(&call(), vm, extra.vbd)).await;
    assert_eq!(host.disks.stages(), [(guest.vbds[0].vdi, Stage::Active)]);

    done(xenops.shutdown(&call(), vm, Manner::Clean(BOOT))).await;
    assert_eq!(xenops.state(vm).power, PowerState::Halted);
    assert_eq!(host.disks.stages(), []);
    assert_eq!(xenops.domains().await.unwrap(), []);

    done(xenops.start(&call(), guest, StartAs::Running)).await;
    done(xenops.shutdown(&call(), vm, Manner::Hard)).await;
    assert_eq!(xenops.domains().await.unwrap(), []);
    assert_eq!(host.disks.stages(), []);
    assert_eq!(host.disks.count(DiskCall::Deactivate), 3);
}

#[tokio::test]
async fn a_guest_that_reboots_and_then_powers_off_while_no_daemon_runs_ends_halted() {
    let host = Host::new();
    let server = host.lab.disk_server("nbd.sock");
    let guest = host.guest(server.socket.clone());
    let vm = guest.vm;
    let xenops = host.daemon().await;
    done(xenops.start(&call(), guest, StartAs::Running)).await;
    let first = xenops.state(vm).domid;
    done(xenops.reboot(&call(), vm, Manner::Hard)).await;
    assert_ne!(xenops.state(vm).domid, first);
    host.console(&xenops, vm, "guest ready").await;
    drop(xenops);

    // No daemon: the button is pressed by hand on the monitor.
    let run = host.lab.path("run").join(vm.to_string());
    let mut monitor = tokio::net::UnixStream::connect(run.join("qmp.sock"))
        .await
        .unwrap();
    let button = "{\"execute\":\"qmp_capabilities\"}{\"execute\":\"system_powerdown\"}";
    monitor.write_all(button.as_bytes()).await.unwrap();
    let heard = async {
        let (mut text, mut part) = (Vec::new(), [0; 1024]);
        while !String::from_utf8_lossy(&text).contains("\"SHUTDOWN\"") {
            let len = monitor.read(&mut part).await.unwrap();
            text.extend_from_slice(&part[..len]);
        }
    };
    tokio::time::timeout(BOOT, heard)
        .await
        .expect("the guest to power off");
    drop(monitor);

    let mut told = None;
    let qemu = Qemu::open(QemuConfig::new(host.lab.path("run")))
        .await
        .unwrap();
    for domain in qemu.list().await.unwrap() {
        told = Some(domain.state);
    }
    drop(qemu);
    assert_eq!(
        told,
        Some(hypervisor::DomainState::Shutdown(ShutdownReason::Poweroff))
    );
    let xenops = host.daemon().await;
    let halted = || xenops.state(vm).power == PowerState::Halted;
    until("the halt", Duration::from_secs(10), halted).await;
    assert_eq!(host.disks.stages(), []);
}

//! QEMU passes the suite of all back ends.

use crate::machine::{BOOT, DiskServer, Lab, written};
use hypervisor::conformance::{self, Harness};
use hypervisor::{Access, Boot, DeviceName, DiskConfig, DomainConfig, Hypervisor, NbdTarget};
use qemu::{Qemu, QemuConfig};
use rustix::process::{Pid, Signal};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use units::{MIB, VmUuid};

pub(crate) struct Host {
    server: DiskServer,
    exports: AtomicU32,
    lab: Lab,
}

impl Host {
    pub(crate) fn new() -> Self {
        let lab = Lab::new();
        Self {
            server: lab.disk_server("nbd.sock"),
            exports: AtomicU32::new(0),
            lab,
        }
    }

    pub(crate) fn config(&self) -> QemuConfig {
        QemuConfig::new(self.lab.path("run"))
    }

    pub(crate) fn file(&self, vm: VmUuid, name: &str) -> PathBuf {
        self.config().run_dir.join(vm.to_string()).join(name)
    }

    pub(crate) fn pid(&self, vm: VmUuid) -> Pid {
        let text = std::fs::read_to_string(self.file(vm, "pid")).unwrap();
        Pid::from_raw(text.trim().parse().unwrap()).unwrap()
    }
}

/// A failed test leaves no QEMU behind.
impl Drop for Host {
    fn drop(&mut self) {
        let dirs = std::fs::read_dir(self.config().run_dir)
            .into_iter()
            .flatten()
            .flatten();
        for vm in dirs.filter_map(|entry| entry.file_name().to_str()?.parse::<VmUuid>().ok()) {
            if self.file(vm, "pid").exists() {
                let _ = rustix::process::kill_process(self.pid(vm), Signal::KILL);
            }
        }
    }
}

#[async_trait::async_trait]
impl Harness for Host {
    async fn open(&self) -> Arc<dyn Hypervisor> {
        Arc::new(Qemu::open(self.config()).await.unwrap())
    }

    fn idle(&self) -> DomainConfig {
        DomainConfig {
            vm: VmUuid::random(),
            name: "idle, with commas".to_owned(),
            memory_bytes: 32 * MIB,
            vcpus: 1,
            boot: Boot::Disk,
            disks: Vec::new(),
            serial_console: false,
        }
    }

    fn guest(&self) -> DomainConfig {
        DomainConfig {
            memory_bytes: 192 * MIB,
            boot: self.lab.boot(),
            disks: vec![self.disk(DeviceName::from_position(0))],
            serial_console: true,
            ..self.idle()
        }
    }

    fn disk(&self, device: DeviceName) -> DiskConfig {
        let export = format!("disk {}", self.exports.fetch_add(1, Ordering::Relaxed));
        let target = NbdTarget {
            socket: self.server.socket.clone(),
            export,
        };
        DiskConfig {
            device,
            access: Access::ReadWrite,
            target,
        }
    }

    async fn ready(&self, vm: VmUuid) {
        written(&self.file(vm, "console.log"), "guest ready", BOOT).await;
    }

    async fn kill(&self, vm: VmUuid) {
        rustix::process::kill_process(self.pid(vm), Signal::KILL).unwrap();
    }
}

#[tokio::test]
async fn qemu_is_a_back_end_for_idle_domains() {
    conformance::idle_domains(&Host::new()).await;
}

#[tokio::test]
async fn qemu_is_a_back_end_for_live_guests() {
    conformance::live_guests(&Host::new()).await;
}

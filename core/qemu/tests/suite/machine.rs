//! A tiny Linux guest, a disk server, and waiting for what they do. Also used by the tests of
//! `xenops`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use test_guest::{BUTTON_MODULES, Initramfs, Kernel};

/// Long enough for Debian's kernel to boot under emulation on a busy machine.
pub(crate) const BOOT: Duration = Duration::from_secs(120);

/// The guest opens its button (a press before that is lost), says that it is up, lists its disks twice a second, and powers off at its button.
const SCRIPT: &str = r#"
for event in /sys/class/input/event*; do
    grep -q "Power Button" "$event/device/name" && button=/dev/input/${event##*/}
done
exec 3< "$button"
echo "guest ready"
while :; do echo disks: $(ls /sys/block); sleep 0.5; done &
head -c 24 <&3 > /dev/null
echo "power button"
"#;

/// A directory for one test with a kernel's initial file system in it. Its path is short, for the
/// sake of the sockets below it.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
    kernel: Kernel,
}

impl Lab {
    pub(crate) fn new() -> Self {
        for tool in ["qemu-system-x86_64", "nbdkit"] {
            let found = Command::new(tool)
                .arg("--version")
                .stdout(Stdio::null())
                .status();
            assert!(
                found.is_ok(),
                "{tool} is not installed: run `cargo xtask setup`"
            );
        }
        let kernel = Kernel::find().unwrap();
        let modules = [&["virtio_pci", "virtio_blk"], BUTTON_MODULES].concat();
        let initramfs = Initramfs::new(&kernel, &modules).unwrap().build(SCRIPT);
        let dir = tempfile::Builder::new()
            .prefix("xq")
            .tempdir_in("/tmp")
            .unwrap();
        std::fs::write(dir.path().join("initramfs"), initramfs).unwrap();
        Self { dir, kernel }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn boot(&self) -> hypervisor::Boot {
        hypervisor::Boot::Kernel {
            kernel: self.kernel.image.clone(),
            ramdisk: Some(self.path("initramfs")),
            cmdline: "console=ttyS0 quiet panic=-1".to_owned(),
        }
    }

    /// Serves a disk of zeros from memory; any export name is the same disk.
    pub(crate) fn disk_server(&self, name: &str) -> DiskServer {
        let socket = self.path(name);
        let child = Command::new("nbdkit")
            .arg("-f")
            .arg("-U")
            .arg(&socket)
            .args(["memory", "8M"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let server = DiskServer { child, socket };
        let start = Instant::now();
        while !server.socket.exists() {
            assert!(start.elapsed() < BOOT, "nbdkit does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }
}

/// A running NBD server; killed when dropped.
pub(crate) struct DiskServer {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Drop for DiskServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a text in a growing file.
pub(crate) async fn written(file: &Path, text: &str, limit: Duration) {
    let start = Instant::now();
    loop {
        let content = std::fs::read(file).unwrap_or_default();
        let content = String::from_utf8_lossy(&content);
        if content.contains(text) {
            return;
        }
        assert!(
            start.elapsed() < limit,
            "no {text:?} in {limit:?}, but:\n{content}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

//! Builds a tiny Linux guest for tests: Debian's kernel, busybox, a script.
//!
//! `cargo xtask setup` puts `vmlinuz` and `modules/` into `target/test-kernel`; [`Kernel::find`]
//! looks there, or where `XYLEM_TEST_KERNEL` points. [`Initramfs`] packs busybox, the modules that
//! a virtio guest needs in the order they must be loaded, and an init script.

#![forbid(unsafe_code)]

mod cpio;
mod modules;

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules that a guest on virtio-blk with ext4 needs; what they depend on is found out.
pub const DISK_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

/// Modules that let the guest see its power button.
pub const BUTTON_MODULES: &[&str] = &["evdev", "button"];

/// A kernel image and the directory of its modules.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// The directory that holds `kernel/`.
    pub modules: PathBuf,
}

impl Kernel {
    /// Finds the test kernel that the set-up fetched.
    pub fn find() -> Result<Self> {
        let dir = match std::env::var_os("XYLEM_TEST_KERNEL") {
            Some(dir) => PathBuf::from(dir),
            None => target_dir()?.join("test-kernel"),
        };
        let kernel = Self {
            image: dir.join("vmlinuz"),
            modules: dir.join("modules"),
        };
        if !kernel.image.exists() || !kernel.modules.exists() {
            bail!(
                "no test kernel in {}: run `cargo xtask setup` first",
                dir.display()
            );
        }
        Ok(kernel)
    }
}

/// Cargo's target directory, seen from the running test or tool.
pub fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let found = exe
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").exists());
    found
        .map(Path::to_path_buf)
        .with_context(|| format!("no target directory above {exe:?}"))
}

/// An initial RAM file system in the making.
#[derive(Debug)]
pub struct Initramfs {
    archive: cpio::Archive,
    load: Vec<String>,
}

impl Initramfs {
    /// Starts with busybox (statically linked), the usual directories and `modules`.
    pub fn new(kernel: &Kernel, modules: &[&str]) -> Result<Self> {
        let mut archive = cpio::Archive::default();
        for dir in [
            "bin",
            "dev",
            "etc",
            "etc/acpi",
            "etc/acpi/PWRF",
            "mnt",
            "modules",
            "proc",
            "sys",
            "tmp",
        ] {
            archive.directory(dir);
        }
        let busybox = fs::read("/bin/busybox").or_else(|_| fs::read("/usr/bin/busybox"));
        archive.file(
            "bin/busybox",
            0o755,
            &busybox.context("busybox is not installed")?,
        );
        archive.symlink("bin/sh", "busybox");
        let mut load = Vec::new();
        for (name, file) in modules::resolve(&kernel.modules, modules)? {
            archive.file(&format!("modules/{name}.ko"), 0o644, &fs::read(&file)?);
            load.push(name);
        }
        Ok(Self { archive, load })
    }

    /// Adds a file.
    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.archive.file(path, mode, content);
        self
    }

    /// Finishes with an init that mounts the usual file systems, loads the modules, runs `script`
    /// (busybox sh, with every applet on the path) and powers off when the script ends.
    pub fn build(mut self, script: &str) -> Vec<u8> {
        let mut init = String::from(
            "#!/bin/busybox sh\nexport PATH=/bin\n/bin/busybox --install -s /bin\n\
             mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n",
        );
        for module in &self.load {
            init.push_str(&format!(
                "insmod /modules/{module}.ko || echo INSMOD-FAILED {module}\n"
            ));
        }
        init.push_str(script);
        init.push_str("\nsync\npoweroff -f\n");
        self.archive.file("init", 0o755, init.as_bytes());
        self.archive.finish()
    }
}

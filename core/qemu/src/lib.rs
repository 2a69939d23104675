//! Hypervisor back end: QEMU driven over QMP.
//!
//! Each domain is one `qemu-system-x86_64` process in a process group of its own. It does not
//! depend on the daemon: when that dies the guest goes on, and the next [`Qemu::open`] finds it by
//! its directory. This crate parses no images: disks are NBD exports on unix sockets.
//!
//! ```text
//! <run_dir>/lock                held by the daemon that rules this directory
//! <run_dir>/domids              the last domain number given
//! <run_dir>/<vm uuid>/          mode 0700
//!     domain.json               what the domain was made from, its number, its disks
//!     qemu.log                  QEMU's stderr; QEMU holds a lock on it for as long as it lives
//!     pid                       written by QEMU
//!     qmp.sock                  control; one client
//!     events.log, events.in     a second monitor that writes all events to a file
//!     console.sock, console.log the guest's first serial port, live and recorded
//! ```
//!
//! **Alive or dead** is not a matter of pids: QEMU inherits a locked descriptor of `qemu.log`, so the
//! lock is free exactly when the process is gone, from its first instant on.
//!
//! **Why a guest ended** must be known even if no daemon listened. QEMU runs with `-action
//! reboot=shutdown,shutdown=pause,panic=pause`: whatever the guest does, the process stays, stopped.
//! The state says that it ended, the recorded events say why. No guest reboots by itself.
//!
//! **A guest cannot fill the host.** Console and event files are cut by the daemon when they grow
//! and, while there is no daemon, limited by `RLIMIT_FSIZE`.
//!
//! What a guest must do:
//! * *power off cleanly*: react to the ACPI power button (Linux: modules `button` and, for
//!   programs that read `/dev/input`, `evdev`; systemd and acpid need nothing more);
//! * *reboot cleanly*: react to Ctrl-Alt-Delete (Linux without an init that says otherwise resets
//!   at once; systemd reboots in order);
//! * *hot plug*: ACPI PCI hot plug, built into Debian's kernels; modules `virtio_pci`, `virtio_blk`.
//!   A disk's serial number is its device name, so it is `/dev/disk/by-id/virtio-xvdb`;
//! * *report crashes*: a driver for pvpanic; without one a panic shows as what the guest does next.
//!
//! The machine is `pc`: its root bus takes hot-plugged devices with no bridges prepared beforehand,
//! and it boots Debian's stock kernel as fast as `q35` under emulation. Slots limit it to 28 disks.

#![forbid(unsafe_code)]

mod accelerator;
mod arguments;
mod backend;
mod instance;
mod process;
mod qmp;
mod recording;
mod run_dir;

pub use accelerator::Accelerator;
pub use backend::{Qemu, QemuConfig};

//! Whether this machine runs guests in hardware. Found out by trying, not by looking.

use crate::process;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// How long a trial guest must live for the accelerator to count as working.
const TRIAL: Duration = Duration::from_millis(500);

/// How guest code is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// KVM where a trial shows that it works, else software emulation.
    Auto,
    /// KVM.
    Kvm,
    /// Software emulation.
    Tcg,
}

impl Accelerator {
    /// Decides `Auto`. A `/dev/kvm` that can be opened proves little: nested and emulated hosts
    /// have one with which QEMU dies at the first instruction, so firmware is run for a moment.
    pub(crate) async fn decide(self, binary: &Path) -> Self {
        if self != Self::Auto {
            return self;
        }
        let open = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm");
        if open.is_err() {
            return Self::Tcg;
        }
        let trial = Command::new(binary)
            .args([
                "-accel", "kvm", "-cpu", "host", "-machine", "pc", "-m", "16",
            ])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let Ok(mut trial) = trial else {
            return Self::Tcg;
        };
        let works = tokio::time::timeout(TRIAL, trial.wait()).await.is_err();
        process::reap(trial);
        tracing::info!(works, "tried kvm");
        if works { Self::Kvm } else { Self::Tcg }
    }

    pub(crate) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg | Self::Auto => ["-accel", "tcg", "-cpu", "qemu64"],
        }
    }
}

//! Whether this machine runs guests in hardware. Found out by trying, not by looking.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// How long a trial guest must live for the accelerator to count as working.
const TRIAL: Duration = Duration::from_millis(500);

/// How long QEMU may take to set it up and greet; a busy machine takes seconds.
const START: Duration = Duration::from_secs(20);

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
        let works = kvm_lives(binary).await;
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

async fn kvm_lives(binary: &Path) -> bool {
    let trial = Command::new(binary)
        .args([
            "-accel", "kvm", "-cpu", "host", "-machine", "pc", "-m", "16",
        ])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let Ok(mut trial) = trial else { return false };
    // QEMU greets when the processor is set up. Before that it may be about to die, however long it
    // takes on a busy machine, so its life counts from there.
    let mut greeting = trial.stdout.take().map(|out| BufReader::new(out).lines());
    let greeted = match &mut greeting {
        Some(lines) => {
            let line = tokio::time::timeout(START, lines.next_line()).await;
            matches!(line, Ok(Ok(Some(_))))
        }
        None => false,
    };
    // Its standard input stays open: the end of it is an order to leave.
    let input = trial.stdin.take();
    let lives = greeted && tokio::time::timeout(TRIAL, trial.wait()).await.is_err();
    drop(input);
    // An error means that it has ended by itself meanwhile.
    let _ = trial.kill().await;
    lives
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn emulator(dir: &Path, script: &str) -> std::path::PathBuf {
        let path = dir.join("emulator");
        let pid = dir.join("pid");
        let script = format!("#!/bin/sh\necho $$ > {}\n{script}\n", pid.display());
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        path
    }

    #[tokio::test]
    async fn what_outlives_its_trial_works_and_is_ended_and_what_dies_does_not_work() {
        let dir = tempfile::tempdir().unwrap();
        assert!(kvm_lives(&emulator(dir.path(), "echo '{}'; exec sleep 600")).await);
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
        assert!(
            !Path::new("/proc").join(pid.trim()).exists(),
            "the trial goes on"
        );
        assert!(!kvm_lives(&emulator(dir.path(), "exit 1")).await);
        assert!(!kvm_lives(&emulator(dir.path(), "sleep 1; exit 1")).await);
        assert!(!kvm_lives(&emulator(dir.path(), "echo '{}'; exit 1")).await);
        assert!(!kvm_lives(&dir.path().join("none")).await);
        assert_eq!(
            Accelerator::Tcg.decide(Path::new("/none")).await,
            Accelerator::Tcg
        );
    }
}

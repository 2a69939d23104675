//! Running other programs to their end, and ending servers: by pid, never by name.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// How long a server may take to end.
const END: Duration = Duration::from_secs(10);

/// Runs a command and returns what it printed; ends it when it takes too long.
///
/// # Errors
/// When it cannot start, fails or takes too long; the text ends with what it complained of.
///
/// # Cancel safety
/// Safe: the command is ended.
pub(crate) async fn output(mut command: Command, deadline: Duration) -> Result<String> {
    let shown = format!("{:?}", command.as_std());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let out = tokio::time::timeout(deadline, command.output())
        .await
        .with_context(|| format!("{shown} took longer than {deadline:?}"))?
        .with_context(|| format!("cannot start {shown}"))?;
    if !out.status.success() {
        let complaint = String::from_utf8_lossy(&out.stderr);
        bail!("{shown} ended with {}: {}", out.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Sends a signal to a process; one that is gone already is as good.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Asks a child to end and waits until it has.
///
/// # Errors
/// When it does not end in time; it is killed then.
pub(crate) async fn end(child: &mut Child, asked: Signal) -> Result<()> {
    if let Some(pid) = child.id() {
        signal(pid, asked);
    }
    match tokio::time::timeout(END, child.wait()).await {
        Ok(status) => status.map(drop).context("waiting for a child"),
        Err(_) => {
            child.kill().await.context("killing a child")?;
            bail!("a server did not end within {END:?} and was killed")
        }
    }
}

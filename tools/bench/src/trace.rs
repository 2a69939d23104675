//! Counts a server's system calls and file system flushes during a run of the client.
//!
//! `perf` counts in the kernel and disturbs nothing; without it `strace` stops the server at each
//! call, which makes it slower and its batches larger, and file system flushes stay uncounted.

use crate::fio::{self, Job, Outcome};
use crate::process;
use anyhow::{Context, Result};
use rustix::process::Signal;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

const SYSCALLS: &str = "raw_syscalls:sys_enter";
const SYNCS: &str = "ext4:ext4_sync_file_enter";

/// How long the check for perf may take.
const CHECK: Duration = Duration::from_secs(10);

/// What counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracer {
    Perf,
    Strace,
}

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Counts {
    pub(crate) syscalls: u64,
    /// Flushes that reached an ext4; `None` where that cannot be counted.
    pub(crate) syncs: Option<u64>,
}

impl Tracer {
    /// Finds out which one works here.
    pub(crate) async fn find() -> Self {
        let mut perf = Command::new("perf");
        perf.args(["stat", "-x,", "-e", SYSCALLS, "-e", SYNCS, "true"]);
        perf.stderr(std::process::Stdio::piped());
        match tokio::time::timeout(CHECK, perf.kill_on_drop(true).output()).await {
            Ok(Ok(out))
                if perf_count(&String::from_utf8_lossy(&out.stderr), SYSCALLS) > Some(0) =>
            {
                Self::Perf
            }
            _ => Self::Strace,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Perf => "perf",
            Self::Strace => "strace",
        }
    }

    /// Runs a job with the counter attached to the server.
    ///
    /// # Errors
    /// When the counter or the client fails.
    ///
    /// # Cancel safety
    /// Safe: both are ended.
    pub(crate) async fn run(
        self,
        job: &Job,
        pid: u32,
        uri: &str,
        dir: &Path,
    ) -> Result<(Outcome, Counts)> {
        match self {
            Self::Perf => perf(job, pid, uri, dir).await,
            Self::Strace => strace(job, pid, uri, dir).await,
        }
    }
}

async fn perf(job: &Job, pid: u32, uri: &str, dir: &Path) -> Result<(Outcome, Counts)> {
    let (report, counts) = (dir.join("fio.json"), dir.join("perf.csv"));
    let client = job.command(uri, &report);
    let mut perf = Command::new("perf");
    perf.args(["stat", "-x,", "-e", SYSCALLS, "-e", SYNCS, "-o"])
        .arg(&counts)
        .args(["-p", &pid.to_string(), "--"])
        .arg(client.as_std().get_program())
        .args(client.as_std().get_args());
    process::output(perf, job.deadline()).await?;
    let text = std::fs::read_to_string(&counts).context("reading perf's counts")?;
    let counts = Counts {
        syscalls: perf_count(&text, SYSCALLS).context("no count of system calls")?,
        syncs: perf_count(&text, SYNCS),
    };
    Ok((fio::outcome(&report)?, counts))
}

async fn strace(job: &Job, pid: u32, uri: &str, dir: &Path) -> Result<(Outcome, Counts)> {
    let table = dir.join("strace.txt");
    let mut strace = Command::new("strace")
        .args(["-q", "-c", "-f", "-o"])
        .arg(&table)
        .args(["-p", &pid.to_string()])
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start strace")?;
    let outcome = job.run(uri, dir).await;
    process::end(&mut strace, Signal::INT).await?;
    let text = std::fs::read_to_string(&table).context("reading strace's table")?;
    let counts = Counts {
        syscalls: strace_total(&text).context("no total in strace's table")?,
        syncs: None,
    };
    Ok((outcome?, counts))
}

/// A count in perf's comma-separated output: `count,unit,event,…`.
fn perf_count(text: &str, event: &str) -> Option<u64> {
    let mut lines = text.lines().map(|line| line.split(','));
    lines.find_map(|mut fields| {
        let count = fields.next()?;
        (fields.nth(1)? == event).then(|| count.parse().ok())?
    })
}

/// The calls in the last line of strace's table: `100.00 seconds usecs/call calls [errors] total`.
fn strace_total(text: &str) -> Option<u64> {
    let total = text.lines().find(|line| line.ends_with(" total"))?;
    total.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perfs_counts_are_found_by_event() {
        let text = "# started\n\n1234,,raw_syscalls:sys_enter,501,100.00,,\n\
                    <not supported>,,ext4:ext4_sync_file_enter,0,100.00,,\n";
        assert_eq!(perf_count(text, SYSCALLS), Some(1234));
        assert_eq!(perf_count(text, SYNCS), None);
    }

    #[test]
    fn straces_total_is_found_with_and_without_errors() {
        let head = "% time     seconds  usecs/call     calls    errors syscall\n";
        let with = format!("{head}100.00    0.000123           1      8123        12 total\n");
        let without = format!("{head}100.00    0.000123           1      8123           total\n");
        assert_eq!(strace_total(&with), Some(8123));
        assert_eq!(strace_total(&without), Some(8123));
        assert_eq!(strace_total(head), None);
    }
}

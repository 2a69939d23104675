//! What the kernel has on a process's account: CPU time and memory.

use anyhow::{Context, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use std::fs;
use std::time::Duration;

/// CPU seconds, user and system, of all threads a process has and had, io_uring's workers among
/// them. From the process's CPU clock: `/proc/PID/stat` has the same in steps of 10 ms.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let process = Pid::from_raw(i32::try_from(pid).context("a process id")?);
    let clock = clock_getcpuclockid(process);
    let time = clock.and_then(clock_gettime);
    let time = time.with_context(|| format!("CPU clock of process {pid}"))?;
    Ok(Duration::from(time).as_secs_f64())
}

/// Bytes that a process had storage write for it; nothing where there is no storage, as on tmpfs.
pub(crate) fn written_bytes(pid: u32) -> Result<u64> {
    let text = read(pid, "io")?;
    let lines = text.lines().filter_map(|line| line.split_once(": "));
    let found = lines.into_iter().find(|(name, _)| *name == "write_bytes");
    let (_, bytes) = found.context("write_bytes in /proc/PID/io")?;
    Ok(bytes.trim().parse()?)
}

/// Bytes of memory a process has now.
pub(crate) fn rss_bytes(pid: u32) -> Result<u64> {
    memory(&read(pid, "status")?, "VmRSS").context("VmRSS in /proc/PID/status")
}

/// Most bytes of memory a process had.
pub(crate) fn rss_bytes_max(pid: u32) -> Result<u64> {
    memory(&read(pid, "status")?, "VmHWM").context("VmHWM in /proc/PID/status")
}

/// The machine's load over the last minute.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

fn read(pid: u32, what: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{what}");
    fs::read_to_string(&path).with_context(|| format!("reading {path}"))
}

fn memory(status: &str, name: &str) -> Option<u64> {
    let mut fields = status.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(field, _)| *field == name)?;
    let kib = value.trim().strip_suffix(" kB")?;
    kib.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_found_by_its_whole_name() {
        let status = "VmHWMX:\t 9 kB\nVmHWM:\t    1234 kB\nVmRSS:\t    12 pages\n";
        assert_eq!(memory(status, "VmHWM"), Some(1234 * 1024));
        assert_eq!(memory(status, "VmRSS"), None);
        assert_eq!(memory(status, "VmSwap"), None);
    }

    #[test]
    fn this_process_has_used_memory_and_no_negative_time() {
        let pid = std::process::id();
        assert!(rss_bytes(pid).unwrap() > 0);
        assert!(rss_bytes_max(pid).unwrap() >= 1 << 18);
        assert!(cpu_seconds(pid).unwrap() < 3600.0);
        assert!(written_bytes(pid).unwrap() < 1 << 40);
    }
}

//! What the kernel has on a process's account: CPU time and memory.

use anyhow::{Context, Result};
use std::fs;

/// CPU seconds, user and system, of all threads a process has and had.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let ticks = cpu_ticks(&read(pid, "stat")?).context("times in /proc/PID/stat")?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
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

/// Sum of `utime` and `stime`. The second field is the name in brackets and may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
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
    fn times_are_found_behind_any_name() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 40 2 11 12 20 0 1 0 1 2 3";
        assert_eq!(cpu_ticks(&format!("7 (nbd) {rest}")), Some(42));
        assert_eq!(cpu_ticks(&format!("7 (a) S 9 (b) {rest}")), Some(42));
        assert_eq!(cpu_ticks("7 (nbd) S 1 2"), None);
    }

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
    }
}

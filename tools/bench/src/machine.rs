//! The machine beside the measurement: who else used it meanwhile, what is installed, its caches.

use crate::process;
use anyhow::{Context, Result};
use std::fs;
use std::time::{Duration, Instant};
use tokio::process::Command;

/// More than this, in cores, and a run counts as disturbed. A quiet machine with timers and a
/// shell stays below a tenth of it.
pub(crate) const DISTURBED_CORES: f64 = 0.25;

/// `PF_KTHREAD` of the kernel's `include/linux/sched.h`: a kernel thread. Its work (writing back,
/// journals) is a consequence of the measurement, not a disturbance of it.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// CPU time used up to one instant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    at: Instant,
    /// All of the machine but interrupts and idling; what the hypervisor took away included.
    busy_s: f64,
    kernel_threads_s: f64,
    /// This process and the programs it waited for.
    own_s: f64,
}

impl Usage {
    /// Reads what has been used so far.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub(crate) fn now() -> Result<Self> {
        let all = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        let own = fs::read_to_string("/proc/self/stat").context("reading /proc/self/stat")?;
        let own = Process::parse(&own).context("times in /proc/self/stat")?;
        let tick_s = 1.0 / rustix::param::clock_ticks_per_second() as f64;
        let seconds = |ticks: u64| ticks as f64 * tick_s;
        Ok(Self {
            at: Instant::now(),
            busy_s: seconds(busy_ticks(&all).context("times in /proc/stat")?),
            kernel_threads_s: seconds(kernel_thread_ticks()?),
            own_s: seconds(own.ticks.saturating_add(own.child_ticks)),
        })
    }

    /// Cores that others used on average since then; `known_s` is CPU time of ours that is not in
    /// this process's account, such as that of servers.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub(crate) fn foreign_cores_since(&self, known_s: f64) -> Result<f64> {
        let now = Self::now()?;
        let seconds = now.at.duration_since(self.at).as_secs_f64().max(0.01);
        let busy = now.busy_s - self.busy_s;
        let ours = (now.own_s - self.own_s) + (now.kernel_threads_s - self.kernel_threads_s);
        Ok(((busy - ours - known_s) / seconds).max(0.0))
    }
}

/// Whether the kernel let go of its clean caches; needs root.
pub(crate) fn drop_caches() -> bool {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// The versions of what is measured with and against, in one line.
pub(crate) async fn versions() -> String {
    let mut all = Vec::new();
    for (program, flag) in [
        ("fio", "--version"),
        ("qemu-nbd", "--version"),
        ("nbdkit", "--version"),
    ] {
        let mut command = Command::new(program);
        command.arg(flag);
        let text = process::output(command, Duration::from_secs(5)).await;
        let text = text.unwrap_or_else(|_| format!("{program}: not here"));
        all.push(text.lines().next().unwrap_or_default().to_owned());
    }
    let kernel = rustix::system::uname();
    all.push(format!("Linux {}", kernel.release().to_string_lossy()));
    all.join(", ")
}

/// CPU time of one process as its `stat` file has it.
struct Process {
    flags: u64,
    ticks: u64,
    child_ticks: u64,
}

impl Process {
    /// The second field is the name in brackets and may hold anything.
    fn parse(stat: &str) -> Option<Self> {
        let (_, after_name) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_whitespace().take(15).collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            flags: number(6)?,
            ticks: number(11)?.checked_add(number(12)?)?,
            child_ticks: number(13)?.checked_add(number(14)?)?,
        })
    }
}

fn kernel_thread_ticks() -> Result<u64> {
    let mut sum = 0u64;
    for entry in fs::read_dir("/proc").context("reading /proc")? {
        let entry = entry?;
        let name = entry.file_name();
        if !name
            .to_string_lossy()
            .starts_with(|c: char| c.is_ascii_digit())
        {
            continue;
        }
        // It may have ended meanwhile.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let process = Process::parse(&stat).filter(|p| p.flags & KERNEL_THREAD != 0);
        sum = sum.saturating_add(process.map_or(0, |p| p.ticks));
    }
    Ok(sum)
}

/// user + nice + system + steal of the first line of `/proc/stat`.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .map_while(|f| f.parse().ok())
        .collect();
    [0usize, 1, 2, 7]
        .iter()
        .try_fold(0u64, |sum, index| sum.checked_add(*fields.get(*index)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idling_and_interrupts_are_not_busy_and_stolen_time_is() {
        let stat = "cpu  10 20 30 1000 2000 3000 4000 5 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_ticks(stat), Some(65));
        assert_eq!(busy_ticks("cpu0 1 2 3\n"), None);
    }

    #[test]
    fn times_and_flags_are_found_behind_any_name() {
        let rest = "S 1 2 3 4 5 2129984 7 8 9 10 40 2 11 12 20 0 1 0 1 2 3";
        for name in ["kthreadd", "a) S 9 (b"] {
            let process = Process::parse(&format!("7 ({name}) {rest}")).unwrap();
            assert_eq!((process.ticks, process.child_ticks), (42, 23));
            assert_ne!(process.flags & KERNEL_THREAD, 0);
        }
        assert!(Process::parse("7 (nbd) S 1 2").is_none());
    }

    #[test]
    fn own_work_is_not_foreign() {
        let before = Usage::now().unwrap();
        let spun = Instant::now();
        while spun.elapsed() < Duration::from_millis(50) {}
        let all = before.foreign_cores_since(0.0).unwrap();
        let less = before.foreign_cores_since(1e6).unwrap();
        assert!(all.is_finite() && less == 0.0);
    }
}

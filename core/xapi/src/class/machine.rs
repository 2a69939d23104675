//! What the kernel says about this machine: processors and memory. Unknown things are zero or empty.

use database::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Processors that are told of one by one.
const CPUS_MAX: usize = 1024;

/// One processor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cpu {
    pub(super) vendor: String,
    pub(super) model_name: String,
    pub(super) speed_mhz: i64,
    pub(super) flags: String,
    socket: String,
}

/// The machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) cpus: Vec<Cpu>,
    pub(super) memory_total_bytes: i64,
    pub(super) memory_free_bytes: i64,
}

impl Machine {
    /// Asks the kernel.
    pub(super) fn read() -> Self {
        let text = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self::parse(&text("/proc/cpuinfo"), &text("/proc/meminfo"))
    }

    fn parse(cpuinfo: &str, meminfo: &str) -> Self {
        let memory = |key: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(key));
            let kib = line.and_then(|rest| rest.split_whitespace().nth(1)?.parse::<i64>().ok());
            kib.unwrap_or_default().saturating_mul(1024)
        };
        Self {
            cpus: cpuinfo
                .split("\n\n")
                .filter(|block| !block.trim().is_empty())
                .take(CPUS_MAX)
                .map(cpu)
                .collect(),
            memory_total_bytes: memory("MemTotal"),
            memory_free_bytes: memory("MemAvailable"),
        }
    }

    /// How many processors there are.
    pub(super) fn cpu_count(&self) -> i64 {
        i64::try_from(self.cpus.len()).unwrap_or(i64::MAX)
    }

    /// The entries of `host.cpu_info`.
    pub(super) fn cpu_info(&self) -> BTreeMap<String, Value> {
        let first = self.cpus.first().cloned().unwrap_or_default();
        let sockets: BTreeSet<_> = self.cpus.iter().map(|cpu| &cpu.socket).collect();
        [
            ("cpu_count", self.cpus.len().to_string()),
            ("socket_count", sockets.len().to_string()),
            ("vendor", first.vendor),
            ("modelname", first.model_name),
            ("speed", first.speed_mhz.to_string()),
            ("flags", first.flags),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), Value::String(value)))
        .collect()
    }
}

fn cpu(block: &str) -> Cpu {
    let value = |key: &str| {
        let line = block.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            (found.trim() == key).then(|| value.trim().to_owned())
        });
        line.unwrap_or_default()
    };
    let speed = value("cpu MHz");
    let whole = speed.split('.').next().and_then(|mhz| mhz.parse().ok());
    Cpu {
        vendor: value("vendor_id"),
        model_name: value("model name"),
        speed_mhz: whole.unwrap_or_default(),
        flags: value("flags"),
        socket: value("physical id"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processors_of_one_socket_are_read() {
        let block = |number| {
            format!(
                "processor\t: {number}\nvendor_id\t: GenuineIntel\nmodel name\t: Some CPU\n\
                 cpu MHz\t\t: 2100.123\nphysical id\t: 0\nflags\t\t: fpu vme\n"
            )
        };
        let text = format!("{}\n{}\n", block(0), block(1));
        let machine = Machine::parse(&text, "MemTotal:  2048 kB\nMemAvailable: 1024 kB\n");
        assert_eq!(machine.cpu_count(), 2);
        assert_eq!(machine.memory_total_bytes, 2 << 20);
        assert_eq!(machine.memory_free_bytes, 1 << 20);
        let info = machine.cpu_info();
        for (key, value) in [("cpu_count", "2"), ("socket_count", "1"), ("speed", "2100")] {
            assert_eq!(info.get(key), Some(&Value::from(value)), "{key}");
        }
        assert_eq!(Machine::parse("", "").cpu_count(), 0);
    }
}

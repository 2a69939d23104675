//! Where the metrics stream gets its readings: the data paths, the domains, the host.

use async_trait::async_trait;
use datapath::protocol::DiskStats;
use metrics::{Key, Kind, Reading, Source};
use std::sync::Arc;
use storage::{DataPaths, StorageManager};
use units::{HostUuid, RequestId};
use xenops::{PowerState, Xenops};

/// Per-disk counters of every data path that serves a VM, under the names xcp-rrdd uses.
pub(crate) struct DataPathSource {
    pub(crate) storage: StorageManager,
    pub(crate) data_paths: Arc<dyn DataPaths>,
}

/// `vbd/<vm uuid>/<device>`, as xenops names datapaths.
fn vm_and_device(dp: &str) -> Option<(&str, &str)> {
    let (vm, device) = dp.strip_prefix("vbd/")?.split_once('/')?;
    Some((vm, device))
}

fn disk_readings(vm: &str, device: &str, stats: &DiskStats) -> Vec<Reading> {
    let counters = [
        ("read", stats.read_bytes),
        ("write", stats.write_bytes),
        ("iops_read", stats.reads),
        ("iops_write", stats.writes),
        ("flushes", stats.flushes),
        ("errors", stats.errors),
    ];
    let key = |name: &str| Key {
        class: "VM",
        uuid: vm.to_owned(),
        name: format!("vbd_{device}_{name}"),
    };
    let mut readings: Vec<Reading> = counters
        .iter()
        .map(|(name, value)| Reading {
            key: key(name),
            kind: Kind::Derive,
            value: *value as f64,
        })
        .collect();
    let value = f64::from(stats.in_flight);
    readings.push(Reading {
        key: key("inflight"),
        kind: Kind::Gauge,
        value,
    });
    readings
}

#[async_trait]
impl Source for DataPathSource {
    fn name(&self) -> &str {
        "data paths"
    }

    async fn read(&self) -> Vec<Reading> {
        let request_id = RequestId::random();
        let mut readings = Vec::new();
        let users = self.storage.dp_list();
        for process in self.data_paths.running().await.unwrap_or_default() {
            // A process that went away in between has nothing to say.
            let disks = self.data_paths.disks(&request_id, &process).await;
            let Ok(Some(disks)) = disks else { continue };
            for disk in disks {
                // A disk is a VDI; whoever has a datapath to it uses it.
                let of_disk = users
                    .iter()
                    .filter(|user| user.vdi.to_string() == disk.disk.as_str());
                for user in of_disk {
                    if let Some((vm, device)) = vm_and_device(user.dp.as_str()) {
                        readings.extend(disk_readings(vm, device, &disk.stats));
                    }
                }
            }
        }
        readings
    }
}

/// CPU time and memory of every running domain.
pub(crate) struct DomainSource(pub(crate) Xenops);

#[async_trait]
impl Source for DomainSource {
    fn name(&self) -> &str {
        "domains"
    }

    async fn read(&self) -> Vec<Reading> {
        let mut readings = Vec::new();
        for vm in self.0.states() {
            if vm.power == PowerState::Halted {
                continue;
            }
            let Ok(stat) = self.0.stat(vm.vm).await else {
                continue;
            };
            let key = |name: &str| Key {
                class: "VM",
                uuid: vm.vm.to_string(),
                name: name.to_owned(),
            };
            // A fraction of the CPUs the domain has.
            let cpu_s = stat.cpu_time_ns as f64 / 1e9 / f64::from(stat.vcpus.max(1));
            readings.push(Reading {
                key: key("cpu_usage"),
                kind: Kind::Derive,
                value: cpu_s,
            });
            let value = stat.memory_bytes as f64;
            readings.push(Reading {
                key: key("memory"),
                kind: Kind::Gauge,
                value,
            });
        }
        readings
    }
}

/// Load and memory of this host, from `/proc`.
pub(crate) struct HostSource(pub(crate) HostUuid);

fn load_average(loadavg: &str) -> Option<f64> {
    loadavg.split_ascii_whitespace().next()?.parse().ok()
}

/// A line of `/proc/meminfo`, in bytes.
fn memory_bytes(meminfo: &str, name: &str) -> Option<f64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: f64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

#[async_trait]
impl Source for HostSource {
    fn name(&self) -> &str {
        "host"
    }

    async fn read(&self) -> Vec<Reading> {
        let loadavg = tokio::fs::read_to_string("/proc/loadavg")
            .await
            .unwrap_or_default();
        let meminfo = tokio::fs::read_to_string("/proc/meminfo")
            .await
            .unwrap_or_default();
        let values = [
            ("loadavg", load_average(&loadavg)),
            ("memory_total_bytes", memory_bytes(&meminfo, "MemTotal")),
            ("memory_free_bytes", memory_bytes(&meminfo, "MemAvailable")),
        ];
        let reading = |(name, value): (&str, Option<f64>)| {
            let key = Key {
                class: "host",
                uuid: self.0.to_string(),
                name: name.to_owned(),
            };
            Some(Reading {
                key,
                kind: Kind::Gauge,
                value: value?,
            })
        };
        values.into_iter().filter_map(reading).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_datapaths_of_vms_are_theirs() {
        let vm = "5e1c0d6e-0000-4000-8000-000000000001";
        assert_eq!(vm_and_device(&format!("vbd/{vm}/xvda")), Some((vm, "xvda")));
        assert_eq!(vm_and_device("export/5e1c"), None);
        assert_eq!(vm_and_device("vbd/5e1c"), None);
    }

    #[test]
    fn proc_files_are_read_in_bytes() {
        assert_eq!(load_average("0.50 0.40 0.30 1/100 999\n"), Some(0.5));
        let meminfo = "MemTotal:       1000 kB\nMemAvailable:    250 kB\n";
        assert_eq!(memory_bytes(meminfo, "MemTotal"), Some(1_024_000.0));
        assert_eq!(memory_bytes(meminfo, "MemAvailable"), Some(256_000.0));
        assert_eq!(memory_bytes(meminfo, "SwapFree"), None);
    }
}

//! Layers merged by the real data path, while a guest writes and while nobody does.

use crate::bench::{Bench, ctx, io, kill};
use datapath::Access;
use std::path::PathBuf;
use storage::{MergeRules, NbdEndpoint, NewName, Watch};
use units::VdiUuid;

const DISK_BYTES: u64 = 64 << 20;

impl Bench {
    async fn merge(&self) -> u32 {
        let (rules, caller) = (MergeRules::default(), ctx());
        let merged = self
            .manager
            .sr_merge(&caller, self.sr, rules, Watch::default());
        merged.await.expect("merged")
    }

    async fn layers(&self, vdi: VdiUuid) -> usize {
        let info = self.manager.vdi_stat(&ctx(), self.sr, vdi).await;
        info.expect("a VDI").chain_layers
    }

    fn images(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.sr_dir(self.sr)).expect("the SR");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths
            .filter(|path| path.extension().is_some_and(|suffix| suffix == "vhd"))
            .collect()
    }

    /// Writes through a disk, snapshotting in between; then only the disk needs the layers.
    async fn with_history(&self, vdi: VdiUuid, disk: &NbdEndpoint) {
        let mut snapshots = Vec::new();
        let rounds: [&[&str]; 3] = [
            &["write -P 0x11 0 8M", "write -P 0x12 40M 64k"],
            &["write -P 0x21 1M 64k", "write -P 0x22 20M 4k"],
            &[
                "write -P 0x31 1064k 512",
                "write -z 2M 1M",
                "write -P 0x32 63M 1M",
            ],
        ];
        for round in rounds {
            io(disk, round);
            io(disk, &["flush"]);
            let caller = ctx();
            let made = self
                .manager
                .vdi_snapshot(&caller, self.sr, vdi, NewName::default());
            snapshots.push(made.await.expect("a snapshot").vdi);
        }
        io(disk, &["write -P 0x41 0 4k", "flush"]);
        for snapshot in snapshots {
            let gone = self.manager.vdi_destroy(&ctx(), self.sr, snapshot).await;
            gone.expect("destroyed");
        }
        assert_eq!(self.layers(vdi).await, 4);
    }
}

/// What the guest wrote, newest last.
const EXPECTED: [&str; 9] = [
    "read -P 0x41 0 4k",
    "read -P 0x11 4k 1020k",
    "read -P 0x21 1M 40k",
    "read -P 0x31 1064k 512",
    "read -P 0 2M 1M",
    "read -P 0x11 3M 5M",
    "read -P 0x22 20M 4k",
    "read -P 0x12 40M 64k",
    "read -P 0x32 63M 1M",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_go_while_the_guest_uses_its_disk() {
    let mut bench = Bench::new().await;
    let vdi = bench.create(DISK_BYTES).await.vdi;
    let disk = bench.plug(vdi, "vm-1", Access::ReadWrite).await;
    bench.with_history(vdi, &disk).await;
    let guest = {
        let disk = disk.clone();
        tokio::task::spawn_blocking(move || {
            for round in 0..20u32 {
                let write = format!("write -P {} {}M 1M", 0x50 + round, 42 + round);
                io(&disk, &[&write, "flush"]);
            }
        })
    };
    assert_eq!(bench.merge().await, 3);
    guest.await.expect("the guest");
    assert_eq!(bench.layers(vdi).await, 1);
    assert_eq!(bench.images().len(), 1, "{:?}", bench.images());
    io(&disk, &EXPECTED);
    for round in 0..20u32 {
        io(
            &disk,
            &[&format!("read -P {} {}M 1M", 0x50 + round, 42 + round)],
        );
    }
    bench.restart().await;
    io(&disk, &["write -P 0x77 5M 4k", "flush"]);
    bench.unplug(vdi, "vm-1").await;
    let disk = bench.plug(vdi, "vm-1", Access::ReadOnly).await;
    io(&disk, &EXPECTED[..5]);
    io(&disk, &["read -P 0x77 5M 4k", "read -P 0x63 61M 1M"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_of_a_disk_that_nobody_uses_go_too() {
    let bench = Bench::new().await;
    let vdi = bench.create(DISK_BYTES).await.vdi;
    let disk = bench.plug(vdi, "vm-1", Access::ReadWrite).await;
    bench.with_history(vdi, &disk).await;
    bench.unplug(vdi, "vm-1").await;
    assert_eq!(bench.merge().await, 3);
    assert_eq!((bench.layers(vdi).await, bench.images().len()), (1, 1));
    let disk = bench.plug(vdi, "vm-1", Access::ReadOnly).await;
    io(&disk, &EXPECTED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_under_a_fork_goes_and_both_children_stand_on_the_lower_one() {
    let bench = Bench::new().await;
    let (manager, sr) = (&bench.manager, bench.sr);
    let vdi = bench.create(DISK_BYTES).await.vdi;
    let disk = bench.plug(vdi, "vm-1", Access::ReadWrite).await;
    bench.with_history(vdi, &disk).await;
    let made = manager.vdi_clone(&ctx(), sr, vdi, NewName::default()).await;
    let clone = made.expect("a clone").vdi;
    io(&disk, &["write -P 0x61 30M 1M", "flush"]);
    assert_eq!(bench.merge().await, 3);
    assert_eq!(bench.layers(vdi).await, 2);
    assert_eq!(bench.layers(clone).await, 2);
    assert_eq!(bench.images().len(), 3);
    io(&disk, &EXPECTED);
    io(&disk, &["read -P 0x61 30M 1M"]);
    bench.unplug(vdi, "vm-1").await;
    for (vdi, byte) in [(vdi, "0x61"), (clone, "0")] {
        let disk = bench.plug(vdi, "vm-2", Access::ReadOnly).await;
        io(&disk, &EXPECTED);
        io(&disk, &[&format!("read -P {byte} 30M 1M")]);
        bench.unplug(vdi, "vm-2").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_path_killed_after_a_merge_has_lost_nothing_that_was_flushed() {
    let bench = Bench::new().await;
    let vdi = bench.create(DISK_BYTES).await.vdi;
    let disk = bench.plug(vdi, "vm-1", Access::ReadWrite).await;
    bench.with_history(vdi, &disk).await;
    assert_eq!(bench.merge().await, 3);
    io(&disk, &["write -P 0x71 50M 2M", "flush"]);
    for pid in bench.pids().await {
        kill(pid);
    }
    bench.unplug(vdi, "vm-1").await;
    let disk = bench.plug(vdi, "vm-1", Access::ReadWrite).await;
    io(&disk, &EXPECTED);
    io(&disk, &["read -P 0x71 50M 2M"]);
}

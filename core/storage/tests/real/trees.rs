//! Trees, growth, copies and restarts, by what a guest reads.

use crate::bench::{Bench, ctx, io, kill, run};
use datapath::Access;
use storage::{NewName, StorageErrorKind, VdiInfo, Watch};
use units::{SrUuid, VdiUuid};

const DISK_BYTES: u64 = 64 << 20;

impl Bench {
    async fn snapshot(&self, vdi: VdiUuid) -> VdiInfo {
        let made = self
            .manager
            .vdi_snapshot(&ctx(), self.sr, vdi, NewName::default())
            .await;
        made.expect("a snapshot")
    }

    /// Reads a VDI through an export of its own.
    async fn expect(&self, sr: SrUuid, vdi: VdiUuid, commands: &[&str]) {
        let export = self
            .manager
            .export_open(&ctx(), sr, vdi)
            .await
            .expect("an export");
        io(&export.nbd, commands);
        export.close(&ctx()).await.expect("closed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_snapshot_holds_its_moment_and_the_guest_goes_on() {
    let bench = Bench::new().await;
    let vdi = bench.create(DISK_BYTES).await.vdi;
    let disk = bench.plug(vdi, "vm-1", Access::ReadWrite).await;
    io(
        &disk,
        &["write -P 0x11 0 4M", "write -P 0x12 20M 64k", "flush"],
    );
    let first = bench.snapshot(vdi).await;
    io(
        &disk,
        &["write -P 0x21 1M 64k", "read -P 0x12 20M 64k", "flush"],
    );
    let second = bench.snapshot(vdi).await;
    io(&disk, &["write -P 0x31 2M 512", "flush"]);
    io(
        &disk,
        &[
            "read -P 0x11 0 1M",
            "read -P 0x21 1M 64k",
            "read -P 0x31 2M 512",
        ],
    );
    let sr = bench.sr;
    bench
        .expect(
            sr,
            first.vdi,
            &[
                "read -P 0x11 0 4M",
                "read -P 0 4M 4M",
                "read -P 0x12 20M 64k",
            ],
        )
        .await;
    bench
        .expect(
            sr,
            second.vdi,
            &["read -P 0x21 1M 64k", "read -P 0x11 2M 512"],
        )
        .await;
    bench.unplug(vdi, "vm-1").await;
    // Three layers, opened anew.
    bench
        .expect(
            sr,
            vdi,
            &[
                "read -P 0x11 0 1M",
                "read -P 0x21 1M 64k",
                "read -P 0x31 2M 512",
            ],
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_and_reverts_share_what_is_below_and_nothing_above() {
    let bench = Bench::new().await;
    let (manager, sr) = (&bench.manager, bench.sr);
    let vdi = bench.create(DISK_BYTES).await.vdi;
    let disk = bench.plug(vdi, "vm-1", Access::ReadWrite).await;
    io(&disk, &["write -P 0x11 0 4M", "flush"]);
    let snapshot = bench.snapshot(vdi).await.vdi;
    io(&disk, &["write -P 0x21 0 64k", "flush"]);
    let live = manager
        .vdi_clone(&ctx(), sr, vdi, NewName::default())
        .await
        .expect("a clone")
        .vdi;
    io(
        &disk,
        &["write -P 0x31 64k 64k", "flush", "read -P 0x21 0 64k"],
    );
    let old = manager
        .vdi_clone(&ctx(), sr, snapshot, NewName::default())
        .await;
    let old = old.expect("a clone of the snapshot").vdi;
    bench
        .expect(sr, live, &["read -P 0x21 0 64k", "read -P 0x11 64k 64k"])
        .await;
    let clone = bench.plug(old, "vm-2", Access::ReadWrite).await;
    io(
        &clone,
        &["read -P 0x11 0 4M", "write -P 0x41 0 4k", "flush"],
    );
    bench.expect(sr, snapshot, &["read -P 0x11 0 4M"]).await;

    let busy = manager.vdi_revert(&ctx(), sr, vdi, snapshot).await;
    assert_eq!(busy.unwrap_err().kind(), StorageErrorKind::VdiInUse);
    bench.unplug(vdi, "vm-1").await;
    manager
        .vdi_revert(&ctx(), sr, vdi, snapshot)
        .await
        .expect("reverted");
    bench.expect(sr, vdi, &["read -P 0x11 0 4M"]).await;
    bench.unplug(old, "vm-2").await;

    for vdi in [live, snapshot, old, vdi] {
        manager
            .vdi_destroy(&ctx(), sr, vdi)
            .await
            .expect("destroyed");
    }
    let left: Vec<_> = std::fs::read_dir(bench.sr_dir(sr))
        .expect("the SR")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(left, ["xylem-meta"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vdi_grows_alive_and_at_rest() {
    let bench = Bench::new().await;
    let vdi = bench.create(DISK_BYTES).await.vdi;
    let disk = bench.plug(vdi, "vm-1", Access::ReadWrite).await;
    io(&disk, &["write -P 0x11 63M 1M", "flush"]);
    let grown = bench
        .manager
        .vdi_resize(&ctx(), bench.sr, vdi, 1 << 30)
        .await
        .expect("grown");
    assert_eq!(grown.virtual_bytes, 1 << 30);
    io(
        &disk,
        &[
            "read -P 0x11 63M 1M",
            "read -P 0 64M 1M",
            "write -P 0x22 1023M 1M",
            "flush",
        ],
    );
    bench.unplug(vdi, "vm-1").await;
    // Beyond what the metadata of a small disk was laid out for.
    let grown = bench
        .manager
        .vdi_resize(&ctx(), bench.sr, vdi, 60 << 30)
        .await
        .expect("grown");
    assert_eq!(grown.virtual_bytes, 60 << 30);
    let disk = bench.plug(vdi, "vm-1", Access::ReadWrite).await;
    io(
        &disk,
        &[
            "read -P 0x11 63M 1M",
            "read -P 0x22 1023M 1M",
            "write -P 0x33 59G 1M",
            "flush",
        ],
    );
    bench.unplug(vdi, "vm-1").await;
    bench
        .expect(bench.sr, vdi, &["read -P 0x33 59G 1M", "read -P 0 58G 1M"])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_in_another_sr_is_the_same_bytes_and_as_sparse() {
    let bench = Bench::new().await;
    let other = SrUuid::random();
    bench.make_sr(other).await;
    let vdi = bench.create(8 << 30).await.vdi;
    let disk = bench.plug(vdi, "vm-1", Access::ReadWrite).await;
    io(
        &disk,
        &["write -P 0x11 0 3M", "write -P 0x12 5G 100k", "flush"],
    );
    let snapshot = bench.snapshot(vdi).await.vdi;
    io(&disk, &["write -P 0x21 1M 64k", "flush"]);
    let copy = async |vdi| {
        let name = NewName::default();
        let watch = Watch::default();
        bench
            .manager
            .vdi_copy(&ctx(), bench.sr, vdi, other, name, watch)
            .await
    };
    assert_eq!(
        copy(vdi).await.unwrap_err().kind(),
        StorageErrorKind::VdiInUse
    );
    let of_snapshot = copy(snapshot).await.expect("a copy of a snapshot");
    bench.unplug(vdi, "vm-1").await;
    let of_disk = copy(vdi).await.expect("a copy");
    for (n, (from, to)) in [(snapshot, of_snapshot), (vdi, of_disk)]
        .into_iter()
        .enumerate()
    {
        assert_eq!((to.virtual_bytes, to.chain_layers), (8 << 30, 1));
        let a = bench.flatten(bench.sr, from, &format!("a{n}")).await;
        let b = bench.flatten(other, to.vdi, &format!("b{n}")).await;
        run(
            "qemu-img",
            [
                "compare".as_ref(),
                "-f".as_ref(),
                "raw".as_ref(),
                "-F".as_ref(),
                "raw".as_ref(),
                a.as_os_str(),
                b.as_os_str(),
            ],
        );
        let leaf = bench.sr_dir(other).join(to.leaf.as_str());
        let bytes = std::fs::metadata(leaf).expect("the copy's file").len();
        assert!(bytes < 16 << 20, "a copy of 3 MiB takes {bytes} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_does_not_notice_that_the_daemon_was_restarted() {
    let mut bench = Bench::new().await;
    let vdi = bench.create(DISK_BYTES).await.vdi;
    let disk = bench.plug(vdi, "vm-1", Access::ReadWrite).await;
    let client = datapath::nbd::Client::connect(&disk.socket, &disk.export).await;
    let client = client.expect("a connected guest");
    let block = |value| vec![value; 65536];
    client
        .write(0, block(0x11), Default::default())
        .await
        .expect("a write");
    let pids = bench.pids().await;
    bench.restart().await;
    client
        .write(65536, block(0x12), Default::default())
        .await
        .expect("a write while it restarts");
    bench
        .manager
        .sr_stat(&ctx(), bench.sr)
        .await
        .expect("back by itself");
    let snapshot = bench.snapshot(vdi).await.vdi;
    client
        .write(0, block(0x21), Default::default())
        .await
        .expect("a write on the new leaf");
    client.flush().await.expect("a flush");
    assert_eq!(client.read(0, 65536).await.expect("a read"), block(0x21));
    assert!(
        bench.pids().await.iter().any(|pid| pids.contains(pid)),
        "no process was adopted"
    );
    // A client that comes after the restart finds the same place.
    io(&disk, &["read -P 0x12 64k 64k"]);
    bench
        .expect(
            bench.sr,
            snapshot,
            &["read -P 0x11 0 64k", "read -P 0x12 64k 64k"],
        )
        .await;
    drop(client);
    bench.unplug(vdi, "vm-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_flushed_survives_the_death_of_the_data_path() {
    let bench = Bench::new().await;
    let vdi = bench.create(DISK_BYTES).await.vdi;
    let disk = bench.plug(vdi, "vm-1", Access::ReadWrite).await;
    io(&disk, &["write -P 0x11 0 4M", "flush"]);
    let snapshot = bench.snapshot(vdi).await.vdi;
    io(&disk, &["write -P 0x21 1M 1M", "flush"]);
    bench.pids().await.into_iter().for_each(kill);
    let again = bench.plug(vdi, "vm-1", Access::ReadWrite).await;
    assert_eq!(again, disk);
    io(
        &disk,
        &[
            "read -P 0x21 1M 1M",
            "read -P 0x11 2M 1M",
            "write -P 0x31 0 4k",
            "flush",
        ],
    );
    bench
        .expect(bench.sr, snapshot, &["read -P 0x11 0 4M"])
        .await;
    bench.unplug(vdi, "vm-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_is_left_when_nothing_is_attached() {
    let bench = Bench::new().await;
    let vdi = bench.create(DISK_BYTES).await.vdi;
    bench.plug(vdi, "vm-1", Access::ReadWrite).await;
    bench.unplug(vdi, "vm-1").await;
    bench
        .manager
        .sr_detach(&ctx(), bench.sr)
        .await
        .expect("detached");
    assert_eq!(bench.pids().await, Vec::<u32>::new());
}

//! Mirrors of disks in use, and the merge of a live leaf into its parent.

use crate::bench::{Bench, MIB, dp, kill, nbd, pattern, rid};
use crate::copies::{PLAIN, SIZE, SOON, chain, layer_plan, tree};
use datapath::nbd::WriteFlags;
use datapath::protocol::{CopyPlan, MirrorState};
use datapath::{Client, DiskState, Error, ErrorKind, Extent};
use rustix::process::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vhd_checker::Strictness;

const SLOT: usize = 4096;
const SLOTS: u64 = SIZE / SLOT as u64;

async fn start(
    bench: &Bench,
    client: &Client,
    target: &[&str],
    plan: CopyPlan,
) -> Result<DiskState, Error> {
    let target = chain(bench, target);
    client
        .mirror_start(&rid(), &dp("d"), target, Extent::Grows, plan)
        .await
}

async fn in_sync(client: &Client) -> MirrorState {
    let state = client.mirror_wait(&rid(), &dp("d"), SOON).await.unwrap();
    let mirror = state.mirror.expect("it has a mirror");
    assert!(mirror.in_sync, "{mirror:?}");
    mirror
}

/// Writes growing numbers all over the disk until told to stop; the last number.
async fn write_numbers(disk: datapath::nbd::Client, stop: Arc<AtomicBool>) -> u64 {
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let data = number.to_le_bytes().repeat(SLOT / 8);
        disk.write(place(number), data, PLAIN).await.unwrap();
        if number.is_multiple_of(64) {
            disk.flush().await.unwrap();
        }
    }
    number
}

fn place(number: u64) -> u64 {
    number * 1031 % SLOTS * SLOT as u64
}

/// What a disk holds after these numbers.
fn with_numbers(mut before: Vec<u8>, last: u64) -> Vec<u8> {
    for number in 1..=last {
        let at = usize::try_from(place(number)).unwrap();
        before[at..at + SLOT].copy_from_slice(&number.to_le_bytes().repeat(SLOT / 8));
    }
    before
}

/// A disk `d` on `chain` with a writer.
async fn busy_disk(
    bench: &Bench,
    client: &Client,
    layers: &[&str],
) -> (Arc<AtomicBool>, tokio::task::JoinHandle<u64>) {
    let socket = bench.serve(client, "d", layers).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = write_numbers(nbd(&socket, "d").await, Arc::clone(&stop));
    (stop, tokio::spawn(writer))
}

/// From in sync to switched, every message twice.
async fn switch(client: &Client, verify: bool) -> DiskState {
    in_sync(client).await;
    for _ in 0..2 {
        client.mirror_prepare(&rid(), &dp("d")).await.unwrap();
    }
    client
        .mirror_switch(&rid(), &dp("d"), verify)
        .await
        .unwrap();
    let state = client
        .mirror_switch(&rid(), &dp("d"), verify)
        .await
        .unwrap();
    assert!(state.mirror.as_ref().is_some_and(|mirror| mirror.switched));
    client.mirror_prepare(&rid(), &dp("d")).await.unwrap();
    client.mirror_stop(&rid(), &dp("d")).await.unwrap();
    state
}

#[tokio::test]
async fn a_busy_disk_moves_to_its_mirror() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    tree(&bench, &client, &["a.vhd", "b.vhd"]).await;
    let before = bench.flat(&["b.vhd", "a.vhd"]);
    let target = bench.create(&client, "t.vhd", SIZE, None).await;
    let (stop, writer) = busy_disk(&bench, &client, &["b.vhd", "a.vhd"]).await;
    for _ in 0..2 {
        start(&bench, &client, &["t.vhd"], CopyPlan::default())
            .await
            .unwrap();
    }
    let state = switch(&client, true).await;
    assert_eq!(state.layers, [target.uuid]);
    for name in ["b.vhd", "a.vhd"] {
        std::fs::remove_file(bench.path(name)).unwrap();
    }
    // It was switched before the caller heard of it.
    start(&bench, &client, &["t.vhd"], CopyPlan::default())
        .await
        .unwrap();
    stop.store(true, Ordering::Relaxed);
    let last = writer.await.unwrap();
    client.close(&rid(), &dp("d")).await.unwrap();
    assert!(bench.flat(&["t.vhd"]) == with_numbers(before, last));
    bench.assert_sound("t.vhd", Strictness::Closed);
}

#[tokio::test]
async fn a_busy_leaf_is_merged_into_its_parent() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let uuids = tree(&bench, &client, &["a.vhd", "b.vhd", "c.vhd"]).await;
    let before = bench.flat(&["c.vhd", "b.vhd", "a.vhd"]);
    let (stop, writer) = busy_disk(&bench, &client, &["c.vhd", "b.vhd", "a.vhd"]).await;
    let refused = start(&bench, &client, &["a.vhd"], layer_plan()).await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Chain);
    start(&bench, &client, &["b.vhd", "a.vhd"], layer_plan())
        .await
        .unwrap();
    let state = switch(&client, false).await;
    assert_eq!(state.layers, [uuids[1], uuids[0]]);
    std::fs::remove_file(bench.path("c.vhd")).unwrap();
    stop.store(true, Ordering::Relaxed);
    let last = writer.await.unwrap();
    client.close(&rid(), &dp("d")).await.unwrap();
    assert!(bench.flat(&["b.vhd", "a.vhd"]) == with_numbers(before, last));
    bench.assert_sound("b.vhd", Strictness::Closed);
}

#[tokio::test]
async fn a_mirrored_disk_takes_no_snapshot_and_no_size_and_is_frozen_and_closed() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let uuids = tree(&bench, &client, &["a.vhd"]).await;
    bench.create(&client, "t.vhd", SIZE, None).await;
    let leaf = bench
        .create(&client, "s.vhd", SIZE, Some(("a.vhd", uuids[0])))
        .await;
    let (stop, writer) = busy_disk(&bench, &client, &["a.vhd"]).await;
    let early = client.mirror_prepare(&rid(), &dp("d")).await;
    assert_eq!(early.unwrap_err().kind, ErrorKind::NotFound);
    let slow = CopyPlan {
        limit_bytes_per_s: Some(1 << 20),
        ..CopyPlan::default()
    };
    start(&bench, &client, &["t.vhd"], slow).await.unwrap();
    let busy = [
        client.mirror_prepare(&rid(), &dp("d")).await.err(),
        client.mirror_switch(&rid(), &dp("d"), false).await.err(),
        client.resize(&rid(), &dp("d"), SIZE + 4 * MIB).await.err(),
        client
            .snapshot(&rid(), &dp("d"), leaf.uuid, bench.file("s.vhd"))
            .await
            .err(),
        client
            .image_hide(&rid(), true, Extent::Grows, bench.file("t.vhd"))
            .await
            .err(),
        bench
            .try_open(&client, "e", &["t.vhd"], datapath::Access::ReadOnly)
            .await
            .err(),
        start(&bench, &client, &["s.vhd", "a.vhd"], CopyPlan::default())
            .await
            .err(),
    ];
    for (n, error) in busy.into_iter().enumerate() {
        assert_eq!(error.map(|e| e.kind), Some(ErrorKind::Busy), "request {n}");
    }
    client.freeze(&rid(), &[dp("d")]).await.unwrap();
    client.thaw(&rid(), &[dp("d")]).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    client.close(&rid(), &dp("d")).await.unwrap();
    assert!(client.list(&rid()).await.unwrap().is_empty());
    for name in ["a.vhd", "t.vhd"] {
        bench.assert_sound(name, Strictness::Closed);
    }
}

#[tokio::test]
async fn a_stopped_mirror_leaves_the_disk_as_it_is() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    tree(&bench, &client, &["a.vhd"]).await;
    bench.create(&client, "t.vhd", SIZE, None).await;
    let (stop, writer) = busy_disk(&bench, &client, &["a.vhd"]).await;
    let before = client.list(&rid()).await.unwrap();
    start(&bench, &client, &["t.vhd"], CopyPlan::default())
        .await
        .unwrap();
    in_sync(&client).await;
    for _ in 0..2 {
        client.mirror_stop(&rid(), &dp("d")).await.unwrap();
    }
    let after = client.list(&rid()).await.unwrap();
    assert_eq!(after[0].layers, before[0].layers);
    assert_eq!(after[0].mirror, None);
    let gone = client.mirror_switch(&rid(), &dp("d"), false).await;
    assert_eq!(gone.unwrap_err().kind, ErrorKind::NotFound);
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    client.close(&rid(), &dp("d")).await.unwrap();
    bench.assert_sound("t.vhd", Strictness::Closed);
}

#[tokio::test]
async fn after_prepare_either_side_has_what_was_flushed_when_the_process_is_killed() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    tree(&bench, &client, &["a.vhd", "b.vhd"]).await;
    bench.create(&client, "t.vhd", SIZE, None).await;
    let socket = bench.serve(&client, "d", &["b.vhd", "a.vhd"]).await;
    let disk = nbd(&socket, "d").await;
    start(&bench, &client, &["t.vhd"], CopyPlan::default())
        .await
        .unwrap();
    in_sync(&client).await;
    client.mirror_prepare(&rid(), &dp("d")).await.unwrap();
    disk.write(MIB, pattern(1, SLOT), PLAIN).await.unwrap();
    disk.flush().await.unwrap();
    let fua = WriteFlags { fua: true, ..PLAIN };
    disk.write(9 * MIB, pattern(2, SLOT), fua).await.unwrap();
    kill(client.pid(), Signal::KILL);
    for side in [&["b.vhd", "a.vhd"][..], &["t.vhd"]] {
        let flat = bench.flat(side);
        for (seed, at) in [(1, 1 << 20), (2, 9 << 20)] {
            assert!(
                flat[at..at + SLOT] == pattern(seed, SLOT),
                "{side:?} at {at}"
            );
        }
    }
    let (a, b) = (bench.flat(&["b.vhd", "a.vhd"]), bench.flat(&["t.vhd"]));
    assert!(a == b, "both sides hold the same");
}

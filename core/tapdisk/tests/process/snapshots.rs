//! Operations on disks in use: snapshot, resize, freeze.

use crate::bench::{Bench, MIB, dp, nbd, pattern, rid};
use datapath::nbd::WriteFlags;
use datapath::protocol::ParentRef;
use datapath::{Client, Error, ErrorKind, Extent, NewImage};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;
use vhd_checker::Strictness;

const PLAIN: WriteFlags = WriteFlags {
    fua: false,
    no_hole: false,
};
const SLOT: usize = 4096;

/// Writes growing numbers over the first MiB, in a fixed walk, until told to stop. Number `n` goes
/// to slot `n * 37 mod 256`, so what a disk holds tells how far the writer was.
async fn write_numbers(disk: datapath::nbd::Client, stop: Arc<AtomicBool>, last: Arc<AtomicU64>) {
    let mut number = 1_u64;
    while !stop.load(Ordering::Relaxed) {
        let data = number.to_le_bytes().repeat(SLOT / 8);
        disk.write(place(number), data, PLAIN).await.unwrap();
        last.store(number, Ordering::SeqCst);
        number += 1;
    }
}

fn place(number: u64) -> u64 {
    number * 37 % 256 * SLOT as u64
}

/// Checks that the first MiB is what the writer had written after some number, and returns it.
fn number_of(content: &[u8]) -> u64 {
    let slots = content[..256 * SLOT].chunks(SLOT);
    let numbers: Vec<u64> = slots
        .map(|slot| {
            let number = u64::from_le_bytes(slot[..8].try_into().unwrap());
            assert!(
                slot.chunks(8).all(|c| c == number.to_le_bytes()),
                "a torn slot at rest"
            );
            number
        })
        .collect();
    let last = *numbers.iter().max().unwrap();
    for number in last.saturating_sub(255).max(1)..=last {
        let at = usize::try_from(place(number)).unwrap() / SLOT;
        assert_eq!(numbers[at], number, "write {number} of {last} is missing");
    }
    last
}

async fn take_snapshot(
    bench: &Bench,
    client: &Client,
    parent: (&str, Uuid),
    leaf: &str,
) -> Result<Uuid, Error> {
    let made = bench.create(client, leaf, 4 * MIB, Some(parent)).await;
    let state = client
        .snapshot(&rid(), &dp("d"), made.uuid, bench.file(leaf))
        .await?;
    assert_eq!(state.layers[..2], [made.uuid, parent.1]);
    Ok(made.uuid)
}

#[tokio::test]
async fn a_live_snapshot_under_load_loses_nothing() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let mut parent = bench.create(&client, "0.vhd", 4 * MIB, None).await.uuid;
    let socket = bench.serve(&client, "d", &["0.vhd"]).await;
    let (stop, last) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let writer = nbd(&socket, "d").await;
    let writing = tokio::spawn(write_numbers(writer, Arc::clone(&stop), Arc::clone(&last)));

    let mut bounds = Vec::new();
    let mut chain = vec!["0.vhd".to_owned()];
    for n in 1..=4 {
        let reached = last.load(Ordering::SeqCst);
        crate::bench::until("the writer goes on", || {
            last.load(Ordering::SeqCst) > reached + 300
        })
        .await;
        let before = last.load(Ordering::SeqCst);
        let leaf = format!("{n}.vhd");
        let parent_name = format!("{}.vhd", n - 1);
        parent = take_snapshot(&bench, &client, (&parent_name, parent), &leaf)
            .await
            .unwrap();
        // One write may have been in flight when the switch was answered.
        bounds.push((before, last.load(Ordering::SeqCst) + 1));
        chain.insert(0, leaf);
    }
    let reached = last.load(Ordering::SeqCst);
    crate::bench::until("it goes on after", || {
        last.load(Ordering::SeqCst) > reached + 300
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    writing.await.unwrap();
    client.close(&rid(), &dp("d")).await.unwrap();

    let chain: Vec<&str> = chain.iter().map(String::as_str).collect();
    for (n, (before, after)) in bounds.into_iter().enumerate() {
        let snapshot = &chain[chain.len() - 1 - n..];
        let number = number_of(&bench.flat(snapshot));
        assert!(
            (before..=after).contains(&number),
            "{before} <= {number} <= {after}"
        );
    }
    assert_eq!(number_of(&bench.flat(&chain)), last.load(Ordering::SeqCst));
    for name in chain {
        bench.assert_sound(name, Strictness::Closed);
    }
}

#[tokio::test]
async fn a_snapshot_again_is_a_success_and_a_wrong_leaf_changes_nothing() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let base = bench.create(&client, "a.vhd", 4 * MIB, None).await.uuid;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let disk = nbd(&socket, "d").await;
    disk.write(0, pattern(1, SLOT), PLAIN).await.unwrap();

    let stranger = bench
        .create(&client, "x.vhd", 4 * MIB, Some(("y.vhd", Uuid::new_v4())))
        .await;
    let child = bench
        .create(&client, "b.vhd", 4 * MIB, Some(("a.vhd", base)))
        .await;
    let small = bench
        .create(&client, "small.vhd", 2 * MIB, Some(("a.vhd", base)))
        .await;
    for (name, uuid) in [
        ("x.vhd", stranger.uuid),
        ("b.vhd", Uuid::new_v4()),
        ("small.vhd", small.uuid),
    ] {
        let result = client
            .snapshot(&rid(), &dp("d"), uuid, bench.file(name))
            .await;
        assert_eq!(result.unwrap_err().kind, ErrorKind::Chain, "{name}");
    }
    let own = client
        .snapshot(&rid(), &dp("d"), Uuid::new_v4(), bench.file("a.vhd"))
        .await;
    assert_eq!(own.unwrap_err().kind, ErrorKind::Busy);
    let nobody = client
        .snapshot(&rid(), &dp("no"), child.uuid, bench.file("b.vhd"))
        .await;
    assert_eq!(nobody.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(client.list(&rid()).await.unwrap()[0].layers, [base]);

    for _ in 0..2 {
        let state = client
            .snapshot(&rid(), &dp("d"), child.uuid, bench.file("b.vhd"))
            .await;
        assert_eq!(state.unwrap().layers, [child.uuid, base]);
    }
    assert!(disk.read(0, SLOT as u32).await.unwrap() == pattern(1, SLOT));
    disk.write(0, pattern(2, SLOT), PLAIN).await.unwrap();
    client.close(&rid(), &dp("d")).await.unwrap();
    assert!(
        bench.flat(&["a.vhd"])[..SLOT] == pattern(1, SLOT),
        "the sealed leaf was written"
    );
    assert!(bench.flat(&["b.vhd", "a.vhd"])[..SLOT] == pattern(2, SLOT));
}

#[tokio::test]
async fn a_live_resize_is_seen_by_new_and_connected_clients() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let old = nbd(&socket, "d").await;
    old.write(0, pattern(1, SLOT), PLAIN).await.unwrap();
    for _ in 0..2 {
        let state = client.resize(&rid(), &dp("d"), 8 * MIB).await.unwrap();
        assert_eq!(state.virtual_bytes, 8 * MIB);
    }
    let new = nbd(&socket, "d").await;
    assert_eq!(new.info().size_bytes, 8 * MIB);
    new.write(8 * MIB - SLOT as u64, pattern(2, SLOT), PLAIN)
        .await
        .unwrap();
    assert!(old.read(0, SLOT as u32).await.unwrap() == pattern(1, SLOT));
    let shrink = client.resize(&rid(), &dp("d"), 4 * MIB).await.unwrap_err();
    assert_eq!(shrink.kind, ErrorKind::Unsupported, "{shrink}");
    client.close(&rid(), &dp("d")).await.unwrap();
    bench.assert_sound("a.vhd", Strictness::Closed);
    assert!(bench.flat(&["a.vhd"])[(8 << 20) - SLOT..] == pattern(2, SLOT));
}

#[tokio::test]
async fn frozen_disks_hold_requests_back_until_thawed() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let mut disks = Vec::new();
    for name in ["d", "e"] {
        bench
            .create(&client, &format!("{name}.vhd"), 4 * MIB, None)
            .await;
        let socket = bench.serve(&client, name, &[&format!("{name}.vhd")]).await;
        disks.push(nbd(&socket, name).await);
    }
    client.freeze(&rid(), &[dp("d"), dp("e")]).await.unwrap();
    let again = client.freeze(&rid(), &[dp("e")]).await.unwrap_err();
    assert_eq!(again.kind, ErrorKind::Busy);
    let unknown = client.freeze(&rid(), &[dp("no")]).await.unwrap_err();
    assert_eq!(unknown.kind, ErrorKind::NotFound);
    let writes: Vec<_> = disks
        .iter()
        .cloned()
        .map(|disk| tokio::spawn(async move { disk.write(0, pattern(1, SLOT), PLAIN).await }))
        .collect();
    let held = || async {
        let states = client.list(&rid()).await.unwrap();
        states.iter().all(|state| state.stats.in_flight == 1)
    };
    while !held().await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(
        writes.iter().all(|write| !write.is_finished()),
        "a frozen disk answered a write"
    );
    client.thaw(&rid(), &[dp("d"), dp("e")]).await.unwrap();
    for write in writes {
        write.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_freeze_ends_with_the_connection_it_came_by() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "d.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["d.vhd"]).await;
    let disk = nbd(&socket, "d").await;
    let daemon = Client::connect(&bench.path("run/a.ctl"), &rid())
        .await
        .unwrap();
    daemon.freeze(&rid(), &[dp("d")]).await.unwrap();
    drop(daemon);
    disk.write(0, pattern(1, SLOT), PLAIN).await.unwrap();
}

#[tokio::test]
async fn a_leaf_with_blocks_is_no_snapshot() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let base = bench.create(&client, "a.vhd", 4 * MIB, None).await.uuid;
    let image = NewImage {
        uuid: Uuid::new_v4(),
        virtual_bytes: 4 * MIB,
        resize_max_bytes: 4 * MIB,
        parent: Some(ParentRef {
            name: "a.vhd".into(),
            uuid: base,
            mtime_unix_s: 0,
        }),
        extent: Extent::Grows,
    };
    let child = client
        .image_create(&rid(), image, bench.file("b.vhd"))
        .await
        .unwrap();
    let socket = bench.serve(&client, "used", &["b.vhd", "a.vhd"]).await;
    nbd(&socket, "used")
        .await
        .write(0, pattern(1, SLOT), PLAIN)
        .await
        .unwrap();
    client.close(&rid(), &dp("used")).await.unwrap();
    bench.open(&client, "d", &["a.vhd"]).await;
    let result = client
        .snapshot(&rid(), &dp("d"), child.uuid, bench.file("b.vhd"))
        .await;
    assert_eq!(result.unwrap_err().kind, ErrorKind::Chain);
}

//! Snapshots of all disks of a domain at one instant: what one disk holds and another does not is
//! never the wrong way round.

use crate::bench::{Bench, MIB, dp, nbd, pattern, rid};
use datapath::nbd::{Client as Nbd, WriteFlags};
use datapath::protocol::ParentRef;
use datapath::{Client, Extent, NewImage};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use units::DpId;
use uuid::Uuid;

const PLAIN: WriteFlags = WriteFlags {
    fua: false,
    no_hole: false,
};
const DISKS: usize = 3;

/// Writes each number to every disk in turn, to the next only when the one before has answered, as a
/// database does with its log and its data. Number `n` is at sector `n mod 64`.
async fn write_in_order(disks: Vec<Nbd>, stop: Arc<AtomicBool>, last: Arc<AtomicU64>) {
    let mut number = 1_u64;
    while !stop.load(Ordering::Relaxed) {
        for disk in &disks {
            let data = number.to_le_bytes().repeat(64);
            disk.write(number % 64 * 512, data, PLAIN).await.unwrap();
        }
        last.store(number, Ordering::SeqCst);
        number += 1;
    }
}

/// Keeps other requests in flight, so that the disks do not go quiet at the same moment by chance.
async fn disturb(disk: Nbd, stop: Arc<AtomicBool>) {
    let mut at = 0;
    while !stop.load(Ordering::Relaxed) {
        at = (at + 1) % 16;
        let data = pattern(at, 65_536);
        disk.write(MIB + at * 65_536, data, PLAIN).await.unwrap();
    }
}

/// The highest number a sealed disk holds, all those before which it must hold too.
fn number_of(content: &[u8]) -> u64 {
    let number = |at: usize| {
        let bytes = content[at * 512..at * 512 + 8].try_into().unwrap();
        u64::from_le_bytes(bytes)
    };
    let last = (0..64).map(number).max().unwrap();
    for earlier in last.saturating_sub(63).max(1)..=last {
        assert_eq!(number(earlier as usize % 64), earlier, "of {last}");
    }
    last
}

async fn create_leaf(bench: &Bench, client: &Client, name: &str, parent: (&str, Uuid)) -> Uuid {
    let image = NewImage {
        uuid: Uuid::new_v4(),
        virtual_bytes: 4 * MIB,
        resize_max_bytes: 4 * MIB,
        parent: Some(ParentRef {
            name: parent.0.to_owned(),
            uuid: parent.1,
            mtime_unix_s: 1_700_000_000,
        }),
        extent: Extent::Grows,
    };
    let uuid = image.uuid;
    let made = client.image_create(&rid(), image, bench.file(name)).await;
    made.unwrap();
    uuid
}

#[tokio::test]
async fn a_frozen_group_holds_what_was_written_in_the_order_it_was_written() {
    let bench = Bench::new();
    let client = bench.client("vm").await;
    let ids: Vec<DpId> = (0..DISKS).map(|n| dp(&format!("d{n}"))).collect();
    let (stop, last) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let (mut leaves, mut disks, mut disturbers) = (Vec::new(), Vec::new(), Vec::new());
    for (n, id) in ids.iter().enumerate() {
        let name = format!("{n}-0.vhd");
        let uuid = bench.create(&client, &name, 4 * MIB, None).await.uuid;
        let socket = bench.serve(&client, id.as_str(), &[&name]).await;
        disks.push(nbd(&socket, id.as_str()).await);
        let other = nbd(&socket, id.as_str()).await;
        disturbers.push(tokio::spawn(disturb(other, Arc::clone(&stop))));
        leaves.push((name, uuid));
    }
    let writer = tokio::spawn(write_in_order(disks, Arc::clone(&stop), Arc::clone(&last)));
    let mut chains: Vec<Vec<String>> = vec![Vec::new(); DISKS];
    let mut found = Vec::new();
    for round in 1..=8 {
        let before = last.load(Ordering::SeqCst);
        while last.load(Ordering::SeqCst) < before + 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut next = Vec::new();
        for (n, (parent, uuid)) in leaves.iter().enumerate() {
            let name = format!("{n}-{round}.vhd");
            let uuid = create_leaf(&bench, &client, &name, (parent, *uuid)).await;
            next.push((name, uuid));
        }
        let written = last.load(Ordering::SeqCst);
        client.freeze(&rid(), &ids).await.unwrap();
        for (id, (name, uuid)) in ids.iter().zip(&next) {
            let switched = client.snapshot(&rid(), id, *uuid, bench.file(name)).await;
            switched.unwrap();
        }
        client.thaw(&rid(), &ids).await.unwrap();
        let mut numbers = Vec::new();
        for (chain, (name, _)) in chains.iter_mut().zip(&leaves) {
            chain.insert(0, name.clone());
            let names: Vec<&str> = chain.iter().map(String::as_str).collect();
            numbers.push(number_of(&bench.flat(&names)));
        }
        // Each disk is as far as the one before it, or one number behind.
        assert!(numbers.is_sorted_by(|a, b| a >= b), "{numbers:?}");
        assert!(numbers[0] - numbers[DISKS - 1] <= 1, "{numbers:?}");
        assert!(
            numbers[DISKS - 1] >= written,
            "{numbers:?}, {written} answered"
        );
        found.push(numbers);
        leaves = next;
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    for disturber in disturbers {
        disturber.await.unwrap();
    }
    println!("{found:?}");
}

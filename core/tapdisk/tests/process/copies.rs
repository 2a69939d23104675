//! Copies without a guest, coalesces among them, and the relink of disks in use.

use crate::bench::{Bench, MIB, dp, nbd, pattern, rid};
use datapath::nbd::WriteFlags;
use datapath::protocol::{CopyPlan, CopyScope, CopyState, ParentRef};
use datapath::{Access, Chain, Client, Error, ErrorKind, Extent, Format};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use uuid::Uuid;
use vhd_checker::Strictness;

pub(crate) const PLAIN: WriteFlags = WriteFlags {
    fua: false,
    no_hole: false,
};
pub(crate) const SIZE: u64 = 16 * MIB;
const PIECE: usize = 64 << 10;
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn chain(bench: &Bench, names: &[&str]) -> Chain {
    let layer = |name: &&str| {
        let is_vhd = name.ends_with(".vhd");
        let format = if is_vhd { Format::Vhd } else { Format::Raw };
        (format, bench.file(name))
    };
    names.iter().map(layer).collect()
}

pub(crate) fn layer_plan() -> CopyPlan {
    CopyPlan {
        scope: CopyScope::Layer,
        ..CopyPlan::default()
    }
}

async fn start(
    bench: &Bench,
    client: &Client,
    (source, target): (&[&str], &[&str]),
    plan: CopyPlan,
) -> Result<CopyState, Error> {
    let chains = (chain(bench, source), chain(bench, target));
    let copy = dp("copy");
    client
        .copy_start(&rid(), &copy, chains, Extent::Grows, plan)
        .await
}

pub(crate) fn parent(name: &str, uuid: Uuid) -> ParentRef {
    ParentRef {
        name: name.to_owned(),
        uuid,
        mtime_unix_s: 1_700_000_000,
    }
}

/// Images on top of one another, base first, each with pieces of its own; their uuids.
pub(crate) async fn tree(bench: &Bench, client: &Client, names: &[&str]) -> Vec<Uuid> {
    let mut uuids: Vec<Uuid> = Vec::new();
    let mut layers: Vec<&str> = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let below = layers.first().map(|parent| (*parent, uuids[n - 1]));
        uuids.push(bench.create(client, name, SIZE, below).await.uuid);
        layers.insert(0, name);
        let socket = bench.serve(client, "tree", &layers).await;
        let disk = nbd(&socket, "tree").await;
        for piece in 0..SIZE as usize / PIECE {
            if piece % (n + 2) == 0 {
                let data = pattern((n * 1000 + piece) as u64, PIECE);
                disk.write((piece * PIECE) as u64, data, PLAIN)
                    .await
                    .unwrap();
            }
        }
        client.close(&rid(), &dp("tree")).await.unwrap();
    }
    uuids
}

#[tokio::test]
async fn a_chain_is_copied_into_one_image_and_into_a_raw_file() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    tree(&bench, &client, &["a.vhd", "b.vhd", "c.vhd"]).await;
    let source = ["c.vhd", "b.vhd", "a.vhd"];
    let before = bench.flat(&source);
    bench.create(&client, "out.vhd", SIZE, None).await;
    std::fs::write(bench.path("out.raw"), vec![7; SIZE as usize]).unwrap();
    for target in ["out.vhd", "out.raw"] {
        for _ in 0..2 {
            let both = (&source[..], &[target][..]);
            start(&bench, &client, both, CopyPlan::default())
                .await
                .unwrap();
            let state = client.copy_wait(&rid(), &dp("copy"), SOON).await.unwrap();
            assert!(state.ended && state.failed.is_none(), "{state:?}");
            assert_eq!(client.copies(&rid()).await.unwrap(), [state]);
        }
        for _ in 0..2 {
            client.copy_stop(&rid(), &dp("copy")).await.unwrap();
        }
        assert!(client.copies(&rid()).await.unwrap().is_empty());
    }
    assert!(bench.flat(&["out.vhd"]) == before);
    assert!(std::fs::read(bench.path("out.raw")).unwrap() == before);
    bench.assert_sound("out.vhd", Strictness::Closed);
    let unknown = client.copy_wait(&rid(), &dp("copy"), SOON).await;
    assert_eq!(unknown.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn copies_of_files_that_somebody_writes_are_refused() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    tree(&bench, &client, &["a.vhd", "b.vhd", "c.vhd"]).await;
    bench.create(&client, "o.vhd", SIZE, None).await;
    bench.open(&client, "d", &["c.vhd", "b.vhd", "a.vhd"]).await;
    let limited = CopyPlan {
        limit_bytes_per_s: Some(1),
        ..layer_plan()
    };
    for (source, target, plan, kind) in [
        // The source's leaf is written by the disk.
        (
            &["c.vhd", "b.vhd", "a.vhd"][..],
            &["o.vhd"][..],
            CopyPlan::default(),
            ErrorKind::Busy,
        ),
        (
            &["c.vhd", "b.vhd", "a.vhd"],
            &["b.vhd", "a.vhd"],
            layer_plan(),
            ErrorKind::Busy,
        ),
        // The disk reads b directly, not through the source.
        (
            &["a.vhd"],
            &["b.vhd", "a.vhd"],
            CopyPlan::default(),
            ErrorKind::Busy,
        ),
        (
            &["b.vhd", "a.vhd"],
            &["o.vhd"],
            layer_plan(),
            ErrorKind::Chain,
        ),
        (
            &["b.vhd", "a.vhd"],
            &["a.vhd"],
            CopyPlan::default(),
            ErrorKind::Chain,
        ),
    ] {
        let error = start(&bench, &client, (source, target), plan)
            .await
            .unwrap_err();
        assert_eq!(error.kind, kind, "{source:?} {target:?}: {error}");
    }
    // What the disk reads through b may be written, and by one copy only.
    start(
        &bench,
        &client,
        (&["b.vhd", "a.vhd"], &["a.vhd"]),
        limited.clone(),
    )
    .await
    .unwrap();
    let chains = (
        chain(&bench, &["b.vhd", "a.vhd"]),
        chain(&bench, &["a.vhd"]),
    );
    let second = client
        .copy_start(&rid(), &dp("second"), chains, Extent::Grows, limited)
        .await;
    assert_eq!(second.unwrap_err().kind, ErrorKind::Busy);
    let direct = bench
        .try_open(&client, "e", &["a.vhd"], Access::ReadOnly)
        .await;
    assert_eq!(direct.unwrap_err().kind, ErrorKind::Busy);
    let exit = client.exit(&rid()).await;
    assert_eq!(exit.unwrap_err().kind, ErrorKind::Busy);
    client.copy_stop(&rid(), &dp("copy")).await.unwrap();
    bench
        .try_open(&client, "e", &["a.vhd"], Access::ReadOnly)
        .await
        .unwrap();
}

/// Writes over and over into the odd pieces of the last MiB until told to stop.
async fn keep_writing(disk: datapath::nbd::Client, stop: Arc<AtomicBool>) -> u64 {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        for piece in (1..16).step_by(2) {
            let at = SIZE - MIB + (piece * PIECE) as u64;
            disk.write(at, pattern(round, PIECE), PLAIN).await.unwrap();
        }
        if round.is_multiple_of(4) {
            disk.flush().await.unwrap();
        }
    }
    round
}

/// What a disk reads as after that many rounds.
fn after_rounds(mut before: Vec<u8>, round: u64) -> Vec<u8> {
    for piece in (1..16).step_by(2) {
        let at = (SIZE - MIB) as usize + piece * PIECE;
        before[at..at + PIECE].copy_from_slice(&pattern(round, PIECE));
    }
    before
}

async fn merge(bench: &Bench, client: &Client, source: &[&str], above: u16) {
    let plan = CopyPlan {
        above,
        ..layer_plan()
    };
    let target = &source[usize::from(above) + 1..];
    start(bench, client, (source, target), plan).await.unwrap();
    let state = client.copy_wait(&rid(), &dp("copy"), SOON).await.unwrap();
    assert!(state.ended && state.failed.is_none(), "{state:?}");
    client.copy_stop(&rid(), &dp("copy")).await.unwrap();
}

#[tokio::test]
async fn a_node_below_a_busy_leaf_is_merged_and_the_disk_relinked() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let uuids = tree(&bench, &client, &["a.vhd", "b.vhd", "c.vhd"]).await;
    let before = bench.flat(&["c.vhd", "b.vhd", "a.vhd"]);
    let socket = bench
        .serve(&client, "d", &["c.vhd", "b.vhd", "a.vhd"])
        .await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(keep_writing(nbd(&socket, "d").await, Arc::clone(&stop)));

    merge(&bench, &client, &["b.vhd", "a.vhd"], 0).await;
    for _ in 0..2 {
        let parent = Some(parent("a.vhd", uuids[0]));
        let into = (Format::Vhd, bench.file("a.vhd"));
        let state = client
            .relink(&rid(), &dp("d"), uuids[1], into, parent)
            .await;
        assert_eq!(state.unwrap().layers, [uuids[2], uuids[0]]);
    }
    std::fs::remove_file(bench.path("b.vhd")).unwrap();
    stop.store(true, Ordering::Relaxed);
    let rounds = writer.await.unwrap();
    client.close(&rid(), &dp("d")).await.unwrap();
    assert!(rounds > 0);
    assert!(bench.flat(&["c.vhd", "a.vhd"]) == after_rounds(before, rounds));
    for name in ["a.vhd", "c.vhd"] {
        bench.assert_sound(name, Strictness::Closed);
    }
}

#[tokio::test]
async fn a_node_below_a_sealed_one_is_merged_and_every_disk_above_relinked() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let uuids = tree(&bench, &client, &["a.vhd", "b.vhd", "c.vhd"]).await;
    let mut leaves = Vec::new();
    for (disk, name) in [("d", "d.vhd"), ("e", "e.vhd")] {
        let leaf = bench
            .create(&client, name, SIZE, Some(("c.vhd", uuids[2])))
            .await;
        let layers = [name, "c.vhd", "b.vhd", "a.vhd"];
        let socket = bench.serve(&client, disk, &layers).await;
        let guest = nbd(&socket, disk).await;
        let seed = leaf.uuid.as_u128() as u64;
        guest.write(0, pattern(seed, PIECE), PLAIN).await.unwrap();
        let whole = guest.read(0, SIZE as u32).await.unwrap();
        leaves.push((disk, name, leaf.uuid, guest, whole));
    }
    // What c hides of b is not moved.
    merge(&bench, &client, &["c.vhd", "b.vhd", "a.vhd"], 1).await;
    for _ in 0..2 {
        let parent = parent("a.vhd", uuids[0]);
        let fd = bench.file("c.vhd");
        client
            .image_reparent(&rid(), parent, Extent::Grows, fd)
            .await
            .unwrap();
    }
    for (disk, _, leaf, guest, whole) in &leaves {
        let into = (Format::Vhd, bench.file("a.vhd"));
        let state = client.relink(&rid(), &dp(disk), uuids[1], into, None).await;
        assert_eq!(state.unwrap().layers, [*leaf, uuids[2], uuids[0]]);
        assert!(guest.read(0, SIZE as u32).await.unwrap() == *whole);
    }
    for (disk, name, _, _, whole) in leaves {
        client.close(&rid(), &dp(disk)).await.unwrap();
        assert!(bench.flat(&[name, "c.vhd", "a.vhd"]) == whole, "{name}");
    }
    bench.assert_sound("c.vhd", Strictness::Closed);
}

#[tokio::test]
async fn a_parent_of_another_length_and_an_image_in_use_are_refused() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let uuids = tree(&bench, &client, &["a.vhd", "b.vhd", "c.vhd"]).await;
    let reparent = async |name: &str| {
        let fd = bench.file("c.vhd");
        let parent = parent(name, uuids[0]);
        client
            .image_reparent(&rid(), parent, Extent::Grows, fd)
            .await
    };
    assert_eq!(
        reparent("longer.vhd").await.unwrap_err().kind,
        ErrorKind::Unsupported
    );
    bench.open(&client, "d", &["c.vhd", "b.vhd", "a.vhd"]).await;
    assert_eq!(reparent("a.vhd").await.unwrap_err().kind, ErrorKind::Busy);
    let relink = async |gone: Uuid, into: &str, with_parent: bool| {
        let parent = with_parent.then(|| parent(into, uuids[0]));
        let into = (Format::Vhd, bench.file(into));
        client.relink(&rid(), &dp("d"), gone, into, parent).await
    };
    assert_eq!(
        relink(uuids[1], "c.vhd", true).await.unwrap_err().kind,
        ErrorKind::Chain
    );
    assert_eq!(
        relink(uuids[1], "a.vhd", false).await.unwrap_err().kind,
        ErrorKind::Chain
    );
    let nobody = relink(Uuid::new_v4(), "a.vhd", true).await.unwrap();
    assert_eq!(nobody.layers.len(), 3);
}

//! Disks served over vhost-user, to a front end and driver of another's making.

use crate::bench::{Bench, MIB, dp, kill, nbd, pattern, rid};
use datapath::{Access, Client, ErrorKind, listen};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use vhd_checker::Strictness;
use vhost_driver::{Ask, FrontEnd, Options, Status, feature, number};

/// Opens a disk and serves it; returns the socket.
async fn serve(bench: &Bench, client: &Client, layers: &[&str]) -> PathBuf {
    bench.open(client, "d", layers).await;
    serve_open(bench, client).await
}

async fn serve_open(bench: &Bench, client: &Client) -> PathBuf {
    let socket = bench.path("vhost.sock");
    let listener = listen(&socket).unwrap();
    client
        .serve_vhost_user(&rid(), &dp("d"), "a disk", listener)
        .await
        .unwrap();
    socket
}

/// Puts a write of one sector into every free slot, to the sectors that `next` gives.
fn fill(front: &mut FrontEnd, mut next: impl FnMut() -> (u64, u8)) {
    for queue in &mut front.queues {
        while let Some(slot) = queue.slot() {
            let (sector, byte) = next();
            queue.fill(slot, &[byte; 512]);
            queue.put(slot, Ask::Write { sector, bytes: 512 });
        }
        queue.tell();
    }
}

/// Waits for everything in flight; how many answers came.
fn finish(front: &mut FrontEnd) -> usize {
    let mut count = 0;
    for queue in &mut front.queues {
        let mut done = Vec::new();
        while queue.in_flight() > 0 {
            assert!(queue.wait(&mut done, 20_000).unwrap(), "a request is lost");
            assert!(!queue.is_broken());
        }
        assert!(done.iter().all(|done| done.status == Status::Ok));
        count += done.len();
    }
    count
}

#[tokio::test]
async fn a_guest_writes_flushes_discards_and_reads_back() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "d.vhd", 64 * MIB, None).await;
    let socket = serve(&bench, &client, &["d.vhd"]).await;
    let mut front = FrontEnd::connect(&socket, Options::default()).unwrap();
    assert_eq!(front.config(8).unwrap(), (64 * MIB / 512).to_le_bytes());
    let (done, _) = front.one(Ask::Serial, &[]).unwrap();
    assert_eq!(front.queues[0].data(done.slot, 7), *b"a disk\0");

    let data = pattern(1, 16 << 10);
    for at in [0, 4095, 5000, 64 * MIB / 512 - 32] {
        assert_eq!(front.write(at, &data).unwrap(), Status::Ok);
    }
    assert_eq!(front.flush().unwrap(), Status::Ok);
    let discard = Ask::Discard {
        sector: 5000,
        sectors: 8,
    };
    assert_eq!(front.one(discard, &[]).unwrap().0.status, Status::Ok);
    let zeroes = Ask::WriteZeroes {
        sector: 4095,
        sectors: 32,
        unmap: true,
    };
    assert_eq!(front.one(zeroes, &[]).unwrap().0.status, Status::Ok);
    assert!(front.read(4095, 16 << 10).unwrap().iter().all(|b| *b == 0));
    assert!(front.read(64 * MIB / 512 - 32, 16 << 10).unwrap() == data);

    // The same disk over NBD at the same time.
    let other = nbd(&bench.serve_open(&client, "d").await, "d").await;
    assert!(other.read(0, 16 << 10).await.unwrap() == data);
    client.close(&rid(), &dp("d")).await.unwrap();
    assert!(front.config(8).is_err(), "the connection is closed");
    bench.assert_sound("d.vhd", Strictness::Closed);
    assert!(bench.flat(&["d.vhd"])[..16 << 10] == data);
}

#[tokio::test]
async fn what_was_answered_or_in_flight_when_the_process_was_killed_is_there() {
    let bench = Bench::new();
    let mut client = bench.client("a").await;
    bench.create(&client, "d.vhd", 64 * MIB, None).await;
    let socket = serve(&bench, &client, &["d.vhd"]).await;
    let options = Options {
        queues: 3,
        ..Options::default()
    };
    let mut front = FrontEnd::connect(&socket, options).unwrap();
    let mut content = std::collections::BTreeMap::new();
    let mut seed = 1_u64;
    for round in 0..6 {
        // Some rounds are answered in full before the kill, some not at all.
        for part in 0..2 {
            fill(&mut front, || {
                seed += 1;
                // New blocks and old ones, each sector once in a round.
                let sector = (seed * 997) % (64 * MIB / 512);
                content.insert(sector, seed as u8);
                (sector, seed as u8)
            });
            if part == 0 {
                assert_eq!(finish(&mut front), 3 * 64, "round {round}");
            }
        }
        kill(client.pid(), Signal::KILL);
        client.gone().await;
        client = bench.client("a").await;
        let again = serve(&bench, &client, &["d.vhd"]).await;
        front.reconnect(&again).unwrap();
        finish(&mut front);
    }
    for (sector, byte) in &content {
        assert!(
            front.read(*sector, 512).unwrap() == [*byte; 512],
            "{sector}"
        );
    }
    assert_eq!(front.flush().unwrap(), Status::Ok);
    client.close(&rid(), &dp("d")).await.unwrap();
    let flat = bench.flat(&["d.vhd"]);
    for (sector, byte) in content {
        assert_eq!(flat[sector as usize * 512], byte);
    }
    bench.assert_sound("d.vhd", Strictness::Closed);
}

#[tokio::test]
async fn a_front_end_that_leaves_and_comes_again_loses_nothing() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "d.vhd", 64 * MIB, None).await;
    let socket = serve(&bench, &client, &["d.vhd"]).await;
    let mut front = FrontEnd::connect(&socket, Options::default()).unwrap();
    for round in 0..20_u64 {
        fill(&mut front, || (round * 100, round as u8));
        front.reconnect(&socket).unwrap();
        finish(&mut front);
        assert_eq!(front.read(round * 100, 512).unwrap(), [round as u8; 512]);
    }
    let state = client.list(&rid()).await.unwrap().remove(0);
    assert!(state.vhost_user && state.stats.in_flight == 0, "{state:?}");
}

#[tokio::test]
async fn a_second_front_end_waits_for_the_first_to_leave() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "d.vhd", 16 * MIB, None).await;
    let socket = serve(&bench, &client, &["d.vhd"]).await;
    let mut first = FrontEnd::connect(&socket, Options::default()).unwrap();
    let second = {
        let socket = socket.clone();
        std::thread::spawn(move || FrontEnd::connect(&socket, Options::default()))
    };
    for _ in 0..50 {
        first.write(0, &[1; 512]).unwrap();
    }
    assert!(!second.is_finished());
    drop(first);
    let mut second = second.join().unwrap().unwrap();
    assert_eq!(second.read(0, 512).unwrap(), [1; 512]);
}

#[tokio::test]
async fn a_front_end_that_makes_no_sense_is_cut_off_and_the_next_one_served() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "d.vhd", 16 * MIB, None).await;
    let socket = serve(&bench, &client, &["d.vhd"]).await;
    for number in [number::GET_VRING_BASE, 99] {
        let front = FrontEnd::connect(&socket, Options::default()).unwrap();
        front.connection().tell(number, &[0xff; 8], &[]).unwrap();
        assert!(front.config(8).is_err());
    }
    let mut front = FrontEnd::connect(&socket, Options::default()).unwrap();
    assert_eq!(front.write(0, &[1; 512]).unwrap(), Status::Ok);
    // Half a message keeps nobody from anything.
    let mut socket = front.connection().socket();
    std::io::Write::write_all(&mut socket, &[1, 0, 0]).unwrap();
    assert_eq!(front.read(0, 512).unwrap(), [1; 512]);
    client.unserve(&rid(), &dp("d")).await.unwrap();
    client.close(&rid(), &dp("d")).await.unwrap();
}

#[tokio::test]
async fn memory_that_is_cut_off_ends_the_process_and_costs_nothing_that_was_flushed() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let other = bench.client("b").await;
    bench.create(&client, "d.vhd", 16 * MIB, None).await;
    let socket = serve(&bench, &client, &["d.vhd"]).await;
    let options = Options {
        sealed: false,
        ..Options::default()
    };
    let mut front = FrontEnd::connect(&socket, options).unwrap();
    assert_eq!(front.write(0, &[1; 512]).unwrap(), Status::Ok);
    assert_eq!(front.flush().unwrap(), Status::Ok);
    rustix::fs::ftruncate(front.guest().fd(), 0).unwrap();
    // The front end cannot look at its own memory any more either; this kick is all it can do.
    front.queues[0].kick();
    client.gone().await;
    assert!(!other.is_gone());
    let client = bench.client("a").await;
    let socket = serve(&bench, &client, &["d.vhd"]).await;
    let mut front = FrontEnd::connect(&socket, Options::default()).unwrap();
    assert_eq!(front.read(0, 512).unwrap(), [1; 512]);
}

#[tokio::test]
async fn resize_freeze_and_read_only_reach_the_guest() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "d.vhd", 16 * MIB, None).await;
    let socket = serve(&bench, &client, &["d.vhd"]).await;
    let mut front = FrontEnd::connect(&socket, Options::default()).unwrap();
    let last = 16 * MIB / 512;
    assert_eq!(front.write(last, &[1; 512]).unwrap(), Status::IoError);
    client.resize(&rid(), &dp("d"), 32 * MIB).await.unwrap();
    assert_eq!(front.config(8).unwrap(), (32 * MIB / 512).to_le_bytes());
    assert_eq!(front.write(last, &[1; 512]).unwrap(), Status::Ok);

    client.freeze(&rid(), &[dp("d")]).await.unwrap();
    fill(&mut front, || (0, 3));
    // The queue is taken while the disk holds everything back.
    while client.list(&rid()).await.unwrap()[0].stats.held < 64 {}
    assert_eq!(front.queues[0].in_flight(), 64);
    client.thaw(&rid(), &[dp("d")]).await.unwrap();
    assert_eq!(finish(&mut front), 64);
    drop(front);
    client.close(&rid(), &dp("d")).await.unwrap();

    bench
        .try_open(&client, "d", &["d.vhd"], Access::ReadOnly)
        .await
        .unwrap();
    let socket = serve_open(&bench, &client).await;
    let mut front = FrontEnd::connect(&socket, Options::default()).unwrap();
    assert_ne!(front.features() & feature::RO, 0);
    assert_eq!(front.write(0, &[9; 512]).unwrap(), Status::IoError);
    assert_eq!(front.read(0, 512).unwrap(), [3; 512]);
}

#[tokio::test]
async fn what_cannot_be_served_is_refused() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let listener = |name: &str| listen(Path::new(&bench.path(name))).unwrap();
    let refused = client
        .serve_vhost_user(&rid(), &dp("d"), "", listener("a.sock"))
        .await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::NotFound);
    bench.create(&client, "d.vhd", 16 * MIB, None).await;
    bench.open(&client, "d", &["d.vhd"]).await;
    let long = "a serial number of 22b";
    let refused = client
        .serve_vhost_user(&rid(), &dp("d"), long, listener("b.sock"))
        .await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Protocol);
    let file = bench.file("no-socket");
    let refused = client.serve_vhost_user(&rid(), &dp("d"), "", file).await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Protocol);
}

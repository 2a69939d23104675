//! Limits of the process driven to their ends, and names that change below it.

use crate::bench::{Bench, MIB, dp, kill, nbd, pattern, rid, until};
use datapath::nbd::WriteFlags;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use std::fs;
use vhd_checker::Strictness;

const PLAIN: WriteFlags = WriteFlags {
    fua: false,
    no_hole: false,
};

/// Sets a limit of a running process, and gives back what it was.
fn limit(pid: u32, resource: Resource, most: Option<u64>) -> Rlimit {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    let new = Rlimit {
        current: most,
        maximum: prlimit_of(pid, resource).maximum,
    };
    prlimit(pid, resource, new).unwrap()
}

fn prlimit_of(pid: Option<Pid>, resource: Resource) -> Rlimit {
    let own = rustix::process::getrlimit(resource);
    // The limit of another process is only told when one is set.
    let before = prlimit(pid, resource, own).unwrap();
    prlimit(pid, resource, before).unwrap();
    before
}

/// Bytes of address space that a process has.
fn address_space(pid: u32) -> u64 {
    let pages = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    pages * 4096
}

fn open_descriptors(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64
}

/// Whatever allocation fails first, the process ends or says so; what was flushed is there, and the
/// image opens.
#[tokio::test]
async fn a_process_that_gets_no_memory_loses_nothing_that_was_flushed() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 64 * MIB, None).await;
    kill(client.pid(), Signal::KILL);
    client.gone().await;
    let mut ended = 0;
    for (round, margin) in [0, 64 << 10, 512 << 10, 3 << 20, 20 << 20]
        .into_iter()
        .enumerate()
    {
        let round = round as u64;
        let client = bench.client("a").await;
        let socket = bench.serve(&client, "d", &["a.vhd"]).await;
        let disk = nbd(&socket, "d").await;
        disk.write(round << 19, pattern(round, 1 << 19), PLAIN)
            .await
            .unwrap();
        disk.flush().await.unwrap();
        let most = address_space(client.pid()) + margin;
        limit(client.pid(), Resource::As, Some(most));
        // Large requests that touch blocks for the first time, many at once.
        let greedy = (1..6_u64).map(|n| {
            let disk = disk.clone();
            tokio::spawn(async move {
                let written = disk.write(n * 4 * MIB, pattern(n, 4 << 20), PLAIN).await;
                written.is_ok() && disk.read(n * 4 * MIB, 16 << 20).await.is_ok()
            })
        });
        for one in greedy.collect::<Vec<_>>() {
            one.await.unwrap();
        }
        ended += u32::from(disk.flush().await.is_err());
        kill(client.pid(), Signal::KILL);
        client.gone().await;
        bench.assert_sound("a.vhd", Strictness::AfterCrash);
        let flat = vhd_checker::read_flat(&[bench.path("a.vhd")]).unwrap();
        for earlier in 0..=round {
            let wanted = pattern(earlier, 1 << 19);
            for (sector, wanted) in (earlier << 10..).zip(wanted.chunks(512)) {
                let found = flat.sector(sector).unwrap();
                assert!(found == wanted, "round {round}, sector {sector}");
            }
        }
    }
    assert!(ended > 0, "no margin was too small");
}

#[tokio::test]
async fn a_process_without_a_free_descriptor_goes_on_serving_and_takes_more_when_there_is_one() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let disk = nbd(&socket, "d").await;
    disk.write(0, pattern(1, 4096), PLAIN).await.unwrap();
    let pid = client.pid();
    let before = limit(pid, Resource::Nofile, Some(open_descriptors(pid)));
    let waiting = tokio::spawn(async move { nbd(&socket, "d").await });
    until("the second client was turned away", || {
        bench.log("a").contains("cannot accept")
    })
    .await;
    disk.write(4096, pattern(2, 4096), PLAIN).await.unwrap();
    disk.flush().await.unwrap();
    assert_eq!(client.list(&rid()).await.unwrap().len(), 1);
    limit(pid, Resource::Nofile, before.current);
    let second = waiting.await.unwrap();
    assert!(second.read(4096, 4096).await.unwrap() == pattern(2, 4096));
}

/// What it never starts cannot fail to start.
#[tokio::test]
async fn the_data_path_has_one_thread_whatever_it_does() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 64 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let disk = nbd(&socket, "d").await;
    for n in 0..8 {
        disk.write(n * 2 * MIB, pattern(n, 2 << 20), PLAIN)
            .await
            .unwrap();
        disk.flush().await.unwrap();
        let tasks = fs::read_dir(format!("/proc/{}/task", client.pid())).unwrap();
        let names = tasks
            .map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
        // The kernel's own workers for the ring show as tasks too.
        let own: Vec<String> = names
            .filter(|name| !name.starts_with("iou-") && !name.is_empty())
            .collect();
        assert_eq!(own.len(), 1, "{own:?}");
    }
}

#[tokio::test]
async fn another_file_under_the_name_of_an_open_one_is_never_touched() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let disk = nbd(&socket, "d").await;
    disk.write(0, pattern(1, 4096), PLAIN).await.unwrap();
    let other = pattern(9, 3 << 20);
    fs::rename(bench.path("a.vhd"), bench.path("b.vhd")).unwrap();
    fs::write(bench.path("a.vhd"), &other).unwrap();
    disk.write(2 * MIB, pattern(2, 4096), PLAIN).await.unwrap();
    disk.flush().await.unwrap();
    assert!(disk.read(0, 4096).await.unwrap() == pattern(1, 4096));
    client.close(&rid(), &dp("d")).await.unwrap();
    assert!(fs::read(bench.path("a.vhd")).unwrap() == other);
    bench.assert_sound("b.vhd", Strictness::Closed);
    let flat = bench.flat(&["b.vhd"]);
    assert!(flat[..4096] == pattern(1, 4096)[..]);
    assert!(flat[2 << 20..][..4096] == pattern(2, 4096)[..]);
}

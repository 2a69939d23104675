//! Space that runs out, processes that are killed under load, clients that misbehave.

use crate::bench::{Bench, MIB, dp, kill, nbd, pattern, rid, until};
use datapath::nbd::{ErrorKind as NbdErrorKind, WriteFlags};
use datapath::{Access, ErrorKind, Extent, Format, NewImage};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;
use vhd_checker::Strictness;

const PLAIN: WriteFlags = WriteFlags {
    fua: false,
    no_hole: false,
};
const BLOCK: usize = 2 << 20;

#[tokio::test]
async fn a_reserved_container_keeps_its_size_and_says_when_it_is_full() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let size = 11 * MIB;
    bench.volume("lv", size);
    let image = NewImage {
        uuid: Uuid::new_v4(),
        virtual_bytes: 32 * MIB,
        resize_max_bytes: 32 * MIB,
        parent: None,
        extent: Extent::Reserved,
    };
    client
        .image_create(&rid(), image, bench.file("lv"))
        .await
        .unwrap();
    let open = |access| {
        let layers = vec![(Format::Vhd, bench.file("lv"))];
        let client = client.clone();
        async move {
            client
                .open(&rid(), &dp("d"), layers, Extent::Reserved, access)
                .await
        }
    };
    open(Access::ReadWrite).await.unwrap();
    let socket = bench.serve_open(&client, "d").await;
    let disk = nbd(&socket, "d").await;
    let mut written = 0_usize;
    let error = loop {
        let data = pattern(written as u64, BLOCK);
        match disk.write((written * BLOCK) as u64, data, PLAIN).await {
            Ok(()) => written += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(error.kind(), NbdErrorKind::NoSpace, "{error}");
    assert!(
        (4..=5).contains(&written),
        "{written} blocks of 2 MiB in 11 MiB"
    );
    // What is there can be overwritten and flushed, and what is not reads as before.
    disk.write(0, pattern(99, BLOCK), PLAIN).await.unwrap();
    disk.flush().await.unwrap();
    assert_eq!(
        disk.read((written * BLOCK) as u64, 4096).await.unwrap(),
        [0; 4096]
    );
    client.close(&rid(), &dp("d")).await.unwrap();
    assert_eq!(std::fs::metadata(bench.path("lv")).unwrap().len(), size);
    let info = client
        .image_query(&rid(), Extent::Reserved, bench.file("lv"))
        .await
        .unwrap();
    assert!(info.clean, "{info:?}");

    open(Access::ReadOnly).await.unwrap();
    let disk = nbd(&bench.serve_open(&client, "d").await, "d").await;
    assert!(disk.read(0, BLOCK as u32).await.unwrap() == pattern(99, BLOCK));
    for n in 1..written {
        let read = disk.read((n * BLOCK) as u64, BLOCK as u32).await.unwrap();
        assert!(read == pattern(n as u64, BLOCK), "block {n}");
    }
}

/// Every write carries its number; after a kill each slot must hold a number at least as new as
/// what the last answered flush covered.
#[tokio::test]
async fn a_process_killed_under_load_keeps_what_was_flushed() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 64 * MIB, None).await;
    drop(client);
    let mut flushed = vec![0_u64; 128];
    for round in 0..5_u64 {
        let client = bench.client("a").await;
        let socket = bench.serve(&client, "d", &["a.vhd"]).await;
        let disk = nbd(&socket, "d").await;
        let count = Arc::new(AtomicU64::new(0));
        let writer = tokio::spawn(write_and_flush(disk, round, flushed, Arc::clone(&count)));
        until("some flushes", || {
            count.load(Ordering::Relaxed) > 150 + round * 37
        })
        .await;
        kill(client.pid(), Signal::KILL);
        let (durable, newest) = writer.await.unwrap();
        client.gone().await;
        bench.assert_sound("a.vhd", Strictness::AfterCrash);
        let flat = bench.flat(&["a.vhd"]);
        for (slot, (durable, newest)) in durable.iter().zip(&newest).enumerate() {
            let at = slot << 19;
            let found = u64::from_le_bytes(flat[at..at + 8].try_into().unwrap());
            assert!(
                (*durable..=*newest).contains(&found),
                "round {round}, slot {slot}: {durable} <= {found} <= {newest}"
            );
        }
        flushed = durable;
    }
}

/// Writes numbers until the connection ends; returns what each slot holds at least and at most.
async fn write_and_flush(
    disk: datapath::nbd::Client,
    round: u64,
    durable: Vec<u64>,
    count: Arc<AtomicU64>,
) -> (Vec<u64>, Vec<u64>) {
    let (mut durable, mut answered, mut newest) = (durable.clone(), durable.clone(), durable);
    for step in 0_u64.. {
        let number = ((round + 1) << 32) | step;
        let slot = usize::try_from(step * 29 % 128).unwrap();
        newest[slot] = number;
        let data = number.to_le_bytes().repeat(64);
        if disk.write((slot as u64) << 19, data, PLAIN).await.is_err() {
            break;
        }
        answered[slot] = number;
        if step % 7 == 0 {
            if disk.flush().await.is_err() {
                break;
            }
            durable.copy_from_slice(&answered);
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
    (durable, newest)
}

fn connect(socket: &std::path::Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

#[tokio::test]
async fn clients_that_misbehave_hurt_only_themselves() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let good = nbd(&socket, "d").await;
    let scripts: &[&[u8]] = &[
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        &[0, 0, 0, 3],
        b"\0\0\0\x03IHAVEOPT\0\0\0\x07\xff\xff\xff\xff",
        b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x05other",
        // Enters the default export, then begins a write and leaves inside it.
        b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0\x25\x60\x95\x13\0\0\0\x01AAAAAAAA\0\0\0\0\0\0\0\0\0\0\x10\0half",
        b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0\x25\x60\x95\x13\0\0\0\x02AAAAAAAA\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0garbage garbage garbage garbage",
    ];
    for (n, script) in scripts.iter().enumerate() {
        let mut stream = connect(&socket);
        stream.write_all(script).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        assert!(ended.is_ok() || n > 0, "script {n}: {ended:?}");
        good.write(0, pattern(n as u64, 4096), PLAIN).await.unwrap();
    }
    assert!(good.read(0, 4096).await.unwrap() == pattern(scripts.len() as u64 - 1, 4096));
    let stats = client.list(&rid()).await.unwrap()[0].stats;
    assert_eq!(
        (stats.writes, stats.in_flight),
        (scripts.len() as u64, 0),
        "half a write counted"
    );
}

#[tokio::test]
async fn sixteen_idle_clients_keep_nobody_from_control_and_make_way_when_they_leave() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let mut idle: Vec<UnixStream> = (0..16).map(|_| connect(&socket)).collect();
    for stream in &mut idle {
        stream.read_exact(&mut [0; 18]).unwrap();
    }
    let mut waiting = connect(&socket);
    waiting
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    assert!(
        waiting.read(&mut [0]).is_err(),
        "a seventeenth client was greeted"
    );
    client.list(&rid()).await.unwrap();
    idle.pop();
    waiting
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    waiting.read_exact(&mut [0; 18]).unwrap();
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_hold_up_closing() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    std::fs::write(bench.path("a.raw"), pattern(1, 4 << 20)).unwrap();
    let socket = bench.serve(&client, "d", &["a.raw"]).await;
    let mut deaf = connect(&socket);
    deaf.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0")
        .unwrap();
    for _ in 0..64 {
        deaf.write_all(b"\x25\x60\x95\x13\0\0\0\0AAAAAAAA\0\0\0\0\0\0\0\0\0\x10\0\0")
            .unwrap();
    }
    let busy = || async { client.list(&rid()).await.unwrap()[0].stats.reads > 0 };
    while !busy().await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client.close(&rid(), &dp("d")).await.unwrap();
    assert_eq!(client.list(&rid()).await.unwrap(), []);
    let error = client
        .snapshot(&rid(), &dp("d"), Uuid::new_v4(), bench.file("a.raw"))
        .await;
    assert_eq!(error.unwrap_err().kind, ErrorKind::NotFound);
}

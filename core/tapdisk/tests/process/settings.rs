//! Limits, write-through and statistics of a disk that is served, by control message.

use crate::bench::{Bench, MIB, dp, nbd, pattern, rid};
use datapath::nbd::{ErrorKind as NbdErrorKind, WriteFlags};
use datapath::protocol::{DiskSettings, Limit, Limits, OnError, Policy};
use datapath::{Access, ErrorKind, Extent, Format, NewImage};
use std::time::{Duration, Instant};
use uuid::Uuid;

const PLAIN: WriteFlags = WriteFlags {
    fua: false,
    no_hole: false,
};

#[tokio::test]
async fn statistics_tell_counts_bytes_and_latencies_by_kind() {
    let bench = Bench::new();
    let client = bench.client("vm").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let disk = nbd(&socket, "d").await;
    let before = client.stats(&rid(), &dp("d")).await.unwrap();
    for _ in 0..10 {
        disk.write(0, pattern(1, 4096), PLAIN).await.unwrap();
    }
    disk.read(0, 8192).await.unwrap();
    disk.flush().await.unwrap();
    let after = client.stats(&rid(), &dp("d")).await.unwrap();
    let writes = after.writes.since(&before.writes);
    assert_eq!((writes.count(), after.reads.count()), (10, 1));
    assert_eq!((after.flushes.count(), after.discards.count()), (1, 0));
    assert!(writes.quantile_us(500_000) <= writes.quantile_us(999_000));
    assert!(after.taken_us > before.taken_us);
    let stats = after.stats;
    assert_eq!((stats.write_bytes, stats.read_bytes), (40_960, 8192));
    assert!(stats.in_flight_max >= 1 && stats.barriers >= 1 && stats.file_ops > 10);
    assert!(stats.busy_us > 0 && stats.depth_us >= stats.busy_us);
    assert_eq!(stats, client.list(&rid()).await.unwrap()[0].stats);
    let error = client.stats(&rid(), &dp("other")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_limited_disk_wakes_when_there_are_tokens_and_is_set_free_while_it_waits() {
    let bench = Bench::new();
    let client = bench.client("vm").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let disk = nbd(&socket, "d").await;
    let limit = |per_second| Limits {
        requests: Some(Limit {
            per_second,
            burst: 1,
        }),
        bytes: None,
    };
    let state = client
        .set_limits(&rid(), &dp("d"), limit(200))
        .await
        .unwrap();
    assert_eq!(state.settings.limits, limit(200));
    let since = Instant::now();
    for _ in 0..41 {
        disk.read(0, 512).await.unwrap();
    }
    // Forty after the first, five milliseconds each: by a clock that ticks twice a second it would
    // be twenty seconds.
    let took = since.elapsed();
    assert!(took >= Duration::from_millis(199), "{took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    // Ten thousand at one a second, until that is changed.
    client.set_limits(&rid(), &dp("d"), limit(1)).await.unwrap();
    let waiting = tokio::spawn(async move {
        for _ in 0..10_000 {
            disk.read(0, 512).await.unwrap();
        }
    });
    let free = Limits::default();
    let state = client.set_limits(&rid(), &dp("d"), free).await.unwrap();
    assert_eq!(state.settings, DiskSettings::default());
    waiting.await.unwrap();
    let wrong = client.set_limits(&rid(), &dp("d"), limit(0)).await;
    assert_eq!(wrong.unwrap_err().kind, ErrorKind::Unsupported);
}

#[tokio::test]
async fn settings_come_with_open_and_with_opening_again() {
    let bench = Bench::new();
    let client = bench.client("vm").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    for write_through in [true, false] {
        let settings = DiskSettings {
            write_through,
            ..DiskSettings::default()
        };
        let layers = vec![(Format::Vhd, bench.file("a.vhd"))];
        let access = Access::ReadWrite;
        let (rid, dp) = (rid(), dp("d"));
        let opened = client.open_with(&rid, &dp, layers, Extent::Grows, access, settings);
        assert_eq!(opened.await.unwrap().settings, settings);
        if write_through {
            let socket = bench.serve_open(&client, "d").await;
            let disk = nbd(&socket, "d").await;
            disk.write(0, pattern(1, 4096), PLAIN).await.unwrap();
            let stats = client.stats(&rid, &dp).await.unwrap().stats;
            assert!(stats.barriers >= 2, "answered, so it is durable");
        }
    }
}

#[tokio::test]
async fn a_full_container_pauses_the_disk_which_says_so_until_it_is_told_to_report() {
    let bench = Bench::new();
    let client = bench.client("vm").await;
    bench.volume("lv", 7 * MIB);
    let image = NewImage {
        uuid: Uuid::new_v4(),
        virtual_bytes: 32 * MIB,
        resize_max_bytes: 32 * MIB,
        parent: None,
        extent: Extent::Reserved,
    };
    let (rid, dp) = (rid(), dp("d"));
    let made = client.image_create(&rid, image, bench.file("lv"));
    made.await.unwrap();
    let settings = DiskSettings {
        policy: Policy {
            on_no_space: OnError::Pause,
            on_io_error: OnError::Report,
        },
        ..DiskSettings::default()
    };
    let (layers, access) = (vec![(Format::Vhd, bench.file("lv"))], Access::ReadWrite);
    let opened = client.open_with(&rid, &dp, layers, Extent::Reserved, access, settings);
    assert_eq!(opened.await.unwrap().paused, None);
    let socket = bench.serve_open(&client, "d").await;
    let disk = nbd(&socket, "d").await;
    let writer = disk.clone();
    let writing = tokio::spawn(async move {
        for block in 0..16 {
            let data = pattern(block, 4096);
            writer.write(block * 2 * MIB, data, PLAIN).await?;
        }
        Ok::<_, datapath::nbd::Error>(())
    });
    let paused = loop {
        let state = client.list(&rid).await.unwrap().remove(0);
        if let Some(paused) = state.paused {
            assert!(state.stats.held >= 1 && state.stats.errors == 0);
            break paused;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(paused.kind, ErrorKind::NoSpace);
    assert!(paused.since_unix_ms > 1_700_000_000_000);
    assert!(disk.read(0, 4096).await.unwrap() == pattern(0, 4096));
    disk.flush().await.unwrap();
    // Resumed in vain: the container is as full as before, and it is another pause.
    client.resume(&rid, &dp).await.unwrap();
    assert!(!writing.is_finished());
    let state = client
        .set_policy(&rid, &dp, Policy::default())
        .await
        .unwrap();
    assert_eq!(
        (state.paused, state.settings.policy),
        (None, Policy::default())
    );
    let error = writing.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), NbdErrorKind::NoSpace, "{error}");
    let log = bench.log("vm");
    assert!(log.contains("\"paused\"") && log.contains("goes on after a pause"));
    client.close(&rid, &dp).await.unwrap();
}

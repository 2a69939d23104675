//! Logs of changed blocks of disks that are served.

use crate::bench::{Bench, MIB, dp, kill, nbd, pattern, rid};
use datapath::nbd::WriteFlags;
use datapath::{ErrorKind, NewImage};
use datapath::{Extent, protocol::ParentRef};
use rustix::process::Signal;
use uuid::Uuid;

const PLAIN: WriteFlags = WriteFlags {
    fua: false,
    no_hole: false,
};

/// Makes a consistent log without a mark, as the format's description has it: flag at 32, size at
/// 40, then a bit for 64 KiB, the lowest first.
fn create_log(bench: &Bench, name: &str, size_bytes: u64) {
    let mut bytes = vec![0; 48 + size_bytes.div_ceil(65_536).div_ceil(8) as usize];
    bytes[32] = 1;
    bytes[40..48].copy_from_slice(&size_bytes.to_le_bytes());
    std::fs::write(bench.path(name), bytes).unwrap();
}

fn read_log(bench: &Bench, name: &str) -> (bool, Vec<u8>) {
    let bytes = std::fs::read(bench.path(name)).unwrap();
    (bytes[32] != 0, bytes[48..].to_vec())
}

#[tokio::test]
async fn changes_are_marked_handed_over_at_a_snapshot_and_complete_when_it_stops() {
    let bench = Bench::new();
    let client = bench.client("vm").await;
    let (rid, d) = (rid(), dp("d"));
    let base = bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let disk = nbd(&socket, "d").await;
    disk.write(0, pattern(1, 4096), PLAIN).await.unwrap();
    create_log(&bench, "one", 4 * MIB);
    create_log(&bench, "two", 4 * MIB);
    create_log(&bench, "short", 2 * MIB);
    let wrong = client.cbt_start(&rid, &d, bench.file("short")).await;
    assert_eq!(wrong.unwrap_err().kind, ErrorKind::Unsupported);
    let wrong = client.cbt_start(&rid, &d, bench.file("empty")).await;
    assert_eq!(wrong.unwrap_err().kind, ErrorKind::Corrupt);
    for _ in 0..2 {
        let state = client.cbt_start(&rid, &d, bench.file("one")).await.unwrap();
        let log = state.log.unwrap();
        assert_eq!(
            (log.changed_bytes, log.trusted, log.broken),
            (0, true, None)
        );
    }
    let other = client.cbt_start(&rid, &d, bench.file("two")).await;
    assert_eq!(other.unwrap_err().kind, ErrorKind::Busy);
    // An overwrite and a new block.
    disk.write(0, pattern(2, 4096), PLAIN).await.unwrap();
    disk.write(3 * MIB, pattern(3, 4096), PLAIN).await.unwrap();

    let image = NewImage {
        uuid: Uuid::new_v4(),
        virtual_bytes: 4 * MIB,
        resize_max_bytes: 4 * MIB,
        parent: Some(ParentRef {
            name: "a.vhd".to_owned(),
            uuid: base.uuid,
            mtime_unix_s: 1_700_000_000,
        }),
        extent: Extent::Grows,
    };
    let leaf = image.uuid;
    let made = client.image_create(&rid, image, bench.file("b.vhd"));
    made.await.unwrap();
    let (container, log) = (bench.file("b.vhd"), bench.file("two"));
    let switched = client.snapshot_with_log(&rid, &d, leaf, container, log);
    assert_eq!(switched.await.unwrap().log.unwrap().changed_bytes, 0);
    let (flag, bits) = read_log(&bench, "one");
    assert_eq!((flag, bits), (true, vec![1, 0, 0, 0, 0, 0, 1, 0]));
    assert!(!read_log(&bench, "two").0);

    disk.write(MIB, pattern(4, 4096), PLAIN).await.unwrap();
    let state = client.cbt_stop(&rid, &d).await.unwrap();
    assert_eq!(state.log, None);
    assert_eq!(client.cbt_stop(&rid, &d).await.unwrap().log, None);
    disk.write(2 * MIB, pattern(4, 4096), PLAIN).await.unwrap();
    let (flag, bits) = read_log(&bench, "two");
    assert_eq!((flag, bits), (true, vec![0, 0, 1, 0, 0, 0, 0, 0]));
    client.close(&rid, &d).await.unwrap();
}

#[tokio::test]
async fn a_killed_process_leaves_a_log_that_has_it_all_and_does_not_say_so() {
    let bench = Bench::new();
    let (rid, d) = (rid(), dp("d"));
    let client = bench.client("vm").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    create_log(&bench, "cbt", 4 * MIB);
    let started = client.cbt_start(&rid, &d, bench.file("cbt"));
    assert!(started.await.unwrap().log.unwrap().trusted);
    let disk = nbd(&socket, "d").await;
    disk.write(MIB, pattern(1, 4096), PLAIN).await.unwrap();
    disk.flush().await.unwrap();
    kill(client.pid(), Signal::KILL);
    client.gone().await;
    let (flag, bits) = read_log(&bench, "cbt");
    assert_eq!((flag, bits), (false, vec![0, 0, 1, 0, 0, 0, 0, 0]));
    // The next process marks on in the same log, which nobody is to believe until it is made anew.
    let client = bench.client("vm").await;
    bench.open(&client, "d", &["a.vhd"]).await;
    let started = client.cbt_start(&rid, &d, bench.file("cbt"));
    let log = started.await.unwrap().log.unwrap();
    assert_eq!((log.changed_bytes, log.trusted), (65_536, false));
    client.close(&rid, &d).await.unwrap();
    assert!(!read_log(&bench, "cbt").0);
}

//! Disks whose data does not go through the page cache.

use crate::bench::{Bench, MIB, dp, nbd, pattern, rid};
use datapath::nbd::WriteFlags;
use datapath::{Access, Cache, Client, DiskSettings, DiskState, Extent, Format};
use vhd_checker::Strictness;

/// `O_DIRECT` in the flags of `/proc/PID/fdinfo`, which are octal.
const O_DIRECT: u32 = 0o40000;

const PLAIN: WriteFlags = WriteFlags {
    fua: false,
    no_hole: false,
};

async fn open(bench: &Bench, client: &Client, layers: &[&str], cache: Cache) -> DiskState {
    let layers = layers
        .iter()
        .map(|name| (Format::Vhd, bench.file(name)))
        .collect();
    let settings = DiskSettings {
        cache,
        ..DiskSettings::default()
    };
    let (extent, access) = (Extent::Grows, Access::ReadWrite);
    let (rid, dp) = (rid(), dp("d"));
    let opened = client.open_with(&rid, &dp, layers, extent, access, settings);
    opened.await.unwrap()
}

/// Which of the process's open images have the flag, by name.
fn direct_images(client: &Client) -> Vec<String> {
    let proc = std::path::PathBuf::from(format!("/proc/{}", client.pid()));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(proc.join("fd")).unwrap() {
        let number = entry.unwrap().file_name();
        let target = std::fs::read_link(proc.join("fd").join(&number)).unwrap();
        let info = std::fs::read_to_string(proc.join("fdinfo").join(&number)).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        if flags & O_DIRECT != 0 {
            let name = target.file_name().unwrap().to_string_lossy();
            names.push(name.into_owned());
        }
    }
    names.sort();
    names
}

#[tokio::test]
async fn a_direct_disk_is_direct_in_every_layer_and_does_all_that_others_do() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let base = bench.create(&client, "a.vhd", 8 * MIB, None).await;
    assert_eq!(direct_images(&client), [""; 0]);
    let state = open(&bench, &client, &["a.vhd"], Cache::Direct).await;
    assert_eq!(state.settings.cache, Cache::Direct);
    assert_eq!(direct_images(&client), ["a.vhd"]);
    let socket = bench.serve_open(&client, "d").await;
    let disk = nbd(&socket, "d").await;
    let mut expected = vec![0; 8 << 20];
    let mut write = async |seed: u64, offset: usize, len: usize| {
        let data = pattern(seed, len);
        expected[offset..offset + len].copy_from_slice(&data);
        disk.write(offset as u64, data, PLAIN).await.unwrap();
        disk.flush().await.unwrap();
    };
    // Single sectors, across blocks, from odd sectors on.
    write(1, 512, 512).await;
    write(2, (2 << 20) - 1536, 4096).await;
    write(3, 5 << 20, 70_656).await;
    let leaf = bench
        .create(&client, "b.vhd", 8 * MIB, Some(("a.vhd", base.uuid)))
        .await;
    let state = client
        .snapshot(&rid(), &dp("d"), leaf.uuid, bench.file("b.vhd"))
        .await
        .unwrap();
    assert_eq!(state.settings.cache, Cache::Direct);
    assert_eq!(direct_images(&client), ["a.vhd", "b.vhd"]);
    write(4, 1024, 1536).await;
    assert!(disk.read(0, 8 << 20).await.unwrap() == expected);
    // Opening again takes the setting over, here for a disk in use.
    let chain = ["b.vhd", "a.vhd"];
    let state = open(&bench, &client, &chain, Cache::PageCache).await;
    assert_eq!(state.settings.cache, Cache::PageCache);
    assert_eq!(direct_images(&client), [""; 0]);
    open(&bench, &client, &chain, Cache::Direct).await;
    assert!(disk.read(0, 8 << 20).await.unwrap() == expected);
    client.resize(&rid(), &dp("d"), 10 * MIB).await.unwrap();
    client.close(&rid(), &dp("d")).await.unwrap();
    bench.assert_sound("a.vhd", Strictness::Closed);
    bench.assert_sound("b.vhd", Strictness::Closed);
    expected.resize(10 << 20, 0);
    assert!(bench.flat(&chain) == expected);
}

#[tokio::test]
async fn a_file_in_memory_stays_in_the_page_cache_and_says_so() {
    let bench = Bench::in_memory();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let state = open(&bench, &client, &["a.vhd"], Cache::Direct).await;
    assert_eq!(state.settings.cache, Cache::PageCache);
    assert!(bench.log("a").contains("the file is in memory"));
}

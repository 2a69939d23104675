//! Disks over NBD: what others read is what was written.

use crate::bench::{Bench, MIB, dp, nbd, pattern, rid, tool, try_tool, uri};
use datapath::nbd::{BlockRun, ErrorKind as NbdErrorKind, WriteFlags};
use datapath::{Access, ErrorKind};
use vhd_checker::Strictness;

const FUA: WriteFlags = WriteFlags {
    fua: true,
    no_hole: false,
};
const PLAIN: WriteFlags = WriteFlags {
    fua: false,
    no_hole: false,
};

#[tokio::test]
async fn nbdinfo_sees_the_export_with_all_its_powers() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 8 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let info = tool("nbdinfo", &["--json", &uri(&socket, "d")]).await;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(
        (&info["protocol"], &info["structured"]),
        (&"newstyle-fixed".into(), &true.into())
    );
    let export = &info["exports"][0];
    let expected = [
        ("export-name", serde_json::json!("d")),
        ("contexts", serde_json::json!(["base:allocation"])),
        ("export-size", (8 * MIB).into()),
        ("is_read_only", false.into()),
        ("can_df", true.into()),
        ("can_flush", true.into()),
        ("can_fua", true.into()),
        ("can_multi_conn", true.into()),
        ("can_trim", true.into()),
        ("can_zero", true.into()),
        ("can_cache", true.into()),
        ("can_fast_zero", true.into()),
        ("block_size_minimum", 512.into()),
        ("block_size_preferred", 4096.into()),
        ("block_size_maximum", 33_554_432.into()),
    ];
    for (field, value) in expected {
        assert_eq!(export[field], value, "{field}");
    }
    let list = tool("nbdinfo", &["--list", &uri(&socket, "")]).await;
    assert!(list.contains("export=\"d\""), "{list}");
    let (ok, text) = try_tool("nbdinfo", &[&uri(&socket, "other")]).await;
    assert!(!ok && text.contains("export"), "{text}");
}

#[tokio::test]
async fn nbdcopy_and_qemu_img_agree_with_the_file() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 16 * MIB, None).await;
    let mut content = vec![0; 16 << 20];
    content[..3 << 20].copy_from_slice(&pattern(1, 3 << 20));
    content[(9 << 20) + 512..(10 << 20)].copy_from_slice(&pattern(2, (1 << 20) - 512));
    std::fs::write(bench.path("in.raw"), &content).unwrap();
    let path = |name: &str| bench.path(name).display().to_string();

    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    tool("nbdcopy", &["--flush", &path("in.raw"), &uri(&socket, "d")]).await;
    tool("nbdcopy", &[&uri(&socket, "d"), &path("out.raw")]).await;
    assert!(
        std::fs::read(bench.path("out.raw")).unwrap() == content,
        "nbdcopy reads otherwise"
    );
    let compare = [
        "compare",
        "-f",
        "raw",
        "-F",
        "raw",
        &path("in.raw"),
        &uri(&socket, "d"),
    ];
    tool("qemu-img", &compare).await;
    tool(
        "qemu-img",
        &[
            "convert",
            "-n",
            "-f",
            "raw",
            "-O",
            "raw",
            &path("in.raw"),
            &uri(&socket, "d"),
        ],
    )
    .await;
    tool("qemu-img", &compare).await;

    client.close(&rid(), &dp("d")).await.unwrap();
    bench.assert_sound("a.vhd", Strictness::Closed);
    assert!(
        bench.flat(&["a.vhd"]) == content,
        "the naive reader reads otherwise"
    );
    let compare = [
        "compare",
        "-f",
        "raw",
        "-F",
        "vpc",
        &path("in.raw"),
        &path("a.vhd"),
    ];
    tool("qemu-img", &compare).await;
}

#[tokio::test]
async fn an_image_of_qemu_is_served_as_qemu_reads_it() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let path = |name: &str| bench.path(name).display().to_string();
    let content = [pattern(3, 5 << 20), vec![0; 3 << 20]].concat();
    std::fs::write(bench.path("in.raw"), &content).unwrap();
    for (name, options) in [
        ("dynamic.vhd", "subformat=dynamic,force_size"),
        ("fixed.vhd", "subformat=fixed,force_size"),
    ] {
        let convert = [
            "convert",
            "-f",
            "raw",
            "-O",
            "vpc",
            "-o",
            options,
            &path("in.raw"),
            &path(name),
        ];
        tool("qemu-img", &convert).await;
        let disk = name.trim_end_matches(".vhd");
        let socket = bench.serve(&client, disk, &[name]).await;
        let client = nbd(&socket, disk).await;
        assert!(client.read(0, 8 << 20).await.unwrap() == content, "{name}");
    }
}

#[tokio::test]
async fn a_chain_is_served_flat() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let mut content = vec![0; 8 << 20];
    let mut chain: Vec<String> = Vec::new();
    let mut parent: Option<(String, uuid::Uuid)> = None;
    for depth in 0..5_usize {
        let name = format!("{depth}.vhd");
        let link = parent.as_ref().map(|(name, uuid)| (name.as_str(), *uuid));
        let made = bench.create(&client, &name, 8 * MIB, link).await;
        chain.insert(0, name.clone());
        let layers: Vec<&str> = chain.iter().map(String::as_str).collect();
        let disk = format!("d{depth}");
        let socket = bench.serve(&client, &disk, &layers).await;
        let writer = nbd(&socket, &disk).await;
        for part in 0..4_usize {
            let at = (depth * 1_300 + part * 3_300) * 512;
            let data = pattern(
                (depth * 10 + part) as u64,
                3000 * 512 / (depth + 1) / 512 * 512,
            );
            content[at..at + data.len()].copy_from_slice(&data);
            writer.write(at as u64, data, PLAIN).await.unwrap();
        }
        writer.disconnect().await.unwrap();
        client.close(&rid(), &dp(&disk)).await.unwrap();
        assert!(bench.flat(&layers) == content, "after layer {depth}");
        parent = Some((name, made.uuid));
    }
    let layers: Vec<&str> = chain.iter().map(String::as_str).collect();
    bench
        .try_open(&client, "r", &layers, Access::ReadOnly)
        .await
        .unwrap();
    let socket = bench.serve_open(&client, "r").await;
    let out = bench.path("out.raw").display().to_string();
    tool("nbdcopy", &[&uri(&socket, "r"), &out]).await;
    assert!(
        std::fs::read(&out).unwrap() == content,
        "the flattened export differs"
    );
    for name in &layers {
        bench.assert_sound(name, Strictness::Closed);
    }
}

#[tokio::test]
async fn a_raw_base_shows_below_a_differencing_image() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let base = pattern(9, 4 << 20);
    std::fs::write(bench.path("base.raw"), &base).unwrap();
    bench
        .create(
            &client,
            "leaf.vhd",
            4 * MIB,
            Some(("base.raw", uuid::Uuid::nil())),
        )
        .await;
    let socket = bench.serve(&client, "d", &["leaf.vhd", "base.raw"]).await;
    let disk = nbd(&socket, "d").await;
    assert!(disk.read(0, 4 << 20).await.unwrap() == base);
    disk.write(512, vec![7; 512], FUA).await.unwrap();
    let mut expected = base.clone();
    expected[512..1024].fill(7);
    assert!(disk.read(0, 4 << 20).await.unwrap() == expected);
    assert!(
        std::fs::read(bench.path("base.raw")).unwrap() == base,
        "the base was written"
    );
}

#[tokio::test]
async fn block_status_zeroes_and_trim_tell_the_truth() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 8 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let disk = nbd(&socket, "d").await;
    let hole = |length_bytes| BlockRun {
        length_bytes,
        hole: true,
        zero: true,
    };
    assert_eq!(
        disk.block_status(0, 8 << 20).await.unwrap(),
        [hole(8 << 20)]
    );
    disk.write(4096, pattern(1, 8192), PLAIN).await.unwrap();
    let data = |length_bytes| BlockRun {
        length_bytes,
        hole: false,
        zero: false,
    };
    let expected = [hole(4096), data(8192), hole((8 << 20) - 12288)];
    assert_eq!(disk.block_status(0, 8 << 20).await.unwrap(), expected);

    disk.write_zeroes(4096, 4096, FUA).await.unwrap();
    assert_eq!(disk.read(4096, 4096).await.unwrap(), [0; 4096]);
    disk.write_zeroes(
        0,
        8 << 20,
        WriteFlags {
            fua: false,
            no_hole: true,
        },
    )
    .await
    .unwrap();
    assert_eq!(disk.read(0, 8 << 20).await.unwrap(), vec![0; 8 << 20]);
    disk.write(0, pattern(2, 4096), PLAIN).await.unwrap();
    disk.trim(0, 2 << 20).await.unwrap();
    let after = disk.read(0, 4096).await.unwrap();
    assert!(
        after == pattern(2, 4096) || after == [0; 4096],
        "a third value after trim"
    );
    disk.flush().await.unwrap();
    disk.disconnect().await.unwrap();
    client.close(&rid(), &dp("d")).await.unwrap();
    bench.assert_sound("a.vhd", Strictness::Closed);
}

#[tokio::test]
async fn one_request_may_be_about_more_than_4_gib() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let size = 300 << 30;
    bench.create(&client, "a.vhd", size, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let disk = nbd(&socket, "d").await;
    assert!(disk.info().extended);
    let ends = [0, 5 << 30, size - 4096];
    for at in ends {
        disk.write(at, pattern(at, 4096), PLAIN).await.unwrap();
    }
    disk.write_zeroes(4096, size - 8192, PLAIN).await.unwrap();
    assert_eq!(disk.read(5 << 30, 4096).await.unwrap(), [0; 4096]);
    assert!(disk.read(size - 4096, 4096).await.unwrap() == pattern(size - 4096, 4096));
    let runs = disk.block_status(0, size).await.unwrap();
    assert_eq!(runs[0].length_bytes, 4096);
    assert!(runs.last().unwrap().length_bytes > 1 << 32, "{runs:?}");
    disk.trim(0, size).await.unwrap();
    disk.disconnect().await.unwrap();
    client.close(&rid(), &dp("d")).await.unwrap();
    bench.assert_sound("a.vhd", Strictness::Closed);
}

#[tokio::test]
async fn fast_zeroes_fail_where_they_would_be_slow_and_change_nothing() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let base = bench.create(&client, "a.vhd", 8 * MIB, None).await;
    let socket = bench.serve(&client, "base", &["a.vhd"]).await;
    let disk = nbd(&socket, "base").await;
    disk.write(4 * MIB, pattern(1, 4096), PLAIN).await.unwrap();
    disk.disconnect().await.unwrap();
    client.close(&rid(), &dp("base")).await.unwrap();
    let parent = Some(("a.vhd", base.uuid));
    bench.create(&client, "b.vhd", 8 * MIB, parent).await;
    let socket = bench.serve(&client, "d", &["b.vhd", "a.vhd"]).await;
    // qemu-io's -n is "no fallback to writing", which travels as the flag; -u allows holes.
    let io = async |command: &str| {
        let arguments = ["-f", "raw", "-c", command, &uri(&socket, "d")];
        try_tool("qemu-io", &arguments).await
    };
    for (command, fast) in [
        ("write -z -n -u 0 4M", true),
        ("write -z -n 0 4M", false),
        ("write -z -n -u 0 8M", false),
        ("write -z -n -u 4M 1M", false),
        ("write -z -n -u 6M 2M", true),
    ] {
        let (_, text) = io(command).await;
        assert_eq!(text.contains("not supported"), !fast, "{command}: {text}");
    }
    let disk = nbd(&socket, "d").await;
    assert!(disk.read(4 * MIB, 4096).await.unwrap() == pattern(1, 4096));
    let (ok, text) = io("write -z 0 8M").await;
    assert!(ok && !text.contains("failed"), "{text}");
    assert_eq!(disk.read(4 * MIB, 4096).await.unwrap(), [0; 4096]);
}

#[tokio::test]
async fn wrong_requests_have_typed_errors_and_the_connection_lives_on() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    bench
        .try_open(&client, "r", &["a.vhd"], Access::ReadOnly)
        .await
        .unwrap();
    let socket = bench.serve_open(&client, "r").await;
    let disk = nbd(&socket, "r").await;
    assert!(disk.info().read_only);
    let kind = |e: datapath::nbd::Error| e.kind();
    assert_eq!(
        disk.write(0, vec![1; 512], PLAIN).await.map_err(kind),
        Err(NbdErrorKind::ReadOnly)
    );
    assert_eq!(
        disk.read(4 * MIB, 512).await.map_err(kind),
        Err(NbdErrorKind::Invalid)
    );
    assert_eq!(
        disk.read(100, 512).await.map_err(kind),
        Err(NbdErrorKind::Invalid)
    );
    disk.flush().await.unwrap();
    disk.read(0, 512).await.unwrap();
    let other = datapath::nbd::Client::connect(&socket, "x")
        .await
        .map_err(kind);
    assert_eq!(other.unwrap_err(), NbdErrorKind::NoExport);
    let nobody = datapath::nbd::Client::connect(&bench.path("no.sock"), "x")
        .await
        .map_err(kind);
    assert_eq!(nobody.unwrap_err(), NbdErrorKind::NotFound);
}

#[tokio::test]
async fn two_clients_see_each_others_writes_and_one_flush_is_for_both() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 16 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let (one, two) = (nbd(&socket, "d").await, nbd(&socket, "d").await);
    let write = |client: datapath::nbd::Client, seed: u64| async move {
        for n in 0..64 {
            let data = pattern(seed + n, 32 << 10);
            client
                .write((seed % 2 * 64 + n) * (32 << 10), data, PLAIN)
                .await
                .unwrap();
        }
    };
    tokio::join!(write(one.clone(), 1000), write(two.clone(), 2001));
    for n in 0..64_u64 {
        assert!(two.read(n * (32 << 10), 32 << 10).await.unwrap() == pattern(1000 + n, 32 << 10));
        let at = (64 + n) * (32 << 10);
        assert!(one.read(at, 32 << 10).await.unwrap() == pattern(2001 + n, 32 << 10));
    }
    two.flush().await.unwrap();
    // Both clients' writes survive the process: it is killed, and the file is read as it lies.
    crate::bench::kill(client.pid(), rustix::process::Signal::KILL);
    client.gone().await;
    let flat = bench.flat(&["a.vhd"]);
    for n in 0..64_usize {
        let part = |index: usize| &flat[index * (32 << 10)..][..32 << 10];
        assert!(
            part(n) == pattern(1000 + n as u64, 32 << 10),
            "first client, write {n}"
        );
        assert!(
            part(64 + n) == pattern(2001 + n as u64, 32 << 10),
            "second client, write {n}"
        );
    }
    bench.assert_sound("a.vhd", Strictness::AfterCrash);
}

#[tokio::test]
async fn a_chain_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let base = bench.create(&client, "a.vhd", 4 * MIB, None).await;
    bench.create(&client, "other.vhd", 4 * MIB, None).await;
    bench
        .create(&client, "b.vhd", 4 * MIB, Some(("a.vhd", base.uuid)))
        .await;
    for layers in [
        &["b.vhd"][..],
        &["b.vhd", "other.vhd"],
        &["a.vhd", "other.vhd"],
        &["b.vhd", "a.vhd", "other.vhd"],
        &["b.vhd", "b.vhd", "a.vhd"],
    ] {
        let error = bench
            .try_open(&client, "d", layers, Access::ReadWrite)
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Chain, "{layers:?}: {error}");
    }
    bench.open(&client, "d", &["b.vhd", "a.vhd"]).await;
}

#[tokio::test]
async fn open_again_is_a_success_and_a_second_writer_is_refused() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let base = bench.create(&client, "a.vhd", 4 * MIB, None).await;
    bench
        .create(&client, "b.vhd", 4 * MIB, Some(("a.vhd", base.uuid)))
        .await;
    bench
        .create(&client, "c.vhd", 4 * MIB, Some(("a.vhd", base.uuid)))
        .await;
    let state = bench.open(&client, "d", &["b.vhd", "a.vhd"]).await;
    assert_eq!(bench.open(&client, "d", &["b.vhd", "a.vhd"]).await, state);
    let busy = |result: Result<datapath::DiskState, datapath::Error>| result.unwrap_err().kind;
    let open = |disk, layers, access| bench.try_open(&client, disk, layers, access);
    assert_eq!(
        busy(open("d", &["a.vhd"], Access::ReadWrite).await),
        ErrorKind::Busy
    );
    assert_eq!(
        busy(open("e", &["b.vhd", "a.vhd"], Access::ReadWrite).await),
        ErrorKind::Busy
    );
    assert_eq!(
        busy(open("e", &["b.vhd", "a.vhd"], Access::ReadOnly).await),
        ErrorKind::Busy
    );
    assert_eq!(
        busy(open("e", &["a.vhd"], Access::ReadWrite).await),
        ErrorKind::Busy
    );
    open("e", &["c.vhd", "a.vhd"], Access::ReadWrite)
        .await
        .expect("siblings share their parent");
}

#[tokio::test]
async fn a_client_that_stays_does_not_hold_up_unserve_or_close() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let disk = nbd(&socket, "d").await;
    disk.write(0, pattern(1, 4096), PLAIN).await.unwrap();
    client.unserve(&rid(), &dp("d")).await.unwrap();
    assert_eq!(
        disk.read(0, 512).await.unwrap_err().kind(),
        NbdErrorKind::Gone
    );
    assert_eq!(client.list(&rid()).await.unwrap()[0].serving, None);
    // Served again, on the same path.
    bench.serve_open(&client, "d").await;
    let disk = nbd(&socket, "d").await;
    assert!(disk.read(0, 4096).await.unwrap() == pattern(1, 4096));
    client.close(&rid(), &dp("d")).await.unwrap();
    client
        .close(&rid(), &dp("d"))
        .await
        .expect("closing again is a success");
    assert_eq!(
        disk.read(0, 512).await.unwrap_err().kind(),
        NbdErrorKind::Gone
    );
    bench.assert_sound("a.vhd", Strictness::Closed);
}

#[tokio::test]
async fn statistics_count_what_clients_did() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let disk = nbd(&socket, "d").await;
    for n in 0..3 {
        disk.write(n * 4096, pattern(n, 4096), PLAIN).await.unwrap();
    }
    disk.read(0, 8192).await.unwrap();
    disk.flush().await.unwrap();
    let stats = client.list(&rid()).await.unwrap()[0].stats;
    assert_eq!((stats.writes, stats.write_bytes), (3, 12288));
    assert_eq!((stats.reads, stats.read_bytes), (1, 8192));
    assert_eq!((stats.flushes, stats.errors, stats.in_flight), (1, 0, 0));
}

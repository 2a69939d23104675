//! The NBD client against servers of other projects. The data path's own server meets it in
//! that crate's tests.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use datapath::nbd::{BlockRun, Client, ErrorKind, IN_FLIGHT_MAX, WriteFlags};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const PLAIN: WriteFlags = WriteFlags {
    fua: false,
    no_hole: false,
};

struct Server {
    dir: tempfile::TempDir,
    child: Child,
}

impl Server {
    /// Starts a server that listens on `<dir>/s`; `@` in an argument becomes the directory.
    fn start(program: &str, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("disk"), vec![0; 4 << 20]).unwrap();
        let here = dir.path().display().to_string();
        let child = Command::new(program)
            .args(
                arguments
                    .iter()
                    .map(|argument| argument.replace('@', &here)),
            )
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{program} is needed for this test: {e}"));
        Self { dir, child }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    async fn connect(&self, export: &str) -> Client {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match Client::connect(&self.socket(), export).await {
                Err(e) if e.kind() == ErrorKind::NotFound && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                connected => return connected.unwrap(),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nbdkit(filter_and_plugin: &[&str]) -> Server {
    let arguments = [&["-f", "-U", "@/s"], filter_and_plugin].concat();
    Server::start("nbdkit", &arguments)
}

fn qemu_nbd(more: &[&str]) -> Server {
    let arguments = ["-t", "-k", "@/s", "-f", "raw", "-x", "disk", "@/disk"];
    Server::start("qemu-nbd", &[more, &arguments].concat())
}

/// Reads, writes and all the rest, with as many requests at once as there may be.
async fn round_trip(client: &Client) {
    let part = |n: u64| vec![u8::try_from(n % 251 + 1).unwrap(); 64 << 10];
    let writes = (0..64_u64).map(|n| {
        let client = client.clone();
        tokio::spawn(async move { client.write(n * (64 << 10), part(n), PLAIN).await })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap().unwrap();
    }
    client.flush().await.unwrap();
    let reads = (0..64_u64).map(|n| {
        let client = client.clone();
        tokio::spawn(async move { client.read(n * (64 << 10), 64 << 10).await })
    });
    for (n, read) in reads.collect::<Vec<_>>().into_iter().enumerate() {
        assert!(read.await.unwrap().unwrap() == part(n as u64), "part {n}");
    }
    client.write_zeroes(MIB, 1 << 20, PLAIN).await.unwrap();
    client.trim(2 * MIB, 1 << 20).await.unwrap();
    let zeroed = client.read(MIB - 512, (1 << 20) + 1024).await.unwrap();
    let (before, rest) = zeroed.split_at(512);
    let (zeroes, after) = rest.split_at(1 << 20);
    assert_eq!(
        (before, zeroes.iter().max(), after.len()),
        (&[16; 512][..], Some(&0), 512)
    );
    if client.info().can_fua {
        client
            .write(
                0,
                vec![9; 512],
                WriteFlags {
                    fua: true,
                    no_hole: false,
                },
            )
            .await
            .unwrap();
        assert_eq!(client.read(0, 512).await.unwrap(), [9; 512]);
    }
}

#[tokio::test]
async fn nbdkit_and_this_client_understand_each_other() {
    let server = nbdkit(&["memory", "4M"]);
    let client = server.connect("").await;
    let info = client.info();
    assert_eq!(
        (info.size_bytes, info.read_only, info.structured),
        (4 * MIB, false, true)
    );
    assert!(info.can_flush && info.can_trim && info.can_write_zeroes && info.block_status);
    let hole = BlockRun {
        length_bytes: 4 << 20,
        hole: true,
        zero: true,
    };
    assert_eq!(client.block_status(0, 4 << 20).await.unwrap(), [hole]);
    round_trip(&client).await;
    client.disconnect().await.unwrap();
}

#[tokio::test]
async fn a_server_without_structured_replies_works_too() {
    let server = nbdkit(&["--no-sr", "memory", "4M"]);
    let client = server.connect("").await;
    assert!(!client.info().structured && !client.info().block_status);
    let status = client.block_status(0, 512).await.unwrap_err();
    assert_eq!(status.kind(), ErrorKind::Unsupported);
    round_trip(&client).await;
}

#[tokio::test]
async fn qemu_and_this_client_understand_each_other() {
    let server = qemu_nbd(&[]);
    let client = server.connect("disk").await;
    assert_eq!(client.info().size_bytes, 4 * MIB);
    round_trip(&client).await;
    let runs = client.block_status(0, 4 << 20).await.unwrap();
    assert_eq!(
        runs.iter().map(|run| run.length_bytes).sum::<u64>(),
        4 * MIB
    );
    // Its socket keeps serving after an orderly end.
    client.disconnect().await.unwrap();
    let next = server.connect("disk").await;
    next.read(0, 512).await.unwrap();
}

#[tokio::test]
async fn an_unknown_export_is_named() {
    let server = qemu_nbd(&[]);
    server.connect("disk").await.disconnect().await.unwrap();
    let error = Client::connect(&server.socket(), "other")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoExport);
    assert!(error.to_string().contains("\"other\""), "{error}");
}

#[tokio::test]
async fn a_read_only_export_is_known_before_anything_is_sent() {
    let server = nbdkit(&["-r", "memory", "4M"]);
    let client = server.connect("").await;
    let kind = |result: Result<(), datapath::nbd::Error>| result.unwrap_err().kind();
    assert_eq!(
        kind(client.write(0, vec![1; 512], PLAIN).await),
        ErrorKind::ReadOnly
    );
    // nbdkit does not even offer the others then.
    assert_eq!(
        kind(client.write_zeroes(0, 512, PLAIN).await),
        ErrorKind::Unsupported
    );
    assert_eq!(kind(client.trim(0, 512).await), ErrorKind::Unsupported);
    client.read(0, 512).await.unwrap();
}

#[tokio::test]
async fn errors_of_the_storage_are_typed_and_the_connection_goes_on() {
    for sr in [&["--filter=error"][..], &["--no-sr", "--filter=error"]] {
        for (name, kind) in [
            ("EIO", ErrorKind::Io),
            ("ENOSPC", ErrorKind::NoSpace),
            ("EPERM", ErrorKind::ReadOnly),
            ("EINVAL", ErrorKind::Invalid),
            ("ESHUTDOWN", ErrorKind::Gone),
        ] {
            let error = format!("error={name}");
            let more = [
                "memory",
                "4M",
                &error,
                "error-pread-rate=100%",
                "error-file=@/fail",
            ];
            let server = nbdkit(&[sr, &more].concat());
            let client = server.connect("").await;
            client.read(0, 4096).await.unwrap();
            std::fs::write(server.dir.path().join("fail"), "").unwrap();
            for _ in 0..2 * IN_FLIGHT_MAX {
                assert_eq!(
                    client.read(0, 4096).await.unwrap_err().kind(),
                    kind,
                    "{name} {sr:?}"
                );
            }
            client.write(0, vec![1; 4096], PLAIN).await.unwrap();
            std::fs::remove_file(server.dir.path().join("fail")).unwrap();
            assert_eq!(client.read(0, 4096).await.unwrap(), [1; 4096]);
        }
    }
}

#[tokio::test]
async fn requests_that_do_not_fit_are_not_sent() {
    let server = nbdkit(&[
        "--filter=blocksize-policy",
        "memory",
        "4M",
        "blocksize-minimum=512",
        "blocksize-preferred=4096",
        "blocksize-maximum=1M",
        "blocksize-error-policy=error",
    ]);
    let client = server.connect("").await;
    assert_eq!(
        (client.info().minimum_bytes, client.info().request_bytes_max),
        (512, 1 << 20)
    );
    for (offset, length) in [
        (0, 0),
        (1, 512),
        (0, 100),
        (4 * MIB, 512),
        (u64::MAX, 512),
        (0, 2 << 20),
    ] {
        let error = client.read(offset, length).await.unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::Invalid,
            "{length} bytes at {offset}"
        );
    }
    client.read(0, 1 << 20).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_killed_is_gone_for_every_request() {
    let mut server = nbdkit(&["--filter=delay", "memory", "4M", "delay-read=60"]);
    let client = server.connect("").await;
    let waiting: Vec<_> = (0..2 * IN_FLIGHT_MAX)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.read(0, 512).await })
        })
        .collect();
    client.write(0, vec![1; 512], PLAIN).await.unwrap();
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    for read in waiting {
        assert_eq!(read.await.unwrap().unwrap_err().kind(), ErrorKind::Gone);
    }
    assert_eq!(client.flush().await.unwrap_err().kind(), ErrorKind::Gone);
    let again = Client::connect(&server.socket(), "").await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_dropped_call_leaves_the_connection_in_step() {
    let server = nbdkit(&["--filter=delay", "memory", "4M", "delay-read=200ms"]);
    let client = server.connect("").await;
    client.write(0, vec![5; 8192], PLAIN).await.unwrap();
    for _ in 0..IN_FLIGHT_MAX {
        let dropped = tokio::time::timeout(Duration::from_millis(1), client.read(0, 4096)).await;
        assert!(
            dropped.is_err(),
            "the read was not slow, the test shows nothing"
        );
    }
    assert_eq!(client.read(4096, 512).await.unwrap(), [5; 512]);
}

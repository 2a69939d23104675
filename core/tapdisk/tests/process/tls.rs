//! TLS as QEMU and libnbd speak it, with their own checks of names and certificates.

use crate::bench::{Bench, MIB, dp, nbd, pattern, rid, tool, try_tool};
use crate::certificates::Authority;
use datapath::nbd::{ErrorKind as NbdErrorKind, WriteFlags};
use datapath::{Client, ErrorKind, Secret, Tls, TlsPolicy, listen};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use vhd_checker::Strictness;

/// A directory as both projects want it: authorities, and the client's certificate and key. QEMU
/// wants its own among the authorities.
fn client_directory(bench: &Bench, name: &str, server: &Authority, own: &Authority) -> PathBuf {
    let dir = bench.path(name);
    std::fs::create_dir(&dir).unwrap();
    let (certificate, key) = own.vouch("client");
    let authorities = [&own.certificate_pem[..], &server.certificate_pem].concat();
    for (name, text) in [
        ("ca-cert.pem", &authorities),
        ("client-cert.pem", &certificate),
        ("client-key.pem", &key),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
    dir
}

async fn serve(bench: &Bench, client: &Client, disk: &str, tls: Tls) -> PathBuf {
    let socket = bench.supervisor.nbd_socket(disk).unwrap();
    let listener = listen(&socket).unwrap();
    client
        .serve_tls(&rid(), &dp(disk), disk, tls, listener)
        .await
        .unwrap();
    socket
}

/// Runs a QEMU tool with credentials on the export at `socket`.
async fn qemu(program: &str, command: &[&str], dir: &Path, socket: &Path) -> (bool, String) {
    let credentials = format!(
        "tls-creds-x509,id=tls0,endpoint=client,dir={}",
        dir.display()
    );
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},export=d,tls-creds=tls0,tls-hostname=localhost",
        socket.display()
    );
    let (verb, rest) = command.split_at(usize::from(program == "qemu-img"));
    let options = ["--object", &credentials, "--image-opts"];
    try_tool(program, &[verb, &options, rest, &[&image]].concat()).await
}

#[tokio::test]
async fn qemu_reads_and_writes_under_tls() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 16 * MIB, None).await;
    bench.open(&client, "d", &["a.vhd"]).await;
    let (authority, clients) = (Authority::new(), Authority::new());
    let tls = authority.tls(TlsPolicy::Require, Some(&clients));
    let socket = serve(&bench, &client, "d", tls).await;
    let dir = client_directory(&bench, "good", &authority, &clients);
    let commands = [
        "-c",
        "write -P 7 1M 4M",
        "-c",
        "write -z 3M 1M",
        "-c",
        "flush",
    ];
    let (ok, text) = qemu("qemu-io", &commands, &dir, &socket).await;
    assert!(ok && !text.contains("failed"), "{text}");
    let commands = [
        "-c",
        "read -P 7 1M 2M",
        "-c",
        "read -P 0 3M 1M",
        "-c",
        "read -P 7 4M 1M",
    ];
    let (ok, text) = qemu("qemu-io", &commands, &dir, &socket).await;
    assert!(ok && !text.contains("failed"), "{text}");
    let (ok, text) = qemu("qemu-img", &["map"], &dir, &socket).await;
    assert!(ok && text.contains("0x100000"), "{text}");

    // Whoever is vouched for by another authority, or trusts another, is not served.
    let stranger = client_directory(&bench, "stranger", &authority, &Authority::new());
    let (ok, text) = qemu("qemu-img", &["info"], &stranger, &socket).await;
    assert!(!ok, "{text}");
    let doubter = client_directory(&bench, "doubter", &clients, &clients);
    let (ok, text) = qemu("qemu-img", &["info"], &doubter, &socket).await;
    assert!(!ok && text.contains("certificate"), "{text}");
    // Nor is anybody without TLS: our own client knows none.
    let plain = datapath::nbd::Client::connect(&socket, "d").await;
    assert_eq!(plain.unwrap_err().kind(), NbdErrorKind::Protocol);

    client.close(&rid(), &dp("d")).await.unwrap();
    bench.assert_sound("a.vhd", Strictness::Closed);
    let flat = bench.flat(&["a.vhd"]);
    assert!(flat[1 << 20..3 << 20].iter().all(|byte| *byte == 7));
    assert!(flat[3 << 20..4 << 20].iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn libnbd_copies_under_tls_over_tcp() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 16 * MIB, None).await;
    bench.open(&client, "d", &["a.vhd"]).await;
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = authority.tls(TlsPolicy::Require, Some(&authority));
    client
        .serve_tls(&rid(), &dp("d"), "d", tls, listener.into())
        .await
        .unwrap();
    let dir = client_directory(&bench, "good", &authority, &authority);
    let uri = |host: &str, dir: &Path| {
        let dir = dir.display();
        format!("nbds://{host}:{port}/d?tls-certificates={dir}")
    };
    let good = uri("localhost", &dir);
    let info = tool("nbdinfo", &["--json", &good]).await;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["TLS"], true);
    assert_eq!(info["exports"][0]["export-size"], 16 * MIB);

    let content = [pattern(1, 5 << 20), vec![0; 6 << 20], pattern(2, 5 << 20)].concat();
    let path = |name: &str| bench.path(name).display().to_string();
    std::fs::write(path("in.raw"), &content).unwrap();
    tool("nbdcopy", &["--flush", &path("in.raw"), &good]).await;
    tool("nbdcopy", &[&good, &path("out.raw")]).await;
    assert!(std::fs::read(path("out.raw")).unwrap() == content);

    let plain = format!("nbd://localhost:{port}/d");
    let (ok, text) = try_tool("nbdinfo", &[&plain]).await;
    assert!(!ok && text.to_lowercase().contains("tls"), "{text}");
    // The certificate is for localhost.
    let (ok, text) = try_tool("nbdinfo", &[&uri("127.0.0.1", &dir)]).await;
    assert!(!ok && text.contains("certificate"), "{text}");
}

#[tokio::test]
async fn an_export_may_leave_tls_to_its_clients() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    bench.open(&client, "d", &["a.vhd"]).await;
    let authority = Authority::new();
    let tls = authority.tls(TlsPolicy::Allow, None);
    let socket = serve(&bench, &client, "d", tls).await;
    let plain = nbd(&socket, "d").await;
    plain
        .write(0, pattern(1, 4096), WriteFlags::default())
        .await
        .unwrap();
    let dir = client_directory(&bench, "good", &authority, &authority);
    let (ok, text) = qemu("qemu-img", &["info"], &dir, &socket).await;
    assert!(ok && text.contains("4 MiB"), "{text}");
    // Served again without: who is connected stays.
    assert_eq!(bench.serve_open(&client, "d").await, socket);
    let (ok, text) = qemu("qemu-img", &["info"], &dir, &socket).await;
    assert!(!ok && text.contains("TLS"), "{text}");
    assert!(plain.read(0, 4096).await.unwrap() == pattern(1, 4096));
}

#[tokio::test]
async fn a_key_is_in_no_log_and_a_bad_one_is_refused() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    bench.open(&client, "d", &["a.vhd"]).await;
    let authority = Authority::new();
    let good = authority.tls(TlsPolicy::Require, None);
    let bad = Tls {
        key_pem: Secret::new(good.key_pem.reveal().replace("PRIVATE", "PRIVET")),
        ..good.clone()
    };
    let listener = listen(&bench.path("bad.sock")).unwrap();
    let refused = client.serve_tls(&rid(), &dp("d"), "d", bad, listener).await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Unsupported);
    assert_eq!(client.list(&rid()).await.unwrap()[0].serving, None);
    let secret = good.key_pem.reveal().lines().nth(1).unwrap().to_owned();
    serve(&bench, &client, "d", good).await;
    let log = bench.log("a");
    assert!(log.contains("serve") && !log.contains(&secret), "{log}");
}

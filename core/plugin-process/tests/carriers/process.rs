//! The process itself: rights, and its end with the daemon, whatever the plugin does.

use crate::harness::{Bench, CARRIERS, artifact, config, manifest};
use plugin::protocol::{Frame, FromProcess, Hello, ToProcess, encode, read_frame};
use plugin::{Carrier, HostConfig, PluginHost, PluginKind, StoragePlugin};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::fs::{File, Permissions};
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use units::{MIB, RequestId, SrUuid};

/// Starts the program as the daemon does.
fn start() -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_xylem-plugin"))
        .arg("test")
        .stdin(OwnedFd::from(theirs))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    (child, ours)
}

fn send_hello(socket: &UnixStream, carrier: Carrier) {
    let hello = Hello {
        plugin: "test".to_owned(),
        package: "hostile-storage".to_owned(),
        version: "0.1.0".to_owned(),
        kind: PluginKind::Storage,
        carrier,
        roots: Vec::new(),
        settings: Default::default(),
        memory_bytes: 64 << 20,
        calls: 2,
        cache_dir: None,
    };
    let frame = encode(&ToProcess::Hello(hello), &[]).unwrap();
    let file = File::open(artifact("hostile-storage", carrier)).unwrap();
    let descriptors = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let flags = SendFlags::empty();
    rustix::net::sendmsg(socket, &[IoSlice::new(&frame)], &mut control, flags).unwrap();
}

fn ends(mut child: Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > Duration::from_secs(10) {
            child.kill().unwrap();
            panic!("the process did not end within ten seconds");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_process_ends_with_the_daemon_even_while_the_plugin_loops() {
    for carrier in CARRIERS {
        let (child, mut socket) = start();
        send_hello(&socket, carrier);
        let frame: Frame<FromProcess> = read_frame(&mut socket).unwrap().unwrap();
        assert!(
            matches!(frame.head, FromProcess::Ready { .. }),
            "{:?}",
            frame.head
        );
        let call = ToProcess::Call {
            id: 1,
            request_id: RequestId::random(),
            method: "sr.stat".to_owned(),
            timeout_ms: 600_000,
        };
        socket
            .write_all(&encode(&call, br#"{"handle":"loop "}"#).unwrap())
            .unwrap();
        drop(socket);
        assert!(ends(child).success(), "{carrier:?}");
    }
}

#[test]
fn what_is_no_hello_ends_the_process() {
    for garbage in [
        &b""[..],
        b"hello",
        &[0xff; 4096],
        &[0; 8],
        &encode(&ToProcess::Answer { id: 1 }, b"").unwrap(),
    ] {
        let (child, mut socket) = start();
        socket.write_all(garbage).unwrap();
        drop(socket);
        assert_eq!(ends(child).code(), Some(1), "{garbage:?}");
    }
}

#[tokio::test]
async fn the_process_runs_as_the_configured_user_without_new_rights() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can start a process as another user");
        return;
    }
    for carrier in CARRIERS {
        let bench = Bench::new();
        // The other user must get at the program and the directories.
        let binary = bench.beside("xylem-plugin");
        // By another process: a descriptor for writing that a fork of a test beside this one
        // inherits would keep the copy from being run.
        let copied = std::process::Command::new("cp")
            .args([
                env!("CARGO_BIN_EXE_xylem-plugin").as_ref(),
                binary.as_os_str(),
            ])
            .status();
        assert!(copied.unwrap().success());
        let open = Permissions::from_mode(0o755);
        std::fs::set_permissions(bench.beside(""), open).unwrap();
        std::os::unix::fs::chown(&bench.granted, Some(NOBODY), Some(NOBODY)).unwrap();
        let host_config = HostConfig {
            binary,
            cache_dir: bench.beside("nobodys-cache"),
            run_as: Some((NOBODY, NOBODY)),
        };
        let host = PluginHost::start(host_config, bench.services.clone()).unwrap();
        let file = artifact("sm-file", carrier);
        host.load(&file, &manifest("sm-file"), &bench.grants())
            .await
            .unwrap();
        let process = host.process_id("sm-file").unwrap();
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_once(':')
                .unwrap()
                .1
                .split_whitespace()
                .collect::<Vec<_>>()
        };
        assert_eq!(field("Uid"), ["65534"; 4], "{carrier:?}");
        assert_eq!(field("Gid"), ["65534"; 4]);
        assert!(field("Groups").is_empty(), "{status}");
        assert_eq!(field("NoNewPrivs"), ["1"]);
        assert_eq!(field("CapEff"), ["0000000000000000"]);
        let storage = host.storage("file").unwrap();
        let directory = bench.granted.join("sr");
        let config = config(&[("location", directory.to_str().unwrap())]);
        let sr = SrUuid::random();
        let config = storage.sr_create(sr, &config).await.unwrap();
        let handle = storage.sr_attach(sr, &config).await.unwrap();
        storage
            .container_create(&handle, &"a".parse().unwrap(), MIB)
            .await
            .unwrap();
        assert_eq!(storage.container_list(&handle).await.unwrap().len(), 1);
        host.shutdown().await;
    }
}

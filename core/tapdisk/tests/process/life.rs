//! The process's life: start, adoption, rights, death.

use crate::bench::{Bench, MIB, dp, kill, nbd, pattern, rid, tool, try_tool, until, uri};
use datapath::nbd::WriteFlags;
use datapath::{Client, ErrorKind};
use rustix::process::Signal;
use std::process::{Command, Stdio};
use vhd_checker::Strictness;

const PLAIN: WriteFlags = WriteFlags {
    fua: false,
    no_hole: false,
};

#[tokio::test]
async fn one_name_is_one_process() {
    let bench = Bench::new();
    let (one, two) = tokio::join!(bench.client("a"), bench.client("a"));
    let other = bench.client("b").await;
    assert_eq!(one.pid(), two.pid());
    assert_ne!(one.pid(), other.pid());
    assert_eq!(bench.supervisor.running().await.unwrap(), ["a", "b"]);
}

#[tokio::test]
async fn a_new_supervisor_finds_what_runs_and_serving_never_stops() {
    let bench = Bench::new();
    let client = bench.client("vm").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let disk = nbd(&socket, "d").await;
    disk.write(0, pattern(1, 4096), PLAIN).await.unwrap();
    let (pid, state) = (client.pid(), client.list(&rid()).await.unwrap());
    // What a kill of the daemon leaves: closed control connections, and a socket of a dead process.
    drop(client);
    bench
        .supervisor
        .exit("vm", &rid())
        .await
        .expect_err("it has a disk");
    drop(datapath::listen(&bench.path("run/dead.ctl")).unwrap());

    let next = bench.another_supervisor();
    assert_eq!(next.running().await.unwrap(), ["vm"]);
    assert!(!bench.path("run/dead.ctl").exists());
    let adopted = next.client("vm", &rid()).await.unwrap();
    assert_eq!(adopted.pid(), pid);
    let found = adopted.list(&rid()).await.unwrap();
    assert_eq!(
        (&found[0].disk, &found[0].serving),
        (&state[0].disk, &Some("d".to_owned()))
    );
    assert!(
        disk.read(0, 4096).await.unwrap() == pattern(1, 4096),
        "the old connection works on"
    );
    tool("nbdinfo", &[&uri(&socket, "d")]).await;
    adopted.close(&rid(), &dp("d")).await.unwrap();
    next.exit("vm", &rid()).await.unwrap();
    assert_eq!(next.running().await.unwrap(), Vec::<String>::new());
    assert!(!bench.path("run/vm.ctl").exists());
    bench.assert_sound("a.vhd", Strictness::Closed);
}

#[tokio::test]
async fn a_listener_that_comes_again_replaces_the_old_and_clients_stay() {
    let bench = Bench::new();
    let client = bench.client("vm").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let before = nbd(&socket, "d").await;
    assert_eq!(bench.serve_open(&client, "d").await, socket);
    let after = nbd(&socket, "d").await;
    before.write(0, pattern(1, 4096), PLAIN).await.unwrap();
    assert!(after.read(0, 4096).await.unwrap() == pattern(1, 4096));
}

#[tokio::test]
async fn a_killed_process_is_gone_for_every_call_and_started_anew() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    bench.open(&client, "d", &["a.vhd"]).await;
    kill(client.pid(), Signal::KILL);
    client.gone().await;
    let error = client.list(&rid()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Gone);
    assert!(client.is_gone());
    let fresh = bench.client("a").await;
    assert_ne!(fresh.pid(), client.pid());
    assert_eq!(fresh.list(&rid()).await.unwrap(), []);
    bench.open(&fresh, "d", &["a.vhd"]).await;
}

#[tokio::test]
async fn exit_is_refused_while_there_are_disks() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    bench.open(&client, "d", &["a.vhd"]).await;
    assert_eq!(client.exit(&rid()).await.unwrap_err().kind, ErrorKind::Busy);
    client.close(&rid(), &dp("d")).await.unwrap();
    client.exit(&rid()).await.unwrap();
    client.gone().await;
    bench
        .supervisor
        .exit("a", &rid())
        .await
        .expect("it does not run, which is a success");
}

/// A process of our own, so that its exit code can be seen.
struct Started {
    child: std::process::Child,
    client: Client,
}

async fn start(bench: &Bench) -> Started {
    let socket = bench.path("own.ctl");
    let child = Command::new(env!("CARGO_BIN_EXE_xylem-tapdisk"))
        .stdin(datapath::listen(&socket).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Started {
        child,
        client: Client::connect(&socket, &rid()).await.unwrap(),
    }
}

#[tokio::test]
async fn a_signal_finishes_flushes_and_closes() {
    for signal in [Signal::TERM, Signal::INT] {
        let bench = Bench::new();
        let Started { mut child, client } = start(&bench).await;
        bench.create(&client, "a.vhd", 16 * MIB, None).await;
        let socket = bench.serve(&client, "d", &["a.vhd"]).await;
        let disk = nbd(&socket, "d").await;
        let mut expected = vec![0; 16 << 20];
        for n in 0..100_usize {
            let (at, data) = (
                n * 163_840 / 512 * 512 % (15 << 20),
                pattern(n as u64, 8192),
            );
            expected[at..at + 8192].copy_from_slice(&data);
            disk.write(at as u64, data, PLAIN).await.unwrap();
        }
        // Frozen disks are no excuse.
        client.freeze(&rid(), &[dp("d")]).await.unwrap();
        kill(client.pid(), signal);
        let status = tokio::task::spawn_blocking(move || child.wait())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(status.code(), Some(0), "{status}");
        client.gone().await;
        bench.assert_sound("a.vhd", Strictness::Closed);
        assert!(
            bench.flat(&["a.vhd"]) == expected,
            "writes that were answered are missing"
        );
    }
}

#[tokio::test]
async fn a_hangup_ends_nothing() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    kill(client.pid(), Signal::HUP);
    client.list(&rid()).await.unwrap();
}

#[tokio::test]
async fn no_rights_are_left() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can start a process as another user");
        return;
    }
    let bench = Bench::run_as(Some((65534, 65533)));
    let client = bench.client("a").await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", client.pid())).unwrap();
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.trim_start_matches(':')
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(field("Uid"), "65534 65534 65534 65534");
    assert_eq!(field("Gid"), "65533 65533 65533 65533");
    assert_eq!(field("Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    // A filter of system calls (`SECCOMP_MODE_FILTER`), and one thread that it counts for.
    assert_eq!(field("Seccomp"), "2");
    assert_eq!(field("Threads"), "1");
    // Not dumpable: its memory belongs to root, whoever it runs as.
    let owner = std::fs::metadata(format!("/proc/{}/mem", client.pid())).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 0);
    // And it works: the descriptors it is given are enough.
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    let socket = bench.serve(&client, "d", &["a.vhd"]).await;
    let disk = nbd(&socket, "d").await;
    disk.write(0, pattern(1, 4096), PLAIN).await.unwrap();
    assert_eq!(strange_descriptors(&bench, client.pid()), [""; 0]);
    disk.disconnect().await.unwrap();
    client.close(&rid(), &dp("d")).await.unwrap();
    bench.assert_sound("a.vhd", Strictness::Closed);
}

/// Descriptors that are neither sockets, nor the kernel's own kinds, nor files that were handed over:
/// no directory and no path that could be gone on from is among what a data path has open.
fn strange_descriptors(bench: &Bench, pid: u32) -> Vec<String> {
    const KINDS: &[&str] = &[
        "socket:[",
        "anon_inode:[io_uring]",
        "anon_inode:[signalfd]",
        "anon_inode:[eventpoll]",
    ];
    let given = ["a.vhd", "log/tapdisk-a.log"].map(|name| bench.path(name).display().to_string());
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open = open.map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap());
    open.map(|target| target.display().to_string())
        .filter(|target| {
            let known = KINDS.iter().any(|kind| target.starts_with(kind));
            !known && target != "/dev/null" && !given.contains(target)
        })
        .collect()
}

#[tokio::test]
async fn a_process_that_must_have_its_sandbox_starts_where_there_is_one() {
    let bench = Bench::new();
    let socket = bench.path("own.ctl");
    let log = std::fs::File::create(bench.path("own.log")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_xylem-tapdisk"))
        .arg("--require-sandbox")
        .stdin(datapath::listen(&socket).unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let client = Client::connect(&socket, &rid()).await.unwrap();
    client.exit(&rid()).await.unwrap();
    let status = tokio::task::spawn_blocking(move || child.wait());
    assert_eq!(status.await.unwrap().unwrap().code(), Some(0));
    let log = std::fs::read_to_string(bench.path("own.log")).unwrap();
    assert!(log.contains("system calls are filtered"), "{log}");
}

#[tokio::test]
async fn descriptors_are_the_ones_it_was_given_and_are_given_back() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let count = || {
        std::fs::read_dir(format!("/proc/{}/fd", client.pid()))
            .unwrap()
            .count()
    };
    let idle = count();
    assert!(idle <= 12, "{idle} descriptors in an idle process");
    bench.create(&client, "a.vhd", 4 * MIB, None).await;
    for _ in 0..5 {
        let socket = bench.serve(&client, "d", &["a.vhd"]).await;
        bench.open(&client, "d", &["a.vhd"]).await;
        bench.serve_open(&client, "d").await;
        for _ in 0..3 {
            let disk = nbd(&socket, "d").await;
            disk.read(0, 512).await.unwrap();
        }
        client.close(&rid(), &dp("d")).await.unwrap();
    }
    until("as many as before", || count() == idle).await;
}

#[tokio::test]
async fn the_log_follows_a_request() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let request = rid();
    client.unserve(&request, &dp("nothing")).await.unwrap_err();
    let log = bench.log("a");
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let found = lines
        .filter(|line| line["request_id"] == request.as_str())
        .count();
    assert!(found > 0, "{request} is not in {log}");
}

#[tokio::test]
async fn the_command_line_says_what_it_is() {
    let binary = env!("CARGO_BIN_EXE_xylem-tapdisk");
    let help = tool(binary, &["--help"]).await;
    assert!(
        help.contains("EXIT STATUS") && help.contains("--run-as"),
        "{help}"
    );
    assert!(
        tool(binary, &["--version"])
            .await
            .starts_with("xylem-tapdisk ")
    );
    let (ok, text) = try_tool(binary, &["--loud"]).await;
    assert!(!ok && text.contains("--loud"), "{text}");
    let status = Command::new(binary)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(64), "descriptor 0 is no socket");
}

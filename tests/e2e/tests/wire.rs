//! The wire, byte by byte: what hostile, broken and very old clients send to a real daemon.

use e2e::host::{Built, Host, Hypervisor};
use e2e::process::wait_for;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

fn host() -> (tempfile::TempDir, Host) {
    let built = Built::beside_this_test().expect("a build");
    let dir = tempfile::tempdir().expect("a directory");
    let host = Host::start(&built, dir.path(), Hypervisor::Simulator).expect("a host");
    (dir, host)
}

fn connect(host: &Host) -> TcpStream {
    let stream = TcpStream::connect(host.http()).expect("the daemon listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a time-out");
    stream
}

/// Sends bytes and returns all that comes back until the daemon closes the connection.
fn exchange(host: &Host, request: &[u8]) -> String {
    let mut stream = connect(host);
    stream.write_all(request).expect("sent");
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .expect("an answer, and the end of the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

fn post(host: &Host, path: &str, content_type: &str, body: &str) -> String {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Type: {content_type}\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    exchange(host, (head + body).as_bytes())
}

#[test]
fn malformed_calls_get_their_typed_error_and_the_daemon_goes_on() {
    let (_dir, host) = host();
    let nested = "<value><array><data>".repeat(5000);
    let deep = format!("<methodCall><methodName>a.b</methodName><params><param>{nested}");
    let session = "<param><value>OpaqueRef:none</value></param>";
    for (name, path, body, wanted) in [
        ("no XML", "/", "hello", "<fault>"),
        (
            "XML cut short",
            "/",
            "<methodCall><methodName>VM.get_all</methodName><params>",
            "<fault>",
        ),
        ("XML too deep", "/", deep.as_str(), "<fault>"),
        (
            "an entity bomb",
            "/RPC2",
            "<!DOCTYPE x [<!ENTITY a \"aa\">]><methodCall>&a;</methodCall>",
            "<fault>",
        ),
        ("no JSON", "/jsonrpc", "{", "\"error\""),
        ("JSON of another shape", "/jsonrpc", "[1,2,3]", "\"error\""),
        (
            "a method nobody has",
            "/jsonrpc",
            r#"{"jsonrpc":"2.0","method":"VM.fly","params":["x"],"id":1}"#,
            "MESSAGE_METHOD_UNKNOWN",
        ),
        (
            "no session",
            "/jsonrpc",
            r#"{"jsonrpc":"2.0","method":"VM.get_all","params":["OpaqueRef:none"],"id":1}"#,
            "SESSION_INVALID",
        ),
        (
            "too few arguments",
            "/jsonrpc",
            r#"{"jsonrpc":"2.0","method":"session.login_with_password","params":["root"],"id":1}"#,
            "MESSAGE_PARAMETER_COUNT_MISMATCH",
        ),
    ] {
        let answer = post(&host, path, "text/xml", body);
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer}");
        assert!(answer.contains(wanted), "{name}: {answer}");
    }
    let body = format!(
        "<methodCall><methodName>VM.get_all</methodName><params>{session}</params></methodCall>"
    );
    let answer = post(&host, "/", "text/xml", &body);
    assert!(
        answer.contains("<value>Failure</value>") && answer.contains("SESSION_INVALID"),
        "{answer}"
    );
    assert!(
        answer.to_lowercase().contains("content-type: text/xml\r\n"),
        "{answer}"
    );
}

#[test]
fn broken_http_is_refused_and_the_daemon_goes_on() {
    let (_dir, host) = host();
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(200_000));
    for request in [
        "FLY / HTTP/9.9\r\n\r\n",
        &long,
        "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ] {
        let mut stream = connect(&host);
        // The daemon may close before everything is sent.
        stream.write_all(request.as_bytes()).ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        assert!(
            !String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 200"),
            "{request:.40?}"
        );
    }
    let huge = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n<methodCall>";
    let mut stream = connect(&host);
    stream.write_all(huge.as_bytes()).expect("sent");
    let mut first = [0u8; 12];
    stream
        .read_exact(&mut first)
        .expect("an answer before the body");
    assert_eq!(&first, b"HTTP/1.1 413");
    assert!(
        !host
            .xe(&["host-list", "--minimal"])
            .expect("it still answers")
            .is_empty()
    );
}

struct Disk {
    dir: tempfile::TempDir,
    host: Host,
    vdi: String,
    authorization: String,
}

fn disk() -> Disk {
    let (dir, host) = host();
    let location = dir.path().join("sr/one");
    std::fs::create_dir_all(&location).expect("a directory");
    let location = format!("device-config:location={}", location.display());
    let sr = host
        .xe(&["sr-create", "type=file", "name-label=one", &location])
        .expect("an SR");
    let sr = format!("sr-uuid={sr}");
    let vdi = host
        .xe(&["vdi-create", &sr, "name-label=d", "virtual-size=4MiB"])
        .expect("a VDI");
    let login = format!("root:{}", host.password().expect("a password"));
    let authorization = format!("Authorization: Basic {}\r\n", base64(login.as_bytes()));
    Disk {
        dir,
        host,
        vdi,
        authorization,
    }
}

impl Disk {
    fn content(&self) -> Vec<u8> {
        let file = self.dir.path().join("out.raw");
        std::fs::remove_file(&file).ok();
        let (uuid, name) = (
            format!("uuid={}", self.vdi),
            format!("filename={}", file.display()),
        );
        self.host
            .xe(&["vdi-export", &uuid, &name, "format=raw"])
            .expect("exported");
        std::fs::read(file).expect("the export")
    }

    fn uri(&self, more: &str) -> String {
        format!("/import_raw_vdi/?vdi={}{more}", self.vdi)
    }
}

/// RFC 4648, for one header.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = [
            chunk[0],
            *chunk.get(1).unwrap_or(&0),
            *chunk.get(2).unwrap_or(&0),
        ];
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= chunk.len() {
                DIGITS[value as usize] as char
            } else {
                '='
            });
        }
    }
    text
}

#[test]
fn an_old_client_that_waits_for_the_answer_before_it_sends_is_served() {
    let disk = disk();
    let mut stream = connect(&disk.host);
    let head = format!(
        "PUT {} HTTP/1.0\r\n{}Content-Length: 1048576\r\n\r\n",
        disk.uri("&format=raw"),
        disk.authorization
    );
    stream.write_all(head.as_bytes()).expect("sent");
    let mut status = [0u8; 12];
    stream
        .read_exact(&mut status)
        .expect("an answer before the body");
    assert_eq!(&status[8..], b" 200");
    stream.write_all(&vec![5u8; 1 << 20]).expect("sent");
    // The connection ends when the import has.
    stream.read_to_end(&mut Vec::new()).expect("the end");
    let content = disk.content();
    assert!(content[..1 << 20].iter().all(|byte| *byte == 5));
    assert!(content[1 << 20..].iter().all(|byte| *byte == 0));
}

#[test]
fn sigterm_lets_the_call_in_flight_finish_and_takes_no_new_one() {
    let mut disk = disk();
    let content = vec![3u8; 4 << 20];
    let (first, rest) = content.split_at(1 << 20);
    let mut stream = connect(&disk.host);
    let head = format!(
        "PUT {} HTTP/1.1\r\nHost: h\r\n{}Content-Length: {}\r\n\r\n",
        disk.uri("&format=raw"),
        disk.authorization,
        content.len()
    );
    stream.write_all(head.as_bytes()).expect("sent");
    stream.write_all(first).expect("sent");
    wait_for(
        "the import to be under way",
        Duration::from_secs(20),
        || {
            let tasks = disk.host.xe(&["task-list", "--minimal"])?;
            Ok((!tasks.is_empty()).then_some(()))
        },
    )
    .expect("a task");

    let address = disk.host.http();
    let status = std::thread::scope(|scope| {
        let stopping = scope.spawn(|| disk.host.stop_daemon());
        wait_for(
            "the daemon to take no new calls",
            Duration::from_secs(20),
            || Ok(TcpStream::connect(address).is_err().then_some(())),
        )
        .expect("refused");
        stream.write_all(rest).expect("sent");
        let mut answer = [0u8; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer[8..], b" 200", "the import was cut off");
        stopping.join().expect("no panic").expect("it stops")
    });
    assert!(status.success(), "{status}\n{}", disk.host.log_tail());
    disk.host.start_daemon().expect("started again");
    assert_eq!(disk.content(), content);
}

#[test]
fn a_probe_is_not_an_import_and_a_body_cut_short_is_an_error() {
    let disk = disk();
    let authorization = &disk.authorization;
    let full = vec![7u8; 4 << 20];
    let put = |more: &str, length: u64, body: &[u8]| {
        let head = format!(
            "PUT {} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{authorization}Content-Length: {length}\r\n\r\n",
            disk.uri(more)
        );
        let mut stream = connect(&disk.host);
        stream.write_all(head.as_bytes()).expect("sent");
        stream.write_all(body).expect("sent");
        stream
            .shutdown(std::net::Shutdown::Write)
            .expect("half closed");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(put("&format=raw", 4 << 20, &full).starts_with("HTTP/1.1 200"));
    assert!(put("&format=raw", 0, &[]).starts_with("HTTP/1.1 200"));
    assert_eq!(disk.content(), full, "the probe has changed the disk");
    // A client that does not know the length says 1 PiB and closes its side.
    put("&format=raw", 1 << 50, &[9u8; 512]);
    assert!(!put("&format=raw", 1 << 20, &[1u8; 512]).starts_with("HTTP/1.1 200"));
    let too_large = put("&format=raw", 8 << 20, &[]);
    assert!(too_large.contains("VDI_TOO_LARGE"), "{too_large}");
    let unknown = put("&format=qcow9", 512, &[0; 512]);
    assert!(
        unknown.starts_with("HTTP/1.1 400") && unknown.contains("INVALID_VALUE"),
        "{unknown}"
    );
}

#[test]
fn a_vhd_goes_out_and_comes_in_and_a_hostile_one_is_refused() {
    let disk = disk();
    let raw = disk.dir.path().join("in.raw");
    let content: Vec<u8> = (0..4u32 << 20).map(|at| (at / 512 % 251) as u8).collect();
    std::fs::write(&raw, &content).expect("written");
    let uuid = format!("uuid={}", disk.vdi);
    let import = |file: &std::path::Path, format: &str| {
        let (name, format) = (
            format!("filename={}", file.display()),
            format!("format={format}"),
        );
        disk.host.xe(&["vdi-import", &uuid, &name, &format])
    };
    import(&raw, "raw").expect("imported");
    let vhd = disk.dir.path().join("out.vhd");
    let name = format!("filename={}", vhd.display());
    disk.host
        .xe(&["vdi-export", &uuid, &name, "format=vhd"])
        .expect("exported");
    let report = vhd_checker::check(&vhd, vhd_checker::Strictness::Closed).expect("read");
    assert!(report.is_sound(), "{:?}", report.problems);

    std::fs::write(&raw, vec![0u8; 4 << 20]).expect("written");
    import(&raw, "raw").expect("zeroed");
    assert!(disk.content().iter().all(|byte| *byte == 0));
    import(&vhd, "vhd").expect("imported");
    assert_eq!(disk.content(), content);

    let mut hostile = std::fs::read(&vhd).expect("read");
    // The BAT's size in the header, and so its checksum, at 512 + 28.
    hostile[540..544].fill(0xff);
    let file = disk.dir.path().join("hostile.vhd");
    std::fs::write(&file, hostile).expect("written");
    let error = import(&file, "vhd")
        .expect_err("a hostile image")
        .to_string();
    assert!(error.contains("checksum"), "{error}");
    assert_eq!(
        disk.content(),
        content,
        "a refused import has changed the disk"
    );
    let vdis = disk.host.xe(&["vdi-list", "--minimal"]).expect("listed");
    assert_eq!(vdis, disk.vdi, "something was left behind");
}

#[test]
fn a_vdi_whose_file_was_damaged_is_a_typed_error_that_names_the_damage() {
    let disk = disk();
    let files: Vec<_> = std::fs::read_dir(disk.dir.path().join("sr/one"))
        .expect("the SR")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "vhd"))
        .collect();
    assert_eq!(files.len(), 1);
    let sound = std::fs::read(&files[0]).expect("read");
    let try_to_read = || {
        let out = disk.dir.path().join("damaged.raw");
        std::fs::remove_file(&out).ok();
        let (uuid, name) = (
            format!("uuid={}", disk.vdi),
            format!("filename={}", out.display()),
        );
        disk.host.xe(&["vdi-export", &uuid, &name, "format=raw"])
    };
    for (damage, named) in [
        (vec![0u8; 4096], "footer.cookie"),
        (damaged(&sound, 512..1536), "header.cookie"),
        (damaged(&sound, 1024..1100), "header.checksum"),
        (Vec::new(), "container size is 0"),
        (sound[..512].to_vec(), "header is 1024 bytes"),
    ] {
        std::fs::write(&files[0], damage).expect("damaged");
        let error = try_to_read().expect_err(named).to_string();
        let typed = error.contains("SR_BACKEND_FAILURE") && error.contains(named);
        assert!(typed, "{named}: {error}");
        let listed = disk
            .host
            .xe(&["vdi-list", "--minimal"])
            .expect("the daemon goes on");
        assert_eq!(listed, disk.vdi, "{named}");
    }
    std::fs::write(&files[0], sound).expect("mended");
    try_to_read().expect("a mended image is read again");
}

fn damaged(sound: &[u8], range: std::ops::Range<usize>) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    bytes[range].iter_mut().for_each(|byte| *byte ^= 0x5a);
    bytes
}

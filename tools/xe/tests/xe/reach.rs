//! Reaching a server, or not: sockets, TLS, servers of another kind, hostile ones.

use crate::server::{greet, xe};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::Output;
use std::sync::Arc;
use thin_cli::Command;
use tokio::io::BufReader;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn without_a_server_every_place_that_was_tried_is_told() {
    let dir = tempfile::tempdir().unwrap();
    // A port that was free a moment ago: nobody listens on it.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
        .to_string();
    let output = xe(dir.path(), &["vm-list", "-p", &port], &[])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).contains(&format!("127.0.0.1 port {port}: ")),
        "{}",
        err(&output)
    );
    let output = xe(dir.path(), &["vm-list"], &[("XE_SOCKET", "/nonexistent/s")])
        .output()
        .unwrap();
    let text = err(&output);
    assert!(
        text.contains("socket /nonexistent/s: ") && text.contains("given by -s and -p"),
        "{text}"
    );
}

#[test]
fn without_a_command_and_with_help_the_usage_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&[][..], &["--help"], &["vm-list", "-help"]] {
        let output = xe(dir.path(), args, &[]).output().unwrap();
        assert!(
            output.status.success() && output.stdout.starts_with(b"Usage: xe <command>"),
            "{args:?}"
        );
    }
    let output = xe(dir.path(), &["-version"], &[]).output().unwrap();
    assert!(output.stdout.ends_with(b"ThinCLI protocol: 0.2\n"));
    let output = xe(dir.path(), &["completion", "tcsh"], &[])
        .output()
        .unwrap();
    assert_eq!(
        (
            output.status.code(),
            err(&output).contains("bash, zsh or fish")
        ),
        (Some(1), true)
    );
}

/// Answers one connection with raw bytes.
fn raw(bytes: &'static [u8]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).unwrap() > 0);
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // The client's greeting, if it comes to that.
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let output = xe(dir.path(), &["vm-list"], &[("XE_SOCKET", "s")])
        .output()
        .unwrap();
    serving.join().unwrap();
    output
}

#[test]
fn servers_of_another_kind_and_hostile_ones_end_in_an_error_that_says_so() {
    const GREETING: &[u8] = b"XenSource thin CLI protocol\0\0\0\0\x02\0\0\0";
    let cases: [(&[u8], &str); 7] = [
        (b"", "lost the connection to the server"),
        (
            b"HTTP/1.1 404 Not Found\r\n\r\n",
            r#"does not speak the protocol of xe; it said "HTTP/1.1 404 Not Found""#,
        ),
        (
            b"XenSource thin CLI protocol\x01\0\0\0\0\0\0\0",
            "protocol version mismatch: peer has 1.0, we have 0.2",
        ),
        (GREETING, "lost the connection to the server"),
        (
            b"XenSource thin CLI protocol\0\0\0\0\x02\0\0\0\xff\xff\xff\x7f",
            "frame of 2147483647 bytes is over the limit",
        ),
        (
            b"XenSource thin CLI protocol\0\0\0\0\x02\0\0\0\x08\0\0\0\x09\0\0\0\x63\0\0\0",
            "malformed message: unknown command",
        ),
        (
            b"XenSource thin CLI protocol\0\0\0\0\x02\0\0\0\x08\0\0\0\x0a\0\0\0\x05\0\0\0",
            "unexpected message Response(Ok)",
        ),
    ];
    for (bytes, text) in cases {
        let output = raw(bytes);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            err(&output).contains(text),
            "{text:?} is not in {:?}",
            err(&output)
        );
    }
}

/// Serves one TLS connection and returns how the client ended. `None`: it never asked for anything.
fn over_tls(
    certificate: &rcgen::CertifiedKey<rcgen::KeyPair>,
    args: &[&str],
) -> (Output, Option<Vec<String>>) {
    let key = PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
    let chain = vec![CertificateDer::from(certificate.cert.der().to_vec())];
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let serving = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (stream, _) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            let stream = tokio::net::TcpStream::from_std(stream).unwrap();
            let stream = TlsAcceptor::from(Arc::new(config))
                .accept(stream)
                .await
                .ok()?;
            let mut stream = BufReader::new(stream);
            let args = greet(&mut stream).await;
            thin_cli::write_message(&mut stream, Command::Exit(0))
                .await
                .unwrap();
            Some(args)
        })
    });
    let dir = tempfile::tempdir().unwrap();
    let pem = dir.path().join("ca.pem");
    std::fs::write(&pem, certificate.cert.pem()).unwrap();
    let all = [args, &["-s", "localhost", "-p", &port, "vm-list"]].concat();
    let output = xe(dir.path(), &all, &[]).output().unwrap();
    (output, serving.join().unwrap())
}

#[test]
fn certificates_are_verified_when_a_fingerprint_or_an_authority_is_given() {
    let named = |name: &str| rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let own = named("localhost");
    let (output, asked) = over_tls(&own, &["--debug"]);
    assert_eq!(
        (output.status.code(), asked),
        (Some(0), Some(vec!["vm-list".to_owned()]))
    );
    let notes = err(&output);
    let fingerprint = notes
        .split("certificate ")
        .nth(1)
        .unwrap()
        .get(..64)
        .unwrap();

    let other = named("localhost");
    let elsewhere = named("elsewhere.example");
    for (certificate, args, good) in [
        (&own, &["--fingerprint", fingerprint][..], true),
        (&other, &["--fingerprint", fingerprint], false),
        (&own, &["--ca-file", "ca.pem"], true),
        (&elsewhere, &["--ca-file", "ca.pem"], false),
    ] {
        let (output, asked) = over_tls(certificate, args);
        assert_eq!(
            (output.status.success(), asked.is_some()),
            (good, good),
            "{args:?}: {}",
            err(&output)
        );
    }
}

//! The server over real sockets: paths, headers, limits, TLS, the local socket.

use crate::http::{HttpServer, Listener};
use crate::model::Role;
use crate::testing::{Host, wait_for};
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

async fn serve(host: &Host) -> (HttpServer, SocketAddr) {
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.address().unwrap();
    (HttpServer::serve(vec![listener], &host.api), address)
}

/// Sends one request and reads to the end of the connection.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> String {
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // A server that refuses may close before it has read everything.
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8_lossy(&answer).into_owned()
}

fn post(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

fn xml_call(method: &str, params: &[&str]) -> String {
    let params: String = params
        .iter()
        .map(|text| format!("<param><value>{text}</value></param>"))
        .collect();
    format!("<methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>")
}

#[tokio::test]
async fn calls_come_in_by_every_path_that_clients_use() {
    let host = Host::new().await;
    host.api
        .set_local_password("root", "secret", Role::PoolAdmin)
        .await
        .unwrap();
    let (_server, address) = serve(&host).await;
    let login = xml_call(
        "session.login_with_password",
        &["root", "secret", "2.0", "test"],
    );
    for path in ["/", "/RPC2", "/xmlrpc"] {
        let answer = exchange(
            TcpStream::connect(address).await.unwrap(),
            &post(path, &login),
        )
        .await;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n"),
            "{path}: {answer}"
        );
        assert!(
            answer.contains("content-type: text/xml\r\n"),
            "{path}: {answer}"
        );
        assert!(
            answer.contains("<value>Success</value>"),
            "{path}: {answer}"
        );
        assert!(answer.contains("OpaqueRef:"), "{path}: {answer}");
    }
    let session = host.root.session.clone().unwrap();
    let call =
        format!(r#"{{"jsonrpc":"2.0","method":"VM.get_all","params":["{session}"],"id":7}}"#);
    for path in ["/json", "/jsonrpc", "/jsonrpc/"] {
        let answer = exchange(
            TcpStream::connect(address).await.unwrap(),
            &post(path, &call),
        )
        .await;
        assert!(
            answer.contains("content-type: application/json\r\n"),
            "{path}: {answer}"
        );
        assert!(
            answer.contains(r#""id":7"#) && answer.contains("OpaqueRef:"),
            "{path}: {answer}"
        );
    }
}

#[tokio::test]
async fn one_connection_carries_many_calls() {
    let host = Host::new().await;
    let (_server, address) = serve(&host).await;
    let body = xml_call("system.listMethods", &[]);
    let one = format!(
        "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let last = String::from_utf8(post("/", &body)).unwrap();
    let request = format!("{one}{one}{last}");
    let answer = exchange(
        TcpStream::connect(address).await.unwrap(),
        request.as_bytes(),
    )
    .await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3);
    assert_eq!(
        answer.matches("<value>VM.get_all_records</value>").count(),
        3
    );
}

#[tokio::test]
async fn requests_that_are_no_calls_get_a_proper_answer() {
    let host = Host::new().await;
    let (_server, address) = serve(&host).await;
    let plain = |text: &str| text.as_bytes().to_vec();
    for (request, expected) in [
        (
            post("/", "<methodCall>"),
            "<name>faultCode</name><value><int>-32700</int>",
        ),
        (post("/jsonrpc", "{"), r#""code":-32700"#),
        (
            post("/", &xml_call("VM.get_all", &["OpaqueRef:x"])),
            "<value>SESSION_INVALID</value><value>OpaqueRef:x</value>",
        ),
        (
            post("/jsonrpc", r#"{"method":"VM.get_all","params":[null]}"#),
            r#""error":["SESSION_INVALID","OpaqueRef:NULL"]"#,
        ),
        (
            post("/", &xml_call("VM.get_all", &[])),
            "<value>SESSION_INVALID</value>",
        ),
        (
            post("/", &xml_call("a.b", &[])),
            "<value>MESSAGE_METHOD_UNKNOWN</value><value>a.b</value>",
        ),
        (post("/nowhere", ""), "HTTP/1.1 404 "),
        (
            plain("GET /RPC2 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"),
            "HTTP/1.1 405 ",
        ),
        (plain("GET / HTTP/1.0\r\n\r\n"), "HTTP/1.0 200 "),
        (
            plain("OPTIONS /jsonrpc HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"),
            "access-control-allow-methods: ",
        ),
        (
            plain("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 99999999\r\n\r\n<"),
            "HTTP/1.1 413 ",
        ),
        (plain("nonsense\r\n\r\n"), "HTTP/1.1 400 "),
    ] {
        let answer = exchange(TcpStream::connect(address).await.unwrap(), &request).await;
        assert!(
            answer.contains(expected),
            "{}: {answer}",
            String::from_utf8_lossy(&request)
        );
    }
    let headers = "a: b\r\n".repeat(100_000);
    let request = format!("GET / HTTP/1.1\r\n{headers}\r\n");
    let answer = exchange(
        TcpStream::connect(address).await.unwrap(),
        request.as_bytes(),
    )
    .await;
    assert!(answer.contains("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn the_local_socket_is_root_and_does_not_outlive_the_daemon() {
    let host = Host::new().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("xapi");
    std::fs::write(&path, "of somebody").unwrap();
    assert!(
        Listener::unix(&path).await.is_err(),
        "a file is not replaced"
    );
    std::fs::remove_file(&path).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left by a dead daemon");
    let server = HttpServer::serve(vec![Listener::unix(&path).await.unwrap()], &host.api);
    assert!(
        Listener::unix(&path).await.is_err(),
        "someone listens already"
    );
    let login = xml_call("session.login_with_password", &["root", ""]);
    let answer = exchange(
        UnixStream::connect(&path).await.unwrap(),
        &post("/", &login),
    )
    .await;
    assert!(answer.contains("<value>Success</value>"), "{answer}");
    host.api.drain().await;
    server.ended().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn the_certificate_is_made_once_and_kept_from_others() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new().await;
    let dir = tempfile::tempdir().unwrap();
    let names = ["tester".to_owned()];
    let address = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::tls(address, dir.path(), &names).await.unwrap();
    let file = dir.path().join("xapi-ssl.pem");
    let pem = std::fs::read(&file).unwrap();
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let bound = listener.address().unwrap();
    let _server = HttpServer::serve(vec![listener], &host.api);
    let stream = TcpStream::connect(bound).await.unwrap();
    let stream = tls_client(&pem)
        .connect("tester".try_into().unwrap(), stream)
        .await
        .unwrap();
    let answer = exchange(stream, &post("/", &xml_call("system.listMethods", &[]))).await;
    assert!(answer.contains("<value>Success</value>"), "{answer}");
    Listener::tls(address, dir.path(), &names).await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), pem);
    std::fs::write(&file, "no certificate").unwrap();
    assert!(Listener::tls(address, dir.path(), &names).await.is_err());
}

fn tls_client(pem: &[u8]) -> tokio_rustls::TlsConnector {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(pem).unwrap())
        .unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    std::sync::Arc::new(config).into()
}

#[tokio::test]
async fn a_client_that_waits_for_events_does_not_keep_the_daemon_from_stopping() {
    let host = Host::new().await;
    let (server, address) = serve(&host).await;
    let session = host.root.session.clone().unwrap();
    let token = host
        .ok(
            "event.inject",
            ["pool".into(), host.all("pool")[0].clone().into()],
        )
        .await;
    host.api.sessions.age(&session, 120_000);
    let body = format!(
        r#"{{"method":"event.from","params":["{session}",["VM"],"{}",600.0],"id":1}}"#,
        token.as_str().unwrap()
    );
    let client = tokio::spawn(async move {
        exchange(
            TcpStream::connect(address).await.unwrap(),
            &post("/jsonrpc", &body),
        )
        .await
    });
    wait_for("the call is under way", || {
        host.api.sessions.idle_ms(&session) < 60_000
    })
    .await;
    host.api.drain().await;
    server.ended().await;
    let answer = client.await.unwrap();
    assert!(answer.contains(r#""events":[]"#), "{answer}");
}

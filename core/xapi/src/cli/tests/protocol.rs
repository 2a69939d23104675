//! Logins, bad command lines, hostile clients.

use super::client::{Answers, remote, request};
use crate::api::Origin;
use crate::cli;
use crate::http::{HttpServer, Listener};
use crate::testing::Host;
use thin_cli::{Command, FRAME_BYTES_MAX, Message};
use thin_cli::{ProtocolError, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const NO_ANSWERS: fn() -> Answers = Answers::default;

#[tokio::test]
async fn root_of_the_host_needs_no_password_and_others_do() {
    let host = Host::with_password().await;
    let before = host.all("session");
    let list = ["host-list", "--minimal"];
    let uuid = host.xe(&list).await.line();
    let with = |login: &[&'static str]| [&list[..], login].concat();
    let good = with(&["username=root", "password=secret"]);
    assert_eq!(host.xe_as(remote(), &good, NO_ANSWERS()).await.line(), uuid);
    for (args, text) in [
        (
            with(&[]),
            "Username/password must be specified\nFor usage run: 'xe help'\n",
        ),
        (
            with(&["username=root"]),
            "Authentication failed\nFor usage run: 'xe help'\n",
        ),
        (
            with(&["username=root", "password=x"]),
            "Authentication failed\nFor usage run: 'xe help'\n",
        ),
        (
            with(&["username=eve", "password=x"]),
            "Authentication failed\nFor usage run: 'xe help'\n",
        ),
    ] {
        let seen = host.xe_as(remote(), &args, NO_ANSWERS()).await;
        assert_eq!(
            (seen.code, seen.err.as_str(), seen.out.as_str()),
            (1, text, "")
        );
    }
    assert_eq!(host.all("session"), before, "sessions are closed again");
}

#[tokio::test]
async fn bad_command_lines_say_what_is_wrong() {
    let host = Host::new().await;
    for (args, text) in [
        (
            &["fly"][..],
            "Unknown command: fly\nFor usage run: 'xe help'\n",
        ),
        (
            &["uuid=1"],
            "Syntax error: command name is missing\nFor usage run: 'xe help'\n",
        ),
        (
            &["vm-list", "-z", "1"],
            "Syntax error: Unknown switch: -z\nFor usage run: 'xe help'\n",
        ),
        (
            &["vdi-create"],
            "Required parameter not found: sr-uuid\nFor usage run: 'xe help'\n",
        ),
        (
            &["vm-list", "colour=red"],
            "Error: Unknown field or parameter: colour\n",
        ),
        (
            &["vm-list", "params=uuid,colour"],
            "Error: vm has no field colour\n",
        ),
        (
            &["vm-start"],
            "Error: Which vm? Give vm=<uuid or name>, uuid=, or --multiple\n",
        ),
        (&["vm-start", "vm=web"], "Error: No matching vms found\n"),
        (
            &["sr-scan", "uuid=x"],
            "The uuid you supplied was invalid.\ntype: SR\nuuid: x\n",
        ),
    ] {
        let seen = host.xe(args).await;
        assert_eq!(
            (seen.code, seen.err.as_str(), seen.out.as_str()),
            (1, text, ""),
            "{args:?}"
        );
    }
    let seen = host.xe(&["sr-scan", "uuid=x", "--trace"]).await;
    assert!(
        seen.err
            .contains("\nRaised Api(ApiError { code: \"UUID_INVALID\""),
        "{}",
        seen.err
    );
}

#[tokio::test]
async fn help_lists_commands_and_describes_them_as_completion_reads_it() {
    let host = Host::new().await;
    let all = host.xe(&["help", "--minimal", "--all"]).await.line();
    let all: Vec<_> = all.split(',').collect();
    for command in [
        "sr-create",
        "vdi-param-set",
        "vm-list",
        "pbd-plug",
        "message-destroy",
    ] {
        assert!(all.contains(&command), "{command}");
    }
    let seen = host.xe(&["help", "vm-start", "fly"]).await;
    let expected = "\
command name            : vm-start
        reqd params     : 
        optional params : force, on, paused, progress, <vm-selectors>
        description     : Starts a VM. The vm is given by vm=<name or uuid>, uuid=, or conditions on its fields; --multiple acts on all that match


Unknown command 'fly'
";
    assert_eq!(seen.out, expected);
    let seen = host.xe(&["help"]).await;
    assert!(
        seen.out.starts_with("Usage:\n  xe <command>\n"),
        "{}",
        seen.out
    );
    assert!(!seen.out.contains("vm-param-clear") && seen.out.contains("vm-start"));
    // Nobody needs a session to be helped.
    assert_eq!(host.xe_as(remote(), &["help"], NO_ANSWERS()).await, seen);
}

/// Plays `bytes` to the server and returns how it ended.
async fn play(host: &Host, head: &str, bytes: &[u8]) -> Result<(), ProtocolError> {
    let (server, mut client) = tokio::io::duplex(1 << 20);
    client.write_all(bytes).await.unwrap();
    let mut request = request(Origin::LocalRoot, &[], server);
    request.head = head.to_owned();
    let listening = tokio::spawn(async move {
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.map(|_| heard)
    });
    let served = cli::serve(host.api.clone(), request).await;
    listening.await.unwrap().unwrap();
    served
}

#[tokio::test]
async fn a_request_without_a_length_or_with_too_much_is_refused() {
    let host = Host::new().await;
    for (head, expected) in [
        (
            "POST /cli HTTP/1.0",
            "malformed message: the request has no content-length",
        ),
        (
            "POST /cli HTTP/1.0\r\ncontent-length: -1",
            "malformed message: the request has no content-length",
        ),
        (
            "POST /cli HTTP/1.0\r\ncontent-length: 204801",
            "request of 204801 bytes is over the limit of 204800",
        ),
    ] {
        let refused = play(&host, head, b"vm-list").await.unwrap_err();
        assert_eq!(refused.to_string(), expected);
    }
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_left() {
    let host = Host::new().await;
    let head = "POST /cli HTTP/1.0\r\ncontent-length: 23";
    let body = b"vm-reset-powerstate\na=b";
    let mut greeting = Vec::new();
    thin_cli::write_greeting(&mut greeting).await.unwrap();
    let mut answer = Vec::new();
    thin_cli::write_message(&mut answer, Response::Ok)
        .await
        .unwrap();
    type Check = fn(&ProtocolError) -> bool;
    let cases: [(&str, Vec<u8>, Check); 4] = [
        ("no greeting", b"GET / HTTP/1.1\r\n".to_vec(), |e| {
            matches!(e, ProtocolError::NoGreeting(_))
        }),
        (
            "another version",
            [
                &b"XenSource thin CLI protocol"[..],
                &[1, 0, 0, 0, 0, 0, 0, 0],
            ]
            .concat(),
            |e| matches!(e, ProtocolError::Version(_)),
        ),
        (
            "an answer where the user's line is expected",
            [&greeting[..], &answer].concat(),
            |e| matches!(e, ProtocolError::Unexpected(_)),
        ),
        (
            "a frame without end",
            [&greeting[..], &[0xff; 8]].concat(),
            |e| matches!(e, ProtocolError::TooLong { .. }),
        ),
    ];
    for (name, bytes, check) in cases {
        let bytes = [&body[..], &bytes].concat();
        let left = play(&host, head, &bytes).await.expect_err(name);
        assert!(check(&left), "{name}: {left:?}");
    }
    // One that just goes away is no failure.
    play(&host, head, &[&body[..], &greeting].concat())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_session_that_the_client_has_is_used_and_left_open() {
    let host = Host::new().await;
    let session = format!("session_id={}", host.root.session.as_ref().unwrap());
    let uuid = host.xe(&["host-list", "--minimal"]).await.line();
    let args = [session.as_str(), "host-list", "--minimal"];
    for _ in 0..2 {
        assert_eq!(host.xe_as(remote(), &args, NO_ANSWERS()).await.line(), uuid);
    }
    let args = ["session_id=OpaqueRef:x", "host-list"];
    let seen = host.xe_as(remote(), &args, NO_ANSWERS()).await;
    assert_eq!(
        seen.err,
        "The session is not valid any more.\nhandle: OpaqueRef:x\n"
    );
}

#[tokio::test]
async fn the_local_socket_serves_it_and_a_stopping_server_leaves_no_client_waiting() {
    let host = Host::new().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("xapi");
    let server = HttpServer::serve(vec![Listener::unix(&path).await.unwrap()], &host.api);
    let mut client = UnixStream::connect(&path).await.unwrap();
    let body = "vm-reset-powerstate\n--multiple";
    let request = format!(
        "POST /cli HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    client.write_all(request.as_bytes()).await.unwrap();
    thin_cli::read_greeting(&mut client).await.unwrap();
    thin_cli::write_greeting(&mut client).await.unwrap();
    let mut said = Vec::new();
    while said.last() != Some(&Message::Command(Command::Prompt)) {
        said.push(
            thin_cli::read_message(&mut client, FRAME_BYTES_MAX)
                .await
                .unwrap(),
        );
    }
    host.api.drain().await;
    let told = thin_cli::read_message(&mut client, FRAME_BYTES_MAX)
        .await
        .unwrap();
    let expected = Command::PrintStderr("Error: the server is stopping\n".into());
    assert_eq!(told, Message::Command(expected));
    let end = thin_cli::read_message(&mut client, FRAME_BYTES_MAX)
        .await
        .unwrap();
    assert_eq!(end, Message::Command(Command::Exit(1)));
    server.ended().await;
}

//! NBD servers and data-path processes that lie, stop or hang: a typed error each, and no hang.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use datapath::nbd::{BlockRun, Client as NbdClient, ErrorKind as NbdErrorKind};
use datapath::{Client, ErrorKind};
use std::path::PathBuf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use units::RequestId;

struct Place(tempfile::TempDir);

impl Place {
    fn socket(&self) -> PathBuf {
        self.0.path().join("s")
    }
}

/// Serves one connection with `script` and keeps it open until the client leaves.
fn serve<F, S>(script: S) -> Place
where
    F: Future<Output = UnixStream> + Send,
    S: FnOnce(UnixStream) -> F + Send + 'static,
{
    let place = Place(tempfile::tempdir().unwrap());
    let listener = UnixListener::bind(place.socket()).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = script(stream).await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    place
}

fn greeting() -> Vec<u8> {
    b"NBDMAGICIHAVEOPT\x00\x03".to_vec()
}

fn option_reply(option: u32, kind: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    let magic = 0x0003_e889_0455_65a9_u64;
    [
        &magic.to_be_bytes()[..],
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
        &length.to_be_bytes(),
        body,
    ]
    .concat()
}

/// The greeting of a server without extended headers.
fn greeting_of_old() -> Vec<u8> {
    [greeting(), option_reply(11, (1 << 31) + 1, b"what?")].concat()
}

/// Ends a handshake: structured replies, `base:allocation` as context 1, 1 MiB.
fn entered() -> Vec<u8> {
    [
        greeting_of_old(),
        option_reply(8, 1, &[]),
        choices_and_size(),
    ]
    .concat()
}

/// As [`entered`], with extended headers.
fn entered_extended() -> Vec<u8> {
    [greeting(), option_reply(11, 1, &[]), choices_and_size()].concat()
}

fn choices_and_size() -> Vec<u8> {
    let size = [&[0, 0][..], &(1_u64 << 20).to_be_bytes(), &[0, 1]].concat();
    [
        option_reply(10, 4, b"\0\0\0\x01base:allocation"),
        option_reply(10, 1, &[]),
        option_reply(7, 3, &size),
        option_reply(7, 1, &[]),
    ]
    .concat()
}

#[tokio::test]
async fn greetings_and_options_that_make_no_sense_are_refused() {
    let cases: &[(&str, Vec<u8>, NbdErrorKind)] = &[
        (
            "not NBD",
            b"SSH-2.0-OpenSSH_9.2p1 Debian".to_vec(),
            NbdErrorKind::Protocol,
        ),
        (
            "oldstyle",
            b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\0\0".to_vec(),
            NbdErrorKind::Protocol,
        ),
        (
            "not fixed",
            b"NBDMAGICIHAVEOPT\x00\x00".to_vec(),
            NbdErrorKind::Protocol,
        ),
        (
            "wrong reply magic",
            [greeting(), vec![9; 20]].concat(),
            NbdErrorKind::Protocol,
        ),
        (
            "reply to another option",
            [greeting(), option_reply(3, 1, &[])].concat(),
            NbdErrorKind::Protocol,
        ),
        (
            "reply of 4 GiB",
            [
                greeting_of_old(),
                option_reply(8, 1, &[])[..16].to_vec(),
                vec![0xff; 4],
            ]
            .concat(),
            NbdErrorKind::Protocol,
        ),
        (
            "replies without end",
            [greeting_of_old(), option_reply(8, 3, &[]).repeat(100)].concat(),
            NbdErrorKind::Protocol,
        ),
        (
            "no size",
            [
                greeting_of_old(),
                option_reply(8, 1, &[]),
                option_reply(10, 1, &[]),
                option_reply(7, 1, &[]),
            ]
            .concat(),
            NbdErrorKind::Protocol,
        ),
        (
            "block sizes of nonsense",
            [
                greeting_of_old(),
                option_reply(8, 1, &[]),
                option_reply(10, 1, &[]),
                option_reply(7, 3, &[0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3]),
                option_reply(7, 1, &[]),
            ]
            .concat(),
            NbdErrorKind::Protocol,
        ),
    ];
    for (name, script, kind) in cases {
        let script = script.clone();
        let place = serve(|mut stream| async move {
            let _ = stream.write_all(&script).await;
            stream
        });
        let error = NbdClient::connect(&place.socket(), "x").await.unwrap_err();
        assert_eq!(error.kind(), *kind, "{name}: {error}");
    }
}

fn chunk(flags: u16, kind: u16, cookie: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    [
        &0x668e_33ef_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &length.to_be_bytes(),
        body,
    ]
    .concat()
}

/// Enters, waits for a request and sends one reply.
fn answers(
    entered: Vec<u8>,
    magic: u32,
    reply: Vec<u8>,
) -> impl FnOnce(UnixStream) -> std::pin::Pin<Box<dyn Future<Output = UnixStream> + Send>> {
    move |mut stream| {
        Box::pin(async move {
            stream.write_all(&entered).await.unwrap();
            let mut seen = Vec::new();
            while !seen.windows(4).any(|w| w == magic.to_be_bytes()) {
                assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0);
            }
            stream.write_all(&reply).await.unwrap();
            stream.shutdown().await.unwrap();
            stream
        })
    }
}

fn data(offset: u64, length: usize) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &vec![7; length]].concat()
}

#[tokio::test]
async fn replies_that_make_no_sense_end_the_connection_and_are_never_data() {
    let simple = |error: u32, cookie: u64| {
        [
            &0x6744_6698_u32.to_be_bytes()[..],
            &error.to_be_bytes(),
            &cookie.to_be_bytes(),
        ]
        .concat()
    };
    let protocol = NbdErrorKind::Protocol;
    let cases: &[(&str, Vec<u8>, NbdErrorKind)] = &[
        ("noise", vec![0x55; 64], protocol),
        ("another cookie", simple(0, 99), protocol),
        ("nothing at all, and done", chunk(1, 0, 1, &[]), protocol),
        (
            "half of it, and done",
            chunk(1, 1, 1, &data(0, 512)),
            protocol,
        ),
        (
            "before the range",
            chunk(1, 1, 1, &data(1 << 40, 1024)),
            protocol,
        ),
        (
            "more than the range",
            chunk(1, 1, 1, &data(512, 1024)),
            protocol,
        ),
        (
            "a hole past the range",
            chunk(1, 2, 1, &[&[0; 8][..], &[0xff; 4]].concat()),
            protocol,
        ),
        ("a hole that wraps", chunk(1, 2, 1, &[0xff; 12]), protocol),
        (
            "extents for a read",
            chunk(1, 5, 1, &[0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0]),
            protocol,
        ),
        ("unknown chunk", chunk(1, 77, 1, &[]), protocol),
        (
            "error chunk of 4 GiB",
            [&chunk(1, 1 << 15 | 1, 1, &[])[..16], &[0xff; 4]].concat(),
            protocol,
        ),
        (
            "an error, then data",
            [
                chunk(0, 1 << 15 | 1, 1, b"\0\0\0\x05\0\0"),
                chunk(1, 1, 1, &data(0, 1024)),
            ]
            .concat(),
            NbdErrorKind::Io,
        ),
        (
            "a message longer than its chunk",
            chunk(1, 1 << 15 | 1, 1, b"\0\0\0\x05\xff\xffx"),
            NbdErrorKind::Io,
        ),
        ("end of stream", vec![], NbdErrorKind::Gone),
        (
            "end of stream in the middle",
            chunk(1, 1, 1, &data(0, 1024))[..200].to_vec(),
            NbdErrorKind::Gone,
        ),
    ];
    for (name, reply, kind) in cases {
        let place = serve(answers(entered(), 0x2560_9513, reply.clone()));
        let client = NbdClient::connect(&place.socket(), "x").await.unwrap();
        let error = client.read(0, 1024).await.unwrap_err();
        assert_eq!(error.kind(), *kind, "{name}: {error}");
        let next = client.read(0, 512).await.unwrap_err();
        assert!(
            [NbdErrorKind::Gone, protocol].contains(&next.kind()),
            "{name}, later: {next}"
        );
    }
}

fn wide_chunk(kind: u16, offset: u64, length: u64, body: &[u8]) -> Vec<u8> {
    [
        &0x6e8a_278c_u32.to_be_bytes()[..],
        &[0, 1],
        &kind.to_be_bytes(),
        &1_u64.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
        body,
    ]
    .concat()
}

#[tokio::test]
async fn extended_replies_that_make_no_sense_end_the_connection() {
    let one = [&4096_u64.to_be_bytes()[..], &3_u64.to_be_bytes()].concat();
    let extents = |context: u32, count: u32| {
        let body = [&context.to_be_bytes()[..], &count.to_be_bytes(), &one].concat();
        wide_chunk(6, 0, 24, &body)
    };
    let run = BlockRun {
        length_bytes: 4096,
        hole: true,
        zero: true,
    };
    let protocol = NbdErrorKind::Protocol;
    let cases = [
        ("as it should be", extents(1, 1), Ok(vec![run])),
        ("without a count", extents(1, 0), Ok(vec![run])),
        ("a count of others", extents(1, 2), Err(protocol)),
        ("a count of 2^32-1", extents(1, u32::MAX), Err(protocol)),
        ("another context", extents(2, 1), Err(protocol)),
        ("a compact chunk", chunk(1, 0, 1, &[]), Err(protocol)),
        (
            "a simple reply",
            [&0x6744_6698_u32.to_be_bytes()[..], &[0; 11], &[1]].concat(),
            Err(protocol),
        ),
        (
            "another offset",
            wide_chunk(6, 512, 24, &[0; 24]),
            Err(protocol),
        ),
        (
            "2^64-1 bytes",
            wide_chunk(6, 0, u64::MAX, &[0; 24]),
            Err(protocol),
        ),
        (
            "extents of 2^32-8 bytes",
            wide_chunk(6, 0, (1 << 32) - 8, &[0, 0, 0, 1, 0, 0, 0, 0]),
            Err(protocol),
        ),
        ("no extent", wide_chunk(6, 0, 8, &[0; 8]), Err(protocol)),
        (
            "half an extent",
            wide_chunk(6, 0, 16, &[0; 16]),
            Err(protocol),
        ),
        ("nothing, and done", wide_chunk(0, 0, 0, &[]), Err(protocol)),
    ];
    for (name, reply, expected) in cases {
        let place = serve(answers(entered_extended(), 0x21e4_1c71, reply));
        let client = NbdClient::connect(&place.socket(), "x").await.unwrap();
        let got = client.block_status(0, 8192).await;
        assert_eq!(got.map_err(|e| e.kind()), expected, "{name}");
    }
}

/// The clock stands still while anything runs and jumps when all wait, so a minute takes no time.
#[tokio::test(start_paused = true)]
async fn servers_that_say_nothing_are_given_up() {
    let place = serve(|stream| async move { stream });
    let error = NbdClient::connect(&place.socket(), "x").await.unwrap_err();
    assert_eq!(error.kind(), NbdErrorKind::Gone, "{error}");

    let place = serve(|mut stream| async move {
        stream.write_all(&entered()).await.unwrap();
        stream
    });
    let mut client = None;
    while client.is_none() {
        // The clock may jump over the handshake, too.
        client = NbdClient::connect(&place.socket(), "x").await.ok();
    }
    let client = client.unwrap();
    assert_eq!(
        client.read(0, 512).await.unwrap_err().kind(),
        NbdErrorKind::Gone
    );
    assert_eq!(
        client.read(0, 512).await.unwrap_err().kind(),
        NbdErrorKind::Gone
    );

    let place = serve(|stream| async move { stream });
    let error = Client::connect(&place.socket(), &RequestId::random())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Gone, "{error}");
}

fn frame(text: &str) -> Vec<u8> {
    [
        &u32::try_from(text.len()).unwrap().to_le_bytes()[..],
        text.as_bytes(),
    ]
    .concat()
}

const HELLO: &str =
    r#"{"id":1,"ok":{"reply":"hello","protocol":"xylem-tapdisk/0","pid":7,"version":"9"}}"#;

#[tokio::test]
async fn processes_that_are_none_are_refused() {
    let cases = [
        (
            "another version",
            frame(&HELLO.replace("/0", "/9")),
            ErrorKind::Protocol,
        ),
        (
            "another answer",
            frame(r#"{"id":1,"ok":{"reply":"done"}}"#),
            ErrorKind::Protocol,
        ),
        (
            "a refusal",
            frame(r#"{"id":1,"error":{"kind":"busy","message":"no"}}"#),
            ErrorKind::Busy,
        ),
        ("not JSON", frame("hello, hello"), ErrorKind::Gone),
        ("a frame of 4 GiB", vec![0xff; 4], ErrorKind::Gone),
        ("end of stream", vec![], ErrorKind::Gone),
        (
            "end of stream in a frame",
            frame(HELLO)[..9].to_vec(),
            ErrorKind::Gone,
        ),
    ];
    for (name, reply, kind) in cases {
        let place = serve(|mut stream| async move {
            stream.write_all(&reply).await.unwrap();
            stream.shutdown().await.unwrap();
            stream
        });
        let error = Client::connect(&place.socket(), &RequestId::random())
            .await
            .unwrap_err();
        assert_eq!(error.kind, kind, "{name}: {error}");
    }
}

#[tokio::test]
async fn replies_find_their_calls_and_strays_are_ignored() {
    let place = serve(|mut stream| async move {
        stream.write_all(&frame(HELLO)).await.unwrap();
        let mut seen = Vec::new();
        while seen.windows(6).filter(|w| w == b"\"list\"").count() < 2 {
            assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0);
        }
        let error = r#"{"id":2,"error":{"kind":"no-space","message":"full"}}"#;
        for text in [
            r#"{"id":99,"ok":{"reply":"done"}}"#,
            r#"{"id":3,"ok":{"reply":"disks","disks":[]}}"#,
            error,
        ] {
            stream.write_all(&frame(text)).await.unwrap();
        }
        stream
    });
    let request = RequestId::random();
    let client = Client::connect(&place.socket(), &request).await.unwrap();
    assert_eq!((client.pid(), client.version()), (7, "9"));
    let (first, second) = tokio::join!(client.list(&request), client.list(&request));
    assert_eq!(first.unwrap_err().kind, ErrorKind::NoSpace);
    assert_eq!(second.unwrap(), []);
}

//! Frames of the control protocol: structured ones in pieces of any size come out as they went in,
//! others end the connection with an error.

use crate::guard::bounded;
use crate::input::Input;
use datapath::codec::{FrameReader, FrameWriter, Read};
use datapath::protocol::{ErrorKind, FRAME_BYTES_MAX, ReplyFrame, RequestFrame};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use std::os::fd::OwnedFd;

/// Requests and replies as they travel; the fuzzer puts other values into them.
const FRAMES: [&str; 14] = [
    r#"{"id":1,"request_id":"R:1","op":"hello","protocol":"xylem-tapdisk/0"}"#,
    r#"{"id":2,"request_id":"R:1","op":"open","disk":"a","layers":["vhd","raw"],"extent":"grows","access":"read-write"}"#,
    r#"{"id":3,"request_id":"R:1","op":"serve","disk":"a","export":"e"}"#,
    r#"{"id":4,"request_id":"R:1","op":"snapshot","disk":"a","leaf":"11111111-2222-4333-8444-555555555555"}"#,
    r#"{"id":5,"request_id":"R:1","op":"freeze","disks":["a","b"]}"#,
    r#"{"id":6,"request_id":"R:1","op":"resize","disk":"a","virtual_bytes":4194304}"#,
    r#"{"id":7,"request_id":"R:1","op":"list"}"#,
    r#"{"id":8,"request_id":"R:1","op":"image-create","uuid":"11111111-2222-4333-8444-555555555555","virtual_bytes":1,"resize_max_bytes":2,"parent":{"name":"p","uuid":"11111111-2222-4333-8444-555555555555","mtime_unix_s":-1},"extent":"reserved"}"#,
    r#"{"id":9,"request_id":"R:1","op":"image-hide","hidden":true,"extent":"grows"}"#,
    r#"{"id":1,"ok":{"reply":"hello","protocol":"xylem-tapdisk/0","pid":7,"version":"0"}}"#,
    r#"{"id":2,"ok":{"reply":"done"}}"#,
    r#"{"id":3,"ok":{"reply":"disks","disks":[]}}"#,
    r#"{"id":4,"error":{"kind":"busy","message":"m"}}"#,
    r#"{"id":5,"ok":{"reply":"image","uuid":"11111111-2222-4333-8444-555555555555","parent_uuid":null,"parent_name":null,"virtual_bytes":1,"resize_max_bytes":1,"allocated_blocks":0,"hidden":false,"clean":true}}"#,
];

/// Pieces of JSON that mean something somewhere else.
const PIECES: [&str; 12] = [
    "null",
    "-1",
    "18446744073709551616",
    "1e999",
    "[]",
    "{}",
    "\"\"",
    "\"\\u0000\"",
    "true",
    ",",
    "}",
    "[[[[[[[[",
];

/// See the module's page.
pub fn target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut bodies = Vec::new();
    let mut stream = Vec::new();
    for _ in 0..1 + input.below(5) {
        let body = body(&mut input);
        stream.extend((body.len() as u32).to_le_bytes());
        stream.extend(&body);
        bodies.push(body);
    }
    // Where the stream stops being what was meant.
    let whole = !input.one_in(3);
    if !whole {
        let at = input.below(stream.len() as u64) as usize;
        match input.below(3) {
            0 => stream.truncate(at),
            1 => stream.insert(at, input.number() as u8),
            _ => stream
                .splice(
                    at..,
                    (input.odd(&[FRAME_BYTES_MAX as u64]) as u32).to_le_bytes(),
                )
                .for_each(drop),
        }
    }
    let limit = (64 << 10) + FRAME_BYTES_MAX as u64 + 16 * stream.len() as u64;
    let found = bounded("a connection", limit, || exchange(&mut input, &stream));
    if whole {
        assert_eq!(found, bodies);
    }
}

fn body(input: &mut Input<'_>) -> Vec<u8> {
    if input.one_in(8) {
        let mut bytes = input.bytes(200);
        // Shorter ones are not frames.
        bytes.resize(bytes.len().max(5), b' ');
        return bytes;
    }
    let mut text = input.pick(&FRAMES).as_bytes().to_vec();
    for _ in 0..input.below(4) {
        let at = input.below(text.len() as u64) as usize;
        let end = (at + input.below(12) as usize).min(text.len());
        let piece = if input.one_in(4) {
            input.bytes(8)
        } else {
            input.pick(&PIECES).as_bytes().to_vec()
        };
        text.splice(at..end, piece);
    }
    text.resize(text.len().max(5), b' ');
    text
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("a socket pair")
}

/// Sends the stream in pieces and gives back the bodies of the frames that came out.
fn exchange(input: &mut Input<'_>, stream: &[u8]) -> Vec<Vec<u8>> {
    let (near, far) = pair();
    let mut reader = FrameReader::default();
    let mut found = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let piece = (1 + input.below(rest.len().min(700) as u64)) as usize;
        let (now, later) = rest.split_at(if input.is_used_up() {
            rest.len().min(4096)
        } else {
            piece
        });
        let sent = send(&near, now, SendFlags::NOSIGNAL).expect("room in the socket");
        assert_eq!(sent, now.len());
        rest = later;
        loop {
            match reader.read(&far) {
                Ok(Read::Frame(frame)) => found.push(look_at(&frame)),
                Ok(Read::Pending) => break,
                Ok(Read::Closed) => panic!("nobody closed"),
                Err(e) => {
                    assert_eq!(e.kind, ErrorKind::Protocol, "{e}");
                    return found;
                }
            }
        }
    }
    drop(near);
    let end = reader.read(&far);
    assert!(!matches!(end, Ok(Read::Frame(_) | Read::Pending)));
    found
}

/// What decodes travels again unchanged. Gives the frame's body back as it came.
fn look_at(frame: &datapath::codec::Frame) -> Vec<u8> {
    if let Ok(request) = frame.decode::<RequestFrame>() {
        let again: RequestFrame = travel(&request);
        assert_eq!(again, request);
        assert!(!again.request.name().is_empty());
    }
    if let Ok(reply) = frame.decode::<ReplyFrame>() {
        let again: ReplyFrame = travel(&reply);
        assert_eq!(again, reply);
    }
    frame.body().to_vec()
}

fn travel<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    let (near, far) = pair();
    let mut writer = FrameWriter::default();
    writer
        .push(value, Vec::new())
        .expect("what came in a frame fits one");
    assert!(
        writer.write(&near).expect("an open socket"),
        "room in the socket"
    );
    match FrameReader::default().read(&far) {
        Ok(Read::Frame(frame)) => frame.decode().expect("it was encoded here"),
        other => panic!("{other:?}"),
    }
}

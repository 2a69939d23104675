//! Frames over a real socket pair, whole, in bytes, and hostile.

use super::*;
use std::io::Write;
use std::os::unix::net::UnixStream;

fn frame_of(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn read_text(reader: &mut FrameReader, socket: &UnixStream) -> Option<(String, usize)> {
    match reader.read(socket).unwrap() {
        Read::Frame(frame) => Some((frame.decode().unwrap(), frame.fds.len())),
        Read::Pending => None,
        Read::Closed => panic!("closed"),
    }
}

#[test]
fn descriptors_belong_to_the_frame_they_were_sent_with() {
    let (a, b) = UnixStream::pair().unwrap();
    let mut writer = FrameWriter::default();
    for (text, count) in [
        ("none", 0),
        ("two", 2),
        ("also none", 0),
        ("one", 1),
        ("full", 64),
    ] {
        let fds = (0..count)
            .map(|_| a.as_fd().try_clone_to_owned().unwrap())
            .collect();
        writer.push(&text, fds).unwrap();
    }
    assert!(writer.write(&a).unwrap());
    let mut reader = FrameReader::default();
    for (text, count) in [
        ("none", 0),
        ("two", 2),
        ("also none", 0),
        ("one", 1),
        ("full", 64),
    ] {
        assert_eq!(read_text(&mut reader, &b), Some((text.to_owned(), count)));
    }
    assert_eq!(read_text(&mut reader, &b), None);
}

#[test]
fn a_frame_may_come_in_single_bytes() {
    let (mut a, b) = UnixStream::pair().unwrap();
    let mut reader = FrameReader::default();
    let bytes = frame_of("\"drip\"");
    for (at, byte) in bytes.iter().enumerate() {
        a.write_all(&[*byte]).unwrap();
        let got = read_text(&mut reader, &b);
        let whole = at + 1 == bytes.len();
        assert_eq!(
            got,
            whole.then(|| ("drip".to_owned(), 0)),
            "after byte {at}"
        );
    }
}

#[test]
fn a_frame_larger_than_the_socket_buffer_arrives_whole() {
    let (a, b) = UnixStream::pair().unwrap();
    let text = "x".repeat(FRAME_BYTES_MAX - 2);
    let mut writer = FrameWriter::default();
    writer
        .push(&text, vec![a.as_fd().try_clone_to_owned().unwrap()])
        .unwrap();
    let mut reader = FrameReader::default();
    let mut turns = 0;
    let got = loop {
        let _ = writer.write(&a).unwrap();
        turns += 1;
        if let Some(got) = read_text(&mut reader, &b) {
            break got;
        }
    };
    assert!(
        turns > 1,
        "the frame fitted the socket buffer, the test shows nothing"
    );
    assert_eq!(got, (text, 1));
}

#[test]
fn frames_over_a_limit_are_refused_on_both_sides() {
    let (mut a, b) = UnixStream::pair().unwrap();
    let kind = |e: Error| e.kind;
    let long = "x".repeat(FRAME_BYTES_MAX);
    assert_eq!(
        FrameWriter::default().push(&long, vec![]).map_err(kind),
        Err(ErrorKind::Protocol)
    );
    let many = (0..=FRAME_FDS_MAX)
        .map(|_| a.as_fd().try_clone_to_owned().unwrap())
        .collect();
    assert_eq!(
        FrameWriter::default().push(&"x", many).map_err(kind),
        Err(ErrorKind::Protocol)
    );

    for length in [0_u32, 4, (1 << 20) + 1, u32::MAX] {
        a.write_all(&length.to_le_bytes()).unwrap();
        let error = FrameReader::default().read(&b).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Protocol);
        assert!(error.message.contains(&length.to_string()), "{error}");
    }
}

#[test]
fn a_frame_with_too_many_descriptors_is_refused() {
    let (a, b) = UnixStream::pair().unwrap();
    let fds: Vec<OwnedFd> = (0..=FRAME_FDS_MAX)
        .map(|_| a.as_fd().try_clone_to_owned().unwrap())
        .collect();
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space =
        [const { MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX + 1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    let bytes = frame_of("\"fd flood\"");
    sendmsg(
        &a,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::empty(),
    )
    .unwrap();
    assert_eq!(
        FrameReader::default().read(&b).unwrap_err().kind,
        ErrorKind::Protocol
    );
}

#[test]
fn the_end_between_frames_is_an_end_and_inside_one_an_error() {
    let (mut a, b) = UnixStream::pair().unwrap();
    let mut reader = FrameReader::default();
    a.write_all(&frame_of("\"last\"")).unwrap();
    assert!(read_text(&mut reader, &b).is_some());
    a.write_all(&frame_of("\"cut off\"")[..7]).unwrap();
    drop(a);
    assert_eq!(reader.read(&b).unwrap_err().kind, ErrorKind::Protocol);

    let (a, b) = UnixStream::pair().unwrap();
    drop(a);
    assert!(matches!(FrameReader::default().read(&b), Ok(Read::Closed)));
}

#[test]
fn a_peer_that_does_not_read_fills_a_queue_with_a_limit() {
    let mut writer = FrameWriter::default();
    for _ in 0..QUEUE_FRAMES_MAX {
        writer.push(&"x", vec![]).unwrap();
    }
    assert_eq!(writer.push(&"x", vec![]).unwrap_err().kind, ErrorKind::Busy);
}

#[test]
fn a_key_travels_and_is_not_shown() {
    let tls = crate::Tls {
        policy: crate::TlsPolicy::Require,
        certificates_pem: "cert".to_owned(),
        key_pem: crate::Secret::new("-----BEGIN hush"),
        client_ca_pem: None,
    };
    let request = crate::Request::Serve {
        disk: "d".parse().unwrap(),
        export: "d".to_owned(),
        tls: Some(Box::new(tls)),
    };
    let shown = format!("{request:?} {request:#?}");
    assert!(
        !shown.contains("hush") && shown.contains("Require"),
        "{shown}"
    );
    let text = serde_json::to_string(&request).unwrap();
    assert_eq!(
        serde_json::from_str::<crate::Request>(&text).unwrap(),
        request
    );
    // And what was sent before there was TLS still is a request.
    let old = r#"{"op":"serve","disk":"d","export":"d"}"#;
    let old = serde_json::from_str::<crate::Request>(old).unwrap();
    assert!(matches!(old, crate::Request::Serve { tls: None, .. }));
}

//! Control connections that are wrong: none of them hurts the process or another connection.

use crate::bench::{Bench, rid};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

struct Wire(UnixStream);

impl Wire {
    fn connect(bench: &Bench) -> Self {
        let stream = UnixStream::connect(bench.path("run/a.ctl")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self(stream)
    }

    fn greeted(bench: &Bench) -> Self {
        let mut wire = Self::connect(bench);
        wire.send(&hello("xylem-tapdisk/0"));
        assert_eq!(wire.receive().unwrap()["ok"]["reply"], "hello");
        wire
    }

    fn send(&mut self, value: &Value) {
        self.send_text(&value.to_string());
    }

    fn send_text(&mut self, text: &str) {
        let length = u32::try_from(text.len()).unwrap().to_le_bytes();
        self.0
            .write_all(&[&length[..], text.as_bytes()].concat())
            .unwrap();
    }

    /// `None` at the end of the connection.
    fn receive(&mut self) -> Option<Value> {
        let mut length = [0; 4];
        match self.0.read_exact(&mut length) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return None,
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
            other => other.unwrap(),
        }
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        self.0.read_exact(&mut body).unwrap();
        Some(serde_json::from_slice(&body).unwrap())
    }
}

fn hello(protocol: &str) -> Value {
    json!({"id": 1, "request_id": "R:1", "op": "hello", "protocol": protocol})
}

#[tokio::test]
async fn another_version_is_told_and_sent_away() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let mut wire = Wire::connect(&bench);
    wire.send(&hello("xylem-tapdisk/99"));
    let reply = wire.receive().unwrap();
    assert_eq!(
        (&reply["id"], &reply["error"]["kind"]),
        (&json!(1), &json!("protocol"))
    );
    assert_eq!(wire.receive(), None);
    client.list(&rid()).await.unwrap();
}

#[tokio::test]
async fn the_first_request_is_hello_and_no_other() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    let mut early = Wire::connect(&bench);
    early.send(&json!({"id": 5, "request_id": "R:1", "op": "list"}));
    assert_eq!(early.receive().unwrap()["error"]["kind"], "protocol");
    assert_eq!(early.receive(), None);
    let mut twice = Wire::greeted(&bench);
    twice.send(&hello("xylem-tapdisk/0"));
    assert_eq!(twice.receive().unwrap()["error"]["kind"], "protocol");
    assert_eq!(twice.receive(), None);
    client.list(&rid()).await.unwrap();
}

#[tokio::test]
async fn requests_that_make_no_sense_are_answered_and_the_connection_goes_on() {
    let bench = Bench::new();
    let _client = bench.client("a").await;
    let mut wire = Wire::greeted(&bench);
    let cases = [
        (
            json!({"id": 7, "request_id": "R:1", "op": "format-everything"}),
            7,
            "protocol",
        ),
        (
            json!({"id": 8, "request_id": "R:1", "op": "close", "disk": "../x"}),
            8,
            "protocol",
        ),
        (
            json!({"id": 9, "request_id": "bad id!", "op": "list"}),
            9,
            "protocol",
        ),
        (
            json!({"id": 10, "request_id": "R:1", "op": "image-query", "extent": "grows"}),
            10,
            "protocol",
        ),
        (
            json!({"id": 11, "request_id": "R:1", "op": "serve", "disk": "d", "export": "e"}),
            11,
            "protocol",
        ),
        (
            json!({"id": 12, "request_id": "R:1", "op": "unserve", "disk": "d"}),
            12,
            "not-found",
        ),
        (json!([1, 2, 3, 4]), 0, "protocol"),
    ];
    for (request, id, kind) in cases {
        wire.send(&request);
        let reply = wire.receive().unwrap();
        assert_eq!(
            (&reply["id"], &reply["error"]["kind"]),
            (&json!(id), &json!(kind)),
            "{request}"
        );
    }
    wire.send(&json!({"id": 20, "request_id": "R:1", "op": "list"}));
    assert_eq!(wire.receive().unwrap()["ok"]["disks"], json!([]));
}

#[tokio::test]
async fn frames_that_are_no_frames_end_their_connection_only() {
    let bench = Bench::new();
    let client = bench.client("a").await;
    for bytes in [&[0; 4][..], &[0xff; 4], &[1, 0, 16, 0]] {
        let mut wire = Wire::greeted(&bench);
        wire.0.write_all(bytes).unwrap();
        assert_eq!(wire.receive(), None, "{bytes:?}");
    }
    let mut cut_off = Wire::greeted(&bench);
    cut_off.0.write_all(&[100, 0, 0, 0, b'{']).unwrap();
    drop(cut_off);
    client.list(&rid()).await.unwrap();
}

#[tokio::test]
async fn one_control_connection_more_than_allowed_waits_for_its_turn() {
    let bench = Bench::new();
    let _client = bench.client("a").await;
    let mut wires: Vec<Wire> = (0..7).map(|_| Wire::greeted(&bench)).collect();
    let mut waiting = Wire::connect(&bench);
    waiting.send(&hello("xylem-tapdisk/0"));
    waiting
        .0
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    assert!(
        waiting.0.read(&mut [0]).is_err(),
        "a ninth connection was taken"
    );
    wires.pop();
    waiting
        .0
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    assert_eq!(waiting.receive().unwrap()["ok"]["reply"], "hello");
}

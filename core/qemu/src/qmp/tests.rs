//! The client against a peer that says what each test wants.

use super::*;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixListener;

const SOON: Duration = Duration::from_secs(5);
const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

/// Serves one client: the greeting, then per command the lines `reply` makes of it.
fn peer(
    greeting: &'static str,
    reply: impl Fn(&Value) -> Vec<String> + Send + 'static,
) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (read, mut write) = stream.into_split();
        write
            .write_all(format!("{greeting}\n").as_bytes())
            .await
            .unwrap();
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            for line in reply(&serde_json::from_str(&line).unwrap()) {
                if write
                    .write_all(format!("{line}\n").as_bytes())
                    .await
                    .is_err()
                {
                    return;
                }
            }
        }
    });
    (dir, socket)
}

fn ok(request: &Value) -> String {
    json!({"return": {}, "id": request["id"]}).to_string()
}

#[tokio::test]
async fn events_are_told_before_the_answer_that_follows_them() {
    let (_dir, socket) = peer(GREETING, |request| match request["execute"].as_str() {
        Some("stop") => vec![r#"{"event": "STOP"}"#.to_owned(), ok(request)],
        _ => vec![ok(request)],
    });
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = told.clone();
    let tell = move |message| teller.lock().push(format!("{message:?}"));
    let client = Client::connect(&socket, SOON, tell).await.unwrap();
    client.execute("stop", json!({}), SOON).await.unwrap();
    assert_eq!(told.lock().len(), 1);
    assert!(told.lock()[0].contains("STOP"));
}

#[tokio::test]
async fn answers_find_their_command_in_any_order() {
    let held = Mutex::new(None);
    let (_dir, socket) = peer(GREETING, move |request| match request["execute"].as_str() {
        Some("first") => {
            *held.lock() = Some(request.clone());
            Vec::new()
        }
        Some("second") => {
            let first = held.lock().take().unwrap();
            let answer = |request: &Value, value| json!({"return": value, "id": request["id"]});
            vec![
                answer(request, 2).to_string(),
                answer(&first, 1).to_string(),
            ]
        }
        _ => vec![ok(request)],
    });
    let client = Client::connect(&socket, SOON, |_| {}).await.unwrap();
    let first = client.execute("first", json!({}), SOON);
    let second = client.execute("second", json!({}), SOON);
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.unwrap(), second.unwrap()), (json!(1), json!(2)));
}

#[tokio::test]
async fn a_refusal_carries_the_words_of_qemu() {
    let (_dir, socket) = peer(GREETING, |request| match request["execute"].as_str() {
        Some("cont") => {
            let error = json!({"class": "GenericError", "desc": "Resetting is required"});
            vec![json!({"error": error, "id": request["id"]}).to_string()]
        }
        _ => vec![ok(request)],
    });
    let client = Client::connect(&socket, SOON, |_| {}).await.unwrap();
    let error = client.execute("cont", json!({}), SOON).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert_eq!(error.to_string(), "cont: Resetting is required");
}

#[tokio::test]
async fn silence_garbage_and_hanging_up_are_typed_errors() {
    let short = Duration::from_millis(50);
    let (_dir, socket) = peer("{\"SSH\": 2}", |_| Vec::new());
    let foreign = Client::connect(&socket, SOON, |_| {}).await.unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::Lost);

    let (_dir, socket) = peer(GREETING, |request| match request["execute"].as_str() {
        Some("silence") => Vec::new(),
        Some("garbage") => vec!["}{".to_owned()],
        _ => vec![ok(request)],
    });
    let closed = Arc::new(Mutex::new(0));
    let teller = closed.clone();
    let tell = move |message| {
        if matches!(message, Message::Closed) {
            *teller.lock() += 1;
        }
    };
    let client = Client::connect(&socket, SOON, tell).await.unwrap();
    let silent = client
        .execute("silence", json!({}), short)
        .await
        .unwrap_err();
    assert_eq!(silent.kind(), ErrorKind::Timeout);
    let garbage = client
        .execute("garbage", json!({}), SOON)
        .await
        .unwrap_err();
    assert_eq!(garbage.kind(), ErrorKind::Lost);
    let after = client.execute("stop", json!({}), SOON).await.unwrap_err();
    assert_eq!(after.kind(), ErrorKind::Lost);
    assert_eq!(*closed.lock(), 1);
    let nobody = Client::connect(&socket.with_extension("x"), SOON, |_| {})
        .await
        .unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::Lost);
}

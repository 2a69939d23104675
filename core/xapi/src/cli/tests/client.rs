//! A client that does what it is told and remembers it.

use crate::api::Origin;
use crate::cli;
use crate::http::RawRequest;
use crate::testing::Host;
use std::collections::VecDeque;
use std::net::SocketAddr;
use thin_cli::{Command, FRAME_BYTES_MAX, Message, ProtocolError, Response};
use units::RequestId;

/// What the client saw.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) out: String,
    pub(super) err: String,
    pub(super) code: i32,
    /// Transfers it was told to make: `GET file url` or `PUT file url`.
    pub(super) transfers: Vec<String>,
}

impl Seen {
    /// The only line that was printed, of a command that went well.
    pub(super) fn line(&self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{self:?}");
        let line = self
            .out
            .strip_suffix('\n')
            .unwrap_or_else(|| panic!("{self:?}"));
        assert!(!line.contains('\n'), "{self:?}");
        line.to_owned()
    }
}

/// What the user and the client's side of a transfer do.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) typed: VecDeque<&'static str>,
    pub(super) transfer: Option<Response>,
}

pub(super) fn remote() -> Origin {
    Origin::Remote(SocketAddr::from(([192, 0, 2, 7], 4711)))
}

pub(super) fn request(
    origin: Origin,
    args: &[&str],
    stream: tokio::io::DuplexStream,
) -> RawRequest {
    let length = args.join("\n").len();
    RawRequest {
        origin,
        request_id: RequestId::random(),
        head: format!("POST /cli HTTP/1.0\r\nUser-agent: test\r\nContent-Length: {length}"),
        stream: Box::new(stream),
    }
}

impl Host {
    /// Runs a command as root of the host.
    pub(super) async fn xe(&self, args: &[&str]) -> Seen {
        self.xe_as(Origin::LocalRoot, args, Answers::default())
            .await
    }

    pub(super) async fn xe_as(&self, origin: Origin, args: &[&str], answers: Answers) -> Seen {
        let (server, mut client) = tokio::io::duplex(4096);
        let serving = cli::serve(self.api.clone(), request(origin, args, server));
        let body = args.join("\n");
        let (served, seen) = tokio::join!(serving, async {
            let seen = obey(&mut client, &body, answers).await;
            drop(client);
            seen
        });
        served.unwrap();
        seen.unwrap()
    }
}

async fn obey(
    stream: &mut tokio::io::DuplexStream,
    body: &str,
    mut answers: Answers,
) -> Result<Seen, ProtocolError> {
    tokio::io::AsyncWriteExt::write_all(stream, body.as_bytes()).await?;
    thin_cli::read_greeting(stream).await?;
    thin_cli::write_greeting(stream).await?;
    let mut seen = Seen::default();
    loop {
        let Message::Command(command) = thin_cli::read_message(stream, FRAME_BYTES_MAX).await?
        else {
            panic!("the server sent something else than a command");
        };
        let told = match command {
            Command::Print(text) => {
                seen.out += &(text + "\n");
                continue;
            }
            Command::PrintStderr(text) => {
                seen.err += &text;
                continue;
            }
            Command::Error { code, params } => {
                seen.err += &format!(
                    "Error code: {code}\nError parameters: {}\n",
                    params.join(", ")
                );
                continue;
            }
            Command::Exit(code) => {
                seen.code = code;
                return Ok(seen);
            }
            Command::Prompt => {
                let typed = answers.typed.pop_front().expect("nobody is asked for more");
                thin_cli::write_blob(stream, typed.as_bytes()).await?;
                continue;
            }
            Command::HttpGet { filename, url } => format!("GET {filename} {url}"),
            Command::HttpPut { filename, url } => format!("PUT {filename} {url}"),
            other => panic!("{other:?}"),
        };
        seen.transfers.push(told);
        thin_cli::write_message(stream, Response::Wait).await?;
        thin_cli::write_message(stream, answers.transfer.expect("a transfer is wanted")).await?;
    }
}

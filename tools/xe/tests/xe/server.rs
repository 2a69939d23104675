//! A server on a socket: it reads the arguments, then runs a script of commands.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use thin_cli::{FRAME_BYTES_MAX, Message, ProtocolError, Response};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// What the client gave back to one command.
#[derive(Debug, PartialEq)]
pub(crate) enum Said {
    Answer(Response),
    Blob(Vec<u8>),
    /// A request on a connection of its own: its head and its body.
    Request(String, Vec<u8>),
    Gone,
}

/// What a client of its own kind of connection is answered.
#[derive(Clone)]
pub(crate) struct Web {
    pub(crate) answer: &'static str,
    pub(crate) body: &'static [u8],
    /// Whether the answer is given before the body is taken.
    pub(crate) early: bool,
}

/// Runs `xe` in a directory, with nothing set but what is given.
pub(crate) fn xe(directory: &Path, args: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xe"));
    command
        .args(args)
        .env_clear()
        .env("HOME", directory)
        .current_dir(directory);
    command
        .envs(environment.iter().copied())
        .stdin(Stdio::null());
    command
}

pub(crate) struct Outcome {
    pub(crate) output: Output,
    pub(crate) args: Vec<String>,
    pub(crate) said: Vec<Said>,
}

impl Outcome {
    pub(crate) fn out(&self) -> String {
        String::from_utf8(self.output.stdout.clone()).unwrap()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8(self.output.stderr.clone()).unwrap()
    }

    pub(crate) fn code(&self) -> i32 {
        self.output.status.code().unwrap()
    }
}

/// Runs `xe` in `directory` against a server that says `script`.
pub(crate) fn run(
    directory: &Path,
    args: &[&str],
    typed: &str,
    script: &[thin_cli::Command],
    web: Option<Web>,
) -> Outcome {
    let socket: PathBuf = directory.join("s");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let listener = {
        let _inside = runtime.enter();
        UnixListener::bind(&socket).unwrap()
    };
    let mut command = xe(directory, args, &[("XE_SOCKET", "s")]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), typed.as_bytes()).unwrap();
    let (args, said) = runtime.block_on(serve(&listener, script, web));
    drop(listener);
    let outcome = Outcome {
        output: child.wait_with_output().unwrap(),
        args,
        said,
    };
    std::fs::remove_file(&socket).unwrap();
    outcome
}

async fn serve(
    listener: &UnixListener,
    script: &[thin_cli::Command],
    web: Option<Web>,
) -> (Vec<String>, Vec<Said>) {
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream = BufReader::new(stream);
    let args = greet(&mut stream).await;
    let mut said = Vec::new();
    for command in script {
        if thin_cli::write_message(&mut stream, command.clone())
            .await
            .is_err()
        {
            said.push(Said::Gone);
            break;
        }
        if matches!(
            command,
            thin_cli::Command::HttpGet { .. } | thin_cli::Command::HttpPut { .. }
        ) && let Some(web) = &web
        {
            // The client may also refuse at once, on the connection it has.
            tokio::select! {
                accepted = listener.accept() => {
                    said.push(request(accepted.unwrap().0, web).await);
                }
                closed = stream.fill_buf() => assert!(closed.is_ok()),
            }
        }
        match answer(&mut stream, command).await {
            Ok(Some(answer)) => said.push(answer),
            Ok(None) => {}
            Err(ProtocolError::Connection(_)) => said.push(Said::Gone),
            Err(problem) => panic!("{problem}"),
        }
    }
    (args, said)
}

/// Reads the request as the existing server does, and exchanges greetings.
pub(crate) async fn greet(
    stream: &mut BufReader<impl AsyncRead + AsyncWrite + Unpin>,
) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        if line == "\r\n" {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    assert_eq!(lines[0], "POST /cli HTTP/1.0");
    let length = lines
        .iter()
        .find_map(|line| line.strip_prefix("content-length: "))
        .unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    thin_cli::write_greeting(stream).await.unwrap();
    thin_cli::read_greeting(stream).await.unwrap();
    String::from_utf8(body)
        .unwrap()
        .split('\n')
        .map(str::to_owned)
        .collect()
}

async fn answer(
    stream: &mut BufReader<UnixStream>,
    command: &thin_cli::Command,
) -> Result<Option<Said>, ProtocolError> {
    use thin_cli::Command as C;
    Ok(match command {
        C::Prompt => Some(Said::Blob(thin_cli::read_blob(stream).await?)),
        C::Load(_) => match thin_cli::read_message(stream, FRAME_BYTES_MAX).await? {
            Message::Response(Response::Ok) => Some(Said::Blob(thin_cli::read_blob(stream).await?)),
            Message::Response(other) => Some(Said::Answer(other)),
            other => panic!("{other:?}"),
        },
        C::HttpGet { .. } | C::HttpPut { .. } => {
            match thin_cli::read_message(stream, FRAME_BYTES_MAX).await? {
                Message::Response(response) => Some(Said::Answer(response)),
                other => panic!("{other:?}"),
            }
        }
        _ => None,
    })
}

async fn request(stream: UnixStream, web: &Web) -> Said {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        stream.read_line(&mut head).await.unwrap();
    }
    let answer = format!("HTTP/1.1 {}\r\n\r\n", web.answer);
    if web.early {
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    let mut body = Vec::new();
    if let Some(length) = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
    {
        body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
    } else if head.contains("chunked") {
        body = read_chunks(&mut stream).await;
    }
    if !web.early {
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    stream.write_all(web.body).await.unwrap();
    Said::Request(head, body)
}

async fn read_chunks(stream: &mut BufReader<UnixStream>) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut size = String::new();
        stream.read_line(&mut size).await.unwrap();
        let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk).await.unwrap();
        if size == 0 {
            return body;
        }
        body.extend(&chunk[..size]);
    }
}

//! The thin CLI protocol between `xe` and `/cli`: messages, framing, limits. No commands.
//!
//! The client sends `POST /cli HTTP/1.0` whose body is its arguments, one per line. There is no
//! HTTP answer; the connection turns binary:
//!
//! ```text
//!  server                                  client
//!    greeting (major 0, minor 2)  ────────>
//!                                 <──────── greeting
//!    Print, PrintStderr, Error    ────────>
//!    Load file | Prompt           ────────>
//!                                 <──────── OK, Chunk + bytes ..., End | Failed
//!    HttpGet | HttpPut | HttpConnect ─────>   (the client opens a connection of its own)
//!                                 <──────── Wait ..., OK | Failed
//!    Exit code                    ────────>
//! ```
//!
//! Every message is a length and a payload; all integers are 32 bits, little endian; a text is its
//! length and its bytes. The raw bytes of a chunk follow its message outside of any frame.

#![forbid(unsafe_code)]

mod codec;
mod stream;

pub use codec::{decode, encode};
pub use stream::{
    BLOB_BYTES_MAX, FRAME_BYTES_MAX, Greeting, read_blob, read_greeting, read_message, write_blob,
    write_greeting, write_message,
};

/// The version spoken here. Peers of another major version do not understand each other.
pub const VERSION: Greeting = Greeting { major: 0, minor: 2 };

/// Bytes of arguments that a client may send.
pub const ARGUMENTS_BYTES_MAX: usize = 200 * 1024;

/// What the server tells the client to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Print a line on the standard output; the client ends the line.
    Print(String),
    /// Print on the standard error, as it is.
    PrintStderr(String),
    /// Print only when debugging.
    Debug(String),
    /// An error of the API that the server has no words for.
    Error {
        /// Its code.
        code: String,
        /// Its parameters.
        params: Vec<String>,
    },
    /// Send the contents of a file.
    Load(String),
    /// Read a line from the user and send it.
    Prompt,
    /// End with this exit code.
    Exit(i32),
    /// Fetch a URL (a path on this server, or with a host) into a file; `""` is the standard output.
    HttpGet {
        /// The file to make.
        filename: String,
        /// What to fetch.
        url: String,
    },
    /// Send a file to a URL.
    HttpPut {
        /// The file to send.
        filename: String,
        /// Where to send it.
        url: String,
    },
    /// Join the terminal to a URL by `CONNECT`.
    HttpConnect(String),
}

/// What the client answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response {
    /// It is done.
    Ok,
    /// It was not possible.
    Failed,
    /// It still goes on.
    Wait,
}

/// A part of a file or of what the user typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blob {
    /// So many raw bytes follow.
    Chunk(u32),
    /// That was all.
    End,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// From the server.
    Command(Command),
    /// From the client.
    Response(Response),
    /// From the client, after `Load` and `Prompt`.
    Blob(Blob),
}

impl From<Command> for Message {
    fn from(command: Command) -> Self {
        Self::Command(command)
    }
}

impl From<Response> for Message {
    fn from(response: Response) -> Self {
        Self::Response(response)
    }
}

impl From<Blob> for Message {
    fn from(blob: Blob) -> Self {
        Self::Blob(blob)
    }
}

/// Why the conversation cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The peer is gone, or the connection broke.
    #[error("connection lost")]
    Connection(#[from] std::io::Error),
    /// The first bytes are no greeting; what came instead.
    #[error("the peer does not speak the thin CLI protocol")]
    NoGreeting(Vec<u8>),
    /// The peer speaks another major version.
    #[error("protocol version mismatch: peer has {}.{}, we have {}.{}", .0.major, .0.minor, VERSION.major, VERSION.minor)]
    Version(Greeting),
    /// More bytes than allowed.
    #[error("{what} of {bytes} bytes is over the limit of {max}")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// How long it says it is.
        bytes: u64,
        /// What is allowed.
        max: u64,
    },
    /// A frame that is no message.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// A message that has no place here.
    #[error("unexpected message {0:?}")]
    Unexpected(Box<Message>),
}

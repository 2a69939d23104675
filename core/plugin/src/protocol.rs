//! The messages between the daemon and a plugin process: used by both sides.
//!
//! A frame is two lengths (little-endian u32), a head in JSON and a body. The head is one of the
//! enums here; the body is the JSON of parameters or of a result, which the carrier hands to a
//! shared object as it is. The first frame to the process carries descriptors (`SCM_RIGHTS`): the
//! artifact, then one per granted directory in the order of [`Hello::roots`].
//!
//! ```text
//! daemon                         process
//!   Hello + descriptors  ------->  loads the artifact
//!                        <-------  Ready | Failed
//!   Call{id}             ------->  many at once
//!                        <-------  Ask{id, call}      a host function that the daemon serves
//!   Answer{id}           ------->
//!                        <-------  Done{id} | Broke{id}
//! ```
//! The process ends when the socket closes.

use crate::{LogLevel, PluginErrorKind, PluginKind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::PathBuf;
use units::RequestId;

/// Longest frame, head and body together.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// Length of the two lengths.
pub const PREFIX_BYTES: usize = 8;
/// Directories that can be granted.
pub const ROOTS_MAX: usize = 32;
/// How long the daemon takes for one `Ask`, at most.
pub const ASK_TIMEOUT_S: u64 = 10;

/// What an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    /// A WebAssembly component, run by wasmtime.
    Component,
    /// An ELF shared object, loaded by libloading.
    SharedObject,
}

/// What a process is started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Name of the plugin in logs.
    pub plugin: String,
    /// Name that the manifest gives the package.
    pub package: String,
    /// Version that the manifest gives.
    pub version: String,
    /// World that it must export.
    pub kind: PluginKind,
    /// What the artifact is.
    pub carrier: Carrier,
    /// Granted directories; their descriptors follow the artifact's.
    pub roots: Vec<PathBuf>,
    /// Settings that the plugin sees.
    pub settings: BTreeMap<String, String>,
    /// Memory of one instance or of the process.
    pub memory_bytes: u64,
    /// Calls at once.
    pub calls: u32,
    /// Where compiled components are kept: a directory of this plugin alone.
    pub cache_dir: Option<PathBuf>,
}

/// Heads of frames to the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToProcess {
    /// The first frame.
    Hello(Hello),
    /// Calls an exported function; the body holds the parameters.
    Call {
        /// Answers carry it back.
        id: u64,
        /// For the logs.
        request_id: RequestId,
        /// `interface.function`, in snake case.
        method: String,
        /// Time it has.
        timeout_ms: u64,
    },
    /// The result of an `Ask`, in the body.
    Answer {
        /// The ask's id.
        id: u64,
    },
}

/// Heads of frames from the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromProcess {
    /// The artifact is loaded.
    Ready {
        /// Interfaces it exports.
        interfaces: Vec<String>,
    },
    /// The artifact is not usable; the process ends.
    Failed {
        /// Mostly `incompatible`.
        kind: PluginErrorKind,
        /// Why.
        message: String,
    },
    /// The function returned; its result is the body.
    Done {
        /// The call's id.
        id: u64,
    },
    /// The function did not return.
    Broke {
        /// The call's id.
        id: u64,
        /// `timeout`, `crashed` or `incompatible`.
        kind: PluginErrorKind,
        /// Why.
        message: String,
    },
    /// Calls a host function that the daemon serves; the body holds the parameters.
    Ask {
        /// The answer carries it back.
        id: u64,
        /// The call it is made from.
        call: u64,
        /// `interface.function`, in snake case.
        method: String,
    },
    /// A line for the log.
    Log {
        /// The call it is made from.
        call: u64,
        /// How much it matters.
        level: LogLevel,
        /// The line.
        line: String,
    },
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<H> {
    /// What it is.
    pub head: H,
    /// Parameters or a result; may be empty.
    pub body: Vec<u8>,
}

fn bad(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Encodes a frame.
///
/// # Errors
///
/// `InvalidData` if it would be longer than [`FRAME_BYTES_MAX`].
pub fn encode<H: Serialize>(head: &H, body: &[u8]) -> io::Result<Vec<u8>> {
    let head = serde_json::to_vec(head).map_err(io::Error::from)?;
    let total = head.len().saturating_add(body.len());
    if total > FRAME_BYTES_MAX {
        return Err(bad(format!(
            "frame of {total} bytes, the limit is {FRAME_BYTES_MAX}"
        )));
    }
    let len = |part: &[u8]| u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes();
    Ok([&len(&head), &len(body), head.as_slice(), body].concat())
}

/// Reads a frame's two lengths: of its head and of its body.
///
/// # Errors
///
/// `InvalidData` if they are over [`FRAME_BYTES_MAX`].
pub fn lengths(prefix: [u8; PREFIX_BYTES]) -> io::Result<(usize, usize)> {
    let (head, body) = prefix.split_at(PREFIX_BYTES / 2);
    let len = |part: &[u8]| part.try_into().map_or(u32::MAX, u32::from_le_bytes) as usize;
    let (head, body) = (len(head), len(body));
    let total = head.saturating_add(body);
    if total > FRAME_BYTES_MAX {
        return Err(bad(format!(
            "frame of {total} bytes, the limit is {FRAME_BYTES_MAX}"
        )));
    }
    Ok((head, body))
}

/// Decodes what follows the lengths.
///
/// # Errors
///
/// `InvalidData` if the head is not what it should be.
pub fn decode<H: DeserializeOwned>(mut bytes: Vec<u8>, head_len: usize) -> io::Result<Frame<H>> {
    if head_len > bytes.len() {
        return Err(bad("frame ends inside its head".to_owned()));
    }
    let body = bytes.split_off(head_len);
    let head = serde_json::from_slice(&bytes).map_err(|error| bad(format!("head: {error}")))?;
    Ok(Frame { head, body })
}

/// Reads one frame; `None` where the stream ends between two.
///
/// # Errors
///
/// Of the stream, and `InvalidData`.
pub fn read_frame<H: DeserializeOwned>(stream: &mut impl Read) -> io::Result<Option<Frame<H>>> {
    let mut prefix = [0; PREFIX_BYTES];
    match stream.read_exact(&mut prefix) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    read_rest(stream, prefix).map(Some)
}

/// Reads what follows a prefix.
///
/// # Errors
///
/// Of the stream, and `InvalidData`.
pub fn read_rest<H: DeserializeOwned>(
    stream: &mut impl Read,
    prefix: [u8; PREFIX_BYTES],
) -> io::Result<Frame<H>> {
    let (head, body) = lengths(prefix)?;
    let mut bytes = vec![0; head + body];
    stream.read_exact(&mut bytes)?;
    decode(bytes, head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_out_as_it_went_in() {
        let head = FromProcess::Done { id: 7 };
        let bytes = encode(&head, b"{\"Ok\":null}").unwrap();
        let frame = read_frame::<FromProcess>(&mut bytes.as_slice())
            .unwrap()
            .unwrap();
        assert_eq!(
            frame,
            Frame {
                head,
                body: b"{\"Ok\":null}".to_vec()
            }
        );
    }

    #[test]
    fn a_stream_may_end_between_frames_and_nowhere_else() {
        let bytes = encode(&FromProcess::Done { id: 7 }, b"xyz").unwrap();
        assert_eq!(read_frame::<FromProcess>(&mut [].as_slice()).unwrap(), None);
        for len in PREFIX_BYTES..bytes.len() {
            let cut = read_frame::<FromProcess>(&mut &bytes[..len]);
            assert_eq!(
                cut.unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof,
                "{len}"
            );
        }
    }

    #[test]
    fn lengths_over_the_limit_are_refused_before_memory_is_taken() {
        for (head, body) in [
            (u32::MAX, 0),
            (0, u32::MAX),
            (u32::MAX, u32::MAX),
            (1, 16 << 20),
        ] {
            let prefix = [head.to_le_bytes(), body.to_le_bytes()]
                .concat()
                .try_into()
                .unwrap();
            assert_eq!(
                lengths(prefix).unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
        assert!(encode(&FromProcess::Done { id: 1 }, &vec![0; FRAME_BYTES_MAX]).is_err());
    }

    #[test]
    fn a_head_that_is_something_else_is_refused() {
        let bytes = encode(&"hello", b"").unwrap();
        let error = read_frame::<FromProcess>(&mut bytes.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}

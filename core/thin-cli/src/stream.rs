//! Messages on a connection: greeting, frames, blobs. Every length is checked before it is believed.

use crate::codec::{decode, encode};
use crate::{Blob, Message, ProtocolError, VERSION};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of one frame. The largest ones are the lists that `--minimal` prints in one piece.
pub const FRAME_BYTES_MAX: u32 = 16 << 20;

/// Bytes of what a client sends after `Load` and `Prompt`, all chunks together.
pub const BLOB_BYTES_MAX: u64 = 4 << 20;

const MAGIC: &[u8; 27] = b"XenSource thin CLI protocol";

/// The version a peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// Changes when peers stop to understand each other.
    pub major: u32,
    /// Changes when messages are added. 2 has `Wait`.
    pub minor: u32,
}

/// Sends our version.
///
/// # Errors
/// `Connection`.
pub async fn write_greeting(out: &mut (impl AsyncWrite + Unpin)) -> Result<(), ProtocolError> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.major.to_le_bytes());
    bytes.extend(VERSION.minor.to_le_bytes());
    out.write_all(&bytes).await?;
    out.flush().await?;
    Ok(())
}

/// Reads the peer's version.
///
/// # Errors
/// `NoGreeting` with the bytes that came instead, as soon as one differs; `Version`; `Connection`.
pub async fn read_greeting(
    input: &mut (impl AsyncRead + Unpin),
) -> Result<Greeting, ProtocolError> {
    let mut seen = Vec::with_capacity(MAGIC.len());
    for expected in MAGIC {
        let byte = input.read_u8().await?;
        seen.push(byte);
        if byte != *expected {
            return Err(ProtocolError::NoGreeting(seen));
        }
    }
    let greeting = Greeting {
        major: input.read_u32_le().await?,
        minor: input.read_u32_le().await?,
    };
    if greeting.major != VERSION.major {
        return Err(ProtocolError::Version(greeting));
    }
    Ok(greeting)
}

/// Sends a message.
///
/// # Errors
/// `TooLong`, `Connection`.
///
/// # Cancel safety
/// None: a dropped call may have sent half a frame.
pub async fn write_message(
    out: &mut (impl AsyncWrite + Unpin),
    message: impl Into<Message>,
) -> Result<(), ProtocolError> {
    let payload = encode(&message.into());
    let length = checked("frame", payload.len() as u64, u64::from(FRAME_BYTES_MAX))?;
    out.write_u32_le(length).await?;
    out.write_all(&payload).await?;
    out.flush().await?;
    Ok(())
}

/// Reads a message. `max` bounds the frame below [`FRAME_BYTES_MAX`] where less is expected.
///
/// # Errors
/// `TooLong`, `Malformed`, `Connection`.
///
/// # Cancel safety
/// None: a dropped call may have read half a frame.
pub async fn read_message(
    input: &mut (impl AsyncRead + Unpin),
    max: u32,
) -> Result<Message, ProtocolError> {
    let length = input.read_u32_le().await?;
    let max = u64::from(max.min(FRAME_BYTES_MAX));
    let length = u64::from(checked("frame", u64::from(length), max)?);
    // The buffer grows with what arrives, not with what was announced.
    let mut payload = Vec::new();
    input.take(length).read_to_end(&mut payload).await?;
    if (payload.len() as u64) < length {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    decode(&payload)
}

/// Sends `bytes` as chunks and ends them.
///
/// # Errors
/// `Connection`.
pub async fn write_blob(
    out: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
) -> Result<(), ProtocolError> {
    for chunk in bytes.chunks(1 << 20) {
        let length = checked("chunk", chunk.len() as u64, u64::from(FRAME_BYTES_MAX))?;
        write_message(out, Blob::Chunk(length)).await?;
        out.write_all(chunk).await?;
    }
    write_message(out, Blob::End).await
}

/// Reads chunks up to their end, at most [`BLOB_BYTES_MAX`] together.
///
/// # Errors
/// `TooLong`, `Unexpected`, `Malformed`, `Connection`.
pub async fn read_blob(input: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, ProtocolError> {
    let mut bytes = Vec::new();
    loop {
        match read_message(input, 64).await? {
            Message::Blob(Blob::End) => return Ok(bytes),
            Message::Blob(Blob::Chunk(length)) => {
                let total = bytes.len() as u64 + u64::from(length);
                checked("blob", total, BLOB_BYTES_MAX)?;
                let mut part = (&mut *input).take(u64::from(length));
                part.read_to_end(&mut bytes).await?;
                if (bytes.len() as u64) < total {
                    return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
                }
            }
            other => return Err(ProtocolError::Unexpected(Box::new(other))),
        }
    }
}

fn checked(what: &'static str, bytes: u64, max: u64) -> Result<u32, ProtocolError> {
    let fits = u32::try_from(bytes).ok().filter(|_| bytes <= max);
    fits.ok_or(ProtocolError::TooLong { what, bytes, max })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, Response};

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn greetings_messages_and_blobs_arrive_as_sent() {
        block_on(async {
            let (mut server, mut client) = tokio::io::duplex(1 << 16);
            write_greeting(&mut server).await.unwrap();
            assert_eq!(read_greeting(&mut client).await.unwrap(), VERSION);
            write_message(&mut server, Command::Load("f".into()))
                .await
                .unwrap();
            let got = read_message(&mut client, FRAME_BYTES_MAX).await.unwrap();
            assert_eq!(got, Command::Load("f".into()).into());
            write_message(&mut client, Response::Ok).await.unwrap();
            write_blob(&mut client, b"contents").await.unwrap();
            assert_eq!(
                read_message(&mut server, 64).await.unwrap(),
                Response::Ok.into()
            );
            assert_eq!(read_blob(&mut server).await.unwrap(), b"contents");
        });
    }

    #[test]
    fn the_greeting_is_refused_at_its_first_wrong_byte() {
        block_on(async {
            let refused = read_greeting(&mut &b"HTTP/1.1 500"[..]).await.unwrap_err();
            assert!(matches!(refused, ProtocolError::NoGreeting(seen) if seen == b"H"));
            let newer = [&MAGIC[..], &1u32.to_le_bytes(), &0u32.to_le_bytes()].concat();
            let refused = read_greeting(&mut &newer[..]).await.unwrap_err();
            assert_eq!(
                refused.to_string(),
                "protocol version mismatch: peer has 1.0, we have 0.2"
            );
        });
    }

    #[test]
    fn lengths_are_not_believed() {
        block_on(async {
            let frame = u32::MAX.to_le_bytes();
            let refused = read_message(&mut &frame[..], FRAME_BYTES_MAX)
                .await
                .unwrap_err();
            assert!(
                matches!(refused, ProtocolError::TooLong { what: "frame", .. }),
                "{refused}"
            );
            let short = [&8u32.to_le_bytes()[..], b"\x0a\0\0\0"].concat();
            let refused = read_message(&mut &short[..], 64).await.unwrap_err();
            assert!(matches!(refused, ProtocolError::Connection(_)), "{refused}");
            let mut blob = Vec::new();
            write_message(&mut blob, Blob::Chunk(u32::MAX))
                .await
                .unwrap();
            let refused = read_blob(&mut &blob[..]).await.unwrap_err();
            assert!(
                matches!(refused, ProtocolError::TooLong { what: "blob", .. }),
                "{refused}"
            );
            let mut other = Vec::new();
            write_message(&mut other, Response::Ok).await.unwrap();
            let refused = read_blob(&mut &other[..]).await.unwrap_err();
            assert!(matches!(refused, ProtocolError::Unexpected(_)), "{refused}");
        });
    }
}

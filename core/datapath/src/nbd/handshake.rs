//! From a fresh connection to the transmission phase.

use super::client::Info;
use super::wire::{self, OPTION_REPLY_HEADER_BYTES};
use super::{Error, ErrorKind, REQUEST_BYTES_MAX};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest option reply accepted; descriptions and names are far shorter.
const REPLY_BYTES_MAX: usize = 64 << 10;

/// Most replies to one option.
const REPLIES_MAX: usize = 64;

/// What the handshake settled.
pub(super) struct Agreed {
    pub(super) info: Info,
    /// How replies look.
    pub(super) replies: Replies,
}

/// How replies look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Replies {
    /// Headers have 64 bits of length and all replies are chunks.
    pub(super) extended: bool,
    /// Number of the `base:allocation` context, when the server has it.
    pub(super) allocation: Option<u32>,
}

/// Greets, asks for extended headers or else for structured replies, and `base:allocation`, and enters the export.
pub(super) async fn handshake(socket: &mut UnixStream, export: &str) -> Result<Agreed, Error> {
    if export.len() > wire::STRING_BYTES_MAX {
        let message = format!("export name of {} bytes, at most 4096", export.len());
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let greeting = socket.read_u64().await.map_err(lost)?;
    let style = socket.read_u64().await.map_err(lost)?;
    let flags = socket.read_u16().await.map_err(lost)?;
    if greeting != wire::GREETING_MAGIC || style != wire::OPTION_MAGIC {
        return Err(protocol(format!(
            "greeting {greeting:#x} {style:#x} is not NBD newstyle"
        )));
    }
    if flags & wire::FLAG_FIXED_NEWSTYLE == 0 {
        return Err(protocol(format!(
            "server flags {flags:#x} lack fixed newstyle"
        )));
    }
    let ours = flags & (wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES);
    socket.write_u32(u32::from(ours)).await.map_err(lost)?;

    let extended = accepts(socket, wire::OPT_EXTENDED_HEADERS).await?;
    let structured = extended || accepts(socket, wire::OPT_STRUCTURED_REPLY).await?;
    let allocation = if structured {
        allocation_context(socket, export).await?
    } else {
        None
    };
    let mut info = enter(socket, export).await?;
    info.structured = structured;
    info.block_status = allocation.is_some();
    info.extended = extended;
    let replies = Replies {
        extended,
        allocation,
    };
    Ok(Agreed { info, replies })
}

/// Whether the server does what an option without data asks for.
async fn accepts(socket: &mut UnixStream, option: u32) -> Result<bool, Error> {
    Ok(negotiate(socket, option, &[]).await?.is_ok())
}

async fn allocation_context(socket: &mut UnixStream, export: &str) -> Result<Option<u32>, Error> {
    let mut data = string(export);
    data.extend(1_u32.to_be_bytes());
    data.extend(string(wire::BASE_ALLOCATION));
    let replies = negotiate(socket, wire::OPT_SET_META_CONTEXT, &data)
        .await?
        .unwrap_or_default();
    for (kind, body) in replies {
        if kind == wire::REP_META_CONTEXT
            && let Some((id, name)) = body.split_first_chunk::<4>()
            && name == wire::BASE_ALLOCATION.as_bytes()
        {
            return Ok(Some(u32::from_be_bytes(*id)));
        }
    }
    Ok(None)
}

async fn enter(socket: &mut UnixStream, export: &str) -> Result<Info, Error> {
    let mut data = string(export);
    data.extend(1_u16.to_be_bytes());
    data.extend(wire::INFO_BLOCK_SIZE.to_be_bytes());
    let replies = match negotiate(socket, wire::OPT_GO, &data).await? {
        Ok(replies) => replies,
        Err((wire::REP_ERR_UNKNOWN, why)) => {
            return Err(Error::new(
                ErrorKind::NoExport,
                format!("no export {export:?}: {why}"),
            ));
        }
        Err((code, why)) => {
            return Err(protocol(format!(
                "export {export:?} refused with {code:#x}: {why}"
            )));
        }
    };
    let mut info = None;
    let mut sizes = (1, REQUEST_BYTES_MAX);
    for (kind, body) in replies.iter().filter(|(kind, _)| *kind == wire::REP_INFO) {
        let _ = kind;
        let Some((what, rest)) = body.split_first_chunk::<2>() else {
            return Err(protocol("information without a type"));
        };
        match u16::from_be_bytes(*what) {
            wire::INFO_EXPORT => info = Some(export_info(rest)?),
            wire::INFO_BLOCK_SIZE => sizes = block_sizes(rest)?,
            _ => {}
        }
    }
    let mut info = info.ok_or_else(|| protocol("server entered the export without its size"))?;
    (info.minimum_bytes, info.request_bytes_max) = sizes;
    Ok(info)
}

fn export_info(body: &[u8]) -> Result<Info, Error> {
    let Some((size, flags)) = body.split_first_chunk::<8>() else {
        return Err(protocol("size information is cut off"));
    };
    let flags: [u8; 2] = flags
        .try_into()
        .map_err(|_| protocol("size information is cut off"))?;
    Ok(Info::new(
        u64::from_be_bytes(*size),
        u16::from_be_bytes(flags),
    ))
}

/// Smallest and largest request; the preferred size between them is of no use here.
fn block_sizes(body: &[u8]) -> Result<(u32, u32), Error> {
    let body: [u8; 12] = body
        .try_into()
        .map_err(|_| protocol("block sizes are cut off"))?;
    let [a, b, c, d, .., w, x, y, z] = body;
    let minimum = u32::from_be_bytes([a, b, c, d]);
    let maximum = u32::from_be_bytes([w, x, y, z]);
    if !minimum.is_power_of_two() || minimum > 64 << 10 || maximum < minimum {
        return Err(protocol(format!(
            "block sizes {minimum} to {maximum} make no sense"
        )));
    }
    Ok((minimum, maximum.min(REQUEST_BYTES_MAX)))
}

type OptionReplies = Vec<(u32, Vec<u8>)>;

/// Sends an option and takes its replies up to the ACK, or the error that ended it.
async fn negotiate(
    socket: &mut UnixStream,
    option: u32,
    data: &[u8],
) -> Result<Result<OptionReplies, (u32, String)>, Error> {
    let length = u32::try_from(data.len()).map_err(|_| protocol("option too long"))?;
    let mut message = wire::OPTION_MAGIC.to_be_bytes().to_vec();
    message.extend(option.to_be_bytes());
    message.extend(length.to_be_bytes());
    message.extend(data);
    socket.write_all(&message).await.map_err(lost)?;
    let mut replies = Vec::new();
    loop {
        let (kind, body) = option_reply(socket, option).await?;
        if kind == wire::REP_ACK {
            return Ok(Ok(replies));
        }
        if kind & wire::REP_ERROR != 0 {
            return Ok(Err((kind, String::from_utf8_lossy(&body).into_owned())));
        }
        if replies.len() == REPLIES_MAX {
            return Err(protocol(format!(
                "more than {REPLIES_MAX} replies to option {option}"
            )));
        }
        replies.push((kind, body));
    }
}

async fn option_reply(socket: &mut UnixStream, option: u32) -> Result<(u32, Vec<u8>), Error> {
    let mut header = [0; OPTION_REPLY_HEADER_BYTES];
    socket.read_exact(&mut header).await.map_err(lost)?;
    let mut fields = &header[..];
    let magic = fields.read_u64().await.map_err(lost)?;
    let echoed = fields.read_u32().await.map_err(lost)?;
    let kind = fields.read_u32().await.map_err(lost)?;
    let length = fields.read_u32().await.map_err(lost)? as usize;
    if magic != wire::OPTION_REPLY_MAGIC || echoed != option || length > REPLY_BYTES_MAX {
        return Err(protocol(format!(
            "reply to option {option}: magic {magic:#x}, option {echoed}, {length} bytes"
        )));
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await.map_err(lost)?;
    Ok((kind, body))
}

fn string(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("texts sent here are at most 4096 bytes");
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

fn protocol(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Protocol, message)
}

fn lost(e: std::io::Error) -> Error {
    Error::new(
        ErrorKind::Gone,
        format!("connection lost while greeting: {e}"),
    )
}

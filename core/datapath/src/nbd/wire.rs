//! Numbers of the NBD protocol. All integers travel big-endian.
//!
//! # Source
//! The NBD protocol specification, `doc/proto.md` of the NetworkBlockDevice project; extended
//! headers as its branch `extension-ext-header` has them, which QEMU and libnbd speak.

/// First eight bytes a server sends: `NBDMAGIC`.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of a newstyle server, and of every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of an option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of a structured reply chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Start of a request with an extended header.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Start of a reply chunk with an extended header.
pub const EXTENDED_CHUNK_MAGIC: u32 = 0x6e8a_278c;

/// Bytes of an option's header: magic, option, length.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Bytes of an option reply's header: magic, option, type, length.
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;
/// Bytes of a request: magic, flags, type, cookie, offset, length.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply: magic, error, cookie.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a chunk's header: magic, flags, type, cookie, length.
pub const CHUNK_HEADER_BYTES: usize = 20;
/// Bytes of an extended request: magic, flags, type, cookie, offset, length of 64 bits.
pub const EXTENDED_REQUEST_BYTES: usize = 32;
/// Bytes of an extended chunk's header: magic, flags, type, cookie, the request's offset, length of
/// 64 bits.
pub const EXTENDED_CHUNK_HEADER_BYTES: usize = 32;
/// Longest string the specification allows.
pub const STRING_BYTES_MAX: usize = 4096;

/// Server flag: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Server flag: no 124 zeroes after `EXPORT_NAME`. The client's flags have the same bits.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Option: choose an export and begin, without an error path.
pub const OPT_EXPORT_NAME: u32 = 1;
/// Option: end the session.
pub const OPT_ABORT: u32 = 2;
/// Option: name the exports.
pub const OPT_LIST: u32 = 3;
/// Option: go on under TLS.
pub const OPT_STARTTLS: u32 = 5;
/// Option: describe an export.
pub const OPT_INFO: u32 = 6;
/// Option: choose an export and begin.
pub const OPT_GO: u32 = 7;
/// Option: use structured replies.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// Option: name the metadata contexts.
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// Option: choose metadata contexts.
pub const OPT_SET_META_CONTEXT: u32 = 10;
/// Option: use extended headers, which implies replies in chunks.
pub const OPT_EXTENDED_HEADERS: u32 = 11;

/// Option reply: done.
pub const REP_ACK: u32 = 1;
/// Option reply: one export's name.
pub const REP_SERVER: u32 = 2;
/// Option reply: a piece of an export's description.
pub const REP_INFO: u32 = 3;
/// Option reply: one metadata context.
pub const REP_META_CONTEXT: u32 = 4;
/// Set in every option reply that is an error.
pub const REP_ERROR: u32 = 1 << 31;
/// Option error: the server does not know the option.
pub const REP_ERR_UNSUP: u32 = REP_ERROR | 1;
/// Option error: this server does not want it.
pub const REP_ERR_POLICY: u32 = REP_ERROR | 2;
/// Option error: the option's content makes no sense.
pub const REP_ERR_INVALID: u32 = REP_ERROR | 3;
/// Option error: TLS comes first.
pub const REP_ERR_TLS_REQD: u32 = REP_ERROR | 5;
/// Option error: no such export.
pub const REP_ERR_UNKNOWN: u32 = REP_ERROR | 6;
/// Option error: too much was asked for.
pub const REP_ERR_TOO_BIG: u32 = REP_ERROR | 9;
/// Option error: extended headers were chosen and stay.
pub const REP_ERR_EXT_HEADER_REQD: u32 = REP_ERROR | 10;

/// Information type: size and transmission flags.
pub const INFO_EXPORT: u16 = 0;
/// Information type: the export's name.
pub const INFO_NAME: u16 = 1;
/// Information type: block sizes.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flag: the others mean something.
pub const EXPORT_HAS_FLAGS: u16 = 1 << 0;
/// Transmission flag: writes are refused.
pub const EXPORT_READ_ONLY: u16 = 1 << 1;
/// Transmission flag: `CMD_FLUSH` works.
pub const EXPORT_SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: `CMD_FLAG_FUA` works.
pub const EXPORT_SEND_FUA: u16 = 1 << 3;
/// Transmission flag: `CMD_TRIM` works.
pub const EXPORT_SEND_TRIM: u16 = 1 << 5;
/// Transmission flag: `CMD_WRITE_ZEROES` works.
pub const EXPORT_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// Transmission flag: `CMD_FLAG_DF` works.
pub const EXPORT_SEND_DF: u16 = 1 << 7;
/// Transmission flag: a flush on one connection covers the writes of all.
pub const EXPORT_CAN_MULTI_CONN: u16 = 1 << 8;
/// Transmission flag: `CMD_CACHE` is known.
pub const EXPORT_SEND_CACHE: u16 = 1 << 10;
/// Transmission flag: `CMD_FLAG_FAST_ZERO` works.
pub const EXPORT_SEND_FAST_ZERO: u16 = 1 << 11;

/// Command: read.
pub const CMD_READ: u16 = 0;
/// Command: write.
pub const CMD_WRITE: u16 = 1;
/// Command: end the session.
pub const CMD_DISC: u16 = 2;
/// Command: make finished writes durable.
pub const CMD_FLUSH: u16 = 3;
/// Command: the range's content is of no more use.
pub const CMD_TRIM: u16 = 4;
/// Command: read ahead.
pub const CMD_CACHE: u16 = 5;
/// Command: make a range read as zeroes.
pub const CMD_WRITE_ZEROES: u16 = 6;
/// Command: describe a range.
pub const CMD_BLOCK_STATUS: u16 = 7;

/// Command flag: durable before the reply.
pub const CMD_FLAG_FUA: u16 = 1 << 0;
/// Command flag: zeroes must be allocated.
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// Command flag: a read's data in one chunk.
pub const CMD_FLAG_DF: u16 = 1 << 2;
/// Command flag: one extent is enough.
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
/// Command flag: fail rather than write zeroes slowly.
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;
/// Command flag, extended headers only: the length is that of a payload.
pub const CMD_FLAG_PAYLOAD_LEN: u16 = 1 << 5;

/// Chunk flag: the last of its reply.
pub const CHUNK_DONE: u16 = 1 << 0;
/// Chunk: nothing but its flags.
pub const CHUNK_NONE: u16 = 0;
/// Chunk: offset and data.
pub const CHUNK_OFFSET_DATA: u16 = 1;
/// Chunk: offset and length of zeroes.
pub const CHUNK_OFFSET_HOLE: u16 = 2;
/// Chunk: context id and extents.
pub const CHUNK_BLOCK_STATUS: u16 = 5;
/// Chunk, extended headers only: context id, number of extents (or 0) and extents of 64 bits.
pub const CHUNK_BLOCK_STATUS_EXT: u16 = 6;
/// Set in every chunk type that is an error.
pub const CHUNK_ERROR_BIT: u16 = 1 << 15;
/// Chunk: error and message.
pub const CHUNK_ERROR: u16 = CHUNK_ERROR_BIT | 1;

/// The metadata context this side speaks.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// `base:allocation`: not allocated.
pub const STATE_HOLE: u32 = 1 << 0;
/// `base:allocation`: reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;

/// Error: operation not permitted.
pub const EPERM: u32 = 1;
/// Error: input/output error.
pub const EIO: u32 = 5;
/// Error: out of memory.
pub const ENOMEM: u32 = 12;
/// Error: invalid argument.
pub const EINVAL: u32 = 22;
/// Error: no space left.
pub const ENOSPC: u32 = 28;
/// Error: reply would be too large for one chunk.
pub const EOVERFLOW: u32 = 75;
/// Error: not supported (also: not fast).
pub const ENOTSUP: u32 = 95;
/// Error: the server is shutting down.
pub const ESHUTDOWN: u32 = 108;

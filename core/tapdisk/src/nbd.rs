//! The NBD server as a state machine: bytes in, jobs out; answers in, bytes out.
//!
//! It has no socket, no clock and no disk, so that tests and fuzzers drive it byte by byte. One
//! [`Session`] is one connection; the process moves its bytes and lets the engine do its jobs.
//!
//! ```text
//!  greeting ─> client flags ─> option <──┐  LIST, INFO, STRUCTURED_REPLY, EXTENDED_HEADERS,
//!                                │  └────┘  *_META_CONTEXT, unknown
//!                                ├─ GO, EXPORT_NAME ─> request <─┐
//!                                │                      │  │     │
//!                                │                      │  ├─ payload ── job
//!                                │                      │  └─ discard ── error reply
//!                                └─ ABORT ──> ending <──┴─ DISC, violation, end of stream
//! ```
//!
//! * What cannot be understood any more (a wrong magic, an option over the limits) ends the session;
//!   what can be understood and is wrong gets its error reply, with its payload taken off the
//!   stream first, so no error puts the stream out of step.
//! * A request counts from its header until the last byte of its reply is sent. Over
//!   [`IN_FLIGHT_MAX`] requests or [`IN_FLIGHT_BYTES_MAX`] bytes the session takes no more input.
//! * Trims and write-zeroes of more than 1 GiB become one job after another: with extended headers a
//!   request may be about 2^63 bytes, and nobody else waits for that.
//! * Handshake timeouts and the limit on connections are the process's.
//!
//! What is served of `doc/proto.md` (see [`datapath::nbd::wire`] for the document):
//!
//! | part | served as |
//! |---|---|
//! | oldstyle | no |
//! | newstyle, not fixed | `EXPORT_NAME` and nothing else; any other option closes |
//! | `OPT_EXPORT_NAME` | the export and the default name; closes on others and after `EXTENDED_HEADERS` |
//! | `OPT_ABORT`, `OPT_LIST` | yes, one export |
//! | `OPT_STARTTLS` | where the export has it: TLS 1.2 and 1.3, X.509; where it is required all other options are `ERR_TLS_REQD` before, but `ABORT` |
//! | `OPT_INFO`, `OPT_GO` | `INFO_EXPORT` and `INFO_BLOCK_SIZE` (512, 4096, 32 MiB) always, `INFO_NAME` when asked; there is no description |
//! | `OPT_STRUCTURED_REPLY` | yes; `ERR_EXT_HEADER_REQD` after `EXTENDED_HEADERS` |
//! | `OPT_EXTENDED_HEADERS` | yes: 64 bits of length, `BLOCK_STATUS_EXT`, every reply a chunk |
//! | `OPT_LIST_META_CONTEXT`, `OPT_SET_META_CONTEXT` | `base:allocation`; `base:` lists it; the last choice counts, a failed one too |
//! | `OPT_PEEK_EXPORT`, others | `ERR_UNSUP` |
//! | limits | option 16 KiB, name and query 4096 bytes, 128 queries or requests, 64 options: `ERR_TOO_BIG` |
//! | `CMD_READ` | up to 32 MiB; in chunks, 32 KiB and more of zeroes as holes; in one chunk with `DF` |
//! | `CMD_WRITE` | up to 32 MiB; with extended headers only with `PAYLOAD_LEN` |
//! | `CMD_FLUSH`, `FLAG_FUA` | for all connections (`CAN_MULTI_CONN`) |
//! | `CMD_TRIM` | of any length |
//! | `CMD_WRITE_ZEROES` | of any length; `NO_HOLE` writes zeroes; `FAST_ZERO` is `ENOTSUP` at once, and nothing changed, where any would be written |
//! | `CMD_BLOCK_STATUS` | looks at 64 GiB and answers 4096 runs at most; `REQ_ONE`; no payload form (`BLOCK_STATUS_PAYLOAD`) |
//! | `CMD_CACHE` | reads up to 32 MiB and drops the data, which brings the map and the page cache |
//! | `CMD_DISC` | answers what is in flight, then closes |
//! | `CMD_RESIZE`, others | `EINVAL`; their payload, if the header has one, is taken |
//! | a payload over 32 MiB | `EINVAL` after it is taken; with extended headers the session ends |
//! | read-only exports | `EPERM` for what writes; trim and zeroes are not offered |
//! | off the 512 byte grid, empty, past the end | `EINVAL`; `ENOSPC` past the end for writes and zeroes |

mod handshake;
mod reply;
mod request;
mod secured;
mod session;
mod tls;

pub use request::REQUEST_BYTES_MAX;
pub use secured::Session;
pub use session::{IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX};
pub use tls::Tls;

/// What a session serves.
#[derive(Debug, Clone)]
pub struct Export {
    /// The only name answered to, besides the empty one.
    pub name: String,
    /// Size of the disk.
    pub size_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Without it `STARTTLS` is refused.
    pub tls: Option<Tls>,
}

#[cfg(test)]
mod tests;

//! Control protocol of the data-path process and its client. Contains no image parser.
//!
//! `xylemd` decides, `xylem-tapdisk` moves bytes; this crate is what they say to each other. It
//! exists so that the daemon can drive the data path without linking the code that parses images.
//!
//! ```text
//! frame     u32 little-endian length, then that many bytes of JSON (at most 1 MiB)
//! request   {"id": n, "request_id": "R:...", "op": "...", ...}   descriptors ride on its first byte
//! reply     {"id": n, "ok": ...} or {"id": n, "error": {kind, message}}
//! ```

#![forbid(unsafe_code)]

pub mod protocol;

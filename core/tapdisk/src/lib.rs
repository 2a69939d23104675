//! The data path: chain map, request engine, NBD front end; the binary xylem-tapdisk.

#![forbid(unsafe_code)]

pub mod engine;
pub mod nbd;

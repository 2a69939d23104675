//! Generated from `wit/v0` by `tools/wit-codegen`, one module per world. Not for authors.
#![allow(
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::undocumented_unsafe_blocks,
    clippy::unwrap_used,
    reason = "wit-bindgen's style, not ours"
)]

#[rustfmt::skip]
pub mod host_services;
#[rustfmt::skip]
pub mod monitor_plugin;
#[rustfmt::skip]
pub mod storage_plugin;

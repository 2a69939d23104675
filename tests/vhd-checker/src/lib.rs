//! An independent checker and a naive reader of VHD files: the oracles of other crates' tests.
//!
//! Written from the description of the format alone. It shares no code, no types and on purpose no
//! style with `vhd-rs`: fields are looked up by offset in a byte array, regions are kept in a map,
//! content is read one sector at a time with nothing remembered between two sectors. It is slow
//! and meant to be obviously right. It makes no attempt to be safe against hostile files beyond
//! not panicking.

#![forbid(unsafe_code)]

mod check;
mod flat;
mod geometry;
mod locators;
mod raw;

pub use check::{Place, Problem, Report, Strictness, check, check_in, check_link};
pub use flat::{Flat, read_flat};

//! Rules of the tree that are tests: who may import whom, which licences come in, how files look.
//! The rules are in `tests/`; this crate has no code of its own.

#![forbid(unsafe_code)]

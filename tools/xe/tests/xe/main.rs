//! The program `xe` against a server that says what a test wants: what it prints, which files it
//! touches, how it exits.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod completion;
mod reach;
mod server;
mod talk;

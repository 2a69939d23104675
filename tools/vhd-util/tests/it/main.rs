//! Tests of the tools: the programs as scripts use them, with other programs as witnesses.

mod checks;
mod commands;
mod content;
mod scans;
mod support;

//! Tests of the tools: the programs as scripts use them, with other programs as witnesses.

mod checks;
mod commands;
mod content;
mod groups;
mod journals;
mod keys;
mod logs;
mod power;
mod resizes;
mod scans;
mod support;
mod volumes;

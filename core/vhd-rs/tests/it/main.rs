//! Tests of the format: golden bytes, hostile images, models, other programs as witnesses.

mod chains;
mod crashes;
mod edits;
mod golden;
mod hostile;
mod model;
mod qemu;
mod support;

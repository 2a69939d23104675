//! `set`: single bytes that belong to the tool stack.

use crate::{Disk, Result};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use vhd_rs::Access;

/// Sets a byte of the tool stack's
#[derive(Debug, Args)]
pub(super) struct Set {
    /// File or device
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// Which one
    #[arg(short = 'f', value_name = "FIELD")]
    field: Field,
    /// Its new value
    #[arg(short = 'v', value_name = "0..255")]
    value: u8,
}

/// The bytes that can be set.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Field {
    /// Marks inner nodes of a tree.
    Hidden,
    /// Of no meaning to the format.
    Marker,
}

impl Set {
    pub(super) fn run(&self) -> Result<()> {
        let mut disk = Disk::open(&self.name, Access::ReadWrite)?;
        disk.change(|image| match self.field {
            Field::Hidden => image.hidden_plan(self.value),
            Field::Marker => image.marker_plan(self.value),
        })
    }
}

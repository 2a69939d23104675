//! `resize`: another virtual size.

use super::mib;
use crate::{Disk, Result};
use clap::Args;
use std::path::PathBuf;
use vhd_rs::Access;

/// Changes the virtual size
#[derive(Debug, Args)]
pub(super) struct Resize {
    /// File or device
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// New virtual size in MiB, rounded up to 2 MiB
    #[arg(short = 's', value_name = "MIB")]
    size_mib: u64,
    /// Grow within what the metadata was laid out for
    #[arg(short = 'f', required = true)]
    fast: bool,
}

impl Resize {
    pub(super) fn run(&self) -> Result<()> {
        let mut disk = Disk::open(&self.name, Access::ReadWrite)?;
        disk.change(|image| image.resize_plan(mib(self.size_mib)))
    }
}

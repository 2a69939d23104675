//! `repair`: both footers anew from one that is good.

use crate::disk::ALLOW;
use crate::{Disk, Result};
use clap::Args;
use std::path::PathBuf;
use uuid::Uuid;
use vhd_rs::{Access, Allow};

/// Writes both footers of an image anew
#[derive(Debug, Args)]
pub(super) struct Repair {
    /// File or device
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// Go by the footer's copy at the beginning, even if the one at the end is good
    #[arg(short = 'b')]
    from_copy: bool,
}

impl Repair {
    pub(super) fn run(&self) -> Result<()> {
        let allow = Allow {
            footer_copy: self.from_copy,
            ..ALLOW
        };
        let mut disk = Disk::open_with(&self.name, Access::ReadWrite, allow)?;
        disk.change(|image| image.repair_plan(Uuid::new_v4()))
    }
}

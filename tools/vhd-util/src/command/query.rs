//! `query`: single facts about an image, one per line.

use super::printing;
use crate::chain::Chain;
use crate::paths::find_parent;
use crate::{Disk, Error, Result};
use clap::Args;
use std::io::Write;
use std::path::PathBuf;
use vhd_rs::{Access, Allow};

/// Prints facts about an image, one line each, always in this order: v s p f m d a S
#[derive(Debug, Args)]
pub(super) struct Query {
    /// File or device
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// Virtual size in MiB
    #[arg(short = 'v')]
    virtual_size: bool,
    /// Bytes used: the end of data and a footer
    #[arg(short = 's')]
    physical_size: bool,
    /// Path of the parent
    #[arg(short = 'p')]
    parent: bool,
    /// Whether the image is hidden
    #[arg(short = 'f')]
    hidden: bool,
    /// The tool stack's marker
    #[arg(short = 'm')]
    marker: bool,
    /// Images in the chain
    #[arg(short = 'd')]
    depth: bool,
    /// Allocated blocks
    #[arg(short = 'a')]
    allocated: bool,
    /// Largest size in MiB that a fast resize reaches
    #[arg(short = 'S')]
    resize_max: bool,
    /// Print the parent's path as it is stored
    #[arg(short = 'u')]
    unresolved: bool,
}

/// Images are looked at in whatever state they are.
const ALLOW: Allow = Allow {
    encrypted: true,
    poisoned: true,
    footer_copy: false,
};

impl Query {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<()> {
        let disk = Disk::open_with(&self.name, Access::ReadOnly, ALLOW)?;
        let image = &disk.image;
        let mut line = |text: String| writeln!(out, "{text}").map_err(printing);
        if self.virtual_size {
            line((image.virtual_bytes() >> 20).to_string())?;
        }
        if self.physical_size {
            line(image.size_needed_bytes().to_string())?;
        }
        if self.parent {
            line(self.parent_line(&disk)?)?;
        }
        if self.hidden {
            line(format!("hidden: {}", image.footer().hidden))?;
        }
        if self.marker {
            let none = || Error::invalid(format!("{} has no marker", self.name.display()));
            line(format!("marker: {}", image.marker().ok_or_else(none)?))?;
        }
        if self.depth {
            let depth = Chain::open_with(&self.name, ALLOW)?.depth();
            line(format!("chain depth: {depth}"))?;
        }
        if self.allocated {
            line(image.allocated_blocks().to_string())?;
        }
        if self.resize_max {
            line((image.resize_max_bytes() >> 20).to_string())?;
        }
        Ok(())
    }

    fn parent_line(&self, disk: &Disk) -> Result<String> {
        if disk.image.parent_uuid().is_none() {
            return Ok(format!("{} has no parent", self.name.display()));
        }
        if !self.unresolved {
            let found = find_parent(&disk.path, &disk.image)?;
            return Ok(found.display().to_string());
        }
        let none = || Error::invalid(format!("{} has no readable locator", self.name.display()));
        disk.image.parent_path().ok_or_else(none)
    }
}

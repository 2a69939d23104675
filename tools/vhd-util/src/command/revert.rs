//! `revert`: an image whose resize was cut off, brought back by its journal.

use super::resize::remove_journal;
use crate::journal::{Named, revert};
use crate::{Error, Result, open_file};
use clap::Args;
use std::path::PathBuf;
use vhd_rs::Access;

/// Undoes a resize that was cut off, or finishes one that was all but done
#[derive(Debug, Args)]
pub(super) struct Revert {
    /// File or device
    #[arg(short = 'n', value_name = "NAME")]
    name: PathBuf,
    /// Its journal
    #[arg(short = 'j', value_name = "JOURNAL")]
    journal: PathBuf,
}

impl Revert {
    pub(super) fn run(&self) -> Result<()> {
        let (mut image, extent) = open_file(&self.name, Access::ReadWrite)?;
        let (mut journal, journal_extent) = open_file(&self.journal, Access::ReadWrite)?;
        let mut image = Named {
            name: "image",
            medium: &mut image,
        };
        let mut undo = Named {
            name: "journal",
            medium: &mut journal,
        };
        revert(&mut image, &mut undo, extent)
            .map_err(|failure| Error::from((self.name.as_path(), failure)))?;
        remove_journal(&self.journal, journal_extent)
    }
}

//! Plays the story with the release build and tells each step; see `cargo xtask demo`.

#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::Parser;
use e2e::host::Built;

/// The story, unattended.
#[derive(Parser)]
struct Args {
    /// Keep the host's directory
    #[arg(long)]
    keep: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let built = Built::beside_this_test()?;
    let dir = tempfile::Builder::new().prefix("xylem-demo-").tempdir()?;
    let result = e2e::scenario::play(&built, dir.path(), &mut |line| println!("{line}"));
    if args.keep || result.is_err() {
        println!("the host's directory is {}", dir.keep().display());
    }
    result.context("the demo did not work")?;
    println!("the demo worked");
    Ok(())
}

//! `cargo xtask test`: set-up, format, lints, and every test there is.

use crate::step::{cargo, run, say};
use crate::{build, setup};
use anyhow::Result;
use clap::Args;
use std::time::Instant;

/// What to leave out when only a part is wanted.
#[derive(Args)]
pub(crate) struct Options {
    /// Skip the format and lint checks
    #[arg(long)]
    no_lint: bool,
    /// Run only the tests whose name contains this text
    filter: Option<String>,
}

/// Passes every test or says which one failed.
pub(crate) fn test(options: &Options) -> Result<()> {
    let begun = Instant::now();
    setup::everything()?;
    if !options.no_lint {
        run(cargo(&["fmt", "--all", "--check"]))?;
        run(cargo(&[
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))?;
        build::bindings(true)?;
    }
    build::plugins()?;
    build::fixtures()?;
    // Tests of one crate start binaries of another, which cargo does not know: build everything
    // first, with the features that tests want, so that nothing is built twice.
    run(cargo(&[
        "build",
        "--locked",
        "--workspace",
        "--all-targets",
    ]))?;
    let mut args = vec!["test", "--locked", "--workspace", "--no-fail-fast"];
    if let Some(filter) = &options.filter {
        args.extend(["--", filter.as_str()]);
    }
    run(cargo(&args))?;
    say(&format!(
        "every test passed, {} s in all",
        begun.elapsed().as_secs()
    ));
    Ok(())
}

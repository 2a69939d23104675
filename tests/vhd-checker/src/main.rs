//! `vhd-check FILE...` prints what is wrong with images and exits with 1 if anything is;
//! `vhd-check --flatten OUT LEAF BASE...` writes a chain's content into a raw file.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use vhd_checker::{Place, Strictness, check_in, check_link, read_flat};

const USAGE: &str = "usage: vhd-check [--after-crash | --volume] FILE...
       vhd-check --chain LEAF BASE...
       vhd-check --flatten OUT LEAF BASE...";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("vhd-check: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything is sound.
fn run() -> Result<bool> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let Some((first, rest)) = args.split_first() else {
        bail!(USAGE)
    };
    match first.to_str() {
        Some("--flatten") => {
            let Some((out, chain)) = rest.split_first().filter(|(_, chain)| !chain.is_empty())
            else {
                bail!(USAGE)
            };
            let flat = read_flat(chain).context("cannot open the chain")?;
            flat.write_to(out)
                .with_context(|| format!("cannot flatten to {}", out.display()))?;
            Ok(true)
        }
        Some("--after-crash") => check_all(rest, Place::File, Strictness::AfterCrash),
        Some("--volume") => check_all(rest, Place::Volume, Strictness::Closed),
        Some("--chain") => {
            Ok(check_all(rest, Place::File, Strictness::Closed)? & check_links(rest)?)
        }
        Some(option) if option.starts_with('-') => bail!(USAGE),
        _ => check_all(&args, Place::File, Strictness::Closed),
    }
}

fn check_all(files: &[PathBuf], place: Place, strictness: Strictness) -> Result<bool> {
    let mut sound = !files.is_empty();
    if files.is_empty() {
        bail!(USAGE);
    }
    for file in files {
        let report = check_in(file, place, strictness).with_context(|| reading(file))?;
        for problem in &report.problems {
            println!("{}: {problem}", file.display());
        }
        sound &= report.is_sound();
    }
    Ok(sound)
}

fn check_links(chain: &[PathBuf]) -> Result<bool> {
    let mut sound = true;
    for pair in chain.windows(2) {
        let report = check_link(&pair[0], Some(&pair[1])).with_context(|| reading(&pair[0]))?;
        for problem in &report.problems {
            println!("{}: {problem}", pair[0].display());
        }
        sound &= report.is_sound();
    }
    Ok(sound)
}

fn reading(file: &Path) -> String {
    format!("cannot read {}", file.display())
}

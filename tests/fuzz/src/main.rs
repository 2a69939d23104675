//! Replays inputs, and runs mutations of the corpus without coverage:
//! `xylem-fuzz replay TARGET PATH...`, `xylem-fuzz run TARGET CORPUS SEED RUNS`.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use std::path::Path;
use xylem_fuzz::{Target, mutate, target};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["replay", name, paths @ ..] => replay(&named(name)?, paths),
        ["run", name, corpus, seed, runs] => run(
            &named(name)?,
            Path::new(corpus),
            seed.parse()?,
            runs.parse()?,
        ),
        _ => bail!("replay TARGET PATH... or run TARGET CORPUS SEED RUNS"),
    }
}

fn named(name: &str) -> Result<Target> {
    target(name).with_context(|| format!("there is no target {name}"))
}

fn replay(target: &Target, paths: &[&str]) -> Result<()> {
    for path in paths {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {path}"))?;
        eprintln!("{path}: {} bytes", bytes.len());
        target.check(&bytes);
    }
    Ok(())
}

/// Each input is on disk while it runs, so that one that ends the process can be replayed.
fn run(target: &Target, corpus: &Path, seed: u64, runs: u64) -> Result<()> {
    let corpus = xylem_fuzz::mutate::read_corpus(corpus)?;
    let mut rng = block::Rng::new(seed);
    let found = std::env::temp_dir().join(format!("{}-{seed}.input", target.name));
    for _ in 0..runs {
        let bytes = mutate::mutated(&mut rng, &corpus);
        std::fs::write(&found, &bytes)?;
        target.check(&bytes);
    }
    std::fs::remove_file(&found)?;
    eprintln!("{}: {runs} runs from seed {seed}", target.name);
    Ok(())
}

//! `wit-codegen [--check]`: writes the SDK's bindings, or says which of them are stale.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use std::path::Path;

fn main() -> Result<()> {
    let check = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--check" => true,
        other => bail!("unknown arguments {other:?}: the only one is --check"),
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .context("no tree")?;
    let mut stale = Vec::new();
    for (path, code) in wit_codegen::generate(root)? {
        if std::fs::read_to_string(&path).is_ok_and(|old| old == code) {
            continue;
        }
        if check {
            stale.push(path.display().to_string());
        } else {
            std::fs::write(&path, code).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    if !stale.is_empty() {
        bail!("stale: {}; run cargo run -p wit-codegen", stale.join(", "));
    }
    Ok(())
}

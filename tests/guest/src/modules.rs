//! Finds kernel modules and the order they must be loaded in, from the modules themselves: their
//! `.modinfo` says what they depend on. (`modules.dep` exists only where depmod has run.)

use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The wanted modules and all they depend on, dependencies first, with their files.
pub(crate) fn resolve(dir: &Path, wanted: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut files = BTreeMap::new();
    collect(&dir.join("kernel"), &mut files)?;
    let mut order = Vec::new();
    let mut visited = BTreeSet::new();
    for name in wanted {
        visit(&canonical(name), &files, &mut visited, &mut order)?;
    }
    Ok(order)
}

fn visit(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    visited: &mut BTreeSet<String>,
    order: &mut Vec<(String, PathBuf)>,
) -> Result<()> {
    if !visited.insert(name.to_owned()) {
        return Ok(());
    }
    let file = files
        .get(name)
        .with_context(|| format!("the test kernel has no module {name}"))?;
    let bytes = fs::read(file)?;
    for dependency in depends(&bytes).with_context(|| format!("in {}", file.display()))? {
        visit(&canonical(&dependency), files, visited, order)?;
    }
    order.push((name.to_owned(), file.clone()));
    Ok(())
}

/// Module names use `_` and `-` for the same thing.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn depends(module: &[u8]) -> Result<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        bail!("no module information (is it compressed?)");
    };
    let value = module.get(at + KEY.len()..).unwrap_or_default();
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(value);
    Ok(text
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect())
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_suffix(".ko"))
        {
            files.insert(canonical(name), path);
        }
    }
    Ok(())
}

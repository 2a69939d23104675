//! Builds: the binaries, and every plugin as a component and as a shared object.

use crate::step::{cargo, root, run, target};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;

/// Profile that plugins are built with: small and stripped (see the root manifest).
const PLUGIN_PROFILE: &str = "plugin";

/// Builds all binaries with the release profile.
pub(crate) fn release() -> Result<()> {
    run(cargo(&["build", "--release", "--locked", "--bins"]))
}

/// Builds every package below `plugins/` both ways into `target/plugins/<name>.wasm` and
/// `target/plugins/lib<name>.so`, beside a copy of its manifest.
pub(crate) fn plugins() -> Result<()> {
    build_both_ways(&root().join("plugins"), &target().join("plugins"))
}

/// Builds the hostile plugins that the tests load, the same way, into `target/plugins/fixtures`.
pub(crate) fn fixtures() -> Result<()> {
    build_both_ways(
        &root().join("tests/fixtures"),
        &target().join("plugins/fixtures"),
    )
}

/// Writes the plugin bindings anew from `wit/`, or checks that they are current.
pub(crate) fn bindings(check: bool) -> Result<()> {
    let mut args = vec!["run", "--quiet", "--locked", "--package", "wit-codegen"];
    if check {
        args.extend(["--", "--check"]);
    }
    run(cargo(&args))
}

/// A plugin package.
struct Plugin {
    /// Folder below `plugins/`.
    folder: String,
    /// Cargo's package name.
    package: String,
    /// Stem of the files it builds to.
    file: String,
}

fn build_both_ways(folder: &Path, out: &Path) -> Result<()> {
    let plugins = plugin_packages(folder)?;
    let mut args = vec!["build", "--locked", "--profile", PLUGIN_PROFILE];
    for plugin in &plugins {
        args.extend(["--package", plugin.package.as_str()]);
    }
    run(cargo(&args))?;
    args.extend(["--target", "wasm32-wasip2"]);
    run(cargo(&args))?;
    fs::create_dir_all(out)?;
    for plugin in &plugins {
        let stem = plugin.package.replace('-', "_");
        let wasm = target()
            .join("wasm32-wasip2")
            .join(PLUGIN_PROFILE)
            .join(format!("{stem}.wasm"));
        let so = target().join(PLUGIN_PROFILE).join(format!("lib{stem}.so"));
        put(&wasm, &out.join(format!("{}.wasm", plugin.file)))?;
        put(&so, &out.join(format!("lib{}.so", plugin.file)))?;
        let manifest = folder.join(&plugin.folder).join("plugin.toml");
        put(&manifest, &out.join(format!("{}.toml", plugin.file)))?;
    }
    Ok(())
}

/// Replaces a file by rename, never by overwriting: a running host may have the old one mapped.
fn put(from: &Path, to: &Path) -> Result<()> {
    let fresh = to.with_extension("new");
    fs::copy(from, &fresh).with_context(|| format!("copying {}", from.display()))?;
    fs::rename(&fresh, to).with_context(|| format!("putting {} in place", to.display()))
}

fn plugin_packages(dir: &Path) -> Result<Vec<Plugin>> {
    let mut plugins = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        let Ok(manifest) = fs::read_to_string(path.join("Cargo.toml")) else {
            continue;
        };
        let folder = path
            .file_name()
            .and_then(|name| name.to_str())
            .context("a folder name")?;
        let package = manifest
            .lines()
            .find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
            .with_context(|| format!("no package name in {}", path.display()))?;
        plugins.push(Plugin {
            folder: folder.to_owned(),
            package: package.to_owned(),
            file: folder.replace('-', "_"),
        });
    }
    if plugins.is_empty() {
        bail!("no plugin below {}", dir.display());
    }
    plugins.sort_by(|a, b| a.package.cmp(&b.package));
    Ok(plugins)
}

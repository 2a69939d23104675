//! Generates the SDK's bindings from `wit/v0`: one file per world, for both targets.
//!
//! wit-bindgen writes the types, the `Guest` traits and the component's imports and exports. This
//! crate adds what it lacks for a shared object: functions that the host provides go through the
//! SDK's native glue when the target is not wasm, and each exporting world gets a `dispatch` that
//! takes a method's name and JSON parameters. It also keeps the two worlds' export macros apart,
//! so that one SDK crate can hold both. The output is committed; `--check` says if it is stale.

#![forbid(unsafe_code)]

mod native;

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use wit_bindgen_core::wit_parser::{InterfaceId, Resolve, WorldId, WorldItem};
use wit_bindgen_core::{Files, WorldGenerator};
use wit_bindgen_rust::{Opts, WithOption};

/// The world whose imports the other worlds share.
const HOST_WORLD: &str = "host-services";

/// Worlds that a plugin can be of.
const PLUGIN_WORLDS: &[&str] = &["storage-plugin", "monitor-plugin"];

/// Returns every generated file below the tree `root`: its path and content.
///
/// # Errors
///
/// If `wit/v0` does not parse or has something the generator does not know.
pub fn generate(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let wit = root.join("wit/v0");
    let out = root.join("sdk/src/bindings");
    let mut resolve = Resolve::default();
    let (package, _) = resolve
        .push_dir(&wit)
        .with_context(|| format!("parsing {}", wit.display()))?;
    let mut generated = Vec::new();
    for name in [&[HOST_WORLD], PLUGIN_WORLDS].concat() {
        let world = resolve.select_world(&[package], Some(name))?;
        let code = bindings(&mut resolve, world, name)?;
        let code = native::complete(&code, &resolve, world, name == HOST_WORLD)
            .with_context(|| format!("world {name}"))?;
        generated.push((out.join(format!("{}.rs", snake(name))), code));
    }
    Ok(generated)
}

/// Runs wit-bindgen for one world.
fn bindings(resolve: &mut Resolve, world: WorldId, name: &str) -> Result<String> {
    let mut options = Opts {
        runtime_path: Some("::wit_bindgen::rt".to_owned()),
        generate_all: true,
        additional_derive_attributes: vec!["PartialEq".to_owned()],
        ..Opts::default()
    };
    if name != HOST_WORLD {
        options.pub_export_macro = true;
        options.export_macro_name = Some(format!("__export_{}", snake(name)));
        options.default_bindings_module = Some(format!("::xylem_sdk::bindings::{}", snake(name)));
        options.with = shared(resolve)?;
    }
    let mut files = Files::default();
    options.build().generate(resolve, world, &mut files)?;
    let (_, code) = files.iter().next().context("wit-bindgen wrote no file")?;
    let code = std::str::from_utf8(code)?;
    // Both worlds export `query`; a macro's name is global to its crate.
    Ok(code.replace(
        "__export_xylem_plugin_",
        &format!("__{}_xylem_plugin_", snake(name)),
    ))
}

/// Says that the host's interfaces are those generated for [`HOST_WORLD`].
fn shared(resolve: &Resolve) -> Result<Vec<(String, WithOption)>> {
    let (_, host) = resolve
        .worlds
        .iter()
        .find(|(_, world)| world.name == HOST_WORLD)
        .context(HOST_WORLD)?;
    let interfaces = host.imports.values().filter_map(|item| match item {
        WorldItem::Interface { id, .. } => Some(*id),
        _ => None,
    });
    interfaces
        .map(|id| {
            let name = resolve.interfaces[id]
                .name
                .as_deref()
                .context("an unnamed interface")?;
            let full = resolve
                .id_of(id)
                .context("an interface outside a package")?;
            let path = format!(
                "crate::bindings::host_services::xylem::plugin::{}",
                snake(name)
            );
            Ok((full, WithOption::Path(path)))
        })
        .collect()
}

/// Interfaces that `world` exports, with their names.
fn exports(resolve: &Resolve, world: WorldId) -> Vec<(String, InterfaceId)> {
    let items = resolve.worlds[world].exports.values();
    items
        .filter_map(|item| match item {
            WorldItem::Interface { id, .. } => Some((resolve.interfaces[*id].name.clone()?, *id)),
            _ => None,
        })
        .collect()
}

fn snake(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_bindings_are_current() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .expect("the checkout");
        for (path, code) in generate(root).unwrap() {
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                committed == code,
                "{} is stale: cargo run -p wit-codegen",
                path.display()
            );
        }
    }
}

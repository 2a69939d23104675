//! The direction of imports, and the crates that exactly one of ours may use.

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Our crates by level; see `core/README.md`. A crate imports lower levels only.
const LEVELS: &[(u32, &[&str])] = &[
    (0, &["units"]),
    (
        1,
        &[
            "vhd-rs",
            "block",
            "hypervisor",
            "database",
            "plugin",
            "datapath",
            "thin-cli",
        ],
    ),
    (
        2,
        &["uring", "tapdisk", "plugin-process", "qemu", "metrics"],
    ),
    (3, &["storage", "xenops"]),
    (4, &["xapi"]),
    (5, &["daemon"]),
];

/// Imports on the same level that are wanted all the same.
const SAME_LEVEL: &[(&str, &str)] = &[("tapdisk", "uring")];

/// Foreign crates that are dangerous, heavy or a matter of policy: who alone may import them.
const WRAPPERS: &[(&str, &[&str])] = &[
    ("io-uring", &["uring"]),
    ("wasmtime", &["plugin-process"]),
    ("libloading", &["plugin-process"]),
    ("redb", &["database"]),
    ("hyper", &["xapi"]),
    ("quick-xml", &["xapi"]),
    ("argon2", &["xapi"]),
    ("vhd-rs", &["tapdisk"]),
    ("vm-memory", &["tapdisk"]),
    ("wit-bindgen", &["xylem-sdk"]),
];

fn metadata() -> Metadata {
    MetadataCommand::new()
        .other_options(vec!["--locked".to_owned()])
        .exec()
        .expect("cargo metadata")
}

fn ours(metadata: &Metadata) -> impl Iterator<Item = &Package> {
    metadata
        .packages
        .iter()
        .filter(|package| metadata.workspace_members.contains(&package.id))
}

/// Folder of a package below the root: `core`, `plugins`, `sdk`, `tests` or `tools`.
fn area<'a>(metadata: &Metadata, package: &'a Package) -> &'a str {
    let inside = package
        .manifest_path
        .strip_prefix(&metadata.workspace_root)
        .expect("a member");
    inside.components().next().map_or("", |part| part.as_str())
}

fn imports(package: &Package) -> impl Iterator<Item = &str> {
    package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind != DependencyKind::Development)
        .map(|dependency| dependency.name.as_str())
}

#[test]
fn lower_levels_never_import_higher_ones() {
    let metadata = metadata();
    let level: BTreeMap<&str, u32> = LEVELS
        .iter()
        .flat_map(|(level, names)| names.iter().map(|name| (*name, *level)))
        .collect();
    let mut wrong = Vec::new();
    for package in ours(&metadata).filter(|package| area(&metadata, package) == "core") {
        let Some(own) = level.get(package.name.as_str()) else {
            wrong.push(format!(
                "{} has no level: add it to LEVELS and core/README.md",
                package.name
            ));
            continue;
        };
        for import in imports(package) {
            let allowed = level.get(import).is_none_or(|other| {
                other < own || SAME_LEVEL.contains(&(package.name.as_str(), import))
            });
            if !allowed {
                wrong.push(format!("{} (level {own}) imports {import}", package.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn plugins_import_the_sdk_only_and_the_sdk_imports_nothing_of_ours() {
    let metadata = metadata();
    let core: BTreeSet<&str> = ours(&metadata)
        .filter(|package| area(&metadata, package) == "core")
        .map(|package| package.name.as_str())
        .collect();
    for package in ours(&metadata) {
        if !matches!(area(&metadata, package), "sdk" | "plugins") {
            continue;
        }
        for import in imports(package) {
            assert!(
                !core.contains(import),
                "{} imports {import} of core",
                package.name
            );
        }
    }
}

#[test]
fn dangerous_crates_have_exactly_the_importers_that_are_listed() {
    let metadata = metadata();
    for (foreign, importers) in WRAPPERS {
        let found: BTreeSet<&str> = ours(&metadata)
            .filter(|package| imports(package).any(|import| import == *foreign))
            .filter(|package| matches!(area(&metadata, package), "core" | "sdk" | "plugins"))
            .map(|package| package.name.as_str())
            .collect();
        let expected: BTreeSet<&str> = importers.iter().copied().collect();
        assert_eq!(found, expected, "importers of {foreign}");
    }
}

/// The daemon must not contain an image parser, a WASM engine, `dlopen` or io_uring, not even by
/// way of another crate.
#[test]
fn the_daemon_links_nothing_that_belongs_into_a_child_process() {
    let metadata = metadata();
    let resolve = metadata.resolve.as_ref().expect("a resolved graph");
    let daemon = ours(&metadata)
        .find(|package| package.name.as_str() == "daemon")
        .expect("daemon");
    let mut reached = BTreeSet::from([&daemon.id]);
    let mut todo = vec![&daemon.id];
    while let Some(id) = todo.pop() {
        let node = resolve
            .nodes
            .iter()
            .find(|node| node.id == *id)
            .expect("a node");
        for dependency in &node.deps {
            let normal = dependency
                .dep_kinds
                .iter()
                .any(|kind| kind.kind == DependencyKind::Normal);
            if normal && reached.insert(&dependency.pkg) {
                todo.push(&dependency.pkg);
            }
        }
    }
    for package in metadata
        .packages
        .iter()
        .filter(|package| reached.contains(&package.id))
    {
        let name = package.name.as_str();
        let banned = [
            "vhd-rs",
            "uring",
            "tapdisk",
            "io-uring",
            "wasmtime",
            "plugin-process",
            "libloading",
        ];
        assert!(!banned.contains(&name), "the daemon reaches {name}");
    }
}

#[test]
fn every_licence_is_one_we_accept() {
    const ACCEPTED: &[&str] = &[
        "MIT",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "ISC",
        "Unicode-3.0",
        // libFuzzer itself, which no shipped program holds.
        "NCSA",
        "Zlib",
        "CC0-1.0",
        "Unlicense",
        "0BSD",
        "BSL-1.0",
        "MIT-0",
    ];
    let metadata = metadata();
    let mut refused = Vec::new();
    for package in &metadata.packages {
        let licence = package
            .license
            .clone()
            .unwrap_or_default()
            .replace('/', " OR ");
        // Every AND-part needs one acceptable alternative.
        let fine = !licence.is_empty()
            && licence.split(" AND ").all(|part| {
                part.split(" OR ")
                    .any(|one| ACCEPTED.contains(&one.trim().trim_matches(|c| "()".contains(c))))
            });
        if !fine {
            refused.push(format!("{} {}: {licence:?}", package.name, package.version));
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn everything_comes_from_the_tree_or_the_registry() {
    let metadata = metadata();
    for package in &metadata.packages {
        match &package.source {
            Some(source) => assert!(
                source.is_crates_io(),
                "{} comes from {source}",
                package.name
            ),
            None => assert!(
                Path::new(&package.manifest_path).starts_with(&metadata.workspace_root),
                "{} lies outside the tree",
                package.name
            ),
        }
    }
}

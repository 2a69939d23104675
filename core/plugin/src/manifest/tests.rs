//! What a manifest may say.

use super::*;

const GOOD: &str = "
[plugin]
name = \"sm-file\"
version = \"0.1.0\"
kind = \"storage\"
interface = \"0.1.0\"
[grants]
files = [\"/\"]
";

fn refused(edit: impl Fn(&str) -> String) -> String {
    Manifest::parse(&edit(GOOD))
        .expect_err("it was accepted")
        .to_string()
}

#[test]
fn what_is_not_said_has_defaults_and_grants_nothing() {
    let manifest = Manifest::parse(GOOD).unwrap();
    assert_eq!(manifest.limits, Limits::default());
    assert!(!manifest.grants.messages);
    assert!(manifest.granted_files(&Grants::default()).is_empty());
}

#[test]
fn every_wrong_value_is_named() {
    let with = |extra: &'static str| move |good: &str| format!("{good}\n{extra}");
    for (text, needle) in [
        (refused(with("[limits]\nmemory_mb = 1")), "memory_mb"),
        (
            refused(with("[limits]\nmemory_mib = 0")),
            "limits.memory_mib = 0: 1 to 4096",
        ),
        (refused(with("[limits]\ncalls = 65")), "limits.calls = 65"),
        (refused(with("[secret]\nx = 1")), "secret"),
        (refused(|good| good.replace("storage", "agent")), "agent"),
        (
            refused(|good| good.replace("sm-file", "../x")),
            "plugin.name",
        ),
        (
            refused(|good| good.replace("interface = \"0.1.0\"", "interface = \"0.2.0\"")),
            "0.2.0",
        ),
        (
            refused(|good| good.replace("[\"/\"]", "[\"/a/../b\"]")),
            "/a/../b",
        ),
        (
            refused(|good| good.replace("kind = \"storage\"", "")),
            "kind",
        ),
    ] {
        assert!(text.contains(needle), "{text:?} does not say {needle:?}");
    }
}

#[test]
fn files_are_granted_where_wish_and_grant_meet() {
    let check = |wished: &[&str], given: &[&str], expected: &[&str]| {
        let mut manifest = Manifest::parse(GOOD).unwrap();
        manifest.grants.files = wished.iter().map(PathBuf::from).collect();
        let files = given.iter().map(PathBuf::from).collect();
        let granted = manifest.granted_files(&Grants {
            files,
            ..Grants::default()
        });
        assert_eq!(
            granted,
            expected.iter().map(PathBuf::from).collect::<Vec<_>>()
        );
    };
    check(&["/"], &["/srv/a", "/srv/b"], &["/srv/a", "/srv/b"]);
    check(&["/srv/a/deep"], &["/srv/a"], &["/srv/a/deep"]);
    check(&["/srv/a"], &["/srv/ab"], &[]);
    check(&["/srv"], &["/srv/../etc", "relative"], &[]);
    check(&["/", "/srv"], &["/srv"], &["/srv"]);
    check(&[], &["/"], &[]);
}

#[test]
fn an_undeclared_setting_is_refused() {
    let manifest = Manifest::parse(&format!("{GOOD}\n[settings]\nlimit = \"10\"")).unwrap();
    let grants = |name: &str| Grants {
        settings: BTreeMap::from([(name.to_owned(), "20".to_owned())]),
        ..Grants::default()
    };
    assert_eq!(manifest.settings(&grants("limit")).unwrap()["limit"], "20");
    assert!(
        manifest
            .settings(&grants("limits"))
            .unwrap_err()
            .to_string()
            .contains("limits")
    );
}

#[test]
fn only_compatible_interface_versions_are_served() {
    for (version, served) in [
        ("0.1", true),
        ("0.1.0", true),
        ("0.1.7", true),
        ("0.2.0", false),
        ("1.1.0", false),
        ("0.1.0.0", false),
        ("0.1.x", false),
        ("", false),
    ] {
        assert_eq!(interface_is_served(version), served, "{version}");
    }
}

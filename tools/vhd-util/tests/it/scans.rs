//! Lines of `scan`.

use crate::support::{Folder, MIB};

/// A tree: base with two children, one hidden with a child of its own; and a stranger.
fn tree(folder: &Folder) {
    folder.image("base.vhd", &[0]);
    folder.util("snapshot -n mid.vhd -p base.vhd");
    folder.put("mid.vhd", 0, &[1; 512]);
    folder.util("snapshot -n leaf.vhd -p mid.vhd");
    folder.util("snapshot -n other.vhd -p base.vhd");
    folder.util("set -n base.vhd -f hidden -v 1");
    folder.util("set -n mid.vhd -f hidden -v 1");
    folder.util("set -n mid.vhd -f marker -v 5");
}

fn line(folder: &Folder, name: &str, hidden: u8, parent: &str) -> String {
    let (capacity, size) = (16 * MIB, folder.bytes(name).len());
    format!("vhd={name} capacity={capacity} size={size} hidden={hidden} parent={parent}\n")
}

#[test]
fn every_image_has_a_line() {
    let folder = Folder::new();
    tree(&folder);
    let lines = [
        line(&folder, "base.vhd", 1, "none"),
        line(&folder, "leaf.vhd", 0, "mid.vhd"),
        line(&folder, "mid.vhd", 1, "base.vhd"),
        line(&folder, "other.vhd", 0, "base.vhd"),
    ];
    for options in [
        "-m *.vhd",
        "-f -m *.vhd",
        "base.vhd leaf.vhd mid.vhd other.vhd",
    ] {
        assert_eq!(
            folder.util(&format!("scan {options}")),
            lines.concat(),
            "{options}"
        );
    }
    assert_eq!(folder.util("scan -m nothing-*"), "");
    // A chain from its leaf up.
    let up = [&*lines[1], &*lines[2], &*lines[0]].concat();
    for options in ["-a leaf.vhd", "-f -a leaf.vhd"] {
        assert_eq!(folder.util(&format!("scan {options}")), up, "{options}");
    }
    let marked = lines[2].replace("parent", "marker=5 parent");
    for options in ["-M mid.vhd", "-M -f mid.vhd"] {
        assert_eq!(folder.util(&format!("scan {options}")), marked, "{options}");
    }
    let full = folder.text_path("base.vhd");
    let verbose = lines[2].replace("parent=base.vhd", &format!("parent={full}"));
    assert_eq!(folder.util("scan -v mid.vhd"), verbose);
}

#[test]
fn a_tree_has_its_visible_children_first() {
    let folder = Folder::new();
    tree(&folder);
    let expected = [
        line(&folder, "base.vhd", 1, "none"),
        format!("   {}", line(&folder, "other.vhd", 0, "base.vhd")),
        format!("   {}", line(&folder, "mid.vhd", 1, "base.vhd")),
        format!("      {}", line(&folder, "leaf.vhd", 0, "mid.vhd")),
    ];
    assert_eq!(folder.util("scan -p -m *.vhd"), expected.concat());
    let orphan = line(&folder, "leaf.vhd", 0, "mid.vhd (not found in scan)");
    assert_eq!(folder.util("scan -p leaf.vhd"), orphan);
}

#[test]
fn what_cannot_be_read_ends_a_scan_unless_told_to_go_on() {
    let folder = Folder::new();
    tree(&folder);
    std::fs::write(folder.path("broken.vhd"), vec![1; 9000]).unwrap();
    let base = line(&folder, "base.vhd", 1, "none");
    for options in ["", "-f "] {
        let (code, said) = folder.fails(&format!("scan {options}base.vhd broken.vhd leaf.vhd"));
        assert_eq!(code, 22);
        let broken = "vhd=broken.vhd scan-error=22 error-message='";
        assert!(said.starts_with(&format!("{base}{broken}")), "{said}");
        assert!(!said.contains("leaf.vhd"), "{said}");
        let printed = folder.util(&format!(
            "scan {options}-c base.vhd broken.vhd leaf.vhd gone.vhd"
        ));
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(lines.len(), 4, "{printed}");
        assert!(
            lines[3].starts_with("vhd=gone.vhd scan-error=2 error-message='"),
            "{printed}"
        );
    }
}

#[test]
fn a_fast_scan_goes_by_the_beginning_alone() {
    let folder = Folder::new();
    tree(&folder);
    // No footer at the end, no readable table: the copy and the header say all.
    let size = folder.bytes("leaf.vhd").len() as u64;
    folder.poke("leaf.vhd", size - 512, &[0xc7; 512]);
    folder.poke("leaf.vhd", 1536, &[0; 64]);
    assert_eq!(
        folder.util("scan -f leaf.vhd"),
        line(&folder, "leaf.vhd", 0, "mid.vhd")
    );
    assert_eq!(folder.fails("scan leaf.vhd").0, 22);
    folder.util("create -n f.vhd -s 2 -r");
    let fixed = format!(
        "vhd=f.vhd capacity={0} size={1} hidden=0 parent=none\n",
        2 * MIB,
        2 * MIB + 512
    );
    for options in ["", "-f "] {
        assert_eq!(folder.util(&format!("scan {options}f.vhd")), fixed);
    }
}

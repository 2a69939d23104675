//! The commands as scripts use them: what they print and exit with.

use crate::support::{Folder, MIB};
use vhd_checker::{Strictness, check, check_link};

#[test]
fn an_image_that_was_created_says_so_in_a_fixed_order_of_lines() {
    let folder = Folder::new();
    folder.util("create --debug -n a.vhd -s 63 -S 1024");
    folder.sound("a.vhd");
    // Options in any order; lines always v s p f m d a S.
    let printed = folder.util("query -n a.vhd -S -a -d -m -f -p -s -v");
    let size = folder.bytes("a.vhd").len();
    assert_eq!(
        printed,
        format!("64\n{size}\na.vhd has no parent\nhidden: 0\nmarker: 0\nchain depth: 1\n0\n1024\n")
    );
}

#[test]
fn created_images_are_laid_out_as_libvhd_lays_them_out() {
    let folder = Folder::new();
    for (options, size) in [
        // An empty dynamic disk of 1 GiB, and metadata for the largest size SM uses.
        ("-s 1024", 5120),
        ("-s 64 -S 2097152", 8452 * 512 + 512),
    ] {
        folder.util(&format!("create -n a.vhd {options}"));
        let bytes = folder.bytes("a.vhd");
        assert_eq!(bytes.len() as u64, size, "{options}");
        assert_eq!(&bytes[28..36], b"tap\0\0\x01\0\x03", "{options}");
        folder.sound("a.vhd");
    }
    folder.put("a.vhd", 0, &[1; 512]);
    assert_eq!(
        folder.util("read -n a.vhd -b 0 -c 2"),
        "block 0: sector 8455\nblock 1: not allocated\n"
    );
}

#[test]
fn a_fixed_disk_has_its_space_and_a_footer() {
    let folder = Folder::new();
    folder.util("create -n f.vhd -s 4 -r");
    folder.sound("f.vhd");
    assert_eq!(folder.bytes("f.vhd").len() as u64, 4 * MIB + 512);
    assert_eq!(folder.util("query -n f.vhd -v -a -S"), "4\n2\n4\n");
    assert_eq!(folder.util("check -n f.vhd"), "f.vhd is valid\n");
}

#[test]
fn snapshots_name_their_parent_from_where_they_are() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("sub")).unwrap();
    folder.image("a.vhd", &[0]);
    for (child, stored) in [("b.vhd", "./a.vhd"), ("sub/c.vhd", "../a.vhd")] {
        folder.util(&format!("snapshot -n {child} -p a.vhd"));
        folder.sound(child);
        let link = check_link(&folder.path(child), Some(&folder.path("a.vhd"))).unwrap();
        assert_eq!(link.problems, []);
        let printed = folder.util(&format!("query -n {child} -p -d"));
        assert_eq!(
            printed,
            format!("{}\nchain depth: 2\n", folder.text_path("a.vhd"))
        );
        let unresolved = folder.util(&format!("query -n {child} -p -u"));
        assert_eq!(unresolved, format!("{stored}\n"));
        assert_eq!(
            folder.util(&format!("check -n {child} -p")),
            format!("{child} is valid\na.vhd is valid\n")
                .replace("a.vhd is", &format!("{} is", folder.text_path("a.vhd")))
        );
    }
}

#[test]
fn a_child_of_an_empty_image_skips_it_unless_told_otherwise() {
    let folder = Folder::new();
    folder.image("base.vhd", &[0]);
    folder.util("snapshot -n empty.vhd -p base.vhd -S 24");
    folder.util("resize -n empty.vhd -s 24 -f");
    for (options, parent, depth) in [("", "base.vhd", 2), (" -e", "empty.vhd", 3)] {
        folder.util(&format!("snapshot -n child.vhd -p empty.vhd{options}"));
        let printed = folder.util("query -n child.vhd -v -p -d");
        let expected = format!("24\n{}\nchain depth: {depth}\n", folder.text_path(parent));
        assert_eq!(printed, expected, "{options}");
        let all = folder.flat(if depth == 2 {
            &["child.vhd", "base.vhd"]
        } else {
            &["child.vhd", "empty.vhd", "base.vhd"]
        });
        assert!(all.len() as u64 == 24 * MIB && all[0] == 1);
    }
    // A root stays, empty or not.
    folder.util("create -n root.vhd -s 4");
    folder.util("snapshot -n leaf.vhd -p root.vhd");
    assert_eq!(folder.util("query -n leaf.vhd -d"), "chain depth: 2\n");
}

#[test]
fn chains_stop_growing_at_the_length_a_script_sets() {
    let folder = Folder::new();
    folder.image("1.vhd", &[0]);
    folder.util("snapshot -n 2.vhd -p 1.vhd -l 2");
    folder.put("2.vhd", 9, &[1; 512]);
    let (code, said) = folder.fails("snapshot -n 3.vhd -p 2.vhd -l 2");
    assert_eq!((code, said.contains("2 images")), (28, true), "{said}");
    assert!(!folder.path("3.vhd").exists());
    // A raw parent counts one.
    std::fs::write(folder.path("raw"), vec![7; 4 << 20]).unwrap();
    folder.util("snapshot -n r.vhd -p raw -m -l 2");
    assert_eq!(folder.fails("snapshot -n s.vhd -p raw -m -l 1").0, 28);
    assert_eq!(folder.util("query -n r.vhd -d"), "chain depth: 2\n");
}

#[test]
fn the_tool_stacks_bytes_are_kept_and_shown() {
    let folder = Folder::new();
    folder.image("a.vhd", &[3]);
    folder.util("set -n a.vhd -f hidden -v 1");
    folder.util("set -n a.vhd -f marker -v 77");
    assert_eq!(
        folder.util("query -n a.vhd -f -m"),
        "hidden: 1\nmarker: 77\n"
    );
    folder.sound("a.vhd");
    for (line, code) in [
        ("set -n a.vhd -f hidden -v 256", 22),
        ("set -n a.vhd -f other -v 1", 22),
        ("set -n b.vhd -f hidden -v 1", 2),
    ] {
        assert_eq!(folder.fails(line).0, code, "{line}");
    }
    folder.util("create -n f.vhd -s 2 -r");
    assert_eq!(folder.fails("set -n f.vhd -f marker -v 1").0, 38);
}

#[test]
fn repair_writes_both_footers_from_the_one_that_is_left() {
    let folder = Folder::new();
    for lost in ["end", "copy"] {
        folder.image("a.vhd", &[1, 0]);
        let whole = folder.bytes("a.vhd");
        let at = if lost == "copy" {
            0
        } else {
            whole.len() as u64 - 512
        };
        folder.poke("a.vhd", at, &[0xc7; 512]);
        let (code, said) = folder.fails("check -n a.vhd");
        assert_eq!(code, 22, "{said}");
        assert_eq!(
            said.contains("primary footer invalid"),
            lost == "end",
            "{said}"
        );
        folder.util("repair -n a.vhd");
        assert_eq!(folder.bytes("a.vhd"), whole, "{lost}");
    }
    // A nil uuid is replaced.
    folder.poke_footers("a.vhd", 68, &[0; 16]);
    assert_eq!(folder.fails("check -n a.vhd").0, 22);
    folder.util("repair -n a.vhd");
    folder.sound("a.vhd");
    // The copy counts if it is asked for.
    folder.util("set -n a.vhd -f hidden -v 1");
    let end = folder.bytes("a.vhd").len() as u64 - 512;
    let mut other = folder.bytes("a.vhd")[..512].to_vec();
    other[85] = 0;
    other[67] += 1;
    folder.poke("a.vhd", 0, &other);
    folder.util("repair -n a.vhd -b");
    assert_eq!(folder.util("query -n a.vhd -f"), "hidden: 0\n");
    assert_eq!(folder.bytes("a.vhd")[end as usize..], other);
}

#[test]
fn a_fast_resize_grows_within_the_layout_only() {
    let folder = Folder::new();
    folder.util("create -n a.vhd -s 16 -S 64");
    folder.put("a.vhd", 5000, &[9; 1024]);
    let before = folder.flat(&["a.vhd"]);
    folder.util("resize -n a.vhd -s 63 -f");
    folder.sound("a.vhd");
    let after = folder.flat(&["a.vhd"]);
    assert_eq!(after.len() as u64, 64 * MIB);
    assert!(after.starts_with(&before) && after[before.len()..].iter().all(|&byte| byte == 0));
    for (line, code) in [
        ("resize -n a.vhd -s 66 -f", 28),
        ("resize -n a.vhd -s 32 -f", 22),
        ("resize -n a.vhd -s 64", 22),
    ] {
        assert_eq!(folder.fails(line).0, code, "{line}");
    }
}

#[test]
fn dropping_data_leaves_what_the_parent_holds() {
    let folder = Folder::new();
    folder.image("a.vhd", &[0, 1, 2]);
    folder.util("snapshot -n b.vhd -p a.vhd");
    let empty = folder.bytes("b.vhd").len();
    folder.put("b.vhd", 4000, &[0xee; 200 * 512]);
    folder.fill_blocks("b.vhd", &[7]);
    folder.util("modify -n b.vhd -z");
    folder.sound("b.vhd");
    assert_eq!(folder.bytes("b.vhd").len(), empty);
    assert_eq!(folder.util("query -n b.vhd -a"), "0\n");
    assert_eq!(folder.flat(&["b.vhd", "a.vhd"]), folder.flat(&["a.vhd"]));
}

#[test]
fn another_parent_is_named_in_all_locators() {
    let folder = Folder::new();
    folder.image("a-long-name.vhd", &[0]);
    folder.util("snapshot -n b.vhd -p a-long-name.vhd");
    std::fs::copy(folder.path("a-long-name.vhd"), folder.path("c.vhd")).unwrap();
    folder.util("modify -n b.vhd -p c.vhd");
    folder.sound("b.vhd");
    assert_eq!(folder.util("query -n b.vhd -p -u"), "./c.vhd\n");
    assert_eq!(folder.util("check -n b.vhd"), "b.vhd is valid\n");
    // A raw parent has no uuid.
    std::fs::write(folder.path("raw"), folder.flat(&["c.vhd"])).unwrap();
    folder.util("modify -n b.vhd -p raw -m");
    folder.sound("b.vhd");
    let link = check_link(&folder.path("b.vhd"), None).unwrap();
    assert_eq!(link.problems, []);
    assert_eq!(folder.flat(&["b.vhd", "raw"]), folder.flat(&["c.vhd"]));
    let too_long = "x".repeat(600);
    std::fs::create_dir_all(folder.path(&too_long[..200]).join(&too_long[..200])).unwrap();
    let deep = format!("{}/{}/p.vhd", &too_long[..200], &too_long[..200]);
    std::fs::rename(folder.path("c.vhd"), folder.path(&deep)).unwrap();
    assert_eq!(folder.fails(&format!("modify -n b.vhd -p {deep}")).0, 36);
    assert_eq!(
        check(&folder.path("b.vhd"), Strictness::Closed)
            .unwrap()
            .problems,
        []
    );
}

#[test]
fn wrong_options_and_lost_files_have_their_exit_codes() {
    let folder = Folder::new();
    std::fs::write(folder.path("text"), "this is no disk".repeat(100)).unwrap();
    folder.image("a.vhd", &[0]);
    folder.util("snapshot -n b.vhd -p a.vhd");
    std::fs::remove_file(folder.path("a.vhd")).unwrap();
    for (line, code) in [
        ("frobnicate -n a", 22),
        ("query", 22),
        ("query -n a.vhd -q", 22),
        ("query -n nowhere.vhd -v", 2),
        ("query -n text -v", 22),
        ("query -n . -v", 22),
        ("query -n b.vhd -d", 2),
        ("create -n c.vhd -s 0", 22),
        ("create -n c.vhd -s 99999999999", 22),
        ("snapshot -n b.vhd -p b.vhd", 22),
        ("modify -n b.vhd", 22),
        ("coalesce -n b.vhd", 2),
    ] {
        let (got, said) = folder.fails(line);
        assert_eq!(got, code, "{line}: {said}");
    }
    assert!(!folder.path("c.vhd").exists());
    assert!(folder.util("--help").contains("coalesce"));
}

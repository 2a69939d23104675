//! What is in images: read through chains, filled, coalesced, with qemu and the naive reader as
//! witnesses.

use crate::support::{Folder, MIB};

/// A chain of three with data in blocks, runs and single sectors at each level.
fn chain(folder: &Folder) -> Vec<u8> {
    folder.image("a.vhd", &[0, 1, 5]);
    folder.util("snapshot -n b.vhd -p a.vhd");
    folder.put("b.vhd", 4090, &[0xb1; 20 * 512]);
    folder.fill_blocks("b.vhd", &[5]);
    folder.put("b.vhd", 5 * 4096 + 17, &[0xb2; 512]);
    folder.util("snapshot -n c.vhd -p b.vhd");
    folder.put("c.vhd", 4095, &[0xc1; 512]);
    folder.put("c.vhd", 32_767, &[0xc2; 512]);
    folder.flat(&["c.vhd", "b.vhd", "a.vhd"])
}

#[test]
fn reads_go_through_the_chain() {
    let folder = Folder::new();
    let expected = chain(&folder);
    assert!(folder.util_bytes("read -n c.vhd -r 0 -c 32768") == expected);
    for (first, count) in [(0, 1), (511, 3), (2 * MIB - 7, 4096), (16 * MIB - 1, 1)] {
        let got = folder.util_bytes(&format!("read -n c.vhd -R {first} -c {count}"));
        let range = first as usize..first as usize + count;
        assert!(got == expected[range], "{count} bytes at {first}");
    }
    let hex = folder.util("read -n c.vhd -R 2096640 -c 17 -x");
    let row = "c1 ".repeat(16);
    assert_eq!(
        hex,
        format!("0000001ffe00: {row}\n0000001ffe10: c1\n").replace(" \n", "\n")
    );
    assert_eq!(folder.fails("read -n c.vhd -r 32768").0, 22);
    assert_eq!(folder.fails("read -n c.vhd -R 16777215 -c 2").0, 22);
}

#[test]
fn reads_show_tables_bitmaps_and_batmaps() {
    let folder = Folder::new();
    folder.image("a.vhd", &[5, 0]);
    folder.put("a.vhd", 6 * 4096 + 3, &[1; 2 * 512]);
    for (options, expected) in [
        ("-b 5", "block 5: sector 7\n"),
        ("-b 6 -c 9", &*{
            let rest: String = (7..8)
                .map(|n| format!("block {n}: not allocated\n"))
                .collect();
            format!("block 6: sector 8215\n{rest}")
        }),
        ("-m 6", "block 6: sectors 3 to 4\n"),
        ("-m 0", "block 0: sectors 0 to 4095\n"),
        ("-m 1", "block 1: not allocated\n"),
        (
            "-t 20480",
            "sector 20480 (block 5, sector 0): at sector 8 of the file\n",
        ),
        (
            "-t 24579 -c 1",
            "sector 24579 (block 6, sector 3): at sector 8219 of the file\n",
        ),
        (
            "-i 24578 -c 2",
            "sectors 24578 to 24578: absent\nsectors 24579 to 24579: present\n",
        ),
        (
            "-e 24576 -c 10",
            "sectors 24576 to 24578: absent\nsectors 24579 to 24580: present\n\
             sectors 24581 to 24585: absent\n",
        ),
        ("-j 5 -c 2", "block 5: complete\nblock 6: not complete\n"),
    ] {
        assert_eq!(
            folder.util(&format!("read -n a.vhd {options}")),
            expected,
            "{options}"
        );
    }
    let bits = folder.util_bytes("read -n a.vhd -B");
    assert_eq!(bits, [0b1000_0110]);
    assert!(folder.util_bytes("read -n a.vhd -d 5") == vec![6; 2 << 20]);
    let headers = folder.util("read -n a.vhd -p");
    for line in [
        "Cookie            : conectix",
        "Creator           : tap\\x00 1.3",
        "Table entries     : 8",
    ] {
        assert!(headers.contains(line), "{headers}");
    }
}

#[test]
fn coalescing_moves_exactly_the_childs_sectors_into_its_parent() {
    for options in ["", " -s", " -p"] {
        let folder = Folder::new();
        let expected = chain(&folder);
        let printed = folder.util(&format!("coalesce -n c.vhd{options}"));
        assert!(printed.ends_with("Coalesced 2 sectors"), "{printed}");
        assert!(folder.flat(&["b.vhd", "a.vhd"]) == expected, "{options}");
        let printed = folder.util(&format!("coalesce -n b.vhd{options}"));
        // 20 sectors across blocks 0 and 1 with one of the child's inside, block 5, the last one.
        assert!(
            printed.ends_with(&format!("Coalesced {} sectors", 20 + 4096 + 1)),
            "{printed}"
        );
        assert!(folder.flat(&["a.vhd"]) == expected, "{options}");
        for name in ["a.vhd", "b.vhd", "c.vhd"] {
            folder.sound(name);
        }
        // Again: it changes nothing.
        let before = folder.bytes("a.vhd");
        folder.util(&format!("coalesce -n b.vhd{options}"));
        assert!(folder.bytes("a.vhd") == before);
        folder.qemu(
            "qemu-img",
            &["convert", "-f", "vpc", "-O", "raw", "a.vhd", "q.raw"],
        );
        assert!(folder.bytes("q.raw") == expected);
        assert_eq!(folder.util("check -n a.vhd -b"), "a.vhd is valid\n");
    }
}

#[test]
fn coalescing_into_raw_and_fixed_parents_writes_in_place() {
    for kind in ["raw", "fixed"] {
        let folder = Folder::new();
        let options = if kind == "raw" {
            std::fs::write(folder.path("p"), vec![7; 4 << 20]).unwrap();
            "-m"
        } else {
            folder.util("create -n p -s 4 -r");
            "-e"
        };
        folder.util(&format!("snapshot -n c.vhd -p p {options}"));
        folder.put("c.vhd", 8190, &[5; 2 * 512]);
        let expected = folder.flat(&["c.vhd", "p"]);
        assert_eq!(folder.util("coalesce -n c.vhd"), "Coalesced 2 sectors");
        let got = if kind == "raw" {
            folder.bytes("p")
        } else {
            folder.flat(&["p"])
        };
        assert!(got == expected, "{kind}");
    }
}

#[test]
fn coalescing_beyond_a_smaller_parent_is_a_range_error_and_keeps_what_fits() {
    let folder = Folder::new();
    folder.image("p.vhd", &[0]);
    folder.util("snapshot -n c.vhd -p p.vhd -S 24");
    folder.util("resize -n c.vhd -s 24 -f");
    folder.put("c.vhd", 4096, &[1; 512]);
    folder.put("c.vhd", 32_768, &[2; 512]);
    let (code, said) = folder.fails("coalesce -n c.vhd");
    assert_eq!((code, said.contains("sector 32769")), (34, true), "{said}");
    folder.sound("p.vhd");
    assert_eq!(folder.flat(&["p.vhd"])[2 << 20], 1);
}

#[test]
fn filling_takes_all_content_into_the_image() {
    let folder = Folder::new();
    let expected = chain(&folder);
    folder.util("fill -n c.vhd");
    folder.sound("c.vhd");
    assert_eq!(folder.util("query -n c.vhd -a"), "8\n");
    // Nothing of the parents is left to be seen: qemu, which knows no parents, sees it all.
    folder.qemu(
        "qemu-img",
        &["convert", "-f", "vpc", "-O", "raw", "c.vhd", "q.raw"],
    );
    assert!(folder.bytes("q.raw") == expected);
    assert_eq!(folder.util("check -n c.vhd -b"), "c.vhd is valid\n");
}

#[test]
fn filling_bitmaps_allocates_without_writing() {
    let folder = Folder::new();
    folder.util("create -n a.vhd -s 1024");
    folder.util("fill -n a.vhd -b");
    folder.sound("a.vhd");
    assert_eq!(folder.util("query -n a.vhd -a"), "512\n");
    assert_eq!(folder.util("check -n a.vhd"), "a.vhd is valid\n");
    folder.util("create -n b.vhd -s 64");
    folder.util("fill -n b.vhd -b -f 4000 -t 8200");
    assert_eq!(folder.util("query -n b.vhd -a"), "3\n");
    let runs = folder.util("read -n b.vhd -m 0 -c 3");
    assert_eq!(
        runs,
        "block 0: sectors 4000 to 4095\nblock 1: sectors 0 to 4095\nblock 2: sectors 0 to 7\n"
    );
}

#[test]
fn images_of_qemu_are_read_coalesced_into_and_checked() {
    let folder = Folder::new();
    folder.qemu(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "vpc",
            "-o",
            "force_size=on",
            "q.vhd",
            "16M",
        ],
    );
    folder.qemu_write("q.vhd", 3, "1536k", "1M");
    folder.util("snapshot -n c.vhd -p q.vhd");
    folder.put("c.vhd", 30_000, &[4; 5 * 512]);
    let expected = folder.flat(&["c.vhd", "q.vhd"]);
    assert!(folder.util_bytes("read -n c.vhd -r 0 -c 32768") == expected);
    assert_eq!(folder.util("coalesce -n c.vhd"), "Coalesced 5 sectors");
    folder.qemu(
        "qemu-img",
        &["convert", "-f", "vpc", "-O", "raw", "q.vhd", "q.raw"],
    );
    assert!(folder.bytes("q.raw") == expected);
    // With a forced size qemu stores the largest geometry there is, and checkers of VHDs complain.
    let (_, said) = folder.fails("check -n q.vhd");
    assert!(
        said.contains("geometry") && said.contains("1 problems"),
        "{said}"
    );
}

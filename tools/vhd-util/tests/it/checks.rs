//! What `check` finds.

use crate::support::Folder;

/// Damages an image of two blocks and says what is printed then.
#[track_caller]
fn finds(damage: impl Fn(&Folder), options: &str, expected: &str) {
    let folder = Folder::new();
    folder.image("p.vhd", &[1, 0]);
    folder.util("snapshot -n a.vhd -p p.vhd");
    folder.fill_blocks("a.vhd", &[3]);
    folder.put("a.vhd", 0, &[1; 512]);
    assert_eq!(folder.util("check -n a.vhd -b -p").lines().count(), 2);
    damage(&folder);
    if expected.is_empty() {
        let printed = folder.util(&format!("check -n a.vhd {options}"));
        assert_eq!(printed, "a.vhd is valid\n");
        return;
    }
    let (code, said) = folder.fails(&format!("check -n a.vhd {options}"));
    assert_eq!(code, 22, "{said}");
    assert!(said.contains(expected), "{said}");
}

#[test]
fn damage_in_footers_is_found() {
    let cut = |folder: &Folder| {
        let size = folder.bytes("a.vhd").len() as u64;
        let file = std::fs::File::options()
            .write(true)
            .open(folder.path("a.vhd"));
        file.unwrap().set_len(size - 512).unwrap();
    };
    finds(cut, "-t", "primary footer invalid");
    finds(cut, "-i", "");
    finds(
        |f| f.poke("a.vhd", 0, b"x"),
        "-t",
        "primary and backup footer differ",
    );
    for (at, bytes, expected) in [
        (11, &[6][..], "footer.features is 0x6"),
        (24, &[0xff; 4], "footer.timestamp is in the future"),
        (56, &[0xff; 4], "footer.geometry"),
        (68, &[0; 16], "footer.uuid is nil"),
        (85, &[2], "footer.hidden is 2"),
        (86, &[1], "footer.reserved is not zero"),
        (511, &[1], "footer.reserved is not zero"),
        (35, &[4], "footer.creator_version"),
        (0, b"v_poison", "disabled"),
    ] {
        finds(|f| f.poke_footers("a.vhd", at, bytes), "-b", expected);
    }
    finds(|f| f.poke_footers("a.vhd", 24, &[0xff; 4]), "-t", "");
}

#[test]
fn damage_in_the_header_is_found() {
    for (at, bytes, expected) in [
        (8, &[0][..], "header.data_offset"),
        (18, &[9], "bat"),
        (28, &[0; 4], "header.max_bat_size"),
        (32, &[0, 0x10, 0, 1], "header.block_size"),
        (40, &[0x55], "parent.uuid"),
        (56, &[0xff; 4], "header.parent_timestamp is in the future"),
        (63, &[1], "header.reserved is not zero"),
        (65, b"x", "header.locator[0] is ./p.vhd"),
        (576, b"Xxxx", "header.locator[0].code"),
        (600, b"MacX", "header.locator[1] is a second MacX"),
        (
            648,
            &[0, 0, 0, 0, 1],
            "header.locator[3] is not used and not zero",
        ),
        (768, &[1], "header.reserved is not zero"),
    ] {
        finds(|f| f.poke_header("a.vhd", at, bytes), "-b", expected);
    }
    finds(|f| f.poke_header("a.vhd", 40, &[0x55]), "-I", "");
    finds(|f| f.poke("a.vhd", 600, b"x"), "-t", "header.checksum");
    let lose_parent = |f: &Folder| std::fs::remove_file(f.path("p.vhd")).unwrap();
    finds(lose_parent, "-t", "parent");
    finds(lose_parent, "-I", "");
}

#[test]
fn damage_in_the_table_the_batmap_and_the_blocks_is_found() {
    let bat = 1536;
    for (at, bytes, options, expected) in [
        (bat + 12, &[0, 0, 0, 1][..], "-B", "bat[3]"),
        (bat + 4, &[0, 0, 0x10, 0], "-t", "must not overlap"),
        (bat + 4, &[0, 0xff, 0, 0], "-t", "bat[1]"),
        (0x800, b"x", "-t", "batmap"),
        (0x81b, &[0x11], "-t", "batmap is invalid"),
    ] {
        finds(|f| f.poke("a.vhd", at, bytes), options, expected);
    }
    let mark_lost_block = |f: &Folder| {
        f.poke("a.vhd", 0xa00, &[0x18]);
        f.poke("a.vhd", 0x818, &(!0x18u32).to_be_bytes());
    };
    finds(mark_lost_block, "-t", "batmap has block 4");
    let bitmap_of = |f: &Folder, block: usize| {
        let bytes = f.bytes("a.vhd");
        let entry = &bytes[bat as usize + block * 4..][..4];
        u64::from(u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]])) * 512
    };
    let unfill = |f: &Folder| f.poke("a.vhd", bitmap_of(f, 3) + 7, &[0xfe]);
    finds(unfill, "-t", "");
    finds(
        unfill,
        "-b",
        "block 3 is complete in the batmap, not in its bitmap",
    );
    let stale = |f: &Folder| f.poke("a.vhd", bitmap_of(f, 0) + 512 + 9 * 512, &[1]);
    finds(stale, "-b", "block 0 has data in sector 9");
    finds(stale, "-t", "");
}

#[test]
fn damage_in_a_parent_is_found_if_parents_are_checked() {
    let hurt = |f: &Folder| f.poke("p.vhd", 0x800, b"x");
    finds(hurt, "-p", "p.vhd: batmap");
    finds(hurt, "-t", "");
}

#[test]
fn statistics_count_blocks() {
    let folder = Folder::new();
    folder.image("a.vhd", &[0, 7]);
    folder.put("a.vhd", 4096, &[1; 512]);
    let printed = folder.util("check -n a.vhd -s");
    let size = folder.bytes("a.vhd").len();
    assert_eq!(
        printed,
        format!(
            "blocks: 8\nallocated blocks: 3\ncomplete blocks: 2\nbytes used: {size}\na.vhd is valid\n"
        )
    );
}

#[test]
fn a_full_table_of_256_gib_is_checked() {
    let folder = Folder::new();
    folder.util("create -n a.vhd -s 262144");
    let bytes = folder.bytes("a.vhd");
    // Every block has a place, in no order, with a hole of a file behind it: only the table is real.
    let headers_end = bytes.len() as u64 / 512 - 1;
    let first = headers_end.next_multiple_of(8) + 7;
    let table: Vec<u8> = (0..131_072u64)
        .flat_map(|n| ((first + (n * 7919 + 13) % 131_072 * 4104) as u32).to_be_bytes())
        .collect();
    let end = (first - 7 + 131_072 * 4104) * 512;
    folder.poke("a.vhd", 1536, &table);
    folder.poke("a.vhd", bytes.len() as u64 - 512, &[0; 512]);
    folder.poke("a.vhd", end, &bytes[..512]);
    assert_eq!(folder.util("check -n a.vhd"), "a.vhd is valid\n");
    assert_eq!(folder.util("query -n a.vhd -a"), "131072\n");
    // One block an eighth of a gap too low reaches into its neighbour.
    folder.poke(
        "a.vhd",
        1536 + 4 * 70_000,
        &((first + 5 * 4104 - 1) as u32).to_be_bytes(),
    );
    let (code, said) = folder.fails("check -n a.vhd");
    assert_eq!(
        (code, said.contains("must not overlap")),
        (22, true),
        "{said}"
    );
}

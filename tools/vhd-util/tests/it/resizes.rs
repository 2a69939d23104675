//! `resize -j` and `revert` on files, with qemu and the checker as witnesses.

use crate::support::{Folder, MIB};

#[test]
fn blocks_move_out_of_the_way_of_a_growing_table() {
    let folder = Folder::new();
    folder.image("a.vhd", &[2, 0, 5]);
    folder.put("a.vhd", 4096 + 9, &[0xee; 512]);
    let before = folder.flat(&["a.vhd"]);
    // 1.1 TiB has a table of 2.2 MiB: the first two blocks of the file go.
    let size_mib = 1_126_400;
    folder.util(&format!("resize -n a.vhd -s {size_mib} -j journal"));
    assert!(!folder.path("journal").exists());
    folder.sound("a.vhd");
    assert_eq!(folder.util("check -n a.vhd"), "a.vhd is valid\n");
    assert_eq!(
        folder.util("query -n a.vhd -v -a"),
        format!("{size_mib}\n4\n")
    );
    assert!(folder.util_bytes("read -n a.vhd -r 0 -c 32768") == before);
    for (pattern, at, count) in [
        (3, "4M", "2M"),
        (1, "0", "2M"),
        (6, "10M", "2M"),
        (0xee, "2101760", "512"),
        (0, "1099G", "1G"),
    ] {
        let read = format!("read -P {pattern} {at} {count}");
        let said = folder.qemu("qemu-io", &["-f", "vpc", "-c", &read, "a.vhd"]);
        assert!(!said.contains("failed"), "{said}");
    }
    // And it goes on living: new blocks, another snapshot, a fast resize.
    folder.put("a.vhd", size_mib * 2048 - 1, &[7; 512]);
    folder.sound("a.vhd");
}

#[test]
fn children_keep_their_parent_and_their_content_when_they_grow() {
    let folder = Folder::new();
    folder.image("p.vhd", &[0, 1]);
    folder.util("snapshot -n c.vhd -p p.vhd");
    folder.put("c.vhd", 4000, &[9; 200 * 512]);
    folder.util("set -n c.vhd -f marker -v 3");
    let before = folder.flat(&["c.vhd", "p.vhd"]);
    folder.util("resize -n c.vhd -s 2048 -j journal");
    folder.sound("c.vhd");
    assert_eq!(
        folder.util("query -n c.vhd -v -m -d -p -u"),
        "2048\n./p.vhd\nmarker: 3\nchain depth: 2\n"
    );
    assert!(folder.util_bytes("read -n c.vhd -r 0 -c 32768") == before);
}

#[test]
fn fixed_disks_grow_with_zeros_and_shrink() {
    let folder = Folder::new();
    folder.util("create -n f.vhd -s 2 -r");
    folder.put("f.vhd", 0, &vec![4; 2 << 20]);
    for (size_mib, used) in [(6, 2), (4, 2), (2, 2)] {
        folder.util(&format!("resize -n f.vhd -s {size_mib} -j journal"));
        folder.sound("f.vhd");
        let bytes = folder.bytes("f.vhd");
        assert_eq!(bytes.len() as u64, size_mib * MIB + 512);
        let (data, zeros) = bytes[..(size_mib as usize) << 20].split_at(used << 20);
        assert!(data.iter().all(|&b| b == 4) && zeros.iter().all(|&b| b == 0));
        folder.qemu("qemu-img", &["info", "-f", "vpc", "f.vhd"]);
    }
}

#[test]
fn what_cannot_be_resized_says_why_and_stays() {
    let folder = Folder::new();
    folder.image("a.vhd", &[0]);
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
    for (name, size_mib, code) in [
        ("a.vhd", 8, 38),
        ("q.vhd", 4096, 38),
        ("a.vhd", 99_999_999, 22),
    ] {
        let before = folder.bytes(name);
        let (got, said) = folder.fails(&format!("resize -n {name} -s {size_mib} -j journal"));
        assert_eq!(got, code, "{said}");
        assert!(folder.bytes(name) == before);
    }
    folder.util("resize -n a.vhd -s 16 -j journal");
    // A journal without room stops it before the image is touched.
    assert_eq!(
        folder.fails("resize -n a.vhd -s 4096 -j nowhere/journal").0,
        2
    );
    folder.sound("a.vhd");
}

#[test]
fn an_image_that_was_cut_off_is_refused_until_it_is_reverted() {
    let folder = Folder::new();
    folder.image("a.vhd", &[0, 1]);
    let before = folder.flat(&["a.vhd"]);
    // As a cut right after disabling leaves it.
    let mut image = vhd_util::Disk::open(&folder.path("a.vhd"), vhd_rs::Access::ReadWrite).unwrap();
    let relayout = image.image.relayout(4096 * MIB).unwrap();
    let mut journal = Vec::new();
    let mut cut = Cut(&mut image.file, 4);
    let mut target = vhd_util::journal::Named {
        name: "image",
        medium: &mut cut,
    };
    let mut undo = vhd_util::journal::Named {
        name: "journal",
        medium: &mut journal,
    };
    let whose = (image.image.uuid(), vhd_rs::Extent::Grows);
    vhd_util::journal::perform(&mut target, &mut undo, whose, &relayout).unwrap_err();
    std::fs::write(folder.path("journal"), journal).unwrap();

    assert_eq!(folder.util("query -n a.vhd -v"), "16\n");
    let (code, said) = folder.fails("check -n a.vhd");
    assert_eq!(
        (code, said.contains("unfinished resize")),
        (22, true),
        "{said}"
    );
    assert_eq!(folder.fails("set -n a.vhd -f hidden -v 1").0, 22);
    assert!(folder.util("read -n a.vhd -p").contains("v_poison"));
    folder.image("b.vhd", &[]);
    assert_eq!(folder.fails("revert -n a.vhd -j b.vhd").0, 22);
    folder.util("revert -n a.vhd -j journal");
    folder.sound("a.vhd");
    assert!(folder.flat(&["a.vhd"]) == before);
    assert!(!folder.path("journal").exists());
}

/// A file that takes so many writes.
struct Cut<'a>(&'a mut std::fs::File, u32);

impl Cut<'_> {
    fn burn(&mut self) -> std::io::Result<()> {
        self.1 = self
            .1
            .checked_sub(1)
            .ok_or_else(|| std::io::Error::other("cut"))?;
        Ok(())
    }
}

impl vhd_rs::ReadAt for Cut<'_> {
    fn size_bytes(&self) -> std::io::Result<u64> {
        vhd_rs::ReadAt::size_bytes(&*self.0)
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        vhd_rs::ReadAt::read_exact_at(&*self.0, offset, buffer)
    }
}

impl vhd_rs::WriteAt for Cut<'_> {
    fn write_all_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.burn()?;
        vhd_rs::WriteAt::write_all_at(self.0, offset, bytes)
    }

    fn set_size(&mut self, bytes: u64) -> std::io::Result<()> {
        self.burn()?;
        vhd_rs::WriteAt::set_size(self.0, bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.burn()?;
        vhd_rs::WriteAt::flush(self.0)
    }
}

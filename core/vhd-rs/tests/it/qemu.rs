//! qemu as a witness: it writes what we read, and reads what we write. Its driver knows dynamic
//! and fixed disks, but neither parents nor batmaps.

use crate::support::{MIB, READ_WRITE, Writer, new_image};
use std::fs::File;
use std::path::Path;
use std::process::Command;
use vhd_checker::{Strictness, check, read_flat};
use vhd_rs::{Block, Content, DiskType, Image};

fn run(program: &str, args: &[&str], folder: &Path) -> String {
    let output = Command::new(program)
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap_or_else(|e| panic!("{program} (package qemu-utils): {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {text}{errors}"
    );
    text
}

/// Content with runs that begin and end inside sectors' neighbours and blocks.
fn patterned(folder: &Path, image: &str) {
    for command in [
        "write -P 1 0 512",
        "write -P 2 1536k 1M",
        "write -P 3 9M 4M",
        "write -P 4 65535k 1k",
    ] {
        run("qemu-io", &["-f", "vpc", "-c", command, image], folder);
    }
}

#[test]
fn images_made_by_qemu_open_and_hold_what_qemu_reads() {
    let folder = tempfile::tempdir().unwrap();
    for (name, options, kind) in [
        ("d.vhd", "subformat=dynamic", DiskType::Dynamic),
        (
            "s.vhd",
            "subformat=dynamic,force_size=on",
            DiskType::Dynamic,
        ),
        ("f.vhd", "subformat=fixed,force_size=on", DiskType::Fixed),
    ] {
        run(
            "qemu-img",
            &["create", "-q", "-f", "vpc", "-o", options, name, "64M"],
            folder.path(),
        );
        patterned(folder.path(), name);
        let path = folder.path().join(name);
        let image = Image::open(&File::open(&path).unwrap(), READ_WRITE).unwrap();
        assert_eq!(
            (image.disk_type(), image.is_clean()),
            (kind, true),
            "{name}"
        );
        assert!(image.batmap().is_none());
        assert_eq!(
            check(&path, Strictness::Closed).unwrap().problems,
            [],
            "{name}"
        );

        let allocated: Vec<u32> = (0..image.blocks())
            .filter(|&n| image.block(n) != Block::Unallocated)
            .collect();
        if kind == DiskType::Dynamic {
            assert_eq!(allocated, [0, 1, 4, 5, 6, 31], "{name}");
        }
        run(
            "qemu-img",
            &["convert", "-f", "vpc", "-O", "raw", name, "q.raw"],
            folder.path(),
        );
        read_flat(&[path])
            .unwrap()
            .write_to(&folder.path().join("flat.raw"))
            .unwrap();
        run(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", "q.raw", "flat.raw"],
            folder.path(),
        );
    }
}

#[test]
fn qemu_reads_what_our_plans_write() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ours.vhd");
    let mut expected = vec![0; 64 << 20];
    let mut writer = Writer::create(&path, &new_image(64 * MIB, Content::Dynamic));
    for (sector, count, value) in [
        (0, 1, 1),
        (3000, 2000, 2),
        (4096 * 9, 4096, 3),
        (131_071, 1, 4),
        (4090, 12, 5),
    ] {
        let data = vec![value; count * 512];
        writer.write(sector as u64, &data);
        expected[sector * 512..sector * 512 + data.len()].copy_from_slice(&data);
    }
    writer.close();
    std::fs::write(folder.path().join("model.raw"), expected).unwrap();
    assert_eq!(check(&path, Strictness::Closed).unwrap().problems, []);
    let info = run(
        "qemu-img",
        &["info", "-f", "vpc", "ours.vhd"],
        folder.path(),
    );
    assert!(info.contains("64 MiB (67108864 bytes)"), "{info}");
    run(
        "qemu-img",
        &["compare", "-f", "vpc", "-F", "raw", "ours.vhd", "model.raw"],
        folder.path(),
    );
}

#[test]
fn an_image_whose_batmap_qemu_overwrote_still_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.vhd");
    Writer::create(&path, &new_image(64 * MIB, Content::Dynamic)).close();
    run(
        "qemu-io",
        &["-f", "vpc", "-c", "write -P 9 0 2M", "t.vhd"],
        folder.path(),
    );
    let file = File::open(&path).unwrap();
    let error = Image::open(&file, READ_WRITE).unwrap_err();
    assert_eq!(error.field(), "batmap.cookie");
    let image = Image::open(&file, Default::default()).unwrap();
    assert_eq!(image.batmap_problem().unwrap().field(), "batmap.cookie");
    assert!(matches!(
        image.block(0),
        Block::Allocated { full: false, .. }
    ));
}

#[test]
fn blocks_qemu_packed_tightly_are_never_called_full() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.vhd");
    let mut writer = Writer::create(&path, &new_image(64 * MIB, Content::Dynamic));
    writer.write(0, &[1; 512]);
    writer.close();
    // qemu appends right after the block, leaving no gap before its own.
    run(
        "qemu-io",
        &["-f", "vpc", "-c", "write -P 9 2M 2M", "t.vhd"],
        folder.path(),
    );
    let mut writer = Writer::open(&path);
    assert!(
        !writer.image.set_full(1),
        "tapdisk would overwrite the end of block 0"
    );
    // The next block of ours keeps seven free sectors before it and may be full.
    writer.write(4096 * 2, &vec![7; 2 << 20]);
    assert!(writer.image.batmap().unwrap().get(2));
    writer.close();
    assert_eq!(
        check(&path, Strictness::Closed).unwrap().problems,
        [vhd_checker::Problem("block 1 is not aligned".into())]
    );
}

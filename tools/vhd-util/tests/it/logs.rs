//! Logs of changed blocks.

use crate::support::{Folder, MIB};
use block::{Buffer, FileId, RamDisk, SparseBytes};
use datapath::protocol::Format;
use tapdisk::engine::testing::rig::{Rig, child, dynamic, load};
use tapdisk::engine::{LiveOp, LogSpec, Request};
use vhd_rs::cbt::{CBT_HEADER_BYTES, CbtHeader};

const PARENT: &str = "11111111-2222-4333-8444-555555555555";

#[test]
fn logs_are_created_shown_and_changed() {
    let folder = Folder::new();
    // 100 MiB are 1600 blocks of 64 KiB, one byte more is one block more.
    for (size, bitmap) in [(100 << 20, 200), ((100 << 20) + 1, 201)] {
        folder.cbt(&format!("create -n log -s {size}")).unwrap();
        let bytes = folder.bytes("log");
        assert_eq!(bytes.len(), 48 + bitmap);
        assert_eq!(
            folder.cbt("get -n log -s").unwrap(),
            format!("{size}\n").into_bytes()
        );
    }
    let nil = b"00000000-0000-0000-0000-000000000000\n".to_vec();
    for (option, before, value, after) in [
        ("-p", nil.clone(), PARENT, format!("{PARENT}\n")),
        ("-c", nil, PARENT, format!("{PARENT}\n")),
        ("-f", b"0\n".to_vec(), "1", "1\n".into()),
        ("-f", b"1\n".to_vec(), "0", "0\n".into()),
    ] {
        assert_eq!(folder.cbt(&format!("get -n log {option}")).unwrap(), before);
        folder.cbt(&format!("set -n log {option} {value}")).unwrap();
        assert_eq!(
            folder.cbt(&format!("get -n log {option}")).unwrap(),
            after.into_bytes()
        );
    }
    let bytes = folder.bytes("log");
    assert_eq!(bytes[..4], [0x11; 4]);
    assert_eq!(bytes[16..20], [0x11; 4]);
    assert_eq!(bytes[40..48], ((100u64 << 20) + 1).to_le_bytes());
}

#[test]
fn a_grown_log_says_that_nothing_more_was_written() {
    let folder = Folder::new();
    folder.cbt("create -n log -s 1048576").unwrap();
    // Something of another use behind it, as on a volume.
    folder.poke("log", 48, &[0x81, 0x01, 0xff, 0xff, 0xff]);
    folder.cbt("set -n log -s 2097153 -f 1").unwrap();
    assert_eq!(folder.cbt("get -n log -b").unwrap(), [0x81, 0x01, 0, 0, 0]);
    assert_eq!(folder.cbt("get -n log -f").unwrap(), b"1\n");
    assert_eq!(folder.cbt("set -n log -s 2097152"), Err(22));
}

#[test]
fn coalescing_adds_the_parents_bits_to_the_child() {
    let folder = Folder::new();
    folder.cbt("create -n parent -s 1048576").unwrap();
    folder.cbt("create -n child -s 2097152").unwrap();
    folder.poke("parent", 48, &[0x0f, 0x80]);
    folder.poke("child", 48, &[0x10, 0x01, 0x00, 0x08]);
    for _ in 0..2 {
        folder.cbt("coalesce -p parent -c child").unwrap();
        assert_eq!(
            folder.cbt("get -n child -b").unwrap(),
            [0x1f, 0x81, 0x00, 0x08]
        );
    }
    assert_eq!(folder.cbt("get -n parent -b").unwrap(), [0x0f, 0x80]);
    assert_eq!(folder.cbt("coalesce -p child -c parent"), Err(22));
}

#[test]
fn what_is_no_log_is_refused() {
    let folder = Folder::new();
    std::fs::write(folder.path("short"), [0; 47]).unwrap();
    std::fs::write(folder.path("cut"), [[0; 40], [1; 40]].concat()).unwrap();
    folder.cbt("create -n log -s 1048576").unwrap();
    for (line, code) in [
        ("get -n short -p", 22),
        ("get -n cut -s", 38),
        ("get -n nowhere -s", 2),
        ("get -n log", 22),
        ("get -n log -p -c", 22),
        ("set -n log -p 1234", 22),
        ("set -n log -f 2", 22),
        ("create -n new -s 0", 22),
        ("create -n new -s 99999999999999999", 22),
    ] {
        assert_eq!(folder.cbt(line), Err(code), "{line}");
    }
    let file = std::fs::File::options()
        .write(true)
        .open(folder.path("log"))
        .unwrap();
    file.set_len(49).unwrap();
    assert_eq!(folder.cbt("get -n log -b"), Err(22));
}

/// A log of the folder as the data path takes it.
fn taken(folder: &Folder, ram: &mut RamDisk, name: &str) -> LogSpec {
    let bytes = folder.bytes(name);
    LogSpec {
        file: ram.add_file(SparseBytes::from(bytes.as_slice())),
        header: CbtHeader::parse(bytes.first_chunk().expect("a header")).expect("a sound one"),
        bitmap: bytes[CBT_HEADER_BYTES..].to_vec(),
    }
}

#[test]
fn logs_that_the_data_path_marked_are_shown_and_coalesced() {
    let folder = Folder::new();
    for name in ["one", "two"] {
        folder
            .cbt(&format!("create -n {name} -s {}", 6 * MIB))
            .unwrap();
        folder.cbt(&format!("set -n {name} -f 1")).unwrap();
    }
    let mut ram = RamDisk::new();
    let base = (ram.add_file(dynamic(1, 6 * MIB)), Format::Vhd);
    let leaf = (ram.add_file(child(2, Some(1), 6 * MIB)), Format::Vhd);
    let (one, two) = (
        taken(&folder, &mut ram, "one"),
        taken(&folder, &mut ram, "two"),
    );
    let logs = [("one", one.file), ("two", two.file)];
    let mut rig = Rig::open(ram, &[base]);
    rig.run_live(LiveOp::CbtStart(Box::new(one))).unwrap();
    rig.write(65_535 / 512 * 512, &[1; 1024]).unwrap();
    let spec = load(&rig.io, leaf, vhd_rs::Access::ReadWrite).unwrap();
    rig.engine.stage_log(two).unwrap();
    rig.run_live(LiveOp::SnapshotSwitch(Box::new(spec)))
        .unwrap();
    let data = Buffer::copy_of(&[2; 512]);
    let offset = 6 * MIB - 512;
    let last = Request::Write {
        offset,
        data,
        fua: true,
    };
    rig.run(last).unwrap();
    let save = |rig: &Rig<RamDisk>, (name, file): (&str, FileId)| {
        let bytes = rig.io.file(file).unwrap().to_vec();
        std::fs::write(folder.path(name), bytes).unwrap();
    };
    logs.into_iter().for_each(|log| save(&rig, log));
    let flags = ["one", "two"].map(|name| folder.cbt(&format!("get -n {name} -f")).unwrap());
    assert_eq!(flags, [b"1\n", b"0\n"], "the second is in use");
    rig.run_live(LiveOp::Close).unwrap();
    logs.into_iter().for_each(|log| save(&rig, log));
    assert_eq!(folder.cbt("get -n two -f").unwrap(), b"1\n");
    let mut bits = [0; 12];
    bits[0] = 0b11;
    assert_eq!(folder.cbt("get -n one -b").unwrap(), bits);
    folder.cbt("coalesce -p one -c two").unwrap();
    bits[11] = 0x80;
    assert_eq!(folder.cbt("get -n two -b").unwrap(), bits);
}

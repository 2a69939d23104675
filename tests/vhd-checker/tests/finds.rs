//! The checker finds what is wrong, one damage at a time, in an image built here byte by byte.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use vhd_checker::{Place, Strictness, check, check_in, check_link, read_flat};

const BLOCK: usize = 4097 * 512;

/// A dynamic image of 4 MiB: block 1 full at sector 7, block 0 with sector 2 at sector 4111.
fn image() -> Vec<u8> {
    let mut bytes = vec![0; 4111 * 512 + BLOCK + 512];
    bytes[512..520].copy_from_slice(b"cxsparse");
    bytes[520..528].fill(0xff);
    set(&mut bytes, 512 + 16, 8, 1536);
    set(&mut bytes, 512 + 24, 4, 0x10000);
    set(&mut bytes, 512 + 28, 4, 2);
    set(&mut bytes, 512 + 32, 4, 2 << 20);
    bytes[1536..2048].fill(0);
    set(&mut bytes, 1536, 4, 4111);
    set(&mut bytes, 1540, 4, 7);
    bytes[2048..2056].copy_from_slice(b"tdbatmap");
    set(&mut bytes, 2056, 8, 2560);
    set(&mut bytes, 2064, 4, 1);
    set(&mut bytes, 2068, 4, 0x10002);
    set(&mut bytes, 2072, 4, 0xffff_ffbf);
    bytes[2560] = 0x40;
    bytes[7 * 512..8 * 512].fill(0xff);
    bytes[8 * 512..4104 * 512].fill(b'f');
    bytes[4111 * 512] = 0x20;
    bytes[4112 * 512..4115 * 512].fill(b'x');
    seal(&mut bytes, 512, 1024, 36);
    footers(&mut bytes, |f| {
        f[..8].copy_from_slice(b"conectix");
        set(f, 8, 4, 2);
        set(f, 12, 4, 0x10000);
        set(f, 16, 8, 512);
        f[28..32].copy_from_slice(b"tap\0");
        set(f, 32, 4, 0x10003);
        set(f, 40, 8, 4 << 20);
        set(f, 48, 8, 4 << 20);
        set(f, 60, 4, 3);
        f[68..84].fill(0x42);
    });
    bytes
}

fn set(bytes: &mut [u8], at: usize, width: usize, value: u64) {
    bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
}

fn seal(bytes: &mut [u8], at: usize, len: usize, field: usize) {
    set(bytes, at + field, 4, 0);
    let sum: u32 = bytes[at..at + len].iter().map(|&b| u32::from(b)).sum();
    set(bytes, at + field, 4, u64::from(!sum));
}

fn footers(bytes: &mut [u8], change: impl Fn(&mut [u8])) {
    for at in [0, bytes.len() - 512] {
        change(&mut bytes[at..at + 512]);
        seal(bytes, at, 512, 64);
    }
}

fn header(bytes: &mut [u8], change: impl Fn(&mut [u8])) {
    change(&mut bytes[512..1536]);
    seal(bytes, 512, 1024, 36);
}

fn stored(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("i.vhd");
    fs::write(&path, bytes).expect("room for it");
    (folder, path)
}

fn problems(bytes: &[u8], strictness: Strictness) -> Vec<String> {
    let (_folder, path) = stored(bytes);
    let report = check(&path, strictness).expect("the file is there");
    report
        .problems
        .into_iter()
        .map(|problem| problem.0)
        .collect()
}

#[test]
fn a_sound_image_has_no_problem() {
    for strictness in [Strictness::Closed, Strictness::AfterCrash] {
        assert_eq!(problems(&image(), strictness), [""; 0]);
    }
}

#[test]
fn each_damage_is_found() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(Damage, &str); 26] = [
        (|b| b[0] = 0, "footer copy at offset 0 is invalid"),
        (
            |b| footers(b, |f| f[86] = 1),
            "footer's reserved area is not zero",
        ),
        (|b| footers(b, |f| f[85] = 2), "hidden is 2"),
        (|b| footers(b, |f| f[68..84].fill(0)), "uuid is nil"),
        (|b| footers(b, |f| set(f, 8, 4, 6)), "features 0x6"),
        (|b| footers(b, |f| set(f, 12, 4, 1)), "footer version 0x1"),
        (
            |b| footers(b, |f| set(f, 32, 4, 0x10004)),
            "tap version 0x10004",
        ),
        (
            |b| footers(b, |f| set(f, 56, 4, u64::from(u32::MAX))),
            "geometry is too large",
        ),
        (|b| footers(b, |f| set(f, 60, 4, 5)), "disk type 5"),
        (
            |b| footers(b, |f| set(f, 48, 8, 6 << 20)),
            "table has 2 entries of 3",
        ),
        (|b| b[600] = 1, "header is invalid"),
        (
            |b| header(b, |h| set(h, 8, 8, 0)),
            "header points at another",
        ),
        (|b| header(b, |h| set(h, 24, 4, 0)), "header version"),
        (|b| header(b, |h| h[1023] = 1), "header's reserved area"),
        (
            |b| header(b, |h| set(h, 32, 4, 4096)),
            "block size 4096 is not checked further",
        ),
        (|b| header(b, |h| h[40] = 1), "dynamic disk with a parent"),
        (|b| b[2048] = 0, "batmap header is missing"),
        (|b| b[2561] = 1, "batmap checksum is wrong"),
        (|b| set(b, 2064, 4, 0), "batmap has 0 bytes of 512"),
        (
            |b| set(b, 1540, 4, u64::from(u32::MAX)),
            "block 1 is full but not allocated",
        ),
        (|b| set(b, 1536, 4, 7), "block 1 overlaps block 0"),
        (|b| set(b, 1536, 4, 0), "block 0 overlaps batmap"),
        (
            |b| set(b, 1536, 4, 4112),
            "block 0 at sector 4112 lies beyond the file",
        ),
        (|b| set(b, 1536, 4, 4110), "block 0 is not aligned"),
        (
            |b| b[7 * 512 + 9] = 0,
            "block 1 is full in the batmap, not in its bitmap",
        ),
        (
            |b| {
                let footer = b.split_off(b.len() - 512);
                b.extend([0; 4096]);
                b.extend(footer);
            },
            "file has 4207104 bytes, its data ends at 4202496",
        ),
    ];
    for (damage, expected) in damages {
        let mut bytes = image();
        damage(&mut bytes);
        let found = problems(&bytes, Strictness::Closed);
        assert!(
            found.iter().any(|problem| problem == expected),
            "{expected}: {found:?}"
        );
    }
}

#[test]
fn a_volume_has_its_footer_in_the_last_sector_and_old_bytes_before_it() {
    let found = |bytes: &[u8], place, strictness| {
        let (_folder, path) = stored(bytes);
        let report = check_in(&path, place, strictness).expect("the file is there");
        report
            .problems
            .into_iter()
            .map(|problem| problem.0)
            .collect::<Vec<_>>()
    };
    let mut volume = image();
    let footer = volume.split_off(volume.len() - 512);
    volume.extend([0x5a; 8192]);
    volume.extend(&footer);
    for strictness in [Strictness::Closed, Strictness::AfterCrash] {
        assert_eq!(found(&volume, Place::Volume, strictness), [""; 0]);
    }
    assert!(found(&volume, Place::File, Strictness::Closed)[0].starts_with("file has"));
    // A block in the way of the footer is wrong whether or not the footer is there.
    let last = volume.len() / 512 - 4097;
    for lost in [0, 1] {
        let mut full = volume.clone();
        set(&mut full, 1536, 4, last as u64);
        let end = full.len();
        full[end - 512..end - 512 + lost].fill(0);
        let problem = format!("block 0 at sector {last} lies beyond the file");
        let all = found(&full, Place::Volume, Strictness::AfterCrash);
        assert!(all.contains(&problem), "{all:?}");
    }
    volume.push(0);
    let all = found(&volume, Place::Volume, Strictness::AfterCrash);
    let odd = format!("a volume of {} bytes is not whole sectors", volume.len());
    assert!(all.contains(&odd), "{all:?}");
}

#[test]
fn a_full_block_needs_a_gap_unless_it_is_the_first() {
    let mut bytes = image();
    // Block 0 goes right behind block 1 and is called full: another tool would cut into block 1.
    bytes.drain(4104 * 512..4111 * 512);
    set(&mut bytes, 1536, 4, 4104);
    bytes[4104 * 512..4105 * 512].fill(0xff);
    bytes[2560] = 0xc0;
    set(&mut bytes, 2072, 4, u64::from(!0xc0u32));
    assert_eq!(
        problems(&bytes, Strictness::Closed),
        [
            "block 0 is not aligned",
            "full block 0 has no gap before it"
        ]
    );
}

#[test]
fn after_a_crash_the_end_may_be_missing_and_the_batmap_torn() {
    let mut bytes = image();
    bytes[2561] = 1;
    bytes.truncate(4112 * 512 + 4096);
    assert_eq!(problems(&bytes, Strictness::AfterCrash), [""; 0]);
    let found = problems(&bytes, Strictness::Closed);
    assert_eq!(found[0], "footer at the end is missing or invalid");
}

#[test]
fn what_is_no_vhd_is_a_problem_not_an_error() {
    for bytes in [&[][..], &[7; 100], &[0; 4096]] {
        let found = problems(bytes, Strictness::AfterCrash);
        assert_eq!(found, ["no valid footer: not a VHD"]);
    }
}

#[test]
fn links_are_compared_by_uuid() {
    let (_a, parent) = stored(&image());
    let mut bytes = image();
    footers(&mut bytes, |f| set(f, 60, 4, 4));
    header(&mut bytes, |h| h[40..56].fill(0x42));
    let (_b, child) = stored(&bytes);
    assert!(
        check_link(&child, Some(&parent))
            .expect("both are there")
            .is_sound()
    );
    assert!(!check_link(&child, None).expect("it is there").is_sound());
    assert!(
        !check_link(&parent, None).expect("it is there").is_sound(),
        "it is no child"
    );
}

#[test]
fn content_is_read_through_the_chain_and_zero_under_clear_bits() {
    let (_a, base) = stored(&image());
    let flat = read_flat(std::slice::from_ref(&base)).expect("it opens");
    let mut expected = vec![0; 4 << 20];
    expected[2 << 20..].fill(b'f');
    expected[1024..1536].fill(b'x');
    assert!(flat.bytes().expect("it reads") == expected);

    let mut bytes = image();
    footers(&mut bytes, |f| set(f, 60, 4, 4));
    header(&mut bytes, |h| h[40..56].fill(0x42));
    set(&mut bytes, 1540, 4, u64::from(u32::MAX));
    bytes[4111 * 512] = 0x80;
    let (_b, leaf) = stored(&bytes);
    expected[..512].fill(b'x');
    assert!(
        read_flat(&[leaf, base])
            .expect("it opens")
            .bytes()
            .expect("it reads")
            == expected
    );
}

fn run(args: &[&Path]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_vhd-check"))
        .args(args)
        .output()
        .expect("it starts");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

#[test]
fn the_command_says_what_is_wrong_by_text_and_exit_code() {
    let (_a, good) = stored(&image());
    let mut bytes = image();
    bytes[2561] = 1;
    let (_b, bad) = stored(&bytes);
    assert_eq!(run(&[&good]), (Some(0), String::new()));
    let (code, text) = run(&[&good, &bad]);
    assert_eq!(
        (code, text),
        (
            Some(1),
            format!("{}: batmap checksum is wrong\n", bad.display())
        )
    );
    assert_eq!(run(&[Path::new("--after-crash"), &bad]).0, Some(0));
    assert_eq!(run(&[Path::new("--chain"), &good, &good]).0, Some(1));
    for usage in [
        &[][..],
        &[Path::new("--no-such")],
        &[Path::new("--flatten"), &good],
    ] {
        assert_eq!(run(usage).0, Some(2));
    }
    let out = good.with_extension("raw");
    assert_eq!(
        run(&[Path::new("--flatten"), &out, &good]),
        (Some(0), String::new())
    );
    let flat = read_flat(&[good])
        .expect("it opens")
        .bytes()
        .expect("it reads");
    assert!(fs::read(&out).expect("it was written") == flat);
}

//! Files that are not what they should be, under the engine: damaged with right checksums, cut off
//! while open, raw disks that look like images. Seeds are fixed; a failure names its case.

use block::{Action, BlockIo, FileId, Op, RamDisk, Rng, SparseBytes};
use datapath::protocol::{Access, Format};
use std::cell::Cell;
use std::io;
use tapdisk::engine::ErrorKind;
use tapdisk::engine::testing::rig::{
    BLOCK, Peek, Rig, SECTOR, child, dynamic, load_chain, ram_with_dynamic,
};
use vhd_rs::{Image, OpenOptions, ReadAt};

/// Cases of damage that are tried.
const CASES: u64 = 1200;

/// Most that a few writes may add to a file: the blocks, and what it is extended ahead.
const GROWTH_MAX: u64 = 96 << 20;

/// A child and its parent, both with blocks, closed.
fn sound() -> (RamDisk, [(FileId, Format); 2]) {
    let mut ram = RamDisk::new();
    let base = (ram.add_file(dynamic(1, 4 * BLOCK)), Format::Vhd);
    let mut rig = Rig::open(ram, &[base]);
    for block in [2, 0] {
        rig.write(block * BLOCK + SECTOR, &[7; 2048])
            .expect("write");
    }
    let mut ram = rig.close();
    let leaf = (ram.add_file(child(2, Some(1), 4 * BLOCK)), Format::Vhd);
    let files = [leaf, base];
    let mut rig = Rig::open(ram, &files);
    for block in [3, 0, 2] {
        rig.write(block * BLOCK, &[8; 1024]).expect("write");
    }
    (rig.close(), files)
}

fn get(file: &SparseBytes, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read(offset, &mut bytes);
    bytes
}

/// Changes a structure and makes its checksum right again.
fn change(file: &mut SparseBytes, at: u64, len: usize, sum_at: usize, rng: &mut Rng) {
    let mut bytes = get(file, at, len);
    let field = rng.below(len as u64 / 4) as usize * 4;
    bytes[field..field + 4].copy_from_slice(&number(rng).to_be_bytes());
    bytes[sum_at..sum_at + 4].fill(0);
    let sum = bytes
        .iter()
        .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    bytes[sum_at..sum_at + 4].copy_from_slice(&(!sum).to_be_bytes());
    file.write(at, &bytes);
}

/// Numbers near which mistakes live.
fn number(rng: &mut Rng) -> u32 {
    match rng.below(5) {
        0 => rng.next_u64() as u32,
        1 => 1 << rng.below(32),
        2 => u32::MAX - rng.below(2) as u32,
        3 => rng.below(16_384) as u32,
        _ => rng.below(5) as u32,
    }
}

fn damage(file: &mut SparseBytes, rng: &mut Rng) {
    let end = file.size_bytes() - 512;
    let table = u64::from_be_bytes(*get(file, 512 + 16, 8).first_chunk().expect("eight"));
    match rng.below(8) {
        // One footer, or both alike.
        0 => change(file, [0, end][rng.below(2) as usize], 512, 64, rng),
        1 => {
            change(file, 0, 512, 64, rng);
            let copy = get(file, 0, 512);
            file.write(end, &copy);
        }
        2 | 3 => change(file, 512, 1024, 36, rng),
        4 => file.write(table + rng.below(5) * 4, &number(rng).to_be_bytes()),
        // Bitmaps, and whatever else lies there.
        5 => {
            let entry = get(file, table, 4);
            let sector = u32::from_be_bytes(*entry.first_chunk().expect("four"));
            let at = u64::from(sector) * SECTOR + rng.below(512);
            if at < end {
                file.write(at, &[rng.below(256) as u8]);
            }
        }
        // The batmap behind the table.
        6 => file.write(table + rng.below(3072), &[rng.below(256) as u8]),
        _ => file.truncate(rng.below(file.size_bytes() + 1024)),
    }
}

#[test]
fn damaged_images_are_refused_or_keep_what_is_written_to_them() {
    let (sound, files) = sound();
    let (mut served, mut refused) = (0, 0);
    for case in 0..CASES {
        let mut rng = Rng::new(case);
        let mut contents: Vec<SparseBytes> = sound.files().to_vec();
        // The leaf comes second; the parent is hit now and then.
        let hit = usize::from(!rng.one_in(4));
        for _ in 0..1 + rng.below(2) {
            damage(&mut contents[hit], &mut rng);
            if contents[hit].size_bytes() < 4096 {
                break;
            }
        }
        let before = contents[1].size_bytes();
        let ram = RamDisk::from(contents);
        match keeps(ram, &files, &mut rng) {
            None => refused += 1,
            Some(after) => {
                served += 1;
                let grown = after.saturating_sub(before);
                assert!(grown <= GROWTH_MAX, "case {case}: {grown} bytes more");
            }
        }
    }
    println!("{served} served, {refused} refused");
    assert!(
        served > CASES / 10 && refused > CASES / 10,
        "{served} served, {refused} refused"
    );
}

/// Writes to a chain, opens it again and compares; the leaf's size in the end, or nothing if the
/// chain was refused at first. What was accepted once must be accepted again.
fn keeps(ram: RamDisk, files: &[(FileId, Format)], rng: &mut Rng) -> Option<u64> {
    let layers = load_chain(&ram, files, Access::ReadWrite).ok()?;
    let mut rig = Rig::with_layers(ram, layers, Access::ReadWrite).ok()?;
    let sectors = (rig.engine.size_bytes() / SECTOR).min(4 * 4096);
    let mut written: Vec<(u64, Vec<u8>)> = Vec::new();
    for _ in 0..4 {
        let first = rng.below(sectors);
        let len = (1 + rng.below(8)).min(sectors - first);
        let data = vec![rng.below(255) as u8 + 1; (len * SECTOR) as usize];
        let apart = |(other, bytes): &(u64, Vec<u8>)| {
            first + len <= *other || other + bytes.len() as u64 / SECTOR <= first
        };
        if !written.iter().all(apart) {
            continue;
        }
        match rig.write(first * SECTOR, &data) {
            Ok(()) => written.push((first, data)),
            Err(e) => assert!(matches!(e.kind, ErrorKind::Io | ErrorKind::NoSpace), "{e}"),
        }
    }
    // A file that is shorter than its metadata says may have parts that cannot be read.
    let untouched: Vec<(u64, Vec<u8>)> = (0..sectors / 4096)
        .map(|block| block * 4096 + 100)
        .filter_map(|first| Some((first, rig.read(first * SECTOR, SECTOR).ok()?)))
        .collect();
    let compare = |rig: &mut Rig<RamDisk>| {
        for (first, data) in written.iter().chain(&untouched) {
            let read = rig.read(first * SECTOR, data.len() as u64);
            assert!(
                read.as_ref() == Ok(data),
                "sector {first} is lost: {:?}",
                read.err()
            );
        }
    };
    compare(&mut rig);
    let ram = rig.close();
    let layers = load_chain(&ram, files, Access::ReadWrite).expect("it opened before");
    let mut rig = Rig::with_layers(ram, layers, Access::ReadWrite).expect("it opened before");
    compare(&mut rig);
    Some(rig.io.peek(files[0].0).size_bytes())
}

#[test]
fn a_file_cut_off_while_it_is_open_fails_where_it_is_cut_and_nowhere_else() {
    let (ram, files) = ram_with_dynamic(3 * BLOCK);
    let mut rig = Rig::open(ram, &files);
    for block in 0..3 {
        rig.write(block * BLOCK, &[5; 1024]).expect("write");
    }
    rig.flush().expect("flush");
    let whole = rig.io.peek(files[0].0).size_bytes();
    let cut = Op {
        token: 0,
        file: files[0].0,
        action: Action::Truncate {
            size_bytes: 2 * BLOCK,
        },
    };
    rig.io.run(cut, &mut Vec::new()).expect("it is cut");
    assert!(whole > 2 * BLOCK);
    for block in [0, 1] {
        let read = rig.read(block * BLOCK, 1024).expect("before the cut");
        assert_eq!(read, [5; 1024]);
    }
    let error = rig.read(2 * BLOCK, 1024).map(|_| "data");
    assert_eq!(error.expect_err("behind the cut").kind, ErrorKind::Io);
    rig.write(SECTOR, &[6; 512]).expect("before the cut");
    rig.write(2 * BLOCK, &[6; 512])
        .expect("a write makes the file longer");
    assert_eq!(
        rig.read(2 * BLOCK, 512).expect("what was written"),
        [6; 512]
    );
    rig.flush().expect("flush");
}

#[test]
fn a_raw_disk_with_an_image_in_it_is_raw_alone_and_below_a_child() {
    let image = dynamic(1, 3 * BLOCK);
    let bytes = image.to_vec();
    let len = bytes.len() as u64 / SECTOR * SECTOR;
    let mut ram = RamDisk::new();
    let raw = (ram.add_file(image), Format::Raw);
    let leaf = (ram.add_file(child(2, None, 3 * BLOCK)), Format::Vhd);
    for files in [vec![raw], vec![leaf, raw]] {
        let mut rig = Rig::open(ram, &files);
        let read = rig.read(0, len).expect("read");
        assert!(read == bytes[..len as usize], "{files:?} reads otherwise");
        rig.write(0, &bytes[..512])
            .expect("the guest may write a footer");
        ram = rig.close();
    }
    assert!(
        ram.peek(raw.0).to_vec() == bytes,
        "the raw disk is what the guest wrote"
    );
}

/// A file of which one read fails.
struct Failing<'a> {
    file: &'a SparseBytes,
    reads_until: Cell<u64>,
}

impl ReadAt for Failing<'_> {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.file.size_bytes())
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let left = self.reads_until.get();
        self.reads_until.set(left.wrapping_sub(1));
        if left == 0 {
            return Err(io::Error::other("the nth read"));
        }
        let inside = self.file.read(offset, buffer);
        (inside == buffer.len())
            .then_some(())
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

#[test]
fn a_piece_of_metadata_that_cannot_be_read_is_an_error_and_never_another_image() {
    let (sound, files) = sound();
    for ((file, _), present) in files.into_iter().zip([3, 2]) {
        let whole = sound.file(file).expect("a file");
        let blocks = |image: &Image| {
            let entry = |block: &u32| image.bat().and_then(|bat| bat.get(*block)).is_some();
            (0..image.blocks()).filter(entry).count()
        };
        let mut failed = 0;
        for nth in 0.. {
            let medium = Failing {
                file: whole,
                reads_until: Cell::new(nth),
            };
            let image = Image::open(&medium, OpenOptions::default());
            let struck = medium.reads_until.get() > nth;
            match image {
                Ok(image) if !struck => {
                    assert_eq!(blocks(&image), present, "{file:?}");
                    break;
                }
                Ok(_) => panic!("{file:?}: read {nth} failed and nobody noticed"),
                Err(error) => assert_eq!(error.kind(), vhd_rs::ErrorKind::Io, "{error}"),
            }
            failed += 1;
        }
        assert!(failed >= 4, "{file:?}: only {failed} reads");
    }
}

//! Resizes under a journal, cut off anywhere, and the journal damaged: reverting brings back one of
//! the two states, or says that it cannot.

use crate::guard::bounded;
use crate::images::{self, Wish};
use crate::input::Input;
use crate::oracle::{self, Medium};
use std::io;
use vhd_rs::journal::{ENTRY_HEADER_BYTES, Entry, JOURNAL_HEADER_BYTES, JournalHeader};
use vhd_rs::{Access, Allow, Extent, Image, OpenOptions, ReadAt, WriteAt};
use vhd_util::journal::{Named, Outcome, perform, revert};

const OPTIONS: OpenOptions = OpenOptions {
    extent: Extent::Grows,
    access: Access::ReadWrite,
};

/// See the module's page.
pub fn target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    if input.one_in(4) {
        any_pieces(&mut input);
        return;
    }
    let made = if input.one_in(4) {
        images::fixed(&mut input, 1)
    } else {
        let parent = input.one_in(3).then(|| images::uuid(2));
        let wish = Wish {
            number: 1,
            parent,
            blocks_max: 5,
            by_tap: true,
        };
        images::sparse(&mut input, wish)
    };
    let before = made.medium;
    let image = open(&before).expect("a sound image");
    // Fixed disks grow by real zeros.
    let steps: &[u64] = if image.bat().is_none() {
        &[2 << 20, 0]
    } else {
        &[2 << 20, 1 << 30, 1 << 36, 0]
    };
    let wanted = image.virtual_bytes() + input.pick(steps);
    let Ok(relayout) = image.relayout(wanted) else {
        return;
    };
    let mut after = Cut {
        medium: before.clone(),
        left: input.pick(&[u64::MAX, 0, 1, 3, 9, 20, 40]),
    };
    let mut journal = Cut {
        medium: Medium::default(),
        left: input.pick(&[u64::MAX, u64::MAX, 2, 5, 9, 30]),
    };
    let identity = (image.uuid(), Extent::Grows);
    let done = perform(
        &mut named("image", &mut after),
        &mut named("journal", &mut journal),
        identity,
        &relayout,
    );
    let (mut after, mut journal) = (after.medium, journal.medium);
    if done.is_ok() {
        let image = open(&after).expect("a resize that worked");
        assert!(image.virtual_bytes() >= wanted.min(image.virtual_bytes()));
    }
    let damaged = input.one_in(2);
    if damaged {
        damage(&mut input, &mut journal);
    }
    let reverted = revert_bounded(&mut after, &mut journal);
    if damaged && reverted.is_err() {
        return;
    }
    let outcome = reverted.unwrap_or_else(|e| panic!("a good journal is not reverted: {e}"));
    if !damaged {
        one_of_two(&before, &after, outcome, done.is_ok());
    }
}

fn open(medium: &Medium) -> Result<Image, vhd_rs::Error> {
    oracle::open(medium, OPTIONS, Allow::default())
}

fn named<'a, M>(name: &'static str, medium: &'a mut M) -> Named<'a, M> {
    Named { name, medium }
}

/// An entry's data is read whole, so a journal justifies its own size and some buffers.
fn revert_bounded(
    after: &mut Medium,
    journal: &mut Medium,
) -> Result<Outcome, vhd_util::journal::Failure> {
    let limit = (512 << 10) + 3 * journal.0.size_bytes() + oracle::open_limit_bytes(after);
    // What is written becomes part of the medium, which is memory here.
    let limit = limit + 2 * journal.0.size_bytes();
    bounded("a revert", limit, || {
        revert(
            &mut named("image", after),
            &mut named("journal", journal),
            Extent::Grows,
        )
    })
}

/// The image is what it was, or what it was to be.
fn one_of_two(before: &Medium, after: &Medium, outcome: Outcome, done: bool) {
    let (old, new) = (open(before).expect("it was sound"), open(after));
    let new = new.unwrap_or_else(|e| panic!("{outcome:?} leaves an image that does not open: {e}"));
    match outcome {
        Outcome::Reverted => assert_eq!(new.virtual_bytes(), old.virtual_bytes()),
        Outcome::Finished => assert!(new.virtual_bytes() >= old.virtual_bytes()),
        Outcome::Nothing => assert!(done || new.virtual_bytes() == old.virtual_bytes()),
    }
    for sector in oracle::sectors_to_see(&old) {
        let (was, is) = (
            oracle::sector_of(&old, &before.0, sector),
            oracle::sector_of(&new, &after.0, sector),
        );
        assert_eq!(was, is, "sector {sector} after {outcome:?}");
    }
}

/// Fields of the header and of entries, with checksums put right.
fn damage(input: &mut Input<'_>, journal: &mut Medium) {
    let content = &mut journal.0;
    for _ in 0..1 + input.below(4) {
        match input.below(4) {
            0 => {
                let (at, width) = input.pick(&[
                    (0, 8),
                    (8, 8),
                    (24, 8),
                    (32, 4),
                    (36, 4),
                    (40, 8),
                    (48, 8),
                    (56, 8),
                ]);
                let value = input.odd(&[content.size_bytes(), 512]).to_be_bytes();
                content.write(at, value.get(8 - width..).unwrap_or_default());
            }
            1 => damage_entry(input, content),
            2 => content.truncate(input.below(content.size_bytes() + 1)),
            _ => content.write(input.below(2048), &[input.number() as u8]),
        }
    }
}

fn damage_entry(input: &mut Input<'_>, content: &mut block::SparseBytes) {
    let mut at = 512;
    for _ in 0..input.below(5) {
        let mut len = [0; 4];
        content.read(at + 12, &mut len);
        at += ENTRY_HEADER_BYTES as u64 + u64::from(u32::from_be_bytes(len));
    }
    if at > content.size_bytes() {
        return;
    }
    let (field, width) = input.pick(&[(0, 8), (8, 4), (12, 4), (16, 8), (24, 4)]);
    let value = input.odd(&[content.size_bytes(), 512, 1536]).to_be_bytes();
    content.write(at + field, value.get(8 - width..).unwrap_or_default());
    if input.one_in(4) {
        return;
    }
    let mut head = [0; ENTRY_HEADER_BYTES];
    content.read(at, &mut head);
    head[24..28].fill(0);
    let len = u32::from_be_bytes([head[12], head[13], head[14], head[15]]).min(1 << 20);
    let mut data = vec![0; len as usize];
    content.read(at + ENTRY_HEADER_BYTES as u64, &mut data);
    let sum = head
        .iter()
        .chain(&data)
        .map(|byte| u32::from(*byte))
        .sum::<u32>();
    content.write(at + 24, &(!sum).to_be_bytes());
}

/// Headers and entries of any bytes come out as they went in, or not at all.
fn any_pieces(input: &mut Input<'_>) {
    let mut sector = [0u8; JOURNAL_HEADER_BYTES];
    let given = input.bytes(80);
    sector[..given.len()].copy_from_slice(&given);
    sector[..8].copy_from_slice(b"vjournal");
    if let Ok(header) = JournalHeader::parse(&sector) {
        assert_eq!(
            JournalHeader::parse(&header.to_bytes()).expect("it was one"),
            header
        );
    }
    let mut head = [0u8; ENTRY_HEADER_BYTES];
    let given = input.bytes(32);
    head[..given.len()].copy_from_slice(&given);
    head[..8].copy_from_slice(&0xaaaa_1234_4321_aaaau64.to_be_bytes());
    head[8..12].copy_from_slice(&(input.below(10) as u32).to_be_bytes());
    if let Ok(entry) = Entry::parse(&head) {
        assert_eq!(entry.to_bytes(), head);
        let _ = entry.check(&given);
    }
}

/// A medium that takes so many writes and then fails.
struct Cut {
    medium: Medium,
    left: u64,
}

impl Cut {
    fn spend(&mut self) -> io::Result<()> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("cut off"))?;
        Ok(())
    }
}

impl ReadAt for Cut {
    fn size_bytes(&self) -> io::Result<u64> {
        self.medium.size_bytes()
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.medium.read_exact_at(offset, buffer)
    }
}

impl WriteAt for Cut {
    fn write_all_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.spend()?;
        self.medium.write_all_at(offset, bytes)
    }

    fn set_size(&mut self, bytes: u64) -> io::Result<()> {
        self.spend()?;
        self.medium.set_size(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.medium.flush()
    }
}

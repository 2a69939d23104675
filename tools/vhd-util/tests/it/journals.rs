//! Journaled resizes cut off at every write and every flush, and their repair cut off too.

use crate::power::{Fuel, Sim};
use crate::support::MIB;
use std::collections::BTreeMap;
use std::rc::Rc;
use uuid::Uuid;
use vhd_checker::{Strictness, check};
use vhd_rs::{
    Access, Block, Content, Extent, Image, NewImage, OpenOptions, ParentLink, Relayout, Timestamp,
    bitmap,
};
use vhd_util::journal::{Named, Outcome, perform, revert};

const UUID: Uuid = Uuid::from_u128(0x11111111_2222_4333_8444_555555555555);

/// Enough for everything.
const ENDLESS: u32 = 1_000_000;

/// A resize to be cut off.
struct Case {
    name: &'static str,
    content: Content,
    extent: Extent,
    from_bytes: u64,
    to_bytes: u64,
}

fn cases() -> Vec<Case> {
    let case = |name, content: &Content, extent, from_mib: u64, to_mib: u64| Case {
        name,
        content: content.clone(),
        extent,
        from_bytes: from_mib * MIB,
        to_bytes: to_mib * MIB,
    };
    let child = Content::Differencing(ParentLink {
        path: "p.vhd".into(),
        uuid: Uuid::from_u128(7),
        modified: Timestamp(0),
    });
    vec![
        // Large enough for the metadata to reach into the first block.
        case("child", &child, Extent::Grows, 4, 2000),
        case("volume", &Content::Dynamic, Extent::Reserved, 4, 600),
        case("fixed up", &Content::Fixed, Extent::Grows, 2, 4),
        case("fixed down", &Content::Fixed, Extent::Grows, 4, 2),
        case("fixed volume up", &Content::Fixed, Extent::Reserved, 2, 4),
        case("fixed volume down", &Content::Fixed, Extent::Reserved, 4, 2),
    ]
}

impl Case {
    fn options(&self) -> OpenOptions {
        OpenOptions {
            extent: self.extent,
            access: Access::ReadWrite,
        }
    }

    /// The image before the resize: every block there is, one of them with holes.
    fn image(&self) -> Vec<u8> {
        let fixed = self.content == Content::Fixed;
        let volume_mib = if fixed { 5 } else { 7 };
        let new = NewImage {
            uuid: UUID,
            created: Timestamp(1),
            virtual_bytes: self.from_bytes,
            resize_max_bytes: 0,
            content: self.content.clone(),
            extent: self.extent,
            container_bytes: volume_mib * MIB,
        };
        let mut bytes = match self.extent {
            Extent::Grows => Vec::new(),
            // A volume that has been used before.
            Extent::Reserved => vec![0x5a; (volume_mib as usize) << 20],
        };
        new.plan()
            .expect("a sound image")
            .apply(&mut bytes)
            .expect("a sound image");
        let mut image = Image::open(&bytes, self.options()).expect("a sound image");
        for block in 0..image.blocks() {
            let (bitmap_at, data_at) = match image.block(block) {
                Block::Fixed { data_offset } => (None, data_offset),
                _ => {
                    let place = image.reserve(block).expect("a sound image");
                    image.commit(&place).expect("a sound image");
                    let needed = image.size_needed_bytes() as usize;
                    bytes.resize(bytes.len().max(needed), 0);
                    let sector = image.bat_sector(block).expect("a sound image");
                    put(&mut bytes, sector.offset, &sector.bytes);
                    (Some(place.bitmap_offset), place.data_offset)
                }
            };
            let data: Vec<u8> = (0..4096u32)
                .flat_map(|n| [(n % 251) as u8 + block as u8; 512])
                .collect();
            put(&mut bytes, data_at, &data);
            if let Some(at) = bitmap_at {
                let set = if block == 0 { 512 } else { 300 };
                put(&mut bytes, at, &[0xff; 512][..set]);
                put(&mut bytes, at + set as u64, &[0; 512][set..]);
            }
        }
        image.set_full(0);
        image
            .close_plan()
            .expect("a sound image")
            .apply(&mut bytes)
            .expect("a sound image");
        bytes
    }

    fn relayout(&self, bytes: &Vec<u8>) -> Relayout {
        let image = Image::open(bytes, self.options()).expect("a sound image");
        image.relayout(self.to_bytes).expect("a sound image")
    }

    /// Performs the resize; `Err` if power went off.
    fn resize(&self, image: &mut Sim, journal: &mut Sim, relayout: &Relayout) -> Result<(), ()> {
        let mut image = Named {
            name: "image",
            medium: image,
        };
        let mut journal = Named {
            name: "journal",
            medium: journal,
        };
        perform(&mut image, &mut journal, (UUID, self.extent), relayout).map_err(drop)
    }

    fn revert(&self, image: &mut Sim, journal: &mut Sim) -> Result<Outcome, String> {
        let mut image = Named {
            name: "image",
            medium: image,
        };
        let mut journal = Named {
            name: "journal",
            medium: journal,
        };
        revert(&mut image, &mut journal, self.extent).map_err(|e| format!("{e}: {e:?}"))
    }
}

fn put(bytes: &mut [u8], at: u64, new: &[u8]) {
    bytes[at as usize..at as usize + new.len()].copy_from_slice(new);
}

fn fuel(operations: u32) -> Fuel {
    Rc::new(std::cell::Cell::new(operations))
}

/// Size and all sectors that are present, by block.
fn content(bytes: &Vec<u8>, options: OpenOptions) -> (u64, BTreeMap<u32, Vec<u8>>) {
    let image = Image::open(bytes, options).expect("an image that opens");
    assert!(image.is_clean() && image.batmap_problem().is_none());
    let mut blocks = BTreeMap::new();
    for block in 0..image.blocks() {
        let (bits, data_at) = match image.block(block) {
            Block::Unallocated => continue,
            Block::Fixed { data_offset } => ([0xff; 512], data_offset),
            Block::Allocated {
                bitmap_offset,
                data_offset,
                full,
            } => {
                let mut bits = [0; 512];
                bits.copy_from_slice(&bytes[bitmap_offset as usize..][..512]);
                assert!(!full || bitmap::is_full(&bits));
                (bits, data_offset)
            }
        };
        let mut data = bytes[data_at as usize..][..2 << 20].to_vec();
        for run in bitmap::runs(&bits, 0..4096).filter(|run| !run.present) {
            data[run.sectors.start as usize * 512..run.sectors.end as usize * 512].fill(0);
        }
        blocks.insert(block, data);
    }
    (image.virtual_bytes(), blocks)
}

#[test]
fn a_resize_cut_off_anywhere_is_reverted_or_finished() {
    for case in cases() {
        let before = case.image();
        let relayout = case.relayout(&before);
        let (mut image, mut journal) = (
            Sim::new(before.clone(), fuel(ENDLESS)),
            Sim::new(Vec::new(), fuel(ENDLESS)),
        );
        case.resize(&mut image, &mut journal, &relayout).unwrap();
        let content_before = content(&before, case.options());
        let content_after = content(&image.after_power_cut(0), case.options());
        assert_eq!(content_after.0, case.to_bytes, "{}", case.name);
        for (block, data) in &content_before.1 {
            assert!(
                content_after.1.get(block).is_none_or(|after| after == data),
                "{}: block {block}",
                case.name
            );
        }
        let mut seen = [0u32; 2];
        for operations in 0.. {
            let fuel = fuel(operations);
            let mut image = Sim::new(before.clone(), fuel.clone());
            let mut journal = Sim::new(Vec::new(), fuel);
            let done = case.resize(&mut image, &mut journal, &relayout).is_ok();
            for way in [u64::from(operations % 2), 2 + u64::from(operations)] {
                let what = format!("{} after {operations} operations, way {way}", case.name);
                let states = (image.after_power_cut(way), journal.after_power_cut(way * 9));
                let reached = repaired(&case, &states, operations, &what);
                let now = content(&reached, case.options());
                assert!(now == content_before || now == content_after, "{what}");
                assert!(!done || now == content_after, "{what}");
                seen[usize::from(now == content_after)] += 1;
            }
            if done {
                break;
            }
        }
        assert!(
            seen.iter().all(|&count| count > 3),
            "{}: {seen:?}",
            case.name
        );
    }
}

/// The image after its journal was applied, also by a repair that was itself cut off.
fn repaired(
    case: &Case,
    (image, journal): &(Vec<u8>, Vec<u8>),
    operations: u32,
    what: &str,
) -> Vec<u8> {
    let media = |image: &[u8], left: u32| {
        let fuel = fuel(left);
        (
            Sim::new(image.to_vec(), fuel.clone()),
            Sim::new(journal.clone(), fuel),
        )
    };
    let (mut whole, mut undo) = media(image, ENDLESS);
    let outcome = case.revert(&mut whole, &mut undo);
    let outcome = outcome.unwrap_or_else(|e| panic!("{what}: {e}"));
    let whole = whole.after_power_cut(0);
    if outcome == Outcome::Nothing {
        return whole;
    }
    // The repair is cut off as well, one operation later each time.
    let (mut cut, mut undo) = media(image, 1 + operations % 14);
    let _may_succeed = case.revert(&mut cut, &mut undo);
    let (mut again, mut undo) = media(&cut.after_power_cut(u64::from(operations)), ENDLESS);
    let second = case.revert(&mut again, &mut undo);
    second.unwrap_or_else(|e| panic!("{what}, second repair: {e}"));
    let again = again.after_power_cut(0);
    assert!(
        content(&again, case.options()) == content(&whole, case.options()),
        "{what}"
    );
    whole
}

#[test]
fn what_comes_out_of_a_resize_is_sound_to_the_checker() {
    for case in cases()
        .into_iter()
        .filter(|case| case.extent == Extent::Grows)
    {
        let before = case.image();
        let relayout = case.relayout(&before);
        let whole = {
            let (mut image, mut journal) = (
                Sim::new(before.clone(), fuel(ENDLESS)),
                Sim::new(Vec::new(), fuel(ENDLESS)),
            );
            case.resize(&mut image, &mut journal, &relayout).unwrap();
            image.after_power_cut(0)
        };
        let half = {
            let fuel = fuel(40);
            let (mut image, mut journal) = (
                Sim::new(before.clone(), fuel.clone()),
                Sim::new(Vec::new(), fuel.clone()),
            );
            let cut = case.resize(&mut image, &mut journal, &relayout);
            assert!(cut.is_err() || case.content == Content::Fixed);
            fuel.set(ENDLESS);
            let (mut image, mut journal) = (
                Sim::new(image.after_power_cut(2), fuel.clone()),
                Sim::new(journal.after_power_cut(2), fuel),
            );
            case.revert(&mut image, &mut journal).unwrap();
            image.after_power_cut(0)
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        for bytes in [whole, half] {
            std::fs::write(file.path(), bytes).unwrap();
            let report = check(file.path(), Strictness::Closed).unwrap();
            assert_eq!(report.problems, [], "{}", case.name);
        }
    }
}

#[test]
fn the_journal_has_the_layout_other_tools_read() {
    let case = &cases()[0];
    let before = case.image();
    let relayout = case.relayout(&before);
    // Power goes off right after the image was disabled.
    let fuel = fuel(2 + 2 * relayout.saves.len() as u32 + 3 + 3);
    let mut image = Sim::new(before.clone(), fuel.clone());
    let mut journal = Sim::new(Vec::new(), fuel);
    case.resize(&mut image, &mut journal, &relayout)
        .unwrap_err();
    let journal = journal.after_power_cut(0);
    let number = |at: usize, len: usize| {
        journal[at..at + len]
            .iter()
            .fold(0u64, |n, &b| n << 8 | u64::from(b))
    };
    assert_eq!(&journal[..8], b"vjournal");
    assert_eq!(&journal[8..24], UUID.as_bytes());
    assert_eq!(number(24, 8), before.len() as u64 - 512);
    // One block is in the way: its bitmap and its data. Footers, header, table, batmap.
    assert_eq!((number(32, 4), number(36, 4)), (2, 9));
    assert_eq!(number(48, 8), 512);
    let end = u64::from_le_bytes(journal[56..64].try_into().unwrap());
    assert_eq!(end, journal.len() as u64);
    let mut at = 512;
    let mut kinds = Vec::new();
    while at < journal.len() {
        if at as u64 == number(40, 8) {
            kinds.push(0);
        }
        assert_eq!(number(at, 8), 0xaaaa_1234_4321_aaaa);
        let (kind, len, offset) = (
            number(at + 8, 4),
            number(at + 12, 4) as usize,
            number(at + 16, 8) as usize,
        );
        let data = &journal[at + 32..at + 32 + len];
        assert!(data == &before[offset..offset + len], "entry {kind}");
        let head = journal[at..at + 24]
            .iter()
            .chain(&journal[at + 28..at + 32]);
        let sum = head
            .chain(data)
            .fold(0u32, |sum, &byte| sum.wrapping_add(u32::from(byte)));
        assert_eq!(number(at + 24, 4), u64::from(!sum));
        kinds.push(kind);
        at += 32 + len;
    }
    assert_eq!(kinds, [1, 2, 3, 4, 4, 4, 5, 6, 7, 0, 8, 8]);
    let image = image.after_power_cut(0);
    assert_eq!(&image[..8], b"v_poison");
    assert_eq!(&image[before.len() - 512..][..8], b"v_poison");
}

#[test]
fn journals_that_are_damaged_or_anothers_change_nothing() {
    let case = &cases()[0];
    let before = case.image();
    let relayout = case.relayout(&before);
    let fuel = fuel(30);
    let (mut image, mut journal) = (
        Sim::new(before.clone(), fuel.clone()),
        Sim::new(Vec::new(), fuel),
    );
    case.resize(&mut image, &mut journal, &relayout)
        .unwrap_err();
    let (image, journal) = (image.after_power_cut(1), journal.after_power_cut(1));
    assert_eq!(&image[..8], b"v_poison");
    for (at, expected) in [
        (0, "journal.cookie"),
        (8, "belongs to"),
        (31, "journal.footer_offset"),
        (512, "entry.cookie"),
        (523, "entry.type"),
        (527, "entry.size"),
        (600, "entry.checksum"),
    ] {
        let mut journal = journal.clone();
        journal[at] ^= 0x55;
        let endless = self::fuel(ENDLESS);
        let (mut image, mut journal) = (
            Sim::new(image.clone(), endless.clone()),
            Sim::new(journal, endless),
        );
        let said = case.revert(&mut image, &mut journal).unwrap_err();
        assert!(said.contains(expected), "{at}: {said}");
        assert_eq!(&image.after_power_cut(1)[..8], b"v_poison", "{at}");
    }
    // An image that is not in the middle of anything takes nothing from any journal.
    let endless = self::fuel(ENDLESS);
    let (mut image, mut journal) = (
        Sim::new(before.clone(), endless.clone()),
        Sim::new(journal, endless),
    );
    assert_eq!(case.revert(&mut image, &mut journal), Ok(Outcome::Nothing));
    assert!(image.after_power_cut(1) == before);
}

/// Whatever a journal says, it makes an image no larger than it was, and takes no more memory than
/// the journal has.
#[test]
fn journals_that_claim_more_than_there_was_change_nothing() {
    let case = &cases()[0];
    let before = case.image();
    let relayout = case.relayout(&before);
    let fuel = fuel(30);
    let (mut image, mut journal) = (
        Sim::new(before.clone(), fuel.clone()),
        Sim::new(Vec::new(), fuel),
    );
    case.resize(&mut image, &mut journal, &relayout)
        .unwrap_err();
    let (image, journal) = (image.after_power_cut(1), journal.after_power_cut(1));
    let (first, len) = (512, 512 + 32);
    for (at, number, expected) in [
        // 32 MiB in a journal of less.
        (
            first + 12,
            (32u32 << 20).to_be_bytes().to_vec(),
            "journal fails at byte",
        ),
        (
            first + 16,
            (1u64 << 50).to_be_bytes().to_vec(),
            "for byte 1125899906842624",
        ),
    ] {
        let mut journal = journal.clone();
        put(&mut journal, at, &number);
        let entry = &mut journal[first as usize..][..len];
        entry[24..28].fill(0);
        let sum = entry.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        entry[24..28].copy_from_slice(&(!sum).to_be_bytes());
        let endless = self::fuel(ENDLESS);
        let (mut image, mut journal) = (
            Sim::new(image.clone(), endless.clone()),
            Sim::new(journal, endless),
        );
        let said = case.revert(&mut image, &mut journal).unwrap_err();
        assert!(said.contains(expected), "{said}");
        assert_eq!(&image.after_power_cut(1)[..8], b"v_poison");
    }
}

//! Properties: what is written is read, whatever is flipped is noticed or harmless, and no bytes
//! make opening panic or believe in blocks that share bytes.

use crate::support::{
    MIB, PARENT, READ_WRITE, UUID, Writer, differencing, dynamic_with_blocks, link, new_image, put,
    reseal,
};
use proptest::prelude::*;
use std::path::PathBuf;
use uuid::Uuid;
use vhd_checker::{Place, Strictness, check_in, check_link, read_flat};
use vhd_rs::{
    Access, Block, Content, Creator, DiskType, Extent, Footer, Geometry, Header, Image,
    LocatorCode, LocatorEntry, OpenOptions, Timestamp, bitmap,
};

fn footers() -> impl Strategy<Value = Footer> {
    let creator = (any::<[u8; 4]>(), any::<u32>(), any::<u32>())
        .prop_filter("not the checked creator", |(app, ..)| {
            !app.starts_with(b"tap")
        })
        .prop_map(|(application, version, os)| Creator {
            application,
            version,
            os,
        });
    let kind = prop_oneof![
        Just((DiskType::Fixed, None)),
        (1u64..1 << 40).prop_map(|n| (DiskType::Dynamic, Some(n * 512))),
        (1u64..1 << 40).prop_map(|n| (DiskType::Differencing, Some(n * 512))),
    ];
    let rest = (
        any::<u32>(),
        any::<u64>(),
        1u64..1 << 35,
        any::<[u16; 3]>(),
        any::<[u8; 2]>(),
    );
    (creator, kind, any::<u128>(), rest).prop_map(
        |(creator, (disk_type, header_offset), uuid, (time, original, sectors, chs, flags))| {
            Footer {
                features: 2,
                header_offset,
                created: Timestamp(time),
                creator,
                original_bytes: original,
                virtual_bytes: sectors * 512,
                geometry: Geometry {
                    cylinders: chs[0],
                    heads: chs[1] as u8,
                    sectors_per_track: chs[2] as u8,
                },
                disk_type,
                uuid: Uuid::from_u128(uuid),
                saved_state: flags[0],
                hidden: flags[1],
            }
        },
    )
}

fn locators() -> impl Strategy<Value = LocatorEntry> {
    let codes = prop_oneof![
        Just(LocatorCode::MacX),
        Just(LocatorCode::W2ku),
        Just(LocatorCode::W2ru),
        Just(LocatorCode::Obsolete(*b"Wi2r")),
    ];
    let used = (codes, 1u32..512, any::<u16>(), any::<u32>()).prop_map(|(code, space, len, at)| {
        LocatorEntry {
            code,
            data_space: space,
            data_len: u32::from(len) % (space * 512 + 1),
            data_offset: u64::from(at),
        }
    });
    prop_oneof![Just(LocatorEntry::NONE), used]
}

fn headers() -> impl Strategy<Value = Header> {
    let numbers = (
        1u64..1 << 40,
        any::<u32>(),
        9u32..22,
        any::<u128>(),
        any::<u32>(),
    );
    let name = "[a-zé𝄞]{0,60}";
    (numbers, name, prop::array::uniform8(locators())).prop_map(
        |((table, entries, shift, uuid, time), parent_name, locators)| Header {
            table_offset: table * 512,
            max_table_entries: entries,
            block_bytes: 1 << shift,
            parent_uuid: Uuid::from_u128(uuid),
            parent_modified: Timestamp(time),
            parent_name,
            locators,
        },
    )
}

proptest! {
    #[test]
    fn footers_survive_their_bytes(footer in footers()) {
        prop_assert_eq!(Footer::parse(&footer.to_bytes()).unwrap(), footer);
    }

    #[test]
    fn headers_survive_their_bytes(header in headers()) {
        prop_assert_eq!(Header::parse(&header.to_bytes().unwrap()).unwrap(), header);
    }

    #[test]
    fn bitmap_ranges_agree_with_single_bits(
        mut map in any::<[u8; 16]>(),
        start in 0u32..140,
        len in 0u32..140,
        set in any::<bool>(),
    ) {
        let before = map;
        let range = start..start + len;
        let changed = if set {
            bitmap::set_range(&mut map, range.clone())
        } else {
            bitmap::clear_range(&mut map, range.clone())
        };
        prop_assert_eq!(changed, map != before);
        for bit in 0..128u32 {
            let old = before[bit as usize / 8] >> (7 - bit % 8) & 1 == 1;
            prop_assert_eq!(bitmap::get(&map, bit), if range.contains(&bit) { set } else { old });
        }
        let runs: Vec<bitmap::Run> = bitmap::runs(&map, 0..140).collect();
        let bits: Vec<bool> =
            runs.iter().flat_map(|r| r.sectors.clone().map(|_| r.present)).collect();
        prop_assert_eq!(bits, (0..140).map(|bit| bitmap::get(&map, bit)).collect::<Vec<_>>());
        prop_assert!(runs.windows(2).all(|pair| pair[0].present != pair[1].present));
    }

    #[test]
    fn any_flipped_bit_of_metadata_is_refused_or_harmless(
        diff in any::<bool>(),
        at in any::<prop::sample::Index>(),
        bit in 0u32..8,
    ) {
        let mut bytes = if diff { differencing() } else { dynamic_with_blocks(&[3, 0, 31]) };
        let metadata: Vec<usize> = (0..if diff { 4608 } else { 3072 })
            .chain(bytes.len() - 512..bytes.len())
            .collect();
        bytes[*at.get(&metadata)] ^= 1 << bit;
        consistent(&bytes)?;
    }

    /// Fields of any value under right checksums, tables of any entries.
    #[test]
    fn any_fields_with_right_checksums_are_refused_or_consistent(
        diff in any::<bool>(),
        footer_fields in prop::collection::vec((0usize..126, numbers()), 0..3),
        header_fields in prop::collection::vec((0usize..190, numbers()), 0..3),
        entries in prop::collection::vec((0usize..32, 0u32..20_000), 0..6),
        batmap in prop::collection::vec((0x800usize..0xc00, any::<u8>()), 0..3),
        len in prop_oneof![Just(usize::MAX), 0usize..12_000_000],
    ) {
        let mut bytes = if diff { differencing() } else { dynamic_with_blocks(&[3, 0, 31]) };
        for (block, entry) in entries {
            put(&mut bytes, 1536 + block * 4, &entry.to_be_bytes());
        }
        for (at, value) in batmap {
            bytes[at] = value;
        }
        let end = bytes.len() - 512;
        for at in [0, end] {
            reseal(&mut bytes[at..at + 512], 64, |f| set_fields(f, &footer_fields));
        }
        reseal(&mut bytes[512..1536], 36, |h| set_fields(h, &header_fields));
        bytes.truncate(len);
        consistent(&bytes)?;
    }

    #[test]
    fn any_bytes_are_refused_or_consistent(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        consistent(&bytes)?;
    }
}

/// Numbers near which mistakes live.
fn numbers() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        0u32..4096,
        Just(u32::MAX),
        (0u32..32).prop_map(|shift| 1 << shift),
        Just(0x200),
        Just(0x600),
    ]
}

fn set_fields(region: &mut [u8], fields: &[(usize, u32)]) {
    for &(index, value) in fields {
        put(region, 8 + index * 4, &value.to_be_bytes());
    }
}

/// Whatever opens has every block inside the container and no two of them sharing a byte.
fn consistent(bytes: &[u8]) -> Result<(), TestCaseError> {
    for extent in [Extent::Grows, Extent::Reserved] {
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let Ok(mut image) = Image::open(&bytes, OpenOptions { extent, access }) else {
                continue;
            };
            let mut places: Vec<(u64, u64)> = (0..image.blocks())
                .filter_map(|n| match image.block(n) {
                    Block::Allocated {
                        bitmap_offset,
                        data_offset,
                        ..
                    } => Some((bitmap_offset, data_offset + u64::from(image.block_bytes()))),
                    _ => None,
                })
                .collect();
            places.sort_unstable();
            prop_assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            prop_assert!(places.iter().all(|place| place.0 >= 512));
            prop_assert!(
                places
                    .iter()
                    .all(|place| place.0 + 512 <= bytes.len() as u64)
            );
            for locator in image.locators() {
                let _ = locator.path();
            }
            let _ = image.parent_path();
            if access == Access::ReadWrite && image.bat().is_some() {
                reserve_first_free(&mut image, places.last().map_or(0, |place| place.1))?;
            }
        }
    }
    Ok(())
}

fn reserve_first_free(image: &mut Image, end: u64) -> Result<(), TestCaseError> {
    let free = (0..image.blocks()).find(|&n| image.block(n) == Block::Unallocated);
    if let Some(Ok(place)) = free.map(|n| image.reserve(n)) {
        prop_assert!(place.bitmap_offset >= end && place.data_offset % 4096 == 0);
    }
    Ok(())
}

#[derive(Debug, Clone)]
enum Op {
    Write { sector: u64, count: u64 },
    Reopen,
    Crash,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Ends of blocks, whole blocks and anything between, in a disk of 16 MiB.
    let write = (
        0u64..8,
        prop_oneof![Just(0u64), 0u64..4096, Just(4095)],
        1u64..64,
    );
    let op = prop_oneof![
        6 => write.prop_map(|(block, at, count)| Op::Write { sector: block * 4096 + at, count }),
        2 => (0u64..8).prop_map(|block| Op::Write { sector: block * 4096, count: 4096 }),
        1 => Just(Op::Reopen),
        1 => Just(Op::Crash),
    ];
    prop::collection::vec(op, 1..12)
}

fn perform(ops: &[Op], writer: &mut Option<Writer>, model: &mut [u8], stamp: &mut u8) {
    for op in ops {
        let open = writer.as_mut().expect("always reopened");
        match *op {
            Op::Write { sector, count } => {
                *stamp = stamp.wrapping_add(1).max(1);
                let count = count.min(model.len() as u64 / 512 - sector) as usize;
                let data = vec![*stamp; count * 512];
                open.write(sector, &data);
                model[sector as usize * 512..][..data.len()].copy_from_slice(&data);
            }
            Op::Reopen | Op::Crash => {
                let old = writer.take().expect("always reopened");
                let extent = old.image.options().extent;
                let path = match op {
                    Op::Reopen => old.close(),
                    _ => old.path.clone(),
                };
                let strictness = match op {
                    Op::Reopen => Strictness::Closed,
                    _ => Strictness::AfterCrash,
                };
                let report = check_in(&path, place(extent), strictness).expect("a file");
                assert_eq!(report.problems, [], "{op:?}");
                *writer = Some(Writer::open_as(&path, extent));
            }
        }
    }
}

fn place(extent: Extent) -> Place {
    match extent {
        Extent::Grows => Place::File,
        Extent::Reserved => Place::Volume,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_chain_reads_what_was_written_to_it(
        below in ops(),
        above in ops(),
        extent in prop_oneof![Just(Extent::Grows), Just(Extent::Reserved)],
    ) {
        let folder = tempfile::tempdir().unwrap();
        let paths: [PathBuf; 2] = ["leaf.vhd", "base.vhd"].map(|name| folder.path().join(name));
        let mut model = vec![0; 16 << 20];
        let mut stamp = 0;
        let mut new = new_image(16 * MIB, Content::Dynamic);
        new.uuid = PARENT;
        (new.extent, new.container_bytes) = (extent, 20 * MIB);
        let mut writer = Some(Writer::create(&paths[1], &new));
        perform(&below, &mut writer, &mut model, &mut stamp);
        writer.take().unwrap().close();

        new.content = Content::Differencing(link("base.vhd", PARENT));
        new.uuid = UUID;
        let mut writer = Some(Writer::create(&paths[0], &new));
        perform(&above, &mut writer, &mut model, &mut stamp);
        writer.take().unwrap().close();

        for path in &paths {
            prop_assert_eq!(check_in(path, place(extent), Strictness::Closed).unwrap().problems, []);
        }
        prop_assert_eq!(check_link(&paths[0], Some(&paths[1])).unwrap().problems, []);
        prop_assert!(read_flat(&paths).unwrap().bytes().unwrap() == model);
    }
}

#[test]
fn the_default_options_read_files() {
    let image = Image::open(&dynamic_with_blocks(&[1]), OpenOptions::default()).unwrap();
    assert_eq!(
        (image.options().access, READ_WRITE.access),
        (Access::ReadOnly, Access::ReadWrite)
    );
    assert_eq!(image.allocated_blocks(), 1);
}

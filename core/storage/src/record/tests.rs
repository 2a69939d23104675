//! Chains and what becomes of layers nobody needs.

use super::*;

fn id(n: u128) -> ContainerId {
    format!("{}.vhd", Uuid::from_u128(n)).parse().unwrap()
}

fn vdi(n: u128) -> VdiUuid {
    Uuid::from_u128(n).into()
}

/// Images as (own, parent) and VDIs as (uuid, leaf).
fn record(images: &[(u128, Option<u128>)], vdis: &[(u128, u128)]) -> SrRecord {
    let mut record = SrRecord::new(SrUuid::random(), String::new(), String::new());
    for (own, parent) in images {
        let uuid = Uuid::from_u128(*own);
        let parent = parent.map(id);
        let image = ImageRecord {
            uuid,
            parent,
            virtual_bytes: 1 << 21,
            format: Format::Vhd,
        };
        record.images.insert(id(*own), image);
    }
    for (uuid, leaf) in vdis {
        let fields = VdiFields::default();
        record.vdis.insert(
            vdi(*uuid),
            VdiRecord {
                fields,
                leaf: id(*leaf),
                snapshot: None,
            },
        );
    }
    record
}

#[test]
fn layers_are_kept_while_a_vdi_stands_on_them_and_doomed_children_first_after() {
    // 3 -> 2 -> 1, and 4 -> 2.
    let images = [(1, None), (2, Some(1)), (3, Some(2)), (4, Some(2))];
    let cases = [
        (vec![3, 4], vec![]),
        (vec![3], vec![4]),
        (vec![2], vec![3, 4]),
        (vec![1], vec![3, 4, 2]),
        (vec![], vec![3, 4, 2, 1]),
    ];
    for (leaves, doomed) in cases {
        let vdis: Vec<_> = (10..).zip(leaves).collect();
        let mut record = record(&images, &vdis);
        record.collect();
        let expected: Vec<_> = doomed.iter().map(|n| id(*n)).collect();
        assert_eq!(record.doomed, expected, "{vdis:?}");
        assert!(
            expected.iter().all(|id| !record.images.contains_key(id)),
            "{vdis:?}"
        );
        assert_eq!(record.images.len() + doomed.len(), images.len(), "{vdis:?}");
    }
}

#[test]
fn a_loop_in_the_records_ends_the_chain() {
    let record = record(&[(1, Some(2)), (2, Some(1))], &[(10, 1)]);
    assert_eq!(record.chain(&id(1)).len(), 2);
}

#[test]
fn applying_a_change_twice_is_applying_it_once() {
    let added = record(&[(5, Some(1))], &[(12, 5)]);
    let change = Change {
        images: added.images,
        vdis: added.vdis,
    };
    let mut once = record(&[(1, None)], &[(10, 1)]);
    once.apply(&change);
    let mut twice = once.clone();
    twice.apply(&change);
    assert_eq!(once, twice);
    assert_eq!(twice.chain(&id(5)).len(), 2);
}

#[test]
fn a_vdi_on_a_vanished_layer_is_missing() {
    let record = record(&[(1, None), (2, Some(1)), (3, None)], &[(10, 2), (11, 3)]);
    let seen = Seen {
        missing: [id(1)].into(),
        ..Seen::default()
    };
    assert!(record.info(vdi(10), &seen).unwrap().missing);
    assert!(!record.info(vdi(11), &seen).unwrap().missing);
}

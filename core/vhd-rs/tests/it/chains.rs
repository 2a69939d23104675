//! Which images may stand above which.

use crate::support::{MIB, bytes_of, link, new_image, open};
use uuid::Uuid;
use vhd_rs::{CHAIN_DEPTH_MAX, Content, Error, ErrorKind, Image, Layer, check_chain, check_link};

fn base(id: u128) -> Image {
    let mut new = new_image(2 * MIB, Content::Dynamic);
    new.uuid = Uuid::from_u128(id);
    open(&bytes_of(&new)).expect("a fresh image opens")
}

fn child(id: u128, parent: u128) -> Image {
    let link = link("p.vhd", Uuid::from_u128(parent));
    let mut new = new_image(2 * MIB, Content::Differencing(link));
    new.uuid = Uuid::from_u128(id);
    open(&bytes_of(&new)).expect("a fresh image opens")
}

fn check(images: &[&Image]) -> Result<(), Error> {
    let layers: Vec<Layer<'_>> = images.iter().map(|&image| Layer::Vhd(image)).collect();
    check_chain(&layers, CHAIN_DEPTH_MAX)
}

#[test]
fn a_chain_of_matching_links_is_sound() {
    check(&[&child(3, 2), &child(2, 1), &base(1)]).unwrap();
    check(&[&base(1)]).unwrap();
    let raw_child = child(3, 0);
    check_chain(&[Layer::Vhd(&raw_child), Layer::Raw], 2).unwrap();
    check_chain(&[Layer::Raw], 1).unwrap();
}

#[test]
fn a_parent_of_another_uuid_is_refused() {
    let error = check_link(&child(3, 2), Layer::Vhd(&base(1))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMismatch);
    assert_eq!(
        error.to_string(),
        "parent.uuid is 00000000-0000-0000-0000-000000000001: \
         00000000-0000-0000-0000-000000000003 names 00000000-0000-0000-0000-000000000002"
    );
}

#[test]
fn raw_parents_stand_only_below_images_that_name_one() {
    let error = check_link(&child(3, 2), Layer::Raw).unwrap_err();
    assert_eq!(
        (error.kind(), error.value()),
        (ErrorKind::ParentMismatch, "none (raw)")
    );
    let error = check_link(&child(3, 0), Layer::Vhd(&base(1))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMismatch);
    let (upper, lower) = (child(3, 0), base(1));
    let layers = [Layer::Vhd(&upper), Layer::Raw, Layer::Vhd(&lower)];
    assert_eq!(check_chain(&layers, 9).unwrap_err().field(), "chain[1]");
}

#[test]
fn loops_are_refused_by_uuid() {
    for chain in [
        vec![child(1, 1), child(1, 1)],
        vec![child(1, 2), child(2, 1), child(1, 2)],
        vec![child(1, 2), child(2, 3), child(3, 2), child(2, 3)],
    ] {
        let error = check(&chain.iter().collect::<Vec<_>>()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ChainLoop, "{error}");
    }
}

#[test]
fn chains_longer_than_allowed_are_refused() {
    let images: Vec<Image> = (1..=4).map(|n| child(n, n + 1)).chain([base(5)]).collect();
    let layers: Vec<Layer<'_>> = images.iter().map(Layer::Vhd).collect();
    check_chain(&layers, 5).unwrap();
    let error = check_chain(&layers, 4).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ChainTooDeep);
    assert_eq!(
        error.to_string(),
        "chain depth is 5: chains are handled up to 4 layers"
    );
}

#[test]
fn chains_that_end_early_or_go_on_too_far_are_refused() {
    let (leaf, lower) = (child(2, 1), base(1));
    for (chain, field) in [
        (vec![&leaf], "chain[0]"),
        (vec![&lower, &leaf], "chain[0]"),
        (vec![], "chain"),
    ] {
        let error = check(&chain).unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::Argument, field));
    }
}

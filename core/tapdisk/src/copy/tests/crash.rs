//! The power goes at any moment: before, while and after a disk is mirrored and switched, and while
//! a layer is merged and its disk relinked. Whatever chain the owner's record names reads as legal.

use super::merge::{link, merge};
use super::world::{Ground, Guest, Kind, ground, judge};
use crate::copy::Job;
use crate::copy::testing::{Files, Pair};
use crate::engine::Relink;
use crate::engine::testing::model::Model;
use crate::engine::testing::rig::{load, uuid};
use block::{Crash, FileId, Order, Rng, SimDisk};
use datapath::protocol::{Access, Format};
use vhd_rs::{Image, OpenOptions};

/// Cuts the power in some ways and judges each chain that may be the disk.
fn cut(
    pair: &Pair<SimDisk>,
    guest: &Guest,
    rng: &mut Rng,
    chains: &[Files<'_>],
    what: &str,
) -> u32 {
    let mut crashes = vec![Crash::Subset(0), Crash::Subset(u64::MAX)];
    crashes.push(Crash::Subset(rng.next_u64()));
    crashes.push(Crash::Torn(rng.next_u64()));
    for crash in &crashes {
        let left = pair.io.crash(crash);
        for (n, files) in chains.iter().enumerate() {
            let what = format!("{what}, {crash:?}, chain {n}");
            judge(&left, files, &guest.model, Model::is_legal, &what);
        }
    }
    crashes.len() as u32
}

/// What the run came to: crashes judged while in the window in which either is right.
fn mirror(kind: Kind, seed: u64) -> u32 {
    let what = format!("{kind:?} seed {seed}");
    let mut rng = Rng::new(seed);
    let layers = 2 + rng.below(2) as u32;
    let Ground {
        ram,
        source,
        target,
        model,
    } = ground(kind, layers, &mut rng);
    let io = SimDisk::from_ram(&ram, Order::Random(Rng::new(seed)));
    let mut pair = Pair::open(io, &source, Access::ReadWrite);
    let mut guest = Guest::new(model);
    pair.mirror(&target, kind.plan()).expect("it begins");
    let (mut in_window, mut asked) = (0, false);
    let mut acts = 30;
    for turn in 0.. {
        assert!(turn < 20_000, "{what}: it never ends");
        if acts > 0 && rng.one_in(4) {
            guest.act(&mut pair, &mut rng);
            acts -= 1;
        }
        pair.step();
        assert_eq!(guest.listen(&mut pair), 0, "{what}");
        let mirror = pair.mirror.as_mut().expect("it is there");
        if !asked && mirror.prepare().is_ok() && (acts < 8) {
            // The record says from here on that the target is the disk.
            mirror
                .switch(&mut pair.engine, rng.one_in(2))
                .expect("it is in sync");
            asked = true;
        }
        let prepared = mirror.prepare().is_ok();
        let switched = mirror.progress().switched;
        let chains: &[Files<'_>] = match (prepared, switched) {
            (_, true) => &[&target],
            (true, false) => &[&source, &target],
            (false, false) => &[&source],
        };
        if rng.one_in(if prepared { 2 } else { 8 }) {
            let count = cut(&pair, &guest, &mut rng, chains, &what);
            in_window += if chains.len() == 2 { count } else { 0 };
        }
        if switched && acts == 0 && guest.running.is_empty() {
            break;
        }
    }
    in_window
}

#[test]
fn either_side_is_right_after_a_power_cut_until_the_switch_and_the_target_after() {
    for kind in [Kind::Out, Kind::Leaf] {
        let judged: u32 = (0..6).map(|seed| mirror(kind, seed)).sum();
        assert!(
            judged > 100,
            "{kind:?}: only {judged} crashes in the window"
        );
    }
}

/// The chain that the headers on a disk name, from images numbered from their base.
fn chain_on(disk: &block::RamDisk, files: Files<'_>) -> Vec<(FileId, Format)> {
    let mut chain: Vec<(FileId, Format)> = Vec::new();
    let mut wanted = None;
    for (file, format) in files {
        let bytes = disk.file(*file).expect("it is there").to_vec();
        let image = Image::open(&bytes, OpenOptions::default());
        let image = image.expect("every image opens");
        if wanted.is_none_or(|wanted| wanted == image.uuid()) {
            chain.push((*file, *format));
            wanted = image.parent_uuid();
        }
    }
    chain
}

#[test]
fn a_merge_and_a_relink_cut_off_anywhere_change_nothing_that_is_read() {
    let mut shortened = 0;
    for seed in 0..6 {
        let what = format!("seed {seed}");
        let mut rng = Rng::new(seed);
        let Ground {
            ram, source, model, ..
        } = ground(Kind::Leaf, 3, &mut rng);
        let io = SimDisk::from_ram(&ram, Order::Random(Rng::new(seed)));
        let mut pair = Pair::open(io, &source, Access::ReadWrite);
        let mut guest = Guest::new(model);
        merge(&mut pair, &source, 1);
        let (mut acts, mut relinking) = (20, None);
        for turn in 0.. {
            assert!(turn < 20_000, "{what}: it never ends");
            if acts > 0 && rng.one_in(4) {
                guest.act(&mut pair, &mut rng);
                acts -= 1;
            }
            pair.step();
            assert_eq!(guest.listen(&mut pair), 0, "{what}");
            if pair.job.as_ref().is_some_and(Job::is_over) {
                assert!(pair.progress().in_sync, "{what}");
                pair.job = None;
                let into = load(&pair.io, source[2], vhd_rs::Access::ReadOnly);
                relinking = Some(pair.relink(Relink {
                    gone: uuid(2),
                    into: into.expect("it opens"),
                    link: Some(link(1)),
                }));
            }
            for crash in [
                Crash::Subset(0),
                Crash::Subset(rng.next_u64()),
                Crash::Torn(rng.next_u64()),
            ] {
                if !rng.one_in(6) && relinking.is_none() {
                    continue;
                }
                let left = pair.io.crash(&crash);
                let chain = chain_on(&left, &source);
                shortened += u32::from(chain.len() == 2);
                judge(&left, &chain, &guest.model, Model::is_legal, &what);
            }
            let relinked = relinking.is_some_and(|ticket| {
                let answer = pair.take(ticket);
                answer.is_some_and(|answer| answer.map(drop).is_ok())
            });
            if relinked {
                break;
            }
        }
        assert_eq!(pair.engine.layer_uuids().len(), 2, "{what}");
    }
    assert!(
        shortened > 6,
        "only {shortened} crashes were after the header"
    );
}

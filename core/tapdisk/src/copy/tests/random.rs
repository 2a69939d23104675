//! Random guests, completions in any order: whatever happens beside the copy, both sides read as
//! the model says.

use super::world::{Ground, Guest, Kind, assert_same, copy_of, ground, judge, judge_guest};
use crate::copy::testing::Pair;
use crate::engine::testing::model::Model;
use block::{Order, Rng, SimDisk};
use datapath::protocol::Access;

/// What a run was like, so that the tests know what they saw.
#[derive(Debug, Default)]
struct Seen {
    switched: u32,
    stopped: u32,
    busy_at_switch: u32,
}

fn run(kind: Kind, seed: u64, seen: &mut Seen) {
    let what = format!("{kind:?} seed {seed}");
    let mut rng = Rng::new(seed);
    let layers = 1 + rng.below(3) as u32 + u32::from(kind == Kind::Leaf);
    let Ground {
        ram,
        source,
        target,
        model,
    } = ground(kind, layers, &mut rng);
    let files = ram.files().len() as u32;
    let io = SimDisk::from_ram(&ram, Order::Random(Rng::new(seed)));
    let mut pair = Pair::open(io, &source, Access::ReadWrite);
    let mut guest = Guest::new(model);
    let mut errors = 0;
    let act = |pair: &mut Pair<SimDisk>, guest: &mut Guest, rng: &mut Rng, acts: u64| {
        let mut errors = 0;
        for _ in 0..acts {
            guest.act(pair, rng);
            for _ in 0..rng.below(8) {
                pair.step();
            }
            errors += guest.listen(pair);
        }
        errors
    };
    let acts = rng.below(10);
    errors += act(&mut pair, &mut guest, &mut rng, acts);
    pair.mirror(&target, kind.plan()).expect("it begins");
    let acts = rng.below(60);
    errors += act(&mut pair, &mut guest, &mut rng, acts);
    pair.sync().unwrap_or_else(|e| panic!("{what}: {e}"));
    let acts = rng.below(20);
    errors += act(&mut pair, &mut guest, &mut rng, acts);
    seen.busy_at_switch += u32::from(!guest.running.is_empty());
    let switch = !rng.one_in(4);
    if switch {
        let verify = rng.one_in(2);
        pair.switch(verify)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        seen.switched += 1;
    } else {
        errors += guest.quiesce(&mut pair);
        guest.flush(&mut pair);
        errors += guest.quiesce(&mut pair);
        pair.settle();
        pair.stop();
        seen.stopped += 1;
        let now = copy_of(&pair.io, files);
        judge(&now, &target, &guest.model, Model::is_current, &what);
        assert_same(&now, &source, &target, &what);
    }
    let acts = rng.below(20);
    errors += act(&mut pair, &mut guest, &mut rng, acts);
    errors += guest.quiesce(&mut pair);
    assert_eq!(errors, 0, "{what}: a healthy disk answers with errors");
    judge_guest(&mut pair, &guest.model, &what);
    let end = copy_of(&pair.close(), files);
    let chain = if switch { &target } else { &source };
    judge(&end, chain, &guest.model, Model::is_current, &what);
}

fn runs(kind: Kind, seeds: std::ops::Range<u64>) {
    let mut seen = Seen::default();
    for seed in seeds {
        run(kind, seed, &mut seen);
    }
    println!("{kind:?}: {seen:?}");
    assert!(seen.switched > 6 && seen.stopped > 1 && seen.busy_at_switch > 3);
}

#[test]
fn a_mirrored_disk_reads_as_its_model_before_and_after_the_switch() {
    runs(Kind::Out, 0..14);
}

#[test]
fn a_mirror_into_a_file_full_of_other_bytes_leaves_none_of_them() {
    runs(Kind::OutRaw, 100..112);
}

#[test]
fn a_leaf_merged_into_its_parent_under_load_reads_as_its_model() {
    runs(Kind::Leaf, 200..214);
}

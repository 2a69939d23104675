//! The coalesce of an inner node beside a guest, and the relink of its disk.

use super::world::{Ground, Guest, Kind, copy_of, ground, judge, judge_guest};
use crate::copy::Plan;
use crate::copy::testing::Pair;
use crate::engine::testing::model::Model;
use crate::engine::testing::rig::{Peek, load, uuid};
use crate::engine::{Error, Relink, Scope};
use block::{BlockIo, FileId, Order, Rng, SimDisk};
use datapath::protocol::{Access, Format};
use vhd_rs::{ParentLink, Timestamp};

/// How the image numbered `parent` is named by its child.
pub(super) fn link(parent: u32) -> ParentLink {
    ParentLink {
        path: format!("{parent}.vhd"),
        uuid: uuid(parent),
        modified: Timestamp::from_unix_s(1_700_000_001),
    }
}

/// Takes the layer at `depth` out of a disk of images numbered from its base, which is 1; its
/// content is below it already.
pub(super) fn relink<I: Peek>(
    pair: &mut Pair<I>,
    files: &mut Vec<(FileId, Format)>,
    depth: usize,
) -> Result<(), Error> {
    let number = |depth: usize| (files.len() - depth) as u32;
    let into = load(&pair.io, files[depth + 1], vhd_rs::Access::ReadOnly);
    let relink = Relink {
        gone: uuid(number(depth)),
        into: into.expect("it opens"),
        link: (depth == 1).then(|| link(number(depth + 1))),
    };
    let ticket = pair.relink(relink);
    pair.wait(ticket)?;
    files.remove(depth);
    Ok(())
}

/// Has the layer at `depth` merged into the one below it.
pub(super) fn merge<I: Peek>(pair: &mut Pair<I>, files: &[(FileId, Format)], depth: usize) {
    let plan = Plan {
        scope: Scope::Layer(0),
        ..Plan::default()
    };
    pair.copy(&files[depth..], &files[depth + 1..], plan)
        .expect("it begins");
}

fn run(seed: u64) {
    let what = format!("seed {seed}");
    let mut rng = Rng::new(seed);
    let layers = 3 + rng.below(3) as u32;
    let Ground {
        ram, source, model, ..
    } = ground(Kind::Leaf, layers, &mut rng);
    let mut files = source;
    let count = ram.files().len() as u32;
    let io = SimDisk::from_ram(&ram, Order::Random(Rng::new(seed)));
    let mut pair = Pair::open(io, &files, Access::ReadWrite);
    let mut guest = Guest::new(model);
    let depth = 1 + rng.below(u64::from(layers) - 2) as usize;
    merge(&mut pair, &files, depth);
    while !pair.job.as_ref().is_some_and(crate::copy::Job::is_over) {
        if rng.one_in(3) {
            guest.act(&mut pair, &mut rng);
        }
        pair.step();
        guest.listen(&mut pair);
    }
    assert!(pair.progress().in_sync, "{what}: {:?}", pair.progress());
    pair.job = None;
    for _ in 0..rng.below(6) {
        guest.act(&mut pair, &mut rng);
        // Reads that end on files that are gone by then.
        pair.submit(crate::engine::Request::Read {
            offset: 0,
            len_bytes: 8 << 20,
        });
    }
    relink(&mut pair, &mut files, depth).unwrap_or_else(|e| panic!("{what}: {e}"));
    for _ in 0..rng.below(20) {
        guest.act(&mut pair, &mut rng);
        pair.step();
        guest.listen(&mut pair);
    }
    assert_eq!(guest.quiesce(&mut pair), 0, "{what}");
    pair.settle();
    judge_guest(&mut pair, &guest.model, &what);
    let retired: Vec<FileId> = std::iter::from_fn(|| pair.engine.take_retired()).collect();
    assert_eq!(
        retired.len(),
        2,
        "{what}: nothing names the old files any more"
    );
    if pair.engine.layer_uuids().len() == 2 || depth == 1 {
        let end = copy_of(&pair.close(), count);
        judge(&end, &files, &guest.model, Model::is_current, &what);
    }
}

#[test]
fn an_inner_node_is_merged_and_the_disk_relinked_beside_its_guest() {
    for seed in 0..16 {
        run(seed);
    }
}

#[test]
fn a_layer_that_cannot_go_is_refused_and_the_disk_goes_on() {
    let mut rng = Rng::new(1);
    let Ground { ram, source, .. } = ground(Kind::Leaf, 4, &mut rng);
    let io = SimDisk::from_ram(&ram, Order::Fifo);
    let mut pair = Pair::open(io, &source, Access::ReadWrite);
    let spec = |pair: &Pair<SimDisk>, at: usize| {
        load(&pair.io, source[at], vhd_rs::Access::ReadOnly).expect("it opens")
    };
    // The disk is 4 on 3 on 2 on 1.
    for (gone, into, with_link) in [
        (4, 1, true),
        (1, 3, false),
        (9, 3, false),
        (3, 3, true),
        (3, 2, false),
        (2, 3, true),
    ] {
        let relink = Relink {
            gone: uuid(gone),
            into: spec(&pair, into),
            link: with_link.then(|| link(2)),
        };
        let ticket = pair.relink(relink);
        let error = pair.wait(ticket).expect_err("it is refused");
        let kind = crate::engine::ErrorKind::Chain;
        assert_eq!(error.kind, kind, "{gone} into {into}: {error}");
    }
    let far = ParentLink {
        path: "a-much-longer-name.vhd".into(),
        ..link(2)
    };
    let relink = Relink {
        gone: uuid(3),
        into: spec(&pair, 2),
        link: Some(far),
    };
    let ticket = pair.relink(relink);
    let error = pair.wait(ticket).expect_err("it is refused");
    assert_eq!(error.kind, crate::engine::ErrorKind::Unsupported, "{error}");
    assert_eq!(pair.engine.layer_uuids().len(), 4);
    assert_eq!(pair.io.in_flight(), 0);
    pair.read(0, 512).expect("it goes on");
}

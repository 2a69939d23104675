//! The nth operation fails: on the target the guest notices nothing, and the mirror says so; on the
//! source the guest is told, and what both sides hold is the same again.

use super::world::{Ground, Guest, Kind, copy_of, ground, judge, judge_guest};
use crate::copy::testing::{Files, Pair};
use crate::engine::testing::model::Model;
use block::{Fault, FaultDisk, FaultKind, FileId, Order, Rng, SimDisk, Target, Verb};
use datapath::protocol::Access;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Switched,
    Failed,
}

struct Run {
    ending: Ending,
    errors: u32,
    struck: bool,
}

fn acts(pair: &mut Pair<FaultDisk<SimDisk>>, guest: &mut Guest, rng: &mut Rng, count: u32) -> u32 {
    let mut errors = 0;
    for _ in 0..count {
        guest.act(pair, rng);
        for _ in 0..3 {
            pair.step();
        }
        errors += guest.listen(pair);
    }
    errors
}

/// One mirror from its beginning to its end, with a fault on one file of it.
fn run(kind: Kind, on: impl Fn(Files<'_>, Files<'_>) -> FileId, fault: Fault) -> Run {
    let what = format!("{kind:?} {fault:?}");
    let mut rng = Rng::new(77);
    let Ground {
        ram,
        source,
        target,
        model,
    } = ground(kind, 2, &mut rng);
    let files = ram.files().len() as u32;
    let disk = FaultDisk::new(SimDisk::from_ram(&ram, Order::Fifo));
    let mut pair = Pair::open(disk, &source, Access::ReadWrite);
    let mut guest = Guest::new(model);
    let mut errors = acts(&mut pair, &mut guest, &mut rng, 4);
    pair.mirror(&target, kind.plan()).expect("it begins");
    pair.io.set_fault_on(on(&source, &target), fault);
    errors += acts(&mut pair, &mut guest, &mut rng, 12);
    let mut ended = pair.sync();
    if ended.is_ok() {
        errors += acts(&mut pair, &mut guest, &mut rng, 4);
        ended = pair.switch(true);
    }
    let struck = pair.io.struck() > 0;
    let ending = match ended {
        Ok(()) => Ending::Switched,
        Err(e) => {
            let why = pair.progress().failed;
            assert!(why.is_some(), "{what}: {e}, and the state does not say so");
            pair.stop();
            Ending::Failed
        }
    };
    errors += guest.quiesce(&mut pair);
    pair.io.set_fault(None);
    if pair.engine.poisoned().is_none() {
        errors += acts(&mut pair, &mut guest, &mut rng, 6);
        errors += guest.quiesce(&mut pair);
        judge_guest(&mut pair, &guest.model, &what);
        let chain = if ending == Ending::Switched {
            &target
        } else {
            &source
        };
        let end = copy_of(&pair.close(), files);
        judge(&end, chain, &guest.model, Model::is_current, &what);
    }
    Run {
        ending,
        errors,
        struck,
    }
}

#[test]
fn a_failing_target_costs_the_mirror_and_nothing_else() {
    let (mut failed, mut runs) = (0, 0);
    for kind in [Kind::Out, Kind::Leaf] {
        let (once, ever) = match kind {
            Kind::Leaf => (FaultKind::Half, FaultKind::Io),
            Kind::Out | Kind::OutRaw => (FaultKind::Io, FaultKind::NoSpace),
        };
        for (times, fault) in [(1, once), (u64::MAX, ever)] {
            for nth in 0.. {
                // A failing read of the parent is the guest's business: it reads there too.
                let fault = Fault {
                    target: Target::Changes,
                    nth,
                    times,
                    kind: fault,
                };
                let run = run(kind, |_, target| target[0].0, fault);
                runs += 1;
                if !run.struck {
                    assert_eq!(run.ending, Ending::Switched, "{kind:?} {nth}");
                    break;
                }
                assert_eq!(run.errors, 0, "{kind:?} {fault:?}: the guest noticed");
                failed += u32::from(run.ending == Ending::Failed);
            }
        }
    }
    println!("{failed} of {runs} mirrors failed");
    assert!(failed > 100, "only {failed}");
}

#[test]
fn a_failing_source_is_the_guests_to_hear_of_and_both_sides_stay_the_same() {
    let (mut switched, mut told) = (0, 0);
    for kind in [Kind::Out, Kind::Leaf] {
        for target in [Target::Only(Verb::Write), Target::Only(Verb::Punch)] {
            for nth in 0.. {
                let fault = Fault {
                    target,
                    nth,
                    times: 1,
                    kind: FaultKind::Half,
                };
                // Judged inside: what was answered reads back on the side that is the disk.
                let run = run(kind, |source, _| source[0].0, fault);
                told += u32::from(run.errors > 0);
                switched += u32::from(run.struck && run.ending == Ending::Switched);
                if !run.struck {
                    break;
                }
            }
        }
    }
    println!("{told} guests were told, {switched} switched all the same");
    assert!(
        told > 10 && switched > 10,
        "{told} told, {switched} switched"
    );
}

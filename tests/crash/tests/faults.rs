//! The nth operation fails, for every n, while the owner changes the tree and guests write: no
//! hang, no panic, no lost answer, and what was flushed stays flushed.

use block::{Fault, FaultKind, Order, Target, Verb};
use std::panic::{AssertUnwindSafe, catch_unwind};
use xylem_crash::flaw::Flaw;
use xylem_crash::op::Op;
use xylem_crash::world::{Effort, Start, States, World};

const EFFORT: Effort = Effort {
    exhaustive_max: 1,
    samples: 1,
};

/// Each operation of the owner beside each kind of request, and some in a row.
fn workloads() -> Vec<(Start, Vec<Op>)> {
    let owners = [
        (Start::Parent, Op::Snapshot),
        (Start::Fork, Op::Clone),
        (Start::Fork, Op::Delete),
        (Start::Parent, Op::Resize),
        (Start::Deep, Op::Coalesce),
        (Start::Fork, Op::Coalesce),
        (Start::Parent, Op::LeafCoalesce),
        (Start::Deep, Op::Mirror),
    ];
    let guests = [
        Op::WriteNew,
        Op::WriteOld,
        Op::Trim,
        Op::Zeroes,
        Op::WriteFua,
    ];
    let beside = owners.iter().flat_map(|(start, owner)| {
        guests.map(|guest| (*start, vec![guest, *owner, guest, Op::Flush]))
    });
    let rows = [
        (Start::Parent, vec![Op::Snapshot, Op::Delete, Op::Coalesce]),
        (
            Start::Fork,
            vec![Op::Delete, Op::LeafCoalesce, Op::WriteNew],
        ),
        (
            Start::Deep,
            vec![Op::Coalesce, Op::LeafCoalesce, Op::Mirror],
        ),
        (Start::Alone, vec![Op::Clone, Op::Mirror, Op::Delete]),
    ];
    beside.chain(rows).collect()
}

/// Runs one with a fault; whether it struck.
fn run(start: Start, ops: &[Op], fault: Fault, flaw: Option<Flaw>, states: &mut States) -> bool {
    let mut world = World::new(7, start, Order::Fifo, EFFORT, flaw, states);
    world.set_fault(fault);
    for op in ops {
        world.submit(*op);
        world.step();
    }
    world.settle();
    let (struck, _) = world.failed();
    world.heal();
    struck > 0
}

/// Fails the nth operation for each n there is, in every workload.
fn sweep(faults: &[(Target, FaultKind, u64)]) -> u32 {
    let (mut runs, mut states) = (0, States::default());
    for (start, ops) in workloads() {
        for (target, kind, times) in faults.iter().copied() {
            for nth in 0.. {
                runs += 1;
                let fault = Fault {
                    target,
                    nth,
                    times,
                    kind,
                };
                if !run(start, &ops, fault, None, &mut states) {
                    break;
                }
            }
        }
    }
    let (workloads, states) = (workloads().len(), states.left.len());
    println!("{runs} runs of {workloads} workloads, {states} states");
    runs
}

#[test]
fn any_nth_failure_while_the_tree_changes_loses_nothing() {
    let runs = sweep(&[
        (Target::Any, FaultKind::Io, 1),
        (Target::Only(Verb::Write), FaultKind::Half, 1),
        (Target::Only(Verb::Fdatasync), FaultKind::Io, 1),
    ]);
    assert!(runs > 2000, "only {runs} runs");
}

#[test]
fn any_failure_for_ever_while_the_tree_changes_loses_nothing() {
    let runs = sweep(&[
        (Target::Any, FaultKind::Io, u64::MAX),
        (Target::Changes, FaultKind::NoSpace, u64::MAX),
    ]);
    assert!(runs > 2000, "only {runs} runs");
}

#[test]
fn a_failed_barrier_that_nobody_hears_of_is_found() {
    let found = |nth| {
        let fault = Fault {
            target: Target::Only(Verb::Fdatasync),
            nth,
            times: 1,
            kind: FaultKind::Io,
        };
        let ops = [Op::WriteNew, Op::Flush, Op::WriteFua];
        let flaw = Some(Flaw::HiddenFailure);
        let run = || run(Start::Parent, &ops, fault, flaw, &mut States::default());
        catch_unwind(AssertUnwindSafe(run)).is_err()
    };
    let found: Vec<bool> = (0..6).map(found).collect();
    // Two make room at the end of the file and one flushes before anything is answered; the two of
    // the durable write cover what was promised.
    assert_eq!(found, [false, false, false, true, true, false]);
}

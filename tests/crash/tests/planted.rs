//! The harness itself: what is planted in the carrier or in the owner is found, and told with the
//! workload that shows it again.

use std::panic;
use std::time::Duration;
use xylem_crash::flaw::Flaw;
use xylem_crash::op::Op;
use xylem_crash::sweep;
use xylem_crash::world::Effort;

/// Sweeps until the first violation; what was found, and by how many workloads.
fn found(flaw: Option<Flaw>) -> sweep::Outcome {
    let ops = [
        Op::WriteOld,
        Op::WriteNew,
        Op::WriteFua,
        Op::Snapshot,
        Op::Clone,
        Op::Delete,
        Op::Resize,
        Op::Coalesce,
        Op::LeafCoalesce,
        Op::Mirror,
    ];
    let plan = sweep::Plan {
        ops: ops.to_vec(),
        short_max: 3,
        effort: Effort {
            exhaustive_max: 4,
            samples: 2,
        },
        states: 0,
        long_min: 0,
        time: Duration::from_secs(600),
        seed: 1,
        jobs: 1,
        opinion_every: u64::MAX,
        qemu_every: u64::MAX,
        flaw,
    };
    sweep::run(&plan, &|_| {}).expect("it runs")
}

#[test]
fn every_planted_fault_is_found() {
    // Violations are panics of the sweep's threads, which have no names.
    let told = panic::take_hook();
    panic::set_hook(Box::new(move |what| {
        if std::thread::current().name().is_some() {
            told(what);
        }
    }));
    for flaw in Flaw::ALL {
        let outcome = found(Some(flaw));
        let first = outcome.violations.first();
        let (workload, what) = first.unwrap_or_else(|| panic!("{flaw:?} was not found"));
        println!(
            "{flaw:?}: {} workloads, {workload}: {what}",
            outcome.workloads
        );
    }
}

//! The slice of the long runs that every test run has, and that the machinery itself can be trusted.

use block::{Order, Rng};
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;
use xylem_crash::op::Op;
use xylem_crash::workload::Workload;
use xylem_crash::world::{Effort, Left, Start, States, Witness, World};
use xylem_crash::{kill, sweep};

const SMALL: Effort = Effort {
    exhaustive_max: 7,
    samples: 16,
};

const TINY: Effort = Effort {
    exhaustive_max: 3,
    samples: 3,
};

#[test]
fn twenty_thousand_distinct_crashes_leave_legal_values() {
    let plan = sweep::Plan {
        ops: Op::all().collect(),
        short_max: 2,
        effort: SMALL,
        states: 20_000,
        long_min: 4,
        time: Duration::from_secs(600),
        seed: 1,
        jobs: 2,
        opinion_every: 400,
        qemu_every: 20,
        flaw: None,
    };
    let outcome = sweep::run(&plan, &|_| {}).expect("it runs");
    assert!(
        outcome.violations.is_empty(),
        "replay with cargo xtask crash --replay WORKLOAD --exhaustive {} --samples {}: {:#?}",
        SMALL.exhaustive_max,
        SMALL.samples,
        outcome.violations
    );
    println!("{outcome:?}");
    assert!(outcome.states >= 20_000, "{outcome:?}");
    assert!(
        outcome.opinions >= 50 && outcome.compared >= 3,
        "{outcome:?}"
    );
    assert_eq!(outcome.short, outcome.short_planned, "{outcome:?}");
}

#[test]
fn processes_killed_under_load_lose_nothing_that_was_flushed() {
    let here = std::env::current_exe().expect("this test");
    let built = here.ancestors().nth(2).map(|dir| dir.join("xylem-tapdisk"));
    let tapdisk = built.filter(|path| path.is_file());
    let folder = tempfile::tempdir().expect("a directory");
    let plan = kill::Plan {
        kills: 30,
        seed: 1,
        tapdisk: tapdisk.expect("the data path is built: cargo build -p tapdisk"),
        folder: PathBuf::from(folder.path()),
    };
    let outcome = kill::run(&plan, &|_| {}).expect("nothing is lost");
    println!("{outcome:?}");
    assert_eq!(outcome.kills, 30);
    assert!(
        outcome.changes > 0 && outcome.flushes > 0 && outcome.sectors > 0,
        "{outcome:?}"
    );
    let times = [outcome.snapshots, outcome.coalesces, outcome.mirrors];
    let tried = times.map(|times| times.done + times.cut);
    assert!(tried.iter().all(|tried| *tried > 0), "{outcome:?}");
}

#[test]
fn a_workload_is_the_same_again_from_its_text() {
    for text in [
        "long,5",
        "short,fork,together,write-new,clone,delete,write-end",
    ] {
        let workload: Workload = text.parse().expect("a workload");
        assert_eq!(workload.to_string(), text);
        let states = || sweep::replay(&workload, TINY).expect("no violation");
        assert_eq!(states(), states(), "{text}");
    }
    for text in [
        "",
        "long",
        "long,x",
        "short,parent,write-new",
        "short,alone,in-turn,format",
    ] {
        assert!(text.parse::<Workload>().is_err(), "{text:?}");
    }
}

/// The states of a world in their order, and one of them is called wrong.
struct Doubter {
    states: Vec<u64>,
    known: States,
    doubted: usize,
}

impl Witness for Doubter {
    fn is_new(&mut self, state: u64) -> bool {
        self.states.push(state);
        true
    }

    fn is_unjudged(&mut self, what: u64) -> bool {
        self.known.is_unjudged(what)
    }

    fn examine(&mut self, _: &Left<'_>) -> Result<(), String> {
        if self.states.len() == self.doubted {
            return Err("this one".to_owned());
        }
        Ok(())
    }
}

fn states(doubted: usize) -> (Vec<u64>, Result<(), String>) {
    let mut doubter = Doubter {
        states: Vec::new(),
        known: States::default(),
        doubted,
    };
    let order = Order::Random(Rng::new(3));
    let run = std::panic::AssertUnwindSafe(|| {
        let mut world = World::new(3, Start::Parent, order, TINY, None, &mut doubter);
        for op in [Op::WriteNew, Op::Zeroes, Op::Flush, Op::WriteOld] {
            world.submit(op);
        }
        world.settle();
        world.submit(Op::Resize);
        world.submit(Op::WriteAcross);
        world.settle();
        world.crash_and_reopen();
        world.submit(Op::Close);
    });
    let result = std::panic::catch_unwind(run);
    let result =
        result.map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default());
    (doubter.states, result)
}

#[test]
fn crashes_come_in_the_same_order_again_and_a_wrong_one_is_told_with_its_place() {
    let (all, fine) = states(0);
    assert_eq!(fine, Ok(()));
    let distinct: HashSet<&u64> = all.iter().collect();
    assert!(distinct.len() > 20, "only {} states", distinct.len());
    let (until, told) = states(9);
    assert_eq!(until, all[..9]);
    let told = told.expect_err("a violation is a panic");
    assert!(
        told.contains("this one") && told.contains("of write-new,zeroes,flush,write-old"),
        "{told}"
    );
}

//! Single worlds: bursts with many requests in flight, recovery that is cut off itself, and that a
//! crash is what it should be.

use block::{Order, Rng};
use xylem_crash::op::Op;
use xylem_crash::workload::{Workload, perform};
use xylem_crash::world::{Effort, Start, States, World};

const EFFORT: Effort = Effort {
    exhaustive_max: 5,
    samples: 4,
};

#[test]
fn any_power_cut_with_many_requests_in_flight_leaves_legal_values() {
    let mut states = States::default();
    for seed in 0..24 {
        perform(&Workload::Long(seed), EFFORT, None, &mut states);
    }
    let states = states.left.len();
    assert!(states >= 5000, "only {states} crash states");
}

#[test]
fn whatever_a_disk_without_a_cache_answered_survives_any_power_cut() {
    let mut states = States::default();
    for seed in 0..24 {
        let order = Order::Random(Rng::new(seed));
        let start = Start::ALL[seed as usize % Start::ALL.len()].0;
        let mut world = World::new(seed, start, order, EFFORT, None, &mut states);
        world.write_through();
        for _ in 0..8 {
            for _ in 0..1 + world.rng().below(4) {
                let (op, _) = Op::ALL[world.rng().below(7) as usize];
                world.submit(op);
            }
            for _ in 0..world.rng().below(8) {
                world.step();
            }
        }
        world.settle();
        if seed % 3 == 0 {
            world.crash_and_reopen();
            world.submit(Op::WriteNew);
            world.settle();
        }
    }
    let states = states.left.len();
    assert!(states >= 2000, "only {states} crash states");
}

#[test]
fn a_coalesce_meets_a_snapshot_a_clone_a_resize_and_an_end_of_use() {
    for (op, after) in [
        (Op::Snapshot, (3, 1)),
        (Op::Clone, (2, 2)),
        (Op::Resize, (2, 1)),
        (Op::Close, (2, 1)),
    ] {
        for guest in [Op::WriteOld, Op::Trim, Op::WriteFua] {
            let mut states = States::default();
            let order = Order::Random(Rng::new(5));
            let mut world = World::new(5, Start::Deep, order, EFFORT, None, &mut states);
            world.submit(Op::Coalesce);
            world.step();
            world.submit(guest);
            world.submit(op);
            world.step();
            assert!(world.is_copying(), "{world:?}");
            world.settle();
            assert_eq!(world.extent(), after, "{world:?}");
            world.crash_and_reopen();
            assert_eq!(world.extent(), after, "{world:?}");
        }
    }
}

#[test]
fn recovery_that_is_cut_off_again_leaves_legal_values() {
    for seed in 0..20 {
        let start = Start::ALL[seed as usize % Start::ALL.len()].0;
        let mut world = World::new(seed, start, Order::Fifo, EFFORT, None, States::default());
        for op in [
            Op::WriteNew,
            Op::WriteAcross,
            Op::Flush,
            Op::WriteOld,
            Op::Clone,
            Op::Zeroes,
        ] {
            world.submit(op);
            for _ in 0..3 + world.rng().below(4) {
                world.step();
            }
        }
        // Three times: crash, open for writing, write a little, crash again.
        for _ in 0..3 {
            world.crash_and_reopen();
            for op in [Op::WriteNew, Op::Trim] {
                world.submit(op);
                for _ in 0..2 + world.rng().below(6) {
                    world.step();
                }
            }
        }
        world.settle();
        world.submit(Op::Close);
        world.settle();
    }
}

#[test]
fn a_world_with_one_operation_in_flight_crashes_in_exactly_the_ways_there_are() {
    let states = |seed: u64, op: Op| {
        let mut states = States::default();
        let effort = Effort {
            exhaustive_max: 12,
            samples: 0,
        };
        let order = Order::Random(Rng::new(seed));
        let mut world = World::new(7, Start::Alone, order, effort, None, &mut states);
        world.submit(op);
        world.settle();
        drop(world);
        states.left.len()
    };
    // Three sectors of a block that is there: each is old or new, in whatever order they finish.
    for seed in 0..4 {
        assert_eq!(states(seed, Op::WriteOld), 8);
    }
    // A flush with nothing to flush changes no file.
    assert_eq!(states(0, Op::Flush), 1);
}

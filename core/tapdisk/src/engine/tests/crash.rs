//! Power cuts at every step of every pair of requests, and of random long workloads with many in
//! flight: whatever subset of unflushed writes survives, each sector has a legal value. The package
//! `xylem-crash` does the same at length.

use super::power::{Effort, Op, World};
use block::{Order, Rng};
use std::collections::HashSet;

fn world(seed: u64, order: Order, samples: u32) -> World<HashSet<u64>> {
    let effort = Effort {
        exhaustive_max: samples.ilog2(),
        samples: samples / 4,
    };
    World::new(seed, seed.is_multiple_of(2), order, effort, HashSet::new())
}

#[test]
fn any_power_cut_in_any_short_workload_leaves_legal_values() {
    let mut states = 0;
    for seed in [6, 7] {
        for (a, _) in Op::ALL {
            for (b, _) in Op::ALL {
                let mut world = world(seed, Order::Fifo, 64);
                for op in [a, b] {
                    world.submit(op);
                    world.settle();
                }
                states += world.checked();
            }
        }
    }
    println!("{states} crash states");
    assert!(states >= 3000, "only {states} crash states");
}

#[test]
fn any_power_cut_with_many_requests_in_flight_leaves_legal_values() {
    let mut states = 0;
    for seed in 0..36 {
        let mut world = world(seed, Order::Random(Rng::new(seed)), 4);
        for _ in 0..12 {
            // Live operations drain, so they are kept for the end of a burst.
            for _ in 0..1 + world.rng().below(4) {
                let (op, _) = Op::ALL[world.rng().below(8) as usize];
                world.submit(op);
            }
            if world.rng().one_in(3) {
                world.settle();
                if world.rng().one_in(2) && world.layers() < 4 {
                    world.submit(Op::Snapshot);
                    world.settle();
                }
            } else {
                for _ in 0..world.rng().below(6) {
                    world.step();
                }
            }
        }
        world.settle();
        states += world.checked();
    }
    println!("{states} crash states");
    assert!(states >= 3000, "only {states} crash states");
}

#[test]
fn recovery_that_is_cut_off_again_leaves_legal_values() {
    for seed in 0..20 {
        let mut world = world(seed, Order::Fifo, 4);
        for op in [
            Op::WriteNew,
            Op::WriteAcross,
            Op::Flush,
            Op::WriteOld,
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
    }
}

//! Workloads: what is done to a world, as a text that gives the same again.

use crate::flaw::Flaw;
use crate::op::Op;
use crate::world::{Effort, Start, Witness, World};
use anyhow::{Context, Result, bail};
use block::{Order, Rng};
use std::fmt;
use std::str::FromStr;

/// Operations in the longest of the workloads that are tried without exception.
pub const SHORT_MAX: u32 = 3;

/// Bursts of a long workload.
const BURSTS: u32 = 16;

/// Longest chain and most disks of a long workload; each costs time in every state.
const LAYERS_MAX: usize = 5;
const DISKS_MAX: usize = 3;

/// One run, which its text gives again: `short,parent,together,write-new,flush` or `long,17`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Workload {
    /// A few operations.
    Short {
        /// What is there at first.
        start: Start,
        /// Whether all are submitted at once, instead of each when the one before it is done. Then
        /// the power is cut during the last one only: the workload without it has the rest.
        together: bool,
        /// What is asked for.
        ops: Vec<Op>,
    },
    /// Random bursts with crashes between them that count, from this seed.
    Long(u64),
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Long(seed) => write!(f, "long,{seed}"),
            Self::Short {
                start,
                together,
                ops,
            } => {
                let named = Start::ALL.iter().find(|(of, _)| of == start);
                let start = named.map_or("", |(_, name)| name);
                let together = if *together { "together" } else { "in-turn" };
                write!(f, "short,{start},{together}")?;
                ops.iter().try_for_each(|op| write!(f, ",{op}"))
            }
        }
    }
}

impl FromStr for Workload {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split(',').collect();
        match words.as_slice() {
            ["long", seed] => Ok(Self::Long(seed.parse().context("the seed of a workload")?)),
            [
                "short",
                start,
                together @ ("together" | "in-turn"),
                ops @ ..,
            ] => {
                let named = Start::ALL.iter().find(|(_, name)| name == start);
                let (start, _) = named.with_context(|| format!("no start is called {start}"))?;
                let ops: Result<Vec<Op>, String> = ops.iter().map(|op| op.parse()).collect();
                Ok(Self::Short {
                    start: *start,
                    together: *together == "together",
                    ops: ops.map_err(anyhow::Error::msg)?,
                })
            }
            _ => bail!("{text:?} is no workload such as short,parent,together,flush or long,17"),
        }
    }
}

/// Every short workload up to so many of these operations, shortest first.
pub fn short_workloads(max: u32, ops: &[Op]) -> Vec<Workload> {
    let mut sequences = vec![Vec::new()];
    let mut all = Vec::new();
    for _ in 0..max {
        let longer = |begun: &Vec<Op>| {
            let begun = begun.clone();
            ops.iter()
                .map(move |op| [begun.as_slice(), &[*op]].concat())
        };
        sequences = sequences.iter().flat_map(longer).collect();
        for ops in &sequences {
            for (start, _) in Start::ALL {
                // One operation alone is in turn and together at once.
                let ways: &[bool] = if ops.len() == 1 {
                    &[false]
                } else {
                    &[false, true]
                };
                all.extend(ways.iter().map(|together| Workload::Short {
                    start,
                    together: *together,
                    ops: ops.clone(),
                }));
            }
        }
    }
    all
}

/// Runs one in a world of its own; a violation is a panic.
pub fn perform<W: Witness>(workload: &Workload, effort: Effort, flaw: Option<Flaw>, witness: W) {
    match workload {
        Workload::Long(seed) => long(*seed, effort, flaw, witness),
        Workload::Short {
            start,
            together,
            ops,
        } => {
            let mut world = World::new(7, *start, Order::Fifo, effort, flaw, witness);
            for (index, op) in ops.iter().enumerate() {
                world.look(*together || index + 1 == ops.len());
                world.submit(*op);
                if !together {
                    world.settle();
                }
            }
            world.settle();
        }
    }
}

fn long<W: Witness>(seed: u64, effort: Effort, flaw: Option<Flaw>, witness: W) {
    let order = Order::Random(Rng::new(seed));
    let (start, _) = Start::ALL[seed as usize % Start::ALL.len()];
    let mut world = World::new(seed, start, order, effort, flaw, witness);
    if seed % 8 == 5 {
        world.write_through();
    }
    let (guests, owners): (Vec<Op>, Vec<Op>) = Op::all().partition(|op| !op.is_of_owner());
    for _ in 0..BURSTS {
        for _ in 0..1 + world.rng().below(4) {
            let op = draw(&guests, world.rng());
            world.submit(op);
        }
        match world.rng().below(10) {
            0 => world.crash_and_reopen(),
            1..5 => {
                let op = draw(&owners, world.rng());
                let (layers, disks) = world.extent();
                match op {
                    Op::Snapshot if layers >= LAYERS_MAX => {}
                    Op::Clone if disks >= DISKS_MAX || layers >= LAYERS_MAX => {}
                    _ => world.submit(op),
                }
            }
            5 | 6 => world.settle(),
            _ => {}
        }
        for _ in 0..world.rng().below(8) {
            world.step();
        }
    }
    world.settle();
}

fn draw(ops: &[Op], rng: &mut Rng) -> Op {
    let index = rng.below(ops.len() as u64) as usize;
    ops.get(index).copied().unwrap_or(Op::Flush)
}

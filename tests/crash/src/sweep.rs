//! Many workloads on many threads, each state judged once wherever it comes up.

use crate::opinion;
use anyhow::{Context, Result, bail};
use block::{Order, Rng};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tapdisk::engine::testing::power::{Effort, Left, Op, Witness, World};

/// Requests in the longest of the workloads that are tried without exception.
pub const SHORT_MAX: u32 = 3;

/// Bursts of a long workload.
const BURSTS: u32 = 16;

/// Longest chain of a long workload; each layer costs time in every state.
const LAYERS_MAX: usize = 4;

/// Parts of the set of known states, so that threads seldom wait for one another.
const SHARDS: usize = 64;

/// One run, which its text gives again: `short,parent,together,write-new,flush` or `long,17`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Workload {
    /// A few requests.
    Short {
        /// Whether the disk has a parent.
        parent: bool,
        /// Whether all are submitted at once, instead of each when the one before it is answered.
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
                parent,
                together,
                ops,
            } => {
                let parent = if *parent { "parent" } else { "alone" };
                let together = if *together { "together" } else { "in-turn" };
                write!(f, "short,{parent},{together}")?;
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
                parent @ ("parent" | "alone"),
                together @ ("together" | "in-turn"),
                ops @ ..,
            ] => {
                let ops: Result<Vec<Op>, String> = ops.iter().map(|op| op.parse()).collect();
                Ok(Self::Short {
                    parent: *parent == "parent",
                    together: *together == "together",
                    ops: ops.map_err(anyhow::Error::msg)?,
                })
            }
            _ => bail!("{text:?} is no workload such as short,parent,together,flush or long,17"),
        }
    }
}

/// What is tried.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Requests of the longest workload that is tried without exception.
    pub short_max: u32,
    /// Ways to crash in each turn.
    pub effort: Effort,
    /// Long workloads go on, from this seed upwards, until so many states were judged.
    pub states: u64,
    /// No new workload begins after this time.
    pub time: Duration,
    /// First seed of the long workloads.
    pub seed: u64,
    /// Threads.
    pub jobs: usize,
    /// One state in so many is shown to the checker and the naive reader.
    pub opinion_every: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// States that differ in their bytes or in what is legal, each judged.
    pub states: u64,
    /// Of these, how many the checker and the naive reader judged too.
    pub opinions: u64,
    /// Workloads that ran to their end.
    pub workloads: u64,
    /// Of these, the short ones.
    pub short: u64,
    /// How many short ones there are in the plan.
    pub short_planned: u64,
    /// What broke the rules: the workload and what was wrong.
    pub violations: Vec<(String, String)>,
}

/// Every short workload of a plan, shortest first.
pub fn short_workloads(max: u32) -> Vec<Workload> {
    let mut sequences = vec![Vec::new()];
    let mut all = Vec::new();
    for _ in 0..max {
        let longer = |ops: &Vec<Op>| {
            let ops = ops.clone();
            Op::ALL.map(move |(op, _)| [ops.as_slice(), &[op]].concat())
        };
        sequences = sequences.iter().flat_map(longer).collect();
        for ops in &sequences {
            for (parent, together) in [(false, false), (true, true), (true, false), (false, true)] {
                // One request alone is in turn and together at once.
                if !(together && ops.len() == 1) {
                    let ops = ops.clone();
                    all.push(Workload::Short {
                        parent,
                        together,
                        ops,
                    });
                }
            }
        }
    }
    all
}

/// The states that were judged already, by all threads.
#[derive(Debug)]
struct Known {
    shards: [Mutex<HashSet<u64>>; SHARDS],
    states: AtomicU64,
    opinions: AtomicU64,
}

impl Known {
    fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            states: AtomicU64::new(0),
            opinions: AtomicU64::new(0),
        }
    }
}

/// One thread's view of it.
struct Judge<'a> {
    known: &'a Known,
    folder: &'a Path,
    opinion_every: u64,
}

impl Witness for Judge<'_> {
    fn is_new(&mut self, state: u64) -> bool {
        let shard = self.known.shards.get(state as usize % SHARDS);
        let new = shard.is_some_and(|shard| shard.lock().insert(state));
        self.known
            .states
            .fetch_add(u64::from(new), Ordering::Relaxed);
        new
    }

    fn examine(&mut self, left: &Left<'_>) -> Result<(), String> {
        // By other bits than those that choose the shard.
        if !(left.state >> 16).is_multiple_of(self.opinion_every.max(1)) {
            return Ok(());
        }
        self.known.opinions.fetch_add(1, Ordering::Relaxed);
        opinion::of_left(self.folder, left).map_err(|e| format!("{e:#}"))
    }
}

fn perform<W: Witness>(workload: &Workload, effort: Effort, witness: W) {
    match workload {
        Workload::Short {
            parent,
            together,
            ops,
        } => {
            let mut world = World::new(7, *parent, Order::Fifo, effort, witness);
            for op in ops {
                world.submit(*op);
                if !together {
                    world.settle();
                }
            }
            world.settle();
        }
        Workload::Long(seed) => long(*seed, effort, witness),
    }
}

fn long<W: Witness>(seed: u64, effort: Effort, witness: W) {
    let order = Order::Random(Rng::new(seed));
    let mut world = World::new(seed, seed.is_multiple_of(2), order, effort, witness);
    for _ in 0..BURSTS {
        for _ in 0..1 + world.rng().below(4) {
            // Those of the whole disk drain it, so they come between bursts.
            let op = loop {
                let (op, _) = Op::ALL[world.rng().below(Op::ALL.len() as u64) as usize];
                if !op.is_live() {
                    break op;
                }
            };
            world.submit(op);
        }
        match world.rng().below(10) {
            0 => world.crash_and_reopen(),
            1 => world.submit(Op::Close),
            2 => world.submit(Op::Resize),
            3 if world.layers() < LAYERS_MAX => world.submit(Op::Snapshot),
            4 | 5 => world.settle(),
            _ => {}
        }
        for _ in 0..world.rng().below(8) {
            world.step();
        }
    }
    world.settle();
}

/// Runs one workload with fresh eyes, every state shown to checker and naive reader.
///
/// # Errors
/// What broke the rules.
pub fn replay(workload: &Workload, effort: Effort) -> Result<u64> {
    let known = Known::new();
    let folder = folder()?;
    let judge = Judge {
        known: &known,
        folder: folder.path(),
        opinion_every: 1,
    };
    caught(|| perform(workload, effort, judge)).map_err(anyhow::Error::msg)?;
    Ok(known.states.into_inner())
}

/// Runs a plan to its end, or to the first violation.
///
/// # Errors
/// When it cannot be run; violations are in the outcome.
pub fn run(plan: &Plan, progress: &(dyn Fn(&Outcome) + Sync)) -> Result<Outcome> {
    let begun = Instant::now();
    let known = Known::new();
    let short = short_workloads(plan.short_max);
    let (next, long) = (AtomicUsize::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let outcome = Mutex::new(Outcome {
        short_planned: short.len() as u64,
        ..Outcome::default()
    });
    let folders: Result<Vec<_>> = (0..plan.jobs.max(1)).map(|_| folder()).collect();
    let folders = folders?;
    let work = |folder: &Path| {
        while !stop.load(Ordering::Relaxed) && begun.elapsed() < plan.time {
            let workload = match short.get(next.fetch_add(1, Ordering::Relaxed)) {
                Some(workload) => workload.clone(),
                None if known.states.load(Ordering::Relaxed) >= plan.states => break,
                None => {
                    let index = long.fetch_add(1, Ordering::Relaxed);
                    Workload::Long(plan.seed.wrapping_add(index))
                }
            };
            let judge = Judge {
                known: &known,
                folder,
                opinion_every: plan.opinion_every,
            };
            let result = caught(|| perform(&workload, plan.effort, judge));
            let mut outcome = outcome.lock();
            outcome.states = known.states.load(Ordering::Relaxed);
            outcome.opinions = known.opinions.load(Ordering::Relaxed);
            outcome.workloads += 1;
            outcome.short += u64::from(matches!(workload, Workload::Short { .. }));
            if let Err(what) = result {
                stop.store(true, Ordering::Relaxed);
                outcome.violations.push((workload.to_string(), what));
            }
            progress(&outcome);
        }
    };
    std::thread::scope(|scope| {
        for folder in &folders {
            scope.spawn(|| work(folder.path()));
        }
    });
    Ok(outcome.into_inner())
}

/// A violation is a panic; its text.
fn caught(run: impl FnOnce()) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        text.unwrap_or_else(|| "a panic without a text".to_owned())
    })
}

/// Where files for the checker go: into memory if there is a place for that.
fn folder() -> Result<tempfile::TempDir> {
    let memory = PathBuf::from("/dev/shm");
    let place = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    tempfile::tempdir_in(&place)
        .with_context(|| format!("cannot make a directory in {}", place.display()))
}

//! Many workloads on many threads, each state judged once wherever it comes up.

use crate::flaw::Flaw;
use crate::op::Op;
use crate::opinion;
use crate::workload::{Workload, perform, short_workloads};
use crate::world::{Effort, Left, Witness};
use anyhow::{Context, Result};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Parts of the set of known states, so that threads seldom wait for one another.
const SHARDS: usize = 64;

/// What is tried.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Operations of the short workloads.
    pub ops: Vec<Op>,
    /// Requests of the longest workload that is tried without exception.
    pub short_max: u32,
    /// Ways to crash in each turn.
    pub effort: Effort,
    /// Long workloads go on, from this seed upwards, until there were so many distinct states.
    pub states: u64,
    /// Long workloads there are at least.
    pub long_min: u64,
    /// No new workload begins after this time.
    pub time: Duration,
    /// First seed of the long workloads.
    pub seed: u64,
    /// Threads.
    pub jobs: usize,
    /// One state in so many is shown to the checker and the naive reader.
    pub opinion_every: u64,
    /// One of those in so many is flattened and compared by QEMU.
    pub qemu_every: u64,
    /// What is to be found, to see whether it is.
    pub flaw: Option<Flaw>,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Distinct sets of files that a crash left, told apart by their bytes alone.
    pub states: u64,
    /// Chains in them that were opened, read and judged by the model: one comes up again when it
    /// may read as something else by then.
    pub judged: u64,
    /// States that the checker and the naive reader judged too.
    pub opinions: u64,
    /// Of these, how many were flattened and compared by QEMU.
    pub compared: u64,
    /// Workloads that ran to their end.
    pub workloads: u64,
    /// Of these, the short ones.
    pub short: u64,
    /// How many short ones there are in the plan.
    pub short_planned: u64,
    /// What broke the rules: the workload and what was wrong.
    pub violations: Vec<(String, String)>,
}

/// Numbers seen already, by all threads.
#[derive(Debug)]
struct Seen {
    shards: [Mutex<HashSet<u64>>; SHARDS],
    count: AtomicU64,
}

impl Seen {
    fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            count: AtomicU64::new(0),
        }
    }

    fn is_new(&self, number: u64) -> bool {
        let shard = self.shards.get(number as usize % SHARDS);
        let new = shard.is_some_and(|shard| shard.lock().insert(number));
        self.count.fetch_add(u64::from(new), Ordering::Relaxed);
        new
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// What all threads know.
#[derive(Debug)]
struct Known {
    states: Seen,
    judged: Seen,
    opinions: AtomicU64,
    compared: AtomicU64,
}

impl Known {
    fn new() -> Self {
        Self {
            states: Seen::new(),
            judged: Seen::new(),
            opinions: AtomicU64::new(0),
            compared: AtomicU64::new(0),
        }
    }
}

/// One thread's view of it.
struct Judge<'a> {
    known: &'a Known,
    folder: &'a Path,
    opinion_every: u64,
    qemu_every: u64,
}

impl Witness for Judge<'_> {
    fn is_new(&mut self, state: u64) -> bool {
        self.known.states.is_new(state)
    }

    fn is_unjudged(&mut self, what: u64) -> bool {
        self.known.judged.is_new(what)
    }

    fn examine(&mut self, left: &Left<'_>) -> Result<(), String> {
        // By other bits than those that choose the shard.
        let lot = left.state >> 16;
        if !lot.is_multiple_of(self.opinion_every.max(1)) {
            return Ok(());
        }
        let nth = self.known.opinions.fetch_add(1, Ordering::Relaxed);
        let with_qemu = nth.is_multiple_of(self.qemu_every.max(1));
        let compared = u64::from(with_qemu);
        self.known.compared.fetch_add(compared, Ordering::Relaxed);
        opinion::of_left(self.folder, left, with_qemu).map_err(|e| format!("{e:#}"))
    }
}

/// Runs one workload with fresh eyes, every state shown to checker and naive reader. Returns the
/// number of distinct states.
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
        qemu_every: 100,
    };
    caught(|| perform(workload, effort, None, judge)).map_err(anyhow::Error::msg)?;
    Ok(known.states.count())
}

/// Runs a plan to its end, or to the first violation.
///
/// # Errors
/// When it cannot be run; violations are in the outcome.
pub fn run(plan: &Plan, progress: &(dyn Fn(&Outcome) + Sync)) -> Result<Outcome> {
    let begun = Instant::now();
    let known = Known::new();
    let short = short_workloads(plan.short_max, &plan.ops);
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
                None => {
                    let index = long.fetch_add(1, Ordering::Relaxed);
                    if index >= plan.long_min && known.states.count() >= plan.states {
                        break;
                    }
                    Workload::Long(plan.seed.wrapping_add(index))
                }
            };
            let judge = Judge {
                known: &known,
                folder,
                opinion_every: plan.opinion_every,
                qemu_every: plan.qemu_every,
            };
            let result = caught(|| perform(&workload, plan.effort, plan.flaw, judge));
            let mut outcome = outcome.lock();
            outcome.states = known.states.count();
            outcome.judged = known.judged.count();
            outcome.opinions = known.opinions.load(Ordering::Relaxed);
            outcome.compared = known.compared.load(Ordering::Relaxed);
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

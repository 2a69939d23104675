//! Real processes that are killed under load, again and again, on the same tree of files.
//!
//! ```text
//!  start ──> open, read, judge ──> write, flush, trim       ──> kill -9 ──> checker, naive reader
//!    ^            │                snapshot, coalesce,             │        of every chain on record
//!    │            │                leaf coalesce, mirror           │
//!    │            └ one time in four killed in the middle of opening
//!    └─────────────────────────────────────────────────────────────┘
//! ```
//! A kill leaves what the kernel has, so this finds what a simulated power cut cannot: what the
//! process itself loses, and how it meets real files and sockets. Not here: power cuts.

mod change;
mod load;
mod record;

use crate::opinion;
use anyhow::{Context, Result};
use block::Rng;
use change::Change;
use datapath::nbd;
use datapath::{Access, Client, Extent, Supervisor, SupervisorConfig, listen};
use load::{LANES, Shared, judge, load};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use record::Record;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use units::{DpId, RequestId};

/// Size of the disk: 64 blocks, more than a file is extended ahead.
const DISK_BYTES: u64 = 128 << 20;

/// Kills on one tree before a new one is begun.
const KILLS_PER_TREE: u64 = 250;

/// Longest time under load before a kill.
const LOAD_MS_MAX: u64 = 60;

/// Longest time that a change of the tree is thought to take.
const TAKES_MAX: Duration = Duration::from_secs(2);

/// How long to wait for a killed process to be gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Kills.
    pub kills: u64,
    /// Where decisions come from. Timing comes from the machine, so a seed gives the same requests
    /// but not the same instant of the kill.
    pub seed: u64,
    /// The `xylem-tapdisk` binary.
    pub tapdisk: PathBuf,
    /// A directory on the file system that is meant.
    pub folder: PathBuf,
}

/// How often something came to its end, and how often the kill found it under way.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// To its end.
    pub done: u64,
    /// Cut off.
    pub cut: u64,
    /// About how long it takes here, so that kills come anywhere in it.
    takes: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            done: 0,
            cut: 0,
            takes: Duration::from_millis(20),
        }
    }
}

impl Times {
    fn is_done(&mut self, after: Duration) {
        self.done += 1;
        self.takes = (self.takes + after) / 2;
    }

    fn is_cut(&mut self) {
        self.cut += 1;
        self.takes = (self.takes * 5 / 4).min(TAKES_MAX);
    }
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Processes that were killed.
    pub kills: u64,
    /// Of these, how many while they opened their chain.
    pub kills_early: u64,
    /// Changes that were answered.
    pub changes: u64,
    /// Flushes that were answered.
    pub flushes: u64,
    /// Snapshots.
    pub snapshots: Times,
    /// Images merged into their parents.
    pub coalesces: Times,
    /// Leaves merged into their parents.
    pub leaf_coalesces: Times,
    /// Disks moved to other images.
    pub mirrors: Times,
    /// Kills after which more than one chain was the disk.
    pub either: u64,
    /// Sectors judged after a kill.
    pub sectors: u64,
    /// Longest time from start to the first answered read, in milliseconds.
    pub recovery_ms_max: u128,
}

impl Outcome {
    fn times(&mut self, change: Change) -> &mut Times {
        match change {
            Change::Snapshot => &mut self.snapshots,
            Change::Coalesce(_) => &mut self.coalesces,
            Change::LeafCoalesce => &mut self.leaf_coalesces,
            Change::Mirror => &mut self.mirrors,
        }
    }
}

/// Kills as often as planned.
///
/// # Errors
/// What was lost, or what could not be run; the directory with the images stays for a look.
pub fn run(plan: &Plan, progress: &dyn Fn(&Outcome)) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut rng = Rng::new(plan.seed);
        let mut outcome = Outcome::default();
        while outcome.kills < plan.kills {
            let mut tree = Tree::create(plan, &mut rng).await?;
            let result = tree.wear_out(plan, &mut rng, &mut outcome, progress).await;
            if let Err(error) = result {
                let folder = tree.folder.keep();
                return Err(error.context(format!("the images are in {}", folder.display())));
            }
        }
        Ok(outcome)
    })
}

fn rid() -> RequestId {
    RequestId::random()
}

fn dp() -> Result<DpId> {
    "disk".parse().context("a name")
}

/// Images of one disk and what they must hold.
struct Tree {
    folder: tempfile::TempDir,
    supervisor: Supervisor,
    record: Record,
    shared: Arc<Shared>,
}

impl Tree {
    async fn create(plan: &Plan, rng: &mut Rng) -> Result<Self> {
        let folder = tempfile::tempdir_in(&plan.folder)
            .with_context(|| format!("cannot make a directory in {}", plan.folder.display()))?;
        let supervisor = Supervisor::new(SupervisorConfig {
            binary: plan.tapdisk.clone(),
            run_dir: folder.path().join("run"),
            log_dir: folder.path().join("log"),
            run_as: None,
        });
        let record = Record::new(folder.path());
        let mut tree = Self {
            folder,
            supervisor,
            record,
            shared: Arc::default(),
        };
        let client = tree.supervisor.client("kill", &rid()).await?;
        let base = tree.record.new_layer(&client, rng, None).await?;
        tree.record.is_now(vec![base]);
        end(&client).await?;
        Ok(tree)
    }

    async fn wear_out(
        &mut self,
        plan: &Plan,
        rng: &mut Rng,
        outcome: &mut Outcome,
        progress: &dyn Fn(&Outcome),
    ) -> Result<()> {
        let last = outcome.kills + KILLS_PER_TREE;
        while outcome.kills < plan.kills.min(last) {
            self.record.recover(rng)?;
            if rng.one_in(4) {
                self.kill_while_it_opens(rng).await?;
                outcome.kills_early += 1;
            } else {
                self.kill_under_load(rng, outcome).await?;
            }
            outcome.kills += 1;
            let chains = self.record.chains()?;
            outcome.either += u64::from(chains.len() > 1);
            for chain in chains {
                opinion::of_chain(
                    &chain,
                    &self.shared.model.lock(),
                    self.record.is_relinking(),
                )
                .with_context(|| format!("after kill {}", outcome.kills))?;
            }
            progress(outcome);
        }
        Ok(())
    }

    async fn kill_while_it_opens(&mut self, rng: &mut Rng) -> Result<()> {
        let client = self.supervisor.client("kill", &rid()).await?;
        let (id, disk, files) = (rid(), dp()?, self.record.open_chain(0, true)?);
        let open = client.open(&id, &disk, files, Extent::Grows, Access::ReadWrite);
        let wait = tokio::time::sleep(Duration::from_micros(rng.below(3000)));
        // Whichever is first: the process dies in the middle, or at rest with an open disk.
        tokio::select! {
            opened = open => { opened?; }
            () = wait => {}
        }
        end(&client).await
    }

    async fn kill_under_load(&mut self, rng: &mut Rng, outcome: &mut Outcome) -> Result<()> {
        let started = Instant::now();
        let client = self.supervisor.client("kill", &rid()).await?;
        let files = self.record.open_chain(0, true)?;
        let disk = dp()?;
        client
            .open(&rid(), &disk, files, Extent::Grows, Access::ReadWrite)
            .await?;
        let socket = self.supervisor.nbd_socket("disk")?;
        client
            .serve(&rid(), &disk, "disk", listen(&socket)?)
            .await?;
        let reader = nbd::Client::connect(&socket, "disk").await?;
        reader.read(0, 512).await?;
        outcome.recovery_ms_max = outcome.recovery_ms_max.max(started.elapsed().as_millis());
        outcome.sectors += judge(&reader, &self.shared).await?;

        self.shared.killed.store(false, Ordering::SeqCst);
        let mut tasks = Vec::new();
        for lane in 0..LANES {
            let disk = nbd::Client::connect(&socket, "disk").await?;
            let (shared, seed) = (Arc::clone(&self.shared), rng.next_u64());
            tasks.push(tokio::spawn(async move {
                load(lane, disk, &shared, seed).await
            }));
        }
        let total = Duration::from_micros(rng.below(LOAD_MS_MAX * 1000));
        let before = total.mul_f64(rng.below(1000) as f64 / 1000.0);
        tokio::time::sleep(before).await;
        if let Some(change) = self.record.next_change(rng) {
            let begun = Instant::now();
            let within = outcome
                .times(change)
                .takes
                .mul_f64(rng.below(2000) as f64 / 1000.0);
            tokio::select! {
                made = self.make(&client, rng, change) => {
                    made.with_context(|| format!("{change:?}"))?;
                    outcome.times(change).is_done(begun.elapsed());
                }
                () = tokio::time::sleep(within) => outcome.times(change).is_cut(),
            }
        } else {
            tokio::time::sleep(total.saturating_sub(before)).await;
        }
        self.shared.killed.store(true, Ordering::SeqCst);
        end(&client).await?;
        for task in tasks {
            task.await??;
        }
        outcome.changes += self.shared.changes.swap(0, Ordering::Relaxed);
        outcome.flushes += self.shared.flushes.swap(0, Ordering::Relaxed);
        Ok(())
    }
}

/// Kills the process and waits until it is gone.
async fn end(client: &Client) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(client.pid())?);
    kill(pid, Signal::SIGKILL).with_context(|| format!("cannot kill process {pid}"))?;
    tokio::time::timeout(PATIENCE, client.gone())
        .await
        .with_context(|| format!("process {pid} outlives a kill"))
}

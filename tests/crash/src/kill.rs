//! Real processes that are killed under load, again and again, on the same growing chain.
//!
//! ```text
//!  start ──> open, read, judge ──> write, flush, trim, snapshot ──> kill -9 ──> checker, naive reader
//!    ^            └ one time in four killed in the middle of opening                   │
//!    └─────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! A kill leaves what the kernel has, so this finds what a simulated power cut cannot: what the
//! process itself loses, and how it meets real files and sockets. Not here: power cuts.

use crate::opinion;
use anyhow::{Context, Result, bail, ensure};
use block::Rng;
use datapath::nbd::{self, WriteFlags};
use datapath::protocol::ParentRef;
use datapath::{Access, Client, Extent, Format, NewImage, Supervisor, SupervisorConfig, listen};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tapdisk::engine::testing::model::{Model, sectors_of, value_of};
use tapdisk::engine::testing::rig::SECTOR;
use units::{DpId, RequestId};
use uuid::Uuid;

/// Size of the disk: 64 blocks, more than a file is extended ahead.
const DISK_BYTES: u64 = 128 << 20;

/// Longest chain before a new one is begun.
const LAYERS_MAX: usize = 8;

/// Clients that write at once, each to sectors of its own.
const LANES: u64 = 4;

/// Longest time under load before a kill.
const LOAD_MS_MAX: u64 = 60;

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
    /// Snapshots that were answered.
    pub snapshots: u64,
    /// Snapshots that were under way when the process was killed.
    pub snapshots_cut: u64,
    /// Sectors judged after a kill.
    pub sectors: u64,
    /// Longest time from start to the first answered read, in milliseconds.
    pub recovery_ms_max: u128,
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
            let mut chain = Chain::create(plan, &mut rng).await?;
            let result = chain.wear_out(plan, &mut rng, &mut outcome, progress).await;
            if let Err(error) = result {
                let folder = chain.folder.keep();
                return Err(error.context(format!("the images are in {}", folder.display())));
            }
        }
        Ok(outcome)
    })
}

/// What the tasks of one life of the process share.
#[derive(Debug, Default)]
struct Shared {
    model: Mutex<Model>,
    /// From now on failures are expected.
    killed: AtomicBool,
    value: AtomicU64,
    changes: AtomicU64,
    flushes: AtomicU64,
}

struct Layer {
    path: PathBuf,
    uuid: Uuid,
}

/// A chain of images and what it must hold.
struct Chain {
    folder: tempfile::TempDir,
    supervisor: Supervisor,
    /// Leaf first.
    layers: Vec<Layer>,
    shared: Arc<Shared>,
}

fn rid() -> RequestId {
    RequestId::random()
}

fn dp() -> Result<DpId> {
    "disk".parse().context("a name")
}

impl Chain {
    async fn create(plan: &Plan, rng: &mut Rng) -> Result<Self> {
        let folder = tempfile::tempdir_in(&plan.folder)
            .with_context(|| format!("cannot make a directory in {}", plan.folder.display()))?;
        let supervisor = Supervisor::new(SupervisorConfig {
            binary: plan.tapdisk.clone(),
            run_dir: folder.path().join("run"),
            log_dir: folder.path().join("log"),
            run_as: None,
        });
        let mut chain = Self {
            folder,
            supervisor,
            layers: Vec::new(),
            shared: Arc::default(),
        };
        let client = chain.supervisor.client("kill", &rid()).await?;
        let base = chain.new_layer(&client, rng).await?;
        chain.layers.push(base);
        end(&client).await?;
        Ok(chain)
    }

    /// Creates an empty image on top of the present leaf.
    async fn new_layer(&self, client: &Client, rng: &mut Rng) -> Result<Layer> {
        let parts = (u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64());
        let uuid = uuid::Builder::from_random_bytes(parts.to_be_bytes()).into_uuid();
        let path = self.folder.path().join(format!("{uuid}.vhd"));
        let parent = self.layers.first().map(|leaf| ParentRef {
            name: format!("{}.vhd", leaf.uuid),
            uuid: leaf.uuid,
            mtime_unix_s: 1_700_000_000,
        });
        let image = NewImage {
            uuid,
            virtual_bytes: DISK_BYTES,
            resize_max_bytes: DISK_BYTES,
            parent,
            extent: Extent::Grows,
        };
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        client.image_create(&rid(), image, file.into()).await?;
        Ok(Layer { path, uuid })
    }

    fn open_files(&self) -> Result<Vec<(Format, OwnedFd)>> {
        let open = |(depth, layer): (usize, &Layer)| {
            let file = File::options()
                .read(true)
                .write(depth == 0)
                .open(&layer.path)?;
            Ok((Format::Vhd, file.into()))
        };
        self.layers.iter().enumerate().map(open).collect()
    }

    /// Kills until the chain is as long as it may get.
    async fn wear_out(
        &mut self,
        plan: &Plan,
        rng: &mut Rng,
        outcome: &mut Outcome,
        progress: &dyn Fn(&Outcome),
    ) -> Result<()> {
        while outcome.kills < plan.kills && self.layers.len() < LAYERS_MAX {
            if rng.one_in(4) {
                self.kill_while_it_opens(rng).await?;
                outcome.kills_early += 1;
            } else {
                self.kill_under_load(rng, outcome).await?;
            }
            outcome.kills += 1;
            let chain: Vec<PathBuf> = self.layers.iter().map(|l| l.path.clone()).collect();
            opinion::of_chain(&chain, &self.shared.model.lock(), false)
                .with_context(|| format!("after kill {}", outcome.kills))?;
            progress(outcome);
        }
        Ok(())
    }

    async fn kill_while_it_opens(&mut self, rng: &mut Rng) -> Result<()> {
        let client = self.supervisor.client("kill", &rid()).await?;
        let (id, disk, files) = (rid(), dp()?, self.open_files()?);
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
        let files = self.open_files()?;
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
        outcome.sectors += self.judge(&reader).await?;

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
        if rng.one_in(2) {
            self.snapshot(&client, rng, total.saturating_sub(before), outcome)
                .await?;
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

    /// Takes a snapshot, or begins one that the kill will find under way. The empty new leaf reads
    /// as what is below it, so the longer chain is right in every case.
    async fn snapshot(
        &mut self,
        client: &Client,
        rng: &mut Rng,
        within: Duration,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let layer = self.new_layer(client, rng).await?;
        let file = File::options().read(true).write(true).open(&layer.path)?;
        let (id, disk, uuid) = (rid(), dp()?, layer.uuid);
        let covered = self.shared.model.lock().flush_begins();
        self.layers.insert(0, layer);
        tokio::select! {
            switched = client.snapshot(&id, &disk, uuid, file.into()) => {
                switched?;
                self.shared.model.lock().flushed(&covered);
                outcome.snapshots += 1;
            }
            () = tokio::time::sleep(within) => outcome.snapshots_cut += 1,
        }
        Ok(())
    }

    /// Reads every touched sector through the process; what is found must stay.
    async fn judge(&self, disk: &nbd::Client) -> Result<u64> {
        let touched: Vec<u64> = self.shared.model.lock().touched().collect();
        for run in touched.chunk_by(|a, b| a + 1 == *b) {
            let first = run.first().copied().unwrap_or_default();
            let bytes = u32::try_from(run.len() as u64 * SECTOR)?;
            let bytes = disk.read(first * SECTOR, bytes).await?;
            let mut model = self.shared.model.lock();
            for (sector, bytes) in run.iter().zip(bytes.chunks(512)) {
                let known = model.describe(*sector);
                let Some(value) = value_of(bytes) else {
                    bail!("mixture in sector {sector}, may be {known}");
                };
                ensure!(
                    model.is_legal(*sector, value),
                    "sector {sector} is {value}, may be {known}"
                );
                model.found(*sector, value);
            }
        }
        Ok(touched.len() as u64)
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

/// Changes and flushes until the process is killed.
async fn load(lane: u64, disk: nbd::Client, shared: &Shared, seed: u64) -> Result<()> {
    let mut rng = Rng::new(seed);
    loop {
        if let Err(error) = request(lane, &disk, shared, &mut rng).await {
            if shared.killed.load(Ordering::SeqCst) {
                return Ok(());
            }
            return Err(error).context("before the process was killed");
        }
    }
}

async fn request(lane: u64, disk: &nbd::Client, shared: &Shared, rng: &mut Rng) -> Result<()> {
    if rng.one_in(8) {
        let covered = shared.model.lock().flush_begins();
        disk.flush().await?;
        shared.model.lock().flushed(&covered);
        shared.flushes.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    // Lanes lie side by side in each page, in a few places of each block.
    let (block, place) = (rng.below(DISK_BYTES >> 21), rng.below(5));
    let place = [0, 8, 1000, 2048, 4080].get(place as usize).copied();
    let at = block * 4096 + place.unwrap_or(0) + lane * 2;
    let (first, count) = match rng.below(3) {
        0 => (at, 1),
        1 => (at + 1, 1),
        _ => (at, 2),
    };
    let zero = rng.below(6);
    let base = if zero < 2 {
        0
    } else {
        shared.value.fetch_add(2, Ordering::Relaxed) + 1
    };
    let value = |i: u64| if base == 0 { 0 } else { base + i };
    let values = (0..count).map(|i| (first + i, value(i)));
    let change = shared.model.lock().change(values, zero == 0);
    let fua = rng.one_in(8);
    let flags = WriteFlags {
        fua,
        no_hole: rng.one_in(2),
    };
    let (offset, bytes) = (first * SECTOR, count * SECTOR);
    let result = match zero {
        0 => disk.trim(offset, bytes).await,
        1 => disk.write_zeroes(offset, bytes, flags).await,
        _ => {
            let values: Vec<u64> = (0..count).map(value).collect();
            let data = sectors_of(values.into_iter());
            let flags = WriteFlags {
                fua,
                no_hole: false,
            };
            disk.write(offset, data, flags).await
        }
    };
    let mut model = shared.model.lock();
    model.answered(change, result.is_ok());
    if result.is_ok() && fua && zero != 0 {
        model.durable(change);
    }
    shared.changes.fetch_add(1, Ordering::Relaxed);
    result.map_err(anyhow::Error::from)
}

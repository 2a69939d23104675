//! Copies, mirrors and relinks of a disk in use, as the daemon asks for them.

use super::{Image, Ours, disk, open, parent_ref};
use crate::ours::Cache;
use anyhow::{Context, Result, bail, ensure};
use datapath::protocol::{CopyPlan, CopyProgress, CopyScope};
use datapath::{Chain, Extent, Format};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstatfs};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};
use units::RequestId;

/// How long one wait may take before it is asked again.
const WAIT: Duration = Duration::from_secs(20);

/// How long a copy or a mirror may take.
const COPY: Duration = Duration::from_secs(180);

/// Magic number of a tmpfs in `statfs`.
const TMPFS: i64 = 0x0102_1994;

impl Ours {
    /// Copies what a layer holds and the `above` layers over it do not hide into the layer below
    /// it: `source` is those, the layer, and all below it. Returns when it is durable.
    ///
    /// # Errors
    /// Those of the files and the process, and when it fails or takes too long.
    pub(crate) async fn coalesce(
        &self,
        source: &[&Path],
        above: u16,
        cache: Cache,
    ) -> Result<CopyProgress> {
        let below = source.get(usize::from(above) + 1..).unwrap_or_default();
        let (from, sources) = chain(source)?;
        let (into, targets) = chain(below)?;
        let plan = CopyPlan {
            scope: CopyScope::Layer,
            above,
            ..CopyPlan::default()
        };
        let (rid, copy) = (RequestId::random(), "copy".parse()?);
        let client = &self.client;
        client
            .copy_start(&rid, &copy, (from, into), Extent::Grows, plan)
            .await?;
        for file in sources.iter().chain(&targets) {
            go_direct(file, cache)?;
        }
        let until = Instant::now() + COPY;
        loop {
            let state = client.copy_wait(&rid, &copy, WAIT).await?;
            if let Some(why) = state.failed {
                bail!("the copy failed: {why}");
            }
            if state.ended {
                client.copy_stop(&rid, &copy).await?;
                return Ok(state.progress);
            }
            ensure!(Instant::now() < until, "a copy takes longer than {COPY:?}");
        }
    }

    /// Begins to write to another chain as well and waits until both hold the same.
    ///
    /// # Errors
    /// Those of the files and the process, and when it fails or takes too long.
    pub(crate) async fn mirror(
        &self,
        target: &[&Path],
        scope: CopyScope,
        cache: Cache,
    ) -> Result<CopyProgress> {
        let (into, files) = chain(target)?;
        let plan = CopyPlan {
            scope,
            ..CopyPlan::default()
        };
        let (rid, disk) = (RequestId::random(), disk()?);
        let client = &self.client;
        client
            .mirror_start(&rid, &disk, into, Extent::Grows, plan)
            .await?;
        for file in &files {
            go_direct(file, cache)?;
        }
        let until = Instant::now() + COPY;
        loop {
            let state = client.mirror_wait(&rid, &disk, WAIT).await?;
            let mirror = state.mirror.context("a disk without the mirror it got")?;
            if let Some(why) = mirror.failed {
                bail!("the mirror failed: {why}");
            }
            if mirror.in_sync {
                return Ok(mirror.progress);
            }
            ensure!(
                Instant::now() < until,
                "a mirror takes longer than {COPY:?}"
            );
        }
    }

    /// Puts the target of a mirror in sync in the disk's place; returns when it was asked for and
    /// when it was done.
    ///
    /// # Errors
    /// Those of the process.
    pub(crate) async fn switch(&self) -> Result<(Instant, Instant)> {
        let (rid, disk) = (RequestId::random(), disk()?);
        let asked = Instant::now();
        self.client.mirror_prepare(&rid, &disk).await?;
        // Here the daemon writes down that the target is the disk.
        self.client.mirror_switch(&rid, &disk, false).await?;
        Ok((asked, Instant::now()))
    }

    /// Takes a layer out of the disk's chain, right below its leaf; returns when it was asked for
    /// and when it was done.
    ///
    /// # Errors
    /// Those of the file and the process.
    pub(crate) async fn relink(
        &self,
        gone: &Image,
        into: &Image,
        cache: Cache,
    ) -> Result<(Instant, Instant)> {
        let file = open(&into.path)?;
        let below = (Format::Vhd, file.try_clone()?.into());
        let parent = parent_ref(into)?;
        let (rid, disk) = (RequestId::random(), disk()?);
        let asked = Instant::now();
        self.client
            .relink(&rid, &disk, gone.uuid, below, Some(parent))
            .await?;
        let done = Instant::now();
        go_direct(&file, cache)?;
        Ok((asked, done))
    }
}

/// Descriptors for the process, and the same files to change their mode by.
fn chain(paths: &[&Path]) -> Result<(Chain, Vec<File>)> {
    let files: Vec<File> = paths.iter().map(|path| open(path)).collect::<Result<_>>()?;
    let mut chain = Chain::new();
    for file in &files {
        chain.push((Format::Vhd, file.try_clone()?.into()));
    }
    Ok((chain, files))
}

/// Metadata is read while opening with reads of any length, which `O_DIRECT` refuses; what comes
/// after is aligned. The flag belongs to the open file that both processes share. A file in memory
/// has no use for it.
fn go_direct(file: &File, cache: Cache) -> Result<()> {
    if cache == Cache::Direct && fstatfs(file)?.f_type != TMPFS {
        let flags = fcntl_getfl(file)? | OFlags::DIRECT;
        fcntl_setfl(file, flags).context("setting O_DIRECT")?;
    }
    Ok(())
}

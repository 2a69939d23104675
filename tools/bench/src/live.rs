//! P10 and P12 on a disk in use: coalescing below and of its leaf, and mirrors.
//!
//! One guest asks for 4 KiB at random places, half of them reads, and is not told of anything. What
//! it sees while something is done to its disk is compared with what it saw a second before.

use crate::guest::{Busy, Load, Op, Span, perform};
use crate::measure::{Beside, Measuring};
use crate::offline::full;
use crate::ours::{Cache, Image, Ours};
use crate::plan::Aim;
use crate::row::{Peer, Row};
use crate::windows::Window;
use anyhow::{Context, Result};
use datapath::protocol::CopyScope;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest wait of a request while a disk is switched, milliseconds.
const STALL_MS_MAX: f64 = 5.0;

/// A request may take so much longer in the slowest hundredth while something goes on behind it.
const P99_MOST: f64 = 1.25;

/// Guests get so much of what they get without a mirror.
const MIRRORED_LEAST: f64 = 0.85;

/// What the guest saw in one round.
struct Seen {
    /// Before anything was done.
    calm: Window,
    /// While it was done.
    during: Window,
    /// Afterwards, before the switch: both legs of a mirror in sync. Empty where there is no such
    /// time.
    after: Window,
    switch: Window,
    spans: Vec<Span>,
}

/// A disk in use and how to make images for it.
struct Scene<'a, 'b> {
    with: &'a Measuring<'b>,
    disk_bytes: u64,
    /// How long each quiet stretch is watched.
    look: Duration,
}

/// Coalesces an inner layer and then the leaf of a disk in use, in rounds.
///
/// # Errors
/// When a file, a process or the guest fails.
///
/// # Cancel safety
/// What the guest has begun is done to its end.
pub(crate) async fn coalesce(with: &Measuring<'_>, dir: &Path, medium: &str) -> Result<Vec<Row>> {
    let scene = Scene::new(with);
    let mut rows = Vec::new();
    for leaf in [false, true] {
        let rounds = with.rounds(async |round| {
            let dir = dir.join(format!("{leaf}-{round}"));
            std::fs::create_dir_all(&dir)?;
            let seen = scene.coalesce_once(&dir, leaf).await?;
            std::fs::remove_dir_all(&dir)?;
            Ok(seen)
        });
        let (rounds, foreign_cores) = rounds.await?;
        let what = match leaf {
            true => "coalescing the leaf of a disk in use",
            false => "coalescing below the leaf of a disk in use",
        };
        let work = format!("{what}: guest's p99 us, depth 4, half reads");
        let before = peer("the same guest just before");
        let p99 = |window: fn(&Seen) -> Window| {
            let us = rounds
                .iter()
                .map(|seen| Some(window(seen).part_ms(&seen.spans, 0.99)? * 1e3));
            us.collect::<Option<Vec<f64>>>()
        };
        let (ours, calm) = (p99(|seen| seen.during), p99(|seen| seen.calm));
        if let (Some(ours), Some(values)) = (ours, calm) {
            let peer = Peer { values, ..before };
            let aim = Aim::MostTimes(P99_MOST);
            rows.extend(Row::against("P10", &work, medium, &ours, &peer, aim));
        }
        rows.extend(stalls("P10", what, medium, &rounds));
        for row in &mut rows {
            row.foreign_cores.get_or_insert(foreign_cores);
        }
    }
    Ok(rows)
}

/// Mirrors a disk in use and switches to the mirror, in rounds.
///
/// # Errors
/// When a file, a process or the guest fails.
///
/// # Cancel safety
/// What the guest has begun is done to its end.
pub(crate) async fn mirror(with: &Measuring<'_>, dir: &Path, medium: &str) -> Result<Vec<Row>> {
    let scene = Scene::new(with);
    let rounds = with.rounds(async |round| {
        let dir = dir.join(round.to_string());
        std::fs::create_dir_all(&dir)?;
        let seen = scene.mirror_once(&dir).await?;
        std::fs::remove_dir_all(&dir)?;
        Ok(seen)
    });
    let (rounds, foreign_cores) = rounds.await?;
    let mut rows = Vec::new();
    let iops = |window: fn(&Seen) -> Window| -> Vec<f64> {
        rounds
            .iter()
            .map(|seen| window(seen).iops(&seen.spans))
            .collect()
    };
    let peer = Peer {
        values: iops(|seen| seen.calm),
        ..peer("the same guest just before")
    };
    let parts: [(&str, Vec<f64>); 2] = [
        ("a mirror in sync", iops(|seen| seen.after)),
        ("a mirror that is being filled", iops(|seen| seen.during)),
    ];
    for (what, ours) in parts {
        let work = format!("{what}: guest's IOPS, depth 32, half reads");
        let aim = Aim::LeastTimes(MIRRORED_LEAST);
        rows.extend(Row::against("P12", &work, medium, &ours, &peer, aim));
    }
    rows.extend(stalls("P12", "the switch to a mirror", medium, &rounds));
    for row in &mut rows {
        row.foreign_cores = Some(foreign_cores);
    }
    Ok(rows)
}

/// The longest wait around each switch, beside a stretch as long just before.
fn stalls(id: &str, what: &str, medium: &str, rounds: &[Seen]) -> Option<Row> {
    let work = format!("{what}: longest wait around the switch, ms, the worst of all");
    let (mut ours, mut calm) = (Vec::new(), Vec::new());
    for seen in rounds {
        let end = seen.calm.to;
        let before = end
            .checked_sub(seen.switch.length())
            .unwrap_or(seen.calm.from);
        ours.push(seen.switch.longest_ms(&seen.spans)?);
        calm.push(Window::from((before, end)).longest_ms(&seen.spans)?);
    }
    let peer = Peer {
        values: calm,
        ..peer("the same without a switch")
    };
    let aim = Aim::Most(STALL_MS_MAX);
    let row = Row::of_part(id, &work, medium, 1.0, &ours, &peer, aim)?;
    let took: Vec<f64> = rounds.iter().map(|seen| seen.switch.ms()).collect();
    let took = crate::stats::part_of(&took, 0.5)?;
    Some(row.note(format!("the call takes {took:.2} ms")))
}

impl<'a, 'b> Scene<'a, 'b> {
    fn new(with: &'a Measuring<'b>) -> Self {
        let quick = with.effort.quick;
        Self {
            with,
            disk_bytes: if quick { 64 << 20 } else { 256 << 20 },
            look: Duration::from_millis(with.effort.run_ms),
        }
    }

    /// A chain of full layers and an empty leaf if wanted, base first, with a guest at work on it.
    async fn disk(
        &self,
        dir: &Path,
        (layers, empty_leaf): (usize, bool),
        depth: usize,
    ) -> Result<(Ours, Vec<Image>, Busy)> {
        let maker = self.with.servers.ours().await?;
        let ours = self.with.servers.ours().await?;
        let mut images: Vec<Image> = Vec::new();
        let mut uri = String::new();
        for layer in 0..layers + usize::from(empty_leaf) {
            // Names of one length: one parent is to be named in another's place.
            let path = dir.join(format!("{layer}.vhd"));
            let image = maker.create(&path, self.disk_bytes, images.last()).await?;
            if images.is_empty() {
                ours.open(&[&image.path], Cache::Direct).await?;
                uri = ours.serve().await?;
            } else {
                ours.snapshot(&image).await?;
            }
            images.push(image);
            if layer < layers {
                let ops = full(self.disk_bytes)
                    .into_iter()
                    .chain([Op::Flush])
                    .collect();
                perform(&uri, 4, ops).await.context("filling a layer")?;
            }
        }
        maker.exit().await?;
        let load = Load {
            depth,
            request_bytes: 4096,
            reads: 50,
            seed: 12,
        };
        Ok((ours, images, Busy::start(&uri, load)?))
    }

    /// Takes a layer into the one below it: the leaf, or the one below the leaf.
    async fn coalesce_once(&self, dir: &Path, leaf: bool) -> Result<(Seen, f64)> {
        let (ours, images, busy) = self.disk(dir, (2, !leaf), 4).await?;
        let beside = Beside::begin(&[ours.pid()])?;
        let [into, gone, ..] = images.as_slice() else {
            anyhow::bail!("a chain of {} layers", images.len());
        };
        let calm = self.calm().await;
        let begun = Instant::now();
        let (during, switch) = if leaf {
            ours.mirror(&[&into.path], CopyScope::Layer, Cache::Direct)
                .await?;
            (Window::since(begun), ours.switch().await?)
        } else {
            let source = [gone.path.as_path(), into.path.as_path()];
            ours.coalesce(&source, 0, Cache::Direct).await?;
            (
                Window::since(begun),
                ours.relink(gone, into, Cache::Direct).await?,
            )
        };
        let after = Window::since(Instant::now());
        let foreign_cores = beside.cores()?;
        let spans = busy.stop().await?;
        ours.stop().await?;
        let seen = Seen {
            calm,
            during,
            after,
            switch: switch.into(),
            spans,
        };
        Ok((seen, foreign_cores))
    }

    /// Mirrors a full disk into an empty image and goes on with that.
    async fn mirror_once(&self, dir: &Path) -> Result<(Seen, f64)> {
        let maker = self.with.servers.ours().await?;
        let target = maker
            .create(&dir.join("mirror.vhd"), self.disk_bytes, None)
            .await?;
        maker.exit().await?;
        let (ours, _, busy) = self.disk(dir, (1, false), 32).await?;
        let beside = Beside::begin(&[ours.pid()])?;
        let calm = self.calm().await;
        let begun = Instant::now();
        ours.mirror(&[&target.path], CopyScope::Chain, Cache::Direct)
            .await?;
        let during = Window::since(begun);
        let after = self.calm().await;
        let switch = ours.switch().await?.into();
        let foreign_cores = beside.cores()?;
        let spans = busy.stop().await?;
        ours.stop().await?;
        let seen = Seen {
            calm,
            during,
            after,
            switch,
            spans,
        };
        Ok((seen, foreign_cores))
    }

    async fn calm(&self) -> Window {
        let from = Instant::now();
        tokio::time::sleep(self.look).await;
        Window::since(from)
    }
}

fn peer(name: &str) -> Peer {
    Peer {
        name: name.to_owned(),
        ..Peer::default()
    }
}

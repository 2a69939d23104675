//! What the owner does to the tree while the guest goes on; the kill may come anywhere in it.

use super::record::{Layers, parent_ref};
use super::{Tree, dp, rid};
use anyhow::{Context, Result, bail, ensure};
use block::Rng;
use datapath::protocol::{CopyPlan, CopyScope};
use datapath::{Client, Extent, Format};
use std::time::Duration;
use uuid::Uuid;

/// How long one question after progress waits.
const WAIT: Duration = Duration::from_secs(5);

/// One change of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// A new leaf.
    Snapshot,
    /// This image goes into its parent.
    Coalesce(Uuid),
    /// The leaf does.
    LeafCoalesce,
    /// The disk moves to an image of its own.
    Mirror,
}

impl Tree {
    pub(super) async fn make(
        &mut self,
        client: &Client,
        rng: &mut Rng,
        change: Change,
    ) -> Result<()> {
        match change {
            Change::Snapshot => self.snapshot(client, rng).await,
            Change::Coalesce(gone) => self.coalesce(client, gone).await,
            Change::LeafCoalesce => {
                let target = self.record.chain().split_off(1);
                self.move_to(client, rng, target, CopyScope::Layer).await
            }
            Change::Mirror => {
                let image = self.record.new_layer(client, rng, None).await?;
                self.move_to(client, rng, vec![image], CopyScope::Chain)
                    .await
            }
        }
    }

    /// The empty new leaf reads as what is below it, so the longer chain is right in every case.
    async fn snapshot(&mut self, client: &Client, rng: &mut Rng) -> Result<()> {
        let chain = self.record.chain();
        let image = self
            .record
            .new_layer(client, rng, chain.first().copied())
            .await?;
        let file = self.record.file(image, true)?;
        let covered = self.shared.model.lock().flush_begins();
        self.record.is_now([&[image], chain.as_slice()].concat());
        client.snapshot(&rid(), &dp()?, image, file).await?;
        self.shared.model.lock().flushed(&covered);
        Ok(())
    }

    async fn move_to(
        &mut self,
        client: &Client,
        rng: &mut Rng,
        target: Layers,
        scope: CopyScope,
    ) -> Result<()> {
        let disk = dp()?;
        let mut files = Vec::new();
        for (depth, uuid) in target.iter().enumerate() {
            files.push((Format::Vhd, self.record.file(*uuid, depth == 0)?));
        }
        let plan = CopyPlan {
            scope,
            ..CopyPlan::default()
        };
        client
            .mirror_start(&rid(), &disk, files, Extent::Grows, plan)
            .await?;
        loop {
            let state = client.mirror_wait(&rid(), &disk, WAIT).await?;
            let mirror = state.mirror.context("the disk has a mirror")?;
            if let Some(why) = mirror.failed {
                bail!("the mirror failed: {why}");
            }
            if mirror.in_sync {
                break;
            }
        }
        client.mirror_prepare(&rid(), &disk).await?;
        self.record.may_also_be(target.clone());
        // As long as the owner takes to write it down.
        tokio::time::sleep(Duration::from_micros(rng.below(20_000))).await;
        self.record.is_now(target);
        client.mirror_switch(&rid(), &disk, rng.one_in(2)).await?;
        Ok(())
    }

    async fn coalesce(&mut self, client: &Client, gone: Uuid) -> Result<()> {
        let (disk, copy) = (dp()?, "merge".parse().context("a name")?);
        let chain = self.record.chain();
        let at = chain
            .iter()
            .position(|uuid| *uuid == gone)
            .context("an image of the chain")?;
        let into = chain
            .get(at + 1)
            .copied()
            .context("an image with a parent")?;
        let child = at.checked_sub(1).and_then(|at| chain.get(at)).copied();
        let child = child.context("an image with a child")?;
        self.record.merges(gone);
        let chains = (
            self.record.open_chain(at, false)?,
            self.record.open_chain(at + 1, true)?,
        );
        let plan = CopyPlan {
            scope: CopyScope::Layer,
            ..CopyPlan::default()
        };
        client
            .copy_start(&rid(), &copy, chains, Extent::Grows, plan)
            .await?;
        loop {
            let state = client.copy_wait(&rid(), &copy, WAIT).await?;
            ensure!(
                state.failed.is_none(),
                "the copy failed: {:?}",
                state.failed
            );
            if state.ended {
                break;
            }
        }
        client.copy_stop(&rid(), &copy).await?;
        self.record.relinks();
        let is_leaf = at == 1;
        if !is_leaf {
            let file = self.record.file(child, true)?;
            client
                .image_reparent(&rid(), parent_ref(into), Extent::Grows, file)
                .await?;
        }
        let link = is_leaf.then(|| parent_ref(into));
        let below = (Format::Vhd, self.record.file(into, false)?);
        client.relink(&rid(), &disk, gone, below, link).await?;
        self.record.merged(gone);
        Ok(())
    }
}

//! VHD trees: snapshot, clone and revert. Each makes new leaves, brings a live disk to its new one
//! when it has one, and then changes the records in one commit.
//!
//! ```text
//! snapshot of A        clone of A               clone of S        revert of A to S
//! A ─> C2 ─┐           A ─> C2 ─┐               S ─> C1           S ─> C1
//! S ───────┴> C1       N ─> C3 ─┴> C1           N ─> C2 ─> C1     A ─> C3 ─> C1   (C2 unused)
//! ```

use crate::call::CallContext;
use crate::error::{Result, StorageError, StorageErrorKind};
use crate::journal::{Intent, Switch, Work};
use crate::model::{Access, NewName, VdiFields, VdiInfo};
use crate::record::{Change, SnapshotRecord, VdiRecord};
use crate::state::{Host, Live};
use crate::vdi::{exists, fresh_container, new_image};
use std::time::{SystemTime, UNIX_EPOCH};
use units::{ContainerId, SrUuid, VdiUuid};
use uuid::Uuid;

/// Most layers a chain may have: one frame carries the descriptors of two, for a merge.
const CHAIN_LAYERS_MAX: usize = datapath::protocol::FRAME_FDS_MAX / 2;

impl Host {
    pub(crate) async fn vdi_snapshot(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
        name: NewName,
    ) -> Result<VdiInfo> {
        let new = name.uuid.unwrap_or_else(VdiUuid::random);
        let live = self.shared(ctx, sr).await?;
        let _locks = self.vdi_locks.lock_both(vdi, new).await;
        let info = self.source(ctx, &live, vdi, new).await?;
        let snapshot = VdiRecord {
            fields: renamed(&info.fields, name),
            leaf: info.leaf.clone(),
            snapshot: Some(SnapshotRecord {
                of: vdi,
                time_unix_ms: now_unix_ms(),
            }),
        };
        let mut change = Change::default();
        change.vdis.insert(new, snapshot);
        if info.is_a_snapshot {
            // What never changes can be shared.
            live.metadata.apply(&change).await?;
        } else {
            let leaf = self.seal(&live, &info, &mut change)?;
            let switch = Switch {
                vdi,
                process: String::new(),
                leaf,
            };
            self.make(ctx, &live, change, Some(switch)).await?;
        }
        live.info(new)
    }

    pub(crate) async fn vdi_clone(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
        name: NewName,
    ) -> Result<VdiInfo> {
        let new = name.uuid.unwrap_or_else(VdiUuid::random);
        let live = self.shared(ctx, sr).await?;
        let _locks = self.vdi_locks.lock_both(vdi, new).await;
        let info = self.source(ctx, &live, vdi, new).await?;
        let mut change = Change::default();
        let mut switch = None;
        if !info.is_a_snapshot {
            let leaf = self.seal(&live, &info, &mut change)?;
            switch = Some(Switch {
                vdi,
                process: String::new(),
                leaf,
            });
        }
        let leaf = child_of(&info, &mut change)?;
        let mut fields = renamed(&info.fields, name);
        fields.read_only = false;
        change.vdis.insert(
            new,
            VdiRecord {
                fields,
                leaf,
                snapshot: None,
            },
        );
        self.make(ctx, &live, change, switch).await?;
        live.info(new)
    }

    pub(crate) async fn vdi_revert(
        &self,
        ctx: &CallContext,
        sr: SrUuid,
        vdi: VdiUuid,
        snapshot: VdiUuid,
    ) -> Result<VdiInfo> {
        let live = self.shared(ctx, sr).await?;
        let _locks = self.vdi_locks.lock_both(vdi, snapshot).await;
        self.settle_vdis(ctx, &live, &[vdi, snapshot]).await?;
        self.retry_leaked(ctx, Some(&live), vdi).await;
        let (info, from) = (live.info(vdi)?, live.info(snapshot)?);
        if !from.is_a_snapshot {
            let context = format!("VDI {snapshot} is not a snapshot");
            return Err(StorageError::new(StorageErrorKind::Invalid, context));
        }
        if info.is_read_only() {
            let context = format!("VDI {vdi} takes no writes");
            return Err(StorageError::new(StorageErrorKind::ReadOnly, context));
        }
        if self.ask_open(ctx, vdi).await?.is_some() {
            let context = format!("VDI {vdi} is activated");
            return Err(StorageError::new(StorageErrorKind::VdiInUse, context));
        }
        let mut change = Change::default();
        let leaf = child_of(&from, &mut change)?;
        let record = VdiRecord {
            leaf,
            ..live.record().vdi(vdi)?.clone()
        };
        change.vdis.insert(vdi, record);
        self.make(ctx, &live, change, None).await?;
        live.info(vdi)
    }

    /// A VDI from which `new` is to be made.
    async fn source(
        &self,
        ctx: &CallContext,
        live: &Live,
        vdi: VdiUuid,
        new: VdiUuid,
    ) -> Result<VdiInfo> {
        self.settle_vdis(ctx, live, &[vdi, new]).await?;
        self.retry_leaked(ctx, Some(live), vdi).await;
        let info = live.info(vdi)?;
        if live.record().vdis.contains_key(&new) {
            return Err(exists(live.uuid, new));
        }
        if info.missing {
            return Err(StorageError::missing(&info.leaf));
        }
        Ok(info)
    }

    /// Gives a writable VDI a new leaf, so that the present one never changes again.
    fn seal(&self, live: &Live, info: &VdiInfo, change: &mut Change) -> Result<ContainerId> {
        let leaf = child_of(info, change)?;
        let record = VdiRecord {
            leaf: leaf.clone(),
            ..live.record().vdi(info.vdi)?.clone()
        };
        change.vdis.insert(info.vdi, record);
        Ok(leaf)
    }

    /// Carries out a change: makes its images, switches the live disk, commits. `switch` names the
    /// disk that may have to be switched; its process is found here.
    pub(crate) async fn make(
        &self,
        ctx: &CallContext,
        live: &Live,
        change: Change,
        switch: Option<Switch>,
    ) -> Result<()> {
        let id = Uuid::new_v4();
        let made = self.make_steps(ctx, live, id, change, switch).await;
        match made {
            Ok(()) => self.ended(id).await,
            Err(_) => self.give_up(ctx, live, id).await,
        }
        self.remove_doomed(live).await;
        made
    }

    async fn make_steps(
        &self,
        ctx: &CallContext,
        live: &Live,
        id: Uuid,
        change: Change,
        switch: Option<Switch>,
    ) -> Result<()> {
        let created: Vec<_> = change.images.keys().cloned().collect();
        let prepared = Work::Make {
            created: created.clone(),
            change: change.clone(),
            switching: None,
            scratch: None,
        };
        self.intend(
            id,
            &Intent {
                sr: live.uuid,
                work: prepared,
            },
        )
        .await?;
        for (container, image) in &change.images {
            self.make_image(ctx, live, container, image).await?;
        }
        if let Some(switch) = self.live_switch(ctx, switch).await? {
            let switching = Some(switch.clone());
            let work = Work::Make {
                created,
                change: change.clone(),
                switching,
                scratch: None,
            };
            self.intend(
                id,
                &Intent {
                    sr: live.uuid,
                    work,
                },
            )
            .await?;
            if !self.switch(ctx, live, &switch).await? {
                let context = format!("the data path does not take a new leaf for {}", switch.vdi);
                return Err(StorageError::new(StorageErrorKind::Backend, context));
            }
        }
        live.metadata.apply(&change).await
    }

    /// The switch a live disk needs: one that takes writes. Readers stay on the leaf they have,
    /// which holds the same and will not change.
    async fn live_switch(
        &self,
        ctx: &CallContext,
        switch: Option<Switch>,
    ) -> Result<Option<Switch>> {
        let Some(switch) = switch else {
            return Ok(None);
        };
        let open = self.ask_open(ctx, switch.vdi).await?;
        let writes = open.filter(|open| open.access == Access::ReadWrite);
        Ok(writes.map(|open| Switch {
            process: open.process,
            ..switch
        }))
    }
}

/// Adds a new leaf on top of what `info` has.
fn child_of(info: &VdiInfo, change: &mut Change) -> Result<ContainerId> {
    if info.chain_layers >= CHAIN_LAYERS_MAX {
        let context = format!("VDI {} stands on {} layers", info.vdi, info.chain_layers);
        return Err(StorageError::new(StorageErrorKind::ChainTooLong, context));
    }
    let id = fresh_container();
    change.images.insert(
        id.clone(),
        new_image(&id, info.virtual_bytes, Some(&info.leaf))?,
    );
    Ok(id)
}

/// What users set, under another name.
pub(crate) fn renamed(fields: &VdiFields, name: NewName) -> VdiFields {
    let mut fields = fields.clone();
    fields.name_label = name.name_label.unwrap_or(fields.name_label);
    fields.name_description = name.name_description.unwrap_or(fields.name_description);
    fields
}

fn now_unix_ms() -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

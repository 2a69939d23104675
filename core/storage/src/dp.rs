//! Datapaths: what callers ask for, and making the data path follow. The states are in
//! [`crate::automaton`]; this is their side effects and records.
//!
//! ```text
//! step of one dp ──> superstate of the VDI ──> side effect ──> record (persisted) ──> answer
//! ```
//! A crash in between leaves the side effect without its record: the caller repeats the call, and
//! opening what is open is a success.

use crate::automaton::{BackendCall, DpOp, DpState, IllegalTransition, backend_call, step};
use crate::call::CallContext;
use crate::error::{Result, StorageError, StorageErrorKind};
use crate::model::{Access, Backend};
use crate::state::{DpRecord, Host, Live, OpenDisk, disk_of};
use units::{DpId, SrUuid, VdiUuid};

/// `vm_key` of guests; the others are the host's own.
const VM_PREFIX: &str = "vm-";

impl Host {
    pub(crate) async fn attach(
        &self,
        ctx: &CallContext,
        dp: &DpId,
        sr: SrUuid,
        vdi: VdiUuid,
        vm_key: &str,
        access: Access,
    ) -> Result<Backend> {
        check_vm_key(vm_key)?;
        let live = self.shared(ctx, sr).await?;
        let _lock = self.vdi_locks.lock(vdi).await;
        self.settle_vdis(ctx, &live, &[vdi]).await?;
        self.retry_leaked(ctx, Some(&live), vdi).await;
        let info = live.info(vdi)?;
        if info.missing {
            return Err(StorageError::missing(&info.leaf));
        }
        if access == Access::ReadWrite && info.is_read_only() {
            let context = format!("VDI {vdi} takes no writes");
            return Err(StorageError::new(StorageErrorKind::ReadOnly, context));
        }
        let disk = disk_of(vdi);
        let nbd = self.data_paths.endpoint(&disk);
        let nbd = nbd.map_err(|e| StorageError::data_path("no place to serve at", e))?;
        let known = self.known(dp, vdi)?;
        if known.as_ref().is_some_and(|known| known.vm_key != vm_key) {
            return Err(taken(dp));
        }
        let from = known.map(|known| known.state);
        let to = step(from, DpOp::Attach(access)).map_err(|e| illegal(dp, e))?;
        if let Some(state) = to.filter(|_| to != from) {
            let boot_id = self.boot_id.clone();
            let vm_key = vm_key.to_owned();
            let record = DpRecord {
                sr,
                vdi,
                vm_key,
                state,
                leaked: false,
                boot_id,
            };
            if state.is_activated() {
                self.refuse_second_writer(&live, dp, &record)?;
            }
            self.follow(ctx, Some(&live), dp, &record, Some(state))
                .await?;
        }
        Ok(Backend {
            nbd,
            virtual_bytes: info.virtual_bytes,
        })
    }

    pub(crate) async fn activate(
        &self,
        ctx: &CallContext,
        dp: &DpId,
        sr: SrUuid,
        vdi: VdiUuid,
    ) -> Result<()> {
        let live = self.shared(ctx, sr).await?;
        let _lock = self.vdi_locks.lock(vdi).await;
        self.settle_vdis(ctx, &live, &[vdi]).await?;
        self.retry_leaked(ctx, Some(&live), vdi).await;
        let known = self.known(dp, vdi)?;
        let to = step(known.as_ref().map(|k| k.state), DpOp::Activate);
        let (Some(state), Some(known)) = (to.map_err(|e| illegal(dp, e))?, known) else {
            return Err(StorageError::no_dp(dp));
        };
        self.refuse_second_writer(&live, dp, &known)?;
        self.ask_open(ctx, vdi).await?;
        self.follow(ctx, Some(&live), dp, &known, Some(state)).await
    }

    pub(crate) async fn deactivate(
        &self,
        ctx: &CallContext,
        dp: &DpId,
        sr: SrUuid,
        vdi: VdiUuid,
    ) -> Result<()> {
        self.step_down(ctx, dp, sr, vdi, DpOp::Deactivate).await
    }

    pub(crate) async fn detach(
        &self,
        ctx: &CallContext,
        dp: &DpId,
        sr: SrUuid,
        vdi: VdiUuid,
    ) -> Result<()> {
        self.step_down(ctx, dp, sr, vdi, DpOp::Detach).await
    }

    /// Going down needs the data path only, unless readers stay where a writer leaves; so it works
    /// while the SR does not.
    async fn step_down(
        &self,
        ctx: &CallContext,
        dp: &DpId,
        sr: SrUuid,
        vdi: VdiUuid,
        op: DpOp,
    ) -> Result<()> {
        let gate = self.present(sr).await;
        let _lock = self.vdi_locks.lock(vdi).await;
        let Some(known) = self.known(dp, vdi)? else {
            return Ok(());
        };
        let to = step(Some(known.state), op).map_err(|e| illegal(dp, e))?;
        let live = gate.as_ref().and_then(|gate| gate.live());
        self.follow(ctx, live, dp, &known, to).await
    }

    pub(crate) async fn dp_destroy(&self, ctx: &CallContext, dp: &DpId) -> Result<()> {
        let Some((sr, vdi)) = self.dps.lock().get(dp).map(|known| (known.sr, known.vdi)) else {
            return Ok(());
        };
        let gate = self.present(sr).await;
        let _lock = self.vdi_locks.lock(vdi).await;
        self.drop_dp(ctx, gate.as_ref().and_then(|gate| gate.live()), dp)
            .await
    }

    /// Deactivates and detaches; remembers a failure. The caller holds the VDI or the whole SR.
    pub(crate) async fn drop_dp(
        &self,
        ctx: &CallContext,
        live: Option<&Live>,
        dp: &DpId,
    ) -> Result<()> {
        let Some(known) = self.dps.lock().get(dp).cloned() else {
            return Ok(());
        };
        let down = self.follow(ctx, live, dp, &known, None).await;
        if down.is_err() {
            let leaked = DpRecord {
                leaked: true,
                ..known
            };
            self.remember(dp, Some(&leaked)).await?;
        }
        down
    }

    /// Tries again to take down what could not be taken down before.
    pub(crate) async fn retry_leaked(&self, ctx: &CallContext, live: Option<&Live>, vdi: VdiUuid) {
        for (dp, record) in self.dps_of(vdi) {
            if record.leaked
                && let Err(e) = self.drop_dp(ctx, live, &dp).await
            {
                tracing::warn!(%dp, error = %e, "a leaked datapath stays");
            }
        }
    }

    /// After a start: asks the data path for whatever the records say it serves.
    pub(crate) async fn repeat_datapaths(&self, ctx: &CallContext, live: &Live) {
        let vdis: Vec<_> = {
            let dps = self.dps.lock();
            dps.values()
                .filter(|dp| dp.sr == live.uuid)
                .map(|dp| dp.vdi)
                .collect()
        };
        for vdi in vdis {
            self.retry_leaked(ctx, Some(live), vdi).await;
            for (dp, record) in self.dps_of(vdi) {
                if !record.leaked
                    && record.state.is_activated()
                    && let Err(e) = self
                        .follow(ctx, Some(live), &dp, &record, Some(record.state))
                        .await
                {
                    tracing::error!(%dp, error = %e, "a datapath is not served any more");
                }
            }
        }
    }

    /// Brings the data path to the superstate that `dp` in state `to` leads to, then records it.
    async fn follow(
        &self,
        ctx: &CallContext,
        live: Option<&Live>,
        dp: &DpId,
        record: &DpRecord,
        to: Option<DpState>,
    ) -> Result<()> {
        let wanted = self.wanted(record.vdi, dp, to);
        let disk = disk_of(record.vdi);
        let open = self.open_disk(&disk);
        match backend_call(open.as_ref().map(|open| open.access), wanted) {
            BackendCall::Nothing => {}
            BackendCall::Open(access) => {
                self.open_vdi(ctx, live, record, &record.vm_key, access)
                    .await?;
            }
            BackendCall::Reopen(access) => {
                let ready = live.ok_or_else(|| StorageError::no_sr(record.sr))?;
                // The records say what to open only when no switch is under way.
                self.settle_vdis(ctx, ready, &[record.vdi]).await?;
                self.close_disk(ctx, open, &disk).await?;
                // The process of a VM serves what the VM writes; without writers, a reader's does.
                let process = match access {
                    Access::ReadWrite => record.vm_key.clone(),
                    Access::ReadOnly => self.reader_beside(dp, record),
                };
                self.open_vdi(ctx, live, record, &process, access).await?;
            }
            BackendCall::Close => self.close_disk(ctx, open, &disk).await?,
        }
        let next = to.map(|state| DpRecord {
            state,
            ..record.clone()
        });
        self.remember(dp, next.as_ref()).await
    }

    async fn open_vdi(
        &self,
        ctx: &CallContext,
        live: Option<&Live>,
        record: &DpRecord,
        process: &str,
        access: Access,
    ) -> Result<()> {
        let live = live.ok_or_else(|| StorageError::no_sr(record.sr))?;
        let (vdi, disk) = (record.vdi, disk_of(record.vdi));
        let chain = live.chain(vdi).await?;
        let opened = self
            .data_paths
            .open(
                &ctx.request_id,
                process,
                &disk,
                &chain,
                live.extent(),
                access,
            )
            .await;
        opened.map_err(|e| StorageError::data_path(format!("cannot open VDI {vdi}"), e))?;
        self.open_disks.lock().insert(
            disk,
            OpenDisk {
                process: process.to_owned(),
                access,
            },
        );
        Ok(())
    }

    fn reader_beside(&self, dp: &DpId, record: &DpRecord) -> String {
        let mut others = self.dps_of(record.vdi).into_iter();
        let reader = others.find(|(id, other)| id != dp && other.state.is_activated());
        reader.map_or_else(|| record.vm_key.clone(), |(_, other)| other.vm_key)
    }

    async fn close_disk(
        &self,
        ctx: &CallContext,
        open: Option<OpenDisk>,
        disk: &DpId,
    ) -> Result<()> {
        let Some(OpenDisk { process, .. }) = &open else {
            return Ok(());
        };
        let closed = self.data_paths.close(&ctx.request_id, process, disk).await;
        closed.map_err(|e| StorageError::data_path(format!("cannot close disk {disk}"), e))?;
        self.open_disks.lock().remove(disk);
        Ok(())
    }

    /// Asks whether a disk that is thought to be open is, and where it stands. A process may have
    /// died since.
    pub(crate) async fn ask_open(
        &self,
        ctx: &CallContext,
        vdi: VdiUuid,
    ) -> Result<Option<OpenDisk>> {
        let disk = disk_of(vdi);
        let Some(open) = self.open_disk(&disk) else {
            return Ok(None);
        };
        let asked = self.data_paths.disks(&ctx.request_id, &open.process).await;
        let disks = asked.map_err(|e| StorageError::data_path("cannot list disks", e))?;
        if disks.into_iter().flatten().any(|state| state.disk == disk) {
            return Ok(Some(open));
        }
        tracing::warn!(%vdi, process = open.process, "the data path has lost a disk");
        self.open_disks.lock().remove(&disk);
        Ok(None)
    }

    /// Persists a datapath's record, or that it has none.
    async fn remember(&self, dp: &DpId, record: Option<&DpRecord>) -> Result<()> {
        let key = dp.as_str();
        let unchanged = self.dps.lock().get(dp) == record;
        if unchanged {
            return Ok(());
        }
        match record {
            Some(record) => {
                self.dp_records
                    .put_async(key, record)
                    .await
                    .map_err(StorageError::records)?;
                self.dps.lock().insert(dp.clone(), record.clone());
            }
            None => {
                self.dp_records
                    .remove_async(key)
                    .await
                    .map_err(StorageError::records)?;
                self.dps.lock().remove(dp);
            }
        }
        Ok(())
    }

    /// The record of a datapath, which must be one of this VDI.
    fn known(&self, dp: &DpId, vdi: VdiUuid) -> Result<Option<DpRecord>> {
        match self.dps.lock().get(dp) {
            Some(known) if known.vdi != vdi => Err(taken(dp)),
            known => Ok(known.cloned()),
        }
    }

    fn refuse_second_writer(&self, live: &Live, dp: &DpId, record: &DpRecord) -> Result<()> {
        if record.state.access() == Access::ReadOnly
            || live.record().vdi(record.vdi)?.fields.sharable
        {
            return Ok(());
        }
        let other = self.dps_of(record.vdi).into_iter().find(|(id, other)| {
            id != dp
                && other.vm_key != record.vm_key
                && other.state == DpState::Activated(Access::ReadWrite)
        });
        match other {
            Some((other, _)) => {
                let context = format!("VDI {} is written through datapath {other}", record.vdi);
                Err(StorageError::new(StorageErrorKind::VdiInUse, context))
            }
            None => Ok(()),
        }
    }
}

pub(crate) fn refuse_if_a_vm_uses(dps: &[(DpId, DpRecord)]) -> Result<()> {
    let used = |(_, dp): &&(DpId, DpRecord)| {
        dp.state.is_activated() && !dp.leaked && dp.vm_key.starts_with(VM_PREFIX)
    };
    match dps.iter().find(used) {
        Some((id, dp)) => {
            let context = format!(
                "VDI {} is used by {} through datapath {id}",
                dp.vdi, dp.vm_key
            );
            Err(StorageError::new(StorageErrorKind::VdiInUse, context))
        }
        None => Ok(()),
    }
}

fn check_vm_key(vm_key: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if (1..=64).contains(&vm_key.len()) && vm_key.chars().all(allowed) {
        return Ok(());
    }
    let context = format!("{vm_key:?} is no name for a VM: 1 to 64 of A-Z a-z 0-9 - _");
    Err(StorageError::new(StorageErrorKind::Invalid, context))
}

fn taken(dp: &DpId) -> StorageError {
    let context = format!("datapath {dp} is taken by another VDI or VM");
    StorageError::new(StorageErrorKind::DpExists, context)
}

fn illegal(dp: &DpId, e: IllegalTransition) -> StorageError {
    StorageError::because(
        StorageErrorKind::IllegalTransition,
        format!("datapath {dp}"),
        e,
    )
}

//! Gives domains their disks: `xenops` asks in its words, `storage` answers in its own.

use async_trait::async_trait;
use hypervisor::NbdTarget;
use storage::{Access, StorageManager};
use xenops::{CallContext, DiskError, DiskRef, Disks};

/// The disks of this host's storage manager.
pub(crate) struct StorageDisks(pub(crate) StorageManager);

fn context(call: &CallContext) -> storage::CallContext {
    storage::CallContext::new(call.request_id.clone())
}

/// One data-path process per VM: its name.
pub(crate) fn vm_key(vm: units::VmUuid) -> String {
    format!("vm-{vm}")
}

#[async_trait]
impl Disks for StorageDisks {
    async fn attach(&self, call: &CallContext, disk: &DiskRef) -> Result<NbdTarget, DiskError> {
        let access = match disk.access {
            hypervisor::Access::ReadOnly => Access::ReadOnly,
            hypervisor::Access::ReadWrite => Access::ReadWrite,
        };
        let key = vm_key(disk.vm);
        let ctx = context(call);
        let backend = self
            .0
            .attach(&ctx, &disk.dp, disk.sr, disk.vdi, &key, access)
            .await?;
        Ok(NbdTarget {
            socket: backend.nbd.socket,
            export: backend.nbd.export,
        })
    }

    async fn activate(&self, call: &CallContext, disk: &DiskRef) -> Result<(), DiskError> {
        Ok(self
            .0
            .activate(&context(call), &disk.dp, disk.sr, disk.vdi)
            .await?)
    }

    async fn deactivate(&self, call: &CallContext, disk: &DiskRef) -> Result<(), DiskError> {
        Ok(self
            .0
            .deactivate(&context(call), &disk.dp, disk.sr, disk.vdi)
            .await?)
    }

    async fn detach(&self, call: &CallContext, disk: &DiskRef) -> Result<(), DiskError> {
        Ok(self
            .0
            .detach(&context(call), &disk.dp, disk.sr, disk.vdi)
            .await?)
    }
}

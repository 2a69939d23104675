//! The trait by which domains get their disks. What a disk is made of is not known here.

use crate::spec::{CallContext, VbdSpec};
use hypervisor::{Access, NbdTarget};
use units::{DpId, SrUuid, VdiUuid, VmUuid};

/// Why a disk call failed, in the words and type of whoever serves disks. The layer above finds it
/// as the `source` of an [`crate::Error`] of kind `Disk` and may downcast it.
pub type DiskError = Box<dyn std::error::Error + Send + Sync>;

/// One VM's use of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRef {
    /// Names this use: `vbd/<vm>/<device>`, the same across reboots and restarts of the daemon.
    pub dp: DpId,
    /// The repository.
    pub sr: SrUuid,
    /// The disk.
    pub vdi: VdiUuid,
    /// Who uses it.
    pub vm: VmUuid,
    /// How.
    pub access: Access,
}

impl DiskRef {
    pub(crate) fn new(vm: VmUuid, vbd: &VbdSpec) -> Self {
        let dp = format!("vbd/{vm}/{}", vbd.device)
            .parse()
            .expect("a uuid and a device name are valid in a datapath id and short");
        Self {
            dp,
            sr: vbd.sr,
            vdi: vbd.vdi,
            vm,
            access: vbd.access,
        }
    }
}

/// Serves disks to domains.
///
/// ```text
///   detached --attach--> attached --activate--> active
///      ^                  |    ^                  |
///      +------detach------+    +----deactivate----+
/// ```
///
/// Every call is idempotent: attaching what is attached gives the same target again, deactivating
/// what is not active is a success. `xenops` lets a domain use a target only between `activate`
/// and `deactivate`, and never has two calls for one `dp` under way. A dropped call may have taken
/// effect; `xenops` then makes the opposite one.
#[async_trait::async_trait]
pub trait Disks: Send + Sync {
    /// Prepares a disk and says where it will be served. May be done on two hosts at once.
    async fn attach(&self, call: &CallContext, disk: &DiskRef) -> Result<NbdTarget, DiskError>;

    /// Opens the disk for use: from now on the target answers and nobody else may write.
    async fn activate(&self, call: &CallContext, disk: &DiskRef) -> Result<(), DiskError>;

    /// Ends the use: all that was written is on stable storage and others may activate.
    async fn deactivate(&self, call: &CallContext, disk: &DiskRef) -> Result<(), DiskError>;

    /// Takes down what `attach` prepared.
    async fn detach(&self, call: &CallContext, disk: &DiskRef) -> Result<(), DiskError>;
}

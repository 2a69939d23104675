//! What the interface stands on, and how its failures become XenAPI errors.
//!
//! One function per layer below maps its kinds to codes; it is given the references that the codes
//! carry, because the layers below know objects by uuid only.

use crate::error::{ApiError, chain};
use database::Ref;
use plugin::PluginInfo;
use storage::{StorageError, StorageErrorKind, StorageManager};
use xenops::Xenops;

/// The layers below, and who serves storage.
#[derive(Clone)]
pub struct Services {
    /// SRs, VDIs and datapaths.
    pub storage: StorageManager,
    /// Domains.
    pub xenops: Xenops,
    /// The storage plugins that are loaded; each becomes an `SM` record.
    pub drivers: Vec<PluginInfo>,
}

/// The objects a storage call was about, null where there is none.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) sr: Ref,
    pub(crate) vdi: Ref,
}

impl About {
    pub(crate) fn sr(sr: &Ref) -> Self {
        Self {
            sr: sr.clone(),
            vdi: Ref::null(),
        }
    }

    pub(crate) fn vdi(sr: &Ref, vdi: &Ref) -> Self {
        Self {
            sr: sr.clone(),
            vdi: vdi.clone(),
        }
    }

    /// Turns a storage error into the one clients know.
    pub(crate) fn explain(&self, error: StorageError) -> ApiError {
        use StorageErrorKind as Kind;
        let (sr, vdi) = (self.sr.as_str(), self.vdi.as_str());
        let text = chain(&error);
        match error.kind() {
            Kind::SrNotAttached => ApiError::new("SR_NOT_ATTACHED", [sr]),
            Kind::SrAttached => ApiError::new("SR_HAS_PBD", [sr]),
            Kind::SrNotEmpty => ApiError::new("SR_NOT_EMPTY", []),
            Kind::DriverUnknown => ApiError::new("SR_UNKNOWN_DRIVER", [&text]),
            Kind::SrForeign => ApiError::new("SR_UUID_EXISTS", [&text]),
            Kind::SrFull => ApiError::new("SR_FULL", [&text, ""]),
            Kind::VdiDoesNotExist | Kind::VdiMissing => ApiError::new("VDI_MISSING", [sr, vdi]),
            Kind::VdiExists => ApiError::new("UUID_INVALID", ["VDI", &text]),
            Kind::VdiInUse => ApiError::new("VDI_IN_USE", [vdi, &text]),
            Kind::ReadOnly => ApiError::new("VDI_READONLY", [vdi]),
            Kind::ImageInvalid => ApiError::new("SR_BACKEND_FAILURE", ["corrupt", "", &text]),
            Kind::Invalid | Kind::VdiSize => ApiError::new("INVALID_VALUE", ["value", &text]),
            Kind::Unsupported | Kind::ChainTooLong => {
                ApiError::new("SR_BACKEND_FAILURE", ["unsupported", "", &text])
            }
            Kind::Cancelled => ApiError::new("TASK_CANCELLED", [""]),
            Kind::SrMetadata => ApiError::new("SR_BACKEND_FAILURE", ["metadata", "", &text]),
            Kind::SrVanished => ApiError::new("SR_BACKEND_FAILURE", ["vanished", "", &text]),
            Kind::Timeout => ApiError::new("SR_BACKEND_FAILURE", ["timeout", "", &text]),
            Kind::Backend => ApiError::new("SR_BACKEND_FAILURE", ["failed", "", &text]),
            _ => ApiError::internal(text),
        }
    }
}

/// What an operation on a VM wanted, for the errors it may end with.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    pub(crate) vm: &'a Ref,
    /// The power state it needs.
    pub(crate) power_state: &'a str,
    /// The power state there was.
    pub(crate) actual: &'a str,
    /// The task it belongs to.
    pub(crate) task: &'a Ref,
    /// The device it was about, null where there is none.
    pub(crate) vbd: &'a Ref,
}

impl Wanted<'_> {
    /// Turns an error of the domain manager into the one clients know.
    pub(crate) fn explain(&self, error: xenops::Error) -> ApiError {
        use xenops::ErrorKind as Kind;
        let vm = self.vm.as_str();
        let text = chain(&error);
        match error.kind() {
            Kind::BadState => {
                ApiError::new("VM_BAD_POWER_STATE", [vm, self.power_state, self.actual])
            }
            Kind::DeviceInUse => ApiError::new("DEVICE_ALREADY_EXISTS", [&text]),
            Kind::Invalid => ApiError::new("INVALID_VALUE", ["VM", &text]),
            Kind::QueueFull | Kind::TooManyVms => ApiError::new("TOO_MANY_PENDING_TASKS", []),
            Kind::Cancelled => ApiError::new("TASK_CANCELLED", [self.task.as_str()]),
            Kind::NotAcknowledged => ApiError::new("VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT", [vm]),
            Kind::DidNotShutDown => ApiError::new("VM_SHUTDOWN_TIMEOUT", [vm, &text]),
            Kind::GuestRefused => {
                ApiError::new("DEVICE_DETACH_REJECTED", ["VBD", self.vbd.as_str(), &text])
            }
            Kind::Disk => ApiError::new("SR_BACKEND_FAILURE", ["failed", "", &text]),
            _ => ApiError::internal(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_failures_have_the_codes_clients_match_on() {
        use StorageErrorKind as Kind;
        let about = About::vdi(&Ref::from("OpaqueRef:sr"), &Ref::from("OpaqueRef:vdi"));
        for (kind, expected) in [
            (Kind::SrNotAttached, vec!["SR_NOT_ATTACHED", "OpaqueRef:sr"]),
            (Kind::SrNotEmpty, vec!["SR_NOT_EMPTY"]),
            (Kind::SrFull, vec!["SR_FULL", "why", ""]),
            (
                Kind::VdiMissing,
                vec!["VDI_MISSING", "OpaqueRef:sr", "OpaqueRef:vdi"],
            ),
            (Kind::VdiInUse, vec!["VDI_IN_USE", "OpaqueRef:vdi", "why"]),
            (Kind::ReadOnly, vec!["VDI_READONLY", "OpaqueRef:vdi"]),
            (
                Kind::Backend,
                vec!["SR_BACKEND_FAILURE", "failed", "", "why"],
            ),
            (Kind::Internal, vec!["INTERNAL_ERROR", "why"]),
        ] {
            assert_eq!(
                about.explain(StorageError::new(kind, "why")).to_list(),
                expected
            );
        }
    }
}

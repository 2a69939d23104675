//! Why a storage call failed. Not a mapping to XenAPI codes: that is one function of the API layer,
//! which branches on [`StorageErrorKind`] alone.

use plugin::{PluginError, PluginErrorKind};
use std::error::Error as StdError;
use std::fmt;
use units::{ContainerId, DpId, SrUuid, VdiUuid};

/// What callers branch on. The comment names the XenAPI code each is meant to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StorageErrorKind {
    /// The SR is not attached on this host (`SR_NOT_ATTACHED`).
    SrNotAttached,
    /// The SR is attached, or attached with another configuration (`SR_HAS_PBD`).
    SrAttached,
    /// The SR still has VDIs (`SR_NOT_EMPTY`).
    SrNotEmpty,
    /// No plugin serves this SR type (`SR_UNKNOWN_DRIVER`).
    DriverUnknown,
    /// Another SR lies at this place (`SR_UUID_EXISTS`).
    SrForeign,
    /// The place holds no SR metadata, or metadata that cannot be read; it is never taken for an
    /// empty SR (`SR_BACKEND_FAILURE_..`).
    SrMetadata,
    /// More containers vanished than a scan accepts (`SR_BACKEND_FAILURE_..`).
    SrVanished,
    /// No space is left (`SR_FULL`).
    SrFull,
    /// No such VDI in this SR (`VDI_MISSING` or `UUID_INVALID`).
    VdiDoesNotExist,
    /// A VDI of this uuid is there already (`UUID_INVALID`).
    VdiExists,
    /// The container of the VDI, or one below it, has vanished (`VDI_MISSING`).
    VdiMissing,
    /// A VM uses the VDI, or another user excludes this one (`VDI_IN_USE`).
    VdiInUse,
    /// The VDI takes no writes (`VDI_READONLY`).
    ReadOnly,
    /// The size is out of range (`VDI_TOO_LARGE` or `VDI_TOO_SMALL`).
    VdiSize,
    /// The chain has as many layers as one can have (`SNAPSHOTS_CHAIN_TOO_LONG`).
    ChainTooLong,
    /// The datapath cannot go from its state to the wanted one (`INTERNAL_ERROR`).
    IllegalTransition,
    /// No such datapath (`INTERNAL_ERROR`).
    DpDoesNotExist,
    /// The datapath id is taken by another VDI or VM (`INTERNAL_ERROR`).
    DpExists,
    /// The image is not one that can be taken in (`VDI_INCOMPATIBLE_TYPE`, `IMPORT_ERROR`).
    ImageInvalid,
    /// An argument is wrong (`INVALID_VALUE`).
    Invalid,
    /// The SR or the image cannot do this (`SR_OPERATION_NOT_SUPPORTED`).
    Unsupported,
    /// The caller cancelled (`TASK_CANCELLED`).
    Cancelled,
    /// The deadline passed; the operation may still happen (`SR_BACKEND_FAILURE_..`).
    Timeout,
    /// The plugin, the data path or the storage below failed (`SR_BACKEND_FAILURE_..`).
    Backend,
    /// The records of this host cannot be read or written, or a defect (`INTERNAL_ERROR`).
    Internal,
}

/// A failed storage call: what kind, which thing, and what lies below.
#[derive(Debug)]
pub struct StorageError {
    kind: StorageErrorKind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What every call of this crate returns.
pub type Result<T> = std::result::Result<T, StorageError>;

impl StorageError {
    /// Makes an error without a cause below.
    pub fn new(kind: StorageErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// Makes an error that something below caused.
    pub fn because(
        kind: StorageErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            context: context.into(),
            source: Some(source.into()),
        }
    }

    /// Returns what callers branch on.
    pub fn kind(&self) -> StorageErrorKind {
        self.kind
    }

    pub(crate) fn no_sr(sr: SrUuid) -> Self {
        Self::new(
            StorageErrorKind::SrNotAttached,
            format!("SR {sr} is not attached"),
        )
    }

    pub(crate) fn no_vdi(sr: SrUuid, vdi: VdiUuid) -> Self {
        Self::new(
            StorageErrorKind::VdiDoesNotExist,
            format!("SR {sr} has no VDI {vdi}"),
        )
    }

    pub(crate) fn no_dp(dp: &DpId) -> Self {
        Self::new(
            StorageErrorKind::DpDoesNotExist,
            format!("there is no datapath {dp}"),
        )
    }

    pub(crate) fn missing(container: &ContainerId) -> Self {
        Self::new(
            StorageErrorKind::VdiMissing,
            format!("container {container} has vanished"),
        )
    }

    pub(crate) fn cancelled(what: &str) -> Self {
        Self::new(StorageErrorKind::Cancelled, format!("{what} was cancelled"))
    }

    pub(crate) fn plugin(error: PluginError) -> Self {
        let kind = match error.kind {
            PluginErrorKind::NoSpace => StorageErrorKind::SrFull,
            PluginErrorKind::Unsupported => StorageErrorKind::Unsupported,
            PluginErrorKind::Invalid => StorageErrorKind::Invalid,
            PluginErrorKind::Timeout => StorageErrorKind::Timeout,
            _ => StorageErrorKind::Backend,
        };
        let context = format!("plugin {} failed at {}", error.plugin, error.operation);
        Self::because(kind, context, error)
    }

    pub(crate) fn data_path(what: impl Into<String>, error: datapath::Error) -> Self {
        let kind = match error.kind {
            datapath::ErrorKind::NoSpace => StorageErrorKind::SrFull,
            datapath::ErrorKind::Unsupported => StorageErrorKind::Unsupported,
            datapath::ErrorKind::Corrupt | datapath::ErrorKind::Chain => {
                StorageErrorKind::ImageInvalid
            }
            _ => StorageErrorKind::Backend,
        };
        Self::because(kind, what, error)
    }

    pub(crate) fn records(error: database::Error) -> Self {
        Self::because(
            StorageErrorKind::Internal,
            "cannot reach the records of this host",
            error,
        )
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl StdError for StorageError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

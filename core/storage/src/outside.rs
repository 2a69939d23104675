//! What is outside the storage manager, each behind a trait so that a test can stop the world
//! between any two calls: plugins, data-path processes, and the few bytes of metadata that the
//! daemon itself reads and writes.

mod copy;
mod files;
mod tapdisks;

pub use files::{HostFiles, open_container};
pub use tapdisks::Tapdisks;

use crate::model::{Access, NbdEndpoint};
use async_trait::async_trait;
use datapath::{DiskState, Error, Extent, Format, ImageInfo, NewImage};
use plugin::{Location, StoragePlugin};
use std::io;
use std::sync::Arc;
use units::{DpId, RequestId};

/// The plugins of this host, by driver name (the SR type, e.g. `file`).
pub trait Plugins: Send + Sync {
    /// Returns the plugin of a driver, `None` when there is none.
    fn storage(&self, driver: &str) -> Option<Arc<dyn StoragePlugin>>;
}

/// One layer of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Where its bytes are.
    pub location: Location,
    /// How they are laid out.
    pub format: Format,
}

/// The data-path processes of this host.
///
/// A process is named by the `vm_key` of its user. Every call is idempotent and has a deadline of
/// its own; `Gone` means that the outcome is not known.
#[async_trait]
pub trait DataPaths: Send + Sync {
    /// Names of the processes that run.
    async fn running(&self) -> Result<Vec<String>, Error>;

    /// The disks a process has open; `None` when it does not run.
    async fn disks(
        &self,
        request_id: &RequestId,
        process: &str,
    ) -> Result<Option<Vec<DiskState>>, Error>;

    /// Opens a chain, leaf first, in a process (started when needed) and serves it at
    /// [`DataPaths::endpoint`]. A disk that is open with the same chain goes on.
    async fn open(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
        chain: &[Layer],
        extent: Extent,
        access: Access,
    ) -> Result<DiskState, Error>;

    /// Stops serving a disk, closes it, and ends the process when that was its last one.
    async fn close(&self, request_id: &RequestId, process: &str, disk: &DpId) -> Result<(), Error>;

    /// Puts a new leaf on top of a disk that is open. A disk that has it already goes on.
    async fn snapshot(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
        leaf: uuid::Uuid,
        container: &Location,
    ) -> Result<DiskState, Error>;

    /// Grows a disk that is open.
    async fn resize(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
        virtual_bytes: u64,
    ) -> Result<DiskState, Error>;

    /// Where a disk is served.
    fn endpoint(&self, disk: &DpId) -> Result<NbdEndpoint, Error>;

    /// Writes an empty image into an empty container, in the process `process`. The parent's time
    /// in `image` is taken from `parent`.
    async fn image_create(
        &self,
        request_id: &RequestId,
        process: &str,
        container: &Location,
        image: NewImage,
        parent: Option<&Location>,
    ) -> Result<ImageInfo, Error>;

    /// Reads an image's description.
    async fn image_query(
        &self,
        request_id: &RequestId,
        process: &str,
        container: &Location,
        extent: Extent,
    ) -> Result<ImageInfo, Error>;

    /// Grows an image that nobody has open.
    async fn image_resize(
        &self,
        request_id: &RequestId,
        process: &str,
        container: &Location,
        virtual_bytes: u64,
        extent: Extent,
    ) -> Result<ImageInfo, Error>;

    /// Ends a process that has no disk; one that does not run is a success.
    async fn exit(&self, request_id: &RequestId, process: &str) -> Result<(), Error>;

    /// Copies the first `bytes` of what one endpoint serves into another, which reads as zeros;
    /// holes stay holes. Ends with a flush. Tells what part is done, 0.0 to 1.0, never decreasing.
    ///
    /// # Errors
    /// `Io` when either side fails or is too small, `Gone` when one leaves.
    ///
    /// # Cancel safety
    /// Dropping it stops the copy; what was written stays.
    async fn copy(
        &self,
        from: &NbdEndpoint,
        to: &NbdEndpoint,
        bytes: u64,
        progress: &(dyn Fn(f64) + Send + Sync),
    ) -> Result<(), Error>;
}

/// Reads and writes of the metadata container by the daemon itself.
#[async_trait]
pub trait MetaFiles: Send + Sync {
    /// Reads `length` bytes at `offset`; what lies beyond the end reads as zeros.
    async fn read(&self, at: &Location, offset: u64, length: usize) -> io::Result<Vec<u8>>;

    /// Writes at `offset`; durable when it returns.
    async fn write(&self, at: &Location, offset: u64, bytes: Vec<u8>) -> io::Result<()>;
}

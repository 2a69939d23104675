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
use datapath::protocol::ParentRef;
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

    /// Makes `parent` the parent of an image that nobody writes. Its time is taken from
    /// `parent_at`. The parent it has already is a success.
    async fn image_reparent(
        &self,
        request_id: &RequestId,
        process: &str,
        container: &Location,
        parent: ParentRef,
        parent_at: &Location,
        extent: Extent,
    ) -> Result<(), Error>;

    /// Has the second layer of `chain`, which nobody else writes, take over what the first holds
    /// itself; it is grown to the first's size before. Durable when it returns. Nothing changes for
    /// who reads through the first, so it may stop anywhere and be done again. Tells what part is
    /// done, 0.0 to 1.0, never decreasing. `process` is for this alone.
    ///
    /// # Cancel safety
    /// Dropping it does not end the copy; [`DataPaths::merge_stop`] does.
    async fn merge(
        &self,
        request_id: &RequestId,
        process: &str,
        chain: &[Layer],
        extent: Extent,
        progress: &(dyn Fn(f64) + Send + Sync),
    ) -> Result<(), Error>;

    /// Ends a merge, finished or not, and its process. None there: a success.
    async fn merge_stop(&self, request_id: &RequestId, process: &str) -> Result<(), Error>;

    /// Has the chain below an open disk's leaf, leaf first, take over what that leaf holds, while
    /// the disk is in use; its first layer is grown to the disk's size before. The same again goes
    /// on.
    async fn mirror_start(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
        below: &[Layer],
        extent: Extent,
    ) -> Result<(), Error>;

    /// Waits until both hold the same, and every flush is durable on both.
    ///
    /// # Errors
    /// `Io` when the lower side failed; the guest goes on on the disk as it is.
    async fn mirror_wait(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
        progress: &(dyn Fn(f64) + Send + Sync),
    ) -> Result<(), Error>;

    /// Says that the records are about to name the lower chain: from now on no flush is answered
    /// that is not durable on both, whatever fails, until the disk is switched or the mirror
    /// stopped. So either chain is the disk if everything dies.
    ///
    /// # Errors
    /// `Busy` when they do not hold the same; `Io` when the lower side failed.
    async fn mirror_prepare(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
    ) -> Result<(), Error>;

    /// Puts the disk on the lower chain alone. A disk that is there already: a success.
    async fn mirror_switch(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
    ) -> Result<(), Error>;

    /// Ends a mirror; the disk stays as it is. None there, or no such disk: a success.
    async fn mirror_stop(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
    ) -> Result<(), Error>;

    /// Takes the layer with uuid `gone` out of an open disk's chain; `into`, below it, holds what
    /// it held. `parent` is set when the disk writes its leaf and that stood on what goes: its
    /// header then names the new parent. A disk without that layer: a success.
    async fn relink(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
        gone: uuid::Uuid,
        into: &Layer,
        parent: Option<ParentRef>,
    ) -> Result<(), Error>;

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

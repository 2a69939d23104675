//! The real data-path processes. Opens containers here, with the daemon's rights, and hands them
//! over as descriptors; a process opens no file itself.

use super::{DataPaths, Layer, copy, open_container};
use crate::locks::KeyedLocks;
use crate::model::{Access, NbdEndpoint};
use async_trait::async_trait;
use datapath::protocol::FRAME_FDS_MAX;
use datapath::{Client, DiskState, Error, ErrorKind, Extent, ImageInfo, NewImage, Supervisor};
use plugin::Location;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use units::{DpId, RequestId};
use uuid::Uuid;

/// `xylem-tapdisk` processes, one per name.
pub struct Tapdisks {
    supervisor: Supervisor,
    /// Held while a process gains or loses disks, so that none is told to exit in between.
    locks: KeyedLocks<String>,
}

impl Tapdisks {
    /// Uses the processes of `supervisor`.
    pub fn new(supervisor: Supervisor) -> Self {
        Self {
            supervisor,
            locks: KeyedLocks::new(),
        }
    }

    /// A client of a process that runs; `None` when it does not. Never starts one.
    async fn running_client(
        &self,
        request_id: &RequestId,
        process: &str,
    ) -> Result<Option<Client>, Error> {
        let running = self.supervisor.running().await?;
        if !running.iter().any(|name| name == process) {
            return Ok(None);
        }
        self.supervisor.client(process, request_id).await.map(Some)
    }

    async fn exit_idle(&self, request_id: &RequestId, process: &str) {
        match self.supervisor.exit(process, request_id).await {
            Ok(()) => {}
            Err(e) if e.kind == ErrorKind::Busy => {}
            Err(e) => tracing::warn!(process, error = %e, "an idle data path does not exit"),
        }
    }
}

#[async_trait]
impl DataPaths for Tapdisks {
    async fn running(&self) -> Result<Vec<String>, Error> {
        self.supervisor.running().await
    }

    async fn disks(
        &self,
        request_id: &RequestId,
        process: &str,
    ) -> Result<Option<Vec<DiskState>>, Error> {
        let Some(client) = self.running_client(request_id, process).await? else {
            return Ok(None);
        };
        match client.list(request_id).await {
            // It may have died only now, and then its socket says so.
            Err(e) if e.kind == ErrorKind::Gone => {
                match self.running_client(request_id, process).await? {
                    Some(client) => client.list(request_id).await.map(Some),
                    None => Ok(None),
                }
            }
            listed => listed.map(Some),
        }
    }

    async fn open(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
        chain: &[Layer],
        extent: Extent,
        access: Access,
    ) -> Result<DiskState, Error> {
        if chain.len() + 1 > FRAME_FDS_MAX {
            let message = format!("{} layers are more than one can have", chain.len());
            return Err(Error::new(ErrorKind::Chain, message));
        }
        let endpoint = self.endpoint(disk)?;
        let _lock = self.locks.lock(process.to_owned()).await;
        let client = self.supervisor.client(process, request_id).await?;
        let mut layers = Vec::with_capacity(chain.len());
        for (depth, layer) in chain.iter().enumerate() {
            let access = if depth == 0 { access } else { Access::ReadOnly };
            layers.push((layer.format, open_fd(&layer.location, access)?));
        }
        let state = client
            .open(request_id, disk, layers, extent, access)
            .await?;
        let listener = datapath::listen(&endpoint.socket)?;
        client
            .serve(request_id, disk, &endpoint.export, listener)
            .await?;
        Ok(state)
    }

    async fn close(&self, request_id: &RequestId, process: &str, disk: &DpId) -> Result<(), Error> {
        let endpoint = self.endpoint(disk)?;
        let _lock = self.locks.lock(process.to_owned()).await;
        if let Some(client) = self.running_client(request_id, process).await? {
            match close_served(&client, request_id, disk).await {
                // What died has closed its disks.
                Err(e) if e.kind == ErrorKind::Gone => {
                    if self.running_client(request_id, process).await?.is_some() {
                        return Err(e);
                    }
                }
                closed => closed?,
            }
            self.exit_idle(request_id, process).await;
        }
        let _ = std::fs::remove_file(&endpoint.socket);
        Ok(())
    }

    async fn snapshot(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
        leaf: Uuid,
        container: &Location,
    ) -> Result<DiskState, Error> {
        let client = self.supervisor.client(process, request_id).await?;
        client
            .snapshot(
                request_id,
                disk,
                leaf,
                open_fd(container, Access::ReadWrite)?,
            )
            .await
    }

    async fn resize(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
        virtual_bytes: u64,
    ) -> Result<DiskState, Error> {
        let client = self.supervisor.client(process, request_id).await?;
        client.resize(request_id, disk, virtual_bytes).await
    }

    fn endpoint(&self, disk: &DpId) -> Result<NbdEndpoint, Error> {
        let socket = self.supervisor.nbd_socket(disk.as_str())?;
        Ok(NbdEndpoint {
            socket,
            export: disk.as_str().to_owned(),
        })
    }

    async fn image_create(
        &self,
        request_id: &RequestId,
        process: &str,
        container: &Location,
        mut image: NewImage,
        parent: Option<&Location>,
    ) -> Result<ImageInfo, Error> {
        if let (Some(named), Some(parent)) = (image.parent.as_mut(), parent) {
            let file = open_container(parent, Access::ReadOnly).map_err(|e| io(parent, &e))?;
            named.mtime_unix_s = file.metadata().map_err(|e| io(parent, &e))?.mtime();
        }
        let fd = open_fd(container, Access::ReadWrite)?;
        let client = self.supervisor.client(process, request_id).await?;
        client.image_create(request_id, image, fd).await
    }

    async fn image_query(
        &self,
        request_id: &RequestId,
        process: &str,
        container: &Location,
        extent: Extent,
    ) -> Result<ImageInfo, Error> {
        let fd = open_fd(container, Access::ReadOnly)?;
        let client = self.supervisor.client(process, request_id).await?;
        client.image_query(request_id, extent, fd).await
    }

    async fn image_resize(
        &self,
        request_id: &RequestId,
        process: &str,
        container: &Location,
        virtual_bytes: u64,
        extent: Extent,
    ) -> Result<ImageInfo, Error> {
        let fd = open_fd(container, Access::ReadWrite)?;
        let client = self.supervisor.client(process, request_id).await?;
        client
            .image_resize(request_id, virtual_bytes, extent, fd)
            .await
    }

    async fn exit(&self, request_id: &RequestId, process: &str) -> Result<(), Error> {
        let _lock = self.locks.lock(process.to_owned()).await;
        self.supervisor.exit(process, request_id).await
    }

    async fn copy(
        &self,
        from: &NbdEndpoint,
        to: &NbdEndpoint,
        bytes: u64,
        progress: &(dyn Fn(f64) + Send + Sync),
    ) -> Result<(), Error> {
        copy::copy(from, to, bytes, progress).await
    }
}

async fn close_served(client: &Client, request_id: &RequestId, disk: &DpId) -> Result<(), Error> {
    match client.unserve(request_id, disk).await {
        Err(e) if e.kind != ErrorKind::NotFound => Err(e),
        _ => client.close(request_id, disk).await,
    }
}

fn open_fd(at: &Location, access: Access) -> Result<OwnedFd, Error> {
    open_container(at, access)
        .map(OwnedFd::from)
        .map_err(|e| io(at, &e))
}

fn io(at: &Location, e: &std::io::Error) -> Error {
    let (Location::File(path) | Location::BlockDevice(path)) = at;
    let kind = match e.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Io,
    };
    Error::new(
        kind,
        format!("cannot open container {}: {e}", path.display()),
    )
}

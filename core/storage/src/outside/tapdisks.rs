//! The real data-path processes. Opens containers here, with the daemon's rights, and hands them
//! over as descriptors; a process opens no file itself.

use super::{DataPaths, Layer, copy, open_container};
use crate::locks::KeyedLocks;
use crate::model::{Access, NbdEndpoint};
use async_trait::async_trait;
use datapath::protocol::{CopyPlan, CopyProgress, CopyScope, FRAME_FDS_MAX, ParentRef};
use datapath::{
    Chain, Client, DiskState, Error, ErrorKind, Extent, ImageInfo, NewImage, Supervisor,
};
use plugin::Location;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use units::{DpId, RequestId};
use uuid::Uuid;

/// How long one question after a copy waits for its end.
const WAIT: Duration = Duration::from_secs(2);

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

    /// Copies the first layer of a chain into the second, in a process that does nothing else.
    async fn copy_down(
        &self,
        request_id: &RequestId,
        process: &str,
        chain: &[Layer],
        extent: Extent,
        progress: &(dyn Fn(f64) + Send + Sync),
    ) -> Result<(), Error> {
        let below = chain.get(1..).unwrap_or_default();
        if chain.len() + below.len() > FRAME_FDS_MAX {
            let message = format!("{} layers are too many to merge two of them", chain.len());
            return Err(Error::new(ErrorKind::Chain, message));
        }
        let (source, target) = (
            open_chain(chain, Access::ReadOnly)?,
            open_chain(below, Access::ReadWrite)?,
        );
        let client = {
            let _lock = self.locks.lock(process.to_owned()).await;
            self.supervisor.client(process, request_id).await?
        };
        let name = merge_name();
        let chains = (source, target);
        let mut state = client
            .copy_start(request_id, &name, chains, extent, layer_plan())
            .await?;
        let mut told = Told::new(progress);
        while !state.ended {
            told.tell(state.progress);
            state = client.copy_wait(request_id, &name, WAIT).await?;
        }
        match state.failed {
            Some(why) => Err(Error::new(ErrorKind::Io, why)),
            None => {
                told.tell(state.progress);
                Ok(())
            }
        }
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
        let layers = open_chain(chain, access)?;
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
            named.mtime_unix_s = mtime_unix_s(parent)?;
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

    async fn image_reparent(
        &self,
        request_id: &RequestId,
        process: &str,
        container: &Location,
        mut parent: ParentRef,
        parent_at: &Location,
        extent: Extent,
    ) -> Result<(), Error> {
        parent.mtime_unix_s = mtime_unix_s(parent_at)?;
        let fd = open_fd(container, Access::ReadWrite)?;
        let client = self.supervisor.client(process, request_id).await?;
        client.image_reparent(request_id, parent, extent, fd).await
    }

    async fn merge(
        &self,
        request_id: &RequestId,
        process: &str,
        chain: &[Layer],
        extent: Extent,
        progress: &(dyn Fn(f64) + Send + Sync),
    ) -> Result<(), Error> {
        self.copy_down(request_id, process, chain, extent, progress)
            .await?;
        self.merge_stop(request_id, process).await
    }

    async fn merge_stop(&self, request_id: &RequestId, process: &str) -> Result<(), Error> {
        let _lock = self.locks.lock(process.to_owned()).await;
        if let Some(client) = self.running_client(request_id, process).await? {
            match client.copy_stop(request_id, &merge_name()).await {
                // What died copies nothing.
                Err(e) if e.kind == ErrorKind::Gone => {}
                stopped => stopped?,
            }
            self.exit_idle(request_id, process).await;
        }
        Ok(())
    }

    async fn mirror_start(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
        below: &[Layer],
        extent: Extent,
    ) -> Result<(), Error> {
        let target = open_chain(below, Access::ReadWrite)?;
        let client = self.supervisor.client(process, request_id).await?;
        client
            .mirror_start(request_id, disk, target, extent, layer_plan())
            .await
            .map(drop)
    }

    async fn mirror_wait(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
        progress: &(dyn Fn(f64) + Send + Sync),
    ) -> Result<(), Error> {
        let client = self.supervisor.client(process, request_id).await?;
        let mut told = Told::new(progress);
        loop {
            let state = client.mirror_wait(request_id, disk, WAIT).await?;
            let Some(mirror) = state.mirror else {
                let message = format!("disk {disk} has no mirror any more");
                return Err(Error::new(ErrorKind::NotFound, message));
            };
            if let Some(why) = mirror.failed {
                return Err(Error::new(ErrorKind::Io, why));
            }
            told.tell(mirror.progress);
            if mirror.in_sync || mirror.switched {
                return Ok(());
            }
        }
    }

    async fn mirror_prepare(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
    ) -> Result<(), Error> {
        let client = self.supervisor.client(process, request_id).await?;
        client.mirror_prepare(request_id, disk).await
    }

    async fn mirror_switch(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
    ) -> Result<(), Error> {
        let client = self.supervisor.client(process, request_id).await?;
        client
            .mirror_switch(request_id, disk, false)
            .await
            .map(drop)
    }

    async fn mirror_stop(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
    ) -> Result<(), Error> {
        let Some(client) = self.running_client(request_id, process).await? else {
            return Ok(());
        };
        match client.mirror_stop(request_id, disk).await {
            Err(e) if e.kind == ErrorKind::NotFound => Ok(()),
            stopped => stopped,
        }
    }

    async fn relink(
        &self,
        request_id: &RequestId,
        process: &str,
        disk: &DpId,
        gone: Uuid,
        into: &Layer,
        mut parent: Option<ParentRef>,
    ) -> Result<(), Error> {
        if let Some(parent) = &mut parent {
            parent.mtime_unix_s = mtime_unix_s(&into.location)?;
        }
        let fd = open_fd(&into.location, Access::ReadOnly)?;
        let client = self.supervisor.client(process, request_id).await?;
        client
            .relink(request_id, disk, gone, (into.format, fd), parent)
            .await
            .map(drop)
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

/// What a merge copies: one layer, into the one below it.
fn layer_plan() -> CopyPlan {
    CopyPlan {
        scope: CopyScope::Layer,
        ..CopyPlan::default()
    }
}

/// The only copy in a process of merges.
fn merge_name() -> DpId {
    "merge".parse().expect("a valid datapath id")
}

/// Tells progress that never decreases, though totals grow.
struct Told<'a> {
    progress: &'a (dyn Fn(f64) + Send + Sync),
    part: f64,
}

impl<'a> Told<'a> {
    fn new(progress: &'a (dyn Fn(f64) + Send + Sync)) -> Self {
        progress(0.0);
        Self {
            progress,
            part: 0.0,
        }
    }

    fn tell(&mut self, now: CopyProgress) {
        if now.total_bytes > 0 {
            let part = now.done_bytes as f64 / now.total_bytes as f64;
            self.part = self.part.max(part.min(1.0));
            (self.progress)(self.part);
        }
    }
}

/// Opens the layers of a chain; only the first is opened for writing.
fn open_chain(chain: &[Layer], access: Access) -> Result<Chain, Error> {
    let mut layers = Vec::with_capacity(chain.len());
    for (depth, layer) in chain.iter().enumerate() {
        let access = if depth == 0 { access } else { Access::ReadOnly };
        layers.push((layer.format, open_fd(&layer.location, access)?));
    }
    Ok(layers)
}

fn mtime_unix_s(at: &Location) -> Result<i64, Error> {
    let file = open_container(at, Access::ReadOnly).map_err(|e| io(at, &e))?;
    let metadata = file.metadata().map_err(|e| io(at, &e))?;
    Ok(metadata.mtime())
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

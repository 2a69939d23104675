//! One typed method per operation of the protocol.

use super::{Client, unexpected};
use crate::protocol::{
    Access, DiskLatencies, DiskSettings, DiskState, Error, Extent, Format, ImageInfo, Limits,
    ParentRef, Policy, Reply, Request, Tls,
};
use std::os::fd::OwnedFd;
use units::{DpId, RequestId};
use uuid::Uuid;

/// What `image_create` writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewImage {
    /// Its uuid.
    pub uuid: Uuid,
    /// Size a guest sees; rounded up to 2 MiB.
    pub virtual_bytes: u64,
    /// Size up to which metadata is laid out, so that a later resize is fast.
    pub resize_max_bytes: u64,
    /// `None`: dynamic. `Some`: differencing.
    pub parent: Option<ParentRef>,
    /// How the container ends.
    pub extent: Extent,
}

/// One method per operation; each has the errors and cancel safety of [`Client::call`].
impl Client {
    /// Opens a chain, leaf first, with the settings it has by default.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn open(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        layers: Vec<(Format, OwnedFd)>,
        extent: Extent,
        access: Access,
    ) -> Result<DiskState, Error> {
        let settings = DiskSettings::default();
        self.open_with(request_id, disk, layers, extent, access, settings)
            .await
    }

    /// Opens a chain, leaf first.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn open_with(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        layers: Vec<(Format, OwnedFd)>,
        extent: Extent,
        access: Access,
        settings: DiskSettings,
    ) -> Result<DiskState, Error> {
        let (layers, fds) = layers.into_iter().unzip();
        let request = Request::Open {
            disk: disk.clone(),
            layers,
            extent,
            access,
            settings,
        };
        self.disk("open", request_id, request, fds).await
    }

    /// Serves an open disk on a listening socket (see [`crate::listen`]).
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn serve(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        export: &str,
        listener: OwnedFd,
    ) -> Result<(), Error> {
        self.serve_with(request_id, disk, export, None, listener)
            .await
    }

    /// As [`Client::serve`], with TLS for clients that may or must use it.
    ///
    /// # Errors
    /// `Unsupported` when the certificates or the key are none; as [`Client::call`].
    pub async fn serve_tls(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        export: &str,
        tls: Tls,
        listener: OwnedFd,
    ) -> Result<(), Error> {
        self.serve_with(request_id, disk, export, Some(Box::new(tls)), listener)
            .await
    }

    async fn serve_with(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        export: &str,
        tls: Option<Box<Tls>>,
        listener: OwnedFd,
    ) -> Result<(), Error> {
        let request = Request::Serve {
            disk: disk.clone(),
            export: export.to_owned(),
            tls,
        };
        self.done("serve", request_id, request, vec![listener])
            .await
    }

    /// Serves an open disk as a vhost-user block device on a listening socket (see
    /// [`crate::listen`]); `serial` has at most 20 bytes.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn serve_vhost_user(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        serial: &str,
        listener: OwnedFd,
    ) -> Result<(), Error> {
        let request = Request::ServeVhostUser {
            disk: disk.clone(),
            serial: serial.to_owned(),
        };
        self.done("serve-vhost-user", request_id, request, vec![listener])
            .await
    }

    /// Stops serving a disk.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn unserve(&self, request_id: &RequestId, disk: &DpId) -> Result<(), Error> {
        self.done(
            "unserve",
            request_id,
            Request::Unserve { disk: disk.clone() },
            vec![],
        )
        .await
    }

    /// Flushes, writes footers and closes a disk.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn close(&self, request_id: &RequestId, disk: &DpId) -> Result<(), Error> {
        self.done(
            "close",
            request_id,
            Request::Close { disk: disk.clone() },
            vec![],
        )
        .await
    }

    /// Puts a new, empty leaf on top of a live disk.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn snapshot(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        leaf: Uuid,
        container: OwnedFd,
    ) -> Result<DiskState, Error> {
        let request = Request::Snapshot {
            disk: disk.clone(),
            leaf,
            log: false,
        };
        self.disk("snapshot", request_id, request, vec![container])
            .await
    }

    /// Puts a new, empty leaf on top of a live disk and goes on with a new log of changed blocks.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn snapshot_with_log(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        leaf: Uuid,
        container: OwnedFd,
        log: OwnedFd,
    ) -> Result<DiskState, Error> {
        let request = Request::Snapshot {
            disk: disk.clone(),
            leaf,
            log: true,
        };
        self.disk("snapshot", request_id, request, vec![container, log])
            .await
    }

    /// Begins to mark changes in a log of changed blocks.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn cbt_start(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        log: OwnedFd,
    ) -> Result<DiskState, Error> {
        let request = Request::CbtStart { disk: disk.clone() };
        self.disk("cbt-start", request_id, request, vec![log]).await
    }

    /// Ends that; the log is complete and durable.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn cbt_stop(&self, request_id: &RequestId, disk: &DpId) -> Result<DiskState, Error> {
        let request = Request::CbtStop { disk: disk.clone() };
        self.disk("cbt-stop", request_id, request, vec![]).await
    }

    /// Holds back new requests of all these disks and drains those in flight.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn freeze(&self, request_id: &RequestId, disks: &[DpId]) -> Result<(), Error> {
        self.done(
            "freeze",
            request_id,
            Request::Freeze {
                disks: disks.to_vec(),
            },
            vec![],
        )
        .await
    }

    /// Undoes [`Client::freeze`].
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn thaw(&self, request_id: &RequestId, disks: &[DpId]) -> Result<(), Error> {
        self.done(
            "thaw",
            request_id,
            Request::Thaw {
                disks: disks.to_vec(),
            },
            vec![],
        )
        .await
    }

    /// Grows a live disk.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn resize(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        virtual_bytes: u64,
    ) -> Result<DiskState, Error> {
        let request = Request::Resize {
            disk: disk.clone(),
            virtual_bytes,
        };
        self.disk("resize", request_id, request, vec![]).await
    }

    /// Every disk of the process.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn list(&self, request_id: &RequestId) -> Result<Vec<DiskState>, Error> {
        match self.call(request_id, Request::List, vec![]).await? {
            Reply::Disks { disks, .. } => Ok(disks),
            other => Err(unexpected("list", &other)),
        }
    }

    /// Latencies of one disk.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn stats(&self, request_id: &RequestId, disk: &DpId) -> Result<DiskLatencies, Error> {
        let request = Request::Stats { disk: disk.clone() };
        match self.call(request_id, request, vec![]).await? {
            Reply::Stats(latencies) => Ok(*latencies),
            other => Err(unexpected("stats", &other)),
        }
    }

    /// Changes the limits of a disk in use.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn set_limits(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        limits: Limits,
    ) -> Result<DiskState, Error> {
        let request = Request::SetLimits {
            disk: disk.clone(),
            limits,
        };
        self.disk("set-limits", request_id, request, vec![]).await
    }

    /// Changes what happens when the storage refuses a request.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn set_policy(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        policy: Policy,
    ) -> Result<DiskState, Error> {
        let request = Request::SetPolicy {
            disk: disk.clone(),
            policy,
        };
        self.disk("set-policy", request_id, request, vec![]).await
    }

    /// Ends a disk's pause.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn resume(&self, request_id: &RequestId, disk: &DpId) -> Result<DiskState, Error> {
        let request = Request::Resume { disk: disk.clone() };
        self.disk("resume", request_id, request, vec![]).await
    }

    /// Ends the process; `Busy` while it has disks.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn exit(&self, request_id: &RequestId) -> Result<(), Error> {
        self.done("exit", request_id, Request::Exit, vec![]).await
    }

    /// Writes a new VHD into an empty container.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn image_create(
        &self,
        request_id: &RequestId,
        image: NewImage,
        container: OwnedFd,
    ) -> Result<ImageInfo, Error> {
        let NewImage {
            uuid,
            virtual_bytes,
            resize_max_bytes,
            parent,
            extent,
        } = image;
        let request = Request::ImageCreate {
            uuid,
            virtual_bytes,
            resize_max_bytes,
            parent,
            extent,
        };
        self.image("image-create", request_id, request, container)
            .await
    }

    /// Reads an image's description.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn image_query(
        &self,
        request_id: &RequestId,
        extent: Extent,
        container: OwnedFd,
    ) -> Result<ImageInfo, Error> {
        self.image(
            "image-query",
            request_id,
            Request::ImageQuery { extent },
            container,
        )
        .await
    }

    /// Grows an image that nobody has open.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn image_resize(
        &self,
        request_id: &RequestId,
        virtual_bytes: u64,
        extent: Extent,
        container: OwnedFd,
    ) -> Result<ImageInfo, Error> {
        let request = Request::ImageResize {
            virtual_bytes,
            extent,
        };
        self.image("image-resize", request_id, request, container)
            .await
    }

    /// Sets or clears the hidden flag of an image that nobody writes.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn image_hide(
        &self,
        request_id: &RequestId,
        hidden: bool,
        extent: Extent,
        container: OwnedFd,
    ) -> Result<(), Error> {
        let request = Request::ImageHide { hidden, extent };
        self.done("image-hide", request_id, request, vec![container])
            .await
    }

    pub(super) async fn done(
        &self,
        op: &str,
        request_id: &RequestId,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Error> {
        match self.call(request_id, request, fds).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(op, &other)),
        }
    }

    pub(super) async fn disk(
        &self,
        op: &str,
        request_id: &RequestId,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<DiskState, Error> {
        match self.call(request_id, request, fds).await? {
            Reply::Disk(state) => Ok(*state),
            other => Err(unexpected(op, &other)),
        }
    }

    async fn image(
        &self,
        op: &str,
        request_id: &RequestId,
        request: Request,
        container: OwnedFd,
    ) -> Result<ImageInfo, Error> {
        match self.call(request_id, request, vec![container]).await? {
            Reply::Image(info) => Ok(info),
            other => Err(unexpected(op, &other)),
        }
    }
}

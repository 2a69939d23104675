//! Copies, mirrors and relinks: one typed method per operation, as [`super::operations`].

use super::{Client, unexpected};
use crate::protocol::{
    CopyPlan, CopyState, DiskState, Error, Extent, Format, ParentRef, Reply, Request, WAIT_MS_MAX,
};
use std::os::fd::OwnedFd;
use std::time::Duration;
use units::{DpId, RequestId};
use uuid::Uuid;

/// A chain with the descriptors of its containers, leaf first.
pub type Chain = Vec<(Format, OwnedFd)>;

/// One method per operation; each has the errors and cancel safety of [`Client::call`].
impl Client {
    /// Begins to copy one chain into another; `plan.target` is taken from `target`.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn copy_start(
        &self,
        request_id: &RequestId,
        copy: &DpId,
        (source, target): (Chain, Chain),
        extent: Extent,
        plan: CopyPlan,
    ) -> Result<CopyState, Error> {
        let (source, mut fds): (Vec<Format>, Vec<OwnedFd>) = source.into_iter().unzip();
        let (plan, more) = with_target(plan, target);
        fds.extend(more);
        let request = Request::CopyStart {
            copy: copy.clone(),
            source,
            extent,
            plan,
        };
        self.copy("copy-start", request_id, request, fds).await
    }

    /// Waits until a copy has ended or the time is over; see [`CopyState::ended`].
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn copy_wait(
        &self,
        request_id: &RequestId,
        copy: &DpId,
        at_most: Duration,
    ) -> Result<CopyState, Error> {
        let request = Request::CopyWait {
            copy: copy.clone(),
            wait_ms: wait_ms(at_most),
        };
        self.copy("copy-wait", request_id, request, vec![]).await
    }

    /// Ends a copy and forgets it.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn copy_stop(&self, request_id: &RequestId, copy: &DpId) -> Result<(), Error> {
        let request = Request::CopyStop { copy: copy.clone() };
        self.done("copy-stop", request_id, request, vec![]).await
    }

    /// Every copy of the process.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn copies(&self, request_id: &RequestId) -> Result<Vec<CopyState>, Error> {
        match self.call(request_id, Request::List, vec![]).await? {
            Reply::Disks { copies, .. } => Ok(copies),
            other => Err(unexpected("list", &other)),
        }
    }

    /// Begins to mirror a disk; `plan.target` is taken from `target`.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn mirror_start(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        target: Chain,
        extent: Extent,
        plan: CopyPlan,
    ) -> Result<DiskState, Error> {
        let (plan, fds) = with_target(plan, target);
        let request = Request::MirrorStart {
            disk: disk.clone(),
            extent,
            plan,
        };
        self.disk("mirror-start", request_id, request, fds).await
    }

    /// Waits until a mirror is in sync, has failed, or the time is over.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn mirror_wait(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        at_most: Duration,
    ) -> Result<DiskState, Error> {
        let request = Request::MirrorWait {
            disk: disk.clone(),
            wait_ms: wait_ms(at_most),
        };
        self.disk("mirror-wait", request_id, request, vec![]).await
    }

    /// To be called before recording that the target is the disk.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn mirror_prepare(&self, request_id: &RequestId, disk: &DpId) -> Result<(), Error> {
        let request = Request::MirrorPrepare { disk: disk.clone() };
        self.done("mirror-prepare", request_id, request, vec![])
            .await
    }

    /// Puts the target in the disk's place.
    ///
    /// # Errors
    /// As [`Client::call`]; after `Gone` because a comparison takes longer than a call may, the
    /// same again waits on.
    pub async fn mirror_switch(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        verify: bool,
    ) -> Result<DiskState, Error> {
        let request = Request::MirrorSwitch {
            disk: disk.clone(),
            verify,
        };
        self.disk("mirror-switch", request_id, request, vec![])
            .await
    }

    /// Ends a mirror; the disk stays what it is.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn mirror_stop(&self, request_id: &RequestId, disk: &DpId) -> Result<(), Error> {
        let request = Request::MirrorStop { disk: disk.clone() };
        self.done("mirror-stop", request_id, request, vec![]).await
    }

    /// Takes a layer out of the chain of a disk in use; `into` is the layer below it.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn relink(
        &self,
        request_id: &RequestId,
        disk: &DpId,
        gone: Uuid,
        (into, container): (Format, OwnedFd),
        parent: Option<ParentRef>,
    ) -> Result<DiskState, Error> {
        let request = Request::Relink {
            disk: disk.clone(),
            gone,
            into,
            parent,
        };
        self.disk("relink", request_id, request, vec![container])
            .await
    }

    /// Makes another image the parent of an image that nobody writes.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn image_reparent(
        &self,
        request_id: &RequestId,
        parent: ParentRef,
        extent: Extent,
        container: OwnedFd,
    ) -> Result<(), Error> {
        let request = Request::ImageReparent { parent, extent };
        self.done("image-reparent", request_id, request, vec![container])
            .await
    }

    async fn copy(
        &self,
        op: &str,
        request_id: &RequestId,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<CopyState, Error> {
        match self.call(request_id, request, fds).await? {
            Reply::Copy(state) => Ok(state),
            other => Err(unexpected(op, &other)),
        }
    }
}

fn with_target(plan: CopyPlan, target: Chain) -> (CopyPlan, Vec<OwnedFd>) {
    let (target, fds) = target.into_iter().unzip();
    (CopyPlan { target, ..plan }, fds)
}

fn wait_ms(at_most: Duration) -> u32 {
    let wait_ms = u32::try_from(at_most.as_millis()).unwrap_or(u32::MAX);
    wait_ms.min(WAIT_MS_MAX)
}

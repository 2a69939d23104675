//! Other parents: a layer that leaves the chain of a disk in use, an image that gets another one.

use super::live::After;
use super::open::Opened;
use super::{Answered, Process, found};
use crate::engine::Relink;
use crate::process::ReplyTo;
use crate::process::disk::FileIdentity;
use crate::process::images;
use datapath::protocol::{Access, Error, ErrorKind, Extent, Format, ParentRef, Reply};
use std::fs::File;
use std::os::fd::OwnedFd;
use units::DpId;
use uuid::Uuid;

/// What is to be done to a disk's chain.
#[derive(Debug)]
pub(super) struct RelinkRequest {
    pub(super) disk: DpId,
    pub(super) gone: Uuid,
    pub(super) into: (Format, OwnedFd),
    pub(super) parent: Option<ParentRef>,
}

impl Process {
    pub(super) fn relink(&mut self, to: &ReplyTo, request: RelinkRequest) -> Option<Answered> {
        let id = request.disk.clone();
        match self.prepare_relink(request) {
            Ok(Some((relink, depth))) => {
                let after = After::Relink {
                    to: to.clone(),
                    file: relink.into.file,
                    depth,
                };
                self.start_relink(id, relink, after);
                None
            }
            Ok(None) => Some(self.disk_state(&id)),
            Err(e) => Some(Err(e)),
        }
    }

    /// `None`: the disk has no such layer. Otherwise with the layer's place, counted from the leaf.
    fn prepare_relink(&mut self, request: RelinkRequest) -> Result<Option<(Relink, usize)>, Error> {
        let RelinkRequest {
            disk: id,
            gone,
            into: (format, fd),
            parent,
        } = request;
        let disk = found(self.disks.get(&id), &id)?;
        let uuids = disk.engine.layer_uuids();
        let Some(depth) = uuids.iter().position(|uuid| *uuid == gone) else {
            return Ok(None);
        };
        if disk.engine.mirroring().is_some() || self.is_busy(&id) {
            let message = format!("disk {id} is mirrored or in another operation");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        let opened = Opened::read(File::from(fd), format, disk.extent, Access::ReadOnly)?;
        if disk.identities.get(depth + 1) != Some(&opened.identity) {
            let message = format!("the file is not the one below layer {gone} of disk {id}");
            return Err(Error::new(ErrorKind::Chain, message));
        }
        if self.is_written(opened.identity) {
            let message = format!("the layer below {gone} is still being written");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        let relink = Relink {
            gone,
            into: opened.into_spec(&mut self.reactor),
            link: parent.map(images::link),
        };
        if let Some(disk) = self.disks.get_mut(&id) {
            disk.set_cache_of_new_file(&mut self.reactor, relink.into.file);
        }
        Ok(Some((relink, depth)))
    }

    pub(super) fn image_reparent(
        &mut self,
        parent: ParentRef,
        extent: Extent,
        fd: OwnedFd,
    ) -> Answered {
        let container = File::from(fd);
        let unreadable = |e| Error::new(ErrorKind::Io, format!("a container: {e}"));
        let identity = FileIdentity::of(&container).map_err(unreadable)?;
        if self.is_written(identity) {
            let message = "the image is being written";
            return Err(Error::new(ErrorKind::Busy, message));
        }
        images::reparent(container, extent, parent).map(|()| Reply::Done)
    }
}

//! The operations of the control protocol.

use super::images::{self, Create};
use super::reactor::Key;
use super::{Life, Process, ReplyTo};
use crate::engine;
use copy::CopyRequest;
use datapath::codec::Frame;
use datapath::protocol::{Error, ErrorKind, PROTOCOL, Reply, Request, RequestFrame};
use relink::RelinkRequest;
use serde::Deserialize;
use std::fs::File;
use std::os::fd::OwnedFd;
use units::DpId;

mod cbt;
mod copy;
mod live;
mod mirror;
mod open;
mod relink;
mod settings;

pub(super) use live::{Freezing, Live};
pub(super) use open::Unserving;

/// What an operation that needs not wait came to.
type Answered = Result<Reply, Error>;

impl Process {
    /// Decodes a frame and carries out what it asks.
    pub(super) fn take_frame(&mut self, control: Key, frame: Frame) {
        let RequestFrame {
            id,
            request_id,
            request,
        } = match frame.decode() {
            Ok(decoded) => decoded,
            Err(error) => return self.refuse_frame(control, &frame, error),
        };
        let to = ReplyTo {
            control,
            id,
            request_id,
        };
        match request {
            // Asked every few seconds by whoever watches.
            Request::Hello { .. } | Request::List | Request::Stats { .. } => {
                tracing::debug!(request_id = %to.request_id, op = request.name(), "asked");
            }
            _ => tracing::info!(request_id = %to.request_id, op = request.name(), "asked"),
        }
        let greeted = self.controls.get(&control).is_some_and(|c| c.greeted);
        if greeted == matches!(request, Request::Hello { .. }) {
            let error = Error::new(
                ErrorKind::Protocol,
                "hello is the first request and no other",
            );
            return self.end_control(&to, error);
        }
        if self.life != Life::Serving && !matches!(request, Request::List) {
            return self.answer(
                &to,
                Err(Error::new(ErrorKind::Busy, "the process is ending")),
            );
        }
        if let Some(answer) = self.carry_out(&to, request, frame.fds) {
            self.answer(&to, answer);
        }
    }

    /// A frame that is no request still gets its answer when it has an id.
    fn refuse_frame(&mut self, control: Key, frame: &Frame, error: Error) {
        #[derive(Deserialize)]
        struct OnlyId {
            id: u64,
        }
        let id = frame.decode::<OnlyId>().map_or(0, |frame| frame.id);
        let request_id = "R:unknown".parse().expect("a valid request id");
        self.answer(
            &ReplyTo {
                control,
                id,
                request_id,
            },
            Err(error),
        );
    }

    fn end_control(&mut self, to: &ReplyTo, error: Error) {
        self.answer(to, Err(error));
        if let Some(control) = self.controls.get_mut(&to.control) {
            control.end();
        }
    }

    /// `None`: the answer comes later.
    fn carry_out(&mut self, to: &ReplyTo, request: Request, fds: Vec<OwnedFd>) -> Option<Answered> {
        let wanted = match &request {
            Request::Open { layers, .. } => layers.len(),
            Request::CopyStart { source, plan, .. } => {
                source.len().saturating_add(plan.target.len())
            }
            Request::MirrorStart { plan, .. } => plan.target.len(),
            Request::Relink { .. } | Request::ImageReparent { .. } => 1,
            Request::Serve { .. }
            | Request::ServeVhostUser { .. }
            | Request::Snapshot { log: false, .. }
            | Request::CbtStart { .. }
            | Request::ImageCreate { .. }
            | Request::ImageQuery { .. }
            | Request::ImageResize { .. }
            | Request::ImageHide { .. } => 1,
            Request::Snapshot { log: true, .. } => 2,
            _ => 0,
        };
        if fds.len() != wanted {
            let message = format!(
                "{} takes {wanted} descriptors, got {}",
                request.name(),
                fds.len()
            );
            return Some(Err(Error::new(ErrorKind::Protocol, message)));
        }
        if let Request::CopyStart { .. }
        | Request::CopyWait { .. }
        | Request::CopyStop { .. }
        | Request::MirrorStart { .. }
        | Request::MirrorWait { .. }
        | Request::MirrorPrepare { .. }
        | Request::MirrorSwitch { .. }
        | Request::MirrorStop { .. } = &request
        {
            return self.carry_out_copy(to, request, fds);
        }
        let mut fds = fds.into_iter();
        match (request, fds.next()) {
            (Request::Hello { protocol }, _) => Some(self.hello(to, &protocol)),
            (
                Request::Open {
                    disk,
                    layers,
                    extent,
                    access,
                    settings,
                },
                first,
            ) => {
                let layers = layers
                    .into_iter()
                    .zip(first.into_iter().chain(fds))
                    .collect();
                Some(self.open(disk, layers, extent, (access, settings)))
            }
            (Request::Serve { disk, export, tls }, Some(fd)) => {
                Some(self.serve(&disk, export, tls.as_deref(), fd))
            }
            (Request::ServeVhostUser { disk, serial }, Some(fd)) => {
                Some(self.serve_vhost_user(&disk, &serial, fd))
            }
            (Request::Unserve { disk }, _) => self.unserve(to, disk),
            (Request::Close { disk }, _) => self.close(to, disk),
            (Request::Snapshot { disk, leaf, .. }, Some(fd)) => {
                self.snapshot(to, disk, leaf, (fd, fds.next()))
            }
            (Request::CbtStart { disk }, Some(fd)) => self.cbt_start(to, disk, fd),
            (Request::CbtStop { disk }, _) => self.cbt_stop(to, disk),
            (Request::Freeze { disks }, _) => self.freeze(to, disks),
            (Request::Thaw { disks }, _) => Some(self.thaw(&disks)),
            (
                Request::Resize {
                    disk,
                    virtual_bytes,
                },
                _,
            ) => self.resize(to, disk, virtual_bytes),
            (Request::List, _) => Some(Ok(self.list())),
            (Request::Stats { disk }, _) => Some(self.stats(&disk)),
            (Request::SetLimits { disk, limits }, _) => Some(self.set_limits(&disk, limits)),
            (Request::SetPolicy { disk, policy }, _) => Some(self.set_policy(&disk, policy)),
            (Request::Resume { disk }, _) => Some(self.resume(&disk)),
            (Request::Exit, _) => Some(self.exit(to)),
            (
                Request::Relink {
                    disk,
                    gone,
                    into,
                    parent,
                },
                Some(fd),
            ) => self.relink(
                to,
                RelinkRequest {
                    disk,
                    gone,
                    into: (into, fd),
                    parent,
                },
            ),
            (Request::ImageReparent { parent, extent }, Some(fd)) => {
                Some(self.image_reparent(parent, extent, fd))
            }
            (request, Some(fd)) => Some(self.image(request, fd)),
            (request, None) => {
                let message = format!("{} came without its descriptor", request.name());
                Some(Err(Error::new(ErrorKind::Protocol, message)))
            }
        }
    }

    /// Those about copies and mirrors.
    fn carry_out_copy(
        &mut self,
        to: &ReplyTo,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Option<Answered> {
        let mut fds = fds.into_iter();
        match request {
            Request::CopyStart {
                copy,
                source,
                extent,
                plan,
            } => {
                let source = source.into_iter().zip(fds.by_ref()).collect();
                let target = plan.target.iter().copied().zip(fds).collect();
                Some(self.copy_start(CopyRequest {
                    copy,
                    source,
                    target,
                    extent,
                    plan,
                }))
            }
            Request::CopyWait { copy, wait_ms } => self.copy_wait(to, copy, wait_ms),
            Request::CopyStop { copy } => self.copy_stop(to, copy),
            Request::MirrorStart { disk, extent, plan } => {
                let target = plan.target.iter().copied().zip(fds).collect();
                Some(self.mirror_start(disk, target, extent, &plan))
            }
            Request::MirrorWait { disk, wait_ms } => self.mirror_wait(to, disk, wait_ms),
            Request::MirrorPrepare { disk } => Some(self.mirror_prepare(&disk)),
            Request::MirrorSwitch { disk, verify } => self.mirror_switch(to, disk, verify),
            Request::MirrorStop { disk } => self.mirror_stop(to, disk),
            other => {
                let message = format!("{} is about no copy", other.name());
                Some(Err(Error::new(ErrorKind::Protocol, message)))
            }
        }
    }

    fn hello(&mut self, to: &ReplyTo, protocol: &str) -> Answered {
        let Some(control) = self.controls.get_mut(&to.control) else {
            return Ok(Reply::Done);
        };
        if protocol != PROTOCOL {
            control.end();
            let message = format!("client speaks {protocol:.64}, this process {PROTOCOL}");
            return Err(Error::new(ErrorKind::Protocol, message));
        }
        control.greeted = true;
        Ok(Reply::Hello {
            protocol: PROTOCOL.to_owned(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    fn list(&self) -> Reply {
        Reply::Disks {
            disks: self.disks.iter().map(|(id, disk)| disk.state(id)).collect(),
            copies: self.copies.states(),
        }
    }

    fn exit(&mut self, to: &ReplyTo) -> Answered {
        if !self.disks.is_empty() {
            let message = format!("{} disks are open", self.disks.len());
            return Err(Error::new(ErrorKind::Busy, message));
        }
        if self.copies.are_running() {
            return Err(Error::new(ErrorKind::Busy, "copies are under way"));
        }
        tracing::info!(request_id = %to.request_id, "told to exit");
        self.life = Life::Leaving;
        self.controls.values_mut().for_each(super::Control::end);
        Ok(Reply::Done)
    }

    /// Operations on a container that no disk here has.
    fn image(&mut self, request: Request, fd: OwnedFd) -> Answered {
        let container = File::from(fd);
        let changes = !matches!(request, Request::ImageQuery { .. });
        if changes {
            self.check_unused(&container)?;
        }
        match request {
            Request::ImageCreate {
                uuid,
                virtual_bytes,
                resize_max_bytes,
                parent,
                extent,
            } => {
                let new = Create {
                    uuid,
                    virtual_bytes,
                    resize_max_bytes,
                    parent,
                    extent,
                };
                images::create(container, new).map(Reply::Image)
            }
            Request::ImageQuery { extent } => images::query(&container, extent).map(Reply::Image),
            Request::ImageResize {
                virtual_bytes,
                extent,
            } => images::resize(container, extent, virtual_bytes).map(Reply::Image),
            Request::ImageHide { hidden, extent } => {
                images::hide(container, extent, hidden).map(|()| Reply::Done)
            }
            other => {
                let message = format!("{} takes no descriptor", other.name());
                Err(Error::new(ErrorKind::Protocol, message))
            }
        }
    }
}

fn found<T>(disk: Option<T>, id: &DpId) -> Result<T, Error> {
    disk.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no disk {id}")))
}

/// An error of the engine as an error of the protocol.
pub(super) fn engine_error(e: engine::Error) -> Error {
    use engine::ErrorKind as Engine;
    let kind = match e.kind {
        Engine::Chain => ErrorKind::Chain,
        Engine::NoSpace => ErrorKind::NoSpace,
        Engine::Busy => ErrorKind::Busy,
        Engine::Closed => ErrorKind::NotFound,
        Engine::Io | Engine::Poisoned => ErrorKind::Io,
        _ => ErrorKind::Unsupported,
    };
    Error::new(kind, e.message)
}

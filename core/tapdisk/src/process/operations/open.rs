//! Disks come and go: open, serve, unserve.

use super::{Answered, Process, engine_error, found};
use crate::engine::{Config, Engine, LayerImage, LayerSpec};
use crate::nbd::Tls;
use crate::process::ReplyTo;
use crate::process::disk::{Disk, FileIdentity};
use crate::process::images::{extent as vhd_extent, refused};
use crate::process::listener::Listener;
use crate::process::reactor::Reactor;
use crate::vhost_user::SERIAL_BYTES;
use datapath::protocol::{Access, DiskSettings, Error, ErrorKind, Extent, Format, Reply};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use units::DpId;
use vhd_rs::{Image, OpenOptions};

/// How long `unserve` waits for clients that do not take their answers.
const UNSERVE_MAX: Duration = Duration::from_secs(5);

/// Disks of one process.
const DISKS_MAX: usize = 1024;

/// An `unserve` that waits for its clients.
#[derive(Debug)]
pub(in crate::process) struct Unserving {
    disk: DpId,
    to: ReplyTo,
    until: Instant,
}

/// A layer whose metadata has been read.
#[derive(Debug)]
pub(super) struct Opened {
    file: File,
    pub(super) identity: FileIdentity,
    file_bytes: u64,
    pub(super) image: LayerImage,
}

impl Opened {
    /// Reads what a layer is, blocking; the format is what the caller says it is.
    pub(super) fn read(
        mut file: File,
        format: Format,
        extent: Extent,
        access: Access,
    ) -> Result<Self, Error> {
        let unreadable = |e: std::io::Error| Error::new(ErrorKind::Io, format!("a layer: {e}"));
        let identity = FileIdentity::of(&file).map_err(unreadable)?;
        let file_bytes = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
        let image = match format {
            Format::Raw => LayerImage::Raw,
            Format::Vhd => {
                let access = match access {
                    Access::ReadOnly => vhd_rs::Access::ReadOnly,
                    Access::ReadWrite => vhd_rs::Access::ReadWrite,
                };
                let options = OpenOptions {
                    extent: vhd_extent(extent),
                    access,
                };
                LayerImage::Vhd(Box::new(Image::open(&file, options).map_err(refused)?))
            }
        };
        Ok(Self {
            file,
            identity,
            file_bytes,
            image,
        })
    }

    /// Puts the file into the ring.
    pub(super) fn into_spec(self, reactor: &mut Reactor) -> LayerSpec {
        let file = reactor.add_file(self.file.into());
        LayerSpec {
            file,
            file_bytes: self.file_bytes,
            image: self.image,
        }
    }
}

impl Process {
    pub(super) fn open(
        &mut self,
        id: DpId,
        layers: Vec<(Format, OwnedFd)>,
        extent: Extent,
        (access, settings): (Access, DiskSettings),
    ) -> Answered {
        let mut opened = Vec::with_capacity(layers.len());
        for (depth, (format, fd)) in layers.into_iter().enumerate() {
            // Only the leaf is ever written.
            let access = if depth == 0 { access } else { Access::ReadOnly };
            opened.push(Opened::read(File::from(fd), format, extent, access)?);
        }
        let identities: Vec<FileIdentity> = opened.iter().map(|layer| layer.identity).collect();
        if let Some(disk) = self.disks.get_mut(&id) {
            let same = disk.identities == identities && disk.engine.access() == access;
            if same {
                disk.set_settings(settings).map_err(engine_error)?;
                disk.set_cache(&mut self.reactor, settings.cache);
                return Ok(Reply::Disk(Box::new(disk.state(&id))));
            }
            return Err(Error::new(
                ErrorKind::Busy,
                format!("disk {id} is open with another chain"),
            ));
        }
        self.check_free(&identities, access)?;
        let tag = self.free_tag().ok_or_else(|| {
            Error::new(
                ErrorKind::Busy,
                format!("the process has {DISKS_MAX} disks already"),
            )
        })?;
        let specs: Vec<LayerSpec> = opened
            .into_iter()
            .map(|layer| layer.into_spec(&mut self.reactor))
            .collect();
        let files: Vec<block::FileId> = specs.iter().map(|spec| spec.file).collect();
        let config = Config {
            tag,
            access,
            write_through: settings.write_through,
        };
        let opened = Engine::open(config, specs).and_then(|engine| {
            let mut disk = Disk::new(engine, identities, extent, tag);
            disk.set_settings(settings).map(|()| disk)
        });
        let mut disk = opened.map_err(|e| {
            files
                .iter()
                .for_each(|file| self.reactor.remove_file(*file));
            engine_error(e)
        })?;
        // Only now: metadata was read in pieces of any length.
        disk.set_cache(&mut self.reactor, settings.cache);
        tracing::info!(disk = %id, layers = files.len(), bytes = disk.engine.size_bytes(), "opened");
        let state = disk.state(&id);
        self.tags.insert(tag, id.clone());
        self.disks.insert(id, disk);
        Ok(Reply::Disk(Box::new(state)))
    }

    /// A file that is written has one disk.
    pub(super) fn check_free(
        &self,
        identities: &[FileIdentity],
        access: Access,
    ) -> Result<(), Error> {
        let writes = (access == Access::ReadWrite).then_some(None);
        self.check_files(identities, writes)
    }

    /// No disk has the container, as any layer.
    pub(super) fn check_unused(&self, container: &File) -> Result<(), Error> {
        let identity = FileIdentity::of(container)
            .map_err(|e| Error::new(ErrorKind::Io, format!("a container: {e}")))?;
        match self.user_of(identity) {
            None => Ok(()),
            Some(who) => Err(Error::new(
                ErrorKind::Busy,
                format!("{who} has the container open"),
            )),
        }
    }

    pub(super) fn free_tag(&self) -> Option<u16> {
        (self.disks.len() < DISKS_MAX).then_some(())?;
        let is_free =
            |tag: &u16| !self.tags.contains_key(tag) && !self.copies.tags.contains_key(tag);
        (0..u16::MAX).find(is_free)
    }

    pub(super) fn serve(
        &mut self,
        id: &DpId,
        export: String,
        tls: Option<&datapath::Tls>,
        fd: OwnedFd,
    ) -> Answered {
        let tls = tls.map(Tls::new).transpose()?;
        let disk = found(self.disks.get_mut(id), id)?;
        let listener = Listener::new(fd)
            .map_err(|e| Error::new(ErrorKind::Protocol, format!("cannot serve {id}: {e}")))?;
        let key = self.keys.next();
        if let Some(old) = disk.serve(&mut self.reactor, key, listener, (export, tls)) {
            self.owners.remove(&old);
        }
        self.owners.insert(key, id.clone());
        self.overtake_unserve(id);
        Ok(Reply::Done)
    }

    pub(super) fn serve_vhost_user(&mut self, id: &DpId, serial: &str, fd: OwnedFd) -> Answered {
        let disk = found(self.disks.get_mut(id), id)?;
        let wrong = |e: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Protocol, format!("cannot serve {id}: {e}"))
        };
        let mut padded = [0; SERIAL_BYTES];
        let place = padded.get_mut(..serial.len());
        let place = place.ok_or_else(|| wrong(&"its serial number is too long"))?;
        place.copy_from_slice(serial.as_bytes());
        let listener = Listener::new(fd).map_err(|e| wrong(&e))?;
        let key = self.keys.next();
        if let Some(old) = disk.vhost.serve(&mut self.reactor, key, listener, padded) {
            self.owners.remove(&old);
        }
        self.owners.insert(key, id.clone());
        self.overtake_unserve(id);
        Ok(Reply::Done)
    }

    /// An `unserve` that still waits is overtaken by a new listener: its clients may stay.
    fn overtake_unserve(&mut self, id: &DpId) {
        let waiting = std::mem::take(&mut self.unserving).into_iter();
        let (overtaken, others): (Vec<_>, Vec<_>) = waiting.partition(|w| w.disk == *id);
        self.unserving = others;
        for waiting in overtaken {
            self.answer(&waiting.to, Ok(Reply::Done));
        }
    }

    pub(super) fn unserve(&mut self, to: &ReplyTo, id: DpId) -> Option<Answered> {
        let disk = match found(self.disks.get_mut(&id), &id) {
            Ok(disk) => disk,
            Err(e) => return Some(Err(e)),
        };
        for key in disk.unserve(&mut self.reactor) {
            self.owners.remove(&key);
        }
        let until = Instant::now() + UNSERVE_MAX;
        self.unserving.push(Unserving {
            disk: id,
            to: to.clone(),
            until,
        });
        None
    }

    /// Answers `unserve` once the clients are gone, or sends them away. `true` when one was
    /// answered.
    pub(in crate::process) fn finish_unserving(&mut self, now: Instant) -> bool {
        let before = self.unserving.len();
        for waiting in std::mem::take(&mut self.unserving) {
            let in_use = self.disks.get(&waiting.disk).is_some_and(Disk::has_clients);
            if in_use && now < waiting.until {
                self.unserving.push(waiting);
                continue;
            }
            if in_use {
                tracing::warn!(disk = %waiting.disk, "clients do not take their answers and are cut off");
                self.drop_clients(&waiting.disk);
            }
            self.answer(&waiting.to, Ok(Reply::Done));
        }
        self.unserving.len() < before
    }

    pub(super) fn drop_clients(&mut self, id: &DpId) {
        let Some(disk) = self.disks.get_mut(id) else {
            return;
        };
        for key in disk.drop_clients(&mut self.reactor) {
            self.owners.remove(&key);
        }
    }
}

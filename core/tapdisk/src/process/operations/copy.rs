//! Copies without a guest: start, wait, stop.

use super::open::Opened;
use super::{Answered, Process, engine_error};
use crate::copy::{Job, Plan};
use crate::engine::{Config, Engine, LayerSpec, Scope};
use crate::process::ReplyTo;
use crate::process::copies::{Awaited, Copying, Waiting};
use crate::process::disk::FileIdentity;
use block::FileId;
use datapath::protocol::{
    Access, CopyPlan, CopyScope, CopyState, Error, ErrorKind, Extent, Format, Reply, WAIT_MS_MAX,
};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use units::DpId;

/// Copies that are known at once, those that have ended included.
const COPIES_MAX: usize = 64;

/// What a copy asks for, with the descriptors of source and target.
#[derive(Debug)]
pub(super) struct CopyRequest {
    pub(super) copy: DpId,
    pub(super) source: Vec<(Format, OwnedFd)>,
    pub(super) target: Vec<(Format, OwnedFd)>,
    pub(super) extent: Extent,
    pub(super) plan: CopyPlan,
}

/// A chain whose metadata has been read and whose files are in the ring.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) engine: Engine,
    pub(super) identities: Vec<FileIdentity>,
}

/// What a plan means to the machine that copies.
pub(super) fn machine_plan(plan: &CopyPlan) -> Result<Plan, Error> {
    if plan.limit_bytes_per_s == Some(0) {
        let message = "a copy of 0 bytes per second would never end";
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    if plan.scope == CopyScope::Chain && plan.above > 0 {
        let message = "only the copy of one layer has layers above it";
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    Ok(Plan {
        scope: match plan.scope {
            CopyScope::Chain => Scope::Chain,
            CopyScope::Layer => Scope::Layer(plan.above),
        },
        limit_bytes_per_s: plan.limit_bytes_per_s,
    })
}

impl Process {
    pub(super) fn copy_start(&mut self, request: CopyRequest) -> Answered {
        let CopyRequest {
            copy,
            source,
            target,
            extent,
            plan,
        } = request;
        let machine = machine_plan(&plan)?;
        let source = read_chain(source, extent, Access::ReadOnly)?;
        let target = read_chain(target, extent, Access::ReadWrite)?;
        let (from, to) = (identities(&source), identities(&target));
        if let Some(known) = self.copies.known.get(&copy) {
            let same = known.source == from && known.target == to;
            let state = known.state(&copy);
            if same && state.failed.is_none() {
                return Ok(Reply::Copy(state));
            }
            if known.job.is_some() || !same {
                let message = format!("copy {copy} is under way or of other files");
                return Err(Error::new(ErrorKind::Busy, message));
            }
        } else if self.copies.known.len() >= COPIES_MAX {
            let message = format!("{COPIES_MAX} copies are known");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        let over = self.check_copy(&from, &to, &plan)?;
        let source = self.open_chain(source, Access::ReadOnly, &copy)?;
        let target = match self.open_chain(target, Access::ReadWrite, &copy) {
            Ok(target) => target,
            Err(e) => {
                self.forget_chain(&source.engine.files(), source.engine.tag());
                return Err(e);
            }
        };
        let sides = [&source.engine, &target.engine].map(|e| (e.tag(), e.files()));
        let job = Job::new(source.engine, target.engine, machine).map_err(|e| {
            for (tag, files) in &sides {
                self.forget_chain(files, *tag);
            }
            engine_error(e)
        })?;
        tracing::info!(%copy, scope = ?plan.scope, "copying");
        let copying = Copying {
            source: from,
            target: to,
            over,
            job: Some(Box::new(job)),
            last: CopyState {
                copy: copy.clone(),
                progress: datapath::protocol::CopyProgress::default(),
                ended: false,
                failed: None,
            },
        };
        let state = copying.state(&copy);
        self.copies.known.insert(copy, copying);
        Ok(Reply::Copy(state))
    }

    /// Whether these files can be copied so; the layer that hides what is written.
    fn check_copy(
        &self,
        source: &[FileIdentity],
        target: &[FileIdentity],
        plan: &CopyPlan,
    ) -> Result<Option<FileIdentity>, Error> {
        let chain = |message: &str| Err(Error::new(ErrorKind::Chain, message));
        let above = usize::from(plan.above);
        let over = match plan.scope {
            CopyScope::Layer => {
                if source.get(above + 1..).unwrap_or_default() != target || target.is_empty() {
                    return chain("the target of a layer is what lies below it in the source");
                }
                source.get(above).copied()
            }
            CopyScope::Chain => {
                if target.first().is_some_and(|file| source.contains(file)) {
                    return chain("the target is a layer of the source");
                }
                None
            }
        };
        self.check_files(source, None)?;
        self.check_files(target, Some(over))?;
        Ok(over)
    }

    pub(super) fn copy_wait(&mut self, to: &ReplyTo, copy: DpId, wait_ms: u32) -> Option<Answered> {
        if !self.copies.known.contains_key(&copy) {
            let message = format!("no copy {copy}");
            return Some(Err(Error::new(ErrorKind::NotFound, message)));
        }
        self.wait_for(to, Awaited::CopyEnded(copy), Some(wait_ms));
        None
    }

    pub(super) fn copy_stop(&mut self, to: &ReplyTo, copy: DpId) -> Option<Answered> {
        let Some(copying) = self.copies.known.get_mut(&copy) else {
            return Some(Ok(Reply::Done));
        };
        if let Some(job) = &mut copying.job {
            job.stop();
        }
        self.wait_for(to, Awaited::CopyStopped(copy), None);
        None
    }

    /// Has somebody wait; answered in the same turn of the loop if there is nothing to wait for.
    pub(super) fn wait_for(&mut self, to: &ReplyTo, what: Awaited, wait_ms: Option<u32>) {
        let until = wait_ms.map(|wait_ms| {
            let wait = Duration::from_millis(wait_ms.min(WAIT_MS_MAX).into());
            Instant::now() + wait
        });
        self.copies.waiting.push(Waiting {
            to: Some(to.clone()),
            what,
            until,
        });
    }

    /// Opens an engine on layers that were read.
    pub(super) fn open_chain(
        &mut self,
        layers: Vec<Opened>,
        access: Access,
        owner: &DpId,
    ) -> Result<Chain, Error> {
        let tag = self.free_tag().ok_or_else(|| {
            Error::new(ErrorKind::Busy, "the process has too many disks and copies")
        })?;
        // So that the next one gets another.
        self.copies.tags.insert(tag, owner.clone());
        let identities = identities(&layers);
        let specs: Vec<LayerSpec> = layers
            .into_iter()
            .map(|layer| layer.into_spec(&mut self.reactor))
            .collect();
        let files: Vec<FileId> = specs.iter().map(|spec| spec.file).collect();
        let config = Config {
            tag,
            access,
            write_through: false,
        };
        match Engine::open(config, specs) {
            Ok(engine) => Ok(Chain { engine, identities }),
            Err(e) => {
                self.forget_chain(&files, tag);
                Err(engine_error(e))
            }
        }
    }

    /// Undoes [`Process::open_chain`].
    pub(super) fn forget_chain(&mut self, files: &[FileId], tag: u16) {
        self.copies.tags.remove(&tag);
        files
            .iter()
            .for_each(|file| self.reactor.remove_file(*file));
    }
}

/// Reads what the layers of a chain are, blocking; only the first may be written.
pub(super) fn read_chain(
    layers: Vec<(Format, OwnedFd)>,
    extent: Extent,
    access: Access,
) -> Result<Vec<Opened>, Error> {
    let mut opened = Vec::with_capacity(layers.len());
    for (depth, (format, fd)) in layers.into_iter().enumerate() {
        let access = if depth == 0 { access } else { Access::ReadOnly };
        opened.push(Opened::read(File::from(fd), format, extent, access)?);
    }
    Ok(opened)
}

pub(super) fn identities(layers: &[Opened]) -> Vec<FileIdentity> {
    layers.iter().map(|layer| layer.identity).collect()
}

//! Taking a layer out of the chain of a disk in use, after the layer below it took over what it held.
//!
//! ```text
//!  .. C, A, B, ..  ──>  .. C, B', ..      B' is B read anew: it holds A's sectors too
//! ```
//! Both chains read the same, so nobody waits: the map changes in one step, reads in flight end on
//! the files they began on, and those files are given back when the last one has ended. Bitmaps
//! that are being read are read again, as layers have other numbers.
//!
//! If C is the leaf of a disk that takes writes, its header on disk is rewritten before: first the
//! paths, then the sector with uuid and name, each durable before the next. A crash leaves A or B as
//! its parent, which read the same, so this may be done again from its beginning.

use super::Engine;
use super::layer::{Layer, LayerImage, LayerSpec};
use super::request::{Done, Error, ErrorKind, Ticket};
use super::reserve::image_error;
use super::state::Context;
use block::FileId;
use datapath::protocol::Access;
use std::collections::{HashSet, VecDeque};
use uuid::Uuid;
use vhd_rs::{ParentLink, Step};

/// What is to be relinked.
#[derive(Debug)]
pub struct Relink {
    /// The layer that goes.
    pub gone: Uuid,
    /// The layer below it, read anew.
    pub into: LayerSpec,
    /// How the leaf's header is to name it: exactly when the leaf stands on what goes and the disk
    /// takes writes.
    pub link: Option<ParentLink>,
}

/// A relink whose header is being written.
#[derive(Debug)]
pub(super) struct Relinking {
    ticket: Ticket,
    /// Number of the layer that goes.
    gone: usize,
    into: Box<Layer>,
    steps: VecDeque<Step>,
}

/// A file that is not of the chain any more, and the operations that may still name it.
#[derive(Debug)]
pub(super) struct Retired {
    file: FileId,
    operations: HashSet<u32>,
}

impl Engine {
    /// Takes a layer out; it finishes like a request.
    ///
    /// It fails with `Chain` when the layers are not such, `Busy` while a live operation or another
    /// relink is under way, `Unsupported` when the leaf's header cannot be rewritten in one sector,
    /// and with what the storage says. The disk is then as it was.
    pub fn relink(&mut self, ticket: Ticket, relink: Relink) {
        let Relink { gone, into, link } = relink;
        let begun = self.check_relink(gone, &into, link.is_some());
        let begun = begun.and_then(|gone| Ok((gone, Layer::new(into)?, self.link_steps(link)?)));
        match begun {
            Ok((gone, into, steps)) => {
                self.relinking = Some(Relinking {
                    ticket,
                    gone,
                    into: Box::new(into),
                    steps,
                });
                self.next_relink_step();
            }
            Err(error) => self.answer(ticket, Err(error)),
        }
    }

    /// A file of a layer that has left the chain and that no operation names any more, once.
    pub fn take_retired(&mut self) -> Option<FileId> {
        let over = self.retired.iter().position(|r| r.operations.is_empty())?;
        Some(self.retired.swap_remove(over).file)
    }

    /// Files of layers that have left the chain and are still read from.
    pub fn retiring(&self) -> impl Iterator<Item = FileId> + '_ {
        self.retired.iter().map(|retired| retired.file)
    }

    fn check_relink(&self, gone: Uuid, into: &LayerSpec, with_link: bool) -> Result<usize, Error> {
        if self.closed {
            return Err(Error::new(ErrorKind::Closed, "the disk is closed"));
        }
        if self.live.is_some() || self.relinking.is_some() {
            let text = "another live operation is under way";
            return Err(Error::new(ErrorKind::Busy, text));
        }
        let chain = |text: String| Err(Error::new(ErrorKind::Chain, text));
        let layers = &self.map.layers;
        let found = layers.iter().position(|layer| layer.uuid() == gone);
        let Some(number) = found.filter(|_| !gone.is_nil()) else {
            return chain(format!("the disk has no layer {gone}"));
        };
        let upper = layers.get(number);
        let lower = number.checked_sub(1).and_then(|lower| layers.get(lower));
        let (Some(upper), Some(lower)) = (upper, lower) else {
            return chain(format!("layer {gone} has nothing below it"));
        };
        if number + 1 == layers.len() {
            return chain(format!("layer {gone} is the leaf"));
        }
        let writes_child = number + 2 == layers.len() && self.config.access == Access::ReadWrite;
        if writes_child != with_link {
            let needed = if writes_child {
                "needs"
            } else {
                "has no use for"
            };
            return chain(format!("the child of {gone} {needed} a new link here"));
        }
        let (uuid, size_bytes) = match &into.image {
            LayerImage::Raw => (Uuid::nil(), into.file_bytes),
            LayerImage::Vhd(image) => (image.uuid(), image.virtual_bytes()),
        };
        if uuid != lower.uuid() {
            return chain(format!("below {gone} is {}, not {uuid}", lower.uuid()));
        }
        if lower.size_bytes() > upper.size_bytes() || size_bytes < upper.size_bytes() {
            let (needed, before) = (upper.size_bytes(), lower.size_bytes());
            return chain(format!(
                "{gone} has {needed} bytes, what takes its place {size_bytes}, before {before}"
            ));
        }
        Ok(number)
    }

    /// The steps that enter the new parent in the leaf's header.
    fn link_steps(&mut self, link: Option<ParentLink>) -> Result<VecDeque<Step>, Error> {
        let Some(link) = link else {
            return Ok(VecDeque::new());
        };
        if let Some(error) = self.poison_error() {
            return Err(error);
        }
        let Some(sparse) = self.map.leaf_mut().sparse_mut() else {
            let text = "the leaf has no parent";
            return Err(Error::new(ErrorKind::Chain, text));
        };
        let plan = sparse.image.relink_plan(&link);
        Ok(plan.map_err(|e| image_error(&e))?.steps.into())
    }

    fn next_relink_step(&mut self) {
        let Some(relinking) = &mut self.relinking else {
            return;
        };
        if let Some(step) = relinking.steps.pop_front() {
            let leaf = self.map.leaf().file;
            return self.emit_step(leaf, step, Context::Relink);
        }
        let Some(Relinking {
            ticket, gone, into, ..
        }) = self.relinking.take()
        else {
            return;
        };
        let operations: HashSet<u32> = self.contexts.indices().collect();
        for layer in self.map.merge(gone, *into) {
            let operations = operations.clone();
            self.retired.push(Retired {
                file: layer.file,
                operations,
            });
        }
        self.loading
            .values_mut()
            .for_each(super::load::Loading::spoil);
        self.answer(ticket, Ok(Done::Ok));
    }

    pub(super) fn relink_step_done(&mut self, result: Result<(), block::Error>) {
        let Err(error) = result else {
            return self.next_relink_step();
        };
        if error.verb == block::Verb::Fdatasync {
            self.poison(&error);
        }
        if let Some(relinking) = self.relinking.take() {
            self.answer(relinking.ticket, Err(error.into()));
        }
    }

    /// An operation has ended.
    pub(super) fn retire(&mut self, operation: u32) {
        for retired in &mut self.retired {
            retired.operations.remove(&operation);
        }
    }
}

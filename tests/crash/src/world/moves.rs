//! What the owner does with the copying machine: a disk that moves to another image or into the
//! parent of its leaf, and an image that is merged into its parent.
//!
//! ```text
//!  mirror ──> in sync ──> prepare ──> record ──> switch ──> collect     either is right from
//!                            └── both ──┘                                prepare to record
//!  merge ──> relink each child (its header, then the disks above) ──> collect
//!     └──────────── on record, redone after a crash ────────────┘
//! ```

use super::owner::{Act, Doing, To};
use super::{Merging, Moving, Node, Witness, World, files_of};
use crate::flaw::Flaw;
use block::{Action, Buffer, FileId, RamDisk};
use datapath::protocol::Format;
use std::collections::VecDeque;
use std::fmt;
use tapdisk::copy::Plan;
use tapdisk::engine::testing::rig::{dynamic, load, uuid};
use tapdisk::engine::{LayerImage, Relink, Scope};
use vhd_rs::{Access, ParentLink, Step, Timestamp};

/// How a child names the image numbered `parent`.
fn link_to(parent: u32) -> ParentLink {
    ParentLink {
        path: format!("{parent}.vhd"),
        uuid: uuid(parent),
        modified: Timestamp::from_unix_s(1_700_000_000),
    }
}

/// The operation on a file that a step is.
fn action_of(step: Step) -> Action {
    match step {
        Step::Write { offset, bytes } => {
            let data = Buffer::copy_of(&bytes).share();
            Action::Write { offset, data }
        }
        Step::Zero { offset, len } => {
            let data = Buffer::zeroed(len as usize).share();
            Action::Write { offset, data }
        }
        Step::SetSize { bytes } => Action::Truncate { size_bytes: bytes },
        Step::Flush => Action::Fdatasync,
    }
}

impl<W: Witness> World<W> {
    fn children(&self, of: u32) -> Vec<u32> {
        let all = self.nodes.iter();
        let children = all.filter(|(_, node)| node.parent == Some(of));
        children.map(|(number, _)| *number).collect()
    }

    fn is_kept(&self, image: u32) -> bool {
        self.kept.iter().any(|kept| kept.image == image)
    }

    /// Whether an image has no other child than this one and nobody reads it.
    fn is_only_for(&self, parent: u32, child: u32) -> bool {
        let careless = self.flaw == Some(Flaw::SharedParent);
        careless || (self.children(parent) == [child] && !self.is_kept(parent))
    }

    /// Whether nobody but this disk stands on the parent of its leaf.
    pub(super) fn has_parent_alone(&self, disk: u16) -> bool {
        let below = |leaf: u32| Some((leaf, self.nodes.get(&leaf)?.parent?));
        let link = self.leaf(disk).and_then(below);
        link.is_some_and(|(leaf, parent)| self.is_only_for(parent, leaf))
    }

    /// The highest image below a disk's leaf that can be merged into its parent: both are read by
    /// those above them only.
    pub(super) fn mergeable(&self, disk: u16) -> Option<u32> {
        let chain = &self.disks.get(&disk)?.chain;
        let is_free = |number: &u32| {
            let parent = self.nodes.get(number).and_then(|node| node.parent);
            !self.is_kept(*number) && parent.is_some_and(|of| self.is_only_for(of, *number))
        };
        chain.iter().skip(1).copied().find(is_free)
    }

    pub(super) fn act_moving(&mut self, act: Act) {
        match act {
            Act::Mirror { disk, to } => self.start_mirror(disk, to),
            Act::Prepare { disk } => self.prepare(disk),
            Act::Record { disk } => self.record(disk),
            Act::MoveOver { disk } => self.move_over(disk),
            Act::Merge { gone } => self.start_merge(gone),
            Act::Relink { gone } => self.start_relink(gone),
            Act::Rewrite { child, parent } => self.rewrite(child, parent),
            Act::RelinkDisk { disk, gone } => self.relink_disk(disk, gone),
            Act::Relinked { gone } => self.relinked(gone),
            other => panic!("{other:?} is done elsewhere"),
        }
    }

    pub(super) fn go_on_moving(&mut self, doing: Doing) -> Option<Doing> {
        match doing {
            Doing::Steps(file, mut steps) => match self.host.take_own() {
                None => return Some(Doing::Steps(file, steps)),
                Some(Err(e)) => self.gives_up(&e),
                Some(Ok(())) if self.next_step(file, &mut steps) => {
                    return Some(Doing::Steps(file, steps));
                }
                Some(Ok(())) => {}
            },
            Doing::Mirror(disk) => {
                let (mirror, _) = self.host.mirror_of(disk)?;
                let progress = mirror.progress();
                if let Some(why) = progress.failed {
                    return self.stop_moving(disk, &why);
                }
                return (!progress.in_sync).then_some(Doing::Mirror(disk));
            }
            Doing::MoveOver(disk) => {
                let (mirror, _) = self.host.mirror_of(disk)?;
                return match mirror.take_switched() {
                    None => Some(Doing::MoveOver(disk)),
                    Some(Err(e)) => self.stop_moving(disk, &e),
                    Some(Ok(())) => Some(Doing::End(disk)),
                };
            }
            Doing::End(disk) => {
                let (mirror, _) = self.host.mirror_of(disk)?;
                if !mirror.is_over() {
                    return Some(Doing::End(disk));
                }
                self.host.end_mirror(disk);
                self.moving = None;
            }
            Doing::Relink(tag, gone, ticket) => match self.host.take(ticket) {
                None => return Some(Doing::Relink(tag, gone, ticket)),
                Some(Err(e)) => self.gives_up(&e),
                Some(Ok(_)) => self.disk_relinked(tag, gone),
            },
            Doing::File | Doing::Live(..) => {}
        }
        None
    }

    /// Performs the next step of a plan, if there is one.
    fn next_step(&mut self, file: FileId, steps: &mut VecDeque<Step>) -> bool {
        let step = steps.pop_front();
        let more = step.is_some();
        if let Some(step) = step {
            self.host.own(file, action_of(step));
        }
        more
    }

    fn start_mirror(&mut self, tag: u16, to: To) {
        let chain = self.disks.get(&tag).map(|disk| disk.chain.clone());
        let chain = chain.unwrap_or_default();
        let (target, scope) = match to {
            To::Parent => (chain.get(1..).unwrap_or_default().to_vec(), Scope::Layer(0)),
            To::New => {
                self.images += 1;
                let image = dynamic(self.images, self.host.size_bytes(tag));
                let file = self.host.io_mut().add_file(image);
                self.nodes.insert(self.images, Node { file, parent: None });
                (vec![self.images], Scope::Chain)
            }
        };
        let plan = Plan {
            scope,
            ..Plan::default()
        };
        self.host.mirror(tag, &files_of(&self.nodes, &target), plan);
        self.moving = Some(Moving {
            from: chain,
            to: target,
        });
        self.doing = Some(Doing::Mirror(tag));
        if self.flaw == Some(Flaw::EarlyMove) {
            self.record(tag);
        }
    }

    /// Either is right from here on.
    fn prepare(&mut self, tag: u16) {
        let prepared = self.host.mirror_of(tag).map(|(mirror, _)| mirror.prepare());
        if let Some(Err(e)) = prepared {
            self.doing = self.stop_moving(tag, &e);
        } else if let (Some(moving), Some(disk)) = (&self.moving, self.disks.get_mut(&tag)) {
            disk.record.push(moving.to.clone());
        }
    }

    /// From here on only the target is.
    fn record(&mut self, tag: u16) {
        if let (Some(moving), Some(disk)) = (&self.moving, self.disks.get_mut(&tag)) {
            disk.record = vec![moving.to.clone()];
            disk.chain.clone_from(&moving.to);
        }
    }

    fn move_over(&mut self, tag: u16) {
        let verify = self.rng.one_in(2);
        let mirror = self.host.mirror_of(tag);
        let begun = mirror.map(|(mirror, engine)| mirror.switch(engine, verify));
        self.doing = match begun {
            Some(Err(e)) => self.stop_moving(tag, &e),
            _ => Some(Doing::MoveOver(tag)),
        };
    }

    /// The record is taken back, then the mirror is stopped.
    fn stop_moving(&mut self, tag: u16, why: &dyn fmt::Display) -> Option<Doing> {
        self.gives_up(why);
        if let (Some(moving), Some(disk)) = (&self.moving, self.disks.get_mut(&tag)) {
            disk.chain.clone_from(&moving.from);
            disk.record = vec![moving.from.clone()];
        }
        let (mirror, engine) = self.host.mirror_of(tag)?;
        mirror.stop(engine);
        self.acts.push_back(Act::Collect);
        Some(Doing::End(tag))
    }

    fn start_merge(&mut self, gone: u32) {
        let relinking = self.merging.is_some_and(|merging| merging.relinking);
        self.merging = Some(Merging { gone, relinking });
        let source = files_of(&self.nodes, &self.ancestry(gone));
        let plan = Plan {
            scope: Scope::Layer(0),
            ..Plan::default()
        };
        let target = source.get(1..).unwrap_or_default().to_vec();
        self.host.copy(&source, &target, plan);
    }

    /// The copy of the image on record has ended.
    pub(super) fn copied(&mut self, failed: Option<String>) {
        if let Some(why) = failed {
            self.gives_up(&why);
            self.merging = self.merging.filter(|merging| merging.relinking);
        } else if let Some(Merging { gone, .. }) = self.merging {
            self.acts.push_back(Act::Relink { gone });
        }
    }

    fn start_relink(&mut self, gone: u32) {
        let Some(node) = self.nodes.get(&gone).copied() else {
            return;
        };
        let Some(parent) = node.parent else { return };
        self.merging = Some(Merging {
            gone,
            relinking: true,
        });
        let leaves: Vec<u32> = self
            .disks
            .keys()
            .filter_map(|tag| self.leaf(*tag))
            .collect();
        let sealed = self
            .children(gone)
            .into_iter()
            .filter(|child| !leaves.contains(child));
        let rewrites = sealed.map(|child| Act::Rewrite { child, parent });
        let above = self
            .disks
            .iter()
            .filter(|(_, disk)| disk.chain.contains(&gone));
        let relinks = above.map(|(tag, _)| Act::RelinkDisk { disk: *tag, gone });
        let acts: Vec<Act> = rewrites.chain(relinks).collect();
        if self.flaw == Some(Flaw::EarlyCollect) {
            self.remove(node.file);
        }
        self.acts.extend(acts);
        self.acts.extend([Act::Relinked { gone }, Act::Collect]);
    }

    fn rewrite(&mut self, child: u32, parent: u32) {
        let Some(node) = self.nodes.get(&child) else {
            return;
        };
        let file = node.file;
        let layer = load(self.host.io(), (file, Format::Vhd), Access::ReadWrite);
        let LayerImage::Vhd(mut image) = layer.expect("it loads").image else {
            return;
        };
        let plan = image.reparent_plan(&link_to(parent)).expect("a plan");
        let mut steps = VecDeque::from(plan.steps);
        if self.next_step(file, &mut steps) {
            self.doing = Some(Doing::Steps(file, steps));
        }
    }

    fn relink_disk(&mut self, tag: u16, gone: u32) {
        let parent = self.nodes.get(&gone).and_then(|node| node.parent);
        let Some((number, node)) = parent.and_then(|p| Some((p, self.nodes.get(&p)?))) else {
            return;
        };
        let into = load(self.host.io(), (node.file, Format::Vhd), Access::ReadOnly);
        let chain = self.disks.get(&tag).map(|disk| disk.chain.as_slice());
        let stands_on_it = chain.and_then(|chain| chain.get(1)) == Some(&gone);
        let ticket = self.host.relink(
            tag,
            Relink {
                gone: uuid(gone),
                into: into.expect("it loads"),
                link: stands_on_it.then(|| link_to(number)),
            },
        );
        self.doing = Some(Doing::Relink(tag, gone, ticket));
    }

    fn relinked(&mut self, gone: u32) {
        let parent = self.nodes.get(&gone).and_then(|node| node.parent);
        for child in self.children(gone) {
            if let Some(node) = self.nodes.get_mut(&child) {
                node.parent = parent;
            }
        }
        self.merging = None;
    }

    fn disk_relinked(&mut self, tag: u16, gone: u32) {
        if let Some(disk) = self.disks.get_mut(&tag) {
            disk.chain.retain(|number| *number != gone);
            disk.record = vec![disk.chain.clone()];
        }
    }

    /// After a crash the headers tell who stands on whom.
    pub(super) fn find_parents(&mut self, left: &RamDisk) {
        for node in self.nodes.values_mut() {
            let layer = load(left, (node.file, Format::Vhd), Access::ReadOnly);
            if let Ok(LayerImage::Vhd(image)) = layer.map(|layer| layer.image) {
                let parent = image.parent_uuid().map(|parent| parent.as_u128());
                let parent = parent.and_then(|parent| parent.checked_sub(uuid(0).as_u128()));
                node.parent = parent.and_then(|parent| u32::try_from(parent).ok());
            }
        }
    }

    /// A merge that is on record begins anew.
    pub(super) fn merge_again(&mut self) {
        self.merging = self
            .merging
            .filter(|merging| self.nodes.contains_key(&merging.gone));
        if let Some(merging) = self.merging {
            let gone = merging.gone;
            self.acts.push_back(Act::Merge { gone });
        }
    }
}

//! The owner of the tree: what a daemon asks of disks, and the record it keeps.
//!
//! Each operation is a row of acts, one after the other, with a turn and so a crash behind each.

use super::cut::{Content, known_to, read_sectors};
use super::{Disk, Node, World, files_of};
use crate::flaw::Flaw;
use crate::op::Op;
use crate::world::Witness;
use block::{Action, Crash, FileId};
use datapath::protocol::Format;
use std::collections::{BTreeSet, VecDeque};
use tapdisk::engine::testing::model::{Covered, Model};
use tapdisk::engine::testing::rig::{BLOCK, child, load};
use tapdisk::engine::{LiveOp, Ticket};
use vhd_rs::Step;

/// Largest size a disk grows to; its metadata has room for so much.
const SIZE_MAX: u64 = super::BLOCKS * BLOCK * 4;

/// One thing the owner does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    /// Puts a new leaf on a disk; what was its leaf is a snapshot.
    Switch { disk: u16 },
    /// Opens a second disk on the image below another one's leaf.
    Second { of: u16 },
    /// Grows a disk.
    Resize { disk: u16 },
    /// Closes a disk's engine.
    Close { disk: u16 },
    /// Opens it again.
    Open { disk: u16 },
    /// The record knows the disk no more.
    Forget { disk: u16 },
    /// The file of a disk's leaf goes whatever the record says.
    RemoveLeaf { disk: u16 },
    /// The record knows the snapshot no more.
    Unkeep,
    /// The files of images that nothing needs go.
    Collect,
    /// The directory is made durable behind the last one that went.
    Removed { file: FileId },
    /// Begins to mirror a disk to where it moves.
    Mirror { disk: u16, to: To },
    /// The mirror answers no flush any more that is not durable on both.
    Prepare { disk: u16 },
    /// The record says that the disk is where it moves to.
    Record { disk: u16 },
    /// The mirror takes the disk's place.
    MoveOver { disk: u16 },
    /// What an image holds is copied into its parent; a relink follows.
    Merge { gone: u32 },
    /// Its children are put on its parent.
    Relink { gone: u32 },
    /// The header of a sealed child is rewritten.
    Rewrite { child: u32, parent: u32 },
    /// A disk in use takes the image out of its chain.
    RelinkDisk { disk: u16, gone: u32 },
    /// All of them are.
    Relinked { gone: u32 },
}

/// Where a disk moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// To an image of its own that holds everything.
    New,
    /// Into the parent of its leaf.
    Parent,
}

/// The act under way.
#[derive(Debug)]
pub(super) enum Doing {
    /// A live operation of a disk.
    Live(u16, Ticket, Live),
    /// An operation on a file.
    File,
    /// The steps of a plan on a file.
    Steps(FileId, VecDeque<Step>),
    /// A mirror, until it is in sync.
    Mirror(u16),
    /// A mirror that takes the disk's place.
    MoveOver(u16),
    /// A mirror on its way out.
    End(u16),
    /// A disk that takes this image out of its chain.
    Relink(u16, u32, Ticket),
}

/// What a live operation means once it is answered.
#[derive(Debug)]
pub(super) enum Live {
    Switch(Covered, Vec<u32>),
    Resize(Covered, u64),
    Close(Covered),
}

/// The acts of a disk that moves.
fn move_to(disk: u16, to: To) -> [Act; 5] {
    [
        Act::Mirror { disk, to },
        Act::Prepare { disk },
        Act::Record { disk },
        Act::MoveOver { disk },
        Act::Collect,
    ]
}

impl<W: Witness> World<W> {
    pub(super) fn is_owner_busy(&self) -> bool {
        let asked = !self.acts.is_empty() || !self.asked.is_empty();
        asked || self.doing.is_some() || self.host.is_copying()
    }

    /// Goes on with what the owner does, as far as it goes without a turn of the loop.
    pub(super) fn owner(&mut self) {
        if let Some(progress) = self.host.take_job() {
            self.copied(progress.failed);
        }
        if let Some(doing) = self.doing.take() {
            self.doing = self.go_on(doing);
            if self.doing.is_some() {
                return;
            }
        }
        if let Some(act) = self.acts.pop_front() {
            self.act(act);
        } else if let Some(op) = self.asked.pop_front() {
            self.plan_in_time(op);
        }
    }

    /// While an image is being copied into its parent disks take snapshots, clones, another size;
    /// what changes the same images waits until it has left the chains.
    fn plan_in_time(&mut self, op: Op) {
        let beside = matches!(op, Op::Snapshot | Op::Clone | Op::Resize | Op::Close);
        if self.merging.is_none() || (beside && self.host.is_copying()) {
            self.plan(op);
        } else if self.host.is_copying() {
            self.asked.push_front(op);
        }
        // Otherwise what is on record did not work, and comes before anything else.
    }

    /// Looks whether the act under way is over; what is still to be waited for.
    fn go_on(&mut self, doing: Doing) -> Option<Doing> {
        match doing {
            Doing::File => match self.host.take_own() {
                None => return Some(Doing::File),
                Some(Ok(())) => {}
                Some(Err(e)) => self.gives_up(&e),
            },
            Doing::Live(tag, ticket, live) => match self.host.take(ticket) {
                None => return Some(Doing::Live(tag, ticket, live)),
                Some(Ok(_)) => self.answered(tag, live),
                Some(Err(e)) => {
                    self.gives_up(&e);
                    self.live_failed(tag);
                }
            },
            moving => return self.go_on_moving(moving),
        }
        None
    }

    fn plan(&mut self, op: Op) {
        let tags: Vec<u16> = self.disks.keys().copied().collect();
        let Some(last) = tags.last().copied() else {
            return;
        };
        // By turns, beginning with the one that came last: it is also the one that is deleted.
        let disk = tags.get(self.history.len() % tags.len());
        let disk = disk.copied().unwrap_or(last);
        let is_single = self
            .disks
            .get(&disk)
            .is_some_and(|disk| disk.chain.len() == 1);
        let acts: &[Act] = match op {
            Op::Snapshot => &[Act::Switch { disk }],
            Op::Clone if is_single => &[Act::Switch { disk }, Act::Second { of: disk }],
            Op::Clone => &[Act::Second { of: disk }],
            Op::Delete if tags.len() > 1 && self.flaw == Some(Flaw::EarlyDelete) => &[
                Act::Close { disk: last },
                Act::RemoveLeaf { disk: last },
                Act::Forget { disk: last },
            ],
            Op::Delete if tags.len() > 1 => &[
                Act::Close { disk: last },
                Act::Forget { disk: last },
                Act::Collect,
            ],
            Op::Delete if !self.kept.is_empty() => &[Act::Unkeep, Act::Collect],
            Op::Resize => &[Act::Resize { disk }],
            Op::Close => &[Act::Close { disk }, Act::Open { disk }],
            Op::Mirror => &move_to(disk, To::New),
            Op::LeafCoalesce if self.has_parent_alone(disk) => &move_to(disk, To::Parent),
            Op::Coalesce => {
                let gone = self.mergeable(disk);
                return self.acts.extend(gone.map(|gone| Act::Merge { gone }));
            }
            _ => &[],
        };
        self.acts.extend(acts);
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Switch { disk } => self.switch(disk),
            Act::Second { of } => self.second(of),
            Act::Resize { disk } => self.resize(disk),
            Act::Close { disk } => self.close(disk),
            Act::Open { disk } => self.open(disk),
            Act::Forget { disk } => {
                self.disks.remove(&disk);
                self.host.drop_engine(disk);
            }
            Act::RemoveLeaf { disk } => {
                let node = self.leaf(disk).and_then(|leaf| self.nodes.get(&leaf));
                if let Some(file) = node.map(|node| node.file) {
                    self.remove(file);
                }
            }
            Act::Unkeep => {
                self.kept.pop();
            }
            Act::Collect => self.collect(),
            Act::Removed { file } => {
                self.host.own(file, Action::Fdatasync);
                self.doing = Some(Doing::File);
            }
            moving => self.act_moving(moving),
        }
    }

    fn live(&mut self, tag: u16, op: LiveOp, live: Live) {
        let ticket = self.host.start(tag, op);
        self.doing = Some(Doing::Live(tag, ticket, live));
    }

    fn new_image(&mut self, parent: u32, size_bytes: u64) -> u32 {
        self.images += 1;
        let image = child(self.images, Some(parent), size_bytes);
        let file = self.host.io_mut().add_file(image);
        let parent = Some(parent);
        self.nodes.insert(self.images, Node { file, parent });
        self.images
    }

    /// From here until the answer both chains are the disk: the new leaf is empty.
    fn switch(&mut self, tag: u16) {
        let Some(leaf) = self.leaf(tag) else { return };
        let image = self.new_image(leaf, self.host.size_bytes(tag));
        let (Some(node), Some(disk)) = (self.nodes.get(&image), self.disks.get_mut(&tag)) else {
            return;
        };
        let layer = (node.file, Format::Vhd);
        let spec = load(self.host.io(), layer, vhd_rs::Access::ReadWrite).expect("it loads");
        let covered = disk.model.flush_begins();
        let chain = [&[image], disk.chain.as_slice()].concat();
        disk.record.push(chain.clone());
        let op = LiveOp::SnapshotSwitch(Box::new(spec));
        self.live(tag, op, Live::Switch(covered, chain));
    }

    pub(super) fn leaf(&self, tag: u16) -> Option<u32> {
        self.disks.get(&tag)?.chain.first().copied()
    }

    fn resize(&mut self, tag: u16) {
        let Some(disk) = self.disks.get_mut(&tag) else {
            return;
        };
        let virtual_bytes = (disk.sizes.1 + BLOCK).min(SIZE_MAX);
        let covered = disk.model.flush_begins();
        disk.sizes.1 = virtual_bytes;
        if self.flaw == Some(Flaw::EarlyResize) {
            disk.sizes.0 = virtual_bytes;
        }
        let live = Live::Resize(covered, virtual_bytes);
        self.live(tag, LiveOp::Resize { virtual_bytes }, live);
    }

    fn close(&mut self, tag: u16) {
        let Some(disk) = self.disks.get_mut(&tag) else {
            return;
        };
        disk.leaving = true;
        let covered = disk.model.flush_begins();
        self.live(tag, LiveOp::Close, Live::Close(covered));
    }

    fn answered(&mut self, tag: u16, live: Live) {
        let Some(disk) = self.disks.get_mut(&tag) else {
            return;
        };
        match live {
            Live::Close(covered) => disk.model.flushed(&covered),
            Live::Resize(covered, size) => {
                disk.model.flushed(&covered);
                disk.sizes.0 = size;
            }
            Live::Switch(covered, chain) => {
                disk.model.flushed(&covered);
                let below = std::mem::replace(&mut disk.chain, chain);
                if self.flaw == Some(Flaw::LateRecord) {
                    disk.record = vec![below.clone()];
                } else {
                    disk.record = vec![disk.chain.clone()];
                }
                if let Some(image) = below.first().copied() {
                    let content = self.now(tag, &below);
                    self.kept.push(super::Kept { image, content });
                }
            }
        }
    }

    /// What a chain reads as now, where a disk's guest ever wrote.
    fn now(&self, tag: u16, chain: &[u32]) -> Content {
        let all = self.host.io().crash(&Crash::Subset(u64::MAX));
        let nothing = Model::default();
        let model = self.disks.get(&tag).map_or(&nothing, |disk| &disk.model);
        let content = read_sectors(&all, &files_of(&self.nodes, chain), &known_to(model));
        content.unwrap_or_else(|e| panic!("{self:?}: sealed chain: {e}"))
    }

    fn second(&mut self, of: u16) {
        let chain = self.disks.get(&of).map(|disk| disk.chain.clone());
        let from = usize::from(self.flaw != Some(Flaw::UnsealedClone));
        let below = chain
            .as_deref()
            .and_then(|chain| chain.get(from..))
            .unwrap_or_default();
        let Some(parent) = below.first().copied() else {
            return;
        };
        let content = self.now(of, below);
        let mut model = Model::default();
        for (sector, value) in &content.sectors {
            model.found(*sector, *value);
        }
        let image = self.new_image(parent, content.size_bytes);
        let tag = self.disks.keys().max().map_or(1, |tag| tag + 1);
        let chain = [&[image], below].concat();
        self.add_disk(tag, chain, model);
    }

    /// Images that no chain of the record and no snapshot stands on.
    fn orphans(&self) -> Vec<u32> {
        let chains = self.disks.values().flat_map(|disk: &Disk| &disk.record);
        let mut needed: BTreeSet<u32> = chains.flatten().copied().collect();
        let greedy = self.flaw == Some(Flaw::GreedyCollect);
        for kept in self.kept.iter().filter(|_| !greedy) {
            needed.extend(self.ancestry(kept.image));
        }
        self.nodes
            .keys()
            .copied()
            .filter(|number| !needed.contains(number))
            .collect()
    }

    /// An image and what it stands on.
    pub(super) fn ancestry(&self, image: u32) -> Vec<u32> {
        let parent = |number: &u32| self.nodes.get(number)?.parent;
        std::iter::successors(Some(image), parent).collect()
    }

    /// Removes one file, and comes again for the next. A file that went may come back until its
    /// directory is durable, which here is the file's own barrier.
    fn collect(&mut self) {
        let Some(number) = self.orphans().last().copied() else {
            return;
        };
        self.acts.push_front(Act::Collect);
        // A descriptor that is open keeps a file's content; here nothing does.
        let file = self.nodes.get(&number).map(|node| node.file);
        if let Some(file) = file.filter(|file| !self.host.is_read(*file)) {
            self.nodes.remove(&number);
            self.remove(file);
        }
    }

    pub(super) fn remove(&mut self, file: FileId) {
        self.host.own(file, Action::Truncate { size_bytes: 0 });
        self.doing = Some(Doing::File);
        self.acts.push_front(Act::Removed { file });
    }

    /// What a start does about images that nothing names.
    pub(super) fn drop_orphans(&mut self) {
        for number in self.orphans() {
            self.nodes.remove(&number);
        }
    }
}

//! Merging layers on the [`World`](crate::world::World): what a data path does for it, and what
//! must never happen meanwhile.

use crate::world::{Bytes, Outside, Place, State};
use datapath::protocol::ParentRef;
use datapath::{Access, Error, ErrorKind};
use units::DpId;
use uuid::Uuid;

/// A disk that writes to two chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    /// Leaf first.
    pub(crate) below: Vec<Place>,
    in_sync: bool,
    prepared: bool,
}

impl State {
    /// The second layer takes over what the first holds: `all`, or only the half that a death
    /// leaves.
    fn take_over(&mut self, upper: &Place, lower: &Place, all: bool) -> Result<(), Error> {
        let Some(Bytes::Image(from)) = self.containers.get(upper).cloned() else {
            return Err(Error::new(ErrorKind::Io, format!("{upper:?} is no image")));
        };
        let count = if all {
            from.data.len()
        } else {
            from.data.len().div_ceil(2)
        };
        match self.containers.get_mut(lower) {
            Some(Bytes::Image(into)) => {
                into.virtual_bytes = into.virtual_bytes.max(from.virtual_bytes);
                into.data.extend(from.data.into_iter().take(count));
                Ok(())
            }
            _ => Err(Error::new(ErrorKind::Io, format!("{lower:?} is no image"))),
        }
    }

    /// Checks that only layers nobody else writes or stands on are written as lower ones.
    fn check_lower(&mut self, chain: &[Place]) {
        let [upper, lower, ..] = chain else {
            return self.violation("a merge of less than two layers");
        };
        for place in chain {
            for (disk, writes) in self.users(place) {
                if writes && place != upper {
                    self.violation(format!("{place:?} is merged while {disk} writes it"));
                }
            }
        }
        let (sr, name) = lower;
        let others = self.containers.iter().filter(|(place, bytes)| {
            let Bytes::Image(image) = bytes else {
                return false;
            };
            let stands = image
                .parent
                .as_ref()
                .is_some_and(|(parent, _)| parent == name.as_str());
            place.0 == *sr && *place != upper && stands
        });
        let others: Vec<_> = others.map(|(place, _)| place.clone()).collect();
        if !others.is_empty() {
            self.violation(format!("{lower:?} is merged into under {others:?}"));
        }
    }

    /// Whoever opens a chain while two of its layers are merged reads the lower through the upper.
    pub(crate) fn check_opened_beside_merges(
        &mut self,
        disk: &DpId,
        chain: &[Place],
        depth: usize,
        writes: bool,
    ) {
        let Some(at) = chain.get(depth) else { return };
        let above = depth.checked_sub(1).and_then(|above| chain.get(above));
        let merges: Vec<_> = self.merges.values().cloned().collect();
        for merge in merges.iter().filter(|merge| merge.contains(at)) {
            let bare = merge.get(1) == Some(at) && above != merge.first();
            if writes || bare {
                self.violation(format!("{disk} opens {at:?}, which is being merged"));
            }
        }
    }

    pub(crate) fn merge_users(&self, place: &Place) -> Vec<(DpId, bool)> {
        let name = |name: &str| name.parse().expect("a datapath id");
        let merges = self.merges.iter();
        let merges = merges
            .filter(|(_, chain)| chain.contains(place))
            .map(|(process, chain)| (name(process), chain.get(1) == Some(place)));
        let mirrors = self.mirrors.iter();
        let mirrors = mirrors
            .filter(|(_, mirror)| mirror.below.first() == Some(place))
            .map(|(disk, _)| (disk.clone(), true));
        merges.chain(mirrors).collect()
    }
}

impl Outside {
    pub(crate) async fn do_merge(&self, process: &str, chain: Vec<Place>) -> Result<(), Error> {
        let [upper, lower, ..] = chain.as_slice() else {
            return Err(Error::new(ErrorKind::Chain, "one layer alone"));
        };
        self.data_path_call(|outside| {
            outside.check_chain(&chain)?;
            let mut state = outside.world.state.lock();
            state.check_lower(&chain);
            state.merges.insert(process.to_owned(), chain.clone());
            state.take_over(upper, lower, false)
        })
        .await?;
        self.while_copies_wait().await;
        self.data_path_call(|outside| {
            let mut state = outside.world.state.lock();
            if state.merges.remove(process).is_none() {
                return Err(Error::new(ErrorKind::NotFound, "the copy was stopped"));
            }
            state.take_over(upper, lower, true)
        })
        .await
    }

    async fn while_copies_wait(&self) {
        while self.world.state.lock().copies_wait {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn do_mirror_start(
        &self,
        process: &str,
        disk: &DpId,
        below: Vec<Place>,
    ) -> Result<(), Error> {
        self.data_path_call(|outside| {
            let open = outside.open_disk(process, disk)?;
            if open.access != Access::ReadWrite || open.chain.get(1..) != Some(&below) {
                return Err(Error::new(ErrorKind::Chain, "not what the leaf stands on"));
            }
            let mut state = outside.world.state.lock();
            state.check_lower(&open.chain);
            let mirror = Mirror {
                below,
                in_sync: false,
                prepared: false,
            };
            state.mirrors.insert(disk.clone(), mirror);
            Ok(())
        })
        .await
    }

    pub(crate) async fn do_mirror_wait(&self, process: &str, disk: &DpId) -> Result<(), Error> {
        for all in [false, true] {
            self.data_path_call(|outside| {
                let upper = outside.open_disk(process, disk)?.chain[0].clone();
                let mut state = outside.world.state.lock();
                let Some(mirror) = state.mirrors.get_mut(disk) else {
                    return Err(Error::new(ErrorKind::NotFound, "the mirror was stopped"));
                };
                mirror.in_sync = all;
                let lower = mirror.below[0].clone();
                state.take_over(&upper, &lower, all)
            })
            .await?;
            self.while_copies_wait().await;
        }
        Ok(())
    }

    pub(crate) async fn do_mirror_prepare(&self, process: &str, disk: &DpId) -> Result<(), Error> {
        self.data_path_call(|outside| {
            outside.open_disk(process, disk)?;
            match outside.world.state.lock().mirrors.get_mut(disk) {
                Some(mirror) if mirror.in_sync => mirror.prepared = true,
                _ => return Err(Error::new(ErrorKind::Busy, "not in sync")),
            }
            Ok(())
        })
        .await
    }

    pub(crate) async fn do_mirror_switch(&self, process: &str, disk: &DpId) -> Result<(), Error> {
        self.data_path_call(|outside| {
            let mut open = outside.open_disk(process, disk)?;
            let mut state = outside.world.state.lock();
            match state.mirrors.remove(disk) {
                Some(Mirror {
                    below,
                    prepared: true,
                    ..
                }) => open.chain = below,
                Some(mirror) => {
                    state.mirrors.insert(disk.clone(), mirror);
                    return Err(Error::new(ErrorKind::Busy, "not in sync"));
                }
                // Switched before: the answer was lost.
                None => return Ok(()),
            }
            let disks = state.processes.entry(process.to_owned()).or_default();
            disks.insert(disk.clone(), open);
            Ok(())
        })
        .await
    }

    pub(crate) async fn do_relink(
        &self,
        process: &str,
        disk: &DpId,
        gone: Uuid,
        into: Place,
        parent: Option<ParentRef>,
    ) -> Result<(), Error> {
        self.data_path_call(|outside| {
            let mut open = outside.open_disk(process, disk)?;
            let uuids: Vec<Uuid> = open
                .chain
                .iter()
                .map(|at| outside.image(at).map(|image| image.uuid))
                .collect::<Result<_, _>>()?;
            let Some(at) = uuids.iter().position(|uuid| *uuid == gone) else {
                return Ok(());
            };
            let mut state = outside.world.state.lock();
            let before = state.flatten(&open.chain);
            let own = at == 1 && open.access == Access::ReadWrite;
            if open.chain.get(at + 1) != Some(&into) || own != parent.is_some() {
                state.violation(format!("{disk} is linked to {into:?} as {parent:?}"));
            }
            open.chain.remove(at);
            if state.flatten(&open.chain) != before {
                state.violation(format!("{disk} reads something else when linked anew"));
            }
            if let Some(parent) = parent {
                state.set_parent(&open.chain[0], &parent);
            }
            let disks = state.processes.entry(process.to_owned()).or_default();
            disks.insert(disk.clone(), open);
            Ok(())
        })
        .await
    }

    pub(crate) async fn do_reparent(&self, at: Place, parent: ParentRef) -> Result<(), Error> {
        self.data_path_call(|outside| {
            let mut state = outside.world.state.lock();
            if state.users(&at).iter().any(|(_, writes)| *writes) {
                state.violation(format!("the parent of {at:?} is changed under its writer"));
            }
            state.set_parent(&at, &parent);
            Ok(())
        })
        .await
    }
}

impl State {
    fn set_parent(&mut self, at: &Place, parent: &ParentRef) {
        match self.containers.get_mut(at) {
            Some(Bytes::Image(image)) => {
                image.parent = Some((parent.name.clone(), parent.uuid));
            }
            other => {
                let what = format!("{at:?} holds {other:?} and gets a parent");
                self.violation(what);
            }
        }
    }
}

//! The simulated outside: containers with model images in them, processes with disks, and the
//! point at which everything stops. It checks what the real parts could only suffer from: writing
//! what another has open, removing what is used, a child on the wrong parent.

use crate::merging::Mirror;
use database::{Database, Schema};
use datapath::{Access, Extent};
use parking_lot::Mutex;
use plugin::{Location, SrHandle};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use storage::{
    CallContext, DataPaths, MetaFiles, NewVdi, Plugins, Result, StorageConfig, StorageManager,
};
use tokio::sync::watch;
use units::{ContainerId, DpId, RequestId, SrUuid, VdiUuid};
use uuid::Uuid;

/// What a disk holds: block number to what was written there.
pub(crate) type Content = BTreeMap<u64, u64>;

/// A layer as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) uuid: Uuid,
    pub(crate) parent: Option<(String, Uuid)>,
    pub(crate) virtual_bytes: u64,
    pub(crate) data: Content,
}

/// What a container holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bytes {
    /// Nothing yet, or the metadata: what was written, by where it was written to.
    Plain(BTreeMap<u64, Vec<u8>>),
    Image(Image),
}

/// A container's address.
pub(crate) type Place = (SrUuid, ContainerId);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpenDisk {
    /// Leaf first.
    pub(crate) chain: Vec<Place>,
    pub(crate) access: Access,
}

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The daemon dies there.
    Crash,
    /// The call fails there, which is before or after its effect.
    Error,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Points passed; each call has one before and one after its effect.
    points: usize,
    faults: BTreeMap<usize, Fault>,
    life: usize,
    pub(crate) attached: BTreeMap<SrUuid, bool>,
    pub(crate) containers: BTreeMap<Place, Bytes>,
    pub(crate) processes: BTreeMap<String, BTreeMap<DpId, OpenDisk>>,
    pub(crate) hung: Option<SrUuid>,
    pub(crate) refuses_snapshots: bool,
    /// New leaves are taken after the caller has given up waiting, which is when the test says so.
    pub(crate) late_snapshots: bool,
    pub(crate) on_the_way: Vec<(String, DpId, Place)>,
    /// Merges under way: process to chain.
    pub(crate) merges: BTreeMap<String, Vec<Place>>,
    pub(crate) mirrors: BTreeMap<DpId, Mirror>,
    /// Copies stop after their first block until this is taken back.
    pub(crate) copies_wait: bool,
    /// Whether SRs set capacity aside, and what each container of such an SR has.
    pub(crate) reserved: bool,
    pub(crate) capacities: BTreeMap<Place, u64>,
    violations: Vec<String>,
}

/// The outside; survives the daemon.
pub(crate) struct World {
    pub(crate) state: Mutex<State>,
    crashed: watch::Sender<usize>,
    database: Database,
    _dir: tempfile::TempDir,
}

/// The outside as one life of the daemon sees it.
#[derive(Clone)]
pub(crate) struct Outside {
    pub(crate) world: Arc<World>,
    life: usize,
}

impl World {
    pub(crate) fn new() -> Arc<Self> {
        // Memory when there is some: a thousand worlds commit tens of thousands of records.
        let shm = PathBuf::from("/dev/shm");
        let dir = if shm.is_dir() {
            tempfile::tempdir_in(shm)
        } else {
            tempfile::tempdir()
        };
        let dir = dir.expect("a temporary directory");
        let schema = Schema {
            version: 1,
            classes: Vec::new(),
        };
        let database = Database::open(dir.path().join("db"), schema).expect("a new database");
        Arc::new(Self {
            state: Mutex::default(),
            crashed: watch::Sender::new(0),
            database,
            _dir: dir,
        })
    }

    /// Starts a daemon; whatever an earlier one still does never comes to an end.
    pub(crate) async fn start(self: &Arc<Self>) -> Result<StorageManager> {
        self.start_in_boot("boot-1").await
    }

    pub(crate) async fn start_in_boot(self: &Arc<Self>, boot: &str) -> Result<StorageManager> {
        let life = {
            let mut state = self.state.lock();
            state.life += 1;
            state.life
        };
        let outside = Arc::new(Outside {
            world: Arc::clone(self),
            life,
        });
        let plugins: Arc<dyn Plugins> = outside.clone();
        let data_paths: Arc<dyn DataPaths> = outside.clone();
        let files: Arc<dyn MetaFiles> = outside;
        let config = StorageConfig {
            boot_id: boot.to_owned(),
        };
        StorageManager::open_with(config, &self.database, plugins, data_paths, files).await
    }

    /// Sets faults at points counted from now; forgets earlier ones.
    pub(crate) fn arm(&self, faults: impl IntoIterator<Item = (usize, Fault)>) {
        let mut state = self.state.lock();
        state.points = 0;
        state.faults = faults.into_iter().collect();
    }

    pub(crate) fn points(&self) -> usize {
        self.state.lock().points
    }

    /// Waits until the daemon dies.
    pub(crate) async fn crashed(&self) {
        let life = self.state.lock().life;
        let mut crashed = self.crashed.subscribe();
        let _ = crashed.wait_for(|dead| *dead >= life).await;
    }

    pub(crate) fn journal_records(&self) -> usize {
        let journal = self.database.bucket::<serde_json::Value>("storage-journal");
        journal.all().expect("the journal").len()
    }

    pub(crate) fn assert_no_violations(&self) {
        assert_eq!(self.state.lock().violations, Vec::<String>::new());
    }

    /// A guest writes through whatever process has its disk.
    pub(crate) fn guest_write(&self, vdi: VdiUuid, block: u64, value: u64) -> bool {
        let mut state = self.state.lock();
        let Some(disk) = state.disk(vdi) else {
            return false;
        };
        assert_eq!(
            disk.access,
            Access::ReadWrite,
            "a guest writes to a read-only disk"
        );
        let name: DpId = vdi.to_string().parse().expect("a datapath id");
        let mirror = state
            .mirrors
            .get(&name)
            .map(|mirror| mirror.below[0].clone());
        for leaf in [disk.chain[0].clone()].into_iter().chain(mirror) {
            match state.containers.get_mut(&leaf) {
                Some(Bytes::Image(image)) => image.data.insert(block, value),
                other => panic!("a guest writes to {other:?}"),
            };
        }
        true
    }

    /// The data path gets to what it was asked for and did not answer.
    pub(crate) fn deliver(&self) {
        let mut state = self.state.lock();
        for (process, disk, leaf) in std::mem::take(&mut state.on_the_way) {
            assert!(
                state.containers.contains_key(&leaf),
                "the new leaf was removed under way"
            );
            let disks = state.processes.get_mut(&process).expect("the process");
            let chain = &mut disks.get_mut(&disk).expect("its disk").chain;
            if chain.first() != Some(&leaf) {
                chain.insert(0, leaf);
            }
        }
    }

    /// What a guest reads through whatever process has its disk.
    pub(crate) fn guest_read(&self, vdi: VdiUuid) -> Option<Content> {
        let state = self.state.lock();
        let chain = state.disk(vdi)?.chain;
        Some(state.flatten(&chain))
    }

    /// What a leaf and everything below it hold, by the parents the images themselves name.
    pub(crate) fn content(&self, sr: SrUuid, leaf: &ContainerId) -> Content {
        let state = self.state.lock();
        let mut chain = Vec::new();
        let mut next = Some((sr, leaf.clone()));
        while let Some(place) = next {
            let Some(Bytes::Image(image)) = state.containers.get(&place) else {
                panic!("{place:?} holds no image");
            };
            next = image.parent.as_ref().map(|(name, uuid)| {
                let below = (sr, name.parse().expect("a container id"));
                match state.containers.get(&below) {
                    Some(Bytes::Image(parent)) => assert_eq!(parent.uuid, *uuid),
                    other => panic!("{place:?} stands on {other:?}"),
                }
                below
            });
            chain.push(place);
        }
        state.flatten(&chain)
    }

    pub(crate) fn containers(&self, sr: SrUuid) -> Vec<ContainerId> {
        let state = self.state.lock();
        state
            .containers
            .keys()
            .filter(|(s, _)| *s == sr)
            .map(|(_, id)| id.clone())
            .collect()
    }
}

impl State {
    pub(crate) fn extent(&self) -> Extent {
        if self.reserved {
            Extent::Reserved
        } else {
            Extent::Grows
        }
    }

    pub(crate) fn violation(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    fn disk(&self, vdi: VdiUuid) -> Option<OpenDisk> {
        let name = vdi.to_string();
        let mut all = self.processes.values().flat_map(BTreeMap::iter);
        all.find(|(disk, _)| disk.as_str() == name)
            .map(|(_, open)| open.clone())
    }

    pub(crate) fn flatten(&self, chain: &[Place]) -> Content {
        let mut content = Content::new();
        for place in chain.iter().rev() {
            match self.containers.get(place) {
                Some(Bytes::Image(image)) => content.extend(image.data.clone()),
                other => panic!("{place:?} holds {other:?}"),
            }
        }
        content
    }

    /// Everything that has this container in its chain, with whether it writes it.
    pub(crate) fn users(&self, place: &Place) -> Vec<(DpId, bool)> {
        let mut users = self.disk_users(place);
        users.extend(self.merge_users(place));
        users
    }

    /// Every disk that has this container in its chain, with whether it writes it.
    pub(crate) fn disk_users(&self, place: &Place) -> Vec<(DpId, bool)> {
        let disks = self.processes.values().flat_map(BTreeMap::iter);
        disks
            .filter(|(_, open)| open.chain.contains(place))
            .map(|(disk, open)| {
                let writes = open.chain.first() == Some(place) && open.access == Access::ReadWrite;
                (disk.clone(), writes)
            })
            .collect()
    }
}

impl Outside {
    /// Passes a point. Says whether the call fails here; never returns when the daemon dies here
    /// or has died.
    pub(crate) async fn point(&self) -> bool {
        let fault = {
            let mut state = self.world.state.lock();
            if state.life == self.life && *self.world.crashed.borrow() < self.life {
                let point = state.points;
                state.points += 1;
                state.faults.get(&point).copied()
            } else {
                Some(Fault::Crash)
            }
        };
        match fault {
            None => {
                tokio::task::yield_now().await;
                false
            }
            Some(Fault::Error) => true,
            Some(Fault::Crash) => {
                self.world.crashed.send_if_modified(|dead| {
                    let newer = *dead < self.life;
                    *dead = (*dead).max(self.life);
                    newer
                });
                std::future::pending().await
            }
        }
    }
}

/// An SR that is created and attached, and a manager that runs.
pub(crate) struct Host {
    pub(crate) world: Arc<World>,
    pub(crate) manager: StorageManager,
    pub(crate) sr: SrUuid,
}

impl Host {
    pub(crate) async fn new() -> Self {
        let world = World::new();
        let manager = world.start().await.expect("a first start");
        let sr = SrUuid::random();
        make_sr(&manager, sr).await;
        Self { world, manager, sr }
    }

    /// The daemon dies and starts again.
    pub(crate) async fn restart(&mut self) {
        self.manager = self.world.start().await.expect("a restart");
    }

    pub(crate) async fn create(&self, blocks: &[(u64, u64)]) -> VdiUuid {
        let new = NewVdi {
            virtual_bytes: 64 << 20,
            ..NewVdi::default()
        };
        let info = self
            .manager
            .vdi_create(&ctx(), self.sr, new)
            .await
            .expect("a new VDI");
        let mut state = self.world.state.lock();
        match state.containers.get_mut(&(self.sr, info.leaf)) {
            Some(Bytes::Image(image)) => image.data.extend(blocks.iter().copied()),
            other => panic!("a new VDI holds {other:?}"),
        }
        info.vdi
    }

    /// Attaches and activates for a guest.
    pub(crate) async fn plug(&self, vdi: VdiUuid, dp: &str, vm: &str, access: Access) {
        let dp = id(dp);
        let attached = self
            .manager
            .attach(&ctx(), &dp, self.sr, vdi, vm, access)
            .await;
        attached.expect("attach");
        self.manager
            .activate(&ctx(), &dp, self.sr, vdi)
            .await
            .expect("activate");
    }

    pub(crate) async fn content(&self, vdi: VdiUuid) -> Content {
        let info = self
            .manager
            .vdi_stat(&ctx(), self.sr, vdi)
            .await
            .expect("a VDI");
        self.world.content(self.sr, &info.leaf)
    }
}

pub(crate) async fn make_sr(manager: &StorageManager, sr: SrUuid) {
    let config = BTreeMap::from([("location".to_owned(), sr.to_string())]);
    let config = manager
        .sr_create(&ctx(), sr, "sim", &config, "an SR", "")
        .await;
    let config = config.expect("a new SR");
    manager
        .sr_attach(&ctx(), sr, "sim", &config)
        .await
        .expect("an SR to attach");
}

pub(crate) fn ctx() -> CallContext {
    CallContext::new(RequestId::random())
}

pub(crate) fn id(dp: &str) -> DpId {
    dp.parse().expect("a datapath id")
}

pub(crate) fn place(at: &Location) -> Place {
    let (Location::File(path) | Location::BlockDevice(path)) = at;
    let mut parts = path
        .iter()
        .rev()
        .map(|part| part.to_str().expect("a plain path"));
    let container = parts
        .next()
        .and_then(|part| part.parse().ok())
        .expect("a container");
    let sr = parts
        .next()
        .and_then(|part| part.parse().ok())
        .expect("an SR");
    (sr, container)
}

pub(crate) fn handle_sr(handle: &SrHandle) -> SrUuid {
    handle
        .0
        .strip_prefix("handle-")
        .and_then(|sr| sr.parse().ok())
        .expect("a handle")
}

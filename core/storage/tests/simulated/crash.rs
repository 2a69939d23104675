//! Every operation, with the daemon dying at every point of it, and again at every point of the
//! recovery; and with every call failing once, before and after its effect. Whatever happens:
//!
//! * each VDI holds what it held, or what an acknowledged operation made of it, all or nothing;
//! * a guest that goes on writing writes to its VDI and to no snapshot;
//! * no container is leaked, none that is needed is gone, the journal is empty;
//! * recovering once more changes nothing.

use crate::world::{Bytes, Content, Fault, Host, ctx, id, make_sr};
use datapath::Access;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use storage::{DpState, MergeRules, NewName, NewVdi, Result, VdiInfo, Watch};
use units::{SrUuid, VdiUuid};

/// What is done when the world stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Create,
    Snapshot {
        live: Live,
    },
    /// The data path takes no new leaf, now or later.
    SnapshotRefused,
    SnapshotOfSnapshot,
    Clone {
        live: Live,
    },
    CloneOfSnapshot,
    Destroy,
    DestroySnapshot,
    Resize {
        live: Live,
    },
    Revert,
    Copy,
    Adopt,
    Activate,
    Upgrade,
    Downgrade,
    DpDestroy,
    SrDetach,
    SrDestroy,
    /// A layer with two children goes into the one below it.
    MergeInner {
        live: Live,
    },
    /// A leaf goes into its parent.
    MergeLeaf {
        live: Live,
    },
}

/// How the VDI is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Live {
    No,
    Reads,
    Writes,
}

const OPS: [Op; 29] = [
    Op::Create,
    Op::Snapshot { live: Live::No },
    Op::Snapshot { live: Live::Reads },
    Op::Snapshot { live: Live::Writes },
    Op::SnapshotRefused,
    Op::SnapshotOfSnapshot,
    Op::Clone { live: Live::No },
    Op::Clone { live: Live::Reads },
    Op::Clone { live: Live::Writes },
    Op::CloneOfSnapshot,
    Op::Destroy,
    Op::DestroySnapshot,
    Op::Resize { live: Live::No },
    Op::Resize { live: Live::Writes },
    Op::Revert,
    Op::Copy,
    Op::Adopt,
    Op::Activate,
    Op::Upgrade,
    Op::Downgrade,
    Op::DpDestroy,
    Op::SrDetach,
    Op::SrDestroy,
    Op::MergeInner { live: Live::No },
    Op::MergeInner { live: Live::Reads },
    Op::MergeInner { live: Live::Writes },
    Op::MergeLeaf { live: Live::No },
    Op::MergeLeaf { live: Live::Reads },
    Op::MergeLeaf { live: Live::Writes },
];

/// The world before the operation: A with a snapshot S and a newer state, a bystander, and another
/// SR where the operation needs one.
struct Scene {
    op: Op,
    host: Host,
    a: VdiUuid,
    s: VdiUuid,
    other: Option<SrUuid>,
    before: BTreeMap<VdiUuid, (Content, u64)>,
}

const GROWN_BYTES: u64 = 128 << 20;

impl Host {
    /// Leaves layers that only history needed; returns the VDIs made for it.
    async fn leave_layers(&self, op: Op, a: VdiUuid, s: VdiUuid) -> Option<VdiUuid> {
        let (manager, sr) = (&self.manager, self.sr);
        let mut clone = None;
        if matches!(op, Op::MergeInner { .. }) {
            let second = manager
                .vdi_snapshot(&ctx(), sr, a, NewName::default())
                .await;
            let second = second.expect("a second snapshot").vdi;
            let made = manager
                .vdi_clone(&ctx(), sr, second, NewName::default())
                .await;
            clone = Some(made.expect("a clone").vdi);
            manager
                .vdi_destroy(&ctx(), sr, second)
                .await
                .expect("destroyed");
        }
        manager.vdi_destroy(&ctx(), sr, s).await.expect("destroyed");
        clone
    }
}

impl Scene {
    async fn new(op: Op) -> Self {
        let host = Host::new().await;
        let other = matches!(op, Op::Copy | Op::SrDestroy).then(SrUuid::random);
        if let Some(other) = other {
            make_sr(&host.manager, other).await;
        }
        let a = host.create(&[(0, 1), (1, 1)]).await;
        let b = host.create(&[(7, 7)]).await;
        let s = host
            .manager
            .vdi_snapshot(&ctx(), host.sr, a, NewName::default())
            .await;
        let s = s.expect("a snapshot").vdi;
        host.plug(a, "vbd/1", "vm-1", Access::ReadWrite).await;
        assert!(host.world.guest_write(a, 1, 2) && host.world.guest_write(a, 2, 2));
        let access = match op {
            Op::Snapshot { live }
            | Op::Clone { live }
            | Op::Resize { live }
            | Op::MergeInner { live }
            | Op::MergeLeaf { live } => match live {
                Live::No => None,
                Live::Reads => Some(Access::ReadOnly),
                Live::Writes => Some(Access::ReadWrite),
            },
            Op::Upgrade => Some(Access::ReadOnly),
            Op::Downgrade | Op::DpDestroy | Op::SnapshotRefused => Some(Access::ReadWrite),
            _ => None,
        };
        if access != Some(Access::ReadWrite) {
            host.manager
                .dp_destroy(&ctx(), &id("vbd/1"))
                .await
                .expect("unplugged");
        }
        if access == Some(Access::ReadOnly) {
            host.plug(a, "vbd/1", "vm-1", Access::ReadOnly).await;
        }
        if op == Op::Downgrade {
            host.plug(a, "reader", "dom0-1", Access::ReadOnly).await;
        }
        let mut vdis = vec![a, s, b];
        if matches!(op, Op::MergeInner { .. } | Op::MergeLeaf { .. }) {
            vdis.extend(host.leave_layers(op, a, s).await);
            vdis.retain(|vdi| *vdi != s);
        }
        let mut before = BTreeMap::new();
        for vdi in vdis {
            let info = host
                .manager
                .vdi_stat(&ctx(), host.sr, vdi)
                .await
                .expect("a VDI");
            before.insert(vdi, (host.content(vdi).await, info.virtual_bytes));
        }
        Self {
            op,
            host,
            a,
            s,
            other,
            before,
        }
    }

    /// Carries the operation out.
    async fn run(&self, op: Op) -> Result<()> {
        let (manager, sr) = (&self.host.manager, self.host.sr);
        let name = NewName::default;
        match op {
            Op::Create => {
                let new = NewVdi {
                    virtual_bytes: 1 << 30,
                    ..NewVdi::default()
                };
                manager.vdi_create(&ctx(), sr, new).await.map(drop)
            }
            Op::Snapshot { .. } => manager
                .vdi_snapshot(&ctx(), sr, self.a, name())
                .await
                .map(drop),
            Op::SnapshotRefused => {
                self.host.world.state.lock().refuses_snapshots = true;
                let made = manager.vdi_snapshot(&ctx(), sr, self.a, name()).await;
                assert!(made.is_err(), "a snapshot without a new leaf");
                Ok(())
            }
            Op::SnapshotOfSnapshot => manager
                .vdi_snapshot(&ctx(), sr, self.s, name())
                .await
                .map(drop),
            Op::Clone { .. } => manager
                .vdi_clone(&ctx(), sr, self.a, name())
                .await
                .map(drop),
            Op::CloneOfSnapshot => manager
                .vdi_clone(&ctx(), sr, self.s, name())
                .await
                .map(drop),
            Op::Destroy => manager.vdi_destroy(&ctx(), sr, self.a).await,
            Op::DestroySnapshot => manager.vdi_destroy(&ctx(), sr, self.s).await,
            Op::Resize { .. } => manager
                .vdi_resize(&ctx(), sr, self.a, GROWN_BYTES)
                .await
                .map(drop),
            Op::Revert => manager
                .vdi_revert(&ctx(), sr, self.a, self.s)
                .await
                .map(drop),
            Op::Copy => {
                let (to, watch) = (self.other.expect("a target"), Watch::default());
                manager
                    .vdi_copy(&ctx(), sr, self.a, to, name(), watch)
                    .await
                    .map(drop)
            }
            Op::Adopt => self.import().await,
            Op::Activate | Op::Upgrade => {
                let (dp, access) = (id("writer"), Access::ReadWrite);
                manager
                    .attach(&ctx(), &dp, sr, self.a, "vm-1", access)
                    .await?;
                manager.activate(&ctx(), &dp, sr, self.a).await
            }
            Op::Downgrade | Op::DpDestroy => manager.dp_destroy(&ctx(), &id("vbd/1")).await,
            Op::SrDetach => manager.sr_detach(&ctx(), sr).await,
            Op::SrDestroy => {
                let empty = self.other.expect("an empty SR");
                manager.sr_destroy(&ctx(), empty).await
            }
            Op::MergeInner { .. } | Op::MergeLeaf { .. } => manager
                .sr_merge(&ctx(), sr, MergeRules::default(), Watch::default())
                .await
                .map(drop),
        }
    }

    async fn import(&self) -> Result<()> {
        let (manager, sr) = (&self.host.manager, self.host.sr);
        let import = manager.vdi_import_container(&ctx(), sr, 1 << 20).await?;
        let image = crate::world::Image {
            uuid: uuid::Uuid::new_v4(),
            parent: None,
            virtual_bytes: 1 << 30,
            data: Content::new(),
        };
        let place = (sr, import.id.clone());
        self.host
            .world
            .state
            .lock()
            .containers
            .insert(place, Bytes::Image(image));
        let adopted = manager
            .adopt_image(&ctx(), import.clone(), NewVdi::default())
            .await;
        if adopted.is_err() {
            manager.import_abort(&ctx(), import).await?;
        }
        adopted.map(drop)
    }

    /// The SRs that are there whatever happens.
    fn srs(&self) -> Vec<SrUuid> {
        let other = self.other.filter(|_| self.op != Op::SrDestroy);
        [self.host.sr].into_iter().chain(other).collect()
    }

    /// What a client sees when it finds everything attached again.
    async fn recover(&mut self) {
        self.host.restart().await;
        for sr in self.srs() {
            let config = BTreeMap::from([("location".to_owned(), sr.to_string())]);
            let attached = self
                .host
                .manager
                .sr_attach(&ctx(), sr, "sim", &config)
                .await;
            attached.expect("attached again");
        }
    }

    /// Everything that must hold, whatever happened. `acked`: the operation said it worked.
    async fn check(&self, op: Op, acked: bool) {
        let world = &self.host.world;
        let vdis = self.scan_all().await;
        let new: Vec<_> = vdis
            .iter()
            .filter(|info| !self.before.contains_key(&info.vdi))
            .collect();
        self.check_new(op, acked, &new);
        for (vdi, (content, bytes)) in &self.before {
            let Some(info) = vdis.iter().find(|info| info.vdi == *vdi) else {
                let destroyed = match op {
                    Op::Destroy => Some(self.a),
                    Op::DestroySnapshot => Some(self.s),
                    _ => None,
                };
                assert_eq!(Some(*vdi), destroyed, "a VDI is lost");
                continue;
            };
            let destroyed = acked
                && (op == Op::Destroy && *vdi == self.a
                    || op == Op::DestroySnapshot && *vdi == self.s);
            assert!(!destroyed, "a destroyed VDI is back");
            let found = world.content(info.sr, &info.leaf);
            if acked && *vdi == self.a {
                self.check_merged(op, info);
            }
            if op == Op::Revert && *vdi == self.a {
                let reverted = self.before[&self.s].0.clone();
                let legal = if acked {
                    vec![reverted]
                } else {
                    vec![reverted, content.clone()]
                };
                assert!(legal.contains(&found), "half reverted: {found:?}");
            } else {
                let mut expected = content.clone();
                if let Some(value) = found.get(&GUEST_BLOCK).filter(|_| *vdi == self.a) {
                    expected.insert(GUEST_BLOCK, *value);
                }
                assert_eq!(found, expected, "content of a VDI");
            }
            let grows = matches!(op, Op::Resize { .. }) && *vdi == self.a;
            let legal = if !grows {
                vec![*bytes]
            } else if acked {
                vec![GROWN_BYTES]
            } else {
                vec![*bytes, GROWN_BYTES]
            };
            assert!(
                legal.contains(&info.virtual_bytes),
                "size {}",
                info.virtual_bytes
            );
            self.check_image_size(info);
        }
        self.check_guest(&vdis).await;
        if op == Op::SrDestroy {
            let gone = self.other.expect("an SR");
            self.host
                .manager
                .sr_detach(&ctx(), gone)
                .await
                .expect("detached, whatever is left");
            self.host
                .manager
                .sr_forget(&ctx(), gone)
                .await
                .expect("forgotten");
        }
        assert_eq!(world.journal_records(), 0, "the journal is not empty");
        world.assert_no_violations();
    }

    fn check_new(&self, op: Op, acked: bool, new: &[&VdiInfo]) {
        let source = match op {
            Op::Create | Op::Adopt => Some(Content::new()),
            Op::Snapshot { .. } | Op::Clone { .. } | Op::Copy => {
                Some(self.before[&self.a].0.clone())
            }
            Op::SnapshotOfSnapshot | Op::CloneOfSnapshot => Some(self.before[&self.s].0.clone()),
            _ => None,
        };
        let Some(source) = source else {
            assert!(new.is_empty(), "VDIs out of nothing: {new:?}");
            return;
        };
        assert!(new.len() <= 1 && (!acked || new.len() == 1), "made {new:?}");
        for info in new {
            let found = self.host.world.content(info.sr, &info.leaf);
            let mut expected = source.clone();
            // Not acknowledged, so its moment may be any up to now.
            if let Some(value) = found.get(&GUEST_BLOCK).filter(|_| !acked) {
                expected.insert(GUEST_BLOCK, *value);
            }
            assert_eq!(found, expected, "content of the new VDI");
            self.check_image_size(info);
        }
    }

    /// What was to become one layer is one.
    fn check_merged(&self, op: Op, a: &VdiInfo) {
        let layers = match op {
            Op::MergeInner { .. } => 2,
            // A reader keeps its leaf.
            Op::MergeLeaf { live: Live::Reads } => 2,
            Op::MergeLeaf { .. } => 1,
            _ => return,
        };
        assert_eq!(a.chain_layers, layers, "{op:?}");
    }

    fn check_image_size(&self, info: &VdiInfo) {
        let state = self.host.world.state.lock();
        match state.containers.get(&(info.sr, info.leaf.clone())) {
            Some(Bytes::Image(image)) => assert_eq!(image.virtual_bytes, info.virtual_bytes),
            other => panic!("the leaf of a VDI holds {other:?}"),
        }
    }

    /// A guest that has its disk goes on, and nobody but its VDI notices.
    async fn check_guest(&self, vdis: &[VdiInfo]) {
        let world = &self.host.world;
        let activated = |info: &storage::DpInfo| {
            info.vdi == self.a
                && info.state == DpState::Activated(Access::ReadWrite)
                && !info.leaked
        };
        let writes = self.host.manager.dp_list().iter().any(activated);
        if !writes {
            return;
        }
        let before: Vec<_> = vdis
            .iter()
            .map(|info| world.content(info.sr, &info.leaf))
            .collect();
        let value = world.points() as u64;
        assert!(
            world.guest_write(self.a, GUEST_BLOCK + 1, value),
            "a guest lost its disk"
        );
        for (info, mut expected) in vdis.iter().zip(before) {
            if info.vdi == self.a {
                expected.insert(GUEST_BLOCK + 1, value);
                assert_eq!(world.guest_read(self.a).expect("served"), expected);
            }
            assert_eq!(world.content(info.sr, &info.leaf), expected, "{}", info.vdi);
        }
        self.undo_guest_write();
    }

    fn undo_guest_write(&self) {
        for bytes in self.host.world.state.lock().containers.values_mut() {
            if let Bytes::Image(image) = bytes {
                image.data.remove(&(GUEST_BLOCK + 1));
            }
        }
    }

    async fn scan_all(&self) -> Vec<VdiInfo> {
        let mut vdis = Vec::new();
        for sr in self.srs() {
            vdis.extend(self.scan(sr).await);
        }
        vdis
    }

    async fn scan(&self, sr: SrUuid) -> Vec<VdiInfo> {
        let scan = self.host.manager.sr_scan(&ctx(), sr).await.expect("a scan");
        assert_eq!(scan.orphans, [], "leaked containers");
        let mut needed = BTreeSet::new();
        for info in &scan.vdis {
            assert!(!info.missing, "{info:?}");
            self.needs(sr, &info.leaf, &mut needed);
        }
        let there: BTreeSet<_> = self.host.world.containers(sr).into_iter().collect();
        needed.insert("xylem-meta".parse().expect("a container id"));
        assert_eq!(there, needed, "containers beside those that VDIs need");
        scan.vdis
    }

    fn needs(
        &self,
        sr: SrUuid,
        leaf: &units::ContainerId,
        needed: &mut BTreeSet<units::ContainerId>,
    ) {
        let mut next = Some(leaf.clone());
        while let Some(id) = next {
            let state = self.host.world.state.lock();
            next = match state.containers.get(&(sr, id.clone())) {
                Some(Bytes::Image(image)) => image.parent.clone(),
                other => panic!("{id} holds {other:?}"),
            }
            .map(|(name, _)| name.parse().expect("a container id"));
            needed.insert(id);
        }
    }

    async fn picture(&self) -> (Vec<VdiInfo>, Vec<storage::DpInfo>) {
        (self.scan_all().await, self.host.manager.dp_list())
    }
}

/// Written by the guest while the daemon is dead.
const GUEST_BLOCK: u64 = 40;

/// Runs one life of the daemon; what it leaves running dies with it.
fn life<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.expect("a runtime").block_on(work)
}

/// `None`: the daemon died.
async fn unless_dead<T>(scene: &Scene, work: impl Future<Output = T>) -> Option<T> {
    let world = scene.host.world.clone();
    tokio::select! {
        biased;
        done = work => Some(done),
        () = world.crashed() => None,
    }
}

/// Dies at `points` in turn: the first during the operation, the rest in successive recoveries.
/// Says how many of them were reached.
fn die_at(op: Op, points: &[usize]) -> usize {
    let mut scene = life(Scene::new(op));
    // The setup's runtime ended with its tasks; the operation gets a daemon of its own.
    let mut reached = 0;
    let result = life(async {
        scene.recover().await;
        scene
            .host
            .world
            .arm(points.iter().take(1).map(|n| (*n, Fault::Crash)));
        unless_dead(&scene, scene.run(op)).await
    });
    let acked = match result {
        Some(Ok(())) => true,
        Some(Err(e)) => panic!(
            "{op:?} fails by itself: {e}: {:?}",
            std::error::Error::source(&e)
        ),
        None => {
            reached += 1;
            false
        }
    };
    if scene.host.world.guest_read(scene.a).is_some() && writes(&scene) {
        scene.host.world.guest_write(scene.a, GUEST_BLOCK, 4);
    }
    for point in points.iter().skip(1) {
        let world = scene.host.world.clone();
        let died = life(async {
            world.arm([(*point, Fault::Crash)]);
            let recovery = async {
                scene.recover().await;
                scene
                    .host
                    .manager
                    .sr_scan(&ctx(), scene.host.sr)
                    .await
                    .expect("a scan");
            };
            tokio::select! {
                biased;
                () = recovery => false,
                () = die_once(&world) => true,
            }
        });
        reached += usize::from(died);
    }
    scene.host.world.arm([]);
    let first = life(async {
        scene.recover().await;
        scene.check(op, acked).await;
        scene.picture().await
    });
    let second = life(async {
        scene.recover().await;
        scene.check(op, acked).await;
        scene.picture().await
    });
    assert_eq!(first, second, "a second recovery changes something");
    reached
}

fn writes(scene: &Scene) -> bool {
    let state = scene.host.world.state.lock();
    let name = scene.a.to_string();
    let mut disks = state.processes.values().flat_map(BTreeMap::iter);
    disks.any(|(disk, open)| disk.as_str() == name && open.access == Access::ReadWrite)
}

/// The next daemon to die; `crashed` of the world is about the one that runs when it is called.
async fn die_once(world: &crate::world::World) {
    tokio::task::yield_now().await;
    world.crashed().await;
}

#[test]
fn dying_anywhere_in_an_operation_leaves_all_of_it_or_nothing() {
    for op in OPS {
        let mut points = 0;
        while die_at(op, &[points]) == 1 {
            points += 1;
        }
        assert!(points >= 2, "{op:?} has {points} points");
    }
}

#[test]
fn dying_in_the_recovery_changes_nothing() {
    let ops = [
        Op::Create,
        Op::Snapshot { live: Live::Writes },
        Op::SnapshotRefused,
        Op::Clone { live: Live::Writes },
        Op::DestroySnapshot,
        Op::Resize { live: Live::Writes },
        Op::Revert,
        Op::Copy,
        Op::Downgrade,
        Op::MergeInner { live: Live::Writes },
        Op::MergeLeaf { live: Live::No },
        Op::MergeLeaf { live: Live::Writes },
    ];
    for op in ops {
        let mut first = 0;
        while die_at(op, &[first]) == 1 {
            // Every third point, another third for each first one: all of them over the sweep.
            let mut second = first % 3;
            while die_at(op, &[first, second]) == 2 {
                second += 3;
            }
            first += 1;
        }
    }
}

#[test]
fn a_call_that_fails_once_leaves_all_of_the_operation_or_nothing() {
    for op in OPS {
        for then in [Then::GoesOn, Then::Dies] {
            let mut point = 0;
            while fail_at(op, point, then) {
                point += 1;
            }
            assert!(point >= 2, "{op:?} has {point} points");
        }
    }
}

/// What the daemon does after a call has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    GoesOn,
    Dies,
}

/// Fails one call. Says whether the point was reached.
fn fail_at(op: Op, point: usize, then: Then) -> bool {
    let mut scene = life(Scene::new(op));
    let (acked, reached) = life(async {
        scene.recover().await;
        scene.host.world.arm([(point, Fault::Error)]);
        let done = scene.run(op).await;
        let reached = scene.host.world.points() > point;
        scene.host.world.arm([]);
        let repeats = matches!(
            op,
            Op::Activate | Op::Upgrade | Op::Downgrade | Op::DpDestroy
        );
        if done.is_err() && repeats {
            scene.run(op).await.expect("works when it is repeated");
        }
        if then == Then::GoesOn {
            if op == Op::SrDetach {
                scene.recover().await;
            }
            scene.check(op, done.is_ok()).await;
        }
        (done.is_ok(), reached)
    });
    if then == Then::Dies {
        life(async {
            scene.recover().await;
            scene.check(op, acked).await;
        });
    }
    reached
}

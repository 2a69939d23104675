//! SRs and VDIs through the manager.

use crate::world::{Bytes, Host, ctx, make_sr};
use datapath::Access;
use std::collections::BTreeMap;
use storage::{NewName, NewVdi, StorageErrorKind, VdiFields, VdiUpdate};
use units::{SrUuid, VdiUuid};

fn config(sr: SrUuid) -> BTreeMap<String, String> {
    BTreeMap::from([("location".to_owned(), sr.to_string())])
}

fn named(name: &str) -> NewName {
    NewName {
        name_label: Some(name.to_owned()),
        ..NewName::default()
    }
}

#[tokio::test]
async fn attaching_is_idempotent_and_bound_to_its_configuration() {
    let host = Host::new().await;
    let (manager, sr) = (&host.manager, host.sr);
    manager
        .sr_attach(&ctx(), sr, "sim", &config(sr))
        .await
        .expect("attached already");
    let other = BTreeMap::new();
    let kinds = [
        manager
            .sr_attach(&ctx(), sr, "sim", &other)
            .await
            .unwrap_err()
            .kind(),
        manager
            .sr_create(&ctx(), sr, "sim", &config(sr), "", "")
            .await
            .unwrap_err()
            .kind(),
        manager.sr_forget(&ctx(), sr).await.unwrap_err().kind(),
    ];
    assert_eq!(kinds, [StorageErrorKind::SrAttached; 3]);
    let unknown = manager
        .sr_attach(&ctx(), SrUuid::random(), "nfs", &other)
        .await;
    assert_eq!(unknown.unwrap_err().kind(), StorageErrorKind::DriverUnknown);
    manager.sr_detach(&ctx(), sr).await.expect("detached");
    manager
        .sr_detach(&ctx(), sr)
        .await
        .expect("detached already");
    let gone = manager.sr_stat(&ctx(), sr).await;
    assert_eq!(gone.unwrap_err().kind(), StorageErrorKind::SrNotAttached);
    manager.sr_forget(&ctx(), sr).await.expect("forgotten");
}

#[tokio::test]
async fn another_host_introduces_an_sr_from_its_bytes_alone() {
    let host = Host::new().await;
    let vdi = host.create(&[(1, 1)]).await;
    let snapshot = host
        .manager
        .vdi_snapshot(&ctx(), host.sr, vdi, named("then"))
        .await;
    let snapshot = snapshot.expect("a snapshot");
    let update = VdiUpdate {
        tags: Some(["blue".to_owned()].into()),
        sm_config: Some([("key".to_owned(), "value".to_owned())].into()),
        ..VdiUpdate::default()
    };
    let changed = host
        .manager
        .vdi_update(&ctx(), host.sr, vdi, update)
        .await
        .expect("an update");
    host.manager
        .sr_set_name(&ctx(), host.sr, "new", "name")
        .await
        .expect("renamed");
    host.manager
        .sr_detach(&ctx(), host.sr)
        .await
        .expect("detached");

    let other = crate::world::World::new();
    {
        let (from, mut to) = (host.world.state.lock(), other.state.lock());
        to.containers = from.containers.clone();
        to.attached = from.attached.clone();
    }
    let manager = other.start().await.expect("another host");
    manager
        .sr_attach(&ctx(), host.sr, "sim", &config(host.sr))
        .await
        .expect("introduced");
    let scan = manager.sr_scan(&ctx(), host.sr).await.expect("a scan");
    assert_eq!(
        (
            scan.sr.name_label.as_str(),
            scan.sr.name_description.as_str()
        ),
        ("new", "name")
    );
    assert_eq!(scan.vdis.len(), 2);
    let found = manager
        .vdi_stat(&ctx(), host.sr, vdi)
        .await
        .expect("the VDI");
    assert_eq!(found.fields, changed.fields);
    let found = manager
        .vdi_stat(&ctx(), host.sr, snapshot.vdi)
        .await
        .expect("the snapshot");
    assert_eq!(found.snapshot_of, Some(vdi));
    assert_eq!(found.snapshot_time_unix_ms, snapshot.snapshot_time_unix_ms);
    assert_eq!(found.fields.name_label, "then");
}

#[tokio::test]
async fn an_sr_without_its_metadata_or_with_anothers_is_never_taken_for_an_empty_one() {
    let host = Host::new().await;
    host.create(&[]).await;
    let meta = "xylem-meta".parse().expect("a container id");
    let place = (host.sr, meta);
    let bytes = host
        .world
        .state
        .lock()
        .containers
        .remove(&place)
        .expect("the metadata");
    let scan = host.manager.sr_scan(&ctx(), host.sr).await;
    assert_eq!(scan.unwrap_err().kind(), StorageErrorKind::SrMetadata);
    host.manager
        .sr_detach(&ctx(), host.sr)
        .await
        .expect("detached");
    let attached = host
        .manager
        .sr_attach(&ctx(), host.sr, "sim", &config(host.sr))
        .await;
    assert_eq!(attached.unwrap_err().kind(), StorageErrorKind::SrMetadata);
    assert!(!host.world.state.lock().attached[&host.sr], "left attached");

    let other = SrUuid::random();
    {
        let mut state = host.world.state.lock();
        state.attached.insert(other, false);
        state.containers.insert((other, place.1.clone()), bytes);
    }
    let attached = host
        .manager
        .sr_attach(&ctx(), other, "sim", &config(other))
        .await;
    assert_eq!(attached.unwrap_err().kind(), StorageErrorKind::SrForeign);
    let made = host
        .manager
        .sr_create(&ctx(), other, "sim", &config(other), "", "")
        .await;
    assert_eq!(made.unwrap_err().kind(), StorageErrorKind::SrForeign);
}

#[tokio::test]
async fn creating_over_an_sr_with_vdis_is_refused_and_over_an_empty_one_repeats() {
    let host = Host::new().await;
    host.manager
        .sr_detach(&ctx(), host.sr)
        .await
        .expect("detached");
    make_sr(&host.manager, host.sr).await;
    let vdi = host.create(&[(1, 1)]).await;
    let destroyed = host.manager.sr_destroy(&ctx(), host.sr).await;
    assert_eq!(destroyed.unwrap_err().kind(), StorageErrorKind::SrNotEmpty);
    host.manager
        .sr_detach(&ctx(), host.sr)
        .await
        .expect("detached");
    let made = host
        .manager
        .sr_create(&ctx(), host.sr, "sim", &config(host.sr), "", "")
        .await;
    assert_eq!(made.unwrap_err().kind(), StorageErrorKind::SrNotEmpty);
    host.manager
        .sr_attach(&ctx(), host.sr, "sim", &config(host.sr))
        .await
        .expect("attached");
    assert_eq!(host.content(vdi).await, [(1, 1)].into());
}

#[tokio::test]
async fn a_scan_reports_strangers_marks_the_missing_and_deletes_neither() {
    let host = Host::new().await;
    let vdis = [
        host.create(&[]).await,
        host.create(&[]).await,
        host.create(&[]).await,
    ];
    let stranger: units::ContainerId = "stranger.vhd".parse().expect("a container id");
    let empty = Bytes::Plain(BTreeMap::new());
    host.world
        .state
        .lock()
        .containers
        .insert((host.sr, stranger.clone()), empty);
    let mut lost = Vec::new();
    for (n, vdi) in vdis.iter().enumerate() {
        let leaf = host
            .manager
            .vdi_stat(&ctx(), host.sr, *vdi)
            .await
            .expect("a VDI")
            .leaf;
        let bytes = host
            .world
            .state
            .lock()
            .containers
            .remove(&(host.sr, leaf.clone()));
        lost.push(((host.sr, leaf), bytes.expect("its container")));
        let scan = host.manager.sr_scan(&ctx(), host.sr).await;
        if n == 0 {
            let scan = scan.expect("one of three may be missing");
            assert_eq!(scan.orphans, std::slice::from_ref(&stranger));
            let missing: Vec<_> = scan
                .vdis
                .iter()
                .filter(|v| v.missing)
                .map(|v| v.vdi)
                .collect();
            assert_eq!(missing, [*vdi]);
        } else {
            assert_eq!(
                scan.unwrap_err().kind(),
                StorageErrorKind::SrVanished,
                "{n}"
            );
        }
        assert!(
            host.manager
                .vdi_stat(&ctx(), host.sr, *vdi)
                .await
                .expect("a record")
                .missing
        );
        let dp = "a".parse().expect("a datapath id");
        let access = Access::ReadOnly;
        let attach = host
            .manager
            .attach(&ctx(), &dp, host.sr, *vdi, "vm-1", access)
            .await;
        assert_eq!(attach.unwrap_err().kind(), StorageErrorKind::VdiMissing);
    }
    host.world.state.lock().containers.extend(lost);
    let scan = host
        .manager
        .sr_scan(&ctx(), host.sr)
        .await
        .expect("all is back");
    assert_eq!((scan.vdis.len(), scan.orphans), (3, vec![stranger]));
    assert!(scan.vdis.iter().all(|vdi| !vdi.missing));
}

#[tokio::test]
async fn a_vdi_is_made_once_and_of_a_size_that_is_possible() {
    let host = Host::new().await;
    let uuid = Some(VdiUuid::random());
    let new = |virtual_bytes| NewVdi {
        uuid,
        virtual_bytes,
        fields: VdiFields::default(),
    };
    let first = host
        .manager
        .vdi_create(&ctx(), host.sr, new(1))
        .await
        .expect("a VDI");
    assert_eq!(first.virtual_bytes, 2 << 20);
    let again = host
        .manager
        .vdi_create(&ctx(), host.sr, new(2 << 20))
        .await
        .expect("the same");
    assert_eq!(again, first);
    for (bytes, kind) in [
        (3 << 20, StorageErrorKind::VdiExists),
        (0, StorageErrorKind::VdiSize),
        ((2040 << 30) + 1, StorageErrorKind::VdiSize),
    ] {
        let refused = host.manager.vdi_create(&ctx(), host.sr, new(bytes)).await;
        assert_eq!(refused.unwrap_err().kind(), kind, "{bytes}");
    }
}

#[tokio::test]
async fn a_vdi_only_grows_and_not_under_readers() {
    let host = Host::new().await;
    let vdi = host.create(&[(1, 1)]).await;
    let resize = async |bytes| {
        let resized = host.manager.vdi_resize(&ctx(), host.sr, vdi, bytes).await;
        resized.map(|info| info.virtual_bytes).map_err(|e| e.kind())
    };
    assert_eq!(resize(64 << 20).await, Ok(64 << 20));
    assert_eq!(resize((64 << 20) + 1).await, Ok(66 << 20));
    assert_eq!(resize(64 << 20).await, Err(StorageErrorKind::VdiSize));
    assert_eq!(resize(u64::MAX).await, Err(StorageErrorKind::VdiSize));
    host.plug(vdi, "r", "vm-1", Access::ReadOnly).await;
    assert_eq!(resize(70 << 20).await, Err(StorageErrorKind::VdiInUse));
    host.plug(vdi, "w", "vm-1", Access::ReadWrite).await;
    assert_eq!(resize(70 << 20).await, Ok(70 << 20));
}

#[tokio::test]
async fn snapshot_of_a_snapshot_is_read_only_and_costs_no_container() {
    let host = Host::new().await;
    let vdi = host.create(&[(1, 1)]).await;
    let first = host
        .manager
        .vdi_snapshot(&ctx(), host.sr, vdi, named("1"))
        .await
        .expect("one");
    let before = host.world.containers(host.sr).len();
    let second = host
        .manager
        .vdi_snapshot(&ctx(), host.sr, first.vdi, named("2"))
        .await;
    let second = second.expect("two");
    assert_eq!(host.world.containers(host.sr).len(), before);
    assert!(second.is_read_only() && second.snapshot_of == Some(first.vdi));
    host.manager
        .vdi_destroy(&ctx(), host.sr, first.vdi)
        .await
        .expect("destroyed");
    assert_eq!(host.content(second.vdi).await, [(1, 1)].into());
}

#[tokio::test]
async fn a_revert_needs_a_snapshot_and_a_vdi_at_rest() {
    let host = Host::new().await;
    let vdi = host.create(&[(1, 1)]).await;
    let snapshot = host
        .manager
        .vdi_snapshot(&ctx(), host.sr, vdi, named("s"))
        .await;
    let snapshot = snapshot.expect("a snapshot").vdi;
    let revert = async |vdi, to| {
        let reverted = host.manager.vdi_revert(&ctx(), host.sr, vdi, to).await;
        reverted.map(drop).map_err(|e| e.kind())
    };
    assert_eq!(revert(vdi, vdi).await, Err(StorageErrorKind::Invalid));
    assert_eq!(
        revert(snapshot, snapshot).await,
        Err(StorageErrorKind::ReadOnly)
    );
    host.plug(vdi, "a", "vm-1", Access::ReadWrite).await;
    assert!(host.world.guest_write(vdi, 1, 2));
    assert_eq!(revert(vdi, snapshot).await, Err(StorageErrorKind::VdiInUse));
    host.manager
        .dp_destroy(&ctx(), &crate::world::id("a"))
        .await
        .expect("unplugged");
    assert_eq!(revert(vdi, snapshot).await, Ok(()));
    assert_eq!(host.content(vdi).await, [(1, 1)].into());
    host.world.assert_no_violations();
}

#[tokio::test]
async fn a_vdi_a_vm_uses_is_not_destroyed_and_one_the_host_reads_is() {
    let host = Host::new().await;
    let vdi = host.create(&[]).await;
    host.plug(vdi, "a", "vm-1", Access::ReadWrite).await;
    let refused = host.manager.vdi_destroy(&ctx(), host.sr, vdi).await;
    assert_eq!(refused.unwrap_err().kind(), StorageErrorKind::VdiInUse);
    let refused = host.manager.sr_detach(&ctx(), host.sr).await;
    assert_eq!(refused.unwrap_err().kind(), StorageErrorKind::VdiInUse);
    host.manager
        .dp_destroy(&ctx(), &crate::world::id("a"))
        .await
        .expect("unplugged");
    host.plug(vdi, "b", "dom0-1", Access::ReadOnly).await;
    host.manager
        .vdi_destroy(&ctx(), host.sr, vdi)
        .await
        .expect("destroyed");
    host.manager
        .vdi_destroy(&ctx(), host.sr, vdi)
        .await
        .expect("destroyed already");
    assert_eq!(
        host.world.containers(host.sr).len(),
        1,
        "more than the metadata is left"
    );
    assert_eq!(host.manager.dp_list(), []);
    host.world.assert_no_violations();
}

#[tokio::test]
async fn a_chain_ends_where_a_frame_cannot_carry_it() {
    let host = Host::new().await;
    let vdi = host.create(&[(1, 1)]).await;
    let mut snapshots = 0;
    let refused = loop {
        match host
            .manager
            .vdi_snapshot(&ctx(), host.sr, vdi, NewName::default())
            .await
        {
            Ok(_) => snapshots += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(
        (refused.kind(), snapshots),
        (StorageErrorKind::ChainTooLong, 63)
    );
    host.plug(vdi, "a", "vm-1", Access::ReadWrite).await;
    assert_eq!(host.world.guest_read(vdi), Some([(1, 1)].into()));
}

#[tokio::test]
async fn a_data_path_that_refuses_a_new_leaf_goes_on_with_the_old_one() {
    let host = Host::new().await;
    let vdi = host.create(&[(1, 1)]).await;
    host.plug(vdi, "a", "vm-1", Access::ReadWrite).await;
    host.world.state.lock().refuses_snapshots = true;
    let failed = host
        .manager
        .vdi_snapshot(&ctx(), host.sr, vdi, NewName::default())
        .await;
    assert_eq!(failed.unwrap_err().kind(), StorageErrorKind::Backend);
    assert_eq!(host.world.containers(host.sr).len(), 2);
    assert_eq!(host.world.journal_records(), 0);
    assert!(host.world.guest_write(vdi, 2, 2));
    assert_eq!(host.content(vdi).await, [(1, 1), (2, 2)].into());
    host.world.assert_no_violations();
}

#[tokio::test]
async fn a_new_leaf_that_is_taken_too_late_is_still_there() {
    let host = Host::new().await;
    let vdi = host.create(&[(1, 1)]).await;
    host.plug(vdi, "a", "vm-1", Access::ReadWrite).await;
    host.world.state.lock().late_snapshots = true;
    let failed = host
        .manager
        .vdi_snapshot(&ctx(), host.sr, vdi, NewName::default())
        .await;
    assert_eq!(failed.unwrap_err().kind(), StorageErrorKind::Backend);
    // Nothing is decided as long as nobody knows; only this VDI waits.
    let again = host
        .manager
        .vdi_snapshot(&ctx(), host.sr, vdi, NewName::default())
        .await;
    assert_eq!(again.unwrap_err().kind(), StorageErrorKind::Backend);
    host.create(&[]).await;
    host.world.deliver();
    assert!(host.world.guest_write(vdi, 2, 2));
    host.world.state.lock().late_snapshots = false;
    let scan = host.manager.sr_scan(&ctx(), host.sr).await.expect("a scan");
    assert_eq!(
        (scan.vdis.len(), scan.orphans, host.world.journal_records()),
        (3, vec![], 0)
    );
    let snapshot = scan
        .vdis
        .iter()
        .find(|info| info.is_a_snapshot)
        .expect("it was taken");
    assert_eq!(host.content(snapshot.vdi).await, [(1, 1)].into());
    assert_eq!(host.content(vdi).await, [(1, 1), (2, 2)].into());
    host.world.assert_no_violations();
}

#[tokio::test]
async fn only_whole_images_without_a_parent_are_adopted() {
    let host = Host::new().await;
    let import = async |parent: Option<(String, uuid::Uuid)>, virtual_bytes| {
        let import = host
            .manager
            .vdi_import_container(&ctx(), host.sr, 1 << 20)
            .await;
        let import = import.expect("a container");
        if virtual_bytes > 0 {
            let (uuid, data) = (uuid::Uuid::new_v4(), [(1, 1)].into());
            let image = crate::world::Image {
                uuid,
                parent,
                virtual_bytes,
                data,
            };
            let place = (host.sr, import.id.clone());
            host.world
                .state
                .lock()
                .containers
                .insert(place, Bytes::Image(image));
        }
        let new = NewVdi {
            virtual_bytes: 4 << 20,
            ..NewVdi::default()
        };
        let adopted = host.manager.adopt_image(&ctx(), import.clone(), new).await;
        host.manager
            .import_abort(&ctx(), import)
            .await
            .expect("aborted or adopted");
        adopted.map_err(|e| e.kind())
    };
    let parent = Some(("base.vhd".to_owned(), uuid::Uuid::new_v4()));
    assert_eq!(import(None, 0).await, Err(StorageErrorKind::ImageInvalid));
    assert_eq!(
        import(None, 6 << 20).await,
        Err(StorageErrorKind::ImageInvalid)
    );
    assert_eq!(
        import(parent, 4 << 20).await,
        Err(StorageErrorKind::ImageInvalid)
    );
    assert_eq!(
        host.world.containers(host.sr).len(),
        1,
        "a refused upload stays"
    );
    let adopted = import(None, 4 << 20).await.expect("a VDI");
    assert_eq!(host.content(adopted.vdi).await, [(1, 1)].into());
    // Its image has a uuid of its own, which its children must name.
    let clone = host
        .manager
        .vdi_clone(&ctx(), host.sr, adopted.vdi, named("clone"))
        .await;
    assert_eq!(
        host.content(clone.expect("a clone").vdi).await,
        [(1, 1)].into()
    );
    host.world.assert_no_violations();
}

#[tokio::test]
async fn containers_of_reserved_capacity_grow_with_their_image_and_take_no_stream() {
    let host = Host::new().await;
    host.manager
        .sr_detach(&ctx(), host.sr)
        .await
        .expect("detached");
    host.world.state.lock().reserved = true;
    host.manager
        .sr_attach(&ctx(), host.sr, "sim", &config(host.sr))
        .await
        .expect("attached");
    let vdi = host.create(&[(1, 1)]).await;
    host.plug(vdi, "a", "vm-1", Access::ReadWrite).await;
    host.manager
        .vdi_snapshot(&ctx(), host.sr, vdi, named("s"))
        .await
        .expect("a snapshot");
    let grown = host
        .manager
        .vdi_resize(&ctx(), host.sr, vdi, 1 << 30)
        .await
        .expect("grown");
    let capacity = |leaf: &units::ContainerId| {
        let place = (host.sr, leaf.clone());
        host.world
            .state
            .lock()
            .capacities
            .get(&place)
            .copied()
            .expect("a capacity")
    };
    assert!(
        capacity(&grown.leaf) > 1 << 30,
        "{} bytes",
        capacity(&grown.leaf)
    );
    let import = host
        .manager
        .vdi_import_container(&ctx(), host.sr, 1 << 20)
        .await;
    assert_eq!(import.unwrap_err().kind(), StorageErrorKind::Unsupported);
    host.world.assert_no_violations();
}

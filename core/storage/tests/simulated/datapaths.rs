//! Datapaths through the manager: what the data path is asked for, and when.

use crate::world::{Fault, Host, OpenDisk, ctx, id};
use datapath::Access::{self, ReadOnly as Ro, ReadWrite as Rw};
use storage::{DpState, NewName, StorageErrorKind, VdiUpdate};
use units::VdiUuid;

/// What one caller does.
#[derive(Debug, Clone, Copy)]
enum Do {
    Attach(Access),
    Activate,
    Deactivate,
    Detach,
    Destroy,
}

/// Which process serves the VDI, and how.
fn served(host: &Host, vdi: VdiUuid) -> Option<(String, Access)> {
    let state = host.world.state.lock();
    let mut found = state.processes.iter().flat_map(|(process, disks)| {
        let mine = disks
            .iter()
            .filter(|(disk, _)| disk.as_str() == vdi.to_string());
        mine.map(|(_, OpenDisk { access, .. })| (process.clone(), *access))
    });
    let first = found.next();
    assert_eq!(found.next(), None, "served twice");
    first
}

async fn step(host: &Host, vdi: VdiUuid, dp: &str, vm: &str, what: Do) -> Option<StorageErrorKind> {
    let (manager, sr, dp) = (&host.manager, host.sr, id(dp));
    let done = match what {
        Do::Attach(access) => manager
            .attach(&ctx(), &dp, sr, vdi, vm, access)
            .await
            .map(drop),
        Do::Activate => manager.activate(&ctx(), &dp, sr, vdi).await,
        Do::Deactivate => manager.deactivate(&ctx(), &dp, sr, vdi).await,
        Do::Detach => manager.detach(&ctx(), &dp, sr, vdi).await,
        Do::Destroy => manager.dp_destroy(&ctx(), &dp).await,
    };
    done.err().map(|e| e.kind())
}

/// Datapath, VM, what it does, the error, and who serves the VDI afterwards.
type Row = (
    &'static str,
    &'static str,
    Do,
    Option<StorageErrorKind>,
    Option<(&'static str, Access)>,
);

async fn check(rows: &[Row]) {
    let host = Host::new().await;
    let vdi = host.create(&[(0, 1)]).await;
    for (n, (dp, vm, what, error, expected)) in rows.iter().enumerate() {
        assert_eq!(
            step(&host, vdi, dp, vm, *what).await,
            *error,
            "row {n}: {dp} {what:?}"
        );
        let expected = expected.map(|(process, access)| (process.to_owned(), access));
        assert_eq!(served(&host, vdi), expected, "after row {n}: {dp} {what:?}");
    }
    host.world.assert_no_violations();
}

#[tokio::test]
async fn one_datapath_goes_through_its_states() {
    use Do::{Activate, Attach, Deactivate, Destroy, Detach};
    let illegal = Some(StorageErrorKind::IllegalTransition);
    let on = Some(("vm-1", Rw));
    check(&[
        ("a", "vm-1", Activate, illegal, None),
        ("a", "vm-1", Deactivate, None, None),
        ("a", "vm-1", Detach, None, None),
        ("a", "vm-1", Attach(Rw), None, None),
        ("a", "vm-1", Attach(Rw), None, None),
        ("a", "vm-1", Activate, None, on),
        ("a", "vm-1", Activate, None, on),
        ("a", "vm-1", Attach(Ro), None, on),
        ("a", "vm-1", Detach, illegal, on),
        (
            "a",
            "vm-2",
            Attach(Rw),
            Some(StorageErrorKind::DpExists),
            on,
        ),
        ("a", "vm-1", Deactivate, None, None),
        ("a", "vm-1", Deactivate, None, None),
        ("a", "vm-1", Activate, None, on),
        ("a", "vm-1", Destroy, None, None),
        ("a", "vm-1", Destroy, None, None),
        (
            "a",
            "vm/1",
            Attach(Rw),
            Some(StorageErrorKind::Invalid),
            None,
        ),
    ])
    .await;
}

#[tokio::test]
async fn readers_and_a_writer_come_and_go_in_any_order() {
    use Do::{Activate, Attach, Deactivate, Destroy};
    check(&[
        ("r", "dom0-1", Attach(Ro), None, None),
        ("r", "dom0-1", Activate, None, Some(("dom0-1", Ro))),
        // The writer waits attached: readers are not disturbed.
        ("w", "vm-1", Attach(Rw), None, Some(("dom0-1", Ro))),
        ("w", "vm-1", Activate, None, Some(("vm-1", Rw))),
        ("w", "vm-1", Deactivate, None, Some(("dom0-1", Ro))),
        ("w", "vm-1", Activate, None, Some(("vm-1", Rw))),
        ("r", "dom0-1", Destroy, None, Some(("vm-1", Rw))),
        ("r", "dom0-1", Attach(Ro), None, Some(("vm-1", Rw))),
        ("r", "dom0-1", Activate, None, Some(("vm-1", Rw))),
        ("w", "vm-1", Destroy, None, Some(("dom0-1", Ro))),
        // A reader becomes a writer where it stands.
        ("r", "dom0-1", Attach(Rw), None, Some(("dom0-1", Rw))),
        ("r", "dom0-1", Destroy, None, None),
    ])
    .await;
}

#[tokio::test]
async fn a_second_writer_is_refused_unless_the_vdi_is_sharable() {
    let host = Host::new().await;
    let vdi = host.create(&[]).await;
    host.plug(vdi, "a", "vm-1", Rw).await;
    assert_eq!(step(&host, vdi, "b", "vm-2", Do::Attach(Rw)).await, None);
    let refused = step(&host, vdi, "b", "vm-2", Do::Activate).await;
    assert_eq!(refused, Some(StorageErrorKind::VdiInUse));
    // The same VM may have it twice.
    host.plug(vdi, "c", "vm-1", Rw).await;
    let update = VdiUpdate {
        sharable: Some(true),
        ..VdiUpdate::default()
    };
    host.manager
        .vdi_update(&ctx(), host.sr, vdi, update)
        .await
        .expect("an update");
    assert_eq!(step(&host, vdi, "b", "vm-2", Do::Activate).await, None);
    assert_eq!(served(&host, vdi), Some(("vm-1".to_owned(), Rw)));
}

#[tokio::test]
async fn snapshots_and_read_only_vdis_take_no_writer() {
    let host = Host::new().await;
    let vdi = host.create(&[]).await;
    let snapshot = host
        .manager
        .vdi_snapshot(&ctx(), host.sr, vdi, NewName::default())
        .await;
    let snapshot = snapshot.expect("a snapshot").vdi;
    let read_only = VdiUpdate {
        read_only: Some(true),
        ..VdiUpdate::default()
    };
    host.manager
        .vdi_update(&ctx(), host.sr, vdi, read_only.clone())
        .await
        .expect("an update");
    for vdi in [vdi, snapshot] {
        let refused = step(&host, vdi, "w", "vm-1", Do::Attach(Rw)).await;
        assert_eq!(refused, Some(StorageErrorKind::ReadOnly));
    }
    let other = host.create(&[]).await;
    host.plug(other, "o", "vm-1", Rw).await;
    let refused = host
        .manager
        .vdi_update(&ctx(), host.sr, other, read_only)
        .await;
    assert_eq!(refused.unwrap_err().kind(), StorageErrorKind::VdiInUse);
}

#[tokio::test]
async fn a_restarted_daemon_adopts_what_runs() {
    let mut host = Host::new().await;
    let vdi = host.create(&[(1, 1)]).await;
    host.plug(vdi, "vbd/1/xvda", "vm-1", Rw).await;
    let (before, dps) = (
        host.world.state.lock().processes.clone(),
        host.manager.dp_list(),
    );
    host.restart().await;
    host.manager
        .sr_stat(&ctx(), host.sr)
        .await
        .expect("back by itself");
    assert_eq!(host.manager.sr_list(), [host.sr]);
    assert_eq!(host.manager.dp_list(), dps);
    assert_eq!(host.world.state.lock().processes, before);
    assert!(host.world.guest_write(vdi, 2, 2));
    assert_eq!(
        step(&host, vdi, "vbd/1/xvda", "vm-1", Do::Destroy).await,
        None
    );
    assert_eq!(served(&host, vdi), None);
}

#[tokio::test]
async fn a_rebooted_host_has_nothing_attached() {
    let mut host = Host::new().await;
    let vdi = host.create(&[(1, 1)]).await;
    host.plug(vdi, "vbd/1/xvda", "vm-1", Rw).await;
    host.world.state.lock().processes.clear();
    host.manager = host.world.start_in_boot("boot-2").await.expect("a start");
    assert_eq!(
        (host.manager.sr_list(), host.manager.dp_list()),
        (vec![], vec![])
    );
    let stat = host.manager.vdi_stat(&ctx(), host.sr, vdi).await;
    assert_eq!(stat.unwrap_err().kind(), StorageErrorKind::SrNotAttached);
}

#[tokio::test]
async fn a_disk_whose_process_died_is_served_again_by_the_next_activate_or_start() {
    let mut host = Host::new().await;
    let vdi = host.create(&[(1, 1)]).await;
    host.plug(vdi, "a", "vm-1", Rw).await;
    host.world.state.lock().processes.clear();
    assert_eq!(step(&host, vdi, "a", "vm-1", Do::Activate).await, None);
    assert_eq!(served(&host, vdi), Some(("vm-1".to_owned(), Rw)));
    host.world.state.lock().processes.clear();
    host.restart().await;
    host.manager
        .sr_stat(&ctx(), host.sr)
        .await
        .expect("back by itself");
    assert_eq!(served(&host, vdi), Some(("vm-1".to_owned(), Rw)));
}

#[tokio::test]
async fn a_snapshot_works_after_the_process_died() {
    let host = Host::new().await;
    let vdi = host.create(&[(1, 1)]).await;
    host.plug(vdi, "a", "vm-1", Rw).await;
    host.world.state.lock().processes.clear();
    let snapshot = host
        .manager
        .vdi_snapshot(&ctx(), host.sr, vdi, NewName::default())
        .await;
    assert_eq!(
        host.content(snapshot.expect("a snapshot").vdi).await,
        [(1, 1)].into()
    );
}

#[tokio::test]
async fn what_could_not_be_taken_down_is_tried_again_before_the_next_call() {
    let host = Host::new().await;
    let vdi = host.create(&[]).await;
    host.plug(vdi, "a", "vm-1", Rw).await;
    host.world.arm([(0, Fault::Error)]);
    let failed = step(&host, vdi, "a", "vm-1", Do::Destroy).await;
    assert_eq!(failed, Some(StorageErrorKind::Backend));
    let [leaked] = &host.manager.dp_list()[..] else {
        panic!("one datapath is left")
    };
    assert!(leaked.leaked && leaked.state == DpState::Activated(Rw));
    host.plug(vdi, "b", "vm-2", Rw).await;
    assert_eq!(host.manager.dp_list().len(), 1);
    assert_eq!(served(&host, vdi), Some(("vm-2".to_owned(), Rw)));
}

#[tokio::test]
async fn transfers_end_when_they_are_closed_dropped_or_left_by_a_dead_daemon() {
    let mut host = Host::new().await;
    let vdi = host.create(&[(3, 3)]).await;
    let export = host
        .manager
        .export_open(&ctx(), host.sr, vdi)
        .await
        .expect("an export");
    assert_eq!(export.virtual_bytes, 64 << 20);
    assert_eq!(served(&host, vdi).map(|(_, access)| access), Some(Ro));
    export.close(&ctx()).await.expect("closed");
    assert_eq!((served(&host, vdi), host.manager.dp_list()), (None, vec![]));

    let import = host
        .manager
        .import_open(&ctx(), host.sr, vdi)
        .await
        .expect("an import");
    assert_eq!(served(&host, vdi).map(|(_, access)| access), Some(Rw));
    drop(import);
    // Every call on the VDI after the drop waits for it.
    while !host.manager.dp_list().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(served(&host, vdi), None);

    let export = host
        .manager
        .export_open(&ctx(), host.sr, vdi)
        .await
        .expect("an export");
    host.restart().await;
    host.manager
        .sr_stat(&ctx(), host.sr)
        .await
        .expect("back by itself");
    assert_eq!((served(&host, vdi), host.manager.dp_list()), (None, vec![]));
    std::mem::forget(export);
}

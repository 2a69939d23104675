//! Calls beside calls.

use crate::world::{Host, ctx, make_sr};
use datapath::Access;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use storage::{NewName, StorageErrorKind, Watch};
use tokio::time::Instant;
use units::SrUuid;

#[tokio::test]
async fn two_snapshots_at_once_are_two_snapshots() {
    let host = Host::new().await;
    let vdi = host.create(&[(1, 1)]).await;
    host.plug(vdi, "a", "vm-1", Access::ReadWrite).await;
    let snapshot = async || {
        let made = host
            .manager
            .vdi_snapshot(&ctx(), host.sr, vdi, NewName::default())
            .await;
        made.expect("a snapshot").vdi
    };
    let (one, two) = tokio::join!(snapshot(), snapshot());
    assert!(host.world.guest_write(vdi, 1, 2));
    for (vdi, value) in [(one, 1), (two, 1), (vdi, 2)] {
        assert_eq!(host.content(vdi).await, [(1, value)].into());
    }
    host.world.assert_no_violations();
}

#[tokio::test]
async fn a_snapshot_during_a_copy_disturbs_neither() {
    let host = Host::new().await;
    let other = SrUuid::random();
    make_sr(&host.manager, other).await;
    let blocks: Vec<_> = (0..50).map(|n| (n, n)).collect();
    let vdi = host.create(&blocks).await;
    let copied = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&copied);
    let watch = Watch {
        progress: Arc::new(move |part| seen.lock().push(part)),
        ..Watch::default()
    };
    let caller = ctx();
    let copy = host
        .manager
        .vdi_copy(&caller, host.sr, vdi, other, NewName::default(), watch);
    host.world.state.lock().copies_wait = true;
    let snapshot = async {
        while copied.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        let made = host
            .manager
            .vdi_snapshot(&ctx(), host.sr, vdi, NewName::default())
            .await;
        assert!(
            copied.lock().last().is_some_and(|part| *part < 1.0),
            "the copy was over"
        );
        host.world.state.lock().copies_wait = false;
        made.expect("a snapshot")
    };
    let (copy, snapshot) = tokio::join!(copy, snapshot);
    let copy = copy.expect("a copy");
    assert_eq!(copy.sr, other);
    assert_eq!(
        host.world.content(other, &copy.leaf),
        blocks.iter().copied().collect()
    );
    assert_eq!(
        host.content(snapshot.vdi).await,
        blocks.into_iter().collect()
    );
    let parts = copied.lock().clone();
    assert!(parts.is_sorted() && parts.last() == Some(&1.0), "{parts:?}");
    host.world.assert_no_violations();
}

#[tokio::test]
async fn a_cancelled_copy_leaves_nothing() {
    let host = Host::new().await;
    let blocks: Vec<_> = (0..50).map(|n| (n, n)).collect();
    let vdi = host.create(&blocks).await;
    let before = host.world.containers(host.sr);
    let watch = Watch::default();
    let cancel = watch.cancel.clone();
    let watch = Watch {
        progress: Arc::new(move |part| {
            if part > 0.3 {
                cancel.cancel();
            }
        }),
        ..watch
    };
    let caller = ctx();
    let copy = host
        .manager
        .vdi_copy(&caller, host.sr, vdi, host.sr, NewName::default(), watch);
    assert_eq!(copy.await.unwrap_err().kind(), StorageErrorKind::Cancelled);
    assert_eq!(host.world.containers(host.sr), before);
    assert_eq!(
        (host.manager.dp_list(), host.world.journal_records()),
        (vec![], 0)
    );
    assert!(host.world.state.lock().processes.is_empty());
    host.world.assert_no_violations();
}

#[tokio::test]
async fn detaching_the_target_ends_a_copy_and_attaching_clears_it_away() {
    let host = Host::new().await;
    let other = SrUuid::random();
    make_sr(&host.manager, other).await;
    let blocks: Vec<_> = (0..50).map(|n| (n, n)).collect();
    let vdi = host.create(&blocks).await;
    let copied = Arc::new(Mutex::new(0.0));
    let seen = Arc::clone(&copied);
    let watch = Watch {
        progress: Arc::new(move |part| *seen.lock() = part),
        ..Watch::default()
    };
    let caller = ctx();
    let copy = host
        .manager
        .vdi_copy(&caller, host.sr, vdi, other, NewName::default(), watch);
    host.world.state.lock().copies_wait = true;
    let detach = async {
        while *copied.lock() == 0.0 {
            tokio::task::yield_now().await;
        }
        let detached = host.manager.sr_detach(&ctx(), other).await;
        host.world.state.lock().copies_wait = false;
        detached
    };
    let (copy, detach) = tokio::join!(copy, detach);
    detach.expect("detached");
    copy.expect_err("the copy has nowhere to go");
    let config = [("location".to_owned(), other.to_string())].into();
    host.manager
        .sr_attach(&ctx(), other, "sim", &config)
        .await
        .expect("attached");
    assert_eq!(host.world.containers(other).len(), 1, "half a copy stays");
    assert_eq!(host.world.journal_records(), 0);
    host.world.assert_no_violations();
}

#[tokio::test]
async fn a_written_vdi_is_not_copied() {
    let host = Host::new().await;
    let vdi = host.create(&[(1, 1)]).await;
    host.plug(vdi, "a", "vm-1", Access::ReadWrite).await;
    let watch = Watch::default();
    let caller = ctx();
    let copy = host
        .manager
        .vdi_copy(&caller, host.sr, vdi, host.sr, NewName::default(), watch);
    assert_eq!(copy.await.unwrap_err().kind(), StorageErrorKind::VdiInUse);
}

#[tokio::test]
async fn a_hung_sr_hangs_alone_and_its_callers_leave_at_their_deadline() {
    let mut host = Host::new().await;
    let vdi = host.create(&[(1, 1)]).await;
    host.plug(vdi, "a", "vm-1", Access::ReadWrite).await;
    let other = SrUuid::random();
    make_sr(&host.manager, other).await;
    host.world.state.lock().hung = Some(other);
    let mut hurried = ctx();
    hurried.deadline = Some(Instant::now() + Duration::from_millis(50));
    let scan = host.manager.sr_scan(&hurried, other).await;
    assert_eq!(scan.unwrap_err().kind(), StorageErrorKind::Timeout);
    host.manager
        .sr_scan(&ctx(), host.sr)
        .await
        .expect("the other SR is well");
    // A restart does not wait for it either.
    host.restart().await;
    host.manager
        .sr_scan(&ctx(), host.sr)
        .await
        .expect("the other SR is well");
    hurried.deadline = Some(Instant::now() + Duration::from_millis(50));
    let stat = host.manager.sr_stat(&hurried, other).await;
    assert_eq!(stat.unwrap_err().kind(), StorageErrorKind::Timeout);
    assert!(host.world.guest_write(vdi, 2, 2));
}

#[tokio::test]
async fn a_call_whose_caller_left_comes_to_its_end() {
    let host = Host::new().await;
    let vdi = host.create(&[(1, 1)]).await;
    {
        let caller = ctx();
        let snapshot = host
            .manager
            .vdi_snapshot(&caller, host.sr, vdi, NewName::default());
        tokio::pin!(snapshot);
        tokio::select! {
            biased;
            _ = snapshot.as_mut() => panic!("it takes more than one step"),
            () = tokio::task::yield_now() => {}
        }
    }
    // The next call on the VDI waits for it.
    host.manager
        .vdi_revert(&ctx(), host.sr, vdi, vdi)
        .await
        .expect_err("not a snapshot");
    let scan = host.manager.sr_scan(&ctx(), host.sr).await.expect("a scan");
    assert_eq!((scan.vdis.len(), scan.orphans), (2, vec![]));
}

//! Layers that only history needs, while everything else goes on.

use crate::world::{Host, ctx, id};
use datapath::Access;
use parking_lot::Mutex;
use std::sync::Arc;
use storage::{MergeRules, NewName, StorageErrorKind, Watch};
use units::VdiUuid;

/// A VDI on a layer of its own and one that only a snapshot needed, which is gone.
async fn with_history(host: &Host) -> VdiUuid {
    let vdi = host.create(&[(1, 1), (2, 1)]).await;
    let name = NewName::default();
    let made = host.manager.vdi_snapshot(&ctx(), host.sr, vdi, name).await;
    let snapshot = made.expect("a snapshot").vdi;
    host.plug(vdi, "vbd/1", "vm-1", Access::ReadWrite).await;
    assert!(host.world.guest_write(vdi, 2, 2));
    let destroyed = host.manager.vdi_destroy(&ctx(), host.sr, snapshot).await;
    destroyed.expect("destroyed");
    vdi
}

async fn layers(host: &Host, vdi: VdiUuid) -> usize {
    let info = host.manager.vdi_stat(&ctx(), host.sr, vdi).await;
    info.expect("a VDI").chain_layers
}

/// A watch, and whether the merge has begun to copy.
fn watched() -> (Watch, Arc<Mutex<bool>>) {
    let begun = Arc::new(Mutex::new(false));
    let seen = Arc::clone(&begun);
    let progress = Arc::new(move |_| *seen.lock() = true);
    let watch = Watch {
        progress,
        ..Watch::default()
    };
    (watch, begun)
}

async fn until(begun: &Mutex<bool>) {
    while !*begun.lock() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_a_guest_writes_during_a_merge_is_there_after_it() {
    let host = Host::new().await;
    let vdi = with_history(&host).await;
    let (watch, begun) = watched();
    host.world.state.lock().copies_wait = true;
    let caller = ctx();
    let merge = host
        .manager
        .sr_merge(&caller, host.sr, MergeRules::default(), watch);
    let guest = async {
        until(&begun).await;
        assert!(host.world.guest_write(vdi, 3, 3) && host.world.guest_write(vdi, 1, 9));
        host.world.state.lock().copies_wait = false;
    };
    let (merged, ()) = tokio::join!(merge, guest);
    assert_eq!(merged.expect("merged"), 1);
    assert_eq!(layers(&host, vdi).await, 1);
    assert_eq!(host.content(vdi).await, [(1, 9), (2, 2), (3, 3)].into());
    assert!(host.world.guest_write(vdi, 4, 4), "the guest lost its disk");
    assert_eq!(host.world.guest_read(vdi), Some(host.content(vdi).await));
    host.world.assert_no_violations();
}

#[tokio::test]
async fn any_other_call_on_the_vdi_goes_before_a_merge() {
    for what in ["snapshot", "unplug", "destroy"] {
        let host = Host::new().await;
        let vdi = with_history(&host).await;
        let before = host.content(vdi).await;
        let (watch, begun) = watched();
        host.world.state.lock().copies_wait = true;
        let caller = ctx();
        let merge = host
            .manager
            .sr_merge(&caller, host.sr, MergeRules::default(), watch);
        let other = async {
            until(&begun).await;
            let (manager, sr) = (&host.manager, host.sr);
            match what {
                "snapshot" => {
                    let caller = ctx();
                    let made = manager.vdi_snapshot(&caller, sr, vdi, NewName::default());
                    made.await.map(drop)
                }
                "unplug" => manager.dp_destroy(&ctx(), &id("vbd/1")).await,
                _ => {
                    manager
                        .dp_destroy(&ctx(), &id("vbd/1"))
                        .await
                        .expect("unplugged");
                    manager.vdi_destroy(&ctx(), sr, vdi).await
                }
            }
            .expect(what);
            host.world.state.lock().copies_wait = false;
        };
        let (_given_up, ()) = tokio::join!(merge, other);
        if what != "destroy" {
            assert_eq!(host.content(vdi).await, before, "{what}");
        }
        assert_eq!(host.world.journal_records(), 0, "{what}");
        host.world.assert_no_violations();
    }
}

#[tokio::test]
async fn an_sr_leaves_during_a_merge() {
    let host = Host::new().await;
    with_history(&host).await;
    let unplugged = host.manager.dp_destroy(&ctx(), &id("vbd/1")).await;
    unplugged.expect("unplugged");
    let (watch, begun) = watched();
    host.world.state.lock().copies_wait = true;
    let caller = ctx();
    let merge = host
        .manager
        .sr_merge(&caller, host.sr, MergeRules::default(), watch);
    let detach = async {
        until(&begun).await;
        let detached = host.manager.sr_detach(&ctx(), host.sr).await;
        detached.expect("detached");
        host.world.state.lock().copies_wait = false;
    };
    let (merged, ()) = tokio::join!(merge, detach);
    let kind = merged.expect_err("the SR is gone").kind();
    assert!(
        matches!(
            kind,
            StorageErrorKind::SrNotAttached | StorageErrorKind::Backend
        ),
        "{kind:?}"
    );
    assert_eq!(host.world.journal_records(), 0);
    host.world.assert_no_violations();
}

#[tokio::test]
async fn a_merge_that_is_cancelled_leaves_everything_as_it_was() {
    let host = Host::new().await;
    let vdi = with_history(&host).await;
    let (watch, begun) = watched();
    host.world.state.lock().copies_wait = true;
    let cancel = watch.cancel.clone();
    let caller = ctx();
    let merge = host
        .manager
        .sr_merge(&caller, host.sr, MergeRules::default(), watch);
    let stop = async {
        until(&begun).await;
        cancel.cancel();
    };
    let (merged, ()) = tokio::join!(merge, stop);
    assert_eq!(
        merged.expect_err("cancelled").kind(),
        StorageErrorKind::Cancelled
    );
    assert_eq!(layers(&host, vdi).await, 2);
    assert_eq!(host.content(vdi).await, [(1, 1), (2, 2)].into());
    assert_eq!(host.world.journal_records(), 0);
    host.world.assert_no_violations();
}

#[tokio::test]
async fn a_layer_below_goes_while_snapshots_clones_and_destruction_go_on_above() {
    for what in ["snapshot", "clone", "destroy", "write"] {
        let host = Host::new().await;
        let (manager, sr) = (&host.manager, host.sr);
        let vdi = with_history(&host).await;
        let named = manager
            .vdi_snapshot(&ctx(), sr, vdi, NewName::default())
            .await;
        let second = named.expect("a snapshot").vdi;
        assert!(host.world.guest_write(vdi, 5, 5));
        manager
            .vdi_destroy(&ctx(), sr, second)
            .await
            .expect("destroyed");
        assert_eq!(layers(&host, vdi).await, 3);
        let before = host.content(vdi).await;
        let (watch, begun) = watched();
        host.world.state.lock().copies_wait = true;
        let (caller, other_caller) = (ctx(), ctx());
        let merge = manager.sr_merge(&caller, sr, MergeRules::default(), watch);
        let other = async {
            until(&begun).await;
            let made = match what {
                "snapshot" => {
                    let made = manager.vdi_snapshot(&other_caller, sr, vdi, NewName::default());
                    Some(made.await.expect(what).vdi)
                }
                "clone" => {
                    let made = manager.vdi_clone(&other_caller, sr, vdi, NewName::default());
                    Some(made.await.expect(what).vdi)
                }
                "destroy" => {
                    manager
                        .dp_destroy(&ctx(), &id("vbd/1"))
                        .await
                        .expect("unplugged");
                    manager.vdi_destroy(&ctx(), sr, vdi).await.expect(what);
                    None
                }
                _ => {
                    assert!(host.world.guest_write(vdi, 1, 1));
                    None
                }
            };
            host.world.state.lock().copies_wait = false;
            made
        };
        let (merged, made) = tokio::join!(merge, other);
        match what {
            "destroy" => {
                assert_eq!(merged.expect(what), 0, "{what}");
                host.manager.sr_scan(&ctx(), sr).await.expect("a scan");
                let left = host.world.containers(sr);
                assert_eq!(left.len(), 1, "only the metadata stays, not {left:?}");
            }
            "write" => {
                assert_eq!(merged.expect(what), 2);
                assert_eq!(layers(&host, vdi).await, 1);
            }
            _ => {
                assert!(merged.expect(what) >= 1, "{what}");
                let made = made.expect(what);
                assert_eq!(host.content(made).await, before, "{what}");
            }
        }
        if what != "destroy" {
            assert_eq!(host.content(vdi).await, before, "{what}");
            assert!(host.world.guest_write(vdi, 6, 6), "the guest lost its disk");
            assert_eq!(host.world.guest_read(vdi), Some(host.content(vdi).await));
        }
        assert_eq!(host.world.journal_records(), 0, "{what}");
        host.world.assert_no_violations();
    }
}

//! The facts that every storage plugin must hold, on `sm-file` of both carriers.

use crate::harness::{Bench, CARRIERS, config};
use plugin::conformance::{Stand, Step, storage};
use plugin::{Carrier, DeviceConfig};
use std::sync::Arc;
use units::SrUuid;

/// Each SR has a directory of its own below the granted one.
fn place(bench: &Bench) -> Box<dyn Fn(SrUuid) -> DeviceConfig + Send + Sync> {
    let granted = bench.granted.clone();
    Box::new(move |sr| config(&[("location", granted.join(sr.to_string()).to_str().unwrap())]))
}

async fn stand(bench: &Bench, carrier: Carrier) -> Stand {
    let loaded = bench.load("sm-file", carrier).await.unwrap();
    assert_eq!((loaded.driver.as_str(), loaded.carrier), ("file", carrier));
    assert!(loaded.powers.containers && !loaded.powers.snapshots);
    Stand {
        plugin: Arc::new(bench.host.storage("file").unwrap()),
        config: place(bench),
        between: Box::new(|| -> Step<'static, ()> { Box::pin(async {}) }),
    }
}

#[tokio::test]
async fn sm_file_holds_every_fact_on_both_carriers() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let broken = storage(&stand(&bench, carrier).await).await;
        assert!(broken.is_empty(), "{carrier:?}: {broken:#?}");
    }
}

#[tokio::test]
async fn the_process_may_end_between_any_two_calls() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let stand = stand(&bench, carrier).await;
        let (plugin, sr) = (&stand.plugin, SrUuid::random());
        let kill = async || {
            let before = bench.host.process_id("sm-file").unwrap();
            let process = rustix::process::Pid::from_raw(before.try_into().unwrap()).unwrap();
            rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
            let gone = move |bench: &Bench| bench.host.process_id("sm-file") != Some(before);
            bench.until("the process is noticed to be gone", gone).await;
        };
        let (id, renamed) = ("a".parse().unwrap(), "b".parse().unwrap());
        let config = plugin.sr_create(sr, &(stand.config)(sr)).await.unwrap();
        kill().await;
        let handle = plugin.sr_attach(sr, &config).await.unwrap();
        kill().await;
        plugin
            .container_create(&handle, &id, 1 << 20)
            .await
            .unwrap();
        kill().await;
        plugin
            .container_rename(&handle, &id, &renamed)
            .await
            .unwrap();
        kill().await;
        let list = plugin.container_list(&handle).await.unwrap();
        assert_eq!(list.len(), 1, "{carrier:?}");
        assert_eq!(list[0].id, renamed);
    }
}

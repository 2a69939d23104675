//! SRs, PBDs and VDIs.

use crate::testing::{DRIVER, Host, map};
use database::{Ref, Value};

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

async fn only_pbd(host: &Host, sr: &Value) -> Value {
    host.get("SR", sr, "PBDs").as_set().unwrap()[0].clone()
}

#[tokio::test]
async fn an_sr_is_made_attached_and_says_how_large_it_is() {
    let host = Host::new().await;
    let sr = host.sr("store").await;
    let pbd = only_pbd(&host, &sr).await;
    assert_eq!(host.get("PBD", &pbd, "currently_attached"), true.into());
    assert_eq!(host.get("PBD", &pbd, "host"), host.api.host().into());
    assert_eq!(host.get("SR", &sr, "physical_size"), Value::Int(1 << 40));
    assert_eq!(
        host.get("SR", &sr, "physical_utilisation"),
        Value::Int(1 << 39)
    );
    assert_eq!(host.get("SR", &sr, "type"), DRIVER.into());
    let allowed = host.ok("SR.get_allowed_operations", [sr]).await;
    assert!(allowed.as_set().unwrap().contains(&"vdi_create".into()));
}

#[tokio::test]
async fn an_sr_that_cannot_be_made_leaves_nothing() {
    let host = Host::new().await;
    let create = |driver: &str, config: Value| {
        let this = Value::from(host.api.host());
        [
            this,
            config,
            Value::Int(0),
            "x".into(),
            "".into(),
            driver.into(),
            "".into(),
            false.into(),
        ]
    };
    assert_eq!(
        host.fails("SR.create", create("tape", map([]))).await,
        ["SR_UNKNOWN_DRIVER", "tape"]
    );
    let broken = host
        .fails("SR.create", create(DRIVER, map([("broken", "1".into())])))
        .await;
    assert_eq!(broken[0], "SR_BACKEND_FAILURE");
    assert_eq!((host.all("SR"), host.all("PBD")), (vec![], vec![]));
}

#[tokio::test]
async fn an_sr_is_introduced_plugged_unplugged_and_forgotten() {
    let host = Host::new().await;
    let sr = host.sr("store").await;
    let vdi = host.vdi(&sr, "disk").await;
    let (uuid, vdi_uuid) = (host.get("SR", &sr, "uuid"), host.get("VDI", &vdi, "uuid"));
    let pbd = only_pbd(&host, &sr).await;
    assert_eq!(
        host.fails("SR.forget", [sr.clone()]).await,
        ["SR_HAS_PBD", text(&sr)]
    );
    assert_eq!(
        host.fails("PBD.destroy", [pbd.clone()]).await[0],
        "OPERATION_NOT_ALLOWED"
    );
    host.ok("PBD.unplug", [pbd.clone()]).await;
    host.ok("PBD.unplug", [pbd.clone()]).await;
    let unplugged = host.fails("VDI.snapshot", [vdi.clone()]).await;
    assert_eq!(unplugged, ["SR_NOT_ATTACHED", text(&sr)]);
    let allowed = host.ok("VDI.get_allowed_operations", [vdi]).await;
    assert_eq!(allowed, Value::Set(vec!["forget".into()]));
    host.ok("SR.forget", [sr]).await;
    for class in ["SR", "PBD", "VDI"] {
        assert_eq!(host.all(class), Vec::<Ref>::new(), "{class}");
    }

    let introduce = |uuid: Value| {
        [
            uuid,
            "again".into(),
            "".into(),
            DRIVER.into(),
            "".into(),
            false.into(),
            map([]),
        ]
    };
    let bad = host.fails("SR.introduce", introduce("x".into())).await;
    assert_eq!(bad, ["UUID_INVALID", "SR", "x"]);
    let sr = host.ok("SR.introduce", introduce(uuid.clone())).await;
    let twice = host.fails("SR.introduce", introduce(uuid.clone())).await;
    assert_eq!(twice, ["SR_UUID_EXISTS", text(&uuid)]);
    assert_eq!(
        host.fails("SR.scan", [sr.clone()]).await,
        ["SR_HAS_NO_PBDS", text(&sr)]
    );
    let this = Value::from(host.api.host());
    let link = || {
        map([
            ("SR", sr.clone()),
            ("host", this.clone()),
            ("device_config", map([])),
        ])
    };
    let pbd = host.ok("PBD.create", [link()]).await;
    let exists = host.fails("PBD.create", [link()]).await;
    assert_eq!(exists, ["PBD_EXISTS", text(&sr), text(&this), text(&pbd)]);
    host.ok("PBD.plug", [pbd]).await;
    let found = host.ok("VDI.get_by_uuid", [vdi_uuid]).await;
    assert_eq!(host.get("VDI", &found, "name_label"), "disk".into());
    assert_eq!(host.get("VDI", &found, "SR"), sr);
}

#[tokio::test]
async fn an_sr_is_destroyed_only_when_it_is_empty() {
    let host = Host::new().await;
    let sr = host.sr("store").await;
    let vdi = host.vdi(&sr, "disk").await;
    assert_eq!(
        host.fails("SR.destroy", [sr.clone()]).await,
        ["SR_NOT_EMPTY"]
    );
    host.ok("VDI.destroy", [vdi]).await;
    host.ok("SR.destroy", [sr]).await;
    assert_eq!((host.all("SR"), host.all("PBD")), (vec![], vec![]));
}

#[tokio::test]
async fn plugged_srs_are_attached_again_after_a_restart_and_others_are_not() {
    let host = Host::new().await;
    let (stays, goes) = (host.sr("stays").await, host.sr("goes").await);
    let vdi = host.vdi(&stays, "disk").await;
    let pbd = only_pbd(&host, &goes).await;
    host.ok("PBD.unplug", [pbd.clone()]).await;
    let host = host.restart().await;
    let again = only_pbd(&host, &stays).await;
    assert_eq!(host.get("PBD", &again, "currently_attached"), true.into());
    assert_eq!(host.get("PBD", &pbd, "currently_attached"), false.into());
    host.ok("VDI.snapshot", [vdi]).await;
}

#[tokio::test]
async fn a_vdi_is_what_its_record_asked_for() {
    let host = Host::new().await;
    let sr = host.sr("store").await;
    let vdi = host.vdi(&sr, "disk").await;
    for (field, expected) in [
        ("name_label", Value::from("disk")),
        ("virtual_size", Value::Int(4 << 20)),
        ("type", "user".into()),
        ("managed", true.into()),
        ("other_config", map([("key", "value".into())])),
        ("snapshot_of", Ref::null().into()),
    ] {
        assert_eq!(host.get("VDI", &vdi, field), expected, "{field}");
    }
    assert_eq!(
        host.get("VDI", &vdi, "location"),
        host.get("VDI", &vdi, "uuid")
    );
    assert_eq!(host.get("SR", &sr, "VDIs"), Value::Set(vec![vdi]));
    let empty = map([
        ("SR", sr),
        ("type", "user".into()),
        ("virtual_size", Value::Int(0)),
    ]);
    assert_eq!(host.fails("VDI.create", [empty]).await[0], "VDI_TOO_SMALL");
}

#[tokio::test]
async fn what_people_call_a_disk_lies_in_the_sr_too() {
    let host = Host::new().await;
    let sr = host.sr("store").await;
    let vdi = host.vdi(&sr, "disk").await;
    host.ok("VDI.set_name_label", [vdi.clone(), "renamed".into()])
        .await;
    host.ok("VDI.set_name_description", [vdi.clone(), "text".into()])
        .await;
    host.ok("VDI.add_tags", [vdi.clone(), "t".into()]).await;
    host.ok(
        "VDI.add_to_sm_config",
        [vdi.clone(), "k".into(), "v".into()],
    )
    .await;
    host.ok("VDI.set_read_only", [vdi.clone(), true.into()])
        .await;
    host.ok("VDI.forget", [vdi.clone()]).await;
    host.ok("SR.scan", [sr.clone()]).await;
    let found = host.get("SR", &sr, "VDIs").as_set().unwrap()[0].clone();
    assert_ne!(found, vdi, "a new object for the same disk");
    for (field, expected) in [
        ("name_label", Value::from("renamed")),
        ("name_description", "text".into()),
        ("tags", Value::Set(vec!["t".into()])),
        ("read_only", true.into()),
    ] {
        assert_eq!(host.get("VDI", &found, field), expected, "{field}");
    }
    let keys = host.get("VDI", &found, "sm_config");
    assert_eq!(keys.as_map().unwrap()["k"], "v".into());
    assert_eq!(
        host.fails("VDI.resize", [found, Value::Int(8 << 20)]).await[0],
        "VDI_READONLY"
    );
}

#[tokio::test]
async fn snapshots_clones_and_copies_are_disks_of_their_own() {
    let host = Host::new().await;
    let (sr, other) = (host.sr("store").await, host.sr("other").await);
    let vdi = host.vdi(&sr, "disk").await;
    let snapshot = host.ok("VDI.snapshot", [vdi.clone(), map([])]).await;
    assert_eq!(host.get("VDI", &snapshot, "is_a_snapshot"), true.into());
    assert_eq!(host.get("VDI", &snapshot, "snapshot_of"), vdi);
    assert_eq!(
        host.get("VDI", &vdi, "snapshots"),
        Value::Set(vec![snapshot.clone()])
    );
    assert!(host.get("VDI", &snapshot, "snapshot_time").as_datetime() > Some(0));
    let clone = host.ok("VDI.clone", [vdi.clone()]).await;
    assert_eq!(host.get("VDI", &clone, "is_a_snapshot"), false.into());
    let copy = host.ok("VDI.copy", [vdi.clone(), other.clone()]).await;
    assert_eq!(host.get("VDI", &copy, "SR"), other);
    for made in [&snapshot, &clone, &copy] {
        let kept = host.get("VDI", made, "other_config");
        assert_eq!(kept, map([("key", "value".into())]), "{made:?}");
    }
    host.ok("VDI.revert", [snapshot.clone()]).await;
    let plain = host.fails("VDI.revert", [clone]).await;
    assert_eq!(plain, ["REVERT_ONLY_ALLOWED_ON_SNAPSHOT"]);
    host.ok("VDI.destroy", [vdi]).await;
    assert_eq!(
        host.get("VDI", &snapshot, "snapshot_of"),
        Ref::null().into()
    );
}

#[tokio::test]
async fn a_disk_grows_and_never_shrinks() {
    let host = Host::new().await;
    let sr = host.sr("store").await;
    let vdi = host.vdi(&sr, "disk").await;
    host.ok("VDI.resize", [vdi.clone(), Value::Int(8 << 20)])
        .await;
    assert_eq!(host.get("VDI", &vdi, "virtual_size"), Value::Int(8 << 20));
    let smaller = host
        .fails("VDI.resize", [vdi.clone(), Value::Int(4 << 20)])
        .await;
    assert_eq!(smaller, ["VDI_TOO_SMALL", text(&vdi), "8388608"]);
}

#[tokio::test]
async fn a_scan_beside_changes_neither_loses_nor_revives_a_disk() {
    let host = Host::new().await;
    let sr = host.sr("store").await;
    let mut kept = Vec::new();
    for round in 0..8 {
        let doomed = host.vdi(&sr, "doomed").await;
        let (_, made, _, _) = tokio::join!(
            host.call("SR.scan", [sr.clone()]),
            host.vdi(&sr, "kept"),
            host.ok("VDI.destroy", [doomed.clone()]),
            host.call("SR.scan", [sr.clone()]),
        );
        kept.push(made.as_ref().unwrap().clone());
        let mut there = host.all("VDI");
        there.sort();
        kept.sort();
        assert_eq!(there, kept, "round {round}");
    }
}

#[tokio::test]
async fn probes_say_what_a_configuration_leads_to() {
    let host = Host::new().await;
    let this = Value::from(host.api.host());
    let config = map([("path", "/x".into())]);
    let probe = |driver: &str| [this.clone(), config.clone(), driver.into(), map([])];
    let found = host.ok("SR.probe_ext", probe(DRIVER)).await;
    let record = found.as_set().unwrap()[0].as_map().unwrap().clone();
    assert_eq!(record["complete"], true.into());
    assert_eq!(record["configuration"], config);
    assert!(text(&host.ok("SR.probe", probe(DRIVER)).await).starts_with("<value><array>"));
    assert_eq!(
        host.fails("SR.probe_ext", probe("tape")).await,
        ["SR_UNKNOWN_DRIVER", "tape"]
    );
    assert_eq!(
        host.ok("SR.get_supported_types", []).await,
        Value::Set(vec![DRIVER.into()])
    );
}

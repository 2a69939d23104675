//! Storage repositories and disks: made, copied, plugged, moved to and from files.

use super::client::Answers;
use crate::api::Origin;
use crate::testing::{DRIVER, Host};
use thin_cli::Response;

async fn field(host: &Host, args: &[&str]) -> String {
    host.xe(&[args, &["--minimal"]].concat()).await.line()
}

#[tokio::test]
async fn an_sr_lives_from_create_to_destroy() {
    let host = Host::new().await;
    let driver = format!("type={DRIVER}");
    let sr = host
        .xe(&["sr-create", "name-label=a", &driver, "content-type=user"])
        .await
        .line();
    let uuid = format!("uuid={sr}");
    assert_eq!(field(&host, &["sr-list", "params=host"]).await, "tester");
    let pbd = field(&host, &["pbd-list", &format!("sr-uuid={sr}")]).await;
    let disk = [
        "vdi-create",
        &format!("sr-uuid={sr}"),
        "name-label=d",
        "virtual-size=4MiB",
    ];
    let vdi = host.xe(&disk).await.line();
    let vdi_uuid = format!("uuid={vdi}");
    let snapshot = host.xe(&["vdi-snapshot", &vdi_uuid]).await.line();
    let clone = host
        .xe(&["vdi-clone", &vdi_uuid, "new-name-label=c"])
        .await
        .line();
    assert_eq!(
        host.xe(&["vdi-resize", &vdi_uuid, "disk-size=8MiB"])
            .await
            .err,
        ""
    );
    assert_eq!(
        field(&host, &["vdi-list", "params=virtual-size", &vdi_uuid]).await,
        "8388608"
    );
    let snapshot_of = [
        "vdi-list",
        "params=snapshot-of",
        &format!("uuid={snapshot}"),
    ];
    assert_eq!(field(&host, &snapshot_of).await, vdi);
    assert_eq!(field(&host, &["vdi-list", "name-label=c"]).await, clone);

    let seen = host.xe(&["sr-destroy", &uuid]).await;
    assert!(seen.code == 1 && !seen.err.is_empty(), "{seen:?}");
    for disk in [snapshot, clone, vdi] {
        assert_eq!(
            host.xe(&["vdi-destroy", &format!("uuid={disk}")]).await.err,
            ""
        );
    }
    let pbd = format!("uuid={pbd}");
    assert_eq!(host.xe(&["pbd-unplug", &pbd]).await.err, "");
    assert_eq!(
        field(&host, &["pbd-list", "params=currently-attached", &pbd]).await,
        "false"
    );
    assert_eq!(host.xe(&["pbd-plug", &pbd]).await.err, "");
    assert_eq!(host.xe(&["sr-scan", &uuid]).await.err, "");
    assert_eq!(host.xe(&["pbd-unplug", &pbd]).await.err, "");
    assert_eq!(host.xe(&["sr-forget", &uuid]).await.err, "");
    assert_eq!(host.xe(&["sr-list"]).await.out, "");
}

#[tokio::test]
async fn drives_of_a_vm_are_listed_with_their_disks() {
    let host = Host::new().await;
    host.sr("sr").await;
    let sr = field(&host, &["sr-list"]).await;
    let vm = host.xe(&["vm-create", "name-label=web"]).await.line();
    let add = ["vm-disk-add", "vm=web", "disk-size=4MiB", "device=0"];
    let seen = host.xe(&add).await;
    assert_eq!(
        seen.err,
        "Error: The pool has no default SR; give sr-uuid\n"
    );
    let sr = format!("sr-uuid={sr}");
    let add = [&add[..], &[&sr]].concat();
    assert_eq!(host.xe(&add).await.err, "");
    let vdi = field(&host, &["vdi-list"]).await;
    let create = ["vbd-create", &format!("vm-uuid={vm}"), "device=3"];
    let cd = host.xe(&create).await.line();
    let kinds = ["vbd-list", "params=type,empty,mode", &format!("uuid={cd}")];
    assert!(host.xe(&kinds).await.out.contains("empty ( RO): true\n"));
    let expected = format!(
        "Disk 0 VBD:\n\
         vm-name-label ( RO)    : web\n\
         {:>27}: 0\n\n\n\
         Disk 0 VDI:\n\
         uuid ( RO)         : {vdi}\n\n\n",
        "userdevice ( RW)"
    );
    let list = [
        "vm-disk-list",
        "vm=web",
        "vbd-params=userdevice,vm-name-label",
        "vdi-params=uuid",
    ];
    let shown = host.xe(&list).await.out;
    assert_eq!(
        shown.split_whitespace().collect::<Vec<_>>(),
        expected.split_whitespace().collect::<Vec<_>>()
    );
    assert_eq!(
        host.xe(&["vm-disk-remove", "vm=web", "device=0"]).await.err,
        ""
    );
    assert_eq!(host.xe(&["vdi-list"]).await.out, "");
    let seen = host.xe(&["vm-disk-remove", "vm=web", "device=0"]).await;
    assert_eq!(seen.err, "Error: The VM has no disk with device 0\n");
}

/// Does what the HTTP side of a transfer does to its task.
async fn end_task(host: &Host, status: &'static str) {
    let mut revisions = host.api.db.subscribe();
    loop {
        let snapshot = host.api.snapshot();
        let task = snapshot.rows("task").find(|task| {
            task.get("name_label")
                .as_str()
                .is_some_and(|name| name.starts_with("VDI "))
        });
        if let Some(task) = task {
            let task = task.reference();
            let error =
                database::Value::Set(["VDI_IN_USE", "OpaqueRef:x", "copy"].map(Into::into).into());
            host.api
                .write(|tx| {
                    tx.set("task", task, "error_info", error)?;
                    Ok(tx.set("task", task, "status", status.into())?)
                })
                .await
                .unwrap();
            return;
        }
        revisions.changed().await.unwrap();
    }
}

#[tokio::test]
async fn a_transfer_is_bound_to_a_task_and_succeeds_when_both_sides_say_so() {
    let host = Host::new().await;
    let sr = host.put("SR", &[("uuid", "sr".into())]).await;
    let vdi = host
        .put("VDI", &[("uuid", "disk".into()), ("SR", (&sr).into())])
        .await;
    let import = ["vdi-import", "uuid=disk", "filename=a b.img", "format=vhd"];
    let export = ["vdi-export", "uuid=disk", "filename=x.img"];
    for (command, there, here, code, err) in [
        (&import[..], "success", Response::Ok, 0, ""),
        (&export[..], "success", Response::Ok, 0, ""),
        (
            &import[..],
            "success",
            Response::Failed,
            1,
            "Error: the client could not transfer the file\n",
        ),
        (
            &import[..],
            "failure",
            Response::Failed,
            1,
            "The disk is in use.\nvdi: OpaqueRef:x\noperation: copy\n",
        ),
        (
            &export[..],
            "failure",
            Response::Ok,
            1,
            "The disk is in use.\nvdi: OpaqueRef:x\noperation: copy\n",
        ),
    ] {
        let answers = Answers {
            transfer: Some(here),
            ..Answers::default()
        };
        let (seen, ()) = tokio::join!(
            host.xe_as(Origin::LocalRoot, command, answers),
            end_task(&host, there),
        );
        assert_eq!(
            (seen.code, seen.err.as_str()),
            (code, err),
            "{command:?} {there} {here:?}"
        );
        let [told] = &seen.transfers[..] else {
            panic!("{seen:?}")
        };
        let (start, format) = match command[0] {
            "vdi-import" => ("PUT a b.img /import_raw_vdi?session_id=OpaqueRef:", "vhd"),
            _ => ("GET x.img /export_raw_vdi?session_id=OpaqueRef:", "raw"),
        };
        assert!(told.starts_with(start), "{told}");
        let middle = format!("&vdi={}&format={format}&task_id=OpaqueRef:", vdi.as_str());
        assert!(told.contains(&middle), "{told}");
        assert_eq!(
            host.api.snapshot().count("task"),
            0,
            "the task is taken away"
        );
    }
}

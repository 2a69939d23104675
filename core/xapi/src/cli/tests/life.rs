//! VMs, messages, tasks, events, transfers.

use super::client::{Answers, remote, request};
use crate::api::Origin;
use crate::cli;
use crate::testing::Host;
use std::collections::VecDeque;
use std::time::Duration;
use thin_cli::{Command, Message};
use tokio::io::AsyncWriteExt;

async fn state(host: &Host, vm: &str) -> String {
    let args = ["vm-list", "params=power-state", "--minimal", vm];
    host.xe(&args).await.line()
}

#[tokio::test]
async fn a_vm_is_made_started_paused_and_shut_down() {
    let host = Host::new().await;
    let made = host
        .xe(&["vm-create", "name-label=web", "memory=64MiB", "vcpus=2"])
        .await
        .line();
    let uuid = format!("uuid={made}");
    let params = ["vm-list", &uuid, "params=memory-static-max,VCPUs-max"];
    assert!(
        host.xe(&params)
            .await
            .out
            .contains("memory-static-max ( RW)    : 67108864\n")
    );
    for (command, expected) in [
        (&["vm-start", "vm=web"][..], "running"),
        (&["vm-pause", &uuid], "paused"),
        (&["vm-unpause", "name-label=web"], "running"),
        (&["vm-reboot", &uuid, "--force"], "running"),
        (&["vm-shutdown", &uuid], "halted"),
        (&["vm-start", &uuid, "paused=true"], "paused"),
        (&["vm-shutdown", "vm=web", "--force"], "halted"),
    ] {
        let seen = host.xe(command).await;
        assert_eq!((seen.code, seen.err.as_str()), (0, ""), "{command:?}");
        assert_eq!(state(&host, &uuid).await, expected, "{command:?}");
    }
    let seen = host.xe(&["vm-pause", &uuid]).await;
    assert!(
        seen.err
            .starts_with("The VM is not in a power state in which this is possible.\nvm: "),
        "{}",
        seen.err
    );
    assert!(seen.err.contains(&format!("{made} (web)")), "{}", seen.err);
    assert_eq!(host.xe(&["vm-destroy", &uuid]).await.code, 0);
    assert_eq!(state(&host, &uuid).await, "");
}

#[tokio::test]
async fn several_vms_need_multiple_and_their_failures_are_told_one_by_one() {
    let host = Host::new().await;
    let mut uuids = Vec::new();
    for name in ["name-label=a", "name-label=b"] {
        uuids.push(host.xe(&["vm-create", name]).await.line());
    }
    let both = ["vm-start", "power-state=halted"];
    let seen = host.xe(&both).await;
    assert_eq!(
        seen.err,
        "Error: 2 vms match; give more to tell them apart, or --multiple to act on all\n"
    );
    assert_eq!(
        host.xe(&[&both[..], &["--multiple"]].concat()).await.code,
        0
    );
    let again = ["vm-start", "--multiple"];
    let seen = host.xe(&again).await;
    assert_eq!(
        (seen.code, seen.err.lines().count()),
        (1, 2),
        "the control domain is left alone"
    );
    for uuid in uuids {
        assert!(
            seen.err
                .contains(&format!("operation failed on {uuid}: VM_BAD_POWER_STATE(")),
            "{}",
            seen.err
        );
    }
}

#[tokio::test]
async fn a_vm_is_uninstalled_only_after_yes() {
    let host = Host::new().await;
    let uuid = host.xe(&["vm-create", "name-label=web"]).await.line();
    let uninstall = ["vm-uninstall", "vm=web"];
    let typed = |text| Answers {
        typed: VecDeque::from([text]),
        ..Answers::default()
    };
    let seen = host.xe_as(Origin::LocalRoot, &uninstall, typed("no")).await;
    let expected = format!(
        "The following items are about to be destroyed\nVM : {uuid} (web)\nType 'yes' to continue\n\
         Aborted (you typed: 'no')\n"
    );
    assert_eq!((seen.code, seen.out), (1, expected));
    let seen = host
        .xe_as(Origin::LocalRoot, &uninstall, typed(" Yes "))
        .await;
    assert!(
        seen.code == 0 && seen.out.ends_with("All objects destroyed\n"),
        "{seen:?}"
    );
    assert_eq!(
        host.xe(&["vm-list", "vm-list", &format!("uuid={uuid}")])
            .await
            .code,
        1
    );
}

#[tokio::test]
async fn messages_are_made_listed_and_destroyed() {
    let host = Host::new().await;
    let of = format!(
        "host-uuid={}",
        host.xe(&["host-list", "--minimal"]).await.line()
    );
    for (name, priority) in [("name=A", "priority=1"), ("name=B", "priority=5")] {
        let seen = host
            .xe(&["message-create", name, priority, "body=text, more", &of])
            .await;
        assert_eq!((seen.code, seen.err.as_str()), (0, ""));
    }
    let seen = host
        .xe(&["message-list", "name=A", "params=name,priority,class,body"])
        .await;
    let expected = "\
name ( RO)        : A
    priority ( RO): 1
       class ( RO): Host
        body ( RO): text, more


";
    assert_eq!(seen.out, expected);
    assert_eq!(
        host.xe(&["message-destroy-all", "priority=5"]).await.code,
        0
    );
    let uuid = host.xe(&["message-list", "--minimal"]).await.line();
    assert_eq!(
        host.xe(&["message-destroy", &format!("uuids={uuid}")])
            .await
            .code,
        0
    );
    assert_eq!(host.xe(&["message-list"]).await.out, "");
    let seen = host
        .xe(&["message-create", "name=A", "priority=1", "body=x"])
        .await;
    assert_eq!(
        seen.err,
        "Error: Need one of: vm-uuid, host-uuid, sr-uuid or pool-uuid\n"
    );
}

#[tokio::test]
async fn event_wait_ends_when_the_condition_holds_and_when_the_client_leaves() {
    let host = Host::new().await;
    host.xe(&["vm-create", "name-label=web"]).await.line();
    let waiting = [
        "event-wait",
        "class=vm",
        "name-label=web",
        "power-state=running",
    ];
    let start = async {
        assert_eq!(state(&host, "name-label=web").await, "halted");
        host.xe(&["vm-start", "vm=web"]).await
    };
    let (waited, started) = tokio::join!(host.xe(&waiting), start);
    assert_eq!((waited.code, started.code), (0, 0));

    let never = ["event-wait", "class=vm", "name-label=nobody"];
    let (server, mut client) = tokio::io::duplex(4096);
    let serving = cli::serve(host.api.clone(), request(Origin::LocalRoot, &never, server));
    let leaving = async {
        client.write_all(never.join("\n").as_bytes()).await.unwrap();
        thin_cli::read_greeting(&mut client).await.unwrap();
        thin_cli::write_greeting(&mut client).await.unwrap();
        drop(client);
    };
    let both = async { tokio::join!(serving, leaving) };
    let (served, ()) = tokio::time::timeout(Duration::from_secs(20), both)
        .await
        .expect("it ends");
    served.unwrap();
}

#[tokio::test]
async fn passwords_are_changed_by_those_who_know_the_old_one() {
    let host = Host::with_password().await;
    let login = ["username=root", "password=secret"];
    let change = |rest: &[&'static str]| [&["user-password-change"], rest, &login].concat();
    let seen = host
        .xe_as(
            remote(),
            &change(&["old=wrong", "new=other-secret"]),
            Answers::default(),
        )
        .await;
    assert!(
        seen.err.starts_with("The password was not changed.\n"),
        "{}",
        seen.err
    );
    let seen = host
        .xe_as(
            remote(),
            &change(&["old=secret", "new=other-secret"]),
            Answers::default(),
        )
        .await;
    assert_eq!((seen.code, seen.err.as_str()), (0, ""));
    let list = [
        "host-list",
        "--minimal",
        "username=root",
        "password=other-secret",
    ];
    host.xe_as(remote(), &list, Answers::default()).await.line();
}

#[tokio::test]
async fn progress_is_drawn_on_the_standard_error() {
    let host = Host::new().await;
    host.xe(&["vm-create", "name-label=web"]).await.line();
    let seen = host.xe(&["vm-start", "vm=web", "progress=true"]).await;
    assert_eq!((seen.code, seen.out.as_str()), (0, ""));
    assert!(
        seen.err.starts_with("\r|") && seen.err.ends_with("| 100%\n"),
        "{:?}",
        seen.err
    );
    assert_eq!(state(&host, "name-label=web").await, "running");
}

#[tokio::test]
async fn a_client_that_waits_sees_no_frames_but_commands() {
    let host = Host::new().await;
    let (server, mut client) = tokio::io::duplex(64);
    let args = ["host-list", "params=all"];
    let serving = tokio::spawn(cli::serve(
        host.api.clone(),
        request(Origin::LocalRoot, &args, server),
    ));
    client.write_all(args.join("\n").as_bytes()).await.unwrap();
    thin_cli::read_greeting(&mut client).await.unwrap();
    thin_cli::write_greeting(&mut client).await.unwrap();
    // A record that is larger than what the connection holds arrives whole.
    let record = thin_cli::read_message(&mut client, thin_cli::FRAME_BYTES_MAX)
        .await
        .unwrap();
    let Message::Command(Command::Print(text)) = record else {
        panic!("{record:?}")
    };
    assert!(
        text.len() > 1000 && text.starts_with("uuid ( RO)"),
        "{text}"
    );
    let end = thin_cli::read_message(&mut client, thin_cli::FRAME_BYTES_MAX)
        .await
        .unwrap();
    assert_eq!(end, Message::Command(Command::Exit(0)));
    serving.await.unwrap().unwrap();
}

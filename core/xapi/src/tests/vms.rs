//! VMs, their power, disks and copies.

use crate::testing::{Host, map, vbd_record, wait_for};
use database::{Ref, Value};
use hypervisor::ShutdownReason;
use hypervisor::simulator::{Call as SimulatorCall, Fault};

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn power(host: &Host, vm: &Value) -> String {
    text(&host.get("VM", vm, "power_state")).to_owned()
}

async fn start(host: &Host, vm: &Value) {
    host.ok("VM.start", [vm.clone(), false.into(), false.into()])
        .await;
}

#[tokio::test]
async fn a_vm_goes_through_its_power_states() {
    let host = Host::new().await;
    let vm = host.vm("one").await;
    let this = Value::from(host.api.host());
    for (method, expected) in [
        ("VM.start", "Running"),
        ("VM.pause", "Paused"),
        ("VM.unpause", "Running"),
        ("VM.hard_reboot", "Running"),
        ("VM.clean_reboot", "Running"),
        ("VM.clean_shutdown", "Halted"),
        ("VM.start", "Running"),
        ("VM.hard_shutdown", "Halted"),
        ("VM.start", "Running"),
        ("VM.shutdown", "Halted"),
    ] {
        match method {
            "VM.start" => start(&host, &vm).await,
            method => drop(host.ok(method, [vm.clone()]).await),
        }
        assert_eq!(power(&host, &vm), expected, "after {method}");
        let live = expected != "Halted";
        let resident = if live {
            this.clone()
        } else {
            Ref::null().into()
        };
        assert_eq!(
            host.get("VM", &vm, "resident_on"),
            resident,
            "after {method}"
        );
        assert_eq!(
            host.get("VM", &vm, "domid").as_int() > Some(0),
            live,
            "after {method}"
        );
    }
    let names = host.ok("message.get_all_records", []).await;
    let names: Vec<_> = names
        .as_map()
        .unwrap()
        .values()
        .map(|m| m.as_map().unwrap()["name"].clone())
        .collect();
    assert!(names.contains(&"VM_STARTED".into()) && names.contains(&"VM_SHUTDOWN".into()));
}

#[tokio::test]
async fn what_a_power_state_does_not_allow_says_so() {
    let host = Host::new().await;
    let vm = host.vm("one").await;
    let reference = text(&vm).to_owned();
    for (method, expected) in [
        ("VM.pause", "running"),
        ("VM.unpause", "paused"),
        ("VM.clean_shutdown", "running"),
        ("VM.hard_shutdown", "running"),
        ("VM.hard_reboot", "running"),
    ] {
        let error = host.fails(method, [vm.clone()]).await;
        assert_eq!(
            error,
            ["VM_BAD_POWER_STATE", &reference, expected, "halted"],
            "{method}"
        );
    }
    start(&host, &vm).await;
    let again = host
        .fails("VM.start", [vm.clone(), false.into(), false.into()])
        .await;
    assert_eq!(
        again,
        ["VM_BAD_POWER_STATE", &reference, "halted", "running"]
    );
    assert_eq!(
        host.fails("VM.destroy", [vm.clone()]).await[0],
        "VM_BAD_POWER_STATE"
    );
    host.ok(
        "VM.add_to_blocked_operations",
        [vm.clone(), "pause".into(), "BUSY".into()],
    )
    .await;
    assert_eq!(
        host.fails("VM.pause", [vm.clone()]).await,
        ["OPERATION_BLOCKED", &reference, "BUSY"]
    );
    let allowed = host.ok("VM.get_allowed_operations", [vm.clone()]).await;
    assert!(!allowed.as_set().unwrap().contains(&"pause".into()));
    let dom0 = host.get("host", &host.api.host().into(), "control_domain");
    assert_eq!(
        host.fails("VM.hard_shutdown", [dom0]).await[0],
        "OPERATION_NOT_ALLOWED"
    );
}

#[tokio::test]
async fn a_vm_boots_its_kernel_only_from_where_kernels_are() {
    let host = Host::new().await;
    let vm = host.vm("one").await;
    for bad in [
        "/etc/shadow",
        "/boot/guest/../../etc/shadow",
        "vmlinuz",
        "/boot/guestbook",
    ] {
        host.ok("VM.set_PV_kernel", [vm.clone(), bad.into()]).await;
        let error = host
            .fails("VM.start", [vm.clone(), false.into(), false.into()])
            .await;
        assert_eq!(
            error[..3],
            ["VALUE_NOT_SUPPORTED", "PV_kernel", bad],
            "{bad}"
        );
        assert_eq!(power(&host, &vm), "Halted");
    }
    host.ok(
        "VM.set_PV_kernel",
        [vm.clone(), "/boot/guest/vmlinuz".into()],
    )
    .await;
    start(&host, &vm).await;
}

#[tokio::test]
async fn disks_are_plugged_at_start_and_while_it_runs() {
    let host = Host::new().await;
    let sr = host.sr("store").await;
    let (vm, first, second) = (
        host.vm("one").await,
        host.vdi(&sr, "a").await,
        host.vdi(&sr, "b").await,
    );
    let vbd = host.vbd(&vm, &first).await;
    start(&host, &vm).await;
    assert_eq!(host.get("VBD", &vbd, "currently_attached"), true.into());
    assert_eq!(host.get("VBD", &vbd, "device"), "xvda".into());
    let destroyed = host.fails("VDI.destroy", [first.clone()]).await;
    assert_eq!(destroyed, ["VDI_IN_USE", text(&first), "destroy"]);
    assert_eq!(
        host.fails("VBD.plug", [vbd.clone()]).await,
        ["DEVICE_ALREADY_ATTACHED", text(&vbd)]
    );

    let pbd = host.get("SR", &sr, "PBDs").as_set().unwrap()[0].clone();
    assert_eq!(
        host.fails("PBD.unplug", [pbd]).await,
        ["VDI_IN_USE", text(&first), "unplug"]
    );

    let late = host.vbd(&vm, &second).await;
    assert_eq!(host.get("VBD", &late, "userdevice"), "1".into());
    assert_eq!(
        host.fails("VBD.unplug", [late.clone()]).await,
        ["DEVICE_ALREADY_DETACHED", text(&late)]
    );
    host.ok("VBD.plug", [late.clone()]).await;
    assert_eq!(host.get("VBD", &late, "currently_attached"), true.into());
    let allowed = host.ok("VBD.get_allowed_operations", [late.clone()]).await;
    assert_eq!(allowed, Value::Set(vec!["attach".into(), "unplug".into()]));
    assert_eq!(
        host.fails("VBD.destroy", [late.clone()]).await[0],
        "OPERATION_NOT_ALLOWED"
    );
    host.ok("VBD.unplug", [late.clone()]).await;
    host.ok("VBD.destroy", [late]).await;

    host.ok("VDI.snapshot", [first.clone()]).await;
    host.ok("VM.hard_shutdown", [vm.clone()]).await;
    assert_eq!(host.get("VBD", &vbd, "currently_attached"), false.into());
    let halted = host.fails("VBD.plug", [vbd.clone()]).await;
    assert_eq!(
        halted,
        ["VM_BAD_POWER_STATE", text(&vm), "running", "halted"]
    );
    host.ok("VDI.destroy", [first]).await;
    assert!(
        !host.all("VBD").contains(vbd.as_ref().unwrap()),
        "its link goes with a disk"
    );
}

#[tokio::test]
async fn links_are_checked_when_they_are_made() {
    let host = Host::new().await;
    let sr = host.sr("store").await;
    let (vm, vdi) = (host.vm("one").await, host.vdi(&sr, "a").await);
    let snapshot = host.ok("VDI.snapshot", [vdi.clone()]).await;
    let null = Value::from(Ref::null());
    host.ok("VBD.create", [vbd_record(&vm, &vdi, "xvdb", "Disk", "RW")])
        .await;
    for (record, expected) in [
        (
            vbd_record(&vm, &vdi, "1", "Disk", "RW"),
            vec!["DEVICE_ALREADY_EXISTS", "1"],
        ),
        (
            vbd_record(&vm, &vdi, "sofa", "Disk", "RW"),
            vec!["INVALID_DEVICE", "sofa"],
        ),
        (
            vbd_record(&vm, &snapshot, "2", "Disk", "RW"),
            vec!["VDI_READONLY", text(&snapshot)],
        ),
        (
            vbd_record(&vm, &vdi, "2", "CD", "RW"),
            vec!["VBD_CDS_MUST_BE_READONLY"],
        ),
        (
            vbd_record(&vm, &null, "2", "Disk", "RW"),
            vec!["HANDLE_INVALID", "VDI", "OpaqueRef:NULL"],
        ),
        (
            vbd_record(&vm, &vm, "2", "Disk", "RW"),
            vec!["HANDLE_INVALID", "VDI", text(&vm)],
        ),
        (
            vbd_record(&null, &vdi, "2", "Disk", "RW"),
            vec!["HANDLE_INVALID", "VM", "OpaqueRef:NULL"],
        ),
    ] {
        assert_eq!(host.fails("VBD.create", [record]).await, expected);
    }
    let free = host.ok("VM.get_allowed_VBD_devices", [vm]).await;
    let free = free.as_set().unwrap();
    assert!(free.contains(&"0".into()) && !free.contains(&"1".into()));
}

#[tokio::test]
async fn a_drive_takes_and_gives_back_its_medium() {
    let host = Host::new().await;
    let sr = host.sr("store").await;
    let (vm, medium) = (host.vm("one").await, host.vdi(&sr, "iso").await);
    let disk = host.vbd(&vm, &medium).await;
    let drive = host
        .ok(
            "VBD.create",
            [vbd_record(&vm, &Ref::null().into(), "3", "CD", "RO")],
        )
        .await;
    assert_eq!(
        host.fails("VBD.insert", [disk.clone(), medium.clone()])
            .await[0],
        "VBD_NOT_REMOVABLE_MEDIA"
    );
    assert_eq!(
        host.fails("VBD.eject", [drive.clone()]).await,
        ["VBD_IS_EMPTY", text(&drive)]
    );
    host.ok("VBD.destroy", [disk]).await;
    start(&host, &vm).await;
    assert_eq!(host.get("VBD", &drive, "currently_attached"), false.into());
    host.ok("VBD.insert", [drive.clone(), medium.clone()]).await;
    assert_eq!(host.get("VBD", &drive, "currently_attached"), true.into());
    assert_eq!(host.get("VBD", &drive, "empty"), false.into());
    let full = host.fails("VBD.insert", [drive.clone(), medium]).await;
    assert_eq!(full, ["VBD_NOT_EMPTY", text(&drive)]);
    host.ok("VBD.eject", [drive.clone()]).await;
    assert_eq!(host.get("VBD", &drive, "VDI"), Ref::null().into());
    assert_eq!(host.get("VBD", &drive, "currently_attached"), false.into());
}

#[tokio::test]
async fn a_start_that_fails_leaves_the_vm_halted_and_free() {
    let host = Host::new().await;
    let sr = host.sr("store").await;
    let (vm, vdi) = (host.vm("one").await, host.vdi(&sr, "a").await);
    let vbd = host.vbd(&vm, &vdi).await;
    host.world
        .simulator
        .inject(SimulatorCall::Create, Fault::FailBefore);
    let error = host
        .fails("VM.start", [vm.clone(), false.into(), false.into()])
        .await;
    assert_eq!(error[0], "INTERNAL_ERROR");
    assert_eq!(power(&host, &vm), "Halted");
    assert_eq!(host.get("VM", &vm, "current_operations"), map([]));
    assert_eq!(host.get("VBD", &vbd, "currently_attached"), false.into());
    host.ok("VDI.destroy", [vdi]).await;
}

#[tokio::test]
async fn what_a_guest_does_by_itself_is_written_down() {
    let host = Host::new().await;
    let vm = host.vm("one").await;
    start(&host, &vm).await;
    let uuid = text(&host.get("VM", &vm, "uuid")).parse().unwrap();
    host.world
        .simulator
        .end_guest(uuid, ShutdownReason::Poweroff);
    wait_for("it is halted", || power(&host, &vm) == "Halted").await;
}

#[tokio::test]
async fn a_vm_runs_through_a_restart_of_the_daemon() {
    let host = Host::new().await;
    let sr = host.sr("store").await;
    let (vm, stopped) = (host.vm("one").await, host.vm("two").await);
    let vbd = host.vbd(&vm, &host.vdi(&sr, "a").await).await;
    start(&host, &vm).await;
    start(&host, &stopped).await;
    let domid = host.get("VM", &vm, "domid");
    let world = host.world.clone();
    let uuid = text(&host.get("VM", &stopped, "uuid")).parse().unwrap();
    let host = host.restart_while(|| world.simulator.vanish(uuid)).await;
    wait_for("the vanished one is halted", || {
        power(&host, &stopped) == "Halted"
    })
    .await;
    assert_eq!(power(&host, &vm), "Running");
    assert_eq!(host.get("VM", &vm, "domid"), domid);
    wait_for("its disk is known", || {
        host.get("VBD", &vbd, "currently_attached") == true.into()
    })
    .await;
    host.ok("VM.hard_shutdown", [vm]).await;
}

#[tokio::test]
async fn a_snapshot_of_a_vm_has_snapshots_of_its_disks() {
    let host = Host::new().await;
    let sr = host.sr("store").await;
    let (vm, vdi) = (host.vm("one").await, host.vdi(&sr, "a").await);
    let ignored = host.vdi(&sr, "b").await;
    host.vbd(&vm, &vdi).await;
    host.vbd(&vm, &ignored).await;
    start(&host, &vm).await;
    let ignore = Value::Set(vec![ignored.clone()]);
    let snapshot = host
        .ok("VM.snapshot", [vm.clone(), "then".into(), ignore])
        .await;
    for (field, expected) in [
        ("name_label", Value::from("then")),
        ("is_a_snapshot", true.into()),
        ("is_a_template", true.into()),
        ("snapshot_of", vm.clone()),
        ("power_state", "Halted".into()),
        ("VCPUs_max", Value::Int(2)),
    ] {
        assert_eq!(host.get("VM", &snapshot, field), expected, "{field}");
    }
    let links = host.get("VM", &snapshot, "VBDs");
    assert_eq!(links.as_set().unwrap().len(), 1);
    let disk = host.get("VBD", &links.as_set().unwrap()[0], "VDI");
    assert_eq!(host.get("VDI", &disk, "snapshot_of"), vdi);
    assert_eq!(host.get("VDI", &ignored, "snapshots"), Value::Set(vec![]));
    let error = host
        .fails("VM.start", [snapshot.clone(), false.into(), false.into()])
        .await;
    assert_eq!(error, ["VM_IS_SNAPSHOT"]);
    assert_eq!(
        host.fails("VM.revert", [snapshot.clone()]).await[0],
        "VM_BAD_POWER_STATE"
    );
    host.ok("VM.hard_shutdown", [vm.clone()]).await;
    host.ok("VM.set_VCPUs_max", [vm.clone(), Value::Int(4)])
        .await;
    host.ok("VM.revert", [snapshot]).await;
    assert_eq!(host.get("VM", &vm, "VCPUs_max"), Value::Int(2));
    assert_eq!(host.get("VM", &vm, "name_label"), "one".into());
}

#[tokio::test]
async fn clones_and_copies_are_vms_with_disks_of_their_own() {
    let host = Host::new().await;
    let (sr, other) = (host.sr("store").await, host.sr("other").await);
    let (vm, vdi) = (host.vm("one").await, host.vdi(&sr, "a").await);
    host.vbd(&vm, &vdi).await;
    let clone = host.ok("VM.clone", [vm.clone(), "two".into()]).await;
    let copy = host
        .ok("VM.copy", [vm.clone(), "three".into(), other.clone()])
        .await;
    for (made, in_sr) in [(clone, sr), (copy, other)] {
        let links = host.get("VM", &made, "VBDs");
        let disk = host.get("VBD", &links.as_set().unwrap()[0], "VDI");
        assert_ne!(disk, vdi);
        assert_eq!(host.get("VDI", &disk, "SR"), in_sr);
        start(&host, &made).await;
    }
    host.ok("VM.set_is_a_template", [vm.clone(), true.into()])
        .await;
    let error = host
        .fails("VM.start", [vm.clone(), false.into(), false.into()])
        .await;
    assert_eq!(error, ["VM_IS_TEMPLATE", text(&vm)]);
    let from_template = host.ok("VM.clone", [vm, "four".into()]).await;
    host.ok("VM.provision", [from_template.clone()]).await;
    start(&host, &from_template).await;
}

#[tokio::test]
async fn a_vm_copy_that_fails_half_way_leaves_no_disk() {
    let host = Host::new().await;
    let (sr, other) = (host.sr("store").await, host.sr("other").await);
    let vm = host.vm("one").await;
    for (sr, name) in [(&sr, "a"), (&other, "b")] {
        host.vbd(&vm, &host.vdi(sr, name).await).await;
    }
    let pbd = host.get("SR", &other, "PBDs").as_set().unwrap()[0].clone();
    host.ok("PBD.unplug", [pbd]).await;
    let before = host.all("VDI");
    let error = host.fails("VM.clone", [vm, "two".into()]).await;
    assert_eq!(error, ["SR_NOT_ATTACHED", text(&other)]);
    assert_eq!(host.all("VDI"), before);
    assert_eq!(host.all("VM").len(), 2);
}

#[tokio::test]
async fn sizes_keep_their_order() {
    let host = Host::new().await;
    let vm = host.vm("one").await;
    let mib = |n: i64| Value::Int(n << 20);
    let rule = host
        .fails("VM.set_memory_dynamic_max", [vm.clone(), mib(128)])
        .await;
    assert_eq!(rule[0], "MEMORY_CONSTRAINT_VIOLATION");
    host.ok("VM.set_memory_static_max", [vm.clone(), mib(128)])
        .await;
    host.ok(
        "VM.set_memory_dynamic_range",
        [vm.clone(), mib(64), mib(128)],
    )
    .await;
    host.ok(
        "VM.set_memory_limits",
        [vm.clone(), mib(16), mib(256), mib(32), mib(256)],
    )
    .await;
    host.ok("VM.set_memory", [vm.clone(), mib(32)]).await;
    assert_eq!(host.get("VM", &vm, "memory_static_max"), mib(32));
    assert_eq!(host.get("VM", &vm, "memory_static_min"), mib(16));
    for (method, value, error) in [
        ("VM.set_VCPUs_at_startup", 3, "INVALID_VALUE"),
        ("VM.set_VCPUs_max", 0, "INVALID_VALUE"),
        ("VM.set_VCPUs_max", 1000, "INVALID_VALUE"),
    ] {
        assert_eq!(
            host.fails(method, [vm.clone(), Value::Int(value)]).await[0],
            error,
            "{method}"
        );
    }
    start(&host, &vm).await;
    assert_eq!(
        host.fails("VM.set_VCPUs_max", [vm.clone(), Value::Int(1)])
            .await[0],
        "VM_BAD_POWER_STATE"
    );
    host.ok("VM.assert_operation_valid", [vm.clone(), "pause".into()])
        .await;
    let invalid = host
        .fails("VM.assert_operation_valid", [vm, "start".into()])
        .await;
    assert_eq!(
        invalid,
        ["OPERATION_NOT_ALLOWED", "start of a VM that is Running"]
    );
}

#[tokio::test]
async fn a_destroyed_vm_takes_along_what_is_its_own() {
    let host = Host::new().await;
    let sr = host.sr("store").await;
    let (vm, vdi) = (host.vm("one").await, host.vdi(&sr, "a").await);
    host.vbd(&vm, &vdi).await;
    host.ok("VM.destroy", [vm]).await;
    assert_eq!(host.all("VBD"), Vec::<Ref>::new());
    assert_eq!(host.all("VM_metrics").len(), 1, "the control domain's");
    assert_eq!(host.all("VDI"), [vdi.as_ref().unwrap().clone()]);
}

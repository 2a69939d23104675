//! Nothing is lost when any process of a host is killed: the daemon, a plugin, a data path.

use e2e::host::{Built, Host, Hypervisor};
use e2e::process::{command, run, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::Duration;

struct Setting {
    host: Host,
    sr: String,
    dir: tempfile::TempDir,
}

fn setting() -> Setting {
    let built = Built::beside_this_test().expect("a build");
    let dir = tempfile::tempdir().expect("a directory");
    let host = Host::start(&built, dir.path(), Hypervisor::Simulator).expect("a host");
    let location = dir.path().join("sr/one");
    std::fs::create_dir_all(&location).expect("a directory");
    let location = format!("device-config:location={}", location.display());
    let sr = host
        .xe(&["sr-create", "type=file", "name-label=one", &location])
        .expect("an SR");
    Setting { host, sr, dir }
}

impl Setting {
    fn xe(&self, args: &[&str]) -> String {
        self.host
            .xe(args)
            .unwrap_or_else(|error| panic!("{error:#}\ndaemon log:\n{}", self.host.log_tail()))
    }

    fn vdi(&self, name: &str) -> String {
        let (sr, name) = (format!("sr-uuid={}", self.sr), format!("name-label={name}"));
        self.xe(&["vdi-create", &sr, &name, "virtual-size=16MiB"])
    }

    /// A started VM with one disk; returns the VM and the VDI.
    fn running_vm(&self) -> (String, String) {
        let vdi = self.vdi("disk");
        let vm = self.xe(&["vm-create", "name-label=vm"]);
        let (of_vm, of_vdi) = (format!("vm-uuid={vm}"), format!("vdi-uuid={vdi}"));
        self.xe(&[
            "vbd-create",
            &of_vm,
            &of_vdi,
            "device=0",
            "bootable=true",
            "type=Disk",
            "mode=RW",
        ]);
        self.xe(&["vm-start", &format!("uuid={vm}")]);
        (vm, vdi)
    }

    fn processes(&self, binary: &str) -> Vec<i32> {
        let named = |pid: &i32| {
            let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
            exe.is_ok_and(|exe| exe.file_name().is_some_and(|name| name == binary))
        };
        self.host.processes().into_iter().filter(named).collect()
    }

    fn kill_all(&self, binary: &str) {
        let pids = self.processes(binary);
        assert!(!pids.is_empty(), "no {binary} runs");
        for pid in pids {
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a process of ours");
        }
    }

    /// What the VDI holds, as the host exports it.
    fn content(&self, vdi: &str) -> Vec<u8> {
        let file = self.dir.path().join("export.raw");
        // xe does not overwrite files.
        std::fs::remove_file(&file).ok();
        let (uuid, name) = (
            format!("uuid={vdi}"),
            format!("filename={}", file.display()),
        );
        self.xe(&["vdi-export", &uuid, &name, "format=raw"]);
        std::fs::read(&file).expect("the export")
    }

    /// The NBD address of the only disk that is served.
    fn nbd_uri(&self) -> String {
        let mut sockets = Vec::new();
        collect_sockets(&self.dir.path().join("run"), &mut sockets);
        sockets.retain(|path| path.to_string_lossy().contains("/nbd/"));
        assert_eq!(sockets.len(), 1, "{sockets:?}");
        let socket = sockets[0].display().to_string();
        let listed = format!("nbd+unix:///?socket={socket}");
        let list = run(&mut command("nbdinfo", &["--list", "--json", &listed])).expect("nbdinfo");
        let name = list
            .split("\"export-name\": \"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        format!("nbd+unix:///{}?socket={socket}", name.expect("an export"))
    }
}

fn collect_sockets(dir: &Path, found: &mut Vec<PathBuf>) {
    use std::os::unix::fs::FileTypeExt;
    for entry in std::fs::read_dir(dir).expect("a directory").flatten() {
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            collect_sockets(&entry.path(), found);
        } else if kind.is_socket() {
            found.push(entry.path());
        }
    }
}

#[test]
fn a_killed_plugin_is_started_again_and_the_next_call_is_served() {
    let setting = setting();
    let before = setting.vdi("before");
    setting.kill_all("xylem-plugin");
    let after = wait_for(
        "a plugin that serves again",
        Duration::from_secs(30),
        || {
            let sr = format!("sr-uuid={}", setting.sr);
            setting
                .host
                .xe(&["vdi-create", &sr, "name-label=after", "virtual-size=16MiB"])
                .map(Some)
        },
    )
    .expect("a VDI");
    let listed = setting.xe(&["vdi-list", "--minimal"]);
    assert!(
        listed.contains(&before) && listed.contains(&after),
        "{listed}"
    );
}

#[test]
fn what_was_flushed_outlives_a_killed_data_path() {
    let setting = setting();
    let (vm, vdi) = setting.running_vm();
    let uri = setting.nbd_uri();
    run(&mut command(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 7 1M 1M", "-c", "flush", &uri],
    ))
    .expect("written");
    setting.kill_all("xylem-tapdisk");
    setting.xe(&["vm-shutdown", &format!("uuid={vm}"), "force=true"]);
    let content = setting.content(&vdi);
    assert!(
        content[1 << 20..2 << 20].iter().all(|byte| *byte == 7),
        "flushed data is gone"
    );
    assert!(content[..1 << 20].iter().all(|byte| *byte == 0));
}

#[test]
fn a_running_vm_is_adopted_with_its_disks_after_the_daemon_was_killed() {
    let mut setting = setting();
    let (vm, vdi) = setting.running_vm();
    let uri = setting.nbd_uri();
    setting.host.kill_daemon().expect("killed");
    // Nobody decides now; the disk is served all the same.
    run(&mut command(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 9 0 64k", "-c", "flush", &uri],
    ))
    .expect("written");
    setting.host.start_daemon().expect("started");
    let state = setting.xe(&[
        "vm-param-get",
        &format!("uuid={vm}"),
        "param-name=power-state",
    ]);
    assert_eq!(state, "running");
    let snapshot = setting.xe(&["vdi-snapshot", &format!("uuid={vdi}")]);
    run(&mut command(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 1 0 64k", "-c", "flush", &uri],
    ))
    .expect("written");
    assert!(
        setting.content(&snapshot)[..64 << 10]
            .iter()
            .all(|byte| *byte == 9)
    );
    setting.xe(&["vm-shutdown", &format!("uuid={vm}"), "force=true"]);
    assert!(
        setting.content(&vdi)[..64 << 10]
            .iter()
            .all(|byte| *byte == 1)
    );
    // One process per SR works on images at rest and stays; those of VMs and transfers must not.
    let serves_a_disk = |pid: &i32| {
        let log = std::fs::read_link(format!("/proc/{pid}/fd/2")).unwrap_or_default();
        !log.to_string_lossy().contains("tapdisk-images-")
    };
    let gone = || {
        let left = setting.processes("xylem-tapdisk");
        Ok((!left.iter().any(serves_a_disk)).then_some(()))
    };
    // Much sooner than an idle one would end by itself.
    wait_for("the data paths to end", Duration::from_secs(15), gone).expect("none left behind");
}

#[test]
fn whatever_the_daemon_was_doing_when_it_was_killed_every_vdi_opens_afterwards() {
    let mut setting = setting();
    let base = setting.vdi("base");
    for round in 0..6u64 {
        let mut work = setting
            .host
            .xe_command(&["vdi-snapshot", &format!("uuid={base}")])
            .spawn()
            .expect("xe starts");
        // A different moment in each round; which one does not matter for what must hold.
        std::thread::sleep(Duration::from_millis(15 * round));
        setting.host.kill_daemon().expect("killed");
        work.wait().expect("xe ends");
        setting.host.start_daemon().expect("started");
        let vdis = setting.xe(&["vdi-list", "--minimal"]);
        assert!(
            vdis.contains(&base),
            "the base VDI is gone in round {round}"
        );
        for vdi in vdis.split(',') {
            assert_eq!(
                setting.content(vdi).len(),
                16 << 20,
                "{vdi} in round {round}"
            );
        }
    }
}

#[test]
fn children_have_no_rights_that_they_do_not_need() {
    let setting = setting();
    setting.running_vm();
    for binary in ["xylem-tapdisk", "xylem-plugin"] {
        let pids = setting.processes(binary);
        assert!(!pids.is_empty(), "no {binary} runs");
        for pid in pids {
            let status =
                std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
            let field = |name: &str| {
                let line = status
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.unwrap_or_default().trim().to_owned()
            };
            for capabilities in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(
                    field(capabilities),
                    "0000000000000000",
                    "{binary} {capabilities}"
                );
            }
            assert_eq!(field("NoNewPrivs"), "1", "{binary}");
            let is_root = field("Uid").split_whitespace().any(|uid| uid == "0");
            assert!(
                binary != "xylem-tapdisk" || !is_root,
                "the data path is root"
            );
        }
    }
}

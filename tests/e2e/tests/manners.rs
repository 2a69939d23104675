//! How the daemon behaves as a program: configuration, exit codes, signals.

use e2e::host::{Built, Host, Hypervisor};
use std::path::Path;
use std::process::{Command, Output};

fn xylemd(args: &[&str]) -> Output {
    let built = Built::beside_this_test().expect("a build");
    Command::new(built.bin_dir.join("xylemd"))
        .args(args)
        .output()
        .expect("xylemd starts")
}

fn check_config(text: &str) -> (Option<i32>, String) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    let path = file.path().to_string_lossy().into_owned();
    let out = xylemd(&["--check-config", "--config", &path]);
    let said =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.code(), said)
}

#[test]
fn check_config_accepts_a_good_file_and_says_so() {
    let (code, said) = check_config("[metrics]\nstep_s = 10\n");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("is valid"), "{said}");
}

#[test]
fn a_typo_in_the_configuration_is_refused_by_name_with_exit_code_64() {
    let (code, said) = check_config("[api]\nhtpp = [\"127.0.0.1:80\"]\n");
    assert_eq!(code, Some(64), "{said}");
    assert!(
        said.contains("unknown field `htpp`") && said.contains("htpp = "),
        "{said}"
    );
}

#[test]
fn a_configuration_that_is_not_there_is_exit_code_64() {
    let out = xylemd(&["--config", "/nonexistent/xylemd.toml"]);
    assert_eq!(out.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&out.stderr).contains("/nonexistent/xylemd.toml"));
}

#[test]
fn wrong_arguments_are_exit_code_64_and_help_is_0() {
    assert_eq!(xylemd(&["--no-such-flag"]).status.code(), Some(64));
    let help = xylemd(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for wanted in ["EXIT STATUS", "FILES", "SIGNALS", "--check-config"] {
        assert!(
            String::from_utf8_lossy(&help.stdout).contains(wanted),
            "{wanted} is not in the help"
        );
    }
}

#[test]
fn a_port_that_is_taken_is_exit_code_1_and_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().display();
    let text = format!(
        "[paths]\nstate_dir = \"{at}/s\"\nrun_dir = \"{at}/r\"\nlog_dir = \"{at}/l\"\n\
         [api]\nhttp = [\"{address}\"]\nunix_socket = \"{at}/x\"\n[hypervisor]\nbackend = \"simulator\"\n"
    );
    let file = dir.path().join("c.toml");
    std::fs::write(&file, text).expect("written");
    let out = xylemd(&["--config", &file.to_string_lossy()]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains(&address));
}

fn make_sr(host: &Host, dir: &Path) -> String {
    std::fs::create_dir_all(dir.join("sr/one")).expect("a directory");
    let location = format!("device-config:location={}", dir.join("sr/one").display());
    host.xe(&["sr-create", "type=file", "name-label=one", &location])
        .expect("an SR")
}

#[test]
fn one_request_id_follows_a_call_through_daemon_plugin_and_data_path() {
    let built = Built::beside_this_test().expect("a build");
    let dir = tempfile::tempdir().expect("a directory");
    let host = Host::start(&built, dir.path(), Hypervisor::Simulator).expect("a host");
    let sr = format!("sr-uuid={}", make_sr(&host, dir.path()));
    let vdi = host
        .xe(&["vdi-create", &sr, "name-label=d", "virtual-size=4MiB"])
        .expect("a VDI");
    host.xe(&["vdi-snapshot", &format!("uuid={vdi}")])
        .expect("a snapshot");

    let log = host.log().expect("the daemon's log");
    let said = log
        .lines()
        .find(|line| line.contains("command=\"vdi-snapshot\""));
    let id = said
        .and_then(|line| line.split("request_id=").nth(1)?.split([' ', '}']).next())
        .unwrap_or_else(|| panic!("no request id in the log:\n{log}"));
    let with_id: Vec<&str> = log.lines().filter(|line| line.contains(id)).collect();
    let of = |wanted: &str| with_id.iter().any(|line| line.contains(wanted));
    for wanted in [
        "VDI.snapshot",
        "plugin.call",
        "containers.create",
        "sm-file",
    ] {
        assert!(
            of(wanted),
            "{wanted} is not logged under {id}:\n{}",
            with_id.join("\n")
        );
    }
    let logs = std::fs::read_dir(dir.path().join("log")).expect("the children's logs");
    let told = logs
        .flatten()
        .any(|file| std::fs::read_to_string(file.path()).is_ok_and(|text| text.contains(id)));
    assert!(told, "no data-path log has {id}");
}

#[test]
fn a_daemon_whose_parent_blocks_signals_hears_sigterm() {
    let built = Built::beside_this_test().expect("a build");
    let dir = tempfile::tempdir().expect("a directory");
    // Children inherit the mask of the thread that starts them.
    let mask = nix::sys::signal::SigSet::all();
    let started = std::thread::spawn(move || {
        mask.thread_block().expect("blocked");
        let host = Host::start(&built, dir.path(), Hypervisor::Simulator);
        (host.expect("a host"), dir)
    });
    let (mut host, _dir) = started.join().expect("no panic");
    let status = host.stop_daemon().expect("it stops");
    assert!(status.success(), "{status}\n{}", host.log_tail());
}

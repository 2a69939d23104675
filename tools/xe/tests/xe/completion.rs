//! The bash script, driven as bash drives it, over a program that answers as a server does.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Answers what completion asks, and counts how often it asks for the list of commands.
const ANSWERS: &str = r#"#!/bin/sh
case "$*" in
    *"help --minimal --all") echo asked >>"$0.count"; echo 'sr-list,vdi-create,vdi-list,vdi-param-get,vm-list,vm-start' ;;
    *"help vm-start") printf 'command name            : vm-start\n        reqd params     : \n        optional params : force, on, <vm-selectors>\n' ;;
    *"help vdi-create") printf 'command name            : vdi-create\n        reqd params     : sr-uuid, name-label\n        optional params : type, sm-config:\n' ;;
    *"help vdi-list") printf '        optional params : params, uuid, name-label, tags:contains\n' ;;
    *"vdi-list params=uuid --minimal") echo '1111,1122,2222' ;;
    *"sr-list params=uuid --minimal") echo 'aaaa' ;;
    *"vm-list params=name-label --minimal") echo 'web\, old,web two,db' ;;
    *) echo "unexpected: $*" >>"$0.count"; exit 1 ;;
esac
"#;

fn bash(directory: &Path, script: &str) -> String {
    let path = format!("{}:/usr/bin:/bin", directory.display());
    let output = Command::new("bash")
        .args(["--norc", "-c", script])
        .env_clear()
        .env("PATH", path)
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout).unwrap()
}

/// A directory with the script and the program that answers it.
fn prepared() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let script = Command::new(env!("CARGO_BIN_EXE_xe"))
        .args(["completion", "bash"])
        .output()
        .unwrap();
    std::fs::write(dir.path().join("xe.bash"), script.stdout).unwrap();
    let program = dir.path().join("xe");
    std::fs::write(&program, ANSWERS).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(dir.path().join("disk image"), "").unwrap();
    dir
}

#[test]
fn bash_offers_commands_parameters_and_values() {
    let dir = prepared();
    for (line, offered) in [
        ("xe vm", "vm-list |vm-start "),
        ("xe vdi-p", "vdi-param-get "),
        (
            "xe -s host v",
            "vdi-create |vdi-list |vdi-param-get |vm-list |vm-start ",
        ),
        ("xe vm-start ", "force=|on=|vm=|uuid=|--multiple "),
        ("xe vdi-create s", "sr-uuid=|sm-config:"),
        ("xe vdi-create sr-uuid=", "aaaa "),
        ("xe vdi-param-get uuid=11", "1111 |1122 "),
        ("xe vm-start vm=w", r"web\,\ old |web\ two "),
        ("xe vm-start --m", "--minimal |--multiple "),
        ("xe vdi-list params=", "uuid |name-label |all "),
        ("xe vdi-list params=uuid,n", "uuid,name-label "),
        ("xe vdi-import filename=disk", r"disk\ image "),
        ("xe completion ", "bash |zsh |fish "),
        ("xe help vm-l", "vm-list "),
    ] {
        let script = format!(
            "source ./xe.bash; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; _xe; IFS='|'; echo -n \"${{COMPREPLY[*]}}\""
        );
        assert_eq!(bash(dir.path(), &script), offered, "{line:?}");
    }
}

#[test]
fn bash_asks_for_the_commands_of_a_server_once() {
    let dir = prepared();
    let press = "COMP_LINE='xe vm'; COMP_POINT=5; _xe;";
    bash(
        dir.path(),
        &format!("source ./xe.bash; {press} {press} {press}"),
    );
    let asked = std::fs::read_to_string(dir.path().join("xe.count")).unwrap();
    assert_eq!(asked, "asked\n");
}

#[test]
fn the_scripts_are_free_of_syntax_errors_where_their_shell_is_there_to_tell() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Command::new(env!("CARGO_BIN_EXE_xe"))
            .args(["completion", shell])
            .output()
            .unwrap();
        assert!(
            script.status.success() && script.stdout.len() > 1000,
            "{shell}"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), script.stdout).unwrap();
        match Command::new(shell).arg("-n").arg(file.path()).output() {
            Ok(checked) => {
                assert!(
                    checked.status.success(),
                    "{}",
                    String::from_utf8_lossy(&checked.stderr)
                );
            }
            Err(problem) => eprintln!("{shell} is not here, its script was not checked: {problem}"),
        }
    }
}

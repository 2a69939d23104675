//! Conversations: printing, asking, loading, sending and fetching.

use crate::server::{Said, Web, run};
use thin_cli::{Command, Response};

fn print(text: &str) -> Command {
    Command::Print(text.to_owned())
}

fn put(filename: &str) -> Command {
    Command::HttpPut {
        filename: filename.to_owned(),
        url: "/import?x=1".to_owned(),
    }
}

fn get(filename: &str) -> Command {
    Command::HttpGet {
        filename: filename.to_owned(),
        url: "/export?x=1".to_owned(),
    }
}

#[test]
fn what_the_server_says_is_printed_and_its_code_is_the_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let script = [
        print("one"),
        Command::PrintStderr("two".into()),
        Command::Debug("unseen".into()),
        Command::Error {
            code: "E".into(),
            params: vec!["a".into(), "b".into()],
        },
        Command::Exit(7),
    ];
    let args = [
        "vm-list",
        "--minimal",
        "params=all",
        "-u",
        "me",
        "-pw",
        "secret",
    ];
    let outcome = run(dir.path(), &args, "", &script, None);
    assert_eq!(
        outcome.args,
        [
            "vm-list",
            "--minimal",
            "params=all",
            "username=me",
            "password=secret"
        ]
    );
    assert_eq!(outcome.out(), "one\n");
    assert_eq!(outcome.err(), "twoError code: E\nError parameters: a, b\n");
    assert_eq!(outcome.code(), 7);
}

#[test]
fn debug_output_is_shown_at_once_or_only_after_a_failure() {
    for (option, code, shown) in [
        ("--debug", 0, true),
        ("--debug-on-fail", 0, false),
        ("--debug-on-fail", 1, true),
        ("--minimal", 1, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let script = [Command::Debug("inside".into()), Command::Exit(code)];
        let outcome = run(dir.path(), &["vm-list", option], "", &script, None);
        assert_eq!(
            (outcome.err().contains("inside"), outcome.code()),
            (shown, code),
            "{option}"
        );
    }
}

#[test]
fn the_user_is_asked_for_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let script = [Command::Prompt, Command::Exit(0)];
    let outcome = run(dir.path(), &["vm-uninstall"], "yes\nmore\n", &script, None);
    assert_eq!(outcome.said, [Said::Blob(b"yes".to_vec())]);
    let outcome = run(dir.path(), &["vm-uninstall"], "", &script, None);
    assert_eq!(outcome.said, [Said::Blob(vec![])]);
}

#[test]
fn files_that_the_user_named_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("licence"), b"text").unwrap();
    let script = [
        Command::Load("licence".into()),
        Command::Load("./missing".into()),
        Command::Exit(0),
    ];
    let args = ["host-license-add", "license-file=licence", "other=missing"];
    let outcome = run(dir.path(), &args, "", &script, None);
    assert_eq!(
        outcome.said,
        [Said::Blob(b"text".to_vec()), Said::Answer(Response::Failed)]
    );
    assert!(outcome.err().contains("missing"), "{}", outcome.err());
}

#[test]
fn a_server_that_names_another_file_is_left() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("private"), b"key").unwrap();
    let target = dir.path().join("new").to_str().unwrap().to_owned();
    for command in [
        Command::Load("private".into()),
        put("private"),
        put("../private"),
        get(&target),
    ] {
        let script = [command.clone(), print("unreached"), Command::Exit(0)];
        let outcome = run(
            dir.path(),
            &["vdi-import", "filename=disk", "uuid=1"],
            "",
            &script,
            None,
        );
        assert_eq!(
            (outcome.code(), outcome.out().as_str()),
            (1, ""),
            "{command:?}"
        );
        assert!(
            outcome.err().contains("not among the arguments: refused"),
            "{}",
            outcome.err()
        );
        assert_eq!(outcome.said.first(), Some(&Said::Gone), "{command:?}");
        assert!(!dir.path().join("new").exists());
    }
}

#[test]
fn a_file_is_sent_to_servers_that_answer_before_and_after_they_take_it() {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    std::fs::write(dir.path().join("disk"), &content).unwrap();
    for early in [true, false] {
        let web = Web {
            answer: "200 OK",
            body: b"",
            early,
        };
        let script = [put("disk"), Command::Exit(0)];
        let outcome = run(
            dir.path(),
            &["vdi-import", "filename=disk"],
            "",
            &script,
            Some(web),
        );
        let [Said::Request(head, body), Said::Answer(answer)] = &outcome.said[..] else {
            panic!("{:?} {}", outcome.said.len(), outcome.err())
        };
        assert!(head.starts_with("PUT /import?x=1 HTTP/1.0\r\n"), "{head}");
        assert!(*body == content && *answer == Response::Ok, "early {early}");
    }
}

#[test]
fn a_pipe_is_sent_in_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let web = Web {
        answer: "200 OK",
        body: b"",
        early: true,
    };
    let script = [put("/dev/stdin"), Command::Exit(0)];
    let outcome = run(
        dir.path(),
        &["vdi-import", "filename=/dev/stdin"],
        "piped",
        &script,
        Some(web),
    );
    let Some(Said::Request(head, body)) = outcome.said.first() else {
        panic!("{}", outcome.err())
    };
    assert!(
        head.starts_with("PUT /import?x=1 HTTP/1.1\r\n") && body == b"piped",
        "{head}"
    );
}

#[test]
fn a_refused_upload_is_a_failure_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("disk"), vec![0; 1 << 20]).unwrap();
    let web = Web {
        answer: "403 Forbidden",
        body: b"",
        early: false,
    };
    let script = [put("disk"), Command::Exit(1)];
    let outcome = run(
        dir.path(),
        &["vdi-import", "filename=disk"],
        "",
        &script,
        Some(web),
    );
    assert_eq!(outcome.said.last(), Some(&Said::Answer(Response::Failed)));
    assert_eq!(
        outcome.err(),
        "Error: the server answered: HTTP/1.1 403 Forbidden\n"
    );
}

#[test]
fn a_download_makes_a_private_file_and_overwrites_none() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let web = Web {
        answer: "200 OK\r\nContent-Length: 7",
        body: b"content",
        early: false,
    };
    let script = [get("disk"), Command::Exit(0)];
    let args = ["vdi-export", "filename=disk"];
    let outcome = run(dir.path(), &args, "", &script, Some(web.clone()));
    assert_eq!(
        (outcome.said.last(), outcome.err().as_str()),
        (Some(&Said::Answer(Response::Ok)), "")
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"content");
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );

    std::fs::write(&path, b"mine").unwrap();
    let outcome = run(dir.path(), &args, "", &script, Some(web));
    assert_eq!(outcome.said.last(), Some(&Said::Answer(Response::Failed)));
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

#[test]
fn half_a_download_is_not_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let web = Web {
        answer: "200 OK\r\nContent-Length: 9",
        body: b"content",
        early: false,
    };
    let script = [get("disk"), Command::Exit(1)];
    let outcome = run(
        dir.path(),
        &["vdi-export", "filename=disk"],
        "",
        &script,
        Some(web),
    );
    assert_eq!(outcome.said.last(), Some(&Said::Answer(Response::Failed)));
    assert_eq!(
        outcome.err(),
        "Error: the download ended after 7 of 9 bytes\n"
    );
    assert!(!dir.path().join("disk").exists());
}

#[test]
fn a_download_without_a_file_goes_to_the_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    let web = Web {
        answer: "200 OK",
        body: b"content",
        early: false,
    };
    let script = [get(""), Command::Exit(0)];
    let outcome = run(
        dir.path(),
        &["vdi-export", "filename="],
        "",
        &script,
        Some(web),
    );
    assert_eq!((outcome.out().as_str(), outcome.code()), ("content", 0));
}

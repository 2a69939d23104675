//! What a plugin may do is what was granted, on both carriers by the same host functions.

use crate::harness::{Bench, CARRIERS, artifact, manifest};
use plugin::{Grants, Request};
use std::os::unix::fs::symlink;
use units::RequestId;

#[tokio::test]
async fn paths_outside_the_granted_directory_are_refused_in_every_way() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let hostile = bench.hostile(carrier).await;
        let granted = bench.granted.display().to_string();
        std::fs::create_dir(bench.beside("outside")).unwrap();
        std::fs::write(bench.beside("outside/secret"), "secret").unwrap();
        symlink(bench.beside("outside"), bench.granted.join("link")).unwrap();
        symlink(
            bench.beside("outside/secret"),
            bench.granted.join("file-link"),
        )
        .unwrap();
        symlink("/proc/self/root", bench.granted.join("magic")).unwrap();
        for path in [
            "/etc/hostname".to_owned(),
            format!("{granted}/../outside/secret"),
            format!("{granted}/link/secret"),
            format!("{granted}/link/new"),
            format!("{granted}/magic/etc/hostname"),
            format!("{granted}-not/x"),
            "relative".to_owned(),
            String::new(),
        ] {
            let answers = hostile.misbehave("reach", &path).await.unwrap();
            for answer in answers.split(' ') {
                let refused = answer.ends_with("Denied") || answer.ends_with("Invalid");
                assert!(refused, "{path:?} on {carrier:?}: {answers}");
            }
        }
        let secret = std::fs::read_to_string(bench.beside("outside/secret")).unwrap();
        assert_eq!(secret, "secret");
        assert_eq!(
            std::fs::read_dir(bench.beside("outside")).unwrap().count(),
            1
        );
    }
}

#[tokio::test]
async fn a_link_itself_is_replaced_and_never_followed() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let hostile = bench.hostile(carrier).await;
        std::fs::write(bench.beside("secret"), "secret").unwrap();
        let link = bench.granted.join("link");
        symlink(bench.beside("secret"), &link).unwrap();
        let answers = hostile
            .misbehave("reach", link.to_str().unwrap())
            .await
            .unwrap();
        // read, entries, write, create, create-directory, set-length, rename
        let [read, entries, write, ..] = answers.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{answers}");
        };
        assert!(
            read.ends_with("Denied") && entries.ends_with("Invalid"),
            "{answers}"
        );
        assert_eq!(write, "done", "{answers}");
        assert_eq!(
            std::fs::read_to_string(bench.beside("secret")).unwrap(),
            "secret"
        );
    }
}

#[tokio::test]
async fn nothing_is_granted_by_default() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let file = artifact("hostile-storage", carrier);
        let manifest = manifest("hostile-storage");
        bench
            .host
            .load(&file, &manifest, &Grants::default())
            .await
            .unwrap();
        let storage = bench.host.storage("hostile").unwrap();
        let hostile = crate::harness::Hostile { storage, carrier };
        let path = bench.granted.join("x");
        let answers = hostile
            .misbehave("reach", path.to_str().unwrap())
            .await
            .unwrap();
        assert!(
            answers.split(' ').all(|answer| answer.ends_with("Denied")),
            "{answers}"
        );
        let answers = hostile.misbehave("ask", "").await.unwrap();
        let kinds: Vec<_> = answers
            .split(' ')
            .map(|kind| kind.rsplit(':').next())
            .collect();
        let expected = ["Denied", "Invalid", "Invalid", "Invalid", "Unsupported"].map(Some);
        assert_eq!(kinds, expected, "{carrier:?}");
    }
}

#[tokio::test]
async fn state_outlives_the_process_and_settings_are_the_administrators() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let hostile = bench.hostile(carrier).await;
        assert_eq!(hostile.misbehave("remember", "").await.unwrap(), "1");
        hostile.misbehave("exit", "").await.unwrap_err();
        assert_eq!(hostile.misbehave("remember", "").await.unwrap(), "2");
        assert_eq!(hostile.misbehave("setting", "").await.unwrap(), "blue");
        let mut grants = bench.grants();
        grants.alias = Some("red".to_owned());
        grants
            .settings
            .insert("colour".to_owned(), "red".to_owned());
        let file = artifact("hostile-storage", carrier);
        bench
            .host
            .load(&file, &manifest("hostile-storage"), &grants)
            .await
            .unwrap();
        let storage = bench.host.storage("red").unwrap();
        let red = crate::harness::Hostile { storage, carrier };
        assert_eq!(red.misbehave("setting", "").await.unwrap(), "red");
        assert_eq!(
            red.misbehave("remember", "").await.unwrap(),
            "1",
            "state is the plugin's own"
        );
    }
}

#[tokio::test]
async fn log_lines_carry_the_request_and_are_limited() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let hostile = bench.hostile(carrier).await;
        let id = RequestId::random();
        Request::new(id.clone())
            .scope(hostile.misbehave("flood", ""))
            .await
            .unwrap();
        let lines = bench.services.lines.lock().clone();
        assert_eq!(lines.len(), 20, "the manifest allows twenty a minute");
        assert_eq!(lines[0], (Some(id), "line 0".to_owned()));
    }
}

#[tokio::test]
async fn what_a_plugin_prints_goes_to_the_log() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let hostile = bench.hostile(carrier).await;
        hostile.misbehave("print", "").await.unwrap();
        let printed = |bench: &Bench| {
            let lines = bench.services.lines.lock();
            lines
                .iter()
                .any(|(_, line)| line == "printed by the plugin")
        };
        bench.until("the line is in the log", printed).await;
    }
}

//! Plugins that are not what they say: refused when they are loaded, or when they answer.

use crate::harness::{Bench, CARRIERS, artifact, config, manifest};
use plugin::PluginErrorKind::{self as Kind, Crashed, Exists, Incompatible, Invalid};
use plugin::{Carrier, Grants, Manifest, PluginError, SrHandle, StoragePlugin};
use std::path::{Path, PathBuf};
use units::{MIB, SrUuid};

async fn refused(bench: &Bench, file: &Path, manifest: &Manifest, word: &str) {
    let error = bench
        .host
        .load(file, manifest, &bench.grants())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Incompatible, "{error}");
    assert!(
        error.to_string().contains(word),
        "{error} does not say {word:?}"
    );
}

/// Writes `sm-file` with every `from` made `to`.
fn patched(bench: &Bench, carrier: Carrier, from: &[u8], to: &[u8]) -> PathBuf {
    assert_eq!(from.len(), to.len());
    let original = artifact("sm-file", carrier);
    let mut bytes = std::fs::read(&original).unwrap();
    let mut places = 0;
    for start in 0..bytes.len().saturating_sub(from.len()) {
        if bytes[start..].starts_with(from) {
            bytes[start..start + from.len()].copy_from_slice(to);
            places += 1;
        }
    }
    assert!(places > 0, "{} has no {from:?}", original.display());
    let file = bench.beside(original.file_name().unwrap().to_str().unwrap());
    std::fs::write(&file, bytes).unwrap();
    file
}

#[tokio::test]
async fn a_plugin_of_another_version_than_its_manifest_is_refused() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let mut manifest = manifest("sm-file");
        manifest.plugin.version = "0.1.1".to_owned();
        refused(&bench, &artifact("sm-file", carrier), &manifest, "0.1.1").await;
    }
}

#[tokio::test]
async fn a_plugin_of_another_kind_than_its_manifest_is_refused() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let mut manifest = manifest("sm-file");
        manifest.plugin.kind = plugin::PluginKind::Monitor;
        refused(&bench, &artifact("sm-file", carrier), &manifest, "monitor").await;
    }
}

#[tokio::test]
async fn another_interface_version_is_refused() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let file = match carrier {
            Carrier::SharedObject => patched(&bench, carrier, b"-plugin@0.1.0", b"-plugin@0.9.0"),
            Carrier::Component => patched(&bench, carrier, b"/sr@0.1.0", b"/sr@0.9.0"),
        };
        refused(&bench, &file, &manifest("sm-file"), "0.9.0").await;
    }
}

#[tokio::test]
async fn a_library_with_another_magic_or_interface_or_name_is_refused() {
    let magic = u64::from_be_bytes(*b"XYLEMPLG").to_le_bytes();
    let with_abi = |abi: u8| [&magic[..], &[abi, 0, 0, 0]].concat();
    let carrier = Carrier::SharedObject;
    let bench = Bench::new();
    let file = patched(&bench, carrier, &with_abi(1), &with_abi(2));
    refused(&bench, &file, &manifest("sm-file"), "binary interface 2").await;
    let file = patched(
        &bench,
        carrier,
        &with_abi(1),
        &[&b"GARBAGE!"[..], &[1, 0, 0, 0]].concat(),
    );
    refused(&bench, &file, &manifest("sm-file"), "magic").await;
    let mut other_name = manifest("sm-file");
    other_name.plugin.name = "sm-other".to_owned();
    refused(
        &bench,
        &artifact("sm-file", carrier),
        &other_name,
        "sm-other",
    )
    .await;
}

#[tokio::test]
async fn what_is_no_plugin_at_all_is_refused() {
    for (name, content) in [
        ("text.wasm", &b"hello"[..]),
        ("module.wasm", b"\0asm\x01\0\0\0"),
        ("empty-component.wasm", b"\0asm\x0d\0\x01\0"),
        ("text.so", b"hello"),
        ("empty.so", b""),
    ] {
        let bench = Bench::new();
        let file = bench.beside(name);
        std::fs::write(&file, content).unwrap();
        refused(&bench, &file, &manifest("sm-file"), "").await;
    }
    let (bench, manifest) = (Bench::new(), manifest("sm-file"));
    for (name, kind) in [("x.exe", Invalid), ("gone.so", Kind::Io)] {
        let file = bench.beside(name);
        let error = bench
            .host
            .load(&file, &manifest, &bench.grants())
            .await
            .unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
    }
}

#[tokio::test]
async fn a_component_that_imports_more_than_it_may_is_refused() {
    let bench = Bench::new();
    let file = artifact("std-files", Carrier::Component);
    refused(&bench, &file, &manifest("std-files"), "wasi:filesystem").await;
}

#[tokio::test]
async fn an_artifact_with_another_digest_is_refused() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let loaded = bench.load("sm-file", carrier).await.unwrap();
        assert_eq!(loaded.sha256.len(), 64);
        let mut manifest = manifest("sm-file");
        let grants = Grants {
            alias: Some("pinned".to_owned()),
            ..bench.grants()
        };
        for (pinned, works) in [(loaded.sha256.clone(), true), ("0".repeat(64), false)] {
            manifest.sha256.wasm = Some(pinned.clone());
            manifest.sha256.so = Some(pinned);
            let file = artifact("sm-file", carrier);
            let result = bench.host.load(&file, &manifest, &grants).await;
            match result {
                Ok(again) => assert!(works && again.driver == "pinned"),
                Err(error) if works => panic!("{error}"),
                Err(error) => assert!(matches!(error.kind, Incompatible | Exists), "{error}"),
            }
        }
    }
}

#[tokio::test]
async fn one_driver_is_served_by_one_plugin_and_an_alias_by_another() {
    let bench = Bench::new();
    bench.load("sm-file", Carrier::Component).await.unwrap();
    let again = bench
        .load("sm-file", Carrier::SharedObject)
        .await
        .unwrap_err();
    assert_eq!(again.kind, Exists, "{again}");
    let grants = Grants {
        alias: Some("file-so".to_owned()),
        ..bench.grants()
    };
    let file = artifact("sm-file", Carrier::SharedObject);
    bench
        .host
        .load(&file, &manifest("sm-file"), &grants)
        .await
        .unwrap();
    assert!(bench.host.storage("file").is_some() && bench.host.storage("file-so").is_some());
    assert_eq!(bench.host.loaded().len(), 2);
}

#[tokio::test]
async fn answers_that_break_the_contract_are_errors() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let hostile = bench.hostile(carrier).await;
        let storage = &hostile.storage;
        let handle = |text: &str| SrHandle(text.to_owned());
        let id = "a".parse().unwrap();
        let lie = |what: &str, result: Result<(), PluginError>| {
            let error = result.expect_err(what);
            assert_eq!(error.kind, Incompatible, "{what} on {carrier:?}: {error}");
        };
        let config = config(&[("mode", "long-handle")]);
        lie(
            "handle",
            storage.sr_attach(SrUuid::random(), &config).await.map(drop),
        );
        lie(
            "stat",
            storage
                .sr_stat(&handle("more-free-than-total "))
                .await
                .map(drop),
        );
        lie(
            "twice",
            storage.container_list(&handle("twice ")).await.map(drop),
        );
        lie(
            "forged",
            storage.container_list(&handle("forged ")).await.map(drop),
        );
        let create = storage
            .container_create(&handle("other-id "), &id, MIB)
            .await;
        lie("other id", create.map(drop));
        let create = storage
            .container_create(&handle("too-small "), &id, MIB)
            .await;
        lie("too small", create.map(drop));
        let inside = bench.granted.join("x");
        let escapes = format!("{}/../x", bench.granted.display());
        for path in ["/etc/shadow", "relative", "", escapes.as_str(), "/dev/mem"] {
            let located = storage
                .container_locate(&handle(&format!("file {path}")), &id)
                .await;
            lie(path, located.map(drop));
        }
        lie(
            "device",
            storage
                .container_locate(&handle("device "), &id)
                .await
                .map(drop),
        );
        let handle = handle(&format!("file {}", inside.display()));
        storage.container_locate(&handle, &id).await.unwrap();
    }
}

#[tokio::test]
async fn arguments_that_cannot_be_are_refused_before_the_plugin_sees_them() {
    let bench = Bench::new();
    let hostile = bench.hostile(Carrier::Component).await;
    let storage = &hostile.storage;
    let (handle, id) = (SrHandle("well ".to_owned()), "a".parse().unwrap());
    for bytes in [0, u64::MAX] {
        let error = storage
            .container_create(&handle, &id, bytes)
            .await
            .unwrap_err();
        assert_eq!(error.kind, Invalid, "{error}");
    }
    let long = config(&[("key", "x".repeat(5000).as_str())]);
    assert_eq!(storage.sr_probe(&long).await.unwrap_err().kind, Invalid);
}

#[tokio::test]
async fn garbage_from_a_library_is_told_from_a_refusal() {
    let bench = Bench::new();
    bench
        .load("raw-native", Carrier::SharedObject)
        .await
        .unwrap();
    let storage = bench.host.storage("raw").unwrap();
    for (mode, kind, word) in [
        ("well", Kind::Busy, "proper"),
        ("no-json", Incompatible, "shape"),
        ("empty", Incompatible, "shape"),
        ("other-shape", Incompatible, "shape"),
        ("bad-kind", Incompatible, "shape"),
        ("host-kind", Incompatible, "cannot answer crashed"),
        ("huge", Incompatible, "1099511627776 bytes"),
        ("status", Incompatible, "status 99"),
        ("close", Crashed, ""),
        ("well", Kind::Busy, "proper"),
        ("frame", Incompatible, "frame of"),
        ("well", Kind::Busy, "proper"),
    ] {
        let handle = storage
            .sr_attach(SrUuid::random(), &config(&[("mode", mode)]))
            .await
            .unwrap();
        let error = storage.sr_stat(&handle).await.unwrap_err();
        assert_eq!(error.kind, kind, "{mode}: {error}");
        assert!(error.to_string().contains(word), "{mode}: {error}");
    }
}

#[tokio::test]
async fn a_granted_directory_must_be_there() {
    let bench = Bench::new();
    let grants = Grants {
        files: vec![bench.beside("missing")],
        ..Grants::default()
    };
    let file = artifact("sm-file", Carrier::Component);
    let error = bench
        .host
        .load(&file, &manifest("sm-file"), &grants)
        .await
        .unwrap_err();
    assert_eq!(error.kind, Invalid, "{error}");
    assert!(error.to_string().contains("missing"), "{error}");
}

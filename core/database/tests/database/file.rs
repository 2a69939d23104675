//! Files: older and newer ones, damaged ones, ones in use.

use crate::{objects, open, schema};
use database::{ClassSchema, Database, ErrorKind, FieldSchema, Ref, Schema, Type, Value};
use std::path::Path;

fn kind(path: &Path, schema: Schema) -> Option<ErrorKind> {
    Database::open(path, schema)
        .err()
        .map(|problem| problem.kind())
}

fn write_some(path: &Path) {
    let db = open(path);
    for round in 0..20 {
        db.transact(|tx| {
            (0..10).try_for_each(|at| {
                let name = format!("{round}-{at}");
                let fields = [
                    ("name_label", Value::from(name.as_str())),
                    ("uuid", name.as_str().into()),
                ];
                tx.create("VM", Ref::from(format!("OpaqueRef:{name}")), fields)
            })
        })
        .unwrap();
        db.bucket("b").put(&round.to_string(), &round).unwrap();
    }
}

#[test]
fn a_file_of_a_newer_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    write_some(&path);
    let older = || Schema {
        version: schema().version - 1,
        ..schema()
    };
    assert_eq!(kind(&path, older()), Some(ErrorKind::Newer));
    let text = Database::open(&path, older()).err().unwrap().to_string();
    assert!(
        text.ends_with("has schema version 3, newer than 2"),
        "{text}"
    );
    assert_eq!(objects(&open(&path)).len(), 200);
}

#[test]
fn a_file_of_an_older_version_gets_defaults_and_loses_what_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let vm = Ref::random();
    {
        let db = open(&path);
        db.transact(|tx| {
            tx.create(
                "VM",
                vm.clone(),
                [("name_label", "a".into()), ("memory", Value::Int(5))],
            )?;
            tx.create("VDI", Ref::random(), [("name_label", Value::from("gone"))])
        })
        .unwrap();
    }
    let fields = vec![
        FieldSchema::stored("name_label", Type::String),
        FieldSchema {
            default: Some("new".into()),
            ..FieldSchema::stored("fresh", Type::String)
        },
        FieldSchema {
            default: Some("text".into()),
            ..FieldSchema::stored("memory", Type::String)
        },
    ];
    let newer = || Schema {
        version: 4,
        classes: vec![ClassSchema {
            name: "VM".into(),
            fields: fields.clone(),
        }],
    };
    for _ in 0..2 {
        let db = Database::open(&path, newer()).unwrap();
        let row = db.snapshot().row("VM", &vm).unwrap();
        let seen = ["name_label", "fresh", "memory", "uuid"].map(|field| row.get(field));
        assert_eq!(seen, ["a".into(), "new".into(), "text".into(), Value::Null]);
        // Once written under the new version there is no excuse any more.
        db.transact(|tx| tx.set("VM", &vm, "name_label", "b".into()))
            .unwrap();
        db.transact(|tx| tx.set("VM", &vm, "name_label", "a".into()))
            .unwrap();
    }
    assert_eq!(kind(&path, schema()), Some(ErrorKind::Newer));
}

#[test]
fn a_file_whose_rows_contradict_the_schema_of_its_version_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    write_some(&path);
    let mut other = schema();
    other.classes[0].fields[2] = FieldSchema::stored("memory", Type::String);
    assert_eq!(kind(&path, other), Some(ErrorKind::Damaged));
    let mut without_vm = schema();
    without_vm.classes.truncate(0);
    assert_eq!(kind(&path, without_vm), Some(ErrorKind::Damaged));
}

#[test]
fn a_file_in_use_is_locked_and_a_missing_directory_is_an_io_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = open(&path);
    assert_eq!(kind(&path, schema()), Some(ErrorKind::Locked));
    drop(db);
    assert_eq!(kind(&path, schema()), None);
    assert_eq!(
        kind(&dir.path().join("missing/db"), schema()),
        Some(ErrorKind::Io)
    );
}

#[test]
fn a_file_that_is_no_database_is_refused_and_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    for content in [
        b"x".to_vec(),
        b"not a database ".repeat(1000),
        vec![0; 8192],
    ] {
        std::fs::write(&path, &content).unwrap();
        assert_eq!(
            kind(&path, schema()),
            Some(ErrorKind::Damaged),
            "{} bytes",
            content.len()
        );
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
}

#[test]
fn a_flipped_byte_gives_the_same_contents_or_an_error_never_other_contents() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    write_some(&path);
    let intact = objects(&open(&path));
    let bytes = std::fs::read(&path).unwrap();
    let (mut refused, mut same) = (0, 0);
    for at in (0..1024)
        .step_by(7)
        .chain((1024..bytes.len()).step_by(bytes.len() / 200))
    {
        let mut broken = bytes.clone();
        broken[at] ^= 0x41;
        std::fs::write(&path, &broken).unwrap();
        match Database::open(&path, schema()) {
            Ok(db) => {
                assert_eq!(objects(&db), intact, "byte {at}");
                same += 1;
            }
            Err(problem) => {
                assert_eq!(problem.kind(), ErrorKind::Damaged, "byte {at}: {problem}");
                refused += 1;
            }
        }
    }
    assert!(
        refused > 20 && same > 20,
        "{refused} refused, {same} the same"
    );
}

#[test]
fn a_truncated_file_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    write_some(&path);
    let bytes = std::fs::read(&path).unwrap();
    for length in [1, 100, 4096, bytes.len() / 2, bytes.len() - 4096] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert_eq!(
            kind(&path, schema()),
            Some(ErrorKind::Damaged),
            "{length} bytes"
        );
    }
}

//! What is refused, what is forgotten, who waits for whom.

use crate::{open, schema};
use database::{Database, Error, ErrorKind, Ref, Tx, Value};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

fn fresh() -> (tempfile::TempDir, Database) {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir.path().join("db"));
    (dir, db)
}

fn vm(tx: &mut Tx, name: &str) -> Result<Ref, Error> {
    let vm = Ref::random();
    tx.create("VM", vm.clone(), [("name_label", Value::from(name))])?;
    Ok(vm)
}

#[test]
fn what_contradicts_the_schema_is_refused_and_changes_nothing() {
    let (_dir, db) = fresh();
    let (vm, revision) = db.transact(|tx| vm(tx, "a")).unwrap();
    type Work<'a> = Box<dyn Fn(&mut Tx) -> Result<(), Error> + 'a>;
    let none: [(&str, Value); 0] = [];
    let cases: Vec<(&str, ErrorKind, Work<'_>)> = vec![
        (
            "unknown class",
            ErrorKind::Schema,
            Box::new(|tx| tx.create("Vm", Ref::random(), none.clone())),
        ),
        (
            "unknown field",
            ErrorKind::Schema,
            Box::new(|tx| tx.set("VM", &vm, "colour", "red".into())),
        ),
        (
            "computed field",
            ErrorKind::Schema,
            Box::new(|tx| tx.set("VM", &vm, "VBDs", Value::Set(vec![]))),
        ),
        (
            "wrong type",
            ErrorKind::Type,
            Box::new(|tx| tx.set("VM", &vm, "memory", "1".into())),
        ),
        (
            "null value",
            ErrorKind::Type,
            Box::new(|tx| tx.set("VM", &vm, "memory", Value::Null)),
        ),
        (
            "missing object",
            ErrorKind::NotFound,
            Box::new(|tx| tx.set("VM", &Ref::random(), "memory", 1.into())),
        ),
        (
            "other class",
            ErrorKind::NotFound,
            Box::new(|tx| tx.remove("VDI", &vm)),
        ),
        (
            "null object",
            ErrorKind::Exists,
            Box::new(|tx| tx.create("VM", Ref::null(), none.clone())),
        ),
        (
            "taken reference",
            ErrorKind::Exists,
            Box::new(|tx| tx.create("VDI", vm.clone(), none.clone())),
        ),
        (
            "dangling",
            ErrorKind::NotFound,
            Box::new(|tx| tx.set("VM", &vm, "task", Ref::random().into())),
        ),
        (
            "wrong class",
            ErrorKind::NotFound,
            Box::new(|tx| tx.set("VM", &vm, "task", (&vm).into())),
        ),
        (
            "dangling in a set",
            ErrorKind::NotFound,
            Box::new(|tx| tx.set("VM", &vm, "peers", Value::Set(vec![Ref::random().into()]))),
        ),
    ];
    for (name, kind, work) in cases {
        let result = db.transact(|tx| {
            tx.set("VM", &vm, "name_label", "changed".into())?;
            work(tx)
        });
        assert_eq!(result.expect_err(name).kind(), kind, "{name}");
    }
    let snapshot = db.snapshot();
    assert_eq!(snapshot.revision(), revision);
    assert_eq!(
        snapshot.row("VM", &vm).unwrap().get("name_label"),
        "a".into()
    );
}

#[test]
fn a_field_without_default_needs_a_value() {
    let dir = tempfile::tempdir().unwrap();
    let mut schema = schema();
    schema.classes[2].fields[1].default = None;
    let db = Database::open(dir.path().join("db"), schema).unwrap();
    let none: [(&str, Value); 0] = [];
    let problem = db
        .transact(|tx| tx.create("VDI", Ref::random(), none))
        .unwrap_err();
    assert_eq!(problem.kind(), ErrorKind::Type);
    assert_eq!(problem.to_string(), "VDI.name_label needs a value");
}

#[test]
fn setting_the_same_value_is_no_change() {
    let (_dir, db) = fresh();
    let (vm, first) = db.transact(|tx| vm(tx, "a")).unwrap();
    let (_, same) = db
        .transact(|tx| tx.set("VM", &vm, "name_label", "a".into()))
        .unwrap();
    assert_eq!(same, first);
    let (_, touched) = db.transact(|tx| tx.touch("VM", &vm)).unwrap();
    assert_eq!(touched, first + 1);
    assert_eq!(
        db.snapshot().changes_since(first).unwrap().modified.len(),
        1
    );
}

#[test]
fn a_snapshot_does_not_see_what_comes_after_it() {
    let (_dir, db) = fresh();
    let (vm, _) = db.transact(|tx| vm(tx, "old")).unwrap();
    let before = db.snapshot();
    db.transact(|tx| tx.set("VM", &vm, "name_label", "new".into()))
        .unwrap();
    assert_eq!(
        before.row("VM", &vm).unwrap().get("name_label"),
        "old".into()
    );
    assert_eq!(
        db.snapshot().row("VM", &vm).unwrap().get("name_label"),
        "new".into()
    );
    assert!(before.by_name_label("VM", "new").is_empty());
}

#[test]
fn deletions_are_remembered_up_to_a_limit_and_then_the_reader_is_told() {
    let (_dir, db) = fresh();
    let (all, start) = db
        .transact(|tx| {
            (0..5000)
                .map(|at| vm(tx, &at.to_string()))
                .collect::<Result<Vec<_>, _>>()
        })
        .unwrap();
    let mut last = start;
    for chunk in all.chunks(100) {
        let before = last;
        (_, last) = db
            .transact(|tx| chunk.iter().try_for_each(|vm| tx.remove("VM", vm)))
            .unwrap();
        let gone = db.snapshot().changes_since(before).unwrap().deleted;
        assert!(
            gone.iter().map(|gone| &gone.reference).eq(chunk),
            "the last hundred are always known"
        );
    }
    let problem = db.snapshot().changes_since(start).unwrap_err();
    assert_eq!(problem.kind(), ErrorKind::RevisionTooOld);
    let problem = db.snapshot().changes_since(last + 1).unwrap_err();
    assert_eq!(problem.kind(), ErrorKind::RevisionUnknown);
    assert_eq!(db.snapshot().changes_since(0).unwrap().deleted, []);
}

#[test]
fn revisions_are_told_when_their_snapshot_can_be_had() {
    let (_dir, db) = fresh();
    let mut told = db.subscribe();
    let (_, revision) = db.transact(|tx| vm(tx, "a")).unwrap();
    assert_eq!(*told.borrow_and_update(), revision);
    assert_eq!(db.snapshot().revision(), revision);
}

#[test]
fn transactions_of_many_threads_and_tasks_are_all_counted() {
    let (_dir, db) = fresh();
    let (counter, _) = db
        .transact(|tx| {
            let vm = vm(tx, "counter")?;
            tx.set("VM", &vm, "memory", Value::Int(0))?;
            Ok::<_, Error>(vm)
        })
        .unwrap();
    let increment = |tx: &mut Tx| {
        let now = tx
            .row("VM", &counter)
            .and_then(|row| row.get("memory").as_int())
            .unwrap();
        tx.set("VM", &counter, "memory", Value::Int(now + 1))
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..25).for_each(|_| _ = db.transact(increment).unwrap()));
        }
        runtime.block_on(async {
            for _ in 0..50 {
                db.transact_async(increment).await.unwrap();
            }
        });
    });
    assert_eq!(
        db.snapshot().row("VM", &counter).unwrap().get("memory"),
        Value::Int(150)
    );
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Step {
    done: bool,
    #[serde(default)]
    note: String,
}

#[test]
fn buckets_keep_records_over_a_restart_and_out_of_the_change_feed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let (one, two) = (
        Step {
            done: false,
            note: "x".into(),
        },
        Step {
            done: true,
            note: String::new(),
        },
    );
    {
        let db = open(&path);
        let before = db.snapshot().revision();
        let journal = db.bucket::<Step>("journal");
        journal
            .put_many([("1", &one), ("2", &two), ("3", &two)])
            .unwrap();
        assert!(journal.remove("3").unwrap());
        assert!(!journal.remove("3").unwrap());
        assert_eq!(db.bucket::<Step>("other").all().unwrap(), BTreeMap::new());
        let changes = db.snapshot().changes_since(before.max(1)).unwrap();
        assert!(
            changes.added.is_empty() && changes.modified.is_empty() && changes.deleted.is_empty()
        );
    }
    let db = open(&path);
    let journal = db.bucket::<Step>("journal");
    let all = BTreeMap::from([("1".to_owned(), one.clone()), ("2".to_owned(), two)]);
    assert_eq!(journal.all().unwrap(), all);
    assert_eq!(journal.get("1").unwrap(), Some(one));
    let problem = db.bucket::<u64>("journal").get("1").unwrap_err();
    assert_eq!(problem.kind(), ErrorKind::Record);
}

#[test]
fn objects_and_records_change_together_or_not_at_all() {
    let (_dir, db) = fresh();
    let journal = db.bucket::<Step>("journal");
    let step = Step {
        done: true,
        note: String::new(),
    };
    let failed = db.transact(|tx| {
        tx.put_record(&journal, "1", &step)?;
        assert_eq!(tx.record(&journal, "1")?, Some(step.clone()));
        vm(tx, "a")?;
        tx.remove("VM", &Ref::random())
    });
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(
        (journal.get("1").unwrap(), db.snapshot().count("VM")),
        (None, 0)
    );
    db.transact(|tx| {
        tx.put_record(&journal, "1", &step)
            .and_then(|()| vm(tx, "a"))
    })
    .unwrap();
    assert_eq!(
        (journal.get("1").unwrap(), db.snapshot().count("VM")),
        (Some(step), 1)
    );
}

//! The database from outside: against a naive model, through crashes, and on files it must refuse.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod crash;
mod file;
mod model;
mod rules;

use database::{ClassSchema, Database, FieldSchema, Ref, Schema, Type, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Four classes with every kind of field: reverse fields, references in sets and maps, fields that
/// do not survive a restart, and one class (`task`) that does not at all.
fn schema() -> Schema {
    let text = |name: &str| FieldSchema::stored(name, Type::String);
    let to = |class: &str| Type::Ref(class.to_owned());
    let runtime = |field: FieldSchema| FieldSchema {
        persistent: false,
        ..field
    };
    let class = |name: &str, fields: Vec<FieldSchema>| ClassSchema {
        name: name.into(),
        fields,
    };
    let disks = Type::Map(Box::new(Type::String), Box::new(to("VDI")));
    let classes = vec![
        class(
            "VM",
            vec![
                text("uuid"),
                text("name_label"),
                FieldSchema {
                    default: Some(Value::Int(-1)),
                    ..FieldSchema::stored("memory", Type::Int)
                },
                runtime(FieldSchema::stored("load", Type::Float)),
                FieldSchema::stored("peers", Type::Set(Box::new(to("VM")))),
                FieldSchema::stored("task", to("task")),
                FieldSchema::reverse("peer_of", "VM", "peers"),
                FieldSchema::reverse("VBDs", "VBD", "VM"),
            ],
        ),
        class(
            "VBD",
            vec![
                text("uuid"),
                FieldSchema::stored("VM", to("VM")),
                FieldSchema::stored("disks", disks),
            ],
        ),
        class(
            "VDI",
            vec![
                text("uuid"),
                text("name_label"),
                FieldSchema::stored("snapshot_of", to("VDI")),
                FieldSchema::reverse("snapshots", "VDI", "snapshot_of"),
            ],
        ),
        class(
            "task",
            vec![
                runtime(text("uuid")),
                runtime(FieldSchema::stored("subtask_of", to("task"))),
            ],
        ),
    ];
    Schema {
        version: 3,
        classes,
    }
}

fn open(path: &Path) -> Database {
    Database::open(path, schema()).expect("the database opens")
}

type Record = BTreeMap<String, Value>;
type Objects = BTreeMap<(String, Ref), Record>;

fn record(row: &database::Row) -> Record {
    row.fields()
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .collect()
}

/// Everything a reader can see.
fn objects(db: &Database) -> Objects {
    let snapshot = db.snapshot();
    let mut all = Objects::new();
    for class in schema().classes {
        for row in snapshot.rows(&class.name) {
            all.insert((class.name.clone(), row.reference().clone()), record(row));
        }
    }
    all
}

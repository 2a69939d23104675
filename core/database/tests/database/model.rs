//! Random transactions against a naive model: plain maps, computed fields worked out from scratch.

use crate::{Objects, Record, objects, open, record, schema};
use database::{Database, Error, ErrorKind, FieldSchema, Ref, Tx, Type, Value};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Op {
    Create(&'static str, Ref, Vec<(&'static str, Value)>),
    Set(&'static str, Ref, &'static str, Value),
    Remove(&'static str, Ref),
    Touch(&'static str, Ref),
}

fn field_of(class: &str, name: &str) -> Option<FieldSchema> {
    let class = schema()
        .classes
        .into_iter()
        .find(|have| have.name == class)?;
    class.fields.into_iter().find(|field| field.name == name)
}

/// Few references, so that operations meet each other.
fn reference(class: &str, at: u8) -> Ref {
    Ref::from(format!("OpaqueRef:{class}-{at}"))
}

fn a_ref(class: &'static str) -> impl Strategy<Value = Ref> + Clone {
    prop_oneof![5 => (0u8..5).prop_map(move |at| reference(class, at)), 1 => Just(Ref::null())]
}

fn a_field(class: &'static str) -> BoxedStrategy<(&'static str, Value)> {
    let text = |field: &'static str| {
        (0u8..4).prop_map(move |at| (field, Value::from(["", "a", "b", "c"][usize::from(at)])))
    };
    let refs = |field: &'static str, to: &'static str| {
        a_ref(to)
            .prop_map(move |target| (field, Value::from(target)))
            .boxed()
    };
    match class {
        "VM" => prop_oneof![
            text("uuid"),
            text("name_label"),
            (0i64..3).prop_map(|number| ("memory", Value::Int(number))),
            (0i64..3).prop_map(|number| ("load", Value::Float(number as f64 / 2.0))),
            prop::collection::btree_set(0u8..5, 0..4).prop_map(|refs| {
                let peers = refs.into_iter().map(|at| Value::from(reference("VM", at)));
                ("peers", Value::Set(peers.collect()))
            }),
            refs("task", "task"),
        ]
        .boxed(),
        "VBD" => prop_oneof![
            text("uuid"),
            refs("VM", "VM"),
            prop::collection::btree_map("[xy]", 0u8..5, 0..3).prop_map(|disks| {
                let disks = disks
                    .into_iter()
                    .map(|(key, at)| (key, reference("VDI", at).into()));
                ("disks", Value::Map(disks.collect()))
            }),
        ]
        .boxed(),
        "VDI" => prop_oneof![text("uuid"), text("name_label"), refs("snapshot_of", "VDI")].boxed(),
        _ => prop_oneof![text("uuid"), refs("subtask_of", "task")].boxed(),
    }
}

fn an_op() -> impl Strategy<Value = Op> {
    prop::sample::select(vec!["VM", "VBD", "VDI", "task"]).prop_flat_map(|class| {
        prop_oneof![
            4 => (a_ref(class), prop::collection::vec(a_field(class), 0..3))
                .prop_map(move |(target, fields)| Op::Create(class, target, fields)),
            4 => (a_ref(class), a_field(class))
                .prop_map(move |(target, (field, value))| Op::Set(class, target, field, value)),
            2 => a_ref(class).prop_map(move |target| Op::Remove(class, target)),
            1 => a_ref(class).prop_map(move |target| Op::Touch(class, target)),
        ]
    })
}

fn apply(tx: &mut Tx, op: &Op) -> Result<(), Error> {
    match op.clone() {
        Op::Create(class, target, fields) => tx.create(class, target, fields),
        Op::Set(class, target, field, value) => tx.set(class, &target, field, value),
        Op::Remove(class, target) => tx.remove(class, &target),
        Op::Touch(class, target) => tx.touch(class, &target),
    }
}

/// Stored fields only.
#[derive(Clone, Default)]
struct Model(BTreeMap<(String, Ref), Record>);

impl Model {
    fn apply(&mut self, op: &Op) -> Result<(), ErrorKind> {
        match op.clone() {
            Op::Create(class, target, fields) => {
                let key = (class.to_owned(), target.clone());
                if target.is_null() || self.0.contains_key(&key) {
                    return Err(ErrorKind::Exists);
                }
                let all = schema()
                    .classes
                    .into_iter()
                    .find(|have| have.name == class)
                    .unwrap();
                let stored = all
                    .fields
                    .into_iter()
                    .filter(|field| field.reverse_of.is_none());
                let mut values: Record = stored
                    .map(|field| (field.name, field.default.unwrap()))
                    .collect();
                values.extend(
                    fields
                        .into_iter()
                        .map(|(name, value)| (name.to_owned(), value)),
                );
                self.check_uuid(class, values.get("uuid").cloned(), &target)?;
                self.0.insert(key, values);
            }
            Op::Set(class, target, field, value) => {
                self.find(class, &target)?;
                if field == "uuid" {
                    self.check_uuid(class, Some(value.clone()), &target)?;
                }
                self.find(class, &target)?.insert(field.to_owned(), value);
            }
            Op::Remove(class, target) => {
                self.find(class, &target)?;
                self.0.remove(&(class.to_owned(), target.clone()));
                let gone = Value::Ref(target);
                for value in self.0.values_mut().flat_map(|record| record.values_mut()) {
                    match value {
                        Value::Set(items) => items.retain(|item| *item != gone),
                        Value::Map(entries) => entries.retain(|_, item| *item != gone),
                        other if *other == gone => *other = Ref::null().into(),
                        _ => {}
                    }
                }
            }
            Op::Touch(class, target) => _ = self.find(class, &target)?,
        }
        Ok(())
    }

    fn find(&mut self, class: &str, target: &Ref) -> Result<&mut Record, ErrorKind> {
        self.0
            .get_mut(&(class.to_owned(), target.clone()))
            .ok_or(ErrorKind::NotFound)
    }

    fn check_uuid(&self, class: &str, uuid: Option<Value>, own: &Ref) -> Result<(), ErrorKind> {
        let taken = self.0.iter().any(|((have, target), record)| {
            have == class && target != own && record.get("uuid") == uuid.as_ref()
        });
        if taken && uuid != Some("".into()) {
            Err(ErrorKind::Exists)
        } else {
            Ok(())
        }
    }

    fn references_are_good(&self) -> bool {
        let good = |class: &str, value: &Value| match value {
            Value::Ref(target) => {
                target.is_null() || self.0.contains_key(&(class.to_owned(), target.clone()))
            }
            _ => true,
        };
        self.0.iter().all(|((class, _), record)| {
            record.iter().all(
                |(name, value)| match (field_of(class, name).unwrap().ty, value) {
                    (Type::Ref(to), value) => good(&to, value),
                    (Type::Set(_), Value::Set(items)) => items.iter().all(|item| good("VM", item)),
                    (Type::Map(..), Value::Map(all)) => all.values().all(|item| good("VDI", item)),
                    _ => true,
                },
            )
        })
    }

    /// Everything a reader should see, computed fields included.
    fn objects(&self) -> Objects {
        let mut all = self.0.clone();
        for class in schema().classes {
            for field in class.fields {
                let Some((other, forward)) = field.reverse_of else {
                    continue;
                };
                for ((_, target), record) in
                    all.iter_mut().filter(|((have, _), _)| *have == class.name)
                {
                    let points = |record: &Record| match &record[&forward] {
                        Value::Set(items) => items.contains(&target.into()),
                        value => *value == Value::from(target),
                    };
                    let found = self
                        .0
                        .iter()
                        .filter(|((have, _), record)| *have == other && points(record));
                    let found = found.map(|((_, from), _)| Value::from(from)).collect();
                    record.insert(field.name.clone(), Value::Set(found));
                }
            }
        }
        all
    }

    /// What is left after a restart.
    fn restart(&mut self) {
        self.0.retain(|(class, _), _| class != "task");
        for ((class, _), record) in &mut self.0 {
            if class == "VM" {
                record.insert("load".into(), Value::Float(0.0));
                record.insert("task".into(), Ref::null().into());
            }
        }
    }
}

/// Follows the change feed as a client does.
fn replay(db: &Database, replica: &mut Objects, revision: &mut u64) {
    let changes = db
        .snapshot()
        .changes_since(*revision)
        .expect("few changes are remembered");
    for gone in changes.deleted {
        let old = replica
            .remove(&(gone.class.to_string(), gone.reference))
            .expect("it was there");
        assert_eq!(old["uuid"].as_str(), Some(gone.uuid.as_str()));
    }
    for row in changes.added {
        let before = replica.insert((row.class().into(), row.reference().clone()), record(&row));
        assert!(before.is_none(), "{} was added twice", row.reference());
    }
    for row in changes.modified {
        let before = replica.insert((row.class().into(), row.reference().clone()), record(&row));
        assert!(
            before.is_some(),
            "{} was modified before it was added",
            row.reference()
        );
    }
    *revision = changes.revision;
}

fn check_indexes(db: &Database) {
    let snapshot = db.snapshot();
    for ((class, reference), record) in objects(db) {
        assert_eq!(snapshot.class_of(&reference), Some(class.as_str()));
        if let Some(uuid) = record["uuid"].as_str().filter(|uuid| !uuid.is_empty()) {
            assert_eq!(
                snapshot.by_uuid(&class, uuid).unwrap().reference(),
                &reference
            );
        }
        let name = record
            .get("name_label")
            .and_then(Value::as_str)
            .unwrap_or("");
        let scanned = snapshot
            .rows(&class)
            .filter(|row| row.get("name_label") == name.into());
        let found = snapshot.by_name_label(&class, name);
        let same = scanned
            .map(|row| row.reference())
            .eq(found.iter().map(|row| row.reference()));
        assert!(name.is_empty() || same, "{class} named {name:?}");
    }
    assert_eq!(
        snapshot.by_uuid("VM", "nobody").map(|row| row.created),
        None
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_transactions_agree_with_a_naive_model_and_survive_reopening(
        steps in prop::collection::vec((prop::collection::vec(an_op(), 1..5), 0u8..20), 1..60),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let mut db = open(&path);
        let mut model = Model::default();
        let (mut replica, mut seen) = (Objects::new(), 0);
        for (ops, then) in steps {
            let mut next = model.clone();
            let mut expected = ops.iter().try_for_each(|op| next.apply(op));
            if expected.is_ok() && !next.references_are_good() {
                expected = Err(ErrorKind::NotFound);
            }
            let before = db.snapshot().revision();
            let got = db.transact(|tx| ops.iter().try_for_each(|op| apply(tx, op)));
            prop_assert_eq!(got.as_ref().map(|_| ()).map_err(Error::kind), expected);
            if expected.is_ok() {
                model = next;
            } else {
                prop_assert_eq!(db.snapshot().revision(), before);
            }
            prop_assert_eq!(objects(&db), model.objects());
            if then < 6 {
                replay(&db, &mut replica, &mut seen);
                prop_assert_eq!(&replica, &model.objects());
            }
            if then == 19 {
                let last = db.snapshot().revision();
                drop(db);
                db = open(&path);
                model.restart();
                prop_assert!(db.snapshot().revision() > last);
                prop_assert_eq!(objects(&db), model.objects());
                if seen > 0 {
                    let problem = db.snapshot().changes_since(seen).map(|_| ());
                    prop_assert_eq!(problem.unwrap_err().kind(), ErrorKind::RevisionTooOld);
                }
                (replica, seen) = (Objects::new(), 0);
            }
        }
        check_indexes(&db);
    }
}

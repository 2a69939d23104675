//! kill -9 while several threads commit: what was acknowledged is there, and nothing is there by half.

use crate::open;
use database::{Database, Ref, Value};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const CHILD_PATH: &str = "XYLEM_TEST_DATABASE";
const THREADS: u64 = 4;

/// Commits pairs (a VM with a record, a VDI) for ever and says each one that returned.
fn commit_for_ever(path: &Path) {
    let db = open(path);
    let round = db.snapshot().revision();
    let writer = |thread: u64, db: &Database| {
        for number in 0u64.. {
            let name = format!("{round}-{thread}-{number}");
            db.transact(|tx| {
                let label = [("name_label", Value::from(name.as_str()))];
                tx.create("VM", Ref::random(), label.clone())?;
                tx.create("VDI", Ref::random(), label)?;
                tx.put_record(&db.bucket("names"), &name, &number)
            })
            .expect("the transaction is committed");
            writeln!(std::io::stdout().lock(), "\nack {name}").expect("the parent listens");
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let db = &db;
            scope.spawn(move || writer(thread, db));
        }
    });
}

/// Runs this test again as a child, reads `acks` acknowledgements, kills it, and returns all it said.
fn run_and_kill(path: &Path, acks: usize) -> BTreeSet<String> {
    let name = "crash::kill_nine_loses_no_acknowledged_transaction";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD_PATH, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BTreeSet::new();
    let lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    for line in lines {
        if let Some(name) = line.strip_prefix("ack ") {
            said.insert(name.to_owned());
        }
        if said.len() == acks {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(
        said.len() >= acks,
        "the child ended by itself after {}",
        said.len()
    );
    said
}

#[test]
fn kill_nine_loses_no_acknowledged_transaction() {
    if let Some(path) = std::env::var_os(CHILD_PATH) {
        return commit_for_ever(Path::new(&path));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut acknowledged = BTreeSet::new();
    for acks in [1, 7, 40, 90, 150] {
        acknowledged.extend(run_and_kill(&path, acks));
        let db = open(&path);
        let snapshot = db.snapshot();
        let names = |class: &str| -> BTreeSet<String> {
            snapshot
                .rows(class)
                .filter_map(|row| Some(row.get("name_label").as_str()?.to_owned()))
                .collect()
        };
        let there = names("VM");
        assert_eq!(
            acknowledged.difference(&there).collect::<Vec<_>>(),
            Vec::<&String>::new()
        );
        assert_eq!(names("VDI"), there);
        assert_eq!(
            db.bucket::<u64>("names")
                .all()
                .unwrap()
                .into_keys()
                .collect::<BTreeSet<_>>(),
            there
        );
    }
}

//! Every fault that the data path must stand has a test by name, or says why it has none yet.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The table; its first lines say how it reads.
const TABLE: &str = include_str!("../faults.txt");

struct Fault<'a> {
    id: &'a str,
    says: &'a str,
    /// File and function.
    tests: Vec<(&'a str, &'a str)>,
    later: Option<&'a str>,
}

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("the checkout").to_path_buf()
}

fn faults() -> Vec<Fault<'static>> {
    let mut faults: Vec<Fault<'_>> = Vec::new();
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let (first, rest) = line.trim().split_once(' ').expect(line);
        let rest = rest.trim();
        if !line.starts_with(' ') {
            faults.push(Fault {
                id: first,
                says: rest,
                tests: Vec::new(),
                later: None,
            });
            continue;
        }
        let fault = faults.last_mut().expect("a fault stands before its tests");
        if first == "later:" {
            assert!(fault.later.is_none(), "{}: two reasons", fault.id);
            fault.later = Some(rest);
        } else {
            fault.tests.push((first, rest));
        }
    }
    faults
}

/// The ids that must be in the table.
fn wanted() -> Vec<String> {
    let numbers = (1..=18).chain(20..=38).chain(50..=63).chain([70, 72]);
    numbers.map(|number| format!("F{number:02}")).collect()
}

/// Whether a file has a test of this name: a function right below a line that makes it one.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let start = format!("fn {name}(");
    let defines = |line: &&str| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.starts_with(&start)
    };
    let is_test = |at: usize| {
        let above = lines.iter().take(at).rev();
        above
            .take_while(|line| line.starts_with("#["))
            .any(|line| *line == "#[test]" || line.starts_with("#[tokio::test"))
    };
    let at = lines.iter().position(defines);
    at.is_some_and(is_test)
}

#[test]
fn every_fault_is_in_the_table_once_and_in_order() {
    let ids: Vec<&str> = faults().iter().map(|fault| fault.id).collect();
    assert_eq!(ids, wanted());
    for fault in faults() {
        let said = !fault.says.is_empty() && fault.later != Some("");
        assert!(said, "{} does not say what it is", fault.id);
        let shown = !fault.tests.is_empty() || fault.later.is_some();
        assert!(shown, "{} has neither a test nor a reason", fault.id);
    }
}

#[test]
fn every_test_that_the_table_names_is_there() {
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    let mut wrong = Vec::new();
    let faults = faults();
    for fault in &faults {
        for (file, name) in &fault.tests {
            let text = files
                .entry(file)
                .or_insert_with(|| fs::read_to_string(root().join(file)).unwrap_or_default());
            if !has_test(text, name) {
                wrong.push(format!("{}: {file} has no test {name}", fault.id));
            }
        }
    }
    tell(&faults);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Says what is missing, past the harness, which shows nothing of a test that passes.
fn tell(faults: &[Fault<'_>]) {
    let whole = |fault: &&Fault<'_>| fault.later.is_none();
    let bare = |fault: &&Fault<'_>| fault.tests.is_empty();
    let (all, whole) = (faults.len(), faults.iter().filter(whole).count());
    let bare = faults.iter().filter(bare).count();
    let mut text = format!(
        "fault map: {all} faults, {whole} with tests, {} with tests and a part for later, {bare} for later\n",
        all - whole - bare
    );
    for fault in faults {
        if let Some(reason) = fault.later {
            let part = if fault.tests.is_empty() {
                ""
            } else {
                " in part"
            };
            text += &format!("  {} ({}) later{part}: {reason}\n", fault.id, fault.says);
        }
    }
    // Nothing is lost for the test if nobody can read this.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

#[test]
fn a_function_that_is_no_test_does_not_count() {
    let text = "#[test]\n#[cfg(unix)]\nfn a() {}\nfn b() {}\n#[tokio::test]\nasync fn c() {}\n";
    let found = ["a", "b", "c", "d"].map(|name| has_test(text, name));
    assert_eq!(found, [true, false, true, false]);
}

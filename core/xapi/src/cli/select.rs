//! Which objects a command is about: `uuid=`, `vm=`, `field=value`, `map-field:key=value`.

use super::context::Job;
use super::errors::CliError;
use super::kinds::{self, Kind};
use super::line::Params;
use super::records::Shape;
use database::{Ref, Snapshot, Value};

/// Parameters that never select anything.
const NEVER: &[&str] = &[
    "all",
    "database",
    "debug",
    "force",
    "message-priority",
    "minimal",
    "multiple",
    "params",
    "password",
    "port",
    "progress",
    "server",
    "trace",
    "username",
];

/// An object that was selected.
#[derive(Clone)]
pub(super) struct Selected {
    pub(super) reference: Ref,
    pub(super) record: Value,
}

impl Selected {
    /// The reference, to pass on.
    pub(super) fn value(&self) -> Value {
        Value::from(&self.reference)
    }

    /// The value of a field.
    pub(super) fn get(&self, field: &str) -> Value {
        self.record
            .as_map()
            .and_then(|fields| fields.get(field))
            .cloned()
            .unwrap_or_default()
    }

    /// The uuid.
    pub(super) fn uuid(&self) -> String {
        self.get("uuid").as_str().unwrap_or_default().to_owned()
    }
}

/// A condition on a column.
enum Test<'a> {
    Equals(&'a str, &'a str),
    Entry(&'a str, &'a str, &'a str),
    Contains(&'a str, &'a str),
}

impl<'a> Test<'a> {
    fn parse(kind: &Kind, name: &'a str, value: &'a str) -> Option<Self> {
        if kind.column(name).is_some() {
            return Some(Self::Equals(name, value));
        }
        let (column, key) = name.split_once(':')?;
        match kind.column(column)?.shape {
            Shape::Map => Some(Self::Entry(column, key, value)),
            Shape::Set if key == "contains" => Some(Self::Contains(column, value)),
            _ => None,
        }
    }

    /// Says whether the condition is about a field of the model.
    fn is_about(&self, kind: &Kind, field: &str) -> bool {
        let (Self::Equals(name, _) | Self::Entry(name, ..) | Self::Contains(name, _)) = self;
        kind.column(name)
            .is_some_and(|column| column.field.name == field)
    }

    fn passes(&self, kind: &Kind, snapshot: &Snapshot, record: &Value) -> bool {
        let column = |name: &str| kind.column(name);
        match *self {
            Self::Equals(name, value) => {
                column(name).is_some_and(|column| column.text(snapshot, record) == value)
            }
            Self::Entry(name, key, value) => column(name).is_some_and(|column| {
                let entries = column.entries(snapshot, record);
                entries
                    .iter()
                    .any(|(have, item)| have == key && item == value)
            }),
            Self::Contains(name, value) => column(name).is_some_and(|column| {
                column
                    .items(snapshot, record)
                    .iter()
                    .any(|item| item == value)
            }),
        }
    }
}

/// Lists the objects of a kind that pass every condition among the parameters, by name. `own` are
/// the parameters that the command takes for itself.
pub(super) async fn list(job: &Job, kind: &Kind, own: &[&str]) -> Result<Vec<Selected>, CliError> {
    let tests = tests(&job.params, kind, own)?;
    let all = job
        .call(&format!("{}.get_all_records", kind.class.name), vec![])
        .await?;
    let Value::Map(all) = all else {
        return Ok(Vec::new());
    };
    let snapshot = job.snapshot();
    // Asking for templates by `is-a-template=true` overrides what the kind implies.
    let asked = |field: &str| tests.iter().any(|test| test.is_about(kind, field));
    let mut selected: Vec<_> = all
        .into_iter()
        .filter(|(_, record)| kind.has(&snapshot, record, asked))
        .filter(|(_, record)| {
            tests
                .iter()
                .all(|test| test.passes(kind, &snapshot, record))
        })
        .map(|(reference, record)| Selected {
            reference: reference.into(),
            record,
        })
        .collect();
    let name = |found: &Selected| found.get("name_label").as_str().map(str::to_owned);
    selected.sort_by_cached_key(|found| (name(found), found.uuid()));
    Ok(selected)
}

/// Selects the objects that a command acts on: by `<kind>=` a uuid or a name, or by conditions. More
/// than one only with `--multiple`.
pub(super) async fn some(job: &Job, kind_name: &str) -> Result<Vec<Selected>, CliError> {
    let kind = kinds::kind(kind_name)
        .ok_or_else(|| CliError::failure(format!("there are no objects of kind {kind_name}")))?;
    let mut own = job.command.takes();
    own.push(kind.name);
    let named = job.params.get(kind.name);
    let multiple = job.params.flag("multiple");
    if named.is_none() && !multiple && tests(&job.params, kind, &own)?.is_empty() {
        let hint =
            format!("Which {kind_name}? Give {kind_name}=<uuid or name>, uuid=, or --multiple");
        return Err(CliError::Failure(hint));
    }
    let mut found = list(job, kind, &own).await?;
    // The host's own domain is a VM in lists only: `--multiple` must not shut it down.
    found.retain(|found| found.get("is_control_domain").as_bool() != Some(true));
    if let Some(wanted) = named {
        let is_it = |found: &Selected| {
            found.uuid() == wanted || found.get("name_label").as_str() == Some(wanted)
        };
        found.retain(is_it);
    }
    match found.len() {
        0 => Err(CliError::failure(format!("No matching {kind_name}s found"))),
        1 => Ok(found),
        _ if multiple => Ok(found),
        count => Err(CliError::failure(format!(
            "{count} {kind_name}s match; give more to tell them apart, or --multiple to act on all"
        ))),
    }
}

/// As [`some`], for commands that make sense for one object only.
pub(super) async fn one(job: &Job, kind_name: &str) -> Result<Selected, CliError> {
    let mut found = some(job, kind_name).await?;
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        _ => Err(CliError::failure(format!(
            "This command acts on one {kind_name} only"
        ))),
    }
}

/// Says whether every command takes a parameter of this name, so that it selects nothing.
pub(super) fn is_common(name: &str) -> bool {
    NEVER.contains(&name) || name.starts_with("database:")
}

fn tests<'a>(params: &'a Params, kind: &Kind, own: &[&str]) -> Result<Vec<Test<'a>>, CliError> {
    let is_own = |name: &str| {
        own.iter()
            .any(|own| *own == name || own.ends_with([':', '-']) && name.starts_with(own))
    };
    let rest = params
        .iter()
        .filter(|(name, _)| !is_common(name) && !is_own(name));
    rest.map(|(name, value)| {
        let unknown = || CliError::failure(format!("Unknown field or parameter: {name}"));
        Test::parse(kind, name, value).ok_or_else(unknown)
    })
    .collect()
}

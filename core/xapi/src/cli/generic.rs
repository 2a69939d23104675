//! The commands that every kind of object has: `<kind>-list` and `<kind>-param-*`.

use super::context::{Context, Job};
use super::errors::CliError;
use super::kinds::Kind;
use super::line::{BYTES_EXPECTED, parse_bytes};
use super::output::Pair;
use super::records::{Column, Shape};
use super::select::{self, Selected};
use crate::model::Type;
use database::{Ref, Snapshot, Value};
use std::collections::BTreeMap;

/// What a generic command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    List,
    ParamList,
    ParamGet,
    ParamSet,
    ParamAdd,
    ParamRemove,
    ParamClear,
}

impl Verb {
    pub(super) const ALL: [Verb; 7] = [
        Verb::List,
        Verb::ParamList,
        Verb::ParamGet,
        Verb::ParamSet,
        Verb::ParamAdd,
        Verb::ParamRemove,
        Verb::ParamClear,
    ];

    /// The end of the command's name.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Verb::List => "-list",
            Verb::ParamList => "-param-list",
            Verb::ParamGet => "-param-get",
            Verb::ParamSet => "-param-set",
            Verb::ParamAdd => "-param-add",
            Verb::ParamRemove => "-param-remove",
            Verb::ParamClear => "-param-clear",
        }
    }

    pub(super) fn required(self) -> &'static [&'static str] {
        match self {
            Verb::List => &[],
            Verb::ParamList | Verb::ParamSet => &["uuid"],
            Verb::ParamGet | Verb::ParamAdd | Verb::ParamClear => &["uuid", "param-name"],
            Verb::ParamRemove => &["uuid", "param-name", "param-key"],
        }
    }

    pub(super) fn optional(self, kind: &Kind) -> Vec<String> {
        let columns = || kind.columns.iter();
        match self {
            Verb::List => {
                let sets = columns().filter(|column| column.shape == Shape::Set);
                let contains = sets.map(|column| format!("{}:contains", column.name));
                let names = columns().map(|column| column.name.clone());
                std::iter::once("params".to_owned())
                    .chain(names)
                    .chain(contains)
                    .collect()
            }
            Verb::ParamSet => {
                let writable = columns().filter(|column| column.writable);
                let name = |column: &Column| match column.shape {
                    Shape::One => Some(column.name.clone()),
                    Shape::Map => Some(format!("{}:", column.name)),
                    Shape::Set => None,
                };
                writable.filter_map(name).collect()
            }
            Verb::ParamGet | Verb::ParamAdd => vec!["param-key".to_owned()],
            Verb::ParamList | Verb::ParamRemove | Verb::ParamClear => Vec::new(),
        }
    }

    pub(super) fn help(self) -> &'static str {
        match self {
            Verb::List => {
                "Lists the objects for which each condition holds; one on a map is map-field:key=value"
            }
            Verb::ParamList => "Lists all fields of an object",
            Verb::ParamGet => "Prints one field; with param-key one entry of a map",
            Verb::ParamSet => "Sets fields; an entry of a map is map-field:key=value",
            Verb::ParamAdd => "Adds param-key to a set, or key=value entries to a map",
            Verb::ParamRemove => "Removes param-key from a set or a map",
            Verb::ParamClear => "Empties a field",
        }
    }
}

/// Runs a generic command.
pub(super) async fn run(
    context: &mut Context<'_>,
    kind: &'static Kind,
    verb: Verb,
) -> Result<(), CliError> {
    if verb == Verb::List {
        return list(context, kind).await;
    }
    let object = object(context, kind).await?;
    let snapshot = context.snapshot();
    let columns = match verb {
        Verb::ParamList => {
            let all: Vec<_> = kind.columns.iter().collect();
            let record = print_record(&all, &snapshot, &object.record);
            return Ok(context.output.record(&record).await?);
        }
        Verb::ParamSet => return set(context, kind, &object).await,
        _ => column(kind, context.params.require("param-name")?)?,
    };
    let change = Change {
        job: context,
        kind,
        column: columns,
        object: &object,
        snapshot: &snapshot,
    };
    match verb {
        Verb::ParamGet => {
            let value = change.get()?;
            Ok(context.output.value(value).await?)
        }
        Verb::ParamAdd => change.add().await,
        Verb::ParamRemove => change.remove().await,
        _ => change.clear().await,
    }
}

async fn list(context: &mut Context<'_>, kind: &'static Kind) -> Result<(), CliError> {
    let columns = shown(context, kind)?;
    let found = select::list(context, kind, &[]).await?;
    let snapshot = context.snapshot();
    for object in found {
        let record = print_record(&columns, &snapshot, &object.record);
        context.output.record(&record).await?;
    }
    Ok(())
}

/// The columns of `params=a,b`, of `params=all`, or the ones a list of this kind shows.
fn shown(job: &Job, kind: &'static Kind) -> Result<Vec<&'static Column>, CliError> {
    let asked = job.params.get("params");
    let names: Vec<_> = match asked {
        Some("all") => return Ok(kind.columns.iter().collect()),
        Some(names) => names.split(',').map(str::trim).collect(),
        None if kind.shown.is_empty() => return Ok(kind.columns.iter().collect()),
        None => kind.shown.clone(),
    };
    for name in &names {
        column(kind, name)?;
    }
    Ok(kind
        .columns
        .iter()
        .filter(|column| names.contains(&column.name.as_str()))
        .collect())
}

fn print_record(columns: &[&Column], snapshot: &Snapshot, record: &Value) -> Vec<Pair> {
    columns
        .iter()
        .map(|column| (column.heading(), column.text(snapshot, record)))
        .collect()
}

fn column(kind: &'static Kind, name: &str) -> Result<&'static Column, CliError> {
    let unknown = || CliError::failure(format!("{} has no field {name}", kind.name));
    kind.column(name).ok_or_else(unknown)
}

async fn object(job: &Job, kind: &Kind) -> Result<Selected, CliError> {
    let class = kind.class.name;
    let reference = job.object(class, "uuid")?.reference().clone();
    let record = job
        .call(
            &format!("{class}.get_record"),
            vec![Value::from(&reference)],
        )
        .await?;
    Ok(Selected { reference, record })
}

async fn set(job: &Job, kind: &'static Kind, object: &Selected) -> Result<(), CliError> {
    let mut changes = Vec::new();
    for (name, value) in job.params.iter() {
        if name == "uuid" || select::is_common(name) {
            continue;
        }
        let (name, key) = match name.split_once(':') {
            Some((name, key)) if kind.column(name).is_some() => (name, Some(key.to_owned())),
            _ => (name, None),
        };
        changes.push((column(kind, name)?, key, value.to_owned()));
    }
    let snapshot = job.snapshot();
    for (column, key, value) in changes {
        let name = &column.name;
        if !column.writable {
            return Err(CliError::failure(format!("Field '{name}' is read-only.")));
        }
        let change = Change {
            job,
            kind,
            column,
            object,
            snapshot: &snapshot,
        };
        match (column.shape, key) {
            (Shape::One, None) => change.send("set_", vec![change.typed(&value)?]).await?,
            (Shape::Map, Some(key)) => change.put(&key, &value).await?,
            (Shape::Set, _) => {
                let hint = format!("Field '{name}' is a set: use param-add and param-remove.");
                return Err(CliError::Failure(hint));
            }
            (Shape::Map, None) => {
                let hint = format!("Field '{name}' is a map: use '{name}:key=value'.");
                return Err(CliError::Failure(hint));
            }
            (Shape::One, Some(key)) => {
                return Err(CliError::failure(format!(
                    "Field '{name}' has no entry '{key}'."
                )));
            }
        }
    }
    Ok(())
}

/// A change of one field of one object.
struct Change<'a> {
    job: &'a Job,
    kind: &'static Kind,
    column: &'static Column,
    object: &'a Selected,
    snapshot: &'a Snapshot,
}

impl Change<'_> {
    fn get(&self) -> Result<String, CliError> {
        let record = &self.object.record;
        match self.job.params.get("param-key") {
            Some(key) if self.column.shape == Shape::Map => {
                let entries = self.column.entries(self.snapshot, record);
                let found = entries.into_iter().find(|(have, _)| have == key);
                found
                    .map(|(_, value)| value)
                    .ok_or_else(|| not_in(key, "map"))
            }
            _ => Ok(self.column.text(self.snapshot, record)),
        }
    }

    async fn add(self) -> Result<(), CliError> {
        self.check_writable()?;
        match self.column.shape {
            Shape::Set => {
                let key = self.job.params.require("param-key")?;
                self.send("add_", vec![self.typed_inner(key)?]).await
            }
            Shape::Map => {
                let given = self.job.params.iter().filter(|(name, _)| {
                    !matches!(*name, "uuid" | "param-name" | "param-key")
                        && !select::is_common(name)
                });
                let given: Vec<_> = given
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .collect();
                for (key, value) in given {
                    self.add_entry(&key, &value).await?;
                }
                Ok(())
            }
            Shape::One => Err(self.neither_set_nor_map("add to")),
        }
    }

    async fn remove(self) -> Result<(), CliError> {
        self.check_writable()?;
        let key = self.job.params.require("param-key")?;
        match self.column.shape {
            Shape::Set => {
                if !self
                    .column
                    .items(self.snapshot, &self.object.record)
                    .iter()
                    .any(|have| have == key)
                {
                    return Err(not_in(key, "set"));
                }
                self.send("remove_", vec![self.typed_inner(key)?]).await
            }
            Shape::Map => {
                if !self.map().contains_key(key) {
                    return Err(not_in(key, "map"));
                }
                self.remove_entry(key).await
            }
            Shape::One => Err(self.neither_set_nor_map("remove from")),
        }
    }

    async fn clear(self) -> Result<(), CliError> {
        self.check_writable()?;
        let empty = match self.column.shape {
            Shape::One => self
                .typed("")
                .map_err(|_| CliError::failure("Cannot clear this parameter"))?,
            Shape::Set => Value::Set(Vec::new()),
            Shape::Map => Value::Map(BTreeMap::new()),
        };
        self.send("set_", vec![empty]).await
    }

    /// Puts an entry in a map, new or not.
    async fn put(&self, key: &str, value: &str) -> Result<(), CliError> {
        if self.map().contains_key(key) && self.exists("remove_from_") {
            self.remove_entry(key).await?;
        }
        self.add_entry(key, value).await
    }

    async fn add_entry(&self, key: &str, value: &str) -> Result<(), CliError> {
        if self.exists("add_to_") {
            return self
                .send("add_to_", vec![Value::from(key), Value::from(value)])
                .await;
        }
        let mut map = self.map();
        map.insert(key.to_owned(), Value::from(value));
        self.send("set_", vec![Value::Map(map)]).await
    }

    async fn remove_entry(&self, key: &str) -> Result<(), CliError> {
        if self.exists("remove_from_") {
            return self.send("remove_from_", vec![Value::from(key)]).await;
        }
        let mut map = self.map();
        map.remove(key);
        self.send("set_", vec![Value::Map(map)]).await
    }

    fn map(&self) -> BTreeMap<String, Value> {
        self.object
            .get(self.column.field.name)
            .as_map()
            .cloned()
            .unwrap_or_default()
    }

    fn method(&self, verb: &str) -> String {
        format!("{}.{verb}{}", self.kind.class.name, self.column.field.name)
    }

    fn exists(&self, verb: &str) -> bool {
        self.job.api.role_of(&self.method(verb)).is_some()
    }

    async fn send(&self, verb: &str, rest: Vec<Value>) -> Result<(), CliError> {
        let params = std::iter::once(self.object.value()).chain(rest).collect();
        self.job.call(&self.method(verb), params).await.map(|_| ())
    }

    /// The text of a parameter as the field has it; the interface turns the rest of the texts into
    /// what they should be.
    fn typed(&self, text: &str) -> Result<Value, CliError> {
        self.as_type(&self.column.field.ty, text)
    }

    fn typed_inner(&self, text: &str) -> Result<Value, CliError> {
        match &self.column.field.ty {
            Type::Set(inner) => self.as_type(inner, text),
            ty => self.as_type(ty, text),
        }
    }

    fn as_type(&self, ty: &Type, text: &str) -> Result<Value, CliError> {
        let expecting = |what: &str| CliError::parse(&self.column.name, what);
        Ok(match ty {
            Type::Ref(_) if text.is_empty() => Value::Ref(Ref::null()),
            Type::Ref(class) => {
                let found = self.snapshot.by_uuid(class, text);
                Value::from(
                    found
                        .ok_or_else(|| CliError::uuid_invalid(class, text))?
                        .reference(),
                )
            }
            Type::Int if self.column.name.starts_with("memory-") => {
                Value::Int(parse_bytes(text).ok_or_else(|| expecting(BYTES_EXPECTED))?)
            }
            Type::Int => Value::Int(
                text.parse()
                    .map_err(|_| expecting("expecting an integer"))?,
            ),
            Type::Float => Value::Float(text.parse().map_err(|_| expecting("expecting a number"))?),
            Type::Bool => {
                let truth = text.parse();
                Value::Bool(truth.map_err(|_| expecting("expecting a boolean (true or false)"))?)
            }
            _ => Value::from(text),
        })
    }

    fn check_writable(&self) -> Result<(), CliError> {
        match self.column.writable {
            true => Ok(()),
            false => Err(CliError::failure(format!(
                "Field '{}' is read-only.",
                self.column.name
            ))),
        }
    }

    fn neither_set_nor_map(&self, verb: &str) -> CliError {
        CliError::failure(format!(
            "Cannot {verb} '{}': it is no set or map.",
            self.column.name
        ))
    }
}

fn not_in(key: &str, what: &str) -> CliError {
    CliError::failure(format!("Key {key} is not in the {what}"))
}

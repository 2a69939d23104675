//! Objects as `xe` shows them: which columns, under which names, as which text.
//!
//! All of it follows from the model: a field `name_label` is shown as `name-label`, a reference
//! `VBD.VM` as `vm-uuid` and `vm-name-label`. The exceptions that scripts know are listed here.

use crate::datetime;
use crate::model::{Class, Field, Message, Model, Qualifier, Stage, Type};
use database::{Ref, Snapshot, Value};

const NOWHERE: &str = "<not in database>";

/// Whether a column is one text or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    One,
    Set,
    Map,
}

#[derive(Debug)]
enum Source {
    /// The field itself; a reference as a uuid.
    Field,
    /// The name of what the reference refers to.
    NameLabel,
    /// A field of what the reference refers to.
    Beyond(&'static str, &'static Field),
    /// The host of an SR: one, several or none.
    Hosts,
}

/// A column.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) field: &'static Field,
    source: Source,
    pub(super) shape: Shape,
    pub(super) writable: bool,
}

/// Names that do not follow from the field's.
fn exception(class: &str, field: &str) -> Option<&'static str> {
    Some(match (class, field) {
        ("message", "cls") => "class",
        ("network", "PIFs") => "PIF-uuids",
        ("network", "VIFs") => "VIF-uuids",
        ("role", "name_label") => "name",
        ("role", "name_description") => "description",
        ("task", "subtask_of") => "subtask_of",
        ("task", "error_info") => "error_info",
        ("VDI", "VBDs") => "vbd-uuids",
        ("VDI", "crash_dumps") => "crashdump-uuids",
        ("VM", "consoles") => "console-uuids",
        ("VM", "domid") => "dom-id",
        ("VM", "last_booted_record") => "last-boot-record",
        ("VM", "suspend_VDI") => "suspend-VDI-uuid",
        ("VM", "suspend_SR") => "suspend-SR-uuid",
        _ => return None,
    })
}

/// Fields of other objects that are shown as if they were of this one: class, reference, field, name.
const BEYOND: &[(&str, &str, &str, &str)] = &[
    ("host", "metrics", "memory_total", "memory-total"),
    ("host", "metrics", "memory_free", "memory-free"),
    ("host", "metrics", "live", "host-metrics-live"),
    ("VM", "metrics", "memory_actual", "memory-actual"),
    ("VM", "metrics", "start_time", "start-time"),
    ("VM", "metrics", "install_time", "install-time"),
    ("VM", "metrics", "VCPUs_number", "VCPUs-number"),
    ("VM", "metrics", "VCPUs_utilisation", "VCPUs-utilisation"),
    ("VM", "metrics", "hvm", "hvm"),
    (
        "VM",
        "metrics",
        "current_domain_type",
        "current-domain-type",
    ),
    ("VM", "guest_metrics", "os_version", "os-version"),
    (
        "VM",
        "guest_metrics",
        "PV_drivers_version",
        "PV-drivers-version",
    ),
    ("VM", "guest_metrics", "networks", "networks"),
    ("VM", "guest_metrics", "live", "live"),
];

/// The columns of a class, in the order of its fields.
pub(super) fn columns(model: &'static Model, class: &'static Class) -> Vec<Column> {
    let mut columns = Vec::new();
    for field in class
        .fields
        .iter()
        .filter(|field| field.stage != Stage::Removed)
    {
        let named = exception(class.name, field.name);
        let (shape, writable) = (shape(field), writable(class, field));
        let mut add = |name: String, source: Source, writable: bool| {
            columns.push(Column {
                name,
                field,
                source,
                shape,
                writable,
            });
        };
        match (&field.ty, named) {
            (Type::Ref(target), None) if field.name.eq_ignore_ascii_case(target) => {
                let short = target.to_ascii_lowercase().replace('_', "-");
                add(format!("{short}-uuid"), Source::Field, writable);
                if model
                    .class(target)
                    .is_some_and(|class| class.field("name_label").is_some())
                {
                    add(format!("{short}-name-label"), Source::NameLabel, false);
                }
            }
            (_, named) => {
                let name = named.map_or_else(|| field.name.replace('_', "-"), str::to_owned);
                add(name, Source::Field, writable);
            }
        }
        if (class.name, field.name) == ("SR", "PBDs") {
            let source = Source::Hosts;
            columns.push(Column {
                name: "host".into(),
                field,
                source,
                shape: Shape::One,
                writable: false,
            });
        }
    }
    columns.extend(
        BEYOND
            .iter()
            .filter(|(of, ..)| *of == class.name)
            .filter_map(beyond(model, class)),
    );
    columns
}

fn beyond(
    model: &'static Model,
    class: &'static Class,
) -> impl FnMut(&(&'static str, &'static str, &'static str, &'static str)) -> Option<Column> {
    move |&(_, reference, field, name)| {
        let own = class.field(reference)?;
        let Type::Ref(target) = own.ty else {
            return None;
        };
        let field = model.class(target)?.field(field)?;
        let source = Source::Beyond(target, field);
        Some(Column {
            name: name.into(),
            field: own,
            source,
            shape: shape(field),
            writable: false,
        })
    }
}

fn shape(field: &Field) -> Shape {
    match &field.ty {
        _ if field.name == "current_operations" => Shape::Set,
        Type::Set(_) => Shape::Set,
        Type::Map(..) => Shape::Map,
        _ => Shape::One,
    }
}

/// Says whether some message changes the field.
fn writable(class: &Class, field: &Field) -> bool {
    let change = |verb: &str| {
        let message: Option<&Message> =
            class.messages.get(format!("{verb}{}", field.name).as_str());
        message.is_some_and(|message| message.stage != Stage::Removed)
    };
    matches!(field.qualifier, Qualifier::ReadWrite(_)) || change("set_") || change("add_to_")
}

impl Column {
    /// The heading, with what may be done: `name-label ( RW)`, `other-config (MRW)`.
    pub(super) fn heading(&self) -> String {
        let shape = match self.shape {
            Shape::One => ' ',
            Shape::Set => 'S',
            Shape::Map => 'M',
        };
        let access = if self.writable { "RW" } else { "RO" };
        let stage = if self.field.stage == Stage::Deprecated {
            " [DEPRECATED]"
        } else {
            ""
        };
        format!("{} ({shape}{access}){stage}", self.name)
    }

    /// The value of an object's record as one text.
    pub(super) fn text(&self, snapshot: &Snapshot, record: &Value) -> String {
        match self.shape {
            Shape::One => self.one(snapshot, record),
            Shape::Set => self.items(snapshot, record).join("; "),
            Shape::Map => {
                let entries = self.entries(snapshot, record);
                let pairs = entries.iter().map(|(key, value)| format!("{key}: {value}"));
                pairs.collect::<Vec<_>>().join("; ")
            }
        }
    }

    /// The elements of a set.
    pub(super) fn items(&self, snapshot: &Snapshot, record: &Value) -> Vec<String> {
        match self.value(snapshot, record) {
            Value::Set(items) => items.iter().map(|item| plain(snapshot, item)).collect(),
            // `current_operations`: what goes on, without the tasks.
            Value::Map(entries) => entries.values().map(|item| plain(snapshot, item)).collect(),
            _ => Vec::new(),
        }
    }

    /// The entries of a map.
    pub(super) fn entries(&self, snapshot: &Snapshot, record: &Value) -> Vec<(String, String)> {
        match self.value(snapshot, record) {
            Value::Map(entries) => entries
                .into_iter()
                .map(|(key, value)| (key, plain(snapshot, &value)))
                .collect(),
            _ => Vec::new(),
        }
    }

    fn value(&self, snapshot: &Snapshot, record: &Value) -> Value {
        let own = record
            .as_map()
            .and_then(|fields| fields.get(self.field.name))
            .cloned();
        let own = own.unwrap_or_default();
        match (&self.source, &own) {
            (Source::Beyond(class, field), Value::Ref(target)) => snapshot
                .row(class, target)
                .map(|row| row.get(field.name))
                .unwrap_or_default(),
            _ => own,
        }
    }

    fn one(&self, snapshot: &Snapshot, record: &Value) -> String {
        let value = self.value(snapshot, record);
        match (&self.source, &value) {
            (Source::NameLabel, Value::Ref(target)) => name_label(snapshot, target),
            (Source::Hosts, Value::Set(pbds)) => hosts(snapshot, pbds),
            (_, Value::Null) => NOWHERE.to_owned(),
            (_, Value::String(text)) => spelled(&self.field.ty, text),
            (_, value) => plain(snapshot, value),
        }
    }
}

/// Two enums that `xe` has always spelled in its own way.
fn spelled(ty: &Type, text: &str) -> String {
    match ty {
        Type::Enum("vm_power_state") => text.to_ascii_lowercase(),
        Type::Enum("vdi_type") => match text {
            "ha_statefile" => "HA statefile".to_owned(),
            "redo_log" => "Redo log".to_owned(),
            "rrd" => text.to_ascii_uppercase(),
            "pvs_cache" => "PVS cache".to_owned(),
            "cbt_metadata" => "CBT metadata".to_owned(),
            _ => {
                text.get(..1).unwrap_or_default().to_ascii_uppercase()
                    + text.get(1..).unwrap_or_default()
            }
        },
        _ => text.to_owned(),
    }
}

fn plain(snapshot: &Snapshot, value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => format!("{number:.3}"),
        Value::Bool(truth) => truth.to_string(),
        Value::DateTime(millis) => datetime::format(*millis),
        Value::Ref(target) => uuid(snapshot, target),
        Value::Set(items) => items
            .iter()
            .map(|item| plain(snapshot, item))
            .collect::<Vec<_>>()
            .join(", "),
        Value::Map(entries) | Value::Record(entries) => {
            let pairs = entries
                .iter()
                .map(|(key, item)| format!("{key}: {}", plain(snapshot, item)));
            pairs.collect::<Vec<_>>().join(", ")
        }
    }
}

fn uuid(snapshot: &Snapshot, target: &Ref) -> String {
    let row = snapshot
        .class_of(target)
        .and_then(|class| snapshot.row(class, target));
    row.map_or_else(|| NOWHERE.to_owned(), |row| row.uuid().to_owned())
}

fn name_label(snapshot: &Snapshot, target: &Ref) -> String {
    let row = snapshot
        .class_of(target)
        .and_then(|class| snapshot.row(class, target));
    let name = row.map(|row| row.get("name_label"));
    name.as_ref()
        .and_then(Value::as_str)
        .unwrap_or(NOWHERE)
        .to_owned()
}

fn hosts(snapshot: &Snapshot, pbds: &[Value]) -> String {
    let host = |pbd: &Value| {
        snapshot
            .row("PBD", pbd.as_ref()?)
            .map(|row| row.get("host"))
    };
    match pbds {
        [] => NOWHERE.to_owned(),
        [pbd] => match host(pbd) {
            Some(Value::Ref(host)) => name_label(snapshot, &host),
            _ => NOWHERE.to_owned(),
        },
        _ => "<shared>".to_owned(),
    }
}

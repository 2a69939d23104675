//! The model table: every XenAPI class, field, message, enum, role and error code.
//!
//! One description, many readers: the dispatcher, the database schema, the access rules, the CLI and
//! completion all come from `model/*.model`. Nothing here knows what a message *does*.
//!
//! The format is one statement per line; `#` starts a comment, indentation is for the eye:
//!
//! ```text
//! class NAME object|value [listed] [served] [read ROLE] [make ROLE] [@STATE]
//!   enum NAME VALUE...
//!   field NAME TYPE runtime|const|rw ROLE [<- CLASS.FIELD | <-> CLASS.FIELD] [= JSON] [@STATE]
//!   call NAME(PARAM: TYPE[?], ...) -> TYPE by ROLE [! ERROR...] [@STATE]
//! ```
//!
//! * `object` classes have rows, a `value` class is only the shape of a result. `listed` ones answer
//!   `get_all`; `served` ones may have rows; `make` gives `create` and `destroy` with a record.
//! * A field is `rw` (anyone with that role sets it), `const` (given at creation) or `runtime`.
//! * `<-` is the reverse of a reference and never stored; `<->` is one side of a many-to-many.
//! * Types are prefix: `set ref VDI`, `map string enum vdi_operations`. `?` marks a parameter that
//!   may be left out, from the end.

mod parse;
mod schema;
#[cfg(test)]
mod tests;

pub use schema::SCHEMA_VERSION;

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

/// What a value of XenAPI may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// Text.
    String,
    /// 64 bits, signed.
    Int,
    /// Double precision.
    Float,
    /// True or false.
    Bool,
    /// A moment, to the second on the wire.
    DateTime,
    /// One of the named texts; the enum's name.
    Enum(&'static str),
    /// A reference to an object of the named class.
    Ref(&'static str),
    /// An unordered list.
    Set(Box<Type>),
    /// Keys (text on the wire, whatever they are here) and values.
    Map(Box<Type>, Box<Type>),
    /// All fields of the named class.
    Record(&'static str),
    /// A value or nothing.
    Option(Box<Type>),
    /// A record whose shape depends on the call.
    Any,
    /// No result.
    Void,
}

/// The roles, least first; each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Looks.
    ReadOnly,
    /// Uses VMs: start, stop, console, media.
    VmOperator,
    /// Makes and changes VMs.
    VmAdmin,
    /// Moves VMs, takes snapshots with memory.
    VmPowerAdmin,
    /// Manages hosts, storage and networks.
    PoolOperator,
    /// May do everything an administrator does.
    PoolAdmin,
    /// The superuser of this host, never a role of a person.
    LocalRoot,
}

impl Role {
    /// Every role that a subject may hold, greatest first.
    pub const GRANTABLE: [Role; 6] = [
        Role::PoolAdmin,
        Role::PoolOperator,
        Role::VmPowerAdmin,
        Role::VmAdmin,
        Role::VmOperator,
        Role::ReadOnly,
    ];

    /// Returns the name clients know.
    pub fn name(self) -> &'static str {
        match self {
            Role::ReadOnly => "read-only",
            Role::VmOperator => "vm-operator",
            Role::VmAdmin => "vm-admin",
            Role::VmPowerAdmin => "vm-power-admin",
            Role::PoolOperator => "pool-operator",
            Role::PoolAdmin => "pool-admin",
            Role::LocalRoot => "local-root",
        }
    }

    /// Finds a role by the name clients know.
    pub fn by_name(name: &str) -> Option<Role> {
        Self::GRANTABLE
            .into_iter()
            .chain([Role::LocalRoot])
            .find(|role| role.name() == name)
    }
}

/// How far a class, field or message is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// May still change.
    Prototyped,
    /// Part of the interface.
    Published,
    /// Still there, on its way out.
    Deprecated,
    /// Answers `MESSAGE_REMOVED`; a field keeps its place in records.
    Removed,
}

/// Who may write a field, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qualifier {
    /// By `set_`, `add_to_` and `remove_from_` messages, from this role on.
    ReadWrite(Role),
    /// In the record that `create` takes.
    Constructor,
    /// By the daemon.
    Runtime,
}

/// How a field is bound to another class's field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// The reverse of this class's reference field; computed, never stored.
    Reverse(&'static str, &'static str),
    /// One side of a many-to-many relation.
    Both(&'static str, &'static str),
}

/// A field of a class.
#[derive(Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub ty: Type,
    /// Who writes it.
    pub qualifier: Qualifier,
    /// What it is bound to.
    pub relation: Option<Relation>,
    /// What `create` takes when the record leaves it out; `None` where the caller must say.
    pub default: Option<serde_json::Value>,
    /// Its stage.
    pub stage: Stage,
}

/// A parameter of an explicit message.
#[derive(Debug)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub ty: Type,
    /// Whether it may be left out.
    pub optional: bool,
}

/// An explicit message: one that does more than read or write a field.
#[derive(Debug)]
pub struct Message {
    /// Its name, without the class.
    pub name: &'static str,
    /// Parameters after the session.
    pub params: Vec<Param>,
    /// What it answers.
    pub result: Type,
    /// The least role that may send it.
    pub role: Role,
    /// The error codes it is known for.
    pub errors: Vec<&'static str>,
    /// Its stage.
    pub stage: Stage,
}

/// A class.
#[derive(Debug)]
pub struct Class {
    /// Its name.
    pub name: &'static str,
    /// Whether it has rows; otherwise it is the shape of a result.
    pub is_object: bool,
    /// Whether `get_all` and `get_all_records` exist.
    pub listed: bool,
    /// Whether this daemon ever makes rows of it.
    pub served: bool,
    /// Least role that reads it.
    pub read_role: Role,
    /// Least role for `create` and `destroy` with a record; `None` where they are not implied.
    pub make_role: Option<Role>,
    /// Its stage.
    pub stage: Stage,
    /// Fields, in the order of records.
    pub fields: Vec<Field>,
    /// Explicit messages by name.
    pub messages: BTreeMap<&'static str, Message>,
    fields_by_name: HashMap<&'static str, usize>,
}

impl Class {
    /// Finds a field.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields_by_name
            .get(name)
            .and_then(|index| self.fields.get(*index))
    }
}

/// The whole table.
#[derive(Debug)]
pub struct Model {
    /// Classes by name.
    pub classes: BTreeMap<&'static str, Class>,
    /// Enums by name.
    pub enums: BTreeMap<&'static str, Vec<&'static str>>,
    /// Error codes and the names of their parameters.
    pub errors: BTreeMap<&'static str, Vec<&'static str>>,
    classes_by_lower_name: HashMap<String, &'static str>,
}

impl Model {
    /// Returns the one table, read at first use.
    ///
    /// # Panics
    /// When the text compiled into this program is not a model; a test reads all of it.
    pub fn shared() -> &'static Model {
        static MODEL: LazyLock<Model> = LazyLock::new(|| {
            parse::model(&SOURCES, ERRORS).expect("the compiled-in model is well formed")
        });
        &MODEL
    }

    /// Finds a class by its exact name.
    pub fn class(&self, name: &str) -> Option<&Class> {
        self.classes.get(name)
    }

    /// Finds a class by a name in any case, as event subscriptions give it.
    pub fn class_any_case(&self, name: &str) -> Option<&Class> {
        self.classes_by_lower_name
            .get(&name.to_ascii_lowercase())
            .and_then(|exact| self.classes.get(exact))
    }

    /// Lists an enum's values; empty when there is no such enum.
    pub fn enum_values(&self, name: &str) -> &[&'static str] {
        self.enums.get(name).map_or(&[], Vec::as_slice)
    }
}

const SOURCES: [(&str, &str); 9] = [
    ("access", include_str!("../model/access.model")),
    ("work", include_str!("../model/work.model")),
    ("pool", include_str!("../model/pool.model")),
    ("host", include_str!("../model/host.model")),
    ("vm", include_str!("../model/vm.model")),
    ("storage", include_str!("../model/storage.model")),
    ("network", include_str!("../model/network.model")),
    ("device", include_str!("../model/device.model")),
    ("cluster", include_str!("../model/cluster.model")),
];
const ERRORS: &str = include_str!("../model/errors.model");

//! The table of methods: what the model says each takes, joined with the code that answers it.

use crate::api::Call;
use crate::class;
use crate::error::ApiError;
use crate::model::{Class, Field, Model, Qualifier, Relation, Role, Stage, Type};
use database::Value;
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;

/// What answers an explicit message.
pub(crate) type Handler = fn(Call) -> Pin<Box<dyn Future<Output = Result<Value, ApiError>> + Send>>;

/// How long a message may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// A transaction or less; a task only when asked for by `Async.`.
    Quick,
    /// As long as disks and guests take; always a task.
    Long,
}

/// The code behind an explicit message, or behind a `create` or `destroy` that does more than rows.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// `Class.message`.
    pub(crate) name: &'static str,
    pub(crate) pace: Pace,
    pub(crate) handler: Handler,
}

/// A parameter after the session.
#[derive(Debug)]
pub(crate) struct MethodParam {
    pub(crate) name: &'static str,
    pub(crate) ty: Type,
    pub(crate) optional: bool,
}

/// What the model implies for every class alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Set,
    AddToMap,
    RemoveFromMap,
    AddToSet,
    RemoveFromSet,
    GetRecord,
    GetAll,
    GetAllRecords,
    GetAllRecordsWhere,
    GetByUuid,
    GetByNameLabel,
    Create,
    Destroy,
}

/// A generic message: a verb, a class, and a field where the verb is about one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Generic {
    pub(crate) verb: Verb,
    pub(crate) class: &'static Class,
    pub(crate) field: &'static str,
}

/// What answers a method.
pub(crate) enum Kind {
    Generic(Generic),
    /// `None`: the model has it, this daemon does not yet.
    Explicit(Option<Entry>),
}

/// A method.
pub(crate) struct Method {
    pub(crate) class: &'static str,
    pub(crate) name: String,
    pub(crate) params: Vec<MethodParam>,
    pub(crate) role: Role,
    pub(crate) needs_session: bool,
    stage: Stage,
    pub(crate) kind: Kind,
}

impl Method {
    /// `Class.message`.
    pub(crate) fn full_name(&self) -> String {
        format!("{}.{}", self.class, self.name)
    }

    /// Says whether `Async.` may stand before it.
    pub(crate) fn may_be_async(&self) -> bool {
        self.needs_session && matches!(self.kind, Kind::Explicit(_))
    }

    /// Says whether it answers `MESSAGE_REMOVED`.
    pub(crate) fn is_removed(&self) -> bool {
        self.stage == Stage::Removed && matches!(self.kind, Kind::Explicit(_))
    }

    fn is_served(&self) -> bool {
        !matches!(self.kind, Kind::Explicit(None)) && !self.is_removed()
    }
}

/// Methods that open a session instead of needing one.
const WITHOUT_SESSION: [&str; 2] = [
    "session.login_with_password",
    "session.slave_local_login_with_password",
];

/// Every method by its full name.
pub(crate) struct MethodTable {
    methods: BTreeMap<String, Method>,
}

impl MethodTable {
    pub(crate) fn new(model: &'static Model) -> Self {
        let entries: HashMap<&str, Entry> = class::entries()
            .into_iter()
            .map(|entry| (entry.name, entry))
            .collect();
        let mut methods = BTreeMap::new();
        for class in model.classes.values() {
            for method in implied(class).into_iter().chain(explicit(class)) {
                let name = method.full_name();
                // Code of its own comes first: a `create` may do more than make a row.
                let kind = match (entries.get(name.as_str()), method.kind) {
                    (Some(entry), _) => Kind::Explicit(Some(*entry)),
                    (None, Kind::Explicit(_)) if class::PLAIN.contains(&name.as_str()) => {
                        plain(class, &method.name).map_or(Kind::Explicit(None), Kind::Generic)
                    }
                    (None, kind) => kind,
                };
                let needs_session = !WITHOUT_SESSION.contains(&name.as_str());
                methods.insert(
                    name,
                    Method {
                        kind,
                        needs_session,
                        ..method
                    },
                );
            }
        }
        Self { methods }
    }

    /// Finds `Class.message`, or `Class_message` as clients write it in languages where
    /// `event.from` would not be a name.
    pub(crate) fn find(&self, name: &str) -> Option<&Method> {
        self.methods.get(name).or_else(|| {
            let mut dotted = name.match_indices('_').map(|(at, _)| {
                let (class, message) = name.split_at(at);
                format!("{class}.{}", message.trim_start_matches('_'))
            });
            dotted.find_map(|dotted| self.methods.get(&dotted))
        })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let served = self.methods.iter().filter(|(_, method)| method.is_served());
        served.map(|(name, _)| name.as_str())
    }

    /// Lists the methods that a role may send.
    pub(crate) fn permissions_of(&self, role: Role) -> Vec<String> {
        let allowed = self
            .methods
            .iter()
            .filter(|(_, method)| role >= method.role);
        allowed.map(|(name, _)| name.clone()).collect()
    }

    #[cfg(test)]
    pub(crate) fn all(&self) -> impl Iterator<Item = &Method> {
        self.methods.values()
    }
}

/// Reads an explicit message that does no more than its name says as a generic one.
fn plain(class: &'static Class, name: &str) -> Option<Generic> {
    let about = |verb: Verb, field: &str| {
        Some(Generic {
            verb,
            class,
            field: class.field(field)?.name,
        })
    };
    let verb = match name {
        "get_all" => Verb::GetAll,
        "get_all_records" => Verb::GetAllRecords,
        "get_all_records_where" => Verb::GetAllRecordsWhere,
        "get_by_uuid" => Verb::GetByUuid,
        "get_record" => Verb::GetRecord,
        "destroy" => Verb::Destroy,
        _ => {
            return if let Some(field) = name.strip_prefix("add_to_") {
                about(Verb::AddToMap, field)
            } else if let Some(field) = name.strip_prefix("remove_from_") {
                about(Verb::RemoveFromMap, field)
            } else {
                about(Verb::Set, name.strip_prefix("set_")?)
            };
        }
    };
    Some(Generic {
        verb,
        class,
        field: "",
    })
}

fn explicit(class: &'static Class) -> impl Iterator<Item = Method> {
    class.messages.values().map(|message| Method {
        class: class.name,
        name: message.name.to_owned(),
        params: message
            .params
            .iter()
            .map(|param| MethodParam {
                name: param.name,
                ty: param.ty.clone(),
                optional: param.optional,
            })
            .collect(),
        role: message.role,
        needs_session: true,
        stage: message.stage,
        kind: Kind::Explicit(None),
    })
}

/// A parameter's name and type.
type NamedType = (&'static str, Type);

fn generic(
    class: &'static Class,
    (verb, field): (Verb, &'static str),
    name: String,
    role: Role,
    params: Vec<NamedType>,
) -> Method {
    let params = params.into_iter().map(|(name, ty)| MethodParam {
        name,
        ty,
        optional: false,
    });
    Method {
        class: class.name,
        name,
        params: params.collect(),
        role,
        needs_session: true,
        stage: Stage::Published,
        kind: Kind::Generic(Generic { verb, class, field }),
    }
}

/// The messages that the model implies for a class.
fn implied(class: &'static Class) -> Vec<Method> {
    // Messages are rows here, but the interface has no field messages for them.
    if !class.is_object || class.name == "message" {
        return Vec::new();
    }
    let this = || ("self", Type::Ref(class.name));
    let read = class.read_role;
    let about_all = |verb: Verb, name: &str, role: Role, params: Vec<NamedType>| {
        generic(class, (verb, ""), name.to_owned(), role, params)
    };
    let mut all = vec![
        about_all(Verb::GetRecord, "get_record", read, vec![this()]),
        about_all(
            Verb::GetByUuid,
            "get_by_uuid",
            read,
            vec![("uuid", Type::String)],
        ),
    ];
    if class.listed {
        let expression = vec![("expr", Type::String)];
        all.push(about_all(Verb::GetAll, "get_all", read, vec![]));
        all.push(about_all(
            Verb::GetAllRecords,
            "get_all_records",
            read,
            vec![],
        ));
        all.push(about_all(
            Verb::GetAllRecordsWhere,
            "get_all_records_where",
            read,
            expression,
        ));
        if class.field("name_label").is_some() && class.name != "pool" {
            let label = vec![("label", Type::String)];
            all.push(about_all(
                Verb::GetByNameLabel,
                "get_by_name_label",
                read,
                label,
            ));
        }
    }
    if let Some(role) = class.make_role {
        let record = vec![("record", Type::Record(class.name))];
        all.push(about_all(Verb::Create, "create", role, record));
        all.push(about_all(Verb::Destroy, "destroy", role, vec![this()]));
    }
    all.extend(
        class
            .fields
            .iter()
            .flat_map(|field| implied_by_field(class, field)),
    );
    all
}

/// The messages that the model implies for a field.
fn implied_by_field(class: &'static Class, field: &'static Field) -> Vec<Method> {
    let name = field.name;
    let this = || ("self", Type::Ref(class.name));
    let about = |verb: Verb, prefix: &str, role: Role, params: Vec<NamedType>| {
        generic(class, (verb, name), format!("{prefix}{name}"), role, params)
    };
    let mut all = vec![about(Verb::Get, "get_", class.read_role, vec![this()])];
    let Qualifier::ReadWrite(role) = field.qualifier else {
        return all;
    };
    debug_assert!(!matches!(field.relation, Some(Relation::Reverse(..))));
    all.push(about(
        Verb::Set,
        "set_",
        role,
        vec![this(), ("value", field.ty.clone())],
    ));
    match &field.ty {
        Type::Map(key, value) => {
            let (key, value) = (("key", (**key).clone()), ("value", (**value).clone()));
            all.push(about(
                Verb::AddToMap,
                "add_to_",
                role,
                vec![this(), key.clone(), value],
            ));
            all.push(about(
                Verb::RemoveFromMap,
                "remove_from_",
                role,
                vec![this(), key],
            ));
        }
        Type::Set(item) => {
            let item = || vec![this(), ("value", (**item).clone())];
            all.push(about(Verb::AddToSet, "add_", role, item()));
            all.push(about(Verb::RemoveFromSet, "remove_", role, item()));
        }
        _ => {}
    }
    all
}

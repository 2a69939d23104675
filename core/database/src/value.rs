//! Values, references and types of fields. Knows nothing of classes or storage.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The opaque name of an object: `OpaqueRef:<uuid4>`, or `OpaqueRef:NULL` for "none".
///
/// Any text can be made into a `Ref` (clients send what they like); whether it names an object is
/// answered by a lookup. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ref(Arc<str>);

const NULL_REF: &str = "OpaqueRef:NULL";

impl Ref {
    /// Makes a fresh random reference.
    pub fn random() -> Self {
        Self(format!("OpaqueRef:{}", uuid::Uuid::new_v4()).into())
    }

    /// Returns the reference that names nothing.
    pub fn null() -> Self {
        Self(NULL_REF.into())
    }

    /// Says whether this is the reference that names nothing.
    pub fn is_null(&self) -> bool {
        &*self.0 == NULL_REF
    }

    /// Returns the text, `OpaqueRef:` included.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Ref {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Ref {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Ref {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Ref {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

/// What a field, a parameter or a result holds.
///
/// The order of the variants is part of the file format: add new ones at the end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// Nothing: the result of a call without one. Never the value of a field.
    #[default]
    Null,
    /// Text; enums too.
    String(String),
    /// A whole number.
    Int(i64),
    /// A floating point number; may be not a number.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Milliseconds since 1970-01-01T00:00:00Z.
    DateTime(i64),
    /// A reference to an object.
    Ref(Ref),
    /// A list; a field of type [`Type::Set`] keeps the order it was given.
    Set(Vec<Value>),
    /// Keys as text, whatever their type (numbers in decimal, references as their text).
    Map(BTreeMap<String, Value>),
    /// Named parts, e.g. a whole object.
    Record(BTreeMap<String, Value>),
}

impl Value {
    /// Returns the text of a `String` or a `Ref`.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            Self::Ref(reference) => Some(reference.as_str()),
            _ => None,
        }
    }

    /// Returns the number of an `Int`.
    pub fn as_int(&self) -> Option<i64> {
        if let Self::Int(number) = self {
            Some(*number)
        } else {
            None
        }
    }

    /// Returns the number of a `Float`.
    pub fn as_float(&self) -> Option<f64> {
        if let Self::Float(number) = self {
            Some(*number)
        } else {
            None
        }
    }

    /// Returns the truth of a `Bool`.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(truth) = self {
            Some(*truth)
        } else {
            None
        }
    }

    /// Returns the milliseconds since 1970 of a `DateTime`.
    pub fn as_datetime(&self) -> Option<i64> {
        if let Self::DateTime(millis) = self {
            Some(*millis)
        } else {
            None
        }
    }

    /// Returns the reference of a `Ref`.
    pub fn as_ref(&self) -> Option<&Ref> {
        if let Self::Ref(reference) = self {
            Some(reference)
        } else {
            None
        }
    }

    /// Returns the elements of a `Set`.
    pub fn as_set(&self) -> Option<&[Value]> {
        if let Self::Set(items) = self {
            Some(items)
        } else {
            None
        }
    }

    /// Returns the entries of a `Map` or a `Record`.
    pub fn as_map(&self) -> Option<&BTreeMap<String, Value>> {
        match self {
            Self::Map(entries) | Self::Record(entries) => Some(entries),
            _ => None,
        }
    }

    /// Calls `visit` for each reference inside that is not null.
    pub(crate) fn each_ref<'a>(&'a self, visit: &mut impl FnMut(&'a Ref)) {
        match self {
            Self::Ref(reference) if !reference.is_null() => visit(reference),
            Self::Set(items) => items.iter().for_each(|item| item.each_ref(visit)),
            Self::Map(entries) => entries.values().for_each(|item| item.each_ref(visit)),
            _ => {}
        }
    }

    /// Takes `gone` out: a reference becomes null, an element or entry disappears.
    pub(crate) fn clear_ref(&mut self, gone: &Ref) {
        let is_gone = |value: &Value| matches!(value, Value::Ref(reference) if reference == gone);
        match self {
            Self::Ref(reference) if reference == gone => *reference = Ref::null(),
            Self::Set(items) => {
                items.retain(|item| !is_gone(item));
                items.iter_mut().for_each(|item| item.clear_ref(gone));
            }
            Self::Map(entries) => {
                entries.retain(|_, item| !is_gone(item));
                entries.values_mut().for_each(|item| item.clear_ref(gone));
            }
            _ => {}
        }
    }
}

macro_rules! value_from {
    ($($from:ty => $variant:ident),+ $(,)?) => {$(
        impl From<$from> for Value {
            fn from(inner: $from) -> Self {
                Self::$variant(inner.into())
            }
        }
    )+};
}

value_from! {
    String => String,
    &str => String,
    i64 => Int,
    f64 => Float,
    bool => Bool,
    Ref => Ref,
    Vec<Value> => Set,
    BTreeMap<String, Value> => Map,
}

impl From<&Ref> for Value {
    fn from(reference: &Ref) -> Self {
        Self::Ref(reference.clone())
    }
}

/// What values a field takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// Any text.
    String,
    /// A whole number.
    Int,
    /// A floating point number.
    Float,
    /// True or false.
    Bool,
    /// A moment.
    DateTime,
    /// One of these texts. An empty list takes any text.
    Enum(Vec<String>),
    /// A reference to an object of this class, or null.
    Ref(String),
    /// A list of the inner type.
    Set(Box<Type>),
    /// From the first type, written as text, to the second.
    Map(Box<Type>, Box<Type>),
    /// Named parts that are not checked further and whose references are not followed.
    Record,
}

impl Type {
    /// Returns the empty value: `""`, `0`, `false`, 1970, null, an empty list or map, the first enum value.
    pub fn zero(&self) -> Value {
        match self {
            Self::String => Value::from(""),
            Self::Int => Value::Int(0),
            Self::Float => Value::Float(0.0),
            Self::Bool => Value::Bool(false),
            Self::DateTime => Value::DateTime(0),
            Self::Enum(names) => Value::String(names.first().cloned().unwrap_or_default()),
            Self::Ref(_) => Value::Ref(Ref::null()),
            Self::Set(_) => Value::Set(Vec::new()),
            Self::Map(..) => Value::Map(BTreeMap::new()),
            Self::Record => Value::Record(BTreeMap::new()),
        }
    }

    /// Says whether `value` has this shape. Whether references name objects is not looked at.
    pub fn accepts(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::String, Value::String(_))
            | (Self::Int, Value::Int(_))
            | (Self::Float, Value::Float(_))
            | (Self::Bool, Value::Bool(_))
            | (Self::DateTime, Value::DateTime(_))
            | (Self::Ref(_), Value::Ref(_))
            | (Self::Record, Value::Record(_)) => true,
            (Self::Enum(names), Value::String(text)) => names.is_empty() || names.contains(text),
            (Self::Set(inner), Value::Set(items)) => items.iter().all(|item| inner.accepts(item)),
            (Self::Map(key, inner), Value::Map(entries)) => entries
                .iter()
                .all(|(text, item)| key.accepts_key(text) && inner.accepts(item)),
            _ => false,
        }
    }

    fn accepts_key(&self, text: &str) -> bool {
        match self {
            Self::Int => text.parse::<i64>().is_ok(),
            Self::Enum(names) => names.is_empty() || names.iter().any(|name| name == text),
            _ => true,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String => f.write_str("string"),
            Self::Int => f.write_str("int"),
            Self::Float => f.write_str("float"),
            Self::Bool => f.write_str("bool"),
            Self::DateTime => f.write_str("datetime"),
            Self::Enum(names) => write!(f, "enum of {}", names.join("|")),
            Self::Ref(class) => write!(f, "{class} ref"),
            Self::Set(inner) => write!(f, "{inner} set"),
            Self::Map(key, inner) => write!(f, "({key} -> {inner}) map"),
            Self::Record => f.write_str("record"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_accepts_its_own_zero_and_no_other_shape() {
        let names = Type::Enum(vec!["user".into(), "system".into()]);
        let map = Type::Map(Box::new(Type::Int), Box::new(Type::Float));
        let set = Type::Set(Box::new(Type::Ref("VDI".into())));
        let all = [
            Type::String,
            Type::Int,
            Type::Float,
            Type::Bool,
            Type::DateTime,
            Type::Ref("VM".into()),
            set,
            map,
            Type::Record,
        ];
        for (at, ty) in all.iter().enumerate() {
            for (other_at, other) in all.iter().enumerate() {
                assert_eq!(
                    ty.accepts(&other.zero()),
                    at == other_at,
                    "{ty} takes zero of {other}"
                );
            }
            assert!(!ty.accepts(&Value::Null), "{ty} takes null");
        }
        assert!(names.accepts(&"system".into()) && !names.accepts(&"other".into()));
    }

    #[test]
    fn map_keys_are_checked_against_their_type() {
        let ty = Type::Map(Box::new(Type::Int), Box::new(Type::Bool));
        let with_key = |key: &str| Value::Map(BTreeMap::from([(key.to_owned(), true.into())]));
        assert!(ty.accepts(&with_key("7")));
        assert!(!ty.accepts(&with_key("seven")));
    }

    #[test]
    fn clearing_a_reference_reaches_into_sets_and_maps() {
        let (gone, kept) = (Ref::random(), Ref::random());
        let pair = || vec![Value::from(&gone), Value::from(&kept)];
        let mut value = Value::Map(BTreeMap::from([
            ("a".to_owned(), Value::from(&gone)),
            ("b".to_owned(), Value::Set(pair())),
        ]));
        value.clear_ref(&gone);
        let left = BTreeMap::from([("b".to_owned(), Value::Set(vec![Value::from(&kept)]))]);
        assert_eq!(value, Value::Map(left));
    }
}

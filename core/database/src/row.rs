//! One object at one revision.

use crate::schema::Class;
use crate::value::{Ref, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One object as it was at the revision of the snapshot it came from. Never changes.
#[derive(Clone, Debug)]
pub struct Row {
    pub(crate) class: Arc<Class>,
    pub(crate) reference: Ref,
    /// One per field of the class, in its order; computed fields included.
    pub(crate) values: Vec<Value>,
    /// The revision that made this object.
    pub created: u64,
    /// The revision that last changed it, a computed field of it, or touched it.
    pub modified: u64,
}

impl Row {
    /// Returns the name of the object's class.
    pub fn class(&self) -> &str {
        &self.class.name
    }

    /// Returns the object's reference.
    pub fn reference(&self) -> &Ref {
        &self.reference
    }

    /// Returns the object's uuid, or `""` when its class has none.
    pub fn uuid(&self) -> &str {
        self.class
            .uuid
            .and_then(|at| self.values.get(at))
            .and_then(Value::as_str)
            .unwrap_or("")
    }

    /// Returns the value of a field, [`Value::Null`] when the class has no such field.
    pub fn get(&self, field: &str) -> Value {
        self.field(field).cloned().unwrap_or_default()
    }

    /// Returns the value of a field without copying it.
    pub fn field(&self, field: &str) -> Option<&Value> {
        self.values.get(self.class.field(field)?.0)
    }

    /// Lists all fields with their values, in the order of the schema.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.class
            .fields
            .iter()
            .map(|field| field.name.as_str())
            .zip(&self.values)
    }

    /// Returns the whole object as one [`Value::Record`].
    pub fn record(&self) -> Value {
        let fields = self
            .fields()
            .map(|(name, value)| (name.to_owned(), value.clone()));
        Value::Record(fields.collect::<BTreeMap<_, _>>())
    }
}

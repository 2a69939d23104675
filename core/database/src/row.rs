//! One object at one revision.

use crate::chunk_map::ChunkMap;
use crate::schema::Class;
use crate::value::{Ref, Value};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// A computed field: the objects that refer to this one. An SR can have very many disks, and adding
/// one must not copy the rest; so the set is a [`ChunkMap`], and a value is made of it when asked for.
#[derive(Clone, Debug, Default)]
struct Computed {
    place: usize,
    refs: ChunkMap<Ref, ()>,
    value: OnceLock<Arc<Value>>,
}

impl Computed {
    fn value(&self) -> &Value {
        self.value.get_or_init(|| {
            let items = self
                .refs
                .iter()
                .map(|(reference, ())| Value::from(reference));
            Arc::new(Value::Set(items.collect()))
        })
    }
}

/// One object as it was at the revision of the snapshot it came from. Never changes.
#[derive(Clone, Debug)]
pub struct Row {
    pub(crate) class: Arc<Class>,
    pub(crate) reference: Ref,
    /// One per field of the class, in its order; null for a computed one.
    pub(crate) values: Vec<Value>,
    computed: Vec<Computed>,
    /// The revision that made this object.
    pub created: u64,
    /// The revision that last changed it, a computed field of it, or touched it.
    pub modified: u64,
}

impl Row {
    /// Puts an object together; the values of computed fields are ignored.
    pub(crate) fn new(
        class: Arc<Class>,
        reference: Ref,
        mut values: Vec<Value>,
        (created, modified): (u64, u64),
    ) -> Self {
        let mut computed = Vec::new();
        for (at, (field, value)) in class.fields.iter().zip(&mut values).enumerate() {
            if field.reverse_of.is_some() {
                *value = Value::Null;
                computed.push(Computed {
                    place: at,
                    ..Computed::default()
                });
            }
        }
        Self {
            class,
            reference,
            values,
            computed,
            created,
            modified,
        }
    }

    /// Puts `from` in, or takes it out of, the computed field at `place`.
    pub(crate) fn show(&mut self, place: usize, from: &Ref, present: bool) {
        let found = self
            .computed
            .iter_mut()
            .find(|computed| computed.place == place);
        let Some(computed) = found else { return };
        computed.value = OnceLock::new();
        if present {
            computed.refs.insert(from.clone(), (), 0);
        } else {
            computed.refs.remove(from);
        }
    }

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
        self.value_at(self.class.field(field)?.0)
    }

    /// Lists all fields with their values, in the order of the schema.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Value)> {
        let fields = self.class.fields.iter().enumerate();
        fields.filter_map(|(at, field)| Some((field.name.as_str(), self.value_at(at)?)))
    }

    fn value_at(&self, at: usize) -> Option<&Value> {
        let found = self.computed.iter().find(|computed| computed.place == at);
        found.map_or_else(|| self.values.get(at), |computed| Some(computed.value()))
    }

    /// Returns the whole object as one [`Value::Record`].
    pub fn record(&self) -> Value {
        let fields = self
            .fields()
            .map(|(name, value)| (name.to_owned(), value.clone()));
        Value::Record(fields.collect::<BTreeMap<_, _>>())
    }
}

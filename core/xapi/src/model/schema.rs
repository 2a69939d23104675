//! The database schema that follows from the model table.

use super::{Class, Field, Model, Relation, Type};
use crate::datetime;
use database::{ClassSchema, FieldSchema, Schema, Value};
use std::collections::BTreeMap;

/// Grows when a change of the table changes what is stored.
pub const SCHEMA_VERSION: u32 = 1;

/// Fields that say what goes on in this process; they start empty with it.
const VOLATILE: [&str; 2] = ["allowed_operations", "current_operations"];

impl Model {
    /// Describes every class with rows to the database.
    pub fn database_schema(&self) -> Schema {
        let classes = self.classes.values().filter(|class| class.is_object);
        Schema {
            version: SCHEMA_VERSION,
            classes: classes.map(|class| self.class_schema(class)).collect(),
        }
    }

    /// Returns the type as the database has it.
    pub fn database_type(&self, ty: &Type) -> database::Type {
        use database::Type as Db;
        match ty {
            Type::String => Db::String,
            Type::Int => Db::Int,
            Type::Float => Db::Float,
            Type::Bool => Db::Bool,
            Type::DateTime => Db::DateTime,
            Type::Enum(name) => Db::Enum(
                self.enum_values(name)
                    .iter()
                    .map(|&value| value.to_owned())
                    .collect(),
            ),
            Type::Ref(class) => Db::Ref((*class).to_owned()),
            Type::Set(inner) => Db::Set(Box::new(self.database_type(inner))),
            Type::Map(key, value) => Db::Map(
                Box::new(self.database_type(key)),
                Box::new(self.database_type(value)),
            ),
            Type::Option(inner) => self.database_type(inner),
            Type::Record(_) | Type::Any | Type::Void => Db::Record,
        }
    }

    /// Returns the default of a field as a value, or the zero of its type when it has none.
    pub fn default_value(&self, field: &Field) -> Value {
        let from_json = field
            .default
            .as_ref()
            .and_then(|json| from_json(&field.ty, json));
        from_json.unwrap_or_else(|| self.database_type(&field.ty).zero())
    }

    fn class_schema(&self, class: &Class) -> ClassSchema {
        let fields = class.fields.iter().map(|field| match field.relation {
            Some(Relation::Reverse(other, forward)) => {
                FieldSchema::reverse(field.name, other, forward)
            }
            Some(Relation::Both(..)) | None => FieldSchema {
                default: Some(self.default_value(field)),
                persistent: !VOLATILE.contains(&field.name),
                ..FieldSchema::stored(field.name, self.database_type(&field.ty))
            },
        });
        ClassSchema {
            name: class.name.to_owned(),
            fields: fields.collect(),
        }
    }
}

pub(super) fn from_json(ty: &Type, json: &serde_json::Value) -> Option<Value> {
    Some(match ty {
        Type::String | Type::Enum(_) => Value::from(json.as_str()?),
        Type::Int => Value::Int(json.as_i64()?),
        Type::Float => Value::Float(json.as_f64()?),
        Type::Bool => Value::Bool(json.as_bool()?),
        Type::DateTime => Value::DateTime(datetime::parse(json.as_str()?)?),
        Type::Ref(_) => Value::Ref(json.as_str()?.into()),
        Type::Set(inner) => {
            let items = json.as_array()?.iter().map(|item| from_json(inner, item));
            Value::Set(items.collect::<Option<Vec<_>>>()?)
        }
        Type::Map(_, inner) => {
            let entries = json.as_object()?.iter();
            let entries = entries.map(|(key, item)| Some((key.clone(), from_json(inner, item)?)));
            Value::Map(entries.collect::<Option<BTreeMap<_, _>>>()?)
        }
        Type::Option(inner) => from_json(inner, json)?,
        Type::Record(_) | Type::Any | Type::Void => return None,
    })
}

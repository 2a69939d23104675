//! Fits values from the wire to the types of the model.
//!
//! The wire cannot tell an integer from a text or a reference from a text, and a record from a map;
//! the model can. Whether a reference names an object is not looked at here.

use crate::datetime;
use crate::error::ApiError;
use crate::model::{Class, Model, Qualifier, Type};
use database::{Ref, Row, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Returns `value` as `ty` has it.
///
/// # Errors
/// `FIELD_TYPE_ERROR` with `name`.
pub(crate) fn coerce(
    model: &Model,
    ty: &Type,
    value: Value,
    name: &str,
) -> Result<Value, ApiError> {
    fit(model, ty, value).ok_or_else(|| ApiError::field_type(name))
}

fn fit(model: &Model, ty: &Type, value: Value) -> Option<Value> {
    Some(match (ty, value) {
        (Type::String, value @ Value::String(_))
        | (Type::Int, value @ Value::Int(_))
        | (Type::Float, value @ Value::Float(_))
        | (Type::Bool, value @ Value::Bool(_))
        | (Type::DateTime, value @ Value::DateTime(_))
        | (Type::Ref(_), value @ Value::Ref(_)) => value,
        (Type::String, Value::Ref(reference)) => Value::from(reference.as_str()),
        // Untyped clients (Python's `xmlrpc`, JSON) send small numbers for texts and floats.
        (Type::String, Value::Int(number)) => Value::String(number.to_string()),
        (Type::Int, Value::String(text)) => Value::Int(text.trim().parse().ok()?),
        (Type::Float, Value::String(text)) => Value::Float(text.trim().parse().ok()?),
        #[expect(clippy::cast_precision_loss, reason = "a float parameter is no count")]
        (Type::Float, Value::Int(number)) => Value::Float(number as f64),
        (Type::Bool, Value::String(text)) => Value::Bool(text.trim().parse().ok()?),
        (Type::DateTime, Value::String(text)) => Value::DateTime(datetime::parse(text.trim())?),
        (Type::Ref(_), Value::String(text)) => Value::Ref(match text.as_str() {
            "" => Ref::null(),
            _ => text.into(),
        }),
        (Type::Enum(name), Value::String(text)) => model
            .enum_values(name)
            .contains(&text.as_str())
            .then_some(Value::String(text))?,
        (Type::Set(inner), Value::Set(items)) => {
            let items = items.into_iter().map(|item| fit(model, inner, item));
            Value::Set(items.collect::<Option<_>>()?)
        }
        (Type::Map(key, inner), Value::Map(entries) | Value::Record(entries)) => {
            let entries = entries.into_iter().map(|(name, item)| {
                fit(model, key, Value::String(name.clone()))?;
                Some((name, fit(model, inner, item)?))
            });
            Value::Map(entries.collect::<Option<_>>()?)
        }
        (Type::Option(_), Value::Null) => Value::Null,
        (Type::Option(inner), value) => fit(model, inner, value)?,
        (Type::Record(_) | Type::Any, Value::Map(entries) | Value::Record(entries)) => {
            Value::Record(entries)
        }
        (Type::Void, Value::Null) => Value::Null,
        _ => return None,
    })
}

/// Turns the record a client gives to `create` into the fields of a new object.
///
/// Fields that are not the client's to give, and names that are no fields, are passed over:
/// clients hand back records as they got them.
///
/// # Errors
/// `FIELD_TYPE_ERROR` for a value of the wrong type, or a reference or an enum without default
/// that the record leaves out.
pub(crate) fn constructor(
    model: &Model,
    class: &Class,
    mut record: BTreeMap<String, Value>,
) -> Result<BTreeMap<String, Value>, ApiError> {
    let mut fields = BTreeMap::new();
    for field in class
        .fields
        .iter()
        .filter(|field| field.qualifier != Qualifier::Runtime)
    {
        let value = match record.remove(field.name) {
            Some(value) => coerce(model, &field.ty, value, field.name)?,
            None if field.default.is_none() && matches!(field.ty, Type::Ref(_) | Type::Enum(_)) => {
                return Err(ApiError::field_type(field.name));
            }
            None => model.default_value(field),
        };
        fields.insert(field.name.to_owned(), value);
    }
    Ok(fields)
}

/// References that may be null though the model has no default for them: the home of a VM, and the
/// disk in an empty drive.
const NULLABLE: [(&str, &str); 2] = [("VM", "affinity"), ("VBD", "VDI")];

/// Checks that every reference in a constructed object names an object of the right class, and
/// that those it cannot be without are there.
///
/// # Errors
/// `HANDLE_INVALID` for the first that does not.
pub(crate) fn check_references(
    class: &Class,
    fields: &BTreeMap<String, Value>,
    row: impl Fn(&str, &Ref) -> Option<Arc<Row>>,
) -> Result<(), ApiError> {
    for field in &class.fields {
        let (Type::Ref(target), Some(Value::Ref(reference))) = (&field.ty, fields.get(field.name))
        else {
            continue;
        };
        let may_be_null = field.default.is_some() || NULLABLE.contains(&(class.name, field.name));
        let is_good = match reference.is_null() {
            true => may_be_null,
            false => row(target, reference).is_some(),
        };
        if !is_good {
            return Err(ApiError::handle_invalid(target, reference));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(ty: &Type, value: impl Into<Value>) -> Option<Value> {
        fit(Model::shared(), ty, value.into())
    }

    #[test]
    fn texts_become_what_the_model_asks_for() {
        for (ty, text, expected) in [
            (Type::Int, "42", Some(Value::Int(42))),
            (Type::Int, "9223372036854775808", None),
            (Type::Int, "4.2", None),
            (Type::Float, "0.5", Some(Value::Float(0.5))),
            (Type::Bool, "true", Some(Value::Bool(true))),
            (Type::Bool, "yes", None),
            (
                Type::DateTime,
                "19700101T00:00:01Z",
                Some(Value::DateTime(1000)),
            ),
            (Type::Enum("vdi_type"), "user", Some(Value::from("user"))),
            (Type::Enum("vdi_type"), "User", None),
            (
                Type::Ref("VM"),
                "OpaqueRef:x",
                Some(Value::Ref("OpaqueRef:x".into())),
            ),
            (Type::Ref("VM"), "", Some(Value::Ref(Ref::null()))),
            (Type::Set(Box::new(Type::String)), "a", None),
        ] {
            assert_eq!(fits(&ty, text), expected, "{ty:?} of {text:?}");
        }
    }

    #[test]
    fn the_keys_of_a_map_have_a_type_too() {
        let ty = Type::Map(
            Box::new(Type::Enum("vm_operations")),
            Box::new(Type::String),
        );
        let map = |key: &str| Value::Map(BTreeMap::from([(key.to_owned(), Value::from("no"))]));
        assert_eq!(fits(&ty, map("start")), Some(map("start")));
        assert_eq!(fits(&ty, map("fly")), None);
    }

    #[test]
    fn a_new_object_takes_defaults_but_no_missing_references() {
        let model = Model::shared();
        let class = model.class("VDI").unwrap();
        let given = BTreeMap::from([
            ("SR".to_owned(), Value::from("OpaqueRef:s")),
            ("type".to_owned(), Value::from("user")),
            ("virtual_size".to_owned(), Value::from("4096")),
            ("uuid".to_owned(), Value::from("mine")),
            ("colour".to_owned(), Value::from("red")),
        ]);
        let fields = constructor(model, class, given.clone()).unwrap();
        assert_eq!(fields.get("virtual_size"), Some(&Value::Int(4096)));
        assert_eq!(fields.get("tags"), Some(&Value::Set(vec![])));
        assert!(!fields.contains_key("uuid") && !fields.contains_key("colour"));
        let mut without = given;
        without.remove("type");
        let error = constructor(model, class, without).unwrap_err();
        assert_eq!(error, ApiError::field_type("type"));
    }
}

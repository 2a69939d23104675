//! Component values as JSON and back, by their types.
//!
//! Records are objects with names in snake case, variants `{"case": payload}` (a bare string
//! without payload), enums strings, options `null` or the value, results `{"Ok": ..}` or
//! `{"Err": ..}`: what serde writes for the SDK's types, so that a component and a shared object
//! speak the same messages.

use serde_json::{Map, Number, Value, json};
use wasmtime::component::{Type, Val};

/// Turns a name of WIT into one of JSON.
pub(crate) fn snake(name: &str) -> String {
    name.replace('-', "_")
}

/// Writes a value.
pub(crate) fn to_json(value: &Val) -> Result<Value, String> {
    let optional = |value: &Option<Box<Val>>| value.as_deref().map_or(Ok(Value::Null), to_json);
    let all = |values: &[Val]| values.iter().map(to_json).collect::<Result<Vec<_>, _>>();
    Ok(match value {
        Val::Bool(value) => json!(value),
        Val::S8(value) => json!(value),
        Val::U8(value) => json!(value),
        Val::S16(value) => json!(value),
        Val::U16(value) => json!(value),
        Val::S32(value) => json!(value),
        Val::U32(value) => json!(value),
        Val::S64(value) => json!(value),
        Val::U64(value) => json!(value),
        Val::Float32(value) => number(f64::from(*value))?,
        Val::Float64(value) => number(*value)?,
        Val::Char(value) => json!(value),
        Val::String(value) | Val::Enum(value) => json!(value),
        Val::List(values) | Val::Tuple(values) => Value::Array(all(values)?),
        Val::Record(fields) => {
            let field = |(name, value): &(String, Val)| Ok((snake(name), to_json(value)?));
            Value::Object(
                fields
                    .iter()
                    .map(field)
                    .collect::<Result<Map<_, _>, String>>()?,
            )
        }
        Val::Variant(case, None) => json!(case),
        Val::Variant(case, Some(payload)) => json!({ case: to_json(payload)? }),
        Val::Option(value) => optional(value)?,
        Val::Result(Ok(value)) => json!({ "Ok": optional(value)? }),
        Val::Result(Err(value)) => json!({ "Err": optional(value)? }),
        other => return Err(format!("{other:?} has no form as a message")),
    })
}

fn number(value: f64) -> Result<Value, String> {
    Number::from_f64(value)
        .map(Value::Number)
        .ok_or_else(|| format!("{value} is not finite"))
}

/// Reads a value of type `ty`.
pub(crate) fn from_json(value: &Value, ty: &Type) -> Result<Val, String> {
    let wrong = || format!("{} is no {ty:?}", summary(value));
    let unsigned = || value.as_u64().ok_or_else(wrong);
    let signed = || value.as_i64().ok_or_else(wrong);
    let text = || value.as_str().map(str::to_owned).ok_or_else(wrong);
    let array = || value.as_array().ok_or_else(wrong);
    Ok(match ty {
        Type::Bool => Val::Bool(value.as_bool().ok_or_else(wrong)?),
        Type::U8 => Val::U8(unsigned()?.try_into().map_err(|_| wrong())?),
        Type::U16 => Val::U16(unsigned()?.try_into().map_err(|_| wrong())?),
        Type::U32 => Val::U32(unsigned()?.try_into().map_err(|_| wrong())?),
        Type::U64 => Val::U64(unsigned()?),
        Type::S8 => Val::S8(signed()?.try_into().map_err(|_| wrong())?),
        Type::S16 => Val::S16(signed()?.try_into().map_err(|_| wrong())?),
        Type::S32 => Val::S32(signed()?.try_into().map_err(|_| wrong())?),
        Type::S64 => Val::S64(signed()?),
        Type::Float64 => Val::Float64(value.as_f64().ok_or_else(wrong)?),
        Type::String => Val::String(text()?),
        Type::List(list) => {
            let item = list.ty();
            Val::List(
                array()?
                    .iter()
                    .map(|value| from_json(value, &item))
                    .collect::<Result<_, _>>()?,
            )
        }
        Type::Tuple(tuple) => {
            let values = array()?;
            if values.len() != tuple.types().len() {
                return Err(wrong());
            }
            let pairs = values.iter().zip(tuple.types());
            Val::Tuple(
                pairs
                    .map(|(value, ty)| from_json(value, &ty))
                    .collect::<Result<_, _>>()?,
            )
        }
        Type::Record(record) => {
            let object = value.as_object().ok_or_else(wrong)?;
            let field = |field: wasmtime::component::types::Field<'_>| {
                let found = object.get(&snake(field.name)).unwrap_or(&Value::Null);
                Ok((field.name.to_owned(), from_json(found, &field.ty)?))
            };
            Val::Record(record.fields().map(field).collect::<Result<_, String>>()?)
        }
        Type::Enum(names) => {
            let text = text()?;
            if !names.names().any(|name| name == text) {
                return Err(wrong());
            }
            Val::Enum(text)
        }
        Type::Variant(variant) => {
            let (name, payload) = case(value).ok_or_else(wrong)?;
            let found = variant
                .cases()
                .find(|case| case.name == name)
                .ok_or_else(wrong)?;
            let payload = found.ty.map(|ty| from_json(payload, &ty)).transpose()?;
            Val::Variant(name.to_owned(), payload.map(Box::new))
        }
        Type::Option(_) if value.is_null() => Val::Option(None),
        Type::Option(option) => Val::Option(Some(Box::new(from_json(value, &option.ty())?))),
        Type::Result(result) => {
            let (name, payload) = case(value).ok_or_else(wrong)?;
            let payload = |ty: Option<Type>| -> Result<Option<Box<Val>>, String> {
                Ok(ty
                    .map(|ty| from_json(payload, &ty))
                    .transpose()?
                    .map(Box::new))
            };
            match name {
                "Ok" => Val::Result(Ok(payload(result.ok())?)),
                "Err" => Val::Result(Err(payload(result.err())?)),
                _ => return Err(wrong()),
            }
        }
        _ => return Err(format!("{ty:?} has no form as a message")),
    })
}

/// Takes a case apart: its name and payload.
fn case(value: &Value) -> Option<(&str, &Value)> {
    match value {
        Value::String(name) => Some((name, &Value::Null)),
        Value::Object(object) if object.len() == 1 => object
            .iter()
            .next()
            .map(|(name, payload)| (name.as_str(), payload)),
        _ => None,
    }
}

fn summary(value: &Value) -> String {
    value.to_string().chars().take(80).collect()
}

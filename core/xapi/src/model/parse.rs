//! Reads the text of the model table. Line by line, no recovery: the text is ours and tested.

use super::{Class, Field, Message, Model, Param, Qualifier, Relation, Role, Stage, Type};
use std::collections::{BTreeMap, HashMap};

/// Why a line is not a statement.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}.model line {line}: {reason}")]
pub(super) struct ParseError {
    file: String,
    line: usize,
    reason: String,
}

/// Reads all files of the table and the list of errors.
pub(super) fn model(
    sources: &[(&str, &'static str)],
    errors: &'static str,
) -> Result<Model, ParseError> {
    let mut classes = Vec::new();
    let mut enums = BTreeMap::new();
    for (file, text) in sources {
        for (index, line) in text.lines().enumerate() {
            statement(line, &mut classes, &mut enums).map_err(|reason| ParseError {
                file: (*file).to_owned(),
                line: index.saturating_add(1),
                reason,
            })?;
        }
    }
    let by_lower = |class: &Class| (class.name.to_ascii_lowercase(), class.name);
    Ok(Model {
        classes_by_lower_name: classes.iter().map(by_lower).collect(),
        classes: classes
            .into_iter()
            .map(|class| (class.name, class))
            .collect(),
        enums,
        errors: errors.lines().filter_map(error_line).collect(),
    })
}

fn error_line(line: &'static str) -> Option<(&'static str, Vec<&'static str>)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (code, params) = line.split_once(' ').unwrap_or((line, ""));
    let params = params
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    Some((code, params))
}

fn statement(
    line: &'static str,
    classes: &mut Vec<Class>,
    enums: &mut BTreeMap<&'static str, Vec<&'static str>>,
) -> Result<(), String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(());
    }
    let (keyword, rest) = line.split_once(' ').ok_or("a keyword alone")?;
    let (rest, stage) = split_stage(rest)?;
    match keyword {
        "class" => classes.push(class(rest, stage)?),
        "enum" => {
            let mut words = rest.split(' ');
            let name = words.next().unwrap_or_default();
            if enums.insert(name, words.collect()).is_some() {
                return Err(format!("enum {name} twice"));
            }
        }
        "field" => {
            let class = classes.last_mut().ok_or("a field outside a class")?;
            let field = field(rest, stage)?;
            if class
                .fields_by_name
                .insert(field.name, class.fields.len())
                .is_some()
            {
                return Err(format!("field {} twice", field.name));
            }
            class.fields.push(field);
        }
        "call" => {
            let class = classes.last_mut().ok_or("a call outside a class")?;
            let message = call(rest, stage)?;
            let name = message.name;
            if class.messages.insert(name, message).is_some() {
                return Err(format!("call {name} twice"));
            }
        }
        other => return Err(format!("unknown keyword {other}")),
    }
    Ok(())
}

fn split_stage(rest: &'static str) -> Result<(&'static str, Stage), String> {
    match rest.rsplit_once(" @") {
        None => Ok((rest, Stage::Published)),
        Some((rest, "prototyped")) => Ok((rest, Stage::Prototyped)),
        Some((rest, "deprecated")) => Ok((rest, Stage::Deprecated)),
        Some((rest, "removed")) => Ok((rest, Stage::Removed)),
        Some((_, other)) => Err(format!("unknown stage {other}")),
    }
}

fn role(name: Option<&str>) -> Result<Role, String> {
    let name = name.ok_or("a role is missing")?;
    Role::by_name(name).ok_or_else(|| format!("unknown role {name}"))
}

fn class(rest: &'static str, stage: Stage) -> Result<Class, String> {
    let mut words = rest.split(' ');
    let mut class = Class {
        name: words.next().ok_or("a class without a name")?,
        is_object: match words.next() {
            Some("object") => true,
            Some("value") => false,
            other => return Err(format!("a class is object or value, not {other:?}")),
        },
        listed: false,
        served: false,
        read_role: Role::ReadOnly,
        make_role: None,
        stage,
        fields: Vec::new(),
        messages: BTreeMap::new(),
        fields_by_name: HashMap::new(),
    };
    while let Some(word) = words.next() {
        match word {
            "listed" => class.listed = true,
            "served" => class.served = true,
            "read" => class.read_role = role(words.next())?,
            "make" => class.make_role = Some(role(words.next())?),
            other => return Err(format!("unknown word {other}")),
        }
    }
    Ok(class)
}

fn field(rest: &'static str, stage: Stage) -> Result<Field, String> {
    let (rest, default) = match rest.split_once(" = ") {
        None => (rest, None),
        Some((rest, json)) => (
            rest,
            Some(serde_json::from_str(json).map_err(|error| error.to_string())?),
        ),
    };
    let mut words = rest.split(' ');
    let name = words.next().ok_or("a field without a name")?;
    let ty = ty(&mut words)?;
    let qualifier = match words.next() {
        Some("rw") => Qualifier::ReadWrite(role(words.next())?),
        Some("const") => Qualifier::Constructor,
        Some("runtime") => Qualifier::Runtime,
        other => return Err(format!("unknown qualifier {other:?}")),
    };
    let relation = match (
        words.next(),
        words.next().and_then(|word| word.split_once('.')),
    ) {
        (None, _) => None,
        (Some("<-"), Some((class, field))) => Some(Relation::Reverse(class, field)),
        (Some("<->"), Some((class, field))) => Some(Relation::Both(class, field)),
        (Some(other), _) => return Err(format!("unknown word {other}")),
    };
    Ok(Field {
        name,
        ty,
        qualifier,
        relation,
        default,
        stage,
    })
}

fn call(rest: &'static str, stage: Stage) -> Result<Message, String> {
    let (name, rest) = rest.split_once('(').ok_or("a call without (")?;
    let (params, rest) = rest.split_once(") -> ").ok_or("a call without ) ->")?;
    let (rest, errors) = rest.split_once(" ! ").unwrap_or((rest, ""));
    let (result, role_name) = rest.rsplit_once(" by ").ok_or("a call without by")?;
    Ok(Message {
        name,
        params: params
            .split(", ")
            .filter(|text| !text.is_empty())
            .map(param)
            .collect::<Result<Vec<_>, _>>()?,
        result: whole_type(result)?,
        role: role(Some(role_name))?,
        errors: errors.split(' ').filter(|code| !code.is_empty()).collect(),
        stage,
    })
}

fn param(text: &'static str) -> Result<Param, String> {
    let (name, ty) = text
        .split_once(": ")
        .ok_or_else(|| format!("parameter {text:?}"))?;
    let (ty, optional) = match ty.strip_suffix('?') {
        Some(ty) => (ty, true),
        None => (ty, false),
    };
    Ok(Param {
        name,
        ty: whole_type(ty)?,
        optional,
    })
}

fn whole_type(text: &'static str) -> Result<Type, String> {
    let mut words = text.split(' ');
    let result = ty(&mut words)?;
    match words.next() {
        None => Ok(result),
        Some(word) => Err(format!("{word:?} after a type")),
    }
}

fn ty(words: &mut std::str::Split<'static, char>) -> Result<Type, String> {
    fn name(words: &mut std::str::Split<'static, char>) -> Result<&'static str, String> {
        words
            .next()
            .ok_or_else(|| "a name is missing in a type".to_owned())
    }
    Ok(match words.next() {
        Some("string") => Type::String,
        Some("int") => Type::Int,
        Some("float") => Type::Float,
        Some("bool") => Type::Bool,
        Some("datetime") => Type::DateTime,
        Some("void") => Type::Void,
        Some("any") => Type::Any,
        Some("enum") => Type::Enum(name(words)?),
        Some("ref") => Type::Ref(name(words)?),
        Some("record") => Type::Record(name(words)?),
        Some("set") => Type::Set(Box::new(ty(words)?)),
        Some("option") => Type::Option(Box::new(ty(words)?)),
        Some("map") => {
            let key = ty(words)?;
            Type::Map(Box::new(key), Box::new(ty(words)?))
        }
        other => return Err(format!("unknown type {other:?}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &'static str) -> String {
        model(&[("t", text)], "").unwrap_err().to_string()
    }

    #[test]
    fn a_bad_line_is_named_with_its_file_and_number() {
        for (text, expected) in [
            (
                "class A object\n  field x strin runtime",
                "unknown type Some(\"strin\")",
            ),
            (
                "class A object\n  field x string sometimes",
                "unknown qualifier Some(\"sometimes\")",
            ),
            (
                "class A object\n  field x string rw king",
                "unknown role king",
            ),
            ("class A object\n  call f() -> void", "a call without by"),
            (
                "class A object\n  field x int runtime = 1 2",
                "trailing characters at line 1 column 3",
            ),
            ("class A object\n  enum e a @gone", "unknown stage gone"),
        ] {
            assert_eq!(reason(text), format!("t.model line 2: {expected}"));
        }
        assert_eq!(
            reason("field x int runtime"),
            "t.model line 1: a field outside a class"
        );
    }
}

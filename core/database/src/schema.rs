//! What classes and fields there are, and the compiled form the database works with.

use crate::error::{Error, ErrorKind};
use crate::value::{Type, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// All classes. A file written under an older version is brought up to date when it is opened:
/// new fields get their default, vanished ones are dropped.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    /// Grows with every change of the classes.
    pub version: u32,
    /// The classes; names are unique.
    pub classes: Vec<ClassSchema>,
}

/// One class of objects. Without a persistent field its objects live in memory only.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassSchema {
    /// Its name as callers write it, e.g. `VM`.
    pub name: String,
    /// The fields; names are unique. `uuid` (unique in its class) and `name_label` are indexed
    /// when they are there and text.
    pub fields: Vec<FieldSchema>,
}

/// One field of a class.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldSchema {
    /// Its name, e.g. `virtual_size`.
    pub name: String,
    /// What it takes.
    pub ty: Type,
    /// The value of a new object that was given none; without it, a value must be given.
    pub default: Option<Value>,
    /// Whether it survives a restart. One that does not starts from its default (or zero).
    pub persistent: bool,
    /// `(class, field)` whose references are seen here from the other side: `VM.VBDs` is the
    /// reverse of `VBD.VM`. Computed, never stored, never set. Its type is a set of references.
    pub reverse_of: Option<(String, String)>,
}

impl FieldSchema {
    /// Describes a stored field whose default is the zero of its type.
    pub fn stored(name: &str, ty: Type) -> Self {
        let default = Some(ty.zero());
        Self {
            name: name.to_owned(),
            ty,
            default,
            persistent: true,
            reverse_of: None,
        }
    }

    /// Describes a computed field: the objects of `class` whose `field` refers to this one.
    pub fn reverse(name: &str, class: &str, field: &str) -> Self {
        Self {
            reverse_of: Some((class.to_owned(), field.to_owned())),
            persistent: false,
            ..Self::stored(name, Type::Set(Box::new(Type::Ref(class.to_owned()))))
        }
    }
}

/// A class by its place in [`Classes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClassId(pub(crate) usize);

/// A class, ready for use.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) id: ClassId,
    pub(crate) name: Arc<str>,
    pub(crate) fields: Vec<FieldSchema>,
    by_name: HashMap<String, usize>,
    pub(crate) uuid: Option<usize>,
    pub(crate) name_label: Option<usize>,
    pub(crate) persistent: bool,
    /// Own field -> (class, field) that shows it from the other side.
    pub(crate) mirrors: Vec<(usize, ClassId, usize)>,
}

impl Class {
    pub(crate) fn field(&self, name: &str) -> Option<(usize, &FieldSchema)> {
        let at = *self.by_name.get(name)?;
        self.fields.get(at).map(|field| (at, field))
    }
}

/// The compiled schema.
#[derive(Debug)]
pub(crate) struct Classes {
    pub(crate) version: u32,
    pub(crate) all: Vec<Arc<Class>>,
    by_name: HashMap<String, ClassId>,
}

impl Classes {
    pub(crate) fn compile(schema: Schema) -> Result<Self, Error> {
        let mut by_name = HashMap::new();
        let mut all = Vec::new();
        for (at, class) in schema.classes.into_iter().enumerate() {
            if by_name.insert(class.name.clone(), ClassId(at)).is_some() {
                return Err(contradiction(format!("class {} twice", class.name)));
            }
            all.push(compile_class(ClassId(at), class)?);
        }
        for (id, at, mirror) in find_mirrors(&all, &by_name)? {
            let class: &mut Class = all
                .get_mut(id.0)
                .ok_or_else(|| contradiction("lost a class".to_owned()))?;
            class.mirrors.push((at, mirror.0, mirror.1));
        }
        Ok(Self {
            version: schema.version,
            all: all.into_iter().map(Arc::new).collect(),
            by_name,
        })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Class>> {
        self.all.get(self.by_name.get(name)?.0)
    }

    pub(crate) fn require(&self, name: &str) -> Result<&Arc<Class>, Error> {
        self.get(name)
            .ok_or_else(|| Error::new(ErrorKind::Schema, format!("there is no class {name}")))
    }
}

fn contradiction(what: String) -> Error {
    Error::new(
        ErrorKind::Schema,
        format!("the schema contradicts itself: {what}"),
    )
}

fn compile_class(id: ClassId, class: ClassSchema) -> Result<Class, Error> {
    let mut by_name = HashMap::new();
    for (at, field) in class.fields.iter().enumerate() {
        if by_name.insert(field.name.clone(), at).is_some() {
            return Err(contradiction(format!(
                "field {}.{} twice",
                class.name, field.name
            )));
        }
        if field
            .default
            .as_ref()
            .is_some_and(|value| !field.ty.accepts(value))
        {
            let what = format!(
                "the default of {}.{} is no {}",
                class.name, field.name, field.ty
            );
            return Err(contradiction(what));
        }
    }
    let text_field = |name: &str| {
        let at = *by_name.get(name)?;
        class
            .fields
            .get(at)
            .filter(|field| field.ty == Type::String)
            .map(|_| at)
    };
    Ok(Class {
        id,
        uuid: text_field("uuid"),
        name_label: text_field("name_label"),
        persistent: class.fields.iter().any(|field| field.persistent),
        name: class.name.into(),
        fields: class.fields,
        by_name,
        mirrors: Vec::new(),
    })
}

type Mirror = (ClassId, usize, (ClassId, usize));

/// Finds, for each computed field, the stored one it shows: `(its class, its place, the computed one)`.
fn find_mirrors(all: &[Class], by_name: &HashMap<String, ClassId>) -> Result<Vec<Mirror>, Error> {
    let mut mirrors = Vec::new();
    for class in all {
        for (at, field) in class.fields.iter().enumerate() {
            let Some((other, forward)) = &field.reverse_of else {
                continue;
            };
            let what = || format!("{}.{} reverses {other}.{forward}", class.name, field.name);
            let source = by_name.get(other).and_then(|id| all.get(id.0));
            let (source, (source_at, source_field)) = source
                .and_then(|source| Some((source, source.field(forward)?)))
                .ok_or_else(|| contradiction(format!("{}, which is not there", what())))?;
            let to_us = Type::Ref(class.name.to_string());
            let points_here =
                source_field.ty == to_us || source_field.ty == Type::Set(Box::new(to_us));
            if !points_here || source_field.reverse_of.is_some() {
                let problem = format!("{}, which does not refer to {}", what(), class.name);
                return Err(contradiction(problem));
            }
            if field.ty != Type::Set(Box::new(Type::Ref(other.clone()))) {
                return Err(contradiction(format!(
                    "{} but is no set of {other} refs",
                    what()
                )));
            }
            mirrors.push((source.id, source_at, (class.id, at)));
        }
    }
    Ok(mirrors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(classes: Vec<(&str, Vec<FieldSchema>)>) -> Result<Classes, Error> {
        let classes = classes
            .into_iter()
            .map(|(name, fields)| ClassSchema {
                name: name.to_owned(),
                fields,
            })
            .collect();
        Classes::compile(Schema {
            version: 1,
            classes,
        })
    }

    #[test]
    fn contradictions_are_found_when_the_schema_is_compiled() {
        let text = |name: &str| FieldSchema::stored(name, Type::String);
        let bad_default = FieldSchema {
            default: Some(Value::Int(1)),
            ..text("a")
        };
        let reverse = || FieldSchema::reverse("VBDs", "VBD", "VM");
        let cases = [
            vec![("A", vec![]), ("A", vec![])],
            vec![("A", vec![text("a"), text("a")])],
            vec![("A", vec![bad_default])],
            vec![("VM", vec![reverse()])],
            vec![("VM", vec![reverse()]), ("VBD", vec![])],
            vec![("VM", vec![reverse()]), ("VBD", vec![text("VM")])],
        ];
        for case in cases {
            let problem = compile(case.clone()).expect_err("a contradiction");
            assert_eq!(problem.kind(), ErrorKind::Schema, "{case:?}");
        }
        let vbd = vec![FieldSchema::stored("VM", Type::Ref("VM".into()))];
        let good = compile(vec![("VM", vec![reverse()]), ("VBD", vbd)]).unwrap();
        assert_eq!(good.get("VBD").unwrap().mirrors, vec![(0, ClassId(0), 0)]);
    }
}

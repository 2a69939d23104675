//! The table agrees with itself.

use super::{Model, Qualifier, Relation, Role, Type};

fn types<'a>(model: &'a Model) -> impl Iterator<Item = (String, &'a Type)> + 'a {
    model.classes.values().flat_map(|class| {
        let name = class.name;
        let fields = class
            .fields
            .iter()
            .map(move |field| (format!("{name}.{}", field.name), &field.ty));
        let calls = class.messages.values().flat_map(move |message| {
            let at = format!("{name}.{}", message.name);
            let params = message
                .params
                .iter()
                .map(|param| &param.ty)
                .chain([&message.result]);
            params.map(move |ty| (at.clone(), ty)).collect::<Vec<_>>()
        });
        fields.chain(calls).collect::<Vec<_>>()
    })
}

fn each_part<'a>(ty: &'a Type, visit: &mut dyn FnMut(&'a Type)) {
    visit(ty);
    match ty {
        Type::Set(inner) | Type::Option(inner) => each_part(inner, visit),
        Type::Map(key, value) => {
            each_part(key, visit);
            each_part(value, visit);
        }
        _ => {}
    }
}

#[test]
fn the_table_has_every_class_of_the_interface() {
    let model = Model::shared();
    let count = |of: fn(&super::Class) -> usize| model.classes.values().map(of).sum::<usize>();
    assert_eq!(model.classes.len(), 72);
    assert_eq!(count(|class| class.fields.len()), 922);
    assert_eq!(count(|class| class.messages.len()), 551);
    assert_eq!(model.errors.len(), 630);
}

#[test]
fn every_class_and_enum_that_a_type_names_exists() {
    let model = Model::shared();
    for (at, ty) in types(model) {
        each_part(ty, &mut |part| match part {
            Type::Ref(class) => {
                assert!(
                    model.class(class).is_some_and(|class| class.is_object),
                    "{at}: {class}"
                );
            }
            Type::Record(class) => assert!(model.class(class).is_some(), "{at}: record {class}"),
            Type::Enum(name) => assert!(!model.enum_values(name).is_empty(), "{at}: enum {name}"),
            _ => {}
        });
    }
}

#[test]
fn reverse_relations_are_two_sided() {
    let model = Model::shared();
    let mut seen = 0;
    for class in model.classes.values() {
        for field in &class.fields {
            let (other, forward, both) = match field.relation {
                Some(Relation::Reverse(other, forward)) => (other, forward, false),
                Some(Relation::Both(other, forward)) => (other, forward, true),
                None => continue,
            };
            seen += 1;
            let at = format!("{}.{}", class.name, field.name);
            assert_eq!(field.ty, Type::Set(Box::new(Type::Ref(other))), "{at}");
            let source = model.class(other).and_then(|class| class.field(forward));
            let source = source.unwrap_or_else(|| panic!("{at}: no {other}.{forward}"));
            let here = Type::Ref(class.name);
            if both {
                assert_eq!(source.ty, Type::Set(Box::new(here)), "{at}");
                assert_eq!(
                    source.relation,
                    Some(Relation::Both(class.name, field.name)),
                    "{at}"
                );
            } else {
                assert_eq!(source.ty, here, "{at}");
            }
        }
    }
    assert_eq!(seen, 65);
}

#[test]
fn the_relations_that_clients_walk_are_there() {
    let model = Model::shared();
    for (class, field, other, forward) in [
        ("VM", "VBDs", "VBD", "VM"),
        ("VM", "snapshots", "VM", "snapshot_of"),
        ("VM", "consoles", "console", "VM"),
        ("VDI", "VBDs", "VBD", "VDI"),
        ("VDI", "snapshots", "VDI", "snapshot_of"),
        ("SR", "VDIs", "VDI", "SR"),
        ("SR", "PBDs", "PBD", "SR"),
        ("host", "PBDs", "PBD", "host"),
        ("host", "resident_VMs", "VM", "resident_on"),
        ("task", "subtasks", "task", "subtask_of"),
    ] {
        let field = model
            .class(class)
            .and_then(|class| class.field(field))
            .unwrap();
        assert_eq!(field.relation, Some(Relation::Reverse(other, forward)));
    }
}

#[test]
fn every_default_fits_its_field_and_the_database_takes_the_schema() {
    let model = Model::shared();
    for class in model.classes.values() {
        for field in class.fields.iter().filter(|field| field.default.is_some()) {
            let at = format!("{}.{}", class.name, field.name);
            let parsed = super::schema::from_json(&field.ty, field.default.as_ref().unwrap());
            let parsed = parsed.unwrap_or_else(|| panic!("{at}: {:?}", field.default));
            assert!(
                model.database_type(&field.ty).accepts(&parsed),
                "{at}: {parsed:?}"
            );
        }
    }
    let dir = tempfile::tempdir().unwrap();
    database::Database::open(dir.path().join("state.redb"), model.database_schema()).unwrap();
}

#[test]
fn every_error_that_a_message_names_is_listed() {
    let model = Model::shared();
    for class in model.classes.values() {
        for message in class.messages.values() {
            for code in &message.errors {
                assert!(
                    model.errors.contains_key(code),
                    "{}.{}: {code}",
                    class.name,
                    message.name
                );
            }
        }
    }
}

#[test]
fn listed_classes_are_objects_with_a_uuid_and_made_ones_can_be_described() {
    for class in Model::shared().classes.values() {
        assert!(
            class.is_object || !(class.listed || class.served),
            "{}",
            class.name
        );
        assert!(
            !class.is_object || class.field("uuid").is_some(),
            "{}",
            class.name
        );
        if class.make_role.is_some() {
            let given = class
                .fields
                .iter()
                .filter(|field| field.qualifier != Qualifier::Runtime);
            assert!(
                given.count() > 0,
                "{} has nothing to make it of",
                class.name
            );
        }
    }
}

#[test]
fn each_role_includes_the_ones_before_it() {
    assert!(Role::GRANTABLE.windows(2).all(|pair| pair[0] > pair[1]));
    assert!(Role::LocalRoot > Role::PoolAdmin);
    for role in Role::GRANTABLE {
        assert_eq!(Role::by_name(role.name()), Some(role));
    }
}

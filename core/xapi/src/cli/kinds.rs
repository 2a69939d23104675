//! The kinds of objects that `xe` knows, read from `kinds.table`: `vm` is a VM that is no template.

use super::records::{Column, columns};
use crate::model::{Class, Model};
use database::{Snapshot, Value};
use std::sync::LazyLock;

const TABLE: &str = include_str!("kinds.table");

/// A kind of object on the command line.
#[derive(Debug)]
pub(super) struct Kind {
    /// As in `vm-list`.
    pub(super) name: &'static str,
    pub(super) class: &'static Class,
    /// Fields that all of them have at this truth.
    only: Vec<(&'static str, bool)>,
    /// The columns that a list shows; empty for all.
    pub(super) shown: Vec<&'static str>,
    pub(super) columns: Vec<Column>,
}

/// All kinds, sorted by name.
pub(super) fn kinds() -> &'static [Kind] {
    static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
        let model = Model::shared();
        lines()
            .filter_map(|line| Kind::parse(model, line))
            .collect()
    });
    &KINDS
}

/// Finds a kind.
pub(super) fn kind(name: &str) -> Option<&'static Kind> {
    kinds().iter().find(|kind| kind.name == name)
}

fn lines() -> impl Iterator<Item = &'static str> {
    TABLE
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

impl Kind {
    fn parse(model: &'static Model, line: &'static str) -> Option<Self> {
        let (of, shown) = line.split_once(':')?;
        let mut of = of.split(' ');
        let name = of.next()?;
        let class = model.class(of.next()?)?;
        let truth = |mark: &'static str| match mark.strip_prefix('+') {
            Some(field) => Some((field, true)),
            None => Some((mark.strip_prefix('-')?, false)),
        };
        let only = of.map(truth).collect::<Option<_>>()?;
        let shown = shown.split_whitespace().collect();
        Some(Self {
            name,
            class,
            only,
            shown,
            columns: columns(model, class),
        })
    }

    /// Finds a column.
    pub(super) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Says whether an object is of this kind. Fields that are `asked` for are not looked at.
    pub(super) fn has(
        &self,
        snapshot: &Snapshot,
        record: &Value,
        asked: impl Fn(&str) -> bool,
    ) -> bool {
        let field = |name: &str| record.as_map().and_then(|fields| fields.get(name));
        let as_said = self.only.iter().all(|(name, truth)| {
            asked(name) || field(name).and_then(Value::as_bool) == Some(*truth)
        });
        // A CD is a disk on a repository of images.
        let sr = || snapshot.row("SR", field("SR")?.as_ref()?);
        let is_iso = || sr().is_some_and(|sr| sr.get("content_type").as_str() == Some("iso"));
        as_said && (self.name != "cd" || is_iso())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Type;

    #[test]
    fn every_line_of_the_table_is_a_kind_whose_shown_columns_exist() {
        assert_eq!(
            lines().count(),
            kinds().len(),
            "a line is malformed or its class unknown"
        );
        assert!(kinds().is_sorted_by_key(|kind| kind.name));
        let missing: Vec<_> = kinds()
            .iter()
            .flat_map(|kind| kind.shown.iter().map(move |column| (kind, *column)))
            .filter(|(kind, column)| kind.column(column).is_none())
            .map(|(kind, column)| format!("{}-list shows {column}", kind.name))
            .collect();
        assert_eq!(missing, Vec::<String>::new());
        for (kind, (field, _)) in kinds()
            .iter()
            .flat_map(|kind| kind.only.iter().map(move |only| (kind, only)))
        {
            assert_eq!(
                kind.class.field(field).map(|field| &field.ty),
                Some(&Type::Bool)
            );
        }
    }

    #[test]
    fn names_of_columns_are_unique() {
        for kind in kinds() {
            let mut names: Vec<_> = kind.columns.iter().map(|column| &column.name).collect();
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count, "{} has a column twice", kind.name);
        }
    }

    #[test]
    fn headings_say_what_may_be_done() {
        for (of, column, heading) in [
            ("vdi", "uuid", "uuid ( RO)"),
            ("vdi", "name-label", "name-label ( RW)"),
            ("vdi", "other-config", "other-config (MRW)"),
            ("vdi", "tags", "tags (SRW)"),
            ("vdi", "current-operations", "current-operations (SRO)"),
            ("vdi", "parent", "parent ( RO) [DEPRECATED]"),
            ("vm", "dom-id", "dom-id ( RO)"),
            ("vm", "memory-actual", "memory-actual ( RO)"),
            ("host", "memory-free", "memory-free ( RO)"),
            ("vbd", "vm-name-label", "vm-name-label ( RO)"),
            ("pbd", "device-config", "device-config (MRW)"),
        ] {
            let found = kind(of).and_then(|kind| kind.column(column));
            assert_eq!(found.map(Column::heading).as_deref(), Some(heading));
        }
    }
}

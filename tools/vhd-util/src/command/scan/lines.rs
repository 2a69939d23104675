//! The lines of a scan, flat or as a tree.

use super::super::printing;
use super::{Scan, Scanned};
use crate::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

impl Scan {
    pub(super) fn print(&self, found: &[Scanned], out: &mut dyn Write) -> Result<()> {
        if self.tree {
            return self.print_tree(found, out);
        }
        found
            .iter()
            .try_for_each(|scanned| self.print_line(scanned, 0, "", out))
    }

    fn print_line(
        &self,
        scanned: &Scanned,
        indent: usize,
        note: &str,
        out: &mut dyn Write,
    ) -> Result<()> {
        let name = |path: &Path| match path.file_name() {
            Some(name) if !self.verbose => Path::new(name).display().to_string(),
            _ => path.display().to_string(),
        };
        write!(out, "{:indent$}", "").map_err(printing)?;
        let printed = match scanned {
            Err((path, error)) => writeln!(
                out,
                "vhd={} scan-error={} error-message='{}'",
                path.display(),
                error.exit_code(),
                error.chain().replace('\'', "\"")
            ),
            Ok(image) => {
                let marker = image.marker.filter(|_| self.markers);
                let marker = marker.map_or_else(String::new, |m| format!("marker={m} "));
                let parent = image.parent.as_deref().map_or_else(|| "none".into(), name);
                writeln!(
                    out,
                    "vhd={} capacity={} size={} hidden={} {marker}parent={parent}{note}",
                    name(&image.path),
                    image.capacity,
                    image.size,
                    image.hidden
                )
            }
        };
        printed.map_err(printing)
    }

    /// Roots first, each followed by its descendants three spaces further in: visible ones before
    /// hidden ones. Parents are matched by file name, as a fast scan knows no more.
    fn print_tree(&self, found: &[Scanned], out: &mut dyn Write) -> Result<()> {
        let names: BTreeSet<_> = found.iter().filter_map(|s| file_name(path_of(s))).collect();
        let mut children: BTreeMap<String, Vec<&Scanned>> = BTreeMap::new();
        let mut roots = Vec::new();
        for scanned in found {
            match parent_name(scanned) {
                Some(parent) if names.contains(&parent) => {
                    children.entry(parent).or_default().push(scanned);
                }
                parent => roots.push((scanned, parent.is_some())),
            }
        }
        for family in children.values_mut() {
            family.sort_by_key(|scanned| scanned.as_ref().is_ok_and(|image| image.hidden != 0));
        }
        for (root, orphan) in roots {
            let note = if orphan { " (not found in scan)" } else { "" };
            let mut open = vec![(root, 0)];
            while let Some((scanned, depth)) = open.pop() {
                let note = if depth == 0 { note } else { "" };
                self.print_line(scanned, depth * 3, note, out)?;
                // Taken out, so that files that name each other end the walk.
                let family = file_name(path_of(scanned)).and_then(|name| children.remove(&name));
                let family = family.unwrap_or_default();
                open.extend(family.into_iter().rev().map(|child| (child, depth + 1)));
            }
        }
        Ok(())
    }
}

fn path_of(scanned: &Scanned) -> &Path {
    match scanned {
        Ok(image) => &image.path,
        Err((path, _)) => path,
    }
}

fn parent_name(scanned: &Scanned) -> Option<String> {
    file_name(scanned.as_ref().ok()?.parent.as_deref()?)
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_string_lossy().into_owned())
}

//! `scan`: one line per image, for tool stacks that look over a whole repository.

use super::printing;
use crate::paths::find_parent;
use crate::{Disk, Error, Result};
use clap::Args;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vhd_rs::{
    Access, Allow, BATMAP_HEADER_BYTES, BatmapHeader, Extent, FOOTER_BYTES, Footer, HEADER_BYTES,
    Header, ReadAt,
};

/// Prints a line per image: vhd= capacity= size= hidden= parent=, or vhd= scan-error=
#[derive(Debug, Args)]
pub(super) struct Scan {
    /// Files and devices that match a pattern
    #[arg(short = 'm', value_name = "GLOB")]
    pattern: Option<String>,
    /// Read only what is at the beginning: the footer's copy and the header
    #[arg(short = 'f')]
    fast: bool,
    /// Go on after an image that cannot be read
    #[arg(short = 'c')]
    carry_on: bool,
    /// Print a tree
    #[arg(short = 'p')]
    tree: bool,
    /// Add the ancestors of what was found
    #[arg(short = 'a')]
    ancestors: bool,
    /// Print whole paths
    #[arg(short = 'v')]
    verbose: bool,
    /// Print markers
    #[arg(short = 'M')]
    markers: bool,
    /// Files and devices
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What is said about an image.
struct Found {
    path: PathBuf,
    capacity: u64,
    size: u64,
    hidden: u8,
    marker: Option<u8>,
    /// A path, or in a fast scan a bare name.
    parent: Option<PathBuf>,
}

type Scanned = Result<Found, (PathBuf, Error)>;

impl Scan {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<()> {
        let mut found: Vec<Scanned> = Vec::new();
        let mut seen = BTreeSet::new();
        let mut queue = self.targets()?;
        queue.reverse();
        while let Some(path) = queue.pop() {
            if !seen.insert(path.clone()) {
                continue;
            }
            let scanned = self.look_at(&path);
            if let (true, Ok(image)) = (self.ancestors, &scanned) {
                queue.extend(
                    image
                        .parent
                        .as_ref()
                        .map(|parent| image.path.with_file_name(parent)),
                );
            }
            let failed = scanned.is_err();
            found.push(scanned.map_err(|e| (path, e)));
            if failed && !self.carry_on {
                break;
            }
        }
        self.print(&found, out)?;
        let first_error = found.into_iter().find_map(Result::err);
        match first_error {
            Some((_, error)) if !self.carry_on => Err(error),
            _ => Ok(()),
        }
    }

    fn targets(&self) -> Result<Vec<PathBuf>> {
        let mut targets = self.files.clone();
        if let Some(pattern) = &self.pattern {
            let bad = |e: glob::PatternError| Error::invalid(format!("pattern {pattern}: {e}"));
            for path in glob::glob(pattern).map_err(bad)? {
                let unreadable = |e: glob::GlobError| {
                    let text = format!("cannot look into {}", e.path().display());
                    Error::io(text, e.into())
                };
                targets.push(path.map_err(unreadable)?);
            }
        }
        Ok(targets)
    }

    fn look_at(&self, path: &Path) -> Result<Found> {
        if self.fast {
            return self.look_at_start(path);
        }
        let allow = Allow {
            encrypted: true,
            poisoned: true,
            footer_copy: false,
        };
        let disk = Disk::open_with(path, Access::ReadOnly, allow)?;
        let parent = match disk.image.parent_uuid() {
            None => None,
            Some(_) => Some(find_parent(path, &disk.image)?),
        };
        Ok(Found {
            path: path.to_owned(),
            capacity: disk.image.virtual_bytes(),
            size: disk.image.size_needed_bytes(),
            hidden: disk.image.footer().hidden,
            marker: disk.image.marker(),
            parent,
        })
    }

    fn look_at_start(&self, path: &Path) -> Result<Found> {
        let (file, extent) = crate::open_file(path, Access::ReadOnly)?;
        let io = |e| Error::io(format!("cannot read {}", path.display()), e);
        let vhd = |e| Error::vhd(path, e);
        let size = file.size_bytes().map_err(io)?;
        let mut sector = [0; FOOTER_BYTES];
        FileExt::read_exact_at(&file, &mut sector, 0).map_err(io)?;
        let footer = match Footer::parse(&sector) {
            Ok(footer) => footer,
            // Fixed disks have data there.
            Err(e) => {
                let end = match extent {
                    Extent::Grows => size.saturating_sub(512),
                    Extent::Reserved => (size / 512).saturating_sub(1) * 512,
                };
                FileExt::read_exact_at(&file, &mut sector, end).map_err(io)?;
                Footer::parse(&sector).map_err(|_| vhd(e))?
            }
        };
        let mut found = Found {
            path: path.to_owned(),
            capacity: footer.virtual_bytes,
            size,
            hidden: footer.hidden,
            marker: None,
            parent: None,
        };
        let Some(offset) = footer.header_offset else {
            return Ok(found);
        };
        let mut bytes = [0; HEADER_BYTES];
        FileExt::read_exact_at(&file, &mut bytes, offset).map_err(io)?;
        let header = Header::parse(&bytes).map_err(vhd)?;
        let name = Some(&header.parent_name).filter(|name| !name.is_empty());
        found.parent = name.map(PathBuf::from);
        if self.markers && footer.creator.is_tap() {
            let table = (u64::from(header.max_table_entries) * 4)
                .next_multiple_of(512)
                .max(512);
            let mut sector = [0; BATMAP_HEADER_BYTES];
            let offset = header.table_offset.saturating_add(table);
            FileExt::read_exact_at(&file, &mut sector, offset).map_err(io)?;
            found.marker = BatmapHeader::parse(&sector)
                .ok()
                .map(|batmap| batmap.marker);
        }
        Ok(found)
    }

    fn print(&self, found: &[Scanned], out: &mut dyn Write) -> Result<()> {
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

//! `scan`: one line per image, for tool stacks that look over a whole repository.

use crate::paths::find_parent;
use crate::volumes::{Volume, name_in_group, volumes};
use crate::{Error, Result};
use clap::Args;
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use vhd_rs::{
    Access, Allow, BATMAP_HEADER_BYTES, BatmapHeader, Extent, FOOTER_BYTES, Footer, HEADER_BYTES,
    Header, Image, OpenOptions, ReadAt,
};

mod lines;

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
    /// Look at the volumes of this LVM group, active or not; the pattern is for their names
    #[arg(short = 'l', value_name = "GROUP", conflicts_with = "files")]
    group: Option<String>,
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
        let volumes = self.group.as_deref().map(volumes).transpose()?;
        let source = match (&self.group, &volumes) {
            (Some(group), Some(volumes)) => Source::Group { group, volumes },
            _ => Source::Files,
        };
        let mut found: Vec<Scanned> = Vec::new();
        let mut seen = BTreeSet::new();
        let mut queue = self.targets(&source)?;
        queue.reverse();
        while let Some(path) = queue.pop() {
            if !seen.insert(path.clone()) {
                continue;
            }
            let scanned = self.look_at(&source, &path);
            if let (true, Ok(image)) = (self.ancestors, &scanned) {
                let parent = image.parent.as_ref();
                queue.extend(parent.map(|parent| image.path.with_file_name(parent)));
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

    fn targets(&self, source: &Source<'_>) -> Result<Vec<PathBuf>> {
        let mut targets = self.files.clone();
        let pattern = self.pattern.as_deref();
        let bad = |e: glob::PatternError| Error::invalid(format!("bad pattern: {e}"));
        if let Source::Group { group, volumes } = source {
            let pattern = glob::Pattern::new(pattern.unwrap_or("*")).map_err(bad)?;
            let names = volumes.iter().map(|volume| &volume.name);
            let matching = names.filter(|name| pattern.matches(name));
            targets.extend(matching.map(|name| Path::new("/dev").join(group).join(name)));
        } else if let Some(pattern) = pattern {
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

    fn look_at(&self, source: &Source<'_>, path: &Path) -> Result<Found> {
        let file;
        let (medium, extent): (&dyn ReadAt, Extent) = match source.volume(path)? {
            Some(volume) => (volume, Extent::Reserved),
            None => {
                let opened = crate::open_file(path, Access::ReadOnly)?;
                file = opened.0;
                (&file, opened.1)
            }
        };
        if self.fast {
            return self.look_at_start(source, path, medium, extent);
        }
        let options = OpenOptions {
            extent,
            access: Access::ReadOnly,
        };
        let allow = Allow {
            encrypted: true,
            poisoned: true,
            footer_copy: false,
        };
        let image = Image::open_with(&medium, options, allow).map_err(|e| Error::vhd(path, e))?;
        let parent = match (image.parent_uuid(), source) {
            (None, _) => None,
            (Some(_), Source::Files) => Some(find_parent(path, &image)?),
            (Some(_), Source::Group { .. }) => source.parent(image.parent_path().as_deref()),
        };
        Ok(Found {
            path: path.to_owned(),
            capacity: image.virtual_bytes(),
            size: image.size_needed_bytes(),
            hidden: image.footer().hidden,
            marker: image.marker(),
            parent,
        })
    }

    fn look_at_start(
        &self,
        source: &Source<'_>,
        path: &Path,
        medium: &dyn ReadAt,
        extent: Extent,
    ) -> Result<Found> {
        let io = |e| Error::io(format!("cannot read {}", path.display()), e);
        let vhd = |e| Error::vhd(path, e);
        let size = medium.size_bytes().map_err(io)?;
        let mut sector = [0; FOOTER_BYTES];
        medium.read_exact_at(0, &mut sector).map_err(io)?;
        let footer = match Footer::parse(&sector) {
            Ok(footer) => footer,
            // Fixed disks have data there.
            Err(e) => {
                let end = match extent {
                    Extent::Grows => size.saturating_sub(512),
                    Extent::Reserved => (size / 512).saturating_sub(1) * 512,
                };
                medium.read_exact_at(end, &mut sector).map_err(io)?;
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
        medium.read_exact_at(offset, &mut bytes).map_err(io)?;
        let header = Header::parse(&bytes).map_err(vhd)?;
        let name = Some(header.parent_name.as_str()).filter(|name| !name.is_empty());
        found.parent = source.parent(name);
        if self.markers && footer.creator.is_tap() {
            let mut sector = [0; BATMAP_HEADER_BYTES];
            let offset = header.table_offset.saturating_add(header.table_bytes());
            medium.read_exact_at(offset, &mut sector).map_err(io)?;
            found.marker = BatmapHeader::parse(&sector)
                .ok()
                .map(|batmap| batmap.marker);
        }
        Ok(found)
    }
}

/// Where images are.
enum Source<'a> {
    Files,
    Group {
        group: &'a str,
        volumes: &'a [Volume],
    },
}

impl Source<'_> {
    /// The volume of a path; `None` where paths are files.
    fn volume(&self, path: &Path) -> Result<Option<&Volume>> {
        let Source::Group { volumes, .. } = self else {
            return Ok(None);
        };
        let named = |volume: &&Volume| path.ends_with(&volume.name);
        let volume = volumes.iter().find(named).ok_or_else(|| {
            Error::new(
                Errno::NOENT,
                format!("{} is not in the group", path.display()),
            )
        })?;
        volume.check_readable()?;
        Ok(Some(volume))
    }

    /// A parent by its name, which of a volume is the one it has in device mapper.
    fn parent(&self, path: Option<&str>) -> Option<PathBuf> {
        let name = path?.rsplit('/').next().unwrap_or_default();
        match self {
            Source::Files => Some(PathBuf::from(name)),
            Source::Group { group, .. } => {
                let name = name_in_group(name, group).unwrap_or_else(|| name.to_owned());
                Some(PathBuf::from(name))
            }
        }
    }
}

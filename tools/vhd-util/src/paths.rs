//! Paths between a child and its parent: how they are written into a child, and how they are
//! found again. Locators are text of unknown origin; following one opens files for reading only.

use crate::{Error, Result};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};
use vhd_rs::Image;

/// The path by which an image is known: without links, except where device names are the better
/// names. Those in `/dev/mapper` stay, `/dev/VG/LV` becomes its name there, and DRBD's names by
/// resource stay.
///
/// # Errors
/// Those of the file system.
pub(crate) fn canonical(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).map_err(|e| at(path, e))?;
    if absolute.parent() == Some(Path::new("/dev/mapper")) || is_drbd_resource(&absolute) {
        fs::metadata(&absolute).map_err(|e| at(path, e))?;
        return Ok(absolute);
    }
    if let Some(mapped) = mapped_volume(&absolute).filter(|mapped| mapped.exists()) {
        return Ok(mapped);
    }
    fs::canonicalize(&absolute).map_err(|e| at(path, e))
}

fn at(path: &Path, source: std::io::Error) -> Error {
    Error::io(format!("cannot find {}", path.display()), source)
}

/// `/dev/VG/LV` as device mapper names it: dashes doubled, joined by one.
fn mapped_volume(path: &Path) -> Option<PathBuf> {
    let names: Vec<&str> = path
        .strip_prefix("/dev")
        .ok()?
        .iter()
        .map(OsStr::to_str)
        .collect::<Option<_>>()?;
    let [group, volume] = names.as_slice() else {
        return None;
    };
    let doubled = |name: &str| name.replace('-', "--");
    let name = format!("{}-{}", doubled(group), doubled(volume));
    Some(Path::new("/dev/mapper").join(name))
}

fn is_drbd_resource(path: &Path) -> bool {
    let is_device = |target: PathBuf| target.to_string_lossy().starts_with("/dev/drbd");
    path.starts_with("/dev/drbd/by-res") && fs::canonicalize(path).is_ok_and(is_device)
}

/// The path of `parent` as a child in `child_folder` writes it: relative, with slashes. Both are
/// canonical.
///
/// # Errors
/// `EINVAL` for a path that is not text.
pub(crate) fn relative(child_folder: &Path, parent: &Path) -> Result<String> {
    let from: Vec<Component<'_>> = child_folder.components().collect();
    let to: Vec<Component<'_>> = parent.components().collect();
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = from.iter().skip(shared).map(|_| "..");
    let down: Option<Vec<&str>> = to
        .iter()
        .skip(shared)
        .map(|part| part.as_os_str().to_str())
        .collect();
    let not_text = || Error::invalid(format!("{} is not text", parent.display()));
    let parts: Vec<&str> = up.chain(down.ok_or_else(not_text)?).collect();
    Ok(parts.join("/"))
}

/// Finds the parent's file: the first locator that can be decoded and leads to something readable.
///
/// # Errors
/// `EINVAL` if no locator can be decoded, `ENOENT` if none leads anywhere.
pub(crate) fn find_parent(child: &Path, image: &Image) -> Result<PathBuf> {
    let folder = folder_of(child)?;
    let named: Vec<String> = image.locators().iter().flat_map(|l| l.path()).collect();
    for path in &named {
        // An absolute path replaces the folder.
        let target = folder.join(path);
        if File::open(&target).is_ok() {
            return canonical(&target);
        }
    }
    let child = child.display();
    match named.first() {
        Some(path) => Err(Error::new(
            Errno::NOENT,
            format!("parent {path} of {child} cannot be found"),
        )),
        None => Err(Error::invalid(format!(
            "{child} has no locator that can be read"
        ))),
    }
}

/// The canonical folder of a file.
///
/// # Errors
/// Those of the file system.
pub(crate) fn folder_of(path: &Path) -> Result<PathBuf> {
    let canonical = canonical(path)?;
    Ok(canonical
        .parent()
        .map_or_else(|| PathBuf::from("/"), Path::to_path_buf))
}

#[cfg(test)]
mod tests {
    use super::{mapped_volume, relative};
    use std::path::Path;

    #[test]
    fn parents_are_named_from_the_childs_folder() {
        for (folder, parent, expected) in [
            ("/sr/a", "/sr/a/p.vhd", "p.vhd"),
            ("/sr/a", "/sr/b/c/p.vhd", "../b/c/p.vhd"),
            ("/dev/mapper", "/dev/mapper/VG-p", "VG-p"),
            ("/x", "/p.vhd", "../p.vhd"),
        ] {
            let got = relative(Path::new(folder), Path::new(parent)).unwrap();
            assert_eq!(got, expected, "{parent} from {folder}");
        }
    }

    #[test]
    fn volumes_have_their_device_mapper_names() {
        for (path, expected) in [
            ("/dev/VG_X-1/VHD-a-b", Some("/dev/mapper/VG_X--1-VHD--a--b")),
            ("/dev/sda", None),
            ("/dev/disk/by-id/x", None),
            ("/srv/VG/LV", None),
        ] {
            let got = mapped_volume(Path::new(path));
            assert_eq!(got.as_deref(), expected.map(Path::new), "{path}");
        }
    }
}

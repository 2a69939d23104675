//! Which files the server may name: those the user has named, and no others.

use std::path::{Component, Path, PathBuf};

/// The files that were named on the command line, as absolute paths.
#[derive(Debug)]
pub(crate) struct Named {
    here: PathBuf,
    paths: Vec<PathBuf>,
}

impl Named {
    /// Takes the value of every `name=value`.
    pub(crate) fn in_args(args: &[String], here: PathBuf) -> Self {
        let values = args
            .iter()
            .filter_map(|arg| arg.split_once('=').map(|(_, value)| value.trim()));
        let values = values.filter(|value| !value.is_empty());
        let paths = values.map(|value| normal(&here, value)).collect();
        Self { here, paths }
    }

    /// Returns the path to open when the user has named this file. Links are not followed for the
    /// comparison: it is the names that are compared.
    pub(crate) fn permit(&self, filename: &str) -> anyhow::Result<PathBuf> {
        let wanted = normal(&self.here, filename);
        if filename.is_empty() || !self.paths.contains(&wanted) {
            anyhow::bail!(
                "the server asked for the file {filename:?}, which is not among the arguments: refused"
            );
        }
        Ok(wanted)
    }
}

/// The absolute path, with `.` and `..` taken out by name.
fn normal(here: &Path, filename: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for part in here.join(filename).components() {
        match part {
            Component::ParentDir => _ = path.pop(),
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_among_the_arguments_are_permitted() {
        let args = [
            "vdi-import",
            "uuid=1",
            "filename=disks/a.img",
            "empty=",
            "--force",
        ];
        let named = Named::in_args(&args.map(str::to_owned), "/home/me".into());
        for good in [
            "disks/a.img",
            "./disks/../disks/a.img",
            "/home/me/disks/a.img",
        ] {
            assert_eq!(
                named.permit(good).unwrap(),
                Path::new("/home/me/disks/a.img"),
                "{good}"
            );
        }
        for bad in [
            "",
            ".",
            "/etc/passwd",
            "disks",
            "disks/a.img/b",
            "../me/disks/b.img",
            "vdi-import",
        ] {
            assert!(named.permit(bad).is_err(), "{bad:?} was permitted");
        }
    }
}

//! `plugin.toml`: what a plugin is, what it asks for, and how far it may go.
//!
//! What a plugin may do is what its manifest asks for *and* the administrator grants
//! ([`Grants`]); nothing is granted by default. Unknown keys are refused, so that a misspelt limit
//! is an error and not a missing limit.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// What kind of plugin, that is which world of `wit/v0` it exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PluginKind {
    /// World `storage-plugin`.
    Storage,
    /// World `monitor-plugin`.
    Monitor,
}

/// A parsed and checked `plugin.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Who it is.
    pub plugin: Identity,
    /// What it asks for.
    #[serde(default)]
    pub grants: Wishes,
    /// How far it may go.
    #[serde(default)]
    pub limits: Limits,
    /// Settings that an administrator may change, with their defaults.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// SHA-256 of the artifacts, in hexadecimal, when the manifest pins them.
    #[serde(default)]
    pub sha256: Digests,
}

/// `[plugin]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Name of the package: 1 to 64 characters of `a-z 0-9 - _`.
    pub name: String,
    /// Version of the plugin; must equal what `query` says.
    pub version: String,
    /// Its world.
    pub kind: PluginKind,
    /// Version of `xylem:plugin` it was built against, e.g. `0.1.0`.
    pub interface: String,
}

/// `[grants]`: what the plugin asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wishes {
    /// Directories below which it works with files; `/` is any that the administrator names.
    pub files: Vec<PathBuf>,
    /// Whether it raises messages.
    pub messages: bool,
    /// XenAPI classes whose changes a monitor is told.
    pub objects: Vec<String>,
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory of one component instance, or of the whole process of a shared object. 1 to 4096.
    pub memory_mib: u32,
    /// Longest time of one call. 10 to 600000.
    pub call_timeout_ms: u32,
    /// Calls in flight at once. 1 to 64.
    pub calls: u32,
    /// Messages a minute. 0 to 6000.
    pub messages_per_minute: u32,
    /// Log lines a minute. 0 to 60000.
    pub log_lines_per_minute: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_mib: 64,
            call_timeout_ms: 30_000,
            calls: 8,
            messages_per_minute: 60,
            log_lines_per_minute: 600,
        }
    }
}

impl Limits {
    /// Returns the longest time of one call.
    pub fn call_timeout(&self) -> Duration {
        Duration::from_millis(u64::from(self.call_timeout_ms))
    }
}

/// `[sha256]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Digests {
    /// Of the component.
    pub wasm: Option<String>,
    /// Of the shared object.
    pub so: Option<String>,
}

/// What the administrator grants one plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grants {
    /// Directories (existing when the plugin is loaded) below which it may work.
    pub files: Vec<PathBuf>,
    /// Whether it may raise messages.
    pub messages: bool,
    /// Settings that differ from the manifest's.
    pub settings: BTreeMap<String, String>,
    /// Serves under this name instead of its own, so that one plugin can be loaded twice.
    pub alias: Option<String>,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown or missing key, or a value of another type. The text shows the line.
    #[error("{0}")]
    Syntax(#[from] toml::de::Error),
    /// A value outside its range.
    #[error("{key} = {value}: {reason}")]
    Value {
        /// Which key.
        key: &'static str,
        /// What it says.
        value: String,
        /// What it should be.
        reason: &'static str,
    },
}

impl Manifest {
    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// See [`ManifestError`].
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        let text = std::fs::read_to_string(path).map_err(|source| ManifestError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text)
    }

    /// Parses and checks a text.
    ///
    /// # Errors
    ///
    /// See [`ManifestError`].
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let manifest: Self = toml::from_str(text)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let Self {
            plugin,
            grants,
            limits,
            ..
        } = self;
        let value = |key, value: &dyn ToString, reason| {
            Err(ManifestError::Value {
                key,
                value: value.to_string(),
                reason,
            })
        };
        if !is_name(&plugin.name, 64) {
            return value(
                "plugin.name",
                &plugin.name,
                "1 to 64 characters of a-z 0-9 - _",
            );
        }
        if plugin.version.is_empty() || plugin.version.len() > 64 {
            return value("plugin.version", &plugin.version, "1 to 64 characters");
        }
        if !interface_is_served(&plugin.interface) {
            return value(
                "plugin.interface",
                &plugin.interface,
                "this host serves 0.1",
            );
        }
        if grants.files.len() > 32 {
            return value(
                "grants.files",
                &grants.files.len(),
                "at most 32 directories",
            );
        }
        if let Some(path) = grants.files.iter().find(|path| !is_plain_path(path)) {
            return value(
                "grants.files",
                &path.display(),
                "absolute, without . and ..",
            );
        }
        for (key, number, range, reason) in [
            (
                "limits.memory_mib",
                limits.memory_mib,
                1..=4096,
                "1 to 4096",
            ),
            (
                "limits.call_timeout_ms",
                limits.call_timeout_ms,
                10..=600_000,
                "10 to 600000",
            ),
            ("limits.calls", limits.calls, 1..=64, "1 to 64"),
            (
                "limits.messages_per_minute",
                limits.messages_per_minute,
                0..=6000,
                "0 to 6000",
            ),
            (
                "limits.log_lines_per_minute",
                limits.log_lines_per_minute,
                0..=60_000,
                "0 to 60000",
            ),
        ] {
            if !range.contains(&number) {
                return value(key, &number, reason);
            }
        }
        Ok(())
    }

    /// Returns the directories that both the manifest and the administrator name: where one lies
    /// in the other, the inner one.
    pub fn granted_files(&self, grants: &Grants) -> Vec<PathBuf> {
        let mut granted = Vec::new();
        for given in grants.files.iter().filter(|path| is_plain_path(path)) {
            for wished in &self.grants.files {
                if given.starts_with(wished) {
                    granted.push(given.clone());
                } else if wished.starts_with(given) {
                    granted.push(wished.clone());
                }
            }
        }
        granted.sort();
        granted.dedup();
        granted
    }

    /// Returns the settings that the plugin sees.
    ///
    /// # Errors
    ///
    /// If the administrator sets one that the manifest does not declare.
    pub fn settings(&self, grants: &Grants) -> Result<BTreeMap<String, String>, ManifestError> {
        let mut settings = self.settings.clone();
        for (name, value) in &grants.settings {
            match settings.get_mut(name) {
                Some(slot) => slot.clone_from(value),
                None => {
                    return Err(ManifestError::Value {
                        key: "settings",
                        value: name.clone(),
                        reason: "the manifest declares no such setting",
                    });
                }
            }
        }
        Ok(settings)
    }
}

/// Whether a text can be a plugin's or a driver's name.
pub(crate) fn is_name(text: &str, len_max: usize) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    (1..=len_max).contains(&text.len()) && text.chars().all(allowed)
}

/// Whether a path is absolute and has neither `.` nor `..` in it.
pub fn is_plain_path(path: &Path) -> bool {
    path.is_absolute()
        && path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// Whether plugins built against this version of `xylem:plugin` run here. While it is 0.x, every
/// 0.1.y does.
pub fn interface_is_served(version: &str) -> bool {
    let mut parts = version.split('.');
    let is_number = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
    parts.next() == Some("0")
        && parts.next() == Some("1")
        && parts.next().is_none_or(is_number)
        && parts.next().is_none()
}

#[cfg(test)]
mod tests;

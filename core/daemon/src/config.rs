//! The configuration file: pure parsing, no ports bound, no directories made.
//!
//! TOML; a key that is not known is an error that names it, so that a typo cannot silently turn a
//! setting off. Every setting has a default, so an empty file is a valid one.

use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything an operator can set.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) host: Host,
    pub(crate) paths: Paths,
    pub(crate) log: Log,
    pub(crate) api: Api,
    pub(crate) hypervisor: HypervisorConfig,
    pub(crate) data_path: Child,
    pub(crate) plugin_process: Child,
    pub(crate) plugin: Vec<Plugin>,
    pub(crate) metrics: Metrics,
    pub(crate) storage: Storage,
}

/// What the storage manager does by itself.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Storage {
    /// How long an SR is left alone after the last call that left layers to merge.
    pub(crate) merge_after_s: u32,
}

impl Default for Storage {
    fn default() -> Self {
        Self { merge_after_s: 10 }
    }
}

/// What the host calls itself when its record is made.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Host {
    pub(crate) name_label: String,
}

/// Where things lie.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Paths {
    /// Survives a reboot: database, certificate, plugin state.
    pub(crate) state_dir: PathBuf,
    /// Lost at a reboot: sockets, domain and data-path records.
    pub(crate) run_dir: PathBuf,
    /// Logs of the child processes.
    pub(crate) log_dir: PathBuf,
    /// Where the other binaries are; by default beside this one.
    pub(crate) bin_dir: Option<PathBuf>,
}

/// The daemon's own log, on standard error.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// In the syntax of `tracing-subscriber`, e.g. `info,storage=debug`.
    pub(crate) filter: String,
    pub(crate) format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where clients reach the daemon.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Api {
    pub(crate) http: Vec<SocketAddr>,
    pub(crate) https: Vec<SocketAddr>,
    /// Local root without a password; `xe` on the host uses it.
    pub(crate) unix_socket: Option<PathBuf>,
}

/// Which hypervisor runs the domains.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HypervisorConfig {
    pub(crate) backend: Backend,
    /// Directories of the host from which a VM may boot a kernel (`PV_kernel`, `PV_ramdisk`).
    pub(crate) guest_kernel_dirs: Vec<PathBuf>,
}

/// The back ends there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Backend {
    /// qemu-system-x86_64, with KVM where it works.
    Qemu,
    /// Domains that exist in memory only.
    Simulator,
}

/// How child processes of one kind are started.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Child {
    /// `uid:gid` to run as; by default the daemon's own.
    pub(crate) run_as: Option<RunAs>,
}

/// A user and group by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct RunAs {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl TryFrom<String> for RunAs {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(uid, gid)| {
            Some(RunAs {
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
            })
        });
        parts.ok_or_else(|| format!("{text:?} is not \"uid:gid\" in numbers"))
    }
}

/// One plugin to load.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plugin {
    /// The component (`.wasm`) or shared object (`.so`).
    pub(crate) path: PathBuf,
    /// Its manifest; by default the `.toml` beside it.
    pub(crate) manifest: Option<PathBuf>,
    /// What the administrator grants; the plugin gets what its manifest asks for and this allows.
    #[serde(default)]
    pub(crate) grants: plugin::Grants,
}

/// The metrics stream.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Metrics {
    /// Seconds between two samples.
    pub(crate) step_s: u32,
}

impl Default for Host {
    fn default() -> Self {
        let name = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok());
        Self {
            name_label: name.unwrap_or_else(|| "xylem".to_owned()),
        }
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/xylem".into(),
            run_dir: "/run/xylem".into(),
            log_dir: "/var/log/xylem".into(),
            bin_dir: None,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::Json,
        }
    }
}

impl Default for Api {
    fn default() -> Self {
        Self {
            http: Vec::new(),
            https: Vec::new(),
            unix_socket: Some("/var/lib/xcp/xapi".into()),
        }
    }
}

impl Default for HypervisorConfig {
    fn default() -> Self {
        Self {
            backend: Backend::Qemu,
            guest_kernel_dirs: Vec::new(),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        // The step of xcp-rrdd, which clients expect.
        Self { step_s: 5 }
    }
}

impl Storage {
    /// The quiet time as a duration.
    pub(crate) fn merge_after(&self) -> Duration {
        Duration::from_secs(u64::from(self.merge_after_s))
    }
}

impl Metrics {
    /// The step as a duration.
    pub(crate) fn step(&self) -> Duration {
        Duration::from_secs(u64::from(self.step_s))
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The text is not what it should be; the message shows the place.
    #[error("{path}: {message}")]
    Syntax { path: PathBuf, message: String },
    /// A value cannot be used.
    #[error("{path}: {key}: {problem}")]
    Value {
        path: PathBuf,
        key: String,
        problem: String,
    },
}

/// Reads and checks a configuration file.
pub(crate) fn read(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(path, &text)
}

/// Parses and checks a configuration; `path` is for the messages.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let config: Config = toml::from_str(text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        message: error.to_string(),
    })?;
    match check(&config) {
        Ok(()) => Ok(config),
        Err((key, problem)) => Err(ConfigError::Value {
            path: path.to_owned(),
            key,
            problem,
        }),
    }
}

fn check(config: &Config) -> Result<(), (String, String)> {
    let bad = |key: &str, problem: String| Err((key.to_owned(), problem));
    for (key, path) in [
        ("paths.state_dir", Some(&config.paths.state_dir)),
        ("paths.run_dir", Some(&config.paths.run_dir)),
        ("paths.log_dir", Some(&config.paths.log_dir)),
        ("paths.bin_dir", config.paths.bin_dir.as_ref()),
        ("api.unix_socket", config.api.unix_socket.as_ref()),
    ] {
        if path.is_some_and(|path| !path.is_absolute()) {
            return bad(key, "not an absolute path".to_owned());
        }
    }
    if !(1..=3600).contains(&config.metrics.step_s) {
        return bad(
            "metrics.step_s",
            format!("{} is not within 1 to 3600", config.metrics.step_s),
        );
    }
    if let Some(dir) = config
        .hypervisor
        .guest_kernel_dirs
        .iter()
        .find(|dir| !dir.is_absolute())
    {
        let problem = format!("{} is not an absolute path", dir.display());
        return bad("hypervisor.guest_kernel_dirs", problem);
    }
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&config.log.filter) {
        return bad("log.filter", error.to_string());
    }
    let mut aliases = BTreeSet::new();
    for plugin in &config.plugin {
        let Some("wasm" | "so") = plugin.path.extension().and_then(|suffix| suffix.to_str()) else {
            return bad(
                "plugin.path",
                format!("{} is neither .wasm nor .so", plugin.path.display()),
            );
        };
        if let Some(alias) = &plugin.grants.alias
            && !aliases.insert(alias)
        {
            return bad("plugin.grants.alias", format!("{alias:?} is given twice"));
        }
        if let Some(dir) = plugin.grants.files.iter().find(|dir| !dir.is_absolute()) {
            return bad(
                "plugin.grants.files",
                format!("{} is not an absolute path", dir.display()),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(Path::new("x.toml"), text)
            .expect_err("a bad configuration")
            .to_string()
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse(Path::new("x.toml"), "").unwrap(), Config::default());
    }

    #[test]
    fn bad_configurations_say_which_key_and_why() {
        for (text, wanted) in [
            ("[api]\nhtpp = []", "unknown field `htpp`"),
            ("[nonsense]", "unknown field `nonsense`"),
            ("[api]\nhttp = [\"localhost\"]", "invalid socket address"),
            (
                "[paths]\nstate_dir = \"state\"",
                "paths.state_dir: not an absolute path",
            ),
            (
                "[metrics]\nstep_s = 0",
                "metrics.step_s: 0 is not within 1 to 3600",
            ),
            (
                "[hypervisor]\nbackend = \"vmware\"",
                "unknown variant `vmware`",
            ),
            (
                "[data_path]\nrun_as = \"nobody\"",
                "is not \"uid:gid\" in numbers",
            ),
            (
                "[[plugin]]\npath = \"/x/a.exe\"",
                "plugin.path: /x/a.exe is neither .wasm nor .so",
            ),
            (
                "[[plugin]]\npath = \"/x/a.so\"\ngrants.files = [\"srv\"]",
                "plugin.grants.files: srv is not an absolute path",
            ),
            (
                "[[plugin]]\npath = \"/x/a.so\"\ngrants.file = []",
                "unknown field `file`",
            ),
            ("[log]\nfilter = \"=nonsense=\"", "log.filter"),
            ("[api", "TOML parse error"),
        ] {
            let message = error(text);
            assert!(message.contains(wanted), "{text:?} gave {message:?}");
            assert!(
                message.starts_with("x.toml: "),
                "{message:?} does not name the file"
            );
        }
    }

    #[test]
    fn the_shipped_example_is_valid_and_states_the_defaults() {
        let text = include_str!("../xylemd.example.toml");
        let config = parse(Path::new("xylemd.example.toml"), text).unwrap();
        assert_eq!(config.paths, Paths::default());
        assert_eq!(config.api.unix_socket, Api::default().unix_socket);
        assert_eq!(config.metrics, Metrics::default());
    }
}

//! Options: the command line, the environment, `~/.xe`. Pure but for the two files they name.

use crate::completion;
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The socket on the host itself.
const SOCKET: &str = "/var/lib/xcp/xapi";
/// Bytes of `~/.xe` and of a password file.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// What the user wants.
#[derive(Debug)]
pub(crate) enum Asked {
    Usage,
    Version,
    Completion(&'static str),
    Command(Options),
}

/// How much to say about what this program does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Debug {
    Off,
    On,
    OnFailure,
}

/// Everything that is decided before the first byte is sent.
#[derive(Debug)]
pub(crate) struct Options {
    /// `None`: this host.
    pub(crate) server: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) encrypt: bool,
    pub(crate) socket: PathBuf,
    pub(crate) fingerprint: Option<String>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) debug: Debug,
    pub(crate) traceparent: Option<String>,
    /// What goes to the server, the user's name and password last.
    pub(crate) args: Vec<String>,
}

/// What one source of settings says.
#[derive(Default)]
struct Settings {
    server: Option<String>,
    port: Option<String>,
    username: Option<String>,
    password: Option<String>,
    password_file: Option<String>,
    nossl: Option<String>,
    debug: Option<String>,
    debug_on_fail: Option<String>,
    traceparent: Option<String>,
    socket: Option<String>,
    fingerprint: Option<String>,
    ca_file: Option<String>,
    /// What it does not know.
    rest: Vec<String>,
}

impl Settings {
    /// Names that may come as `name=value` among the arguments, as the existing client has them.
    fn named(&mut self, name: &str) -> Option<&mut Option<String>> {
        Some(match name {
            "server" => &mut self.server,
            "port" => &mut self.port,
            "username" => &mut self.username,
            "password" => &mut self.password,
            "passwordfile" => &mut self.password_file,
            "nossl" => &mut self.nossl,
            "debug" => &mut self.debug,
            "debugonfail" => &mut self.debug_on_fail,
            "traceparent" => &mut self.traceparent,
            _ => return None,
        })
    }

    /// Names that filters of commands may have too, so that they are taken from `~/.xe` only.
    fn of_file(&mut self, name: &str) -> Option<&mut Option<String>> {
        match name {
            "socket" => Some(&mut self.socket),
            "fingerprint" => Some(&mut self.fingerprint),
            "cafile" => Some(&mut self.ca_file),
            _ => self.named(name),
        }
    }

    fn switch(&mut self, switch: &str) -> Option<&mut Option<String>> {
        Some(match switch {
            "-s" | "-h" => &mut self.server,
            "-p" => &mut self.port,
            "-u" => &mut self.username,
            "-pw" => &mut self.password,
            "-pwf" => &mut self.password_file,
            "--traceparent" => &mut self.traceparent,
            "--socket" => &mut self.socket,
            "--fingerprint" => &mut self.fingerprint,
            "--ca-file" => &mut self.ca_file,
            _ => return None,
        })
    }

    fn from_args(args: impl IntoIterator<Item = String>) -> anyhow::Result<Self> {
        let mut settings = Self::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            if let Some(place) = settings.switch(&arg) {
                *place = Some(
                    args.next()
                        .with_context(|| format!("option {arg} needs a value"))?,
                );
                continue;
            }
            match arg.as_str() {
                "--nossl" => settings.nossl = Some("true".to_owned()),
                "--debug" => settings.debug = Some("true".to_owned()),
                "--debug-on-fail" => settings.debug_on_fail = Some("true".to_owned()),
                _ => match arg.split_once('=').and_then(|(name, value)| {
                    settings
                        .named(name)
                        .map(|place| *place = Some(value.to_owned()))
                }) {
                    Some(()) => {}
                    None => settings.rest.push(arg),
                },
            }
        }
        Ok(settings)
    }

    fn from_environment(environment: &dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            server: environment("XE_SERVER"),
            port: environment("XE_PORT"),
            username: environment("XE_USER").or_else(|| environment("XE_USERNAME")),
            password: environment("XE_PASSWORD"),
            password_file: environment("XE_PASSWORD_FILE"),
            nossl: environment("XE_NOSSL"),
            socket: environment("XE_SOCKET"),
            fingerprint: environment("XE_FINGERPRINT"),
            ca_file: environment("XE_CA_FILE"),
            traceparent: environment("TRACEPARENT"),
            ..Self::default()
        }
    }

    fn from_rc(text: &str) -> Self {
        let mut settings = Self::default();
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with('#'))
        {
            let Some((name, value)) = line.split_once('=') else {
                continue;
            };
            let (name, value) = (name.trim(), value.trim().to_owned());
            match settings.of_file(name) {
                Some(place) => *place = Some(value),
                None => settings.rest.push(format!("{name}={value}")),
            }
        }
        settings
    }

    /// Fills in what is not said here from `other`.
    fn or(mut self, mut other: Self) -> Self {
        for (mine, theirs) in [
            (&mut self.server, other.server),
            (&mut self.port, other.port),
            (&mut self.nossl, other.nossl),
            (&mut self.debug, other.debug),
            (&mut self.debug_on_fail, other.debug_on_fail),
            (&mut self.traceparent, other.traceparent),
            (&mut self.socket, other.socket),
            (&mut self.fingerprint, other.fingerprint),
            (&mut self.ca_file, other.ca_file),
        ] {
            *mine = mine.take().or(theirs);
        }
        // A password belongs to the name it was given with, and either may come from a file.
        if self.password_file.is_none() && self.password.is_none() {
            self.password = other.password;
            self.password_file = other.password_file;
        }
        self.username = self.username.or(other.username);
        self.rest.append(&mut other.rest);
        self
    }
}

impl Options {
    /// Gathers what is set anywhere.
    ///
    /// # Errors
    /// An option without its value, a port that is none, a file that cannot be read, an argument
    /// that cannot be sent.
    pub(crate) fn gather(
        args: Vec<OsString>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Asked> {
        let mut texts = Vec::new();
        for arg in args {
            let text = arg
                .into_string()
                .map_err(|arg| anyhow::anyhow!("the argument {arg:?} is not UTF-8"))?;
            texts.push(text);
        }
        if texts
            .iter()
            .any(|arg| matches!(arg.as_str(), "-help" | "--help"))
        {
            return Ok(Asked::Usage);
        }
        if texts
            .iter()
            .any(|arg| matches!(arg.as_str(), "-version" | "--version"))
        {
            return Ok(Asked::Version);
        }
        let rc = environment("HOME").map(|home| Path::new(&home).join(".xe"));
        let rc = rc.map(|path| read_if_there(&path)).transpose()?.flatten();
        let extra = environment("XE_EXTRA_ARGS").unwrap_or_default();
        let settings = Settings::from_args(texts)?;
        if let Some("completion") = settings.rest.first().map(String::as_str) {
            return completion_for(&settings.rest).map(Asked::Completion);
        }
        let settings = settings
            .or(Settings::from_args(split_extra(&extra))?)
            .or(Settings::from_environment(environment))
            .or(Settings::from_rc(rc.as_deref().unwrap_or_default()));
        if settings.rest.is_empty() {
            return Ok(Asked::Usage);
        }
        Self::decide(settings).map(Asked::Command)
    }

    fn decide(settings: Settings) -> anyhow::Result<Self> {
        let mut args = settings.rest;
        let (mut username, mut password) = (settings.username, settings.password);
        if let Some(path) = &settings.password_file {
            let (name, word) = read_password_file(Path::new(path))?;
            (username, password) = (Some(name), Some(word));
        }
        args.extend(username.map(|name| format!("username={name}")));
        args.extend(password.map(|word| format!("password={word}")));
        if let Some(odd) = args.iter().find(|arg| arg.contains(['\n', '\r'])) {
            let name = odd
                .split('=')
                .next()
                .unwrap_or_default()
                .escape_debug()
                .to_string();
            bail!("the argument {name} has a line break, which cannot be sent");
        }
        let bytes = args.iter().map(|arg| arg.len() + 1).sum::<usize>();
        if bytes > thin_cli::ARGUMENTS_BYTES_MAX {
            bail!(
                "the arguments take {bytes} bytes, more than {}",
                thin_cli::ARGUMENTS_BYTES_MAX
            );
        }
        let port = settings.port.map(|port| {
            port.parse::<u16>()
                .with_context(|| format!("port {port:?} is no number up to 65535"))
        });
        let truth = |value: &Option<String>| matches!(value.as_deref(), Some("true" | "1" | "yes"));
        Ok(Self {
            server: settings.server,
            port: port.transpose()?,
            encrypt: !truth(&settings.nossl),
            socket: settings.socket.map_or_else(|| SOCKET.into(), PathBuf::from),
            fingerprint: settings.fingerprint,
            ca_file: settings.ca_file.map(PathBuf::from),
            debug: match (truth(&settings.debug), truth(&settings.debug_on_fail)) {
                (true, _) => Debug::On,
                (_, true) => Debug::OnFailure,
                _ => Debug::Off,
            },
            traceparent: settings.traceparent,
            args,
        })
    }
}

fn completion_for(args: &[String]) -> anyhow::Result<&'static str> {
    let shell = args.get(1).map_or("", String::as_str);
    completion::script(shell)
        .with_context(|| format!("xe completion {shell:?}: give bash, zsh or fish"))
}

/// Splits at commas; `\,` is a comma and `\\` a backslash.
fn split_extra(text: &str) -> Vec<String> {
    let mut args = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            ',' => args.push(String::new()),
            '\\' => args
                .iter_mut()
                .last()
                .into_iter()
                .for_each(|arg| arg.extend(characters.next())),
            other => args
                .iter_mut()
                .last()
                .into_iter()
                .for_each(|arg| arg.push(other)),
        }
    }
    args.retain(|arg| !arg.is_empty());
    args
}

fn read_if_there(path: &Path) -> anyhow::Result<Option<String>> {
    match read_small(path) {
        Ok(text) => Ok(Some(text)),
        Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(problem) => Err(problem).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn read_small(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn read_password_file(path: &Path) -> anyhow::Result<(String, String)> {
    let text = read_small(path)
        .with_context(|| format!("cannot read the password file {}", path.display()))?;
    let mut lines = text.lines().map(str::to_owned);
    lines.next().zip(lines.next()).with_context(|| {
        format!(
            "{} needs the user name in its first line and the password in its second",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(args: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Options> {
        let args = args.iter().map(OsString::from).collect();
        let lookup = |name: &str| {
            environment
                .iter()
                .find(|(have, _)| *have == name)
                .map(|(_, value)| (*value).to_owned())
        };
        match Options::gather(args, &lookup)? {
            Asked::Command(options) => Ok(options),
            other => bail!("{other:?}"),
        }
    }

    #[test]
    fn options_go_before_extra_arguments_before_the_environment_before_the_file() {
        let home = tempfile::tempdir().unwrap();
        let rc =
            "# comment\nserver=rc\nport = 4\nusername=rcuser\npassword=rcword\nsr-uuid=default\n";
        std::fs::write(home.path().join(".xe"), rc).unwrap();
        let home = home.path().to_str().unwrap();
        let env = [
            ("HOME", home),
            ("XE_PORT", "3"),
            ("XE_EXTRA_ARGS", "-p,2,--debug"),
        ];
        let options = gather(&["-p", "1", "vm-list"], &env).unwrap();
        assert_eq!(
            (options.server.as_deref(), options.port),
            (Some("rc"), Some(1))
        );
        assert_eq!(
            options.args,
            [
                "vm-list",
                "sr-uuid=default",
                "username=rcuser",
                "password=rcword"
            ]
        );
        assert_eq!(gather(&["vm-list"], &env).unwrap().port, Some(2));
        assert_eq!(gather(&["vm-list"], &env[..2]).unwrap().port, Some(3));
        let options = gather(&["vm-list"], &env[..1]).unwrap();
        assert_eq!(
            (options.port, options.debug, options.encrypt),
            (Some(4), Debug::Off, true)
        );
    }

    #[test]
    fn the_existing_spellings_are_taken_and_the_rest_goes_to_the_server() {
        let args = [
            "-s",
            "h",
            "-u",
            "root",
            "-pw",
            "a=b",
            "vm-list",
            "--nossl",
            "--minimal",
            "port=81",
            "params=uuid",
            "fingerprint=x",
            "--debug-on-fail",
        ];
        let options = gather(&args, &[]).unwrap();
        assert_eq!(options.server.as_deref(), Some("h"));
        assert_eq!(
            (options.port, options.encrypt, options.debug),
            (Some(81), false, Debug::OnFailure)
        );
        let expected = [
            "vm-list",
            "--minimal",
            "params=uuid",
            "fingerprint=x",
            "username=root",
            "password=a=b",
        ];
        assert_eq!(options.args, expected);
    }

    #[test]
    fn a_password_file_has_two_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        std::fs::write(path, "me\nsecret\n").unwrap();
        let options = gather(&["-pwf", path, "vm-list"], &[("XE_PASSWORD", "other")]).unwrap();
        assert_eq!(options.args, ["vm-list", "username=me", "password=secret"]);
        std::fs::write(path, "me\n").unwrap();
        assert!(gather(&["-pwf", path, "vm-list"], &[]).is_err());
    }

    #[test]
    fn what_cannot_be_sent_is_refused_before_anything_is() {
        let long = "x".repeat(thin_cli::ARGUMENTS_BYTES_MAX);
        for bad in [
            &["vm-list", "-p"][..],
            &["vm-list", "-p", "65536"],
            &["vm-create", "name-label=a\nforce=true"],
            &["vm-create", &long],
            &["-pwf", "/nonexistent/file", "vm-list"],
        ] {
            assert!(gather(bad, &[]).is_err(), "{:?}", bad.first());
        }
        let problem = gather(&["x", "name-label=secret\nforce=true"], &[]).unwrap_err();
        assert!(!problem.to_string().contains("secret"), "{problem}");
    }

    #[test]
    fn extra_arguments_are_split_at_bare_commas() {
        assert_eq!(split_extra(r"a=b\,c,,d\\,--e"), ["a=b,c", r"d\", "--e"]);
        assert_eq!(split_extra(""), Vec::<String>::new());
    }
}

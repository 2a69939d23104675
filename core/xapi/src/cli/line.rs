//! The command line: a command, then `name=value`, `--switch` and `-x value`.

use super::errors::CliError;
use database::Value;
use std::collections::BTreeMap;
use std::fmt;

/// A command line.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) command: String,
    /// A session that the client has already, in a first line `session_id=`.
    pub(super) session: Option<String>,
    pub(super) params: Params,
}

/// The parameters in their order; a name may come more than once.
pub(super) struct Params(Vec<(String, String)>);

impl Line {
    /// Takes arguments apart.
    ///
    /// # Errors
    /// `Syntax`.
    pub(super) fn parse<'a>(args: impl Iterator<Item = &'a str>) -> Result<Self, CliError> {
        let mut args = args.peekable();
        let session = args
            .peek()
            .and_then(|first| first.strip_prefix("session_id="));
        if session.is_some() {
            args.next();
        }
        let command = args.next().unwrap_or_default();
        if command.is_empty() || command.contains('=') {
            return Err(CliError::Syntax("command name is missing".to_owned()));
        }
        let mut params = Vec::new();
        while let Some(arg) = args.next() {
            if arg.is_empty() {
                continue;
            }
            if let Some(name) = arg.strip_prefix("--") {
                params.push((name.to_owned(), "true".to_owned()));
            } else if arg.starts_with('-') {
                let name = short_switch(arg)?;
                let missing = || CliError::Syntax(format!("switch {arg} needs a value"));
                params.push((name.to_owned(), args.next().ok_or_else(missing)?.to_owned()));
            } else {
                let (name, value) = arg.split_once('=').unwrap_or((arg, ""));
                params.push((name.to_owned(), value.to_owned()));
            }
        }
        let (command, session) = (command.to_owned(), session.map(str::to_owned));
        Ok(Self {
            command,
            session,
            params: Params(params),
        })
    }
}

fn short_switch(switch: &str) -> Result<&'static str, CliError> {
    match switch {
        "-u" => Ok("username"),
        "-pw" => Ok("password"),
        "-s" | "-h" => Ok("server"),
        "-p" => Ok("port"),
        _ => Err(CliError::Syntax(format!("Unknown switch: {switch}"))),
    }
}

impl Params {
    /// Returns the first value of this name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .find(|(have, _)| *have == name)
            .map(|(_, value)| value)
    }

    /// Returns the first value of this name.
    ///
    /// # Errors
    /// `Missing`.
    pub(super) fn require(&self, name: &str) -> Result<&str, CliError> {
        self.get(name)
            .ok_or_else(|| CliError::Missing(name.to_owned()))
    }

    /// Says whether a switch is on: `--x`, `x=true`; a bare `x` counts too.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| matches!(value, "" | "true" | "1" | "yes"))
    }

    /// Returns a truth, `default` when it is not given.
    ///
    /// # Errors
    /// `Failure`.
    pub(super) fn bool_or(&self, name: &str, default: bool) -> Result<bool, CliError> {
        match self.get(name) {
            None => Ok(default),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(_) => Err(CliError::parse(name, "expecting a boolean (true or false)")),
        }
    }

    /// Returns a number, `default` when it is not given.
    ///
    /// # Errors
    /// `Failure`.
    pub(super) fn int_or(&self, name: &str, default: i64) -> Result<i64, CliError> {
        let Some(text) = self.get(name) else {
            return Ok(default);
        };
        text.parse()
            .map_err(|_| CliError::parse(name, "expecting an integer"))
    }

    /// Returns a size in bytes, `default` when it is not given.
    ///
    /// # Errors
    /// `Failure`.
    pub(super) fn bytes_or(&self, name: &str, default: i64) -> Result<i64, CliError> {
        let Some(text) = self.get(name) else {
            return Ok(default);
        };
        parse_bytes(text).ok_or_else(|| CliError::parse(name, BYTES_EXPECTED))
    }

    /// Returns what is given as `prefix:key=value`.
    pub(super) fn map(&self, prefix: &str) -> Value {
        let entries = self.iter().filter_map(|(name, value)| {
            let key = name.strip_prefix(prefix)?.strip_prefix([':', '-'])?;
            Some((key.to_owned(), Value::from(value)))
        });
        Value::Map(entries.collect::<BTreeMap<_, _>>())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl fmt::Debug for Params {
    /// Names only: the values may be passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.iter().map(|(name, _)| name))
            .finish()
    }
}

pub(super) const BYTES_EXPECTED: &str =
    "expecting a size in bytes, or one with bytes, KiB, MiB, GiB or TiB behind it";

/// Reads a size: a number, and a power of 1024 behind it.
pub(super) fn parse_bytes(text: &str) -> Option<i64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "bytes" => 1,
        "kib" => units::KIB,
        "mib" => units::MIB,
        "gib" => units::GIB,
        "tib" => units::TIB,
        _ => return None,
    };
    number
        .parse::<i64>()
        .ok()?
        .checked_mul(i64::try_from(factor).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Line, CliError> {
        Line::parse(args.iter().copied())
    }

    #[test]
    fn switches_and_parameters_are_told_apart() {
        let line = parse(&[
            "vm-list",
            "--minimal",
            "-u",
            "root",
            "params=a,b",
            "other-config:k=v=w",
            "--force",
            "bare",
        ]);
        let line = line.unwrap();
        let expected = [
            ("minimal", "true"),
            ("username", "root"),
            ("params", "a,b"),
            ("other-config:k", "v=w"),
            ("force", "true"),
            ("bare", ""),
        ];
        assert_eq!(line.params.iter().collect::<Vec<_>>(), expected);
        let map = BTreeMap::from([("k".to_owned(), Value::from("v=w"))]);
        assert_eq!(line.params.map("other-config"), Value::Map(map));
        assert!(line.params.flag("force") && !line.params.flag("params"));
        let line = parse(&["session_id=OpaqueRef:x", "sr-list"]).unwrap();
        assert_eq!(
            (line.command.as_str(), line.session.as_deref()),
            ("sr-list", Some("OpaqueRef:x"))
        );
    }

    #[test]
    fn lines_without_a_command_and_unknown_switches_are_refused() {
        for bad in [
            &[][..],
            &[""],
            &["uuid=1"],
            &["vm-list", "-x", "1"],
            &["vm-list", "-u"],
        ] {
            assert!(matches!(parse(bad), Err(CliError::Syntax(_))), "{bad:?}");
        }
    }

    #[test]
    fn sizes_have_units_and_do_not_overflow() {
        for (text, bytes) in [
            ("4096", Some(4096)),
            ("1KiB", Some(1024)),
            ("10 GiB", Some(10 << 30)),
            ("2tib", Some(2 << 40)),
            ("7bytes", Some(7)),
            ("", None),
            ("GiB", None),
            ("-1", None),
            ("1.5GiB", None),
            ("1GB", None),
            ("9000000TiB", None),
            ("9999999999999999999", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn values_of_parameters_stay_out_of_logs() {
        let line = parse(&["x", "password=secret"]).unwrap();
        assert_eq!(format!("{:?}", line.params), r#"["password"]"#);
    }
}

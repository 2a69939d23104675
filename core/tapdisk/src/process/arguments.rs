//! The command line.

use tracing::level_filters::LevelFilter;

/// What `--help` prints.
pub const HELP: &str = "\
xylem-tapdisk - data-path process of the Xylem host toolstack

Opens chains of VHD and raw images and serves them over NBD on unix sockets, one process per
domain. It is started by xylemd, which keeps its control socket; it is of no use on a terminal.

USAGE
    xylem-tapdisk [--run-as UID:GID] [--require-sandbox] [--log-level LEVEL]

OPTIONS
    --run-as UID:GID   change to this user and group and drop every capability
    --require-sandbox  do not start where the kernel has no Landlock or no seccomp
    --log-level LEVEL  error, warn, info (default), debug or trace
    --help, -h         print this text
    --version, -V      print the version

DESCRIPTORS
    0   a listening unix socket: the control socket (protocol xylem-tapdisk/0)
    2   the log, one JSON object per line; request_id follows a call from the client through xylemd

    Images and NBD sockets come over control connections. Nothing else is opened: after its start
    the process has no access to the file system where the kernel has Landlock, and where it has
    seccomp a system call that the data path does not need ends it.

LIFE
    The process goes on serving when xylemd ends. It ends when it is told to over the control
    socket, on SIGTERM and SIGINT (requests in flight are finished, every image is flushed and
    closed), and after 60 s without a disk and without a control connection.

EXIT STATUS
    0    ended in order
    64   wrong command line, or descriptor 0 is not a listening unix socket
    71   the system refused io_uring, the change of user or another thing it needs
    74   ended by a signal, and at least one image could not be closed cleanly
    101  internal error; images are as after a power failure and open again
";

/// The parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// User and group to change to.
    pub run_as: Option<(u32, u32)>,
    /// Whether not to start without all of the sandbox.
    pub require_sandbox: bool,
    /// How much to log.
    pub log_level: LevelFilter,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// To run.
    Run(Arguments),
    /// To print a text and end.
    Print(String),
}

/// Parses the command line without the program's name.
///
/// # Errors
/// A text that names the argument.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Asked, String> {
    let mut parsed = Arguments {
        run_as: None,
        require_sandbox: false,
        log_level: LevelFilter::INFO,
    };
    let mut arguments = arguments.into_iter();
    while let Some(name) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{name} needs a value"))
        };
        match name.as_str() {
            "--help" | "-h" => return Ok(Asked::Print(HELP.to_owned())),
            "--version" | "-V" => {
                return Ok(Asked::Print(format!(
                    "xylem-tapdisk {}\n",
                    env!("CARGO_PKG_VERSION")
                )));
            }
            "--run-as" => parsed.run_as = Some(user_and_group(&value()?)?),
            "--require-sandbox" => parsed.require_sandbox = true,
            "--log-level" => {
                let level = value()?;
                let wrong =
                    |_| format!("--log-level {level} is not error, warn, info, debug or trace");
                parsed.log_level = level.parse().map_err(wrong)?;
            }
            _ => return Err(format!("unknown argument {name:?}")),
        }
    }
    Ok(Asked::Run(parsed))
}

fn user_and_group(text: &str) -> Result<(u32, u32), String> {
    text.split_once(':')
        .and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)))
        // All bits set means "leave as it is" to the kernel.
        .filter(|(uid, gid)| *uid != u32::MAX && *gid != u32::MAX)
        .ok_or_else(|| format!("--run-as {text} is not UID:GID in numbers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_all(arguments: &[&str]) -> Result<Asked, String> {
        parse(arguments.iter().map(|a| (*a).to_owned()))
    }

    #[test]
    fn arguments_are_taken_or_named_in_the_refusal() {
        let run = |run_as, log_level| {
            Ok(Asked::Run(Arguments {
                run_as,
                require_sandbox: false,
                log_level,
            }))
        };
        let strict = Ok(Asked::Run(Arguments {
            run_as: None,
            require_sandbox: true,
            log_level: LevelFilter::INFO,
        }));
        assert_eq!(parse_all(&["--require-sandbox"]), strict);
        assert_eq!(parse_all(&[]), run(None, LevelFilter::INFO));
        assert_eq!(
            parse_all(&["--run-as", "65534:65533", "--log-level", "debug"]),
            run(Some((65534, 65533)), LevelFilter::DEBUG)
        );
        assert_eq!(
            parse_all(&["--log-level", "x", "-h"]),
            parse_all(&["--log-level", "x"])
        );
        assert_eq!(parse_all(&["-h"]), Ok(Asked::Print(HELP.to_owned())));
        for (bad, named) in [
            (&["--run-as"][..], "--run-as needs a value"),
            (&["--run-as", "nobody"], "--run-as nobody"),
            (&["--run-as", "1:-1"], "--run-as 1:-1"),
            (&["--run-as", "4294967295:1"], "--run-as 4294967295:1"),
            (&["--log-level", "loud"], "--log-level loud"),
            (&["--sock"], "\"--sock\""),
        ] {
            let error = parse_all(bad).unwrap_err();
            assert!(error.contains(named), "{bad:?}: {error}");
        }
    }
}

//! `help`: the list of commands, or what one of them takes. Completion reads both.

use super::errors::CliError;
use super::line::Params;
use super::output::Output;
use super::table::{self, Command};

const USAGE: &str = "\
Usage:
  xe <command>
    [ -s <server> ]            host to talk to
    [ -p <port> ]              its port
    [ -u <username> -pw <password> | -pwf <password file> ]
                               who you are
    [ --nossl ]                do not encrypt
    [ --debug ]                say what the client does
    [ <other arguments> ... ]  what the command takes

To get help on a specific command:
  xe help <command>

";

/// Parameters that name no command.
const NO_COMMAND: &[&str] = &[
    "server", "username", "password", "port", "minimal", "all", "debug", "trace",
];
/// Columns of the list of commands.
const LINE_MAX: usize = 74;

/// Answers `help`.
pub(super) async fn run(output: &mut Output, params: &Params) -> Result<(), CliError> {
    let named: Vec<_> = params
        .iter()
        .map(|(name, _)| name)
        .filter(|name| !NO_COMMAND.contains(name))
        .collect();
    for name in &named {
        match table::find(name) {
            Some(command) => output.record(&describe(command)).await?,
            None => output.value(format!("Unknown command '{name}'")).await?,
        }
    }
    if named.is_empty() {
        list(output, params.flag("all")).await?;
    }
    Ok(output.finish().await?)
}

fn describe(command: Command) -> Vec<(String, String)> {
    let mut optional = command.optional();
    optional.extend(command.selects().map(|kind| format!("<{kind}-selectors>")));
    let mut description = command.help().to_owned();
    if let Some(kind) = command.selects() {
        description += &format!(
            ". The {kind} is given by {kind}=<name or uuid>, uuid=, or conditions on its fields; \
             --multiple acts on all that match"
        );
    }
    [
        ("command name        ", command.name()),
        ("reqd params     ", command.required().join(", ")),
        ("optional params ", optional.join(", ")),
        ("description     ", description),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

async fn list(output: &mut Output, all: bool) -> Result<(), CliError> {
    let commands = table::all()
        .into_iter()
        .filter(|command| all || command.is_common());
    let names: Vec<_> = commands.map(Command::name).collect();
    if output.minimal {
        return Ok(output.values(&names).await?);
    }
    let heading = match all {
        true => "Full command list\n-----------------\n",
        false => {
            "To get a full listing of commands:\n  xe help --all\n\n\
             Common command list\n-------------------\n"
        }
    };
    output.remark(&format!("{USAGE}{heading}")).await?;
    Ok(output.values(&wrap(&names)).await?)
}

fn wrap(names: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for name in names {
        if line.len() + name.len() > LINE_MAX {
            lines.push(std::mem::take(&mut line) + ",");
        }
        line += if line.is_empty() { "    " } else { ", " };
        line += name;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_wrapped_and_keep_every_name() {
        let names: Vec<_> = table::all().into_iter().map(Command::name).collect();
        let lines = wrap(&names);
        assert!(
            lines.iter().all(|line| line.len() <= LINE_MAX + 5),
            "{lines:#?}"
        );
        let text = lines.join(" ");
        let found: Vec<_> = text.split(',').map(str::trim).collect();
        assert_eq!(found, names);
    }
}

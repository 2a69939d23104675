//! The server side of `xe`: `POST /cli`, the thin CLI protocol, the commands.
//!
//! ```text
//!  stream ── request (arguments) ── greeting ── login ── command ──> Exit
//!                                                 │  all through Api::call
//!                                                 ├─ table: what there is and what it takes
//!                                                 ├─ generic: <class>-list, <class>-param-*, from the model
//!                                                 └─ storage, vbd, vm, other: the rest
//! ```
//!
//! There is no HTTP answer: the connection turns to the protocol of the crate `thin-cli` as soon as
//! the request is read. Texts, names of fields and the layout of lists are those of XenServer's `xe`,
//! for scripts parse them.

mod context;
mod errors;
mod generic;
mod help;
mod kinds;
mod line;
mod other;
mod output;
mod records;
mod select;
mod storage;
mod table;
#[cfg(test)]
mod tests;
mod transfer;
mod vbd;
mod vm;

use crate::api::{Api, Caller, Origin};
use crate::http::RawRequest;
use context::{Context, Job};
use errors::CliError;
use line::Line;
use output::Output;
use std::sync::Arc;
use std::time::Duration;
use thin_cli::{ARGUMENTS_BYTES_MAX, ProtocolError};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

/// A client has so long to send its arguments and its greeting.
const HANDSHAKE_MAX: Duration = Duration::from_secs(30);

/// Serves one client, from the body of its request to the end of its command.
///
/// Root of this host (`Origin::LocalRoot`) needs no password; everyone else gives `username=` and
/// `password=` among the arguments.
///
/// # Errors
/// When the client breaks the protocol or the connection; what goes wrong inside a command is told
/// to the client.
///
/// # Cancel safety
/// Dropping it closes the connection. A call that runs goes on to its end.
pub(crate) async fn serve(api: Arc<Api>, request: RawRequest) -> Result<(), ProtocolError> {
    let length = request
        .header("content-length")
        .and_then(|length| length.parse().ok());
    let length: usize = length.ok_or(ProtocolError::Malformed(
        "the request has no content-length",
    ))?;
    if length > ARGUMENTS_BYTES_MAX {
        let (bytes, max) = (length as u64, ARGUMENTS_BYTES_MAX as u64);
        return Err(ProtocolError::TooLong {
            what: "request",
            bytes,
            max,
        });
    }
    let (mut input, mut printer) = output::halves(request.stream);
    let args = timeout(HANDSHAKE_MAX, async {
        let mut body = vec![0; length];
        input.read_exact(&mut body).await?;
        printer.greet().await?;
        thin_cli::read_greeting(&mut input).await?;
        Ok::<_, ProtocolError>(String::from_utf8_lossy(&body).into_owned())
    });
    let args = args
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    let caller = Caller {
        request_id: request.request_id,
        ..Caller::new(request.origin)
    };
    let mut output = Output::new(input, printer);
    let outcome = match Line::parse(
        args.split('\n')
            .map(|line| line.strip_suffix('\r').unwrap_or(line)),
    ) {
        Ok(line) => {
            output.minimal = line.params.flag("minimal");
            tracing::info!(request_id = %caller.request_id, command = line.command, "xe");
            run(&mut output, api, caller, line).await
        }
        Err(problem) => problem.tell(&mut output, None).await,
    };
    match outcome {
        // A client that has what it wants may leave before it is told to.
        Err(ProtocolError::Connection(_)) => Ok(()),
        outcome => outcome,
    }
}

async fn run(
    output: &mut Output,
    api: Arc<Api>,
    caller: Caller,
    line: Line,
) -> Result<(), ProtocolError> {
    let trace = line.params.flag("trace");
    let snapshot = || api.snapshot();
    match execute(output, &api, caller, line).await {
        Ok(()) => output.finish().await,
        Err(problem) => {
            let raised = trace.then(|| format!("Raised {problem:?}\n"));
            problem.tell(output, Some(&snapshot())).await?;
            if let Some(raised) = raised {
                output.stderr(&raised).await?;
            }
            output.exit(1).await
        }
    }
}

async fn execute(
    output: &mut Output,
    api: &Arc<Api>,
    caller: Caller,
    line: Line,
) -> Result<(), CliError> {
    if line.command == "help" {
        return help::run(output, &line.params).await;
    }
    let command =
        table::find(&line.command).ok_or_else(|| CliError::UnknownCommand(line.command.clone()))?;
    for name in command.required() {
        line.params.require(name)?;
    }
    let own_session = line.session.is_none();
    let caller = log_in(api, caller, &line).await?;
    let job = Job {
        api: api.clone(),
        caller,
        command,
        params: line.params,
    };
    let mut context = Context::new(job, output);
    let result = command.run(&mut context).await;
    if own_session {
        // One that cannot be closed now ends by itself; the result matters more.
        _ = context.call("session.logout", vec![]).await;
    }
    result
}

async fn log_in(api: &Arc<Api>, caller: Caller, line: &Line) -> Result<Caller, CliError> {
    if let Some(session) = line.session.as_deref() {
        return Ok(caller.in_session(session.into()));
    }
    let session = if caller.origin == Origin::LocalRoot {
        api.login_local_root(&caller, "xe").await?
    } else {
        let [user, password] =
            ["username", "password"].map(|name| line.params.get(name).unwrap_or_default());
        if user.is_empty() {
            return Err(CliError::Login("Username/password must be specified"));
        }
        let params = [user, password, "", "xe"]
            .map(database::Value::from)
            .to_vec();
        let session = api
            .call(&caller, "session.login_with_password", params)
            .await;
        let session = session.map_err(|error| match &*error.code {
            "SESSION_AUTHENTICATION_FAILED" => CliError::Login("Authentication failed"),
            _ => error.into(),
        })?;
        session
            .as_ref()
            .cloned()
            .unwrap_or_else(database::Ref::null)
    };
    Ok(caller.in_session(session))
}

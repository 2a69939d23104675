//! `xylem-plugin NAME`: runs one plugin for the daemon. Not started by hand: standard input is the
//! daemon's socket, and everything else comes over it (see `plugin::protocol`).
//!
//! ```text
//!  reader (main thread)  frames in: calls to the workers, answers to those who asked
//!  workers               one call each: component instance, or function of the shared object
//!  ticker                the clock of component deadlines, runs while calls do
//! ```
//! The process ends when the socket closes, when a frame is not what it should be, and when this
//! program itself panics. Exit codes: 0 the daemon closed the socket, 1 the plugin or the frame
//! was not usable.

// UNSAFETY: `library` calls functions of a shared object, `connection` takes over descriptors.
#![deny(unsafe_code)]

mod abi;
mod component;
mod confine;
mod connection;
mod files;
mod functions;
mod library;
mod serve;
mod ticker;
mod values;
mod wasi;

use connection::Connection;
use plugin::PluginErrorKind;
use plugin::protocol::FromProcess;
use std::process::ExitCode;
use std::sync::Arc;

/// Why something is refused or broke: its kind and a text.
type Failure = (PluginErrorKind, String);

/// A loaded artifact.
trait Plugin: Send + Sync {
    /// Interfaces it exports.
    fn interfaces(&self) -> Vec<String>;

    /// Calls an exported function with JSON parameters; returns the JSON of its result.
    fn call(&self, call: &Call<'_>) -> Result<Vec<u8>, Failure>;
}

/// One call.
struct Call<'a> {
    id: u64,
    /// `interface.function`, in snake case.
    method: &'a str,
    /// A JSON object.
    parameters: &'a [u8],
    timeout_ms: u64,
}

fn main() -> ExitCode {
    // A defect in this program must end calls at once, not leave them without an answer.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::abort();
    }));
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> std::io::Result<()> {
    let (connection, hello, descriptors) = Connection::take_over()?;
    let connection = Arc::new(connection);
    confine::confine(&hello)?;
    let calls = hello.calls;
    match serve::load(hello, descriptors, connection.clone()) {
        Ok(plugin) => serve::run(&connection, plugin, calls),
        Err((kind, message)) => connection.send(&FromProcess::Failed { kind, message }, &[]),
    }
}

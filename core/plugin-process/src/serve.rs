//! Loads the artifact, then takes calls until the daemon closes the socket.

use crate::component::Component;
use crate::connection::Connection;
use crate::functions::Functions;
use crate::library::Library;
use crate::{Call, Failure, Plugin};
use parking_lot::Mutex;
use plugin::protocol::{Frame, FromProcess, Hello, ToProcess};
use plugin::{Carrier, PluginErrorKind};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// Calls that wait for a worker; the daemon sends no more at once than there are workers.
const JOBS_MAX: usize = 256;

struct Job {
    id: u64,
    method: String,
    parameters: Vec<u8>,
    timeout_ms: u64,
}

/// Loads what the first frame brought.
pub(crate) fn load(
    hello: Hello,
    mut descriptors: Vec<OwnedFd>,
    connection: Arc<Connection>,
) -> Result<Arc<dyn Plugin>, Failure> {
    if descriptors.len() != hello.roots.len() + 1 {
        let message = format!(
            "{} descriptors came, not one and the roots",
            descriptors.len()
        );
        return Err((PluginErrorKind::Internal, message));
    }
    let artifact = descriptors.remove(0);
    let functions = Arc::new(Functions::new(&hello, descriptors, connection));
    Ok(match hello.carrier {
        Carrier::Component => Arc::new(Component::load(&hello, artifact, functions)?),
        Carrier::SharedObject => Arc::new(Library::load(&hello, artifact, functions)?),
    })
}

/// Says that the plugin is ready and serves until the socket closes.
pub(crate) fn run(
    connection: &Arc<Connection>,
    plugin: Arc<dyn Plugin>,
    calls: u32,
) -> io::Result<()> {
    let (jobs, waiting) = sync_channel::<Job>(JOBS_MAX);
    let waiting = Arc::new(Mutex::new(waiting));
    for number in 0..calls {
        let (connection, plugin, waiting) = (connection.clone(), plugin.clone(), waiting.clone());
        std::thread::Builder::new()
            .name(format!("call-{number}"))
            .spawn(move || work(&connection, &*plugin, &waiting))?;
    }
    connection.send(
        &FromProcess::Ready {
            interfaces: plugin.interfaces(),
        },
        &[],
    )?;
    while let Some(Frame { head, body }) = connection.read()? {
        match head {
            ToProcess::Call {
                id,
                method,
                timeout_ms,
                ..
            } => {
                if jobs
                    .try_send(Job {
                        id,
                        method,
                        parameters: body,
                        timeout_ms,
                    })
                    .is_err()
                {
                    let message = format!("{JOBS_MAX} calls are waiting");
                    let kind = PluginErrorKind::Busy;
                    connection.send(&FromProcess::Broke { id, kind, message }, &[])?;
                }
            }
            ToProcess::Answer { id } => connection.answer(id, body),
            ToProcess::Hello(_) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a second hello"));
            }
        }
    }
    Ok(())
}

fn work(connection: &Connection, plugin: &dyn Plugin, waiting: &Mutex<Receiver<Job>>) {
    loop {
        let job = waiting.lock().recv();
        let Ok(Job {
            id,
            method,
            parameters,
            timeout_ms,
        }) = job
        else {
            return;
        };
        let call = Call {
            id,
            method: &method,
            parameters: &parameters,
            timeout_ms,
        };
        let sent = match plugin.call(&call) {
            Ok(result) => connection.send(&FromProcess::Done { id }, &result),
            Err((kind, message)) => connection.send(&FromProcess::Broke { id, kind, message }, &[]),
        };
        if let Err(error) = sent {
            // Too long for a frame: say so in one that is not.
            let kind = PluginErrorKind::Incompatible;
            let message = format!("its answer cannot be sent: {error}");
            if connection
                .send(&FromProcess::Broke { id, kind, message }, &[])
                .is_err()
            {
                // Without the socket there is nothing left to live for.
                std::process::exit(1);
            }
        }
    }
}

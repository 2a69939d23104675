//! As much of WASI 0.2 as a component needs that has no file, no socket, no argument and no
//! environment: clocks, random numbers, an exit that traps, and standard output and error that go
//! to the log. Everything else of the interfaces admitted by the loader traps when it is called.

use crate::component::State;
use plugin::LogLevel;
use std::fs::File;
use std::io::Read;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wasmtime::component::{ComponentType, LinkerInstance, Lower, Resource, ResourceType};
use wasmtime::{Error, Result, StoreContextMut};

/// Interfaces that a component may import, without package version.
pub(crate) const ADMITTED: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/stderr",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:cli/terminal-stderr",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
];

/// Bytes that a stream takes at once.
const WRITE_BYTES_MAX: u64 = 4096;
/// Random bytes given at once.
const RANDOM_BYTES_MAX: u64 = 64 << 10;

/// Types of resources; none has content.
pub(crate) enum OutputStream {}
enum InputStream {}
enum Pollable {}
enum IoError {}
enum TerminalInput {}
enum TerminalOutput {}

#[derive(ComponentType, Lower)]
#[component(variant)]
enum StreamError {
    #[component(name = "last-operation-failed")]
    #[expect(dead_code, reason = "part of the type; these streams only end")]
    LastOperationFailed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct Datetime {
    seconds: u64,
    nanoseconds: u32,
}

type Streamed<T> = (std::result::Result<T, StreamError>,);

/// Says which resource a name stands for in the admitted interfaces.
pub(crate) fn resource(name: &str) -> Option<ResourceType> {
    Some(match name {
        "output-stream" => ResourceType::host::<OutputStream>(),
        "input-stream" => ResourceType::host::<InputStream>(),
        "pollable" => ResourceType::host::<Pollable>(),
        "error" => ResourceType::host::<IoError>(),
        "terminal-input" => ResourceType::host::<TerminalInput>(),
        "terminal-output" => ResourceType::host::<TerminalOutput>(),
        _ => return None,
    })
}

/// Defines one function of an admitted interface.
pub(crate) fn function(
    linker: &mut LinkerInstance<'_, State>,
    interface: &'static str,
    name: &str,
) -> Result<()> {
    match (interface, name) {
        ("wasi:cli/environment", "get-environment") => {
            linker.func_wrap(name, |_, ()| Ok((Vec::<(String, String)>::new(),)))
        }
        ("wasi:cli/environment", "get-arguments") => {
            linker.func_wrap(name, |_, ()| Ok((Vec::<String>::new(),)))
        }
        ("wasi:cli/environment", "initial-cwd") => {
            linker.func_wrap(name, |_, ()| Ok((None::<String>,)))
        }
        ("wasi:cli/exit", "exit") => linker.func_wrap(
            name,
            |_, (_,): (std::result::Result<(), ()>,)| -> Result<()> {
                Err(Error::msg("it called exit"))
            },
        ),
        ("wasi:cli/stdin", "get-stdin") => {
            linker.func_wrap(name, |_, ()| Ok((Resource::<InputStream>::new_own(0),)))
        }
        ("wasi:cli/stdout" | "wasi:cli/stderr", _) => {
            linker.func_wrap(name, |_, ()| Ok((Resource::<OutputStream>::new_own(1),)))
        }
        ("wasi:cli/terminal-stdin", _) => {
            linker.func_wrap(name, |_, ()| Ok((None::<Resource<TerminalInput>>,)))
        }
        ("wasi:cli/terminal-stdout" | "wasi:cli/terminal-stderr", _) => {
            linker.func_wrap(name, |_, ()| Ok((None::<Resource<TerminalOutput>>,)))
        }
        ("wasi:io/streams", _) => stream_function(linker, name),
        // The only pollables there are belong to output streams, which are always ready.
        ("wasi:io/poll", "[method]pollable.block") => {
            linker.func_wrap(name, |_, (_,): (Resource<Pollable>,)| Ok(()))
        }
        ("wasi:io/poll", "[method]pollable.ready") => {
            linker.func_wrap(name, |_, (_,): (Resource<Pollable>,)| Ok((true,)))
        }
        ("wasi:io/poll", "poll") => {
            linker.func_wrap(name, |_, (pollables,): (Vec<Resource<Pollable>>,)| {
                Ok(((0..pollables.len() as u32).collect::<Vec<_>>(),))
            })
        }
        ("wasi:clocks/wall-clock", "now") => linker.func_wrap(name, |_, ()| Ok((wall_clock(),))),
        ("wasi:clocks/monotonic-clock", "now") => {
            linker.func_wrap(name, |store: StoreContextMut<'_, State>, ()| {
                let elapsed = store.data().started.elapsed();
                Ok((u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),))
            })
        }
        ("wasi:random/random" | "wasi:random/insecure", _) if name.ends_with("bytes") => {
            linker.func_wrap(name, |_, (len,): (u64,)| Ok((random_bytes(len)?,)))
        }
        ("wasi:random/random" | "wasi:random/insecure", _) => {
            linker.func_wrap(name, |_, ()| Ok((random_u64()?,)))
        }
        ("wasi:random/insecure-seed", _) => {
            linker.func_wrap(name, |_, ()| Ok(((random_u64()?, random_u64()?),)))
        }
        _ => refuse(linker, interface, name),
    }
}

/// Standard output and error; standard input is at its end.
fn stream_function(linker: &mut LinkerInstance<'_, State>, name: &str) -> Result<()> {
    match name {
        "[method]output-stream.check-write" => linker.func_wrap(
            name,
            |_, (_,): (Resource<OutputStream>,)| -> Result<Streamed<u64>> {
                Ok((Ok(WRITE_BYTES_MAX),))
            },
        ),
        "[method]output-stream.write" | "[method]output-stream.blocking-write-and-flush" => linker
            .func_wrap(
                name,
                |mut store: StoreContextMut<'_, State>,
                 (_, bytes): (Resource<OutputStream>, Vec<u8>)|
                 -> Result<Streamed<()>> {
                    store.data_mut().printed(&bytes, LogLevel::Warn);
                    Ok((Ok(()),))
                },
            ),
        "[method]output-stream.flush" | "[method]output-stream.blocking-flush" => linker.func_wrap(
            name,
            |_, (_,): (Resource<OutputStream>,)| -> Result<Streamed<()>> { Ok((Ok(()),)) },
        ),
        "[method]output-stream.subscribe" => linker
            .func_wrap(name, |_, (_,): (Resource<OutputStream>,)| {
                Ok((Resource::<Pollable>::new_own(0),))
            }),
        "[method]input-stream.read" | "[method]input-stream.blocking-read" => linker.func_wrap(
            name,
            |_, (_, _): (Resource<InputStream>, u64)| -> Result<Streamed<Vec<u8>>> {
                Ok((Err(StreamError::Closed),))
            },
        ),
        _ => refuse(linker, "wasi:io/streams", name),
    }
}

fn refuse(
    linker: &mut LinkerInstance<'_, State>,
    interface: &'static str,
    name: &str,
) -> Result<()> {
    let message = format!("{interface}.{name} is not granted to plugins");
    linker.func_new(name, move |_, _, _, _| Err(Error::msg(message.clone())))
}

fn wall_clock() -> Datetime {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    Datetime {
        seconds: now.as_secs(),
        nanoseconds: now.subsec_nanos(),
    }
}

fn random_bytes(len: u64) -> Result<Vec<u8>> {
    if len > RANDOM_BYTES_MAX {
        return Err(Error::msg(format!("{len} random bytes at once")));
    }
    let mut bytes = vec![0; len as usize];
    File::open("/dev/urandom")
        .and_then(|mut device| device.read_exact(&mut bytes))
        .map_err(|error| Error::msg(format!("random bytes: {error}")))?;
    Ok(bytes)
}

fn random_u64() -> Result<u64> {
    let bytes = random_bytes(8)?;
    Ok(bytes.try_into().map_or(0, u64::from_le_bytes))
}
